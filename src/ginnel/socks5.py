"""SOCKS5's formats (RFC 1928) that its two sides share: addresses, and datagrams (section 7)."""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple


def emit_address(host: str, port: int) -> bytes:
    """An IP address, or else a name, and a port, behind the byte that says which. A name that is not ASCII goes as
    IDNA has it; UnicodeError where it can't, ValueError where it is longer than 255 bytes."""
    try:
        packed = ip_address(host).packed
    except ValueError:
        name = host.encode("ascii" if host.isascii() else "idna")
        return bytes((NAME, len(name))) + name + port.to_bytes(2)
    return bytes((IPV4 if len(packed) == 4 else IPV6,)) + packed + port.to_bytes(2)


def datagram_header(host: str, port: int) -> bytes:
    """What stands before a datagram between a client and its relay: whom it is for, or whom it is from."""
    return b"\0\0\0" + emit_address(host, port)


class Datagram(NamedTuple):
    """Whom it is for (an IP address or a name), and what."""

    host: str
    port: int
    payload: bytes


def parse_datagram(message: bytes) -> Datagram | None:
    """Takes a client's datagram apart. None for a fragment, and for what is malformed."""
    if len(message) < 5 or message[:3] != b"\0\0\0":
        return None
    kind = message[3]
    start = 5 if kind == NAME else 4
    end = start + {IPV4: 4, IPV6: 16, NAME: message[4]}.get(kind, len(message))
    if len(message) < end + 2:
        return None
    raw = message[start:end]
    try:
        host = raw.decode("ascii") if kind == NAME else str(ip_address(raw))
    except UnicodeDecodeError:
        return None
    port = int.from_bytes(message[end : end + 2])
    if not host.isprintable() or not host or " " in host or not port:
        return None
    return Datagram(host, port, message[end + 2 :])


IPV4, NAME, IPV6 = 1, 3, 4
