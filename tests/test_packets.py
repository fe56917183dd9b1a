import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ginnel.openvpn.packets import (
    CONTROL_OPCODES,
    HARD_RESETS,
    ControlPacket,
    Header,
    Opcode,
    PacketError,
)

VECTORS = json.loads((Path(__file__).parent / "vectors" / "openvpn.json").read_text())["packets"]
session_ids = st.binary(min_size=8, max_size=8).filter(any)
numbers = st.integers(0, 0xFFFFFFFF)


@st.composite
def packets(draw: st.DrawFn) -> ControlPacket:
    header = Header(draw(st.sampled_from(sorted(CONTROL_OPCODES))), draw(st.integers(0, 7)), draw(session_ids))
    acks = tuple(draw(st.lists(numbers, max_size=8)))
    peer = draw(st.binary(min_size=8, max_size=8)) if acks else None
    if header.opcode is Opcode.ACK_V1:
        return ControlPacket(header, acks, peer, None)
    packet_id = 0 if header.opcode in HARD_RESETS else draw(numbers)
    return ControlPacket(header, acks, peer, packet_id, draw(st.binary(max_size=200)))


@given(packets())
def test_what_is_emitted_is_parsed_again(packet: ControlPacket) -> None:
    assert ControlPacket.parse(packet.emit()) == packet


@given(st.binary(max_size=300))
def test_any_bytes_are_a_packet_or_a_typed_error(data: bytes) -> None:
    try:
        packet = ControlPacket.parse(data)
    except PacketError:
        return
    assert data.startswith(packet.emit())


@pytest.mark.parametrize("opcode", [0, 1, 2, 6, 9, 12, 31])
def test_data_key_method_1_and_unknown_opcodes_are_refused(opcode: int) -> None:
    with pytest.raises(PacketError, match=f"opcode {opcode} "):
        ControlPacket.parse(bytes([opcode << 3]) + bytes(range(1, 40)))


@pytest.mark.parametrize("length", range(23))
def test_a_packet_cut_short_is_refused_at_every_length(length: int) -> None:
    whole = ControlPacket(Header(Opcode.CONTROL_V1, 0, b"sessions"), (7,), b"theirsid", 1, b"").emit()
    with pytest.raises(PacketError):
        ControlPacket.parse(whole[:length])


def test_nine_acks_and_a_late_hard_reset_are_refused() -> None:
    with pytest.raises(PacketError, match="9 ACKs"):
        ControlPacket.parse(b"\x20sessions\x09" + bytes(60))
    with pytest.raises(PacketError, match="packet id 1"):
        ControlPacket.parse(b"\x38sessions\x00\x00\x00\x00\x01")


def test_openvpns_own_packets() -> None:
    reset = ControlPacket.parse(bytes.fromhex(VECTORS["reset_none"]))
    assert reset.header == Header(Opcode.HARD_RESET_CLIENT_V2, 0, bytes.fromhex("6891923fa3103437"))
    assert (reset.acks, reset.packet_id, reset.payload) == ((), 0, b"")
    control = ControlPacket.parse(bytes.fromhex(VECTORS["control_with_ack"]))
    assert control.acks == (0,)
    assert control.peer_session_id == bytes.fromhex("eafebfa4418ae31b")
    assert (control.packet_id, control.payload) == (1, bytes.fromhex("160301"))
    ack = ControlPacket.parse(bytes.fromhex(VECTORS["ack_none"]))
    assert (ack.header.opcode, ack.acks, ack.packet_id) == (Opcode.ACK_V1, (0,), None)
    for packet, name in ((reset, "reset_none"), (control, "control_with_ack"), (ack, "ack_none")):
        assert packet.emit().hex() == VECTORS[name]
