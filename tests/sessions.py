"""Pairs of sessions as the tests need them, and what they did."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ginnel.openvpn import events
from ginnel.openvpn.client import ClientPolicy
from ginnel.openvpn.keys import KeyMessage
from ginnel.openvpn.login import Login
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.server import Gate, ServerPolicy
from ginnel.openvpn.session import Session
from ginnel.testing import NoisyWire, Pair, Side, matching_settings

PUSH = ["ifconfig 10.8.0.2 255.255.255.0", "topology subnet", "route 10.77.0.0 255.255.0.0"]


class OldClientPolicy(ClientPolicy):
    """Says nothing of TLS's exporter, exit messages and asking for a push, as clients before 2.5."""

    proto = 2

    def key_message(self) -> KeyMessage:
        message = super().key_message()
        return replace(message, peer_info=re.sub("IV_PROTO=.*", f"IV_PROTO={self.proto}", message.peer_info))


class TestServerPolicy(ServerPolicy):
    """Records the client's messages, and can send any of its own. A silent one answers none."""

    __test__ = False
    silent = False

    def attach(self, session: Session, random: Callable[[int], bytes]) -> None:
        super().attach(session, random)
        self.session = session
        self.heard: list[str] = []

    def handle_message(self, text: str, now: float) -> None:
        self.heard.append(text)
        if not self.silent:
            super().handle_message(text, now)


class Tap(NoisyWire):
    """A quiet wire that keeps what it carried, and loses what it is told to."""

    def __init__(self) -> None:
        super().__init__(drop=0, reorder=0, corrupt=0, duplicate=0)
        self.datagrams: list[bytes] = []
        self.lost: Callable[[bytes], bool] = lambda datagram: False

    def carry(self, datagram: bytes) -> list[tuple[float, bytes]]:
        self.datagrams.append(datagram)
        return [] if self.lost(datagram) else super().carry(datagram)

    def session_id(self, side: Side) -> bytes:
        """A side's session id as its first packet has it in clear, another before that."""
        opcodes = (7, 10) if side.name == "client" else (8,)
        return next((packet[1:9] for packet in self.datagrams if packet[0] >> 3 in opcodes), b"unknown!")


class Case(Pair):
    """A pair with its server's policy at hand."""

    server_policy: TestServerPolicy
    client_policy: ClientPolicy

    def say(self, *texts: str) -> None:
        """Lets the server send messages."""
        for text in texts:
            self.server_policy.session.send_message(text)


def make_pair(
    wrap: Any = "none",
    tls: str = "1.3",
    *,
    client: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
    push: list[str] | None = None,
    policy: type[ClientPolicy] = ClientPolicy,
    wire: NoisyWire | None = None,
    login: Login | None = None,
    gate: Gate | None = None,
) -> Case:
    ours, theirs = matching_settings(wrap, tls=tls)
    reply = PushReply.parse(PUSH if push is None else push)
    server_policy = TestServerPolicy(replace(theirs, **server or {}), gate or reply, unix_time=1.7e9, peer_id=5)
    client_policy = policy(replace(ours, **client or {}), login, unix_time=1.7e9)
    case = Case(client_policy, server_policy, wire)
    case.client_policy = client_policy
    case.server_policy = server_policy
    return case


def make_pair_with_reply(reply: str, **options: Any) -> Case:
    """A pair whose server answers the push request with these words alone."""
    pair = make_pair(policy=OldClientPolicy, **options)
    pair.server_policy.silent = True
    pair.run_for(1)
    pair.say(reply)
    return pair


def establish(pair: Case) -> Case:
    pair.run_until(lambda: pair.client.established and pair.server.established, 10)
    pair.run_for(1)
    return pair


def closing(pair: Pair, side: Side, limit: float = 200) -> events.Closed:
    pair.run_until(lambda: side.closed is not None, limit)
    assert side.closed is not None
    assert side.events[-1] is side.closed
    return side.closed


def keys_of(side: Side) -> list[events.NewKey]:
    return [event for event in side.events if isinstance(event, events.NewKey)]


def rekeys(side: Side) -> int:
    return sum(isinstance(event, events.Rekeyed) for event in side.events)
