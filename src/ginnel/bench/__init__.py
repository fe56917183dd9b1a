"""``ginnel bench``: ginnel's tunnels and those of the peers that are installed, by turns on one machine."""
