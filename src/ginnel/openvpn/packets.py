"""Control packets, and the header that they share with data packets.

Layout (OpenVPN ``ssl_pkt.h``, ``reliable.c``): one byte of opcode (high five bits) and key id (low
three), the sender's session id (8), then the *body*: a count of ACKs (1), the packet ids that they
name (4 each), the receiver's session id (8, present with ACKs only), the packet's own id (4, absent
in P_ACK_V1), the payload. A wrap puts its own fields between header and body.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from ginnel.errors import RemoteProtocolError


class PacketError(RemoteProtocolError):
    """A datagram that is no control packet. It is dropped and counted, never shown to a user."""


class Opcode(IntEnum):
    """What a packet is. The opcodes 1 and 2 (key method 1) are refused like any unknown one."""

    # An Enum's own is Python's, of the name, and sets of opcodes are asked about each packet.
    __hash__ = int.__hash__

    SOFT_RESET_V1 = 3
    CONTROL_V1 = 4
    ACK_V1 = 5
    DATA_V1 = 6
    HARD_RESET_CLIENT_V2 = 7
    HARD_RESET_SERVER_V2 = 8
    DATA_V2 = 9
    HARD_RESET_CLIENT_V3 = 10
    CONTROL_WKC_V1 = 11


@dataclass(frozen=True, slots=True)
class Header:
    """The nine bytes in clear at the front of every control packet."""

    opcode: Opcode
    key_id: int
    session_id: bytes

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """Raises `PacketError` for what is short, a data packet, or has no session id."""
        if len(data) < HEADER_SIZE:
            raise PacketError(f"a packet of {len(data)} bytes is too short")
        opcode = BY_NUMBER.get(data[0] >> 3)
        if opcode is None:
            raise PacketError(f"opcode {data[0] >> 3} is not a control packet's")
        session_id = data[1:HEADER_SIZE]
        if session_id == NO_SESSION:
            raise PacketError("the session id is zero")
        return cls(opcode, data[0] & 7, session_id)

    def emit(self) -> bytes:
        return bytes([self.opcode << 3 | self.key_id]) + self.session_id


@dataclass(frozen=True, slots=True)
class ControlPacket:
    """One control packet without its wrap.

    ``acks`` are packet ids of the receiver's, at most eight; ``peer_session_id`` is the receiver's
    session id, None without ACKs; ``packet_id`` is None in an ACK, which has no payload either.
    """

    header: Header
    acks: tuple[int, ...]
    peer_session_id: bytes | None
    packet_id: int | None
    payload: bytes = b""

    @classmethod
    def parse(cls, data: bytes, header: Header | None = None) -> ControlPacket:
        """Takes header and body; ``header`` where it was read already. Raises `PacketError`."""
        header = header or Header.parse(data)
        is_ack = header.opcode is Opcode.ACK_V1
        count = data[HEADER_SIZE] if len(data) > HEADER_SIZE else 0
        if count > MAX_ACKS:
            raise PacketError(f"{count} ACKs in one packet")
        acks_at = HEADER_SIZE + 1
        session_at = acks_at + 4 * count
        id_at = session_at + (SESSION_ID_SIZE if count else 0)
        payload_at = id_at + (0 if is_ack else 4)
        if len(data) < payload_at:
            raise PacketError("the packet ends early")
        acks = struct.unpack_from(f">{count}I", data, acks_at)
        peer_session_id = data[session_at:id_at] if count else None
        if is_ack:
            return cls(header, acks, peer_session_id, None)
        (packet_id,) = struct.unpack_from(">I", data, id_at)
        if header.opcode in HARD_RESETS and packet_id != 0:
            raise PacketError(f"a hard reset with packet id {packet_id}")
        payload = data[payload_at:]
        if len(payload) > MAX_PAYLOAD:
            raise PacketError(f"{len(payload)} bytes of payload in one packet")
        return cls(header, acks, peer_session_id, packet_id, payload)

    def emit(self) -> bytes:
        return self.header.emit() + self.emit_body()

    def emit_body(self) -> bytes:
        parts = [struct.pack(f">B{len(self.acks)}I", len(self.acks), *self.acks), self.peer_session_id or b""]
        if self.packet_id is not None:
            parts += [struct.pack(">I", self.packet_id), self.payload]
        return b"".join(parts)


def resend_wrapped_key(payload: bytes) -> bool:
    """Whether a server's reset asks its client to repeat the wrapped key. The payload is a list of type (2),
    length (2), value; unknown types are skipped. Raises `PacketError`."""
    reader, asked = _Reader(payload, 0), False
    while not reader.at_end:
        kind, size = struct.unpack(">HH", reader.take(4))
        value = reader.take(size)
        if kind == EARLY_FLAGS:
            if size != 2:
                raise PacketError("flags of the wrong length")
            asked = asked or bool(value[1] & FLAG_RESEND_WKC)
    return asked


class _Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise PacketError("the packet ends early")
        part = self._data[self._at : end]
        self._at = end
        return part

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)


SESSION_ID_SIZE = 8
HEADER_SIZE = 1 + SESSION_ID_SIZE
NO_SESSION = bytes(SESSION_ID_SIZE)
MAX_ACKS = 8
# Stock OpenVPN's buffer (common.h, TLS_CHANNEL_BUF_SIZE): nobody sends more.
MAX_PAYLOAD = 2048
HARD_RESETS = frozenset({Opcode.HARD_RESET_CLIENT_V2, Opcode.HARD_RESET_SERVER_V2, Opcode.HARD_RESET_CLIENT_V3})
EARLY_FLAGS = 1
FLAG_RESEND_WKC = 1
ASK_FOR_WRAPPED_KEY = struct.pack(">HHH", EARLY_FLAGS, 2, FLAG_RESEND_WKC)
CONTROL_OPCODES = frozenset(Opcode) - {Opcode.DATA_V1, Opcode.DATA_V2}
BY_NUMBER = {int(opcode): opcode for opcode in CONTROL_OPCODES}
