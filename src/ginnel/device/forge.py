"""Packets that a program at the application end forges and reads: echo (ICMP) and datagrams (UDP).

Addresses are packed: 4 bytes for IPv4 (RFC 791), 16 for IPv6 (RFC 8200). There are no options, no
extension headers and no fragments: what has them is not parsed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Echo:
    """An echo request or reply (RFC 792, RFC 4443)."""

    source: bytes
    destination: bytes
    identifier: int
    sequence: int
    payload: bytes = b""
    is_reply: bool = False

    def reply(self) -> Echo:
        return Echo(self.destination, self.source, self.identifier, self.sequence, self.payload, True)

    def emit(self) -> bytes:
        kinds = _ECHO[len(self.source)]
        message = struct.pack("!BxHHH", kinds[self.is_reply], 0, self.identifier, self.sequence) + self.payload
        is_ipv6 = len(self.source) == 16
        pseudo = _pseudo_header(self.source, self.destination, len(message), ICMPV6) if is_ipv6 else b""
        message = message[:2] + checksum(pseudo + message) + message[4:]
        return emit_ip(self.source, self.destination, ICMPV6 if is_ipv6 else ICMP, message)

    @classmethod
    def parse(cls, source: bytes, destination: bytes, message: bytes) -> Self | None:
        """Of an ICMP message; None for anything else than a sound echo."""
        if len(message) < 8 or message[1] != 0 or message[0] not in _ECHO[len(source)]:
            return None
        pseudo = _pseudo_header(source, destination, len(message), ICMPV6) if len(source) == 16 else b""
        if checksum(pseudo + message) != b"\0\0":
            return None
        identifier, sequence = struct.unpack_from("!HH", message, 4)
        is_reply = message[0] == _ECHO[len(source)][True]
        return cls(source, destination, identifier, sequence, message[8:], is_reply)


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram (RFC 768)."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    payload: bytes = b""

    def reply(self) -> Datagram:
        """The same payload, sent back."""
        return Datagram(self.destination, self.destination_port, self.source, self.source_port, self.payload)

    def emit(self) -> bytes:
        header = struct.pack("!HHH", self.source_port, self.destination_port, 8 + len(self.payload))
        message = header + b"\0\0" + self.payload
        found = checksum(_pseudo_header(self.source, self.destination, len(message), UDP) + message)
        # Zero would mean that there is none.
        message = header + (found if any(found) else b"\xff\xff") + self.payload
        return emit_ip(self.source, self.destination, UDP, message)

    @classmethod
    def parse(cls, source: bytes, destination: bytes, message: bytes) -> Self | None:
        """Of an UDP message; None for one that is not sound."""
        if len(message) < 8:
            return None
        source_port, destination_port, length = struct.unpack_from("!HHH", message)
        if not 8 <= length <= len(message):
            return None
        message = message[:length]
        is_unchecked = len(source) == 4 and message[6:8] == b"\0\0"
        pseudo = _pseudo_header(source, destination, length, UDP)
        if not is_unchecked and checksum(pseudo + message) != b"\0\0":
            return None
        return cls(source, source_port, destination, destination_port, message[8:])


def parse(packet: bytes) -> Echo | Datagram | None:
    """What an IP packet carries; None for anything else, and for what is damaged."""
    parsed = parse_ip(packet)
    if parsed is None:
        return None
    source, destination, protocol, message = parsed
    if protocol == UDP:
        return Datagram.parse(source, destination, message)
    if protocol == (ICMPV6 if len(source) == 16 else ICMP):
        return Echo.parse(source, destination, message)
    return None


def emit_ip(source: bytes, destination: bytes, protocol: int, message: bytes) -> bytes:
    """An IP packet. Both addresses are of one version. Raises ValueError for a message that is too long."""
    if len(message) > MAX_MESSAGE:
        raise ValueError(f"a packet carries at most {MAX_MESSAGE} bytes")
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, len(message), protocol, HOPS) + source + destination + message
    header = struct.pack("!BxHHHBB", 0x45, 20 + len(message), 0, _DONT_FRAGMENT, HOPS, protocol)
    tail = source + destination
    return header + checksum(header + tail) + tail + message


def parse_ip(packet: bytes) -> tuple[bytes, bytes, int, bytes] | None:
    """Source, destination, protocol and message of an IP packet; None where it is not sound or a fragment."""
    version = packet[0] >> 4 if packet else 0
    if version == 6 and len(packet) >= 40:
        length, protocol = struct.unpack_from("!HB", packet, 4)
        if 40 + length <= len(packet):
            return packet[8:24], packet[24:40], protocol, packet[40 : 40 + length]
    if version == 4 and len(packet) >= 20:
        start = (packet[0] & 15) * 4
        total, fragment = struct.unpack_from("!H2xH", packet, 2)
        if 20 <= start <= total <= len(packet) and not fragment & _FRAGMENT and checksum(packet[:start]) == b"\0\0":
            return packet[12:16], packet[16:20], packet[9], packet[start:total]
    return None


def checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071): 2 bytes; zero over data that carries its own."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def _pseudo_header(source: bytes, destination: bytes, length: int, protocol: int) -> bytes:
    if len(source) == 16:
        return source + destination + struct.pack("!I3xB", length, protocol)
    return source + destination + struct.pack("!xBH", protocol, length)


ICMP = 1
UDP = 17
ICMPV6 = 58
HOPS = 64
MAX_MESSAGE = 65_535 - 40
_ECHO = {4: (8, 0), 16: (128, 129)}
_DONT_FRAGMENT = 0x4000
# More fragments, or an offset.
_FRAGMENT = 0x3FFF
