"""OpenVPN, both roles: the protocol without I/O, and `aio`, the one place with a clock and a loop."""
