"""Strange, forged and misplaced control packets."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ginnel.errors import RemoteProtocolError, UnreachableError
from ginnel.openvpn.packets import ASK_FOR_WRAPPED_KEY, CONTROL_OPCODES, ControlPacket, Header, Opcode
from ginnel.openvpn.wrap import StaticKey, TlsCrypt
from ginnel.testing import PATHS, NoisyWire, matching_settings
from tests.sessions import (
    OldClientPolicy,
    Tap,
    closing,
    establish,
    keys_of,
    make_pair,
    rekeys,
)


@pytest.mark.parametrize("wrap", ["none", "tls-auth", "tls-crypt", "tls-crypt-v2"])
@pytest.mark.parametrize("opcode", [*sorted(CONTROL_OPCODES), 1, 2, 6, 9, 12, 31])
def test_first_packets_of_every_length_leave_a_session_unharmed(wrap: str, opcode: int) -> None:
    pair = make_pair(wrap)
    for side in (pair.client, pair.server):
        path = PATHS["server" if side is pair.client else "client"]
        for length in [*range(9), 9, 13, 100, 1500, 65507]:
            head = bytes([opcode << 3]) + b"\xaa" * 7
            side.session.receive_datagram((head + bytes(length))[: length + 1], path, pair.now)
            side.session.receive_datagram(head[:1] + b"\xaa" * length, path, pair.now)
    assert pair.client.closed is None
    assert pair.server.closed is None


@pytest.mark.parametrize("length", range(9))
def test_control_payloads_of_every_small_length(length: int) -> None:
    wire = Tap()
    pair = make_pair(wire=wire)
    pair.run_until(lambda: any("opcode 8" in what for _, _, what in pair.trace), 5)
    header = Header(Opcode.CONTROL_V1, 0, wire.session_id(pair.client))
    packet = ControlPacket(header, (), None, 1, b"\x16" * length)
    pair.server.session.receive_datagram(packet.emit(), PATHS["client"], pair.now)
    pair.run_for(100)
    # What isn't TLS ends the session as an error of the peer's, and nothing else. Here the forged
    # packet takes the place of the client's first one, so that not even an empty one leads on.
    assert pair.server.closed is not None
    assert isinstance(pair.server.closed.error, RemoteProtocolError | UnreachableError)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_packets_in_any_state_are_dropped_or_end_the_session(data: st.DataObject) -> None:
    wire = Tap()
    pair = make_pair(wire=wire)
    pair.run_for(data.draw(st.sampled_from([0.0, 0.03, 0.05, 0.07, 0.09, 0.2, 2.0])))
    side = data.draw(st.sampled_from([pair.client, pair.server]))
    other = pair.server if side is pair.client else pair.client
    for _ in range(data.draw(st.integers(1, 6))):
        opcode = data.draw(st.sampled_from(sorted(CONTROL_OPCODES)))
        sender = data.draw(st.sampled_from([wire.session_id(other), b"stranger"]))
        header = Header(opcode, data.draw(st.integers(0, 7)), sender)
        acks = tuple(data.draw(st.lists(st.integers(0, 12), max_size=8)))
        packet = ControlPacket(
            header,
            acks,
            wire.session_id(side) if acks else None,
            None if opcode is Opcode.ACK_V1 else data.draw(st.integers(0, 14)),
            data.draw(st.binary(max_size=20)),
        )
        side.session.receive_datagram(packet.emit(), PATHS[other.name], pair.now)
    pair.run_for(100)
    for end in (pair.client, pair.server):
        assert end.closed is not None or end.established


@pytest.mark.parametrize("floats", [True, False])
def test_a_server_may_answer_from_elsewhere_where_the_file_says_so_and_proves_that_it_was_asked(floats: bool) -> None:
    wire = Tap()
    pair = make_pair(wire=wire, client={"floats": floats})
    pair.run_for(0.01)
    client, elsewhere = pair.client.session, PATHS["client"]
    ours = wire.session_id(pair.client)
    header = Header(Opcode.HARD_RESET_SERVER_V2, 0, b"elsewher")
    client.receive_datagram(ControlPacket(header, (), None, 0, b"").emit(), elsewhere, pair.now)
    assert client.path == PATHS["server"]
    client.receive_datagram(ControlPacket(header, (0,), ours, 0, b"").emit(), elsewhere, pair.now)
    assert client.path == (elsewhere if floats else PATHS["server"])
    assert client.statistics()["wrong_path"] == (1 if floats else 2)


def test_wrong_paths_session_ids_and_key_ids_are_dropped_and_counted() -> None:
    wire = Tap()
    pair = establish(make_pair(wire=wire, policy=OldClientPolicy))
    server, now = pair.server.session, pair.now
    before = server.statistics()
    real, stranger = wire.session_id(pair.client), b"stranger"
    empty = (), None, 9, b""

    def send(opcode: Opcode, key_id: int, session_id: bytes, *rest: Any, path: str = "client") -> None:
        packet = ControlPacket(Header(opcode, key_id, session_id), *rest)
        server.receive_datagram(packet.emit(), PATHS[path], now)

    send(Opcode.CONTROL_V1, 0, real, *empty, path="server")
    send(Opcode.CONTROL_V1, 0, stranger, *empty)
    send(Opcode.CONTROL_V1, 0, real, (1,), stranger, 9, b"")
    send(Opcode.HARD_RESET_SERVER_V2, 0, real, (), None, 0, b"")
    send(Opcode.HARD_RESET_CLIENT_V2, 0, stranger, (), None, 0, b"")
    send(Opcode.CONTROL_V1, 3, real, *empty)
    send(Opcode.SOFT_RESET_V1, 2, real, (), None, 0, b"")
    send(Opcode.CONTROL_V1, 0, real, (), None, 5000, b"")
    after = server.statistics()
    changed = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert changed == {
        "received": 8,
        "wrong_path": 1,
        "wrong_session": 3,
        "stray_resets": 1,
        "wrong_key": 2,
        "out_of_window": 1,
    }
    assert pair.server.closed is None


def test_a_server_that_started_anew_does_not_disturb_a_running_session() -> None:
    pair = establish(make_pair("tls-crypt"))
    wrap = TlsCrypt(StaticKey(bytes(range(256)))).start(server=True, unix_time=1.8e9, now=pair.now)
    reset = ControlPacket(Header(Opcode.HARD_RESET_SERVER_V2, 0, b"newerone"), (), None, 0).emit()
    pair.client.session.receive_datagram(wrap.wrap(reset, pair.now), PATHS["server"], pair.now)
    assert pair.client.session.statistics()["stray_resets"] == 1
    pair.client.session.renegotiate(pair.now)
    pair.run_until(lambda: rekeys(pair.client) == 1, 100)


def test_asking_for_the_timer_changes_nothing() -> None:
    pair = establish(make_pair())
    first = pair.client.session.get_timer()
    assert [pair.client.session.get_timer() for _ in range(3)] == [first] * 3


@pytest.mark.parametrize("key_id", range(1, 8))
def test_a_hard_reset_with_another_key_id_than_0_changes_nothing(key_id: int) -> None:
    wire = Tap()
    fresh = make_pair()
    live = establish(make_pair(wire=wire, policy=OldClientPolicy))
    live.server.session.renegotiate(live.now)
    live.run_for(0.01)
    for pair, sender in ((fresh, b"stranger"), (live, wire.session_id(live.client))):
        reset = ControlPacket(Header(Opcode.HARD_RESET_CLIENT_V2, key_id, sender), (), None, 0).emit()
        pair.server.session.receive_datagram(reset, PATHS["client"], pair.now)
        assert pair.server.session.statistics()["wrong_key"] == 1
    establish(fresh)
    live.run_until(lambda: len(keys_of(live.client)) == 2, 10)


@pytest.mark.parametrize("opcode", [1, 2])
def test_the_resets_of_key_method_1_are_no_packets(opcode: int) -> None:
    pair = make_pair()
    for side, other in ((pair.client, "server"), (pair.server, "client")):
        data = bytes([opcode << 3]) + b"stranger" + bytes(5)
        side.session.receive_datagram(data, PATHS[other], pair.now)
        assert side.session.statistics()["malformed"] == 1
    establish(pair)


@pytest.mark.parametrize("wrap", ["none", "tls-auth", "tls-crypt"])
def test_a_wrapped_keys_packets_are_nothing_to_servers_without_tls_crypt_v2(wrap: str) -> None:
    pair = make_pair(wrap)
    client = matching_settings(wrap)[0].wrap.start(server=False, unix_time=1.7e9, now=pair.now)  # type: ignore[arg-type]
    for opcode in (Opcode.HARD_RESET_CLIENT_V3, Opcode.CONTROL_WKC_V1):
        packet = ControlPacket(Header(opcode, 0, b"stranger"), (), None, 0).emit()
        pair.server.session.receive_datagram(client.wrap(packet, pair.now), PATHS["client"], pair.now)
    assert pair.server.session.statistics()["malformed"] == 2


def test_control_packets_up_to_the_size_that_stock_reads() -> None:
    wire = Tap()
    pair = establish(make_pair(wire=wire))
    header = Header(Opcode.CONTROL_V1, 0, wire.session_id(pair.client))
    before = pair.server.session.statistics()
    for size in (2048, 2049, 60000):
        # Their place is after one that never comes, so that TLS doesn't see them.
        packet = ControlPacket(header, (), None, 15, bytes(size)).emit()
        pair.server.session.receive_datagram(packet, PATHS["client"], pair.now)
    after = pair.server.session.statistics()
    assert after["malformed"] - before["malformed"] == 2
    assert pair.server.closed is None


def test_a_first_control_packet_that_is_too_long_is_dropped_and_the_handshake_goes_on() -> None:
    wire = Tap()
    pair = make_pair(wire=wire)
    pair.run_until(lambda: any("opcode 8" in what for _, _, what in pair.trace), 5)
    header = Header(Opcode.CONTROL_V1, 0, wire.session_id(pair.client))
    packet = ControlPacket(header, (), None, 1, b"\x16" * 2049)
    pair.server.session.receive_datagram(packet.emit(), PATHS["client"], pair.now)
    establish(pair)


@pytest.mark.parametrize("payload", ["0001", "00010001", "0001000200", "ffffffff"])
def test_a_servers_reset_with_a_malformed_list_ends_the_session(payload: str) -> None:
    pair = make_pair("tls-crypt-v2", wire=NoisyWire(drop=1.0))
    client_id = pair.client.session._session_id
    wrap = TlsCrypt(StaticKey(bytes(range(256)))).start(server=True, unix_time=1.7e9, now=pair.now)
    header = Header(Opcode.HARD_RESET_SERVER_V2, 0, b"serverid")
    reset = ControlPacket(header, (0,), client_id, 0, bytes.fromhex(payload)).emit()
    pair.client.session.receive_datagram(wrap.wrap(reset, pair.now), PATHS["server"], pair.now)
    closed = closing(pair, pair.client)
    assert isinstance(closed.error, RemoteProtocolError)


def test_an_ack_alone_does_not_leave_where_the_wrapped_key_is_wanted() -> None:
    """Nobody would send an ACK again, and without the key the server could not read on."""
    pair = make_pair("tls-crypt-v2", wire=NoisyWire(drop=1.0))
    session = pair.client.session
    wrap = TlsCrypt(StaticKey(bytes(range(256)))).start(server=True, unix_time=1.7e9, now=pair.now)
    # Our own reset isn't acknowledged yet, so that TLS has nothing to say.
    reset = ControlPacket(Header(Opcode.HARD_RESET_SERVER_V2, 0, b"serverid"), (), None, 0, ASK_FOR_WRAPPED_KEY)
    session.receive_datagram(wrap.wrap(reset.emit(), pair.now), PATHS["server"], pair.now)
    sent = [datagram[0] >> 3 for datagram, _ in session.datagrams_to_send(pair.now)]
    assert sent == [Opcode.CONTROL_WKC_V1]


def test_who_is_asked_for_the_wrapped_key_sends_it_with_every_copy_of_its_second_packet() -> None:
    pair = make_pair("tls-crypt-v2", wire=NoisyWire(drop=1.0))
    session = pair.client.session
    wrap = TlsCrypt(StaticKey(bytes(range(256)))).start(server=True, unix_time=1.7e9, now=pair.now)
    header = Header(Opcode.HARD_RESET_SERVER_V2, 0, b"serverid")
    reset = ControlPacket(header, (0,), session._session_id, 0, ASK_FOR_WRAPPED_KEY).emit()
    session.receive_datagram(wrap.wrap(reset, pair.now), PATHS["server"], pair.now)
    sizes = []
    for _ in range(3):
        first, *rest = session.datagrams_to_send(pair.now)
        assert first[0][0] >> 3 == Opcode.CONTROL_WKC_V1
        assert all(datagram[0] >> 3 == Opcode.CONTROL_V1 for datagram, _ in rest)
        sizes += [len(datagram) for datagram, _ in [first, *rest]]
        timer = session.get_timer()
        assert timer is not None
        pair.clock.advance_to(timer)
        session.handle_timer(pair.now)
    assert max(sizes) <= 1250 - 28
