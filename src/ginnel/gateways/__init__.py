"""Ways into the tunnel for programs that know nothing of it. Python decides, Rust moves the bytes."""
