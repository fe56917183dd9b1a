"""A server's endpoint: strangers, cookies, limits, and many sessions at once."""

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ginnel.openvpn import events
from ginnel.openvpn.client import ClientPolicy, ClientSettings
from ginnel.openvpn.cookies import Cookies
from ginnel.openvpn.endpoint import Limits
from ginnel.openvpn.events import Path
from ginnel.openvpn.login import Login
from ginnel.openvpn.packets import ControlPacket, Header, Opcode
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.server import ServerPolicy
from ginnel.openvpn.tls import TlsContext, TlsSettings
from ginnel.openvpn.tls_crypt_v2 import Metadata, ServerKey, TlsCryptV2, TlsCryptV2Server
from ginnel.openvpn.wrap import TlsCryptWrapper
from ginnel.testing import UNIX_TIME, Authority, Crowd, NoisyWire, Side, WrapName, matching_settings
from tests.sessions import keys_of

PUSH = PushReply.parse(["ifconfig 10.8.0.2 255.255.255.0", "topology subnet"])
WRAPS: list[WrapName] = ["none", "tls-auth", "tls-crypt", "tls-crypt-v2"]
HOME: Path = (0, "198.51.100.1", 4711)


class House(Crowd):
    """A crowd whose clients' settings are at hand."""

    login: Login | None = None
    client: ClientSettings
    policies: dict[int, ServerPolicy]

    def enter(self, path: Path | None = None) -> Side:
        return self.join(ClientPolicy(self.client, self.login, unix_time=UNIX_TIME), path)

    def count(self, *names: str) -> tuple[int, ...]:
        statistics = self.endpoint.statistics()
        return tuple(statistics[name] for name in names)


def make_house(
    name: WrapName = "tls-crypt", wire: NoisyWire | None = None, *, limits: Limits | None = None, **server: Any
) -> House:
    client, settings = matching_settings(name)
    settings = replace(settings, **server)
    policies = {}

    def make_policy(*, peer: int, path: Path, unix_time: float) -> ServerPolicy:
        policies[peer] = ServerPolicy(settings, PUSH, unix_time=unix_time, peer=peer, peer_id=peer)
        return policies[peer]

    house = House(settings, make_policy, wire, limits=limits)
    house.client = client
    house.policies = policies
    return house


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_client_gets_in_without_anything_being_kept_of_its_first_packet(wrap: WrapName) -> None:
    house = make_house(wrap)
    side = house.enter()
    house.run_for(0.03)
    assert house.count("answered", "created", "sessions") == (1, 0, 0)
    house.run_until(lambda: side.established, 5)
    assert house.count("created", "sessions", "negotiating") == (1, 1, 0)
    assert side.session.statistics()["replayed"] == 0


# Raw packets of a stranger's.


class Stranger:
    """Someone with the right wrap, who sends single packets from anywhere."""

    def __init__(self, house: House, session_id: bytes = b"stranger") -> None:
        self.house = house
        self.session_id = session_id
        self.wrapper = house.client.wrap.start(server=False, unix_time=UNIX_TIME, now=house.now)

    def packet(self, opcode: Opcode, *, key_id: int = 0, **fields: Any) -> bytes:
        values = {"acks": (), "peer_session_id": None, "packet_id": 0, "payload": b""} | fields
        packet = ControlPacket(Header(opcode, key_id, self.session_id), **values)
        return self.wrapper.wrap(packet.emit(), self.house.now)

    def reset(self, path: Path = HOME) -> bytes | None:
        """Sends a reset, and returns the cookie of the answer."""
        v3 = bool(self.wrapper.wrapped_key)
        answers = self.house.inject(
            self.packet(Opcode.HARD_RESET_CLIENT_V3 if v3 else Opcode.HARD_RESET_CLIENT_V2), path
        )
        if not answers:
            return None
        ((datagram, to),) = answers
        assert to == path
        return datagram[1:9]

    def repeat(self, cookie: bytes, path: Path = HOME, **fields: Any) -> None:
        """Sends what the third packet of a handshake is."""
        v3 = bool(self.wrapper.wrapped_key)
        values = {"acks": (0,), "peer_session_id": cookie, "packet_id": 1, "payload": b""} | fields
        self.house.inject(self.packet(Opcode.CONTROL_WKC_V1 if v3 else Opcode.CONTROL_V1, **values), path)


@pytest.mark.parametrize("wrap", WRAPS)
def test_who_repeats_its_cookie_gets_a_session(wrap: WrapName) -> None:
    house = make_house(wrap)
    stranger = Stranger(house)
    cookie = stranger.reset()
    assert cookie is not None
    stranger.repeat(cookie)
    assert house.count("created", "negotiating", "bad_cookies") == (1, 1, 0)
    # After which nothing else comes from there but this session's packets.
    assert house.endpoint.sessions[0].statistics()["received"] == 0


def test_an_ack_alone_proves_an_address_too() -> None:
    house = make_house("tls-auth")
    stranger = Stranger(house)
    cookie = stranger.reset()
    house.inject(stranger.packet(Opcode.ACK_V1, acks=(0,), peer_session_id=cookie, packet_id=None), HOME)
    assert house.count("created") == (1,)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize(
    "change",
    [
        "wrong cookie",
        "zero cookie",
        "the client's own id",
        "no cookie",
        "other address",
        "other port",
        "other client",
        "late packet id",
        "late ack",
        "future slot",
        "old slot",
        "other server",
    ],
)
def test_a_cookie_that_is_not_right_leads_nowhere(wrap: WrapName, change: str) -> None:
    house = make_house(wrap)
    stranger = Stranger(house)
    origin = make_house(wrap) if change == "other server" else house
    if change == "future slot":
        house.run_for(31)
    if change == "other server":
        origin.endpoint = make_house(wrap).endpoint
        origin.endpoint._cookies = Cookies(bytes(32), origin.endpoint._settings.hand_window)
    cookie = Stranger(origin).reset()
    assert cookie is not None
    path, fields = HOME, {}
    match change:
        case "wrong cookie":
            cookie = bytes([cookie[0] ^ 1]) + cookie[1:]
        case "zero cookie":
            cookie = bytes(8)
        case "the client's own id":
            cookie = stranger.session_id
        case "no cookie":
            fields = {"acks": (), "peer_session_id": None}
        case "other address":
            path = (0, "198.51.100.2", HOME[2])
        case "other port":
            path = (0, HOME[1], HOME[2] + 1)
        case "other client":
            stranger.session_id = b"another!"
        case "late packet id":
            fields = {"packet_id": 2}
        case "late ack":
            fields = {"acks": (0, 2)}
        case "future slot":
            house.clock.now -= 31
        case "old slot":
            house.run_for(91)
    stranger.repeat(cookie, path, **fields)
    assert house.count("created", "bad_cookies") == (0, 1)
    assert house.endpoint.sessions == {}


@pytest.mark.parametrize("age", [0, 29, 59, 89])
def test_a_cookie_is_good_for_two_slots_more(age: int) -> None:
    house = make_house()
    house.clock.now = 3000.0
    stranger = Stranger(house)
    cookie = stranger.reset()
    assert cookie is not None
    house.run_for(age)
    stranger.repeat(cookie)
    assert house.count("created") == (1,)


def test_a_recording_of_the_packet_that_led_to_a_session_leads_to_no_other_one() -> None:
    house = make_house(hand_window=10.0)
    stranger = Stranger(house)
    cookie = stranger.reset()
    recording = stranger.packet(Opcode.CONTROL_V1, acks=(0,), peer_session_id=cookie, packet_id=1)
    house.inject(recording, HOME)
    assert house.count("sessions") == (1,)
    house.run_for(10.1)
    assert house.count("sessions") == (0,)
    house.inject(recording, HOME)
    assert house.count("sessions", "spent_cookies") == (0, 1)


# What is not answered, and how much is.


@pytest.mark.parametrize("wrap", WRAPS)
def test_an_answer_is_as_long_as_stocks_and_never_more(wrap: WrapName) -> None:
    house = make_house(wrap)
    stranger = Stranger(house)
    v3 = wrap == "tls-crypt-v2"
    reset = stranger.packet(Opcode.HARD_RESET_CLIENT_V3 if v3 else Opcode.HARD_RESET_CLIENT_V2)
    ((answer, _),) = house.inject(reset, HOME)
    assert len(answer) <= len(reset) + 12
    assert not v3 or len(answer) * 3 < len(reset)
    assert house.endpoint.get_timer() is None


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("opcode", range(32))
def test_first_packets_of_every_kind_and_length_are_never_answered_without_a_valid_wrap(
    wrap: WrapName, opcode: int
) -> None:
    house = make_house(wrap)
    for key_id in range(8):
        for length in [*range(60), 100, 500, 1500, 65506]:
            data = (bytes([opcode << 3 | key_id]) + b"stranger" + bytes(length))[: length + 1]
            if wrap == "none" and opcode == 7 and key_id == 0 and length >= 13:
                continue
            assert house.inject(data, HOME) == []
    assert house.endpoint.sessions == {}
    assert house.endpoint.get_timer() is None


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_valid_wrap_around_the_wrong_packet_is_not_answered(wrap: WrapName) -> None:
    house = make_house(wrap)
    stranger = Stranger(house)
    wanted = {Opcode.HARD_RESET_CLIENT_V3 if wrap == "tls-crypt-v2" else Opcode.HARD_RESET_CLIENT_V2}
    for opcode in set(Opcode) - wanted - {Opcode.DATA_V1, Opcode.DATA_V2}:
        packet_id = None if opcode is Opcode.ACK_V1 else 0
        assert house.inject(stranger.packet(opcode, packet_id=packet_id), HOME) == [], opcode
    for opcode in wanted:
        for key_id in range(1, 8):
            assert house.inject(stranger.packet(opcode, key_id=key_id), HOME) == []
        assert house.inject(stranger.packet(opcode, packet_id=1), HOME) == []
    assert house.endpoint.sessions == {}


def test_answers_to_strangers_are_limited_and_handshakes_that_go_on_are_not_counted() -> None:
    house = make_house(limits=Limits(connect_freq_initial=(5, 10)))
    for number in range(20):
        stranger = Stranger(house, number.to_bytes(8, "big", signed=False)[::-1].replace(b"\0", b"x"))
        cookie = stranger.reset((0, "198.51.100.1", 1000 + number))
        assert cookie is not None
        stranger.repeat(cookie, (0, "198.51.100.1", 1000 + number))
    assert house.count("answered", "created") == (20, 20)
    answered = [Stranger(house).reset((0, "198.51.100.9", 2000 + number)) for number in range(20)]
    assert sum(cookie is not None for cookie in answered) == 5
    assert house.count("over_connect_freq_initial") == (15,)
    house.run_for(10.1)
    assert Stranger(house).reset() is not None


def test_whoever_has_a_key_uses_up_nobody_elses_answers() -> None:
    house = make_house("tls-crypt-v2", limits=Limits(connect_freq_initial=(5, 10)))
    answered = [Stranger(house).reset((0, "198.51.100.9", 2000 + number)) for number in range(20)]
    assert sum(cookie is not None for cookie in answered) == 5
    other = ServerKey(bytes(range(128))).make_client_key(Metadata.of_user("another"), os.urandom)
    house.client = replace(house.client, wrap=TlsCryptV2(other))
    for number in range(20):
        stranger = Stranger(house, f"other{number:03}".encode())
        path = (0, "198.51.100.8", 2000 + number)
        cookie = stranger.reset(path)
        assert cookie is not None
        stranger.repeat(cookie, path)
    assert house.count("created") == (20,)


@pytest.mark.parametrize(
    ("limits", "counter"),
    [
        (Limits(max_clients=3), "full"),
        (Limits(max_negotiating=3), "full"),
        (Limits(max_negotiating_each=3), "full"),
        (Limits(connect_freq=(3, 60)), "over_connect_freq"),
    ],
)
def test_sessions_are_limited(limits: Limits, counter: str) -> None:
    house = make_house(limits=limits)
    for number in range(5):
        path = (0, "198.51.100.1", 1000 + number)
        stranger = Stranger(house)
        cookie = stranger.reset(path)
        assert cookie is not None
        stranger.repeat(cookie, path)
    assert house.count("created", counter) == (3, 2)
    house.run_for(61)
    side = house.enter()
    house.run_until(lambda: side.established, 10)


@pytest.mark.parametrize("limits", [Limits(max_negotiating=8), Limits(max_negotiating_each=8)])
def test_who_never_goes_on_makes_way_and_who_is_on_the_way_in_does_not(limits: Limits) -> None:
    house = make_house(limits=limits)

    def knock(number: int) -> None:
        stranger, path = Stranger(house), (0, "198.51.100.1", 1000 + number)
        cookie = stranger.reset(path)
        assert cookie is not None
        stranger.repeat(cookie, path)

    for number in range(8):
        knock(number)
    # Of the same place, and comes again until there is room.
    side = house.enter((0, "198.51.100.1", 5000))
    house.run_for(4)
    assert house.count("crowded_out") == (0,)
    house.run_until(lambda: side.established, 10)
    assert house.count("crowded_out", "negotiating") == (1, 7)
    assert 0 not in house.endpoint.sessions
    knock(9)
    elsewhere = house.enter()
    house.run_until(lambda: elsewhere.established, 10)
    assert side.closed is None
    house.run_for(61)
    assert house.endpoint._places == {}


def test_a_first_packet_costs_no_memory() -> None:
    count = int(os.environ.get("GINNEL_FIRST_PACKETS", "20000"))
    house = make_house("tls-crypt-v2", limits=Limits(connect_freq_initial=(1 << 60, 10)))
    stranger = Stranger(house)
    resets = [stranger.packet(Opcode.HARD_RESET_CLIENT_V3) for _ in range(100)]
    second = stranger.packet(Opcode.CONTROL_WKC_V1, acks=(0,), peer_session_id=b"fraction", packet_id=1)

    def flood(packets: int) -> None:
        for number in range(packets):
            path = (0, f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", number % 60000 + 1)
            house.inject(second if number % 3 == 0 else resets[number % 100], path)

    flood(1000)
    gc.collect()
    before = sys.getallocatedblocks()
    flood(count)
    gc.collect()
    assert sys.getallocatedblocks() - before < 500
    assert house.endpoint.sessions == {}
    assert house.count("created") == (0,)


# tls-crypt-v2.


@pytest.mark.parametrize("force", [True, False])
def test_a_client_that_can_not_repeat_its_key_is_admitted_only_if_that_is_allowed(force: bool) -> None:
    house = make_house("tls-crypt-v2")
    assert isinstance(house.client.wrap, TlsCryptV2)
    wrap = replace(matching_settings("tls-crypt-v2")[1].wrap, force_cookie=force)  # type: ignore[type-var]
    house = make_house("tls-crypt-v2", wrap=wrap)
    key = house.client.wrap.key
    old = TlsCryptWrapper(key.key, server=False, unix_time=UNIX_TIME, now=0.0, wrapped_key=key.wrapped)
    stranger = Stranger(house)
    stranger.wrapper = old
    assert house.inject(stranger.packet(Opcode.HARD_RESET_CLIENT_V3), HOME) == [] or not force
    assert house.count("created", "no_early_negotiation") == ((0, 1) if force else (1, 0))


def test_metadata_is_looked_at_once_and_after_the_address_is_proven() -> None:
    seen: list[Metadata] = []

    def verify(metadata: Metadata) -> bool:
        seen.append(metadata)
        return len(seen) > 1

    wrap = matching_settings("tls-crypt-v2")[1].wrap
    assert isinstance(wrap, TlsCryptV2Server)
    house = make_house("tls-crypt-v2", wrap=replace(wrap, verify=verify))
    stranger = Stranger(house)
    cookie = stranger.reset()
    assert cookie is not None
    assert seen == []
    stranger.repeat(cookie)
    assert len(seen) == 1
    assert house.count("created", "unauthenticated") == (0, 1)
    assert house.endpoint.sessions == {}
    side = house.enter()
    house.run_until(lambda: side.established, 10)
    assert len(seen) == 2


# Sessions.


def test_a_client_that_starts_anew_takes_its_path_over_when_it_has_logged_in() -> None:
    house = make_house(verify=lambda username, password, name: None if username == "bob" else "no")
    house.login = Login("bob", "x")
    first = house.enter(HOME)
    house.run_until(lambda: first.established, 10)
    # A stranger with the wrap's key, who can't log in, changes nothing.
    house.login = Login("mallory", "x")
    wrong = house.enter(HOME)
    house.run_until(lambda: wrong.closed is not None, 10)
    house.run_for(10)
    assert list(house.endpoint.sessions) == [0]
    house.login = Login("bob", "x")
    second = house.enter(HOME)
    house.run_until(lambda: second.established, 10)
    assert list(house.endpoint.sessions) == [2]
    kinds = [(peer, type(event)) for peer, event in house.server_events]
    assert kinds.index((0, events.DelPeer)) < kinds.index((2, events.NewPeer))
    (closed,) = (event for peer, event in house.server_events if peer == 0 and isinstance(event, events.Closed))
    assert "began a new session" in str(closed.error)


def test_resets_from_the_path_of_a_live_session_do_it_no_harm() -> None:
    house = make_house()
    side = house.enter(HOME)
    house.run_until(lambda: side.established, 10)
    house.run_for(1)
    for number in range(50):
        assert Stranger(house, f"spoof{number:03}".encode()).reset(HOME) is not None
    assert list(house.endpoint.sessions) == [0]
    side.session.renegotiate(house.now)
    house._flush(HOME)
    house.run_until(lambda: any(isinstance(event, events.Rekeyed) for event in side.events), 100)


def test_a_session_that_never_goes_on_is_forgotten_after_the_hand_window() -> None:
    house = make_house()
    stranger = Stranger(house)
    cookie = stranger.reset()
    assert cookie is not None
    stranger.repeat(cookie)
    house.run_for(59)
    assert house.count("sessions") == (1,)
    house.run_for(2)
    assert house.count("sessions", "negotiating") == (0, 0)
    assert [type(event) for _, event in house.server_events] == [events.Closed]
    assert house.endpoint.get_timer() is None


def test_only_authenticated_data_moves_a_session_to_another_path() -> None:
    house = make_house()
    side = house.enter(HOME)
    house.run_until(lambda: side.established, 10)
    house.run_for(1)
    elsewhere: Path = (0, "203.0.113.9", 99)
    session = house.endpoint.sessions[0]
    side.session.renegotiate(house.now)
    soft_reset = side.session.datagrams_to_send(house.now)[0][0]
    house.inject(soft_reset, elsewhere)
    assert house.count("strays") == (1,)
    assert session.path == HOME
    house.endpoint.data_event(events.PeerFloat(0, elsewhere), house.now)
    assert session.path == elsewhere
    answers = house.inject(soft_reset, elsewhere)
    assert {path for _, path in answers} == {elsewhere}
    house.inject(soft_reset, HOME)
    assert house.count("strays") == (2,)


def test_of_two_sessions_with_one_id_at_one_path_the_one_that_has_data_stays() -> None:
    """Clients choose their session ids, and move: neither may end the server."""
    house = make_house()
    side = house.enter(HOME)
    house.run_until(lambda: side.established, 10)
    elsewhere: Path = (0, "203.0.113.9", 99)
    stranger = Stranger(house, side.session._session_id)
    cookie = stranger.reset(elsewhere)
    assert cookie is not None
    stranger.repeat(cookie, elsewhere)
    assert list(house.endpoint.sessions) == [0, 1]
    house.endpoint.data_event(events.PeerFloat(0, elsewhere), house.now)
    house._flush(None)
    assert list(house.endpoint.sessions) == [0]
    house.endpoint.data_event(events.PeerFloat(0, HOME), house.now)
    house.endpoint.data_event(events.PeerExpired(0), house.now)
    house._flush(None)
    assert house.endpoint.sessions == {}


def test_reports_reach_the_session_that_they_are_about() -> None:
    house = make_house()
    sides = [house.enter() for _ in range(3)]
    house.run_until(lambda: all(side.established for side in sides), 10)
    house.run_for(1)
    house.endpoint.data_event(events.PeerExpired(1), house.now)
    house.endpoint.data_event(events.PathClosed(house.endpoint.sessions[2].path, 111), house.now)
    house.endpoint.data_event(events.PeerExpired(77), house.now)
    house._flush(None)
    assert list(house.endpoint.sessions) == [0]
    assert {peer for peer, event in house.server_events if isinstance(event, events.Closed)} == {1, 2}


def test_a_policy_can_end_its_session_from_outside() -> None:
    house = make_house()
    side = house.enter()
    house.run_until(lambda: side.established, 10)
    house.policies[0].halt(house.now, "closing time")
    house.endpoint.touch(0, house.now)
    house._flush(None)
    house.run_until(lambda: side.closed is not None, 10)
    assert side.closed is not None
    assert "closing time" in str(side.closed.error)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_refused_certificate_is_told_in_tls_and_the_session_is_gone(elsewhere: bool) -> None:
    house = make_house(elsewhere=elsewhere)
    stranger = Authority("Strangers", seed=9).issue("mallory", "client")
    tls = TlsSettings(ca=Authority().pem, cert=stranger[0], key=stranger[1])
    house.client = replace(house.client, tls=TlsContext(tls, server=False))
    side = house.enter()
    house.run_until(lambda: side.closed is not None, 10)
    assert side.closed is not None
    assert "doesn't trust our certificate" in str(side.closed.error)
    assert house.endpoint.sessions == {}


def test_paths_that_need_no_proof_get_a_session_at_once() -> None:
    house = make_house("tls-crypt-v2")
    house.endpoint._proven = lambda path: path[0] == 7
    side = house.enter((7, "198.51.100.3", 5))
    house.run_for(0.03)
    assert house.count("created", "answered") == (1, 0)
    house.run_until(lambda: side.established, 5)


def test_many_clients_at_once() -> None:
    count = int(os.environ.get("GINNEL_CLIENTS", "100"))
    house = make_house("tls-crypt-v2", limits=Limits(max_negotiating=count, connect_freq_initial=(count, 10)))
    sides = [house.enter() for _ in range(count)]
    house.run_until(lambda: all(side.established for side in sides), 60)
    assert house.count("sessions", "negotiating", "created") == (count, 0, count)
    assert len({event.peer_id for _, event in house.server_events if isinstance(event, events.NewPeer)}) == count
    # Timers are in a heap that doesn't grow with what has happened.
    assert len(house.endpoint._timers) <= 2 * count + 100


@pytest.mark.parametrize("chunk", range(5))
def test_noisy_handshakes_with_an_endpoint(chunk: int) -> None:
    """With every other seed TLS is computed elsewhere, while packets come again and timers run. Of ten thousand
    negotiations the wire takes every copy of a packet from one or two: they end with the hand window."""
    seeds = int(os.environ.get("GINNEL_SEEDS", "500"))
    unlucky = 0
    for seed in range(chunk * seeds // 5, (chunk + 1) * seeds // 5):
        house = make_house(WRAPS[1 + seed % 3], NoisyWire(seed), elsewhere=bool(seed % 2))
        side = house.enter()
        if not done(house, side, lambda side: side.established):
            unlucky += 1
            side = house.enter()
            assert done(house, side, lambda side: side.established), seed
        assert any(session.tunnel is not None for session in house.endpoint.sessions.values()), seed
        computed = sum(isinstance(event, events.Compute) for _, event in house.server_events)
        assert (computed >= 2) == (seed % 2), seed
        if seed % 10 == 1:
            side.session.renegotiate(house.now)
            unlucky += not done(house, side, lambda side: len(keys_of(side)) == 2)
    assert unlucky <= 1 + seeds // 2000


def done(house: House, side: Side, condition: Callable[[Side], bool]) -> bool:
    """False where the hand window ended before; nothing else may end it."""
    house.run_until(lambda: condition(side) or side.closed is not None, 70)
    if side.closed is not None:
        assert "within 60 s" in str(side.closed.error), side.closed
    return side.closed is None


@pytest.mark.parametrize("hand_window", [60.0, 0.05])
def test_a_session_that_ends_while_tls_is_computed_is_gone(hand_window: float) -> None:
    house = make_house(elsewhere=True, hand_window=hand_window)
    side = house.enter()
    house.run_until(lambda: any(isinstance(event, events.Compute) for _, event in house.server_events), 5)
    (session,) = house.endpoint.sessions.values()
    if hand_window > 1:
        session.finish(None, retry=False)
        house.endpoint.touch(0, house.now)
    house.run_for(0.06)
    assert house.count("sessions", "negotiating") == (0, 0)
    # Whoever has its number next is not told that TLS is done, nor is anybody.
    house.run_for(2)
    kinds = [type(event) for _, event in house.server_events]
    assert kinds == [events.Compute, events.Closed]
    assert not side.established
