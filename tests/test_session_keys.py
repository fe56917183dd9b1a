"""Renegotiations: new keys, and when which one is used."""

from dataclasses import replace
from typing import Any

import pytest

from ginnel.errors import AuthError
from ginnel.openvpn import events
from ginnel.openvpn.client import ClientPolicy
from ginnel.openvpn.keys import KeyMessage
from ginnel.openvpn.login import Login
from ginnel.openvpn.packets import ControlPacket, Header, Opcode, PacketError
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.server import ClientLogin, Refusal, Verdict
from ginnel.testing import PATHS, NoisyWire, Pair, Side, matching_settings
from tests.sessions import (
    PUSH,
    Case,
    OldClientPolicy,
    Tap,
    closing,
    establish,
    keys_of,
    make_pair,
    rekeys,
)


@pytest.mark.parametrize("wrap", ["none", "tls-auth", "tls-crypt", "tls-crypt-v2"])
@pytest.mark.parametrize("who", ["client", "server"])
def test_either_side_renegotiates_a_hundred_times(who: str, wrap: str) -> None:
    pair = establish(make_pair(wrap))
    starter = pair.client if who == "client" else pair.server
    for number in range(1, 101 if wrap == "none" else 11):
        starter.session.renegotiate(pair.now)
        pair.run_until(lambda: rekeys(pair.client) == rekeys(pair.server) == number, 100)  # noqa: B023
        assert pair.client.events[-1] == events.Rekeyed((number - 1) % 7 + 1)
        check_keys(pair)


def check_keys(pair: Pair) -> None:
    """The newest keys fit, and no side holds more than three at a time."""
    ours, theirs = keys_of(pair.client)[-1], keys_of(pair.server)[-1]
    assert (ours.key_id, ours.encrypt, ours.decrypt) == (theirs.key_id, theirs.decrypt, theirs.encrypt)
    for side in (pair.client, pair.server):
        held = 0
        for event in side.events:
            held += isinstance(event, events.NewKey) - isinstance(event, events.DelKey)
            assert held <= 3
        assert held <= 2


def test_both_sides_begin_at_once() -> None:
    pair = establish(make_pair("tls-auth"))
    for number in range(1, 20):
        pair.client.session.renegotiate(pair.now)
        pair.server.session.renegotiate(pair.now)
        pair.run_until(lambda: rekeys(pair.client) == rekeys(pair.server) == number, 100)  # noqa: B023
        check_keys(pair)
    assert len(keys_of(pair.client)) == 20


def test_renegotiating_as_fast_as_possible_on_a_noisy_wire() -> None:
    pair = establish(make_pair("tls-crypt"))
    pair.wire = NoisyWire(seed=11)
    for number in range(2, 60):
        starter = pair.client if number % 3 else pair.server
        pair.run_until(lambda: len(keys_of(starter)) >= number - 1, 60)  # noqa: B023
        # The other side may still wait for its last ACKs.
        starter.session.renegotiate(pair.now)
        pair.run_until(lambda: len(keys_of(starter)) >= number, 60)  # noqa: B023
    pair.run_for(60)
    check_keys(pair)
    assert pair.client.closed is None
    assert pair.server.closed is None


def test_no_side_sends_with_a_key_that_the_other_does_not_have() -> None:
    """Every swap of one side comes a whole trip after the other side's key, and before its removal."""
    log: list[tuple[float, str, Any]] = []
    pair = establish(make_pair("tls-crypt", wire=NoisyWire(seed=3)))
    held = {"client": {0}, "server": {0}}
    sending = {"client": 0, "server": 0}
    seen = {"client": len(pair.client.events), "server": len(pair.server.events)}
    ids = {"client": {1: 0}, "server": {1: 0}}

    def follow() -> None:
        for side in (pair.client, pair.server):
            for event in side.events[seen[side.name] :]:
                match event:
                    case events.NewKey(handle=handle, key_id=key_id):
                        held[side.name].add(key_id)
                        ids[side.name][handle] = key_id
                    case events.DelKey(handle=handle):
                        held[side.name].discard(ids[side.name][handle])
                    case events.Swap(handle=handle):
                        sending[side.name] = ids[side.name][handle]
                log.append((pair.now, side.name, event))
            seen[side.name] = len(side.events)
        assert sending["client"] in held["server"], log[-20:]
        assert sending["server"] in held["client"], log[-20:]

    for number in range(30):
        (pair.client if number % 2 else pair.server).session.renegotiate(pair.now)
        for _ in range(600):
            pair.run_for(0.02)
            follow()


def lose_final_acks(pair: Case, wire: Tap) -> None:
    """Lets the client renegotiate on a wire that loses its last ACKs, which the server waits for."""
    client_id = wire.session_id(pair.client)
    wire.lost = lambda packet: packet[0] == Opcode.ACK_V1 << 3 | 1 and packet[1:9] == client_id
    pair.client.session.renegotiate(pair.now)
    pair.run_until(lambda: len(keys_of(pair.client)) == 2, 5)
    pair.run_for(1)


def test_a_side_is_done_only_when_its_packets_are_acknowledged() -> None:
    wire = Tap()
    pair = establish(make_pair(wire=wire))
    lose_final_acks(pair, wire)
    assert len(keys_of(pair.server)) == 1
    wire.lost = lambda packet: False
    pair.run_until(lambda: len(keys_of(pair.server)) == 2, 5)


def test_the_next_negotiation_acknowledges_what_the_last_one_lacked() -> None:
    """A stock peer that began the next negotiation answers nothing of the last one any more."""
    wire = Tap()
    pair = establish(make_pair(wire=wire))
    lose_final_acks(pair, wire)
    pair.client.session.renegotiate(pair.now)
    pair.run_until(lambda: len(keys_of(pair.client)) == len(keys_of(pair.server)) == 3, 30)
    assert pair.server.session.statistics()["wrong_key"] == 0


def test_an_ended_session_sends_once_more_and_never_again() -> None:
    pair = make_pair()
    pair.run_for(0.03)
    session = pair.client.session
    session.close(pair.now)
    session.datagrams_to_send(pair.now)
    assert session.datagrams_to_send(pair.now + 100) == []


def test_data_stays_with_the_old_key_while_the_peer_may_not_have_the_new_one() -> None:
    pair = establish(make_pair(client={"reneg_sec": 0.0}, server={"reneg_sec": 0.0}))
    pair.run_for(500)
    start = pair.now
    pair.client.session.renegotiate(start)
    pair.run_until(lambda: len(keys_of(pair.client)) == 2, 5)
    assert rekeys(pair.client) == 0
    pair.run_until(lambda: rekeys(pair.client) == 1, 100)
    assert pair.now == pytest.approx(start + 60, abs=1)
    pair.run_until(lambda: pair.client.first(events.DelKey) is not None, 4000)
    assert pair.now == pytest.approx(start + 3600, abs=0.1)


def test_keys_are_renewed_after_reneg_sec_the_servers_a_little_earlier() -> None:
    pair = establish(make_pair(client={"reneg_sec": 0.0}, server={"reneg_sec": 1000.0}))
    pair.run_until(lambda: len(keys_of(pair.client)) == 2, 1100)
    assert 1900 < pair.now < 2002
    pair = establish(make_pair(client={"reneg_sec": 1000.0}, server={"reneg_sec": 0.0}))
    pair.run_until(lambda: len(keys_of(pair.client)) == 2, 1100)
    assert pair.now == pytest.approx(2000, abs=1)


def test_a_key_near_its_limit_is_renewed_once() -> None:
    pair = establish(make_pair())
    for _ in range(3):
        pair.client.session.data_event(events.KeyLimit(0, 1), pair.now)
    pair.run_until(lambda: rekeys(pair.client) == 1, 100)
    pair.client.session.data_event(events.KeyLimit(0, 1), pair.now)
    pair.run_for(10)
    assert len(keys_of(pair.client)) == 2


def test_an_old_key_at_its_limit_makes_way_for_the_new_one() -> None:
    pair = establish(make_pair())
    pair.client.session.renegotiate(pair.now)
    pair.run_until(lambda: len(keys_of(pair.client)) == 2, 5)
    assert rekeys(pair.client) == 0
    pair.client.session.data_event(events.KeyLimit(0, 1), pair.now)
    pair.run_for(0)
    assert pair.client.events[-2:] == [events.Swap(0, 2), events.Rekeyed(1)]


def test_a_renegotiation_that_does_not_end_is_given_up() -> None:
    pair = establish(make_pair())
    pair.wire.drop = 1.0
    pair.client.session.renegotiate(pair.now)
    closed = closing(pair, pair.client)
    assert "didn't finish making new keys within 60 s" in str(closed.error)
    assert closed.retry


def test_a_password_that_no_longer_holds_ends_a_renegotiation() -> None:
    answers: list[str | None] = [None, "expired"]
    pair = establish(make_pair(server={"verify": lambda *_: answers.pop(0)}))
    pair.client.session.renegotiate(pair.now)
    assert isinstance(closing(pair, pair.server).error, AuthError)


class TurncoatPolicy(ClientPolicy):
    """Is somebody else in each negotiation."""

    names: tuple[str, ...] = ("alice", "bob")

    def key_message(self) -> KeyMessage:
        name, *self.names = self.names  # type: ignore[assignment]
        return replace(super().key_message(), username=name, password="secret")


def test_another_user_name_ends_a_renegotiation() -> None:
    pair = establish(make_pair(policy=TurncoatPolicy, server={"verify": lambda *_: None}))
    pair.client.session.renegotiate(pair.now)
    assert "another user name" in str(closing(pair, pair.server).error)


def test_messages_are_not_lost_across_a_renegotiation() -> None:
    pair = establish(make_pair())
    pair.server.session.renegotiate(pair.now)
    pair.say("INFO,during")
    pair.run_for(5)
    pair.say("INFO,after")
    pair.run_for(5)
    texts = [event.text for event in pair.client.events if isinstance(event, events.Notice)]
    assert texts == ["the server says: during", "the server says: after"]


def test_control_packets_follow_a_peer_that_floated() -> None:
    pair = establish(make_pair())
    elsewhere = (0, "198.51.100.7", 4000)
    pair.server.session.data_event(events.PeerFloat(0, elsewhere), pair.now)
    pair.server.session.renegotiate(pair.now)
    assert {path for _, path in pair.server.session.datagrams_to_send(pair.now)} == {elsewhere}


def test_secrets_are_not_shown() -> None:
    pair = establish(make_pair(login=Login("bob", "hunter2")))
    for side in (pair.client, pair.server):
        for key in keys_of(side):
            assert repr(key.encrypt[:8])[2:-1] not in repr(side.events)
    assert "hunter2" not in repr(Login("bob", "hunter2").credentials)


# dyn-tls-crypt.


@pytest.mark.parametrize("wrap", ["none", "tls-auth", "tls-crypt", "tls-crypt-v2"])
@pytest.mark.parametrize("who", ["client", "server"])
def test_renegotiations_are_wrapped_with_a_key_of_the_session(wrap: str, who: str) -> None:
    wire = Tap()
    pair = establish(make_pair(wrap, wire=wire))
    old = matching_settings(wrap)[0].wrap  # type: ignore[arg-type]
    (pair.client if who == "client" else pair.server).session.renegotiate(pair.now)
    pair.run_until(lambda: len(keys_of(pair.client)) == len(keys_of(pair.server)) == 2, 10)
    check_keys(pair)
    new = [datagram for datagram in wire.datagrams if datagram[0] & 7 == 1]
    assert len(new) > 4
    # A TLS handshake's records begin like this, in clear without a wrap.
    assert any(b"\x16\x03\x01" in datagram for datagram in wire.datagrams) == (wrap in ("none", "tls-auth"))
    assert not any(b"\x16\x03\x01" in datagram for datagram in new)
    for server in (False, True):
        for datagram in new if wrap != "none" else []:
            wrapper = old.start(server=server, unix_time=1.7e9, now=pair.now)
            with pytest.raises(PacketError):
                ControlPacket.parse(wrapper.unwrap(datagram))
    # And the old wrap is no way in: a soft reset by someone who knows the old key.
    soft = ControlPacket(Header(Opcode.SOFT_RESET_V1, 2, wire.session_id(pair.client)), (), None, 0).emit()
    forged = old.start(server=False, unix_time=1.8e9, now=pair.now).wrap(soft, pair.now)
    before = pair.server.session.statistics()
    pair.server.session.receive_datagram(forged, PATHS["client"], pair.now)
    after = pair.server.session.statistics()
    refused = after["unauthenticated"] + after["malformed"] - before["unauthenticated"] - before["malformed"]
    assert refused == 1


@pytest.mark.parametrize("wrap", ["none", "tls-auth", "tls-crypt"])
def test_with_an_old_client_the_wrap_stays_the_same(wrap: str) -> None:
    wire = Tap()
    pair = establish(make_pair(wrap, wire=wire, policy=OldClientPolicy))
    pair.client.session.renegotiate(pair.now)
    pair.run_until(lambda: len(keys_of(pair.client)) == len(keys_of(pair.server)) == 2, 10)
    wrapper = matching_settings(wrap)[1].wrap.start(server=True, unix_time=1.7e9, now=pair.now)  # type: ignore[arg-type]
    soft = next(datagram for datagram in wire.datagrams if datagram[0] == Opcode.SOFT_RESET_V1 << 3 | 1)
    assert ControlPacket.parse(wrapper.unwrap(soft)).packet_id == 0


# Which key data goes out with.


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("pace", [3.0, 5.0, 8.0, 30.0, 100.0])
def test_a_stock_peer_that_renegotiates_has_every_key_that_data_comes_with(who: str, pace: float) -> None:
    """Stock drops the older of its two keys the moment it begins; what is on its way then is lost."""
    pair = establish(make_pair(client={"reneg_sec": 0.0}, server={"reneg_sec": 0.0}))
    stock, ours = (pair.client, pair.server) if who == "client" else (pair.server, pair.client)
    for number in range(1, 8):
        end = pair.now + pace
        stock.session.renegotiate(pair.now)
        pair.run_until(lambda: len(keys_of(ours)) == len(keys_of(stock)) == number + 1, 1)  # noqa: B023
        # Not at once: a peer whose last ACK got lost lacks the key for a while.
        assert last_swap(ours) == number
        pair.run_for(end - 1 - pair.now)
        # The first renegotiation tells how often the others may come.
        assert last_swap(ours) == number + 1 or number == 1
        pair.run_for(end - pair.now)


def last_swap(side: Side) -> int:
    return [event.handle for event in side.events if isinstance(event, events.Swap)][-1]


def test_data_moves_over_before_we_begin_unless_the_key_is_very_new() -> None:
    pair = establish(make_pair(client={"reneg_sec": 0.0}, server={"reneg_sec": 0.0}))
    pair.client.session.renegotiate(pair.now)
    pair.run_for(5)
    pair.client.session.renegotiate(pair.now)
    assert last_swap(pair.client) == 1
    pair.run_for(20)
    assert last_swap(pair.client) == 2
    pair.client.session.renegotiate(pair.now)
    event = pair.client.session.next_event()
    assert event == events.Swap(0, 3)


def test_a_refused_renegotiation_stops_data_at_once_and_puts_its_end_off_for_nothing() -> None:
    """Whatever the client begins, and although it acknowledges nothing of the refusal (CVE-2024-28882)."""

    def gate(login: ClientLogin) -> Verdict | None:
        return None if login.again else PushReply.parse(PUSH)

    wire = Tap()
    pair = establish(make_pair(wire=wire, gate=gate))
    policy = pair.server_policy
    pair.client.session.renegotiate(pair.now)
    pair.run_until(lambda: rekeys(pair.client) == rekeys(pair.server) == 1, 100)
    refused = pair.now
    for _ in range(20):
        key_id = pair.client.session._current.key_id
        wire.lost = lambda packet, key_id=key_id: packet[0] & 7 == key_id and packet[0] >> 3 != Opcode.SOFT_RESET_V1
        policy.decide(Refusal("not today"), pair.now)
        pair.run_for(0)
        assert pair.server.first(events.DelPeer) is not None
        pair.client.session.renegotiate(pair.now)
        pair.run_for(1)
        if pair.server.closed is not None:
            break
    closed = closing(pair, pair.server, 1)
    assert isinstance(closed.error, AuthError)
    assert pair.now < refused + 7
    after = pair.server.events[pair.server.events.index(events.DelPeer(0)) + 1 :]
    assert after == [closed]
