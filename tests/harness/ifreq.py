"""The arguments of ioctls."""

from __future__ import annotations

import socket
import struct


def ifreq(name: str, value: int | bytes) -> bytes:
    """A struct ifreq with flags, or with any bytes."""
    rest = struct.pack("=H", value) if isinstance(value, int) else value
    return name.encode().ljust(16, b"\0") + rest.ljust(24, b"\0")


def number(value: int) -> bytes:
    """An argument that is no pointer."""
    return struct.pack("=Q", value)


def sockaddr(address: str) -> bytes:
    return struct.pack("=H2x4s8x", socket.AF_INET, socket.inet_aton(address))
