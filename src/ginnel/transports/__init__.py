"""Ways to a server: addresses, sockets, proxies, and what happens to the machine's own network."""
