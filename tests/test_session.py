"""A session from its first packet to its last: how it is established, what is said in it, how it ends."""

from dataclasses import replace
from typing import Any

import pytest

from ginnel.errors import AuthError, ConfigError, RemoteProtocolError, UnreachableError
from ginnel.openvpn import client, events
from ginnel.openvpn.client import ClientPolicy
from ginnel.openvpn.data_format import MssFix
from ginnel.openvpn.keys import KeyMessage, Proto
from ginnel.openvpn.login import Login
from ginnel.openvpn.policy import Tunnel
from ginnel.openvpn.push import PullFilter, PushReply
from ginnel.openvpn.server import ServerPolicy
from ginnel.openvpn.session import Session
from ginnel.openvpn.tls import TlsContext, TlsSettings
from ginnel.openvpn.wrap import StaticKey, TlsAuth, TlsCrypt
from ginnel.testing import PATHS, Authority, NoisyWire, matching_settings
from tests.sessions import (
    PUSH,
    OldClientPolicy,
    Tap,
    closing,
    establish,
    keys_of,
    make_pair,
    make_pair_with_reply,
)

# Establishing.


@pytest.mark.parametrize("policy", [ClientPolicy, OldClientPolicy])
@pytest.mark.parametrize("tls", ["1.2", "1.3"])
@pytest.mark.parametrize("wrap", ["none", "tls-auth", "tls-crypt", "tls-crypt-v2"])
def test_both_sides_get_the_same_keys_crosswise(wrap: str, tls: str, policy: type[ClientPolicy]) -> None:
    pair = establish(make_pair(wrap, tls, policy=policy))
    (ours,), (theirs,) = keys_of(pair.client), keys_of(pair.server)
    assert ours.encrypt == theirs.decrypt
    assert ours.decrypt == theirs.encrypt
    assert ours.encrypt != ours.decrypt
    assert len(ours.encrypt) == len(ours.decrypt) == 128
    news = pair.client.first(events.Established)
    assert isinstance(news, events.Established)
    assert news.push.exported_keys == (policy is ClientPolicy)
    assert (news.tls, news.cipher, news.server) == (f"TLSv{tls}", "AES-256-GCM", "server")
    assert news.push.routes[0].network.compressed == "10.77.0.0/16"


def test_the_order_of_commands_at_the_start() -> None:
    pair = establish(make_pair())
    kinds = [type(event) for event in pair.client.events]
    assert kinds == [events.NewPeer, events.NewKey, events.SetPeer, events.Swap, events.Established]
    assert pair.client.events[0] == events.NewPeer(0, PATHS["server"], 5)
    assert pair.client.events[2] == events.SetPeer(0, 10, 60, 1396)


def test_without_a_peer_id_data_packets_are_of_the_old_kind() -> None:
    class VeryOldPolicy(OldClientPolicy):
        proto = 0

    pair = establish(make_pair(policy=VeryOldPolicy))
    peer = pair.client.first(events.NewPeer)
    assert isinstance(peer, events.NewPeer)
    assert peer.peer_id is None


def test_a_long_push_reply_comes_in_several_messages() -> None:
    routes = [f"route 10.{number}.0.0 255.255.0.0" for number in range(200)]
    pair = establish(make_pair(push=[*PUSH, *routes]))
    news = pair.client.first(events.Established)
    assert isinstance(news, events.Established)
    assert len(news.push.routes) == 201


def test_control_datagrams_stay_within_1250_bytes_with_their_headers() -> None:
    wire = Tap()
    routes = [f"route 10.{number}.0.0 255.255.0.0" for number in range(200)]
    establish(make_pair("tls-auth", push=routes, wire=wire))
    assert 1100 < max(map(len, wire.datagrams)) <= 1250 - 28


def test_an_old_client_asks_for_the_push_reply() -> None:
    pair = establish(make_pair(policy=OldClientPolicy))
    assert pair.server_policy.heard == ["PUSH_REQUEST"]


def test_nobody_has_an_address_before_the_login_is_decided() -> None:
    # A server once answered the push request of a client whose login still waited (OpenVPN, CVE-2020-15078).
    pair = make_pair(policy=OldClientPolicy, gate=lambda login: None)
    pair.run_for(30)
    assert len(pair.server_policy.heard) > 3
    assert not pair.client.established
    assert pair.server.events == []
    (said,) = pair.client.events
    assert said == events.AuthPending(60)
    pair.server_policy.decide(PushReply.parse(PUSH), pair.now)
    establish(pair)
    assert len(keys_of(pair.client)) == len(keys_of(pair.server)) == 1


def test_of_a_login_that_is_decided_in_a_moment_nobody_hears_that_it_waits() -> None:
    pair = make_pair(gate=lambda login: None)
    pair.run_for(1)
    pair.server_policy.decide(PushReply.parse(PUSH), pair.now)
    establish(pair)
    pair.run_for(10)
    assert not [event for event in pair.client.events if isinstance(event, events.Notice)]


def test_the_first_packet_is_sent_again_until_there_is_an_answer() -> None:
    pair = make_pair(wire=NoisyWire(drop=1.0))
    closed = closing(pair, pair.client)
    times = [time - 1000 for time, side, what in pair.trace if side == "client" and "opcode 7" in what]
    assert times == [0, 2, 6, 14, 30]
    assert isinstance(closed.error, UnreachableError)
    assert "no answer from 192.0.2.2:1194 within 60 s" in str(closed.error)
    assert closed.retry
    assert pair.now == 1060


def test_a_server_that_stops_in_the_middle_is_given_up_after_the_hand_window() -> None:
    pair = make_pair()
    pair.run_for(0.05)
    pair.wire.drop = 1.0
    closed = closing(pair, pair.client)
    assert "answered, but didn't finish the TLS handshake within 60 s (nor does it where the " in str(closed.error)
    assert closed.retry
    assert make_pair(login=Login("bob", "x")).client_policy.why_silent == ""


def test_a_server_that_pushes_nothing_is_given_up_after_the_hand_window() -> None:
    pair = make_pair(policy=OldClientPolicy)
    pair.server_policy.silent = True
    closed = closing(pair, pair.client)
    assert "no push reply within 60 s" in str(closed.error)
    assert len(pair.server_policy.heard) == 12
    assert pair.now == pytest.approx(1060, abs=1)


def test_nothing_goes_out_before_a_server_heard_its_client() -> None:
    _, theirs = matching_settings()
    server = Session(
        ServerPolicy(theirs, PushReply(), unix_time=0),
        path=PATHS["client"],
        random=lambda n: b"x" * n,
        now=0.0,
    )
    assert server.datagrams_to_send(0.0) == []
    assert server.get_timer() == 60.0


# Logins and certificates.


def test_a_wrong_password_reaches_the_user_with_the_servers_reason() -> None:
    seen = []

    def verify(username: str, password: str, common_name: str) -> str | None:
        seen.append((username, password, common_name))
        return "no such user"

    pair = make_pair(login=Login("bob", "secret"), server={"verify": verify})
    closed = closing(pair, pair.client)
    assert seen == [("bob", "secret", "client")]
    assert isinstance(closed.error, AuthError)
    assert closed.error.reason == "no such user"
    assert not closed.retry
    theirs = closing(pair, pair.server)
    assert isinstance(theirs.error, AuthError)
    assert keys_of(pair.client) == keys_of(pair.server) == []


def test_a_right_password_lets_the_client_in() -> None:
    check = lambda username, password, name: None if (username, password) == ("bob", "x") else "no"  # noqa: E731
    establish(make_pair(login=Login("bob", "x"), server={"verify": check}))


@pytest.mark.parametrize(
    ("message", "reason", "retry", "delay"),
    [
        ("AUTH_FAILED", "", False, 0),
        ("AUTH_FAILED,account locked", "account locked", False, 0),
        ("AUTH_FAILED,SESSION: expired", "SESSION: expired", False, 0),
        ("AUTH_FAILED,TEMP", "", True, 0),
        ("AUTH_FAILED,TEMP:busy", "busy", True, 0),
        ("AUTH_FAILED,TEMP[backoff 42,advance no]:busy", "busy", True, 42),
        ("AUTH_FAILED,TEMP[backoff x]:busy", "busy", True, 0),
        ("AUTH_FAILED,TEMP[backoff 42", "[backoff 42", True, 0),
    ],
)
def test_a_refused_login(message: str, reason: str, retry: bool, delay: float) -> None:
    pair = establish(make_pair())
    pair.say(message)
    closed = closing(pair, pair.client)
    assert isinstance(closed.error, AuthError)
    assert (closed.error.reason, closed.retry, closed.delay) == (reason, retry, delay)
    assert closed.advance == "stay"


def test_a_password_that_is_too_long_is_the_configurations_fault() -> None:
    pair = make_pair(login=Login("bob", "x" * 3000))
    closed = closing(pair, pair.client)
    assert isinstance(closed.error, ConfigError)
    assert not closed.retry


def test_auth_retry_and_a_token_allow_another_attempt() -> None:
    pair = establish(make_pair(login=Login(wanted=False, retry="nointeract")))
    pair.say("AUTH_FAILED")
    assert closing(pair, pair.client).retry
    pair = establish(make_pair(push=[*PUSH, "auth-token SESS_ID_1"]))
    pair.say("AUTH_FAILED,SESSION")
    assert closing(pair, pair.client).retry


def test_a_pushed_token_replaces_the_password_at_the_next_renegotiation() -> None:
    seen = []

    def verify(username: str, password: str, common_name: str) -> None:
        seen.append((username, password))

    pair = establish(
        make_pair(
            login=Login("bob", "secret"),
            server={"verify": verify},
            push=[*PUSH, "auth-token SESS_ID_1", "auth-token-user Qm9i"],
        )
    )
    pair.client.session.renegotiate(pair.now)
    pair.run_for(2)
    assert seen == [("bob", "secret"), ("Bob", "SESS_ID_1")]


def test_a_login_that_waits_for_approval_gets_more_time() -> None:
    pair = make_pair(policy=OldClientPolicy)
    pair.server_policy.silent = True
    pair.run_for(1)
    pair.say("AUTH_PENDING,timeout 100", "INFO_PRE,OPEN_URL:https://login.example")
    pair.run_for(90)
    assert pair.client.closed is None
    assert events.AuthPending(100) in pair.client.events
    assert events.OpenUrl("https://login.example") in pair.client.events
    closed = closing(pair, pair.client)
    assert 1095 < pair.now < 1110
    assert "nobody approved the login within 100 s" in str(closed.error)


def test_a_ca_that_did_not_sign_the_server() -> None:
    other, mine = Authority("Other CA", seed=1), Authority()
    cert, key = mine.issue("client", "client")
    tls = TlsContext(TlsSettings(ca=other.pem, cert=cert, key=key), server=False)
    pair = make_pair("tls-crypt", client={"tls": tls})
    closed = closing(pair, pair.client)
    assert isinstance(closed.error, RemoteProtocolError)
    assert "the server's certificate is not signed by the given CA" in str(closed.error)
    assert not closed.retry
    theirs = closing(pair, pair.server)
    assert "doesn't trust our certificate's CA" in str(theirs.error)
    assert pair.now < 1002


@pytest.mark.parametrize(
    "wrap",
    [
        TlsCrypt(StaticKey(bytes(256))),
        TlsAuth(StaticKey(bytes(256)), "SHA256", 1),
        TlsAuth(StaticKey(bytes(range(256))), "SHA256", 0),
    ],
)
def test_a_wrong_wrap_key_looks_like_no_answer(wrap: Any) -> None:
    kind = "tls-crypt" if isinstance(wrap, TlsCrypt) else "tls-auth"
    pair = make_pair(kind, client={"wrap": wrap})
    closed = closing(pair, pair.client)
    assert "are address, port and key right?" in str(closed.error)
    assert pair.server.session.statistics()["unauthenticated"] == 5


# What the two sides must agree on.


def test_no_cipher_in_common_is_told_to_the_client() -> None:
    pair = make_pair(client={"data_ciphers": ("CHACHA20-POLY1305",)}, server={"data_ciphers": ("AES-256-GCM",)})
    closed = closing(pair, pair.client)
    assert isinstance(closed.error, RemoteProtocolError)
    assert "none of our data ciphers (CHACHA20-POLY1305)" in str(closed.error)
    assert not closed.retry


def test_a_client_that_takes_smaller_packets_than_the_servers_is_said() -> None:
    pair = establish(make_pair(server={"tun_mtu": 9000}))
    assert "takes an MTU of 1600 at most; add to its file: tun-mtu-max 9000" in str(pair.server.first(events.Notice))
    assert establish(make_pair(server={"tun_mtu": 1600})).server.first(events.Notice) is None


def test_a_cipher_that_is_not_ours_is_not_accepted() -> None:
    pair = make_pair_with_reply("PUSH_REPLY,peer-id 1,cipher BF-CBC")
    closed = closing(pair, pair.client)
    assert "'BF-CBC' is not in data-ciphers" in str(closed.error)
    assert keys_of(pair.client) == []


@pytest.mark.parametrize("option", ["comp-lzo maybe", "compress zstd"])
def test_a_kind_of_compression_that_is_not_known_is_refused_by_name(option: str) -> None:
    pair = make_pair(push=[option])
    assert option in str(closing(pair, pair.client).error)


@pytest.mark.parametrize(
    ("option", "framing", "warns"),
    [
        ("comp-lzo no", "comp-lzo", False),
        ("comp-lzo", "comp-lzo", True),
        ("comp-lzo yes", "comp-lzo", True),
        ("comp-lzo adaptive", "comp-lzo", True),
        ("compress lzo", "comp-lzo", True),
        ("compress", "stub", False),
        ("compress lz4", "stub", True),
        ("compress stub-v2", "stub-v2", False),
        ("compress lz4-v2", "stub-v2", True),
        ("compress migrate", "", False),
    ],
)
def test_framings_of_compression_are_taken(option: str, framing: str, warns: bool) -> None:
    pair = establish(make_pair(push=[option]))
    command = pair.client.first(events.SetPeer)
    assert isinstance(command, events.SetPeer)
    assert command.framing == framing
    notices = [event.text for event in pair.client.events if isinstance(event, events.Notice)]
    assert any("is dropped" in text for text in notices) == warns


def test_epochs_are_agreed_on_with_whoever_has_them() -> None:
    for flags, epochs in ((Proto(0), True), (Proto.DATA_EPOCH, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client, "OUR_PROTO", client.OUR_PROTO & ~flags)
            pair = establish(make_pair())
        assert {key.epochs for key in keys_of(pair.client) + keys_of(pair.server)} == {epochs}


@pytest.mark.parametrize("cipher", ["AES-256-CBC", "none"])
def test_a_cipher_without_authentication_comes_with_the_hash_of_auth(cipher: str) -> None:
    both = {"data_ciphers": (cipher,), "auth": "SHA256"}
    pair = establish(make_pair(client=both, server=both))
    assert {(key.cipher, key.auth, key.epochs) for key in keys_of(pair.client)} == {(cipher, "SHA256", False)}


def test_an_old_server_without_a_cipher_of_ours_gets_the_fallback() -> None:
    settings = {"data_ciphers": ("AES-256-GCM",), "fallback_cipher": "AES-128-CBC"}
    pair = make_pair_with_reply("PUSH_REPLY,peer-id 1", client=settings)
    pair.run_until(lambda: pair.client.established, 10)
    assert keys_of(pair.client)[0].cipher == "AES-128-CBC"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("peer-id 16777216", "peer-id 16777216: "),
        ("key-derivation NEW", "key-derivation NEW: "),
        ("protocol-flags tls-ekm NEW", "the server asks for NEW, which is not supported"),
        ("cipher AES-256-GCM x", "cipher AES-256-GCM x: "),
    ],
)
def test_what_data_cannot_pass_without_ends_the_session_where_it_is_wrong(option: str, said: str) -> None:
    pair = make_pair_with_reply(f"PUSH_REPLY,peer-id 1,cipher AES-256-GCM,{option}")
    closed = closing(pair, pair.client)
    assert isinstance(closed.error, RemoteProtocolError)
    assert said in str(closed.error)
    assert not pair.client.established


def test_epochs_without_a_peer_id_are_refused() -> None:
    pair = make_pair_with_reply("PUSH_REPLY,cipher AES-256-GCM,protocol-flags aead-epoch")
    assert "aead-epoch without a peer-id" in str(closing(pair, pair.client).error)


def test_a_rejecting_pull_filter_ends_the_session() -> None:
    pair = make_pair(client={"pull_filters": (PullFilter("reject", "route 10.77"),)})
    assert "pull-filter" in str(closing(pair, pair.client).error)


def test_route_nopull_leaves_the_address() -> None:
    pair = establish(make_pair(client={"route_nopull": True}))
    news = pair.client.first(events.Established)
    assert isinstance(news, events.Established)
    assert news.push.routes == ()
    assert news.push.address is not None


@pytest.mark.parametrize(
    ("changes", "push", "mss"),
    [
        ({}, [], 1396),
        ({"tcp": True}, [], 1382),
        ({"tun_mtu": 1400}, [], 1360),
        ({"mssfix": MssFix(0)}, [], 0),
        ({"mssfix": MssFix(1300)}, [], 1232),
        ({"mssfix": MssFix(1300, "mtu")}, [], 1204),
        ({"mssfix": MssFix(1300, "fixed")}, [], 1260),
        ({}, ["tun-mtu 1300"], 1260),
    ],
)
def test_the_mss_is_stocks(changes: dict[str, Any], push: list[str], mss: int) -> None:
    pair = establish(make_pair(client=changes, push=[*PUSH, *push]))
    command = pair.client.first(events.SetPeer)
    assert isinstance(command, events.SetPeer)
    assert command.mss == mss


# The server's messages, and the end.


@pytest.mark.parametrize(
    ("message", "text", "retry"),
    [
        ("RESTART", "connect again", True),
        ("RESTART,[N]moving", "connect again: moving", True),
        ("HALT,go away", "ended the session: go away", False),
        ("HALT", "ended the session", False),
        ("EXIT", "ended the session", True),
    ],
)
def test_the_server_ends_the_session(message: str, text: str, retry: bool) -> None:
    pair = establish(make_pair())
    pair.say(message)
    closed = closing(pair, pair.client)
    assert text in str(closed.error)
    assert closed.retry == retry
    assert pair.client.events[-2] == events.DelPeer(0)


def test_the_server_policys_restart_and_halt_end_both_sides() -> None:
    for act, retry in ((ServerPolicy.restart, True), (ServerPolicy.halt, False)):
        pair = establish(make_pair())
        act(pair.server_policy, pair.now, "bye")
        closed = closing(pair, pair.client)
        assert "bye" in str(closed.error)
        assert closed.retry == retry
        assert str(closing(pair, pair.server).error) == "bye"


def test_an_exit_notice_in_the_control_channel() -> None:
    pair = establish(make_pair(push=[*PUSH, "explicit-exit-notify 2"]))
    pair.client.session.close(pair.now)
    ours, theirs = closing(pair, pair.client), closing(pair, pair.server)
    assert ours == events.Closed(None, retry=False)
    assert "ended the session" in str(theirs.error)
    assert pair.now < 1003


def test_an_exit_notice_that_nobody_acknowledges_ends_all_the_same() -> None:
    pair = establish(make_pair(push=[*PUSH, "explicit-exit-notify 2"]))
    pair.wire.drop = 1.0
    start = pair.now
    pair.client.session.close(start)
    # Who asks again prolongs nothing.
    for _ in range(3):
        pair.run_for(0.5)
        pair.client.session.close(pair.now)
    assert closing(pair, pair.client).error is None
    assert pair.now == start + 2


def test_an_exit_notice_in_the_data_channel() -> None:
    pair = establish(make_pair(push=[*PUSH, "explicit-exit-notify 3"], policy=OldClientPolicy))
    start = pair.now
    # Who asks again is heard once.
    pair.client.session.close(start)
    pair.client.session.close(start)
    closing(pair, pair.client)
    notices = [event for event in pair.client.events if isinstance(event, events.SendDataMessage)]
    assert len(notices) == 3
    assert pair.now == pytest.approx(start + 0.2)
    pair.server.session.data_event(events.DataMessage(0, notices[0].data), pair.now)
    assert "ended the session" in str(closing(pair, pair.server).error)


def test_closing_without_notice_ends_at_once() -> None:
    pair = establish(make_pair(push=[*PUSH, "explicit-exit-notify 2"]))
    pair.client.session.close(pair.now, notify=False)
    pair.run_for(0)
    assert pair.client.events[-2:] == [events.DelPeer(0), events.Closed(None, retry=False)]
    assert pair.client.session.get_timer() is None
    assert pair.client.session.next_event() is None


@pytest.mark.parametrize(("option", "retry"), [("ping-restart 120", True), ("ping-exit 120", False)])
def test_a_peer_that_fell_silent(option: str, retry: bool) -> None:
    pair = make_pair_with_reply(f"PUSH_REPLY,cipher AES-256-GCM,{option}")
    pair.run_for(1)
    pair.client.session.data_event(events.PeerExpired(0), pair.now)
    closed = closing(pair, pair.client)
    assert str(closed.error) == "nothing heard from 192.0.2.2:1194 for 120 s"
    assert isinstance(closed.error, UnreachableError)
    assert closed.retry == retry


def test_a_socket_that_failed_ends_the_session() -> None:
    pair = establish(make_pair())
    pair.client.session.data_event(events.PathClosed((9, "192.0.2.9", 1), 111), pair.now)
    assert pair.client.closed is None
    pair.client.session.data_event(events.PathClosed(PATHS["server"], 111), pair.now)
    assert closing(pair, pair.client).retry


def test_messages_with_control_characters_are_dropped_and_counted() -> None:
    pair = establish(make_pair())
    pair.say("INFO,\x1b[2J", "INFO,fine\r\n", "HALT\x00RESTART", "x" * 5000)
    pair.run_for(1)
    assert pair.client.session.statistics()["bad_messages"] == 1
    # A NUL ends a message in the middle of a record.
    assert "ended the session" in str(closing(pair, pair.client).error)
    texts = [event.text for event in pair.client.events if isinstance(event, events.Notice)]
    assert texts == ["the server says: fine"]


def test_a_flood_of_notices_is_bounded() -> None:
    pair = establish(make_pair())
    session = pair.client.session
    for number in range(150):
        session.notice(f"notice {number}")
    assert session.statistics()["notices"] == 50


def test_a_flood_of_questions_is_bounded_and_the_rest_counted() -> None:
    """Each would be a line at the terminal, or a browser's window."""
    pair = make_pair(policy=OldClientPolicy)
    pair.server_policy.silent = True
    pair.run_for(1)
    asked = ["AUTH_PENDING,timeout 600", "INFO_PRE,OPEN_URL:https://x.example/{}", "INFO,CR_TEXT:R,E:{}"]
    for number in range(100):
        pair.say(*(text.format(number) for text in asked))
    pair.run_for(30)
    client = pair.client

    def wishes() -> list[events.Event]:
        return [each for each in client.events if isinstance(each, events.AuthPending | events.OpenUrl | events.Prompt)]

    assert len(wishes()) == 8
    assert client.session.statistics()["asks"] == 292
    # Who answers can be asked again, and after a while so can anybody.
    question = next(each for each in wishes() if isinstance(each, events.Prompt))
    for number in range(5):
        pair.client_policy.respond(question, "x", pair.now)
        pair.say(f"INFO,CR_TEXT:R,E:again {number}")
        pair.run_for(1)
    assert len(wishes()) == 13
    pair.run_for(60)
    pair.say("INFO,CR_TEXT:R,E:later")
    pair.run_for(1)
    assert len(wishes()) == 14
    assert client.closed is None


def test_key_method_1_ends_the_session() -> None:
    class Method1(KeyMessage):
        def emit(self) -> bytes:
            return super().emit().replace(b"\0\0\0\0\x02", b"\0\0\0\0\x01", 1)

    class Method1Policy(ClientPolicy):
        def key_message(self) -> KeyMessage:
            message = super().key_message()
            return Method1(**{name: getattr(message, name) for name in KeyMessage.__dataclass_fields__})

    pair = make_pair(policy=Method1Policy)
    assert "key method 1" in str(closing(pair, pair.server).error)


# Sessions that may not last.


def lasting(**limits: float) -> type[ClientPolicy]:
    """A client's policy with limits of the tunnel's."""

    class Lasting(ClientPolicy):
        def _tunnel(self, reply: PushReply) -> Tunnel:
            return replace(super()._tunnel(reply), **limits)  # type: ignore[arg-type]

    return Lasting


def test_a_session_timeout_ends_the_session_as_its_user_would() -> None:
    pair = establish(make_pair(policy=lasting(session_timeout=500, exit_notify=1)))
    start = pair.now
    closed = closing(pair, pair.client, 600)
    assert pair.now == pytest.approx(start + 500, abs=2)
    assert (closed.error, closed.retry) == (None, False)
    assert "session-timeout" in str(pair.client.first(events.Notice))
    assert "ended the session" in str(closing(pair, pair.server).error)


@pytest.mark.parametrize(("bytes_a_minute", "lives"), [(0, False), (999, False), (1000, True), (5000, True)])
def test_an_inactive_session_ends(bytes_a_minute: int, lives: bool) -> None:
    pair = establish(make_pair(policy=lasting(inactive=60, inactive_bytes=1000)))
    start, total, counted = pair.now, 0, 0
    seen = 0
    while pair.now < start + 600 and pair.client.closed is None:
        pair.run_for(1)
        total = bytes_a_minute * int((pair.now - start) / 60 + 1)
        questions = [event for event in pair.client.events if isinstance(event, events.CountBytes)]
        for _ in questions[seen:]:
            pair.client.session.data_event(events.BytesCounted(0, total), pair.now)
            counted += 1
        seen = len(questions)
    assert (pair.client.closed is None) == lives
    assert 5 < counted < 200
    if not lives:
        pair.run_for(0)
        # Less than asked for is collected until it is enough.
        assert start + 60 <= pair.now <= start + (62 if bytes_a_minute == 0 else 130)
        assert "inactive" in str(pair.client.first(events.Notice))
