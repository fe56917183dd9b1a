"""One attempt of a client: a session with its timers on the loop's clock, and its words to the data plane and back."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable

from ginnel._core import DataPlane
from ginnel.errors import DeviceError, GinnelError, UnreachableError
from ginnel.openvpn import events
from ginnel.openvpn.client import ClientPolicy
from ginnel.openvpn.commands import REPORTS, carry_out
from ginnel.openvpn.config import Remote
from ginnel.openvpn.session import Session
from ginnel.openvpn.wrap import NoWrap


class Attempt:
    """One session on one path, from its first packet to its end."""

    def __init__(
        self,
        plane: DataPlane,
        policy: ClientPolicy,
        path: events.Path,
        remote: Remote,
        patience: float,
        on_news: Callable[[events.News | events.PeerFloat, Attempt], None],
    ) -> None:
        self.remote = remote
        self.policy = policy
        self.began = time.monotonic()
        self.is_up = False
        self._plane = plane
        self._errors_before = plane.statistics()["rx_errors"]
        self._on_news = on_news
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[events.Closed] = self._loop.create_future()
        self._patience = patience
        self.session = Session(policy, path=path, random=os.urandom, now=self._loop.time())

    async def run(self) -> events.Closed:
        """Carries the session until it ends."""
        self._loop.add_reader(self._plane.fileno(), self._receive)
        impatience = self._loop.call_later(self._patience, self._give_up_on_silence)
        try:
            self._advance()
            return await self._closed
        finally:
            self._loop.remove_reader(self._plane.fileno())
            for timer in (impatience, self._timer):
                if timer is not None:
                    timer.cancel()

    def leave(self) -> None:
        """Ends the session at our wish; the peer is told once, where it asked to be."""
        self.session.close(self._loop.time())
        self._advance()

    def lose(self, error: GinnelError) -> None:
        """Ends the session for another attempt, without a word to the peer: it would not arrive."""
        self.session.finish(error, retry=True, advance="stay")
        self._advance()

    def relay_ended(self) -> None:
        """The proxy relays no longer."""
        assert self.remote.proxy is not None
        self.lose(UnreachableError(f"the proxy {self.remote.proxy.host}:{self.remote.proxy.port} ended the relay"))

    def respond(self, prompt: events.Prompt, text: str) -> None:
        """Answers a question that came in the course of the session."""
        if not self._closed.done():
            self.policy.respond(prompt, text, self._loop.time())
            self._advance()

    @property
    def path(self) -> events.Path:
        return self.session.path

    @property
    def progress(self) -> str:
        """How far it came, as the beginning of a sentence."""
        where = f"{self.path[1]} port {self.path[2]} ({self.remote.proto[:3].upper()})"
        if self.is_up:
            return f"the tunnel to {where} was up, but is not"
        wrap = self.policy.settings.wrap
        if self.session.statistics()["received"] == 0:
            hint = "" if isinstance(wrap, NoWrap) else " (a server with another tls-crypt or tls-auth key gives none)"
            if self._plane.statistics()["rx_errors"] > self._errors_before:
                # Whoever is on the way may forge that: it is a hint, and no end.
                hint = " (what is sent there is refused, by ICMP: nothing listens on the port, or a firewall says so)"
            return f"no answer from {where}{hint}"
        return f"{where} answers, but the handshake did not end{self.policy.why_silent}"

    def _give_up_on_silence(self) -> None:
        if self.session.statistics()["received"] == 0 and not self._closed.done():
            self._closed.set_result(events.Closed(UnreachableError(self.progress), retry=True))

    def _receive(self) -> None:
        now = self._loop.time()
        for kind, *fields in self._plane.events():
            if kind == "control":
                if fields[1][0] == self.path[0]:
                    self._receive_control(fields[0], fields[1], now)
            elif kind == "device_closed":
                self.session.finish(DeviceError(fields[0] or errno.EBADFD, "the tunnel's device is gone"), retry=False)
            else:
                report = REPORTS[kind](*fields)
                self.session.data_event(report, now)
                if isinstance(report, events.PeerFloat):
                    self._on_news(report, self)
        self._advance()

    def _receive_control(self, datagram: bytes, path: events.Path, now: float) -> None:
        before = self.path
        self.session.receive_datagram(datagram, path, now)
        # Without a wrap anybody on the way could have sent it: then TLS has to show first who that is.
        if self.path != before and not isinstance(self.policy.settings.wrap, NoWrap):
            self._on_news(events.PeerFloat(self.policy.peer, self.path), self)

    def _fire(self) -> None:
        self._timer = None
        self.session.handle_timer(self._loop.time())
        self._advance()

    def _advance(self) -> None:
        now = self._loop.time()
        while (event := self.session.next_event()) is not None:
            match event:
                case events.Established():
                    self.is_up = True
                    self._on_news(event, self)
                case events.Closed():
                    if not self._closed.done():
                        self._closed.set_result(event)
                case events.Rekeyed() | events.Reconfigured() | events.Notice():
                    self._on_news(event, self)
                case events.Prompt() | events.OpenUrl() | events.AuthPending():
                    self._on_news(event, self)
                case _:
                    self._command(event)
        for datagram, path in self.session.datagrams_to_send(now):
            self._plane.send_control(datagram, path)
        if self._timer is not None:
            self._timer.cancel()
        at = self.session.get_timer()
        self._timer = self._loop.call_at(at, self._fire) if at is not None else None

    def _command(self, command: events.Command | events.Compute) -> None:
        if (report := carry_out(self._plane, command)) is not None:
            self.session.data_event(report, self._loop.time())
