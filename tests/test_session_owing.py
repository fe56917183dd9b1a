"""Peers that acknowledge nothing, and go on sending."""

import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from ginnel.openvpn.packets import ControlPacket, Header, Opcode
from ginnel.openvpn.reliability import RECEIVE_WINDOW
from ginnel.openvpn.tls import TlsContext
from ginnel.testing import PATHS, Side, matching_settings
from tests.sessions import Tap, establish, make_pair


class OwingTap(Tap):
    """Takes the ACKs out of what one side sends, but those of the packets in ``kept``."""

    def __init__(self, debtor: str, kept: tuple[int, ...]) -> None:
        super().__init__()
        self.kept = kept
        self._opcodes = (7,) if debtor == "client" else (8,)
        self._debtor: bytes | None = None
        self.sent = 0

    def carry(self, datagram: bytes) -> list[tuple[float, bytes]]:
        packet = ControlPacket.parse(datagram)
        if packet.header.opcode in self._opcodes:
            self._debtor = packet.header.session_id
        if packet.header.session_id == self._debtor:
            acks = tuple(ack for ack in packet.acks if ack in self.kept)
            packet = replace(packet, acks=acks, peer_session_id=packet.peer_session_id if acks else None)
            self.sent = max(self.sent, packet.packet_id or 0)
        return super().carry(packet.emit())


@pytest.mark.parametrize("debtor", ["client", "server"])
@pytest.mark.parametrize("kept", [(), (0,)], ids=["not even the reset", "the reset alone"])
def test_what_is_not_read_yet_is_not_taken(debtor: str, kept: tuple[int, ...]) -> None:
    """By its reset one side waits for ACKs before TLS, by its key message after it."""
    wire = OwingTap(debtor, kept)
    pair = make_pair(wire=wire)
    pair.run_for(1)
    side = pair.server if debtor == "client" else pair.client
    sender = wire.session_id(pair.client if debtor == "client" else pair.server)
    taken = set()
    for packet_id in range(wire.sent + 1, wire.sent + 100):
        packet = ControlPacket(Header(Opcode.CONTROL_V1, 0, sender), (), None, packet_id, bytes(1000))
        taken |= _acknowledged(side, packet, pair.now) - set(range(wire.sent + 1))
    assert len(taken) <= RECEIVE_WINDOW
    assert side.session.statistics()["out_of_window"] >= 99 - RECEIVE_WINDOW
    assert side.closed is None


def test_what_tls_answers_by_itself_does_not_pile_up() -> None:
    """Each KeyUpdate (RFC 8446, 4.6.3) may ask for another."""
    wire = Tap()
    ours, _ = matching_settings()
    tls = TlsContext(ours.tls._settings, server=False)
    secrets: list[bytes] = []
    tls._context.set_keylog_callback(lambda connection, line: secrets.append(line))
    pair = establish(make_pair(wire=wire, client={"tls": tls}))
    line = next(line for line in secrets if line.startswith(b"CLIENT_TRAFFIC_SECRET_0"))
    # The key message was a record, and so was each message.
    keys = KeyUpdates(bytes.fromhex(line.split()[2].decode()), 1 + len(pair.server_policy.heard))
    sender = wire.session_id(pair.client)
    header = Header(Opcode.CONTROL_V1, 0, sender)
    sent = [ControlPacket.parse(datagram) for datagram in wire.datagrams]
    last = max(packet.packet_id or 0 for packet in sent if packet.header.session_id == sender)
    packets = [
        ControlPacket(header, (), None, packet_id, b"".join(next(keys) for _ in range(20)))
        for packet_id in range(last + 1, last + 301)
    ]
    taken = set[int]().union(*(_acknowledged(pair.server, packet, pair.now) for packet in packets))
    assert 100 < max(taken) - last < 200
    # Who pays is read again.
    answers = [datagram for datagram in wire.datagrams if ControlPacket.parse(datagram).header.session_id != sender]
    owed = max(ControlPacket.parse(datagram).packet_id or 0 for datagram in answers) + 1
    for packet_id in range(owed, owed + 100):
        ack = ControlPacket(Header(Opcode.ACK_V1, 0, sender), (packet_id,), wire.session_id(pair.server), None)
        _acknowledged(pair.server, ack, pair.now)
    waiting = packets[max(taken) - last]
    assert waiting.packet_id in _acknowledged(pair.server, waiting, pair.now)
    assert pair.server.closed is None


class KeyUpdates:
    """A client's side of TLS 1.3 with TLS_AES_256_GCM_SHA384 after the handshake: an endless row of KeyUpdate."""

    def __init__(self, secret: bytes, records: int) -> None:
        self._secret = secret
        self._records = records

    def __next__(self) -> bytes:
        # KeyUpdate, update_requested; then the type of the content.
        inner = bytes.fromhex("18 000001 01 16")
        head = b"\x17\x03\x03" + struct.pack(">H", len(inner) + 16)
        nonce = int.from_bytes(self._expand(b"iv", 12)) ^ self._records
        record = head + AESGCM(self._expand(b"key", 32)).encrypt(nonce.to_bytes(12), inner, head)
        self._secret, self._records = self._expand(b"traffic upd", 48), 0
        return record

    def _expand(self, label: bytes, size: int) -> bytes:
        info = struct.pack(">HB", size, len(b"tls13 " + label)) + b"tls13 " + label + b"\0"
        return HKDFExpand(SHA384(), size, info).derive(self._secret)


def _acknowledged(side: Side, packet: ControlPacket, now: float) -> set[int]:
    """Which packets a side acknowledges when it is given this one."""
    path = PATHS["server" if side.name == "client" else "client"]
    side.session.receive_datagram(packet.emit(), path, now)
    return {ack for datagram, _ in side.session.datagrams_to_send(now) for ack in ControlPacket.parse(datagram).acks}
