"""OpenVPN on a clock, an event loop and real sockets: with `attempt` the one place in this package that has them.

A `Client` keeps one data plane for its whole life and one session for each attempt, and starts again when a session
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ginnel._core import DataPlane
from ginnel.errors import (
    AuthError,
    ConfigError,
    DeviceError,
    GinnelError,
    RemoteProtocolError,
    UnreachableError,
    is_shortage,
)
from ginnel.openvpn import events, settings
from ginnel.openvpn.attempt import Attempt
from ginnel.openvpn.client import ClientPolicy
from ginnel.openvpn.config import ClientConfig, HttpProxy, Remote
from ginnel.openvpn.ovpn_file import read_login, read_revocations
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.tls import KeyPasswordError, TlsContext
from ginnel.openvpn.words import escape
from ginnel.transports import watch
from ginnel.transports.ways import Opened, Outside, Unresolved, Way, Ways, describe, open_way, pause

log = logging.getLogger(__name__)

Ask = Callable[[events.Prompt], Awaitable[str | None]]
"""Asks the user; None when there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Rose:
    """The tunnel is up. ``handshake`` is in seconds, from the first packet of the attempt on."""

    established: events.Established
    path: events.Path
    remote: Remote
    handshake: float


@dataclass(frozen=True, slots=True)
class Lost:
    """An attempt or an established tunnel failed; the next attempt follows in ``delay`` seconds."""

    error: GinnelError
    delay: float


Change = Rose | Lost | events.Reconfigured | events.PeerFloat | events.OpenUrl


class Client:
    """Keeps a tunnel to one of the servers that a configuration names.

    It takes over ``plane``. ``on_change`` is called from the event
    loop with every change, after the data plane has been told. ``login`` is a user and a password
    that count more than the file's; what is missing is asked for by ``ask``. ``outside`` leads to servers.
    """

    def __init__(
        self,
        config: ClientConfig,
        plane: DataPlane,
        *,
        login: tuple[str, str] | None,
        ask: Ask | None,
        on_change: Callable[[Change], None],
        outside: Outside,
    ) -> None:
        self._config = config
        self._outside = outside
        self._login = settings.login(config, login)
        # What a program gave counts more than what the file names.
        self._login_file = config.auth_user_pass.file if config.auth_user_pass and login is None else None
        self._tls: TlsContext | None = None
        self._crl_seen: tuple[int, ...] | None = ()
        self._proxy_logins: dict[HttpProxy, tuple[str, str]] = {}
        self._ask_user = ask
        self._on_change = on_change
        self._plane = plane
        self._attempt: Attempt | None = None
        self._way: Way | Unresolved | None = None
        # Our address towards where packets go now.
        self._leaves_from: str | None = None
        self._failure: GinnelError | None = None
        self._ways = Ways(config.remotes, outside, shuffled=config.remote_random)
        self._nudge = asyncio.Event()
        self._question: asyncio.Task[None] | None = None
        self._users_time = 0.0
        self._unresolved_since: float | None = None
        self._told: set[str] = set()
        self._asked_at: float | None = None
        self.keyed_at = time.monotonic()
        """When the keys in use were agreed on, on `time.monotonic`."""

    async def run(self) -> None:
        """Connects, and again whenever the tunnel is lost, until cancelled or until it makes no sense.

        Before the tunnel was up once, only an unreachable server is tried again and again; what is
        wrong with TLS may have been a damaged packet once, but not for ever.
        Raises AuthError, ConfigError, DeviceError, RemoteProtocolError or UnreachableError.
        """
        watchers = [asyncio.create_task(act()) for act in self._watchers()]
        try:
            await self._keep_connected()
        finally:
            for task in (*watchers, self._question):
                if task is not None:
                    task.cancel()

    def leave(self) -> None:
        """Tells the server that we go, where it asked to be told."""
        if self._attempt is not None:
            self._attempt.leave()

    @property
    def is_leaving(self) -> bool:
        """After `leave`: there is a session, and `run` ends when its server has heard, or was told often enough."""
        return self._attempt is not None

    def reconnect(self) -> None:
        """Gives the session up for another, or tries again without waiting."""
        if self._attempt is not None:
            self._attempt.lose(UnreachableError("it was asked to connect anew"))
        self._nudge.set()

    def close(self) -> None:
        """Frees the data plane, its sockets and the device end. Idempotent."""
        self._plane.close()

    @property
    def progress(self) -> str:
        """How far the attempt under way has come, or why the last one failed: the beginning of a message."""
        if self._attempt is not None:
            return self._attempt.progress
        if self._ways.resolving is not None:
            return f"cannot resolve {self._ways.resolving}: no answer"
        where = describe(self._way.remote) if self._way else "the server"
        return str(self._failure or f"no connection to {where}")

    @property
    def users_time(self) -> float:
        """The seconds that the user took so far, to answer or to log in elsewhere: nobody else's delay."""
        waiting = 0.0 if self._asked_at is None else time.monotonic() - self._asked_at
        return self._users_time + waiting

    def plane_statistics(self) -> dict[str, int]:
        return self._plane.statistics()

    def session_statistics(self) -> dict[str, int]:
        return self._attempt.session.statistics() if self._attempt else {}

    async def _keep_connected(self) -> None:
        failures = tries = hasty = 0
        was_up = False
        most = self._config.connect_retry_max
        advance: events.Advance = "address"
        self._tls = await self._open_key()
        while True:
            await self._complete_login()
            self._way = await self._ways.next(advance)
            began = time.monotonic()
            closed, rose = await self._try(self._way)
            if closed.error is None:
                return
            hasty = hasty + 1 if time.monotonic() < began + _HASTE else 0
            was_up = was_up or rose
            failures = 0 if rose else failures + 1
            advance = closed.advance
            # A remote was tried when each of its addresses was.
            tries = 0 if rose else tries + (advance != "address" or self._ways.at_last_address)
            if not closed.retry or (not was_up and not self._worth_another(closed.error, failures)):
                raise closed.error
            if most is not None and tries >= most * len(self._config.remotes):
                raise closed.error
            self._failure = closed.error
            self._renew_login()
            if self._login.prompt is None:
                # Whatever the file says: this would go on as fast as the processor can.
                least = _HASTE if hasty > _HASTY * len(self._config.remotes) else 0.0
                delay = max(closed.delay, self._back_off(failures, self._way.remote, least))
                self._on_change(Lost(closed.error, delay))
                await pause(delay, self._nudge)
            elif rose:
                # It is down while the user is asked.
                self._on_change(Lost(closed.error, closed.delay))
                await pause(closed.delay, self._nudge)

    async def _try(self, way: Way | Unresolved) -> tuple[events.Closed, bool]:
        if isinstance(way, Unresolved):
            return self._unresolved(way), False
        self._unresolved_since = None
        config = self._config.for_remote(way.remote)
        longest = config.connect_timeout or config.hand_window
        quick = min(longest, _PATIENCE if way.remote.tcp or not way.first else _FIRST_PATIENCE)
        patience = float(longest if way.alone else quick)
        try:
            log.info("trying %s", describe(way.remote))
            await self._outside.open(way)
            async with asyncio.timeout(patience) as limit:
                login = functools.partial(self._proxy_login, limit)
                opened = await open_way(way, login, self._outside, floats=config.floats)
            number = self._give_away(opened, way.remote.tcp)
            log.info("connecting to %s port %d", *opened.address[:2])
        except DeviceError:
            raise
        except GinnelError as error:
            # A login that a proxy refuses stays refused; whatever else it says may be of this moment or this server.
            return events.Closed(error, retry=not isinstance(error, AuthError)), False
        except OSError as error:
            reason = error.strerror or str(error) or "no answer in time"
            return events.Closed(_not_there(f"cannot reach {describe(way.remote)}", error, reason), retry=True), False
        with opened:
            return await self._hold(way, opened, number, patience)

    def _give_away(self, opened: Opened, tcp: bool) -> int:
        """Hands the socket to the data plane. Returns its number there. Raises OSError for one that has ended."""
        descriptor = opened.sock.fileno()
        try:
            number = self._plane.add_tcp(descriptor) if tcp else self._plane.add_udp(descriptor, opened.header)
        except BaseException:
            opened.close()
            raise
        opened.sock.detach()
        return number

    async def _hold(self, way: Way, opened: Opened, number: int, patience: float) -> tuple[events.Closed, bool]:
        assert self._tls is not None
        self._renew_revocations()
        path = (number, *opened.address)
        policy = ClientPolicy(
            settings.client_settings(self._config, way.remote, self._tls), self._login, unix_time=time.time()
        )
        attempt = Attempt(self._plane, policy, path, way.remote, patience, self._take_news)
        self._attempt = attempt
        # What is compared later is the way to this server: to another it may begin elsewhere.
        self._leaves_from = self._source()
        try:
            with _watched(opened.association, attempt.relay_ended):
                return await attempt.run(), attempt.is_up
        finally:
            self._attempt = None
            self._leaves_from = self._source()
            if self._question is not None:
                # Nobody waits for its answer any more.
                self._question.cancel()
            self._user_is_done()
            self._plane.remove_socket(number)

    def _unresolved(self, way: Unresolved) -> events.Closed:
        """``resolv-retry`` counts from the first failure in a row on."""
        now = time.monotonic()
        self._unresolved_since = self._unresolved_since or now
        reason = way.error.strerror or str(way.error)
        failure = _not_there(f"cannot resolve {way.host}", way.error, reason)
        patient = self._config.resolv_retry is None or len(self._config.remotes) > 1
        retry = patient or now - self._unresolved_since < (self._config.resolv_retry or 0)
        return events.Closed(failure, retry=retry)

    def _worth_another(self, error: GinnelError, failures: int) -> bool:
        """Each remote gets its chance, and none of them helps where this machine is short of something."""
        if isinstance(error, DeviceError):
            return False
        if isinstance(error, RemoteProtocolError):
            return failures <= max(_PROTOCOL_FAILURES, len(self._config.remotes) - 1)
        return True

    def _back_off(self, failures: int, remote: Remote, least: float) -> float:
        """Grows when each remote has failed several times (``init.c``, socket_restart_pause), with jitter: the clients
        of a server that was restarted don't come back at once."""
        lowest, highest = self._config.for_remote(remote).connect_retry
        rounds = failures // len(self._config.remotes)
        delay: float = min(highest, lowest * 2 ** min(max(0, rounds - _PATIENT_ROUNDS), _MOST_DOUBLINGS))
        return max(delay, least) * random.uniform(0.75, 1.25)

    def _take_news(self, news: events.News | events.PeerFloat, attempt: Attempt) -> None:
        match news:
            case events.Established():
                self._user_is_done()
                self.keyed_at = time.monotonic()
                if log.isEnabledFor(logging.INFO):
                    log.info("the server pushed: %s", _shown(news.push))
                self._on_change(Rose(news, attempt.path, attempt.remote, time.monotonic() - attempt.began))
            case events.Rekeyed():
                self.keyed_at = time.monotonic()
                log.info("new keys")
            case events.Notice(text):
                # What each connection brings again is news once.
                log.log(logging.DEBUG if text in self._told else logging.WARNING, "%s", text)
                if len(self._told) < _MOST_TOLD:
                    self._told.add(text)
            case events.Reconfigured() | events.PeerFloat():
                self._on_change(news)
            case events.OpenUrl():
                self._asked_at = self._asked_at or time.monotonic()
                self._on_change(news)
            case events.AuthPending(seconds):
                self._asked_at = self._asked_at or time.monotonic()
                log.warning("the login waits for approval, for up to %g s", seconds)
            case events.Prompt():
                self._question = asyncio.create_task(self._answer(news, attempt, self._question))

    # The user.

    async def _open_key(self) -> TlsContext:
        """Asks for the password of an encrypted key until it fits, a few times. Raises ConfigError."""
        password: str | None = None
        asked = 0
        while True:
            try:
                return settings.tls_context(self._config, password)
            except KeyPasswordError as error:
                if (error.wrong and password is None) or asked == _KEY_PASSWORDS:
                    raise
                asked += 1
                again = " (the last one was wrong)" if error.wrong else ""
                prompt = events.Prompt("key-password", f"Password of the private key{again}", echo=False)
                password = await self._ask(prompt)
                if password is None:
                    raise

    def _renew_login(self) -> None:
        """A file that has the login is read anew for each connection: what stands in it may be good once."""
        if self._login_file is None:
            return
        try:
            self._login.renew(*read_login(self._login_file))
        except ConfigError as error:
            log.warning("auth-user-pass: %s; what was read before counts", error)

    async def _complete_login(self) -> None:
        """Asks for what is missing. Raises what the last attempt failed with if nobody answers."""
        while (prompt := self._login.prompt) is not None:
            answer = await self._ask(prompt)
            if answer is None and prompt.needs_answer:
                if isinstance(self._failure, AuthError):
                    raise self._failure
                raise _unanswered(prompt, self._ask_user is not None)
            self._login.answer(prompt, answer or "")

    async def _answer(self, prompt: events.Prompt, attempt: Attempt, former: asyncio.Task[None] | None) -> None:
        """An answer does not say which question it is for: it is the latest's, and no ``former`` one is asked on."""
        if former is not None:
            former.cancel()
            await asyncio.wait({former})
        answer = await self._ask(prompt)
        if answer is None:
            log.warning("the server asks %r, and there is nobody to answer", prompt.text)
        else:
            attempt.respond(prompt, answer)

    async def _ask(self, prompt: events.Prompt) -> str | None:
        if self._ask_user is None:
            return None
        self._asked_at = self._asked_at or time.monotonic()
        try:
            return await self._ask_user(prompt)
        finally:
            self._user_is_done()

    def _user_is_done(self) -> None:
        if self._asked_at is not None:
            self._users_time += time.monotonic() - self._asked_at
            self._asked_at = None

    async def _proxy_login(self, limit: asyncio.Timeout, proxy: HttpProxy) -> tuple[str, str] | None:
        """``limit`` is the proxy's time, which the user's is no part of."""
        if proxy.username is not None and proxy.password is not None:
            return proxy.username, proxy.password
        if proxy not in self._proxy_logins and proxy.ask:
            where, began, until = f"the proxy {proxy.host}", time.monotonic(), limit.when()
            limit.reschedule(None)
            username = proxy.username or await self._ask(events.Prompt("proxy-username", f"User for {where}", True))
            password = await self._ask(events.Prompt("proxy-password", f"Password for {where}", False))
            if until is not None:
                limit.reschedule(until + time.monotonic() - began)
            if username is None or password is None:
                return None
            self._proxy_logins[proxy] = username, password
        return self._proxy_logins.get(proxy)

    # The machine.

    def _watchers(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        watchers = [self._watch_network, self._watch_sleep, self._watch_compressed]
        return watchers if self._config.crl_file is None else [*watchers, self._watch_revocations]

    async def _watch_revocations(self) -> None:
        """So that a renegotiation finds who was revoked since."""
        while True:
            await asyncio.sleep(_REVOCATIONS)
            self._renew_revocations()

    def _renew_revocations(self) -> None:
        """A file or folder that changed counts from the next negotiation on; one that can't be read changes nothing."""
        file = self._config.crl_file
        if file is None or self._tls is None:
            return
        try:
            status = Path(file).stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            seen = None
        if seen == self._crl_seen:
            return
        self._crl_seen = seen
        try:
            self._tls.renew_crl(read_revocations(file))
        except ConfigError as error:
            log.warning("crl-verify: %s; what was read before counts", error)

    async def _watch_compressed(self) -> None:
        """Says once why a tunnel that is up may lead to nothing. It looks ever less often: most never find any."""
        wait = _COMPRESSED
        while not self._plane.statistics()["rx_compressed"]:
            await asyncio.sleep(wait)
            wait = min(2 * wait, _COMPRESSED_AT_LAST)
        log.warning("the server sends compressed packets, which are dropped; set there: allow-compression asym")

    async def _watch_network(self) -> None:
        """When packets to the server would leave from another address than before, or can leave again,
        waiting makes no sense: the server won't find us where we were."""
        self._leaves_from = self._source()
        async for _ in watch.network_changes():
            now = self._source()
            if now is not None and now != self._leaves_from:
                if self._attempt is not None:
                    self._attempt.lose(UnreachableError(f"the network of this machine changed (now {now})"))
                self._nudge.set()
            self._leaves_from = now

    async def _watch_sleep(self) -> None:
        async for seconds in watch.sleeps():
            tunnel = self._attempt.session.tunnel if self._attempt is not None else None
            if self._attempt is not None and tunnel is not None and seconds > (tunnel.ping_restart or _LONG_SLEEP):
                self._attempt.lose(UnreachableError(f"this machine slept for {seconds:.0f} s"))
            self._nudge.set()

    def _source(self) -> str | None:
        """Our own address towards the server, or towards anywhere while it has none that is known."""
        if self._attempt is not None:
            return self._outside.source(self._attempt.path[1])
        known = [address for address, _ in self._way.addresses] if isinstance(self._way, Way) else []
        return next(filter(None, map(self._outside.source, [*known, *_ANYWHERE])), None)


@contextlib.contextmanager
def _watched(connection: socket.socket | None, on_end: Callable[[], None]) -> Iterator[None]:
    """Has ``on_end`` called when a connection that says nothing ends, while the block runs."""
    if connection is None:
        yield
        return
    loop = asyncio.get_running_loop()
    sock = connection

    def look() -> None:
        try:
            if sock.recv(4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        loop.remove_reader(sock)
        on_end()

    loop.add_reader(sock, look)
    try:
        yield
    finally:
        loop.remove_reader(sock)


def _shown(push: PushReply) -> str:
    """What counts of it. A token is as good as a password."""
    return escape(", ".join(text for text in push.options() if not text.startswith("auth-token")))


def _not_there(what: str, error: OSError, reason: str) -> GinnelError:
    """Whose fault it is: no server is to blame where this machine has no descriptor, memory or thread left."""
    return DeviceError(error.errno or 0, what) if is_shortage(error) else UnreachableError(f"{what}: {reason}")


def _unanswered(prompt: events.Prompt, asked: bool) -> ConfigError:
    """``asked``: there was somebody, as the command line always has."""
    if prompt.kind in ("username", "password"):
        wanted = "a user and a password" if prompt.kind == "username" else "a password"
        instead = "give --auth-user-pass FILE, or set GINNEL_USERNAME and GINNEL_PASSWORD"
        return ConfigError(
            f"the server wants {wanted}, and nobody answered",
            option="auth-user-pass",
            instead=instead if asked else 'give connect() auth_user_pass=("alice", "her password"), or ask',
        )
    return ConfigError(
        f"the server asks {prompt.text!r}, and nobody answered", instead=None if asked else "give connect() ask"
    )


# Seconds that a silent server may take while there are others to try: less the first time, when one of a
# name's two families may lead nowhere. A lost first packet is sent again within them.
_PATIENCE, _FIRST_PATIENCE = 10.0, 3.0
_KEY_PASSWORDS = 3
# Seconds between looks at the file of revocation lists.
_REVOCATIONS = 10.0
_MOST_TOLD = 1000
# Seconds between looks at the count of compressed packets, at first and at last.
_COMPRESSED, _COMPRESSED_AT_LAST = 1.0, 300.0
# Addresses set aside for documentation (RFC 5737, RFC 3849): the way to them is the default route.
_ANYWHERE = ("192.0.2.1", "2001:db8::1")
# Seconds of sleep after which a tunnel without ping-restart is made anew.
_LONG_SLEEP = 60.0
# An attempt that takes less than so many seconds is a hasty one, and so many of each remote follow each other at once.
_HASTE, _HASTY = 1.0, 2
# How often each remote fails before the waiting grows, and how often it is doubled at most.
_PATIENT_ROUNDS, _MOST_DOUBLINGS = 4, 15
# One forged or damaged packet can end TLS where nothing wraps it; this many in a row are no accident.
_PROTOCOL_FAILURES = 2
