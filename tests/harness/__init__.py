"""What the interop tests, the bench and the demo run on: namespaces, stock OpenVPN, an office behind it."""
