"""OpenVPN on a clock, an event loop and real sockets: the one place in this package that has them.

A `Client` keeps one data plane for its whole life and one session for each attempt. It carries
commands from the session to the data plane and reports back, and starts again when a session ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.metadata import version

from ginnel._core import DataPlane, End
from ginnel.errors import GinnelError, RemoteProtocolError, UnreachableError
from ginnel.openvpn import events
from ginnel.openvpn.client import ClientPolicy, ClientSettings, Credentials
from ginnel.openvpn.config import ClientConfig, Remote
from ginnel.openvpn.session import Session
from ginnel.openvpn.tls import TlsContext, TlsSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rose:
    """The tunnel is up. ``handshake`` is in seconds, from the first packet of the attempt on."""

    established: events.Established
    path: events.Path
    handshake: float


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt or an established tunnel failed; the next attempt follows in ``delay`` seconds."""

    error: GinnelError
    delay: float


class Client:
    """Keeps a tunnel to one of the servers that a configuration names.

    It takes over ``end``, the application end of a device. ``on_change`` is called from the event
    loop with every `Rose` and `Lost`, after the data plane has been told.
    """

    def __init__(
        self,
        config: ClientConfig,
        end: End,
        *,
        credentials: Credentials | None,
        on_change: Callable[[Rose | Lost], None],
    ) -> None:
        self._config = config
        self._settings = client_settings(config, credentials)
        self._on_change = on_change
        self._plane = DataPlane(end)
        self._attempt: _Attempt | None = None
        self._server = ""
        self._failure: GinnelError | None = None
        self.keyed_at = time.monotonic()
        """When the keys in use were agreed on, on `time.monotonic`."""

    async def run(self) -> None:
        """Connects, and again whenever the tunnel is lost, until cancelled or until it makes no sense.

        Before the tunnel was up once, only an unreachable server is tried again and again; what is
        wrong with TLS may have been a damaged packet once, but not for ever.
        Raises AuthError, RemoteProtocolError or UnreachableError.
        """
        failures = 0
        was_up = False
        most = self._config.connect_retry_max
        async for candidate in self._candidates():
            closed, rose = await self._try(candidate)
            if closed.error is None:
                return
            was_up = was_up or rose
            failures = 0 if rose else failures + 1
            if not closed.retry or (not was_up and not _worth_another(closed.error, failures)):
                raise closed.error
            if most is not None and failures >= most * len(self._config.remotes):
                raise closed.error
            self._failure = closed.error
            delay = max(closed.delay, self._back_off(failures))
            self._on_change(Lost(closed.error, delay))
            await asyncio.sleep(delay)

    def leave(self) -> None:
        """Tells the server that we go, where it asked to be told."""
        if self._attempt is not None:
            self._attempt.leave()

    def close(self) -> None:
        """Frees the data plane, its sockets and the device end. Idempotent."""
        self._plane.close()

    @property
    def progress(self) -> str:
        """How far the attempt under way has come, or why the last one failed: the beginning of a message."""
        if self._attempt is not None:
            return self._attempt.progress
        return str(self._failure or f"no connection to {self._server or 'the server'}")

    def plane_statistics(self) -> dict[str, int]:
        return self._plane.statistics()

    def session_statistics(self) -> dict[str, int]:
        return self._attempt.session.statistics() if self._attempt else {}

    async def _try(self, candidate: _Candidate) -> tuple[events.Closed, bool]:
        remote, address = candidate.remote, candidate.address
        self._server = f"{remote.host}:{remote.port}"
        if isinstance(address, OSError):
            reason = address.strerror or str(address)
            return events.Closed(UnreachableError(f"cannot resolve {remote.host}: {reason}"), retry=True), False
        try:
            number = _add_socket(self._plane, address)
        except OSError as error:
            reason = error.strerror or str(error)
            return events.Closed(UnreachableError(f"cannot reach {self._server}: {reason}"), retry=True), False
        path = (number, *address)
        policy = ClientPolicy(self._settings, unix_time=time.time())
        attempt = _Attempt(self._plane, policy, path, candidate.patience, self._take_news)
        self._attempt = attempt
        try:
            return await attempt.run(), attempt.is_up
        finally:
            self._attempt = None
            self._plane.remove_socket(number)

    async def _candidates(self) -> AsyncIterator[_Candidate]:
        remotes = list(self._config.remotes)
        if self._config.remote_random:
            random.shuffle(remotes)
        longest = float(self._config.connect_timeout)
        # Names are resolved anew each time round: a server may have moved.
        while True:
            for remote in remotes:
                addresses = await _resolve(remote)
                alone = len(remotes) == len(addresses) == 1
                for address in addresses:
                    yield _Candidate(remote, address, longest if alone else min(longest, _PATIENCE))

    def _back_off(self, failures: int) -> float:
        lowest, highest = self._config.connect_retry
        delay: float = min(highest, lowest * 2 ** max(0, failures - _PATIENT_FAILURES))
        return delay * random.uniform(0.75, 1.25)

    def _take_news(self, news: events.News, attempt: _Attempt) -> None:
        match news:
            case events.Established():
                self.keyed_at = time.monotonic()
                self._on_change(Rose(news, attempt.path, time.monotonic() - attempt.began))
            case events.Rekeyed():
                self.keyed_at = time.monotonic()
            case events.Notice(text):
                log.warning("%s", text)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """One way to a server, or why there is none. After ``patience`` seconds of silence the next one is tried."""

    remote: Remote
    address: tuple[str, int] | OSError
    patience: float


def client_settings(config: ClientConfig, credentials: Credentials | None) -> ClientSettings:
    """What a session needs to know, from what a file says. Raises ConfigError for what OpenSSL refuses."""
    login = config.auth_user_pass
    if credentials is None and login is not None and login.username is not None and login.password is not None:
        credentials = Credentials(login.username, login.password)
    tls = TlsSettings(
        ca=config.ca,
        cert=config.cert,
        key=config.key,
        extra_certs=config.extra_certs,
        peer_fingerprints=config.peer_fingerprints,
        remote_cert_tls=config.remote_cert_tls,
        verify_name=config.verify_x509_name,
        version_min=config.tls_version_min,
        version_max=config.tls_version_max,
    )
    return ClientSettings(
        tls=TlsContext(tls, server=False),
        wrap=config.wrap,
        tls_timeout=config.tls_timeout,
        hand_window=config.hand_window,
        tran_window=config.tran_window,
        reneg_sec=config.reneg_sec,
        max_packet_size=config.max_packet_size,
        credentials=credentials,
        data_ciphers=config.data_ciphers,
        fallback_cipher=config.cipher,
        auth=config.auth,
        tap=config.dev_type == "tap",
        tun_mtu=config.tun_mtu,
        tun_mtu_max=config.tun_mtu_max,
        mssfix=config.mssfix,
        explicit_exit_notify=config.explicit_exit_notify,
        ping=config.ping,
        ping_restart=config.ping_restart,
        ping_exit=config.ping_exit,
        pull_filters=config.pull_filters,
        route_nopull=config.route_nopull,
        auth_retry=config.auth_retry != "none",
        gui_version=f"ginnel_{version('ginnel')}",
        extra_peer_info=config.peer_info,
        export_keys=config.export_keys,
    )


class _Attempt:
    """One session on one path, from its first packet to its end."""

    def __init__(
        self,
        plane: DataPlane,
        policy: ClientPolicy,
        path: events.Path,
        patience: float,
        on_news: Callable[[events.News, _Attempt], None],
    ) -> None:
        self.path = path
        self.began = time.monotonic()
        self.is_up = False
        self._plane = plane
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
            impatience.cancel()
            if self._timer is not None:
                self._timer.cancel()

    def leave(self) -> None:
        """Ends the session at our wish; the peer is told once, where it asked to be."""
        self.session.close(self._loop.time())
        self._advance()

    @property
    def progress(self) -> str:
        """How far it came, as the beginning of a sentence."""
        where = f"{self.path[1]} port {self.path[2]} (UDP)"
        if self.is_up:
            return f"the tunnel to {where} was up, but is not"
        if self.session.statistics()["received"] == 0:
            return f"no answer from {where}"
        return f"{where} answers, but the handshake did not end"

    def _give_up_on_silence(self) -> None:
        if self.session.statistics()["received"] == 0 and not self._closed.done():
            self._closed.set_result(events.Closed(UnreachableError(self.progress), retry=True))

    def _receive(self) -> None:
        now = self._loop.time()
        for kind, *fields in self._plane.events():
            if kind == "control":
                if fields[1][0] == self.path[0]:
                    self.session.receive_datagram(fields[0], fields[1], now)
            else:
                self.session.data_event(_REPORTS[kind](*fields), now)
        self._advance()

    def _fire(self) -> None:
        self._timer = None
        self.session.handle_timer(self._loop.time())
        self._advance()

    def _advance(self) -> None:
        now = self._loop.time()
        while (event := self.session.next_event()) is not None:
            match event:
                case events.Established() | events.Rekeyed() | events.Notice():
                    self.is_up = self.is_up or isinstance(event, events.Established)
                    self._on_news(event, self)
                case events.Closed():
                    if not self._closed.done():
                        self._closed.set_result(event)
                case _:
                    self._command(event)
        for datagram, path in self.session.datagrams_to_send(now):
            self._plane.send_control(datagram, path)
        if self._timer is not None:
            self._timer.cancel()
        at = self.session.get_timer()
        self._timer = self._loop.call_at(at, self._fire) if at is not None else None

    def _command(self, command: events.Command) -> None:
        plane = self._plane
        match command:
            case events.NewPeer(peer, path, peer_id):
                plane.new_peer(peer, path, peer_id)
            case events.SetPeer(peer, ping, ping_restart, mss):
                plane.set_peer(peer, ping, ping_restart, mss)
            case events.DelPeer(peer):
                plane.del_peer(peer)
            case events.NewKey():
                plane.new_key(
                    command.peer,
                    command.handle,
                    command.key_id,
                    command.cipher,
                    command.encrypt,
                    command.decrypt,
                )
            case events.DelKey(peer, handle):
                plane.del_key(peer, handle)
            case events.Swap(peer, handle):
                plane.swap(peer, handle)
            case events.SendDataMessage(peer, data):
                plane.send_data_message(peer, data)
            case events.CountBytes(peer):
                counted = plane.peer_statistics(peer)
                report = events.BytesCounted(peer, counted["rx_bytes"] + counted["tx_bytes"])
                self.session.data_event(report, self._loop.time())


async def _resolve(remote: Remote) -> list[tuple[str, int] | OSError]:
    """The IP addresses of a remote, each with the port, or the error that it has none."""
    family = {"udp": socket.AF_UNSPEC, "udp4": socket.AF_INET, "udp6": socket.AF_INET6}[remote.proto]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(remote.host, remote.port, family=family, type=socket.SOCK_DGRAM)
    except OSError as error:
        return [error]
    return list(dict.fromkeys((str(address[0]), int(address[1])) for *_, address in found))


def _add_socket(plane: DataPlane, address: tuple[str, int]) -> int:
    """Gives the data plane a socket that is connected to ``address``. Raises OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as connected:
        connected.setblocking(False)
        # Connected, it takes datagrams from the server alone, and hears at once of a route that is missing.
        connected.connect(address)
        number = plane.add_udp(connected.fileno())
        connected.detach()
        return number


def _worth_another(error: GinnelError, failures: int) -> bool:
    if isinstance(error, RemoteProtocolError):
        return failures <= _PROTOCOL_FAILURES
    return True


_REPORTS: dict[str, Callable[..., events.Report]] = {
    "data_message": events.DataMessage,
    "float": events.PeerFloat,
    "expired": events.PeerExpired,
    "key_limit": events.KeyLimit,
    "closed": events.PathClosed,
}
# Seconds that a silent server may take while there are others to try.
_PATIENCE = 10.0
# Attempts that fail before the waiting between them grows.
_PATIENT_FAILURES = 5
# One forged or damaged packet can end TLS where nothing wraps it; this many in a row are no accident.
_PROTOCOL_FAILURES = 2
