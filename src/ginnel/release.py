"""Which ginnel this is, as it says so to its peers and to monitors."""

from __future__ import annotations

from importlib.metadata import version

# Read at once: a session that has given up its rights may not read ginnel's own files any longer.
VERSION = version("ginnel")
