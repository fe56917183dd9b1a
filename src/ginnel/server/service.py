"""The server: listeners, an `Endpoint` on a data plane, clients with their addresses, a stack at the inner end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from ginnel.errors import AuthError, GinnelError
from ginnel.openvpn import events
from ginnel.openvpn.commands import REPORTS, carry_out
from ginnel.openvpn.endpoint import Endpoint, Limits
from ginnel.openvpn.server import ServerPolicy, ServerSettings, Verdict
from ginnel.openvpn.strangers import locks, origin
from ginnel.openvpn.tls import TlsContext, TlsSettings
from ginnel.openvpn.tls_crypt_v2 import Metadata, ServerKey, TlsCryptV2Server
from ginnel.server.admission import Admission
from ginnel.server.clients import Client, Clients
from ginnel.server.config import Listen, ServerConfig
from ginnel.server.farewells import Farewells
from ginnel.server.inner import Inner, UserSpace
from ginnel.server.journal import Rarely, RarelyEach, tell
from ginnel.server.listeners import Listeners
from ginnel.server.pool import Pool
from ginnel.server.records import Store
from ginnel.stack import Stack
from ginnel.threads import for_handshakes

log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")


class Server:
    """A running server: an asynchronous context manager, made and used in one event loop.

    ``inner`` is where clients' packets come out, a stack in user space with None. ``stack`` is at the server's
    inner address; what runs on it is reached by clients alone. ``scratch`` is where programs that it asks find
    their files, a folder that is made there when it is needed.
    """

    def __init__(
        self,
        store: Store,
        config: ServerConfig | None = None,
        inner: Inner | None = None,
        *,
        scratch: Path | None = None,
    ) -> None:
        self.config = config or ServerConfig()
        self._inner = inner
        self._scratch = scratch
        self.store = store
        self.started = time.time()
        self._exit = contextlib.AsyncExitStack()
        self._clients = Clients()
        self._policies: dict[int, ServerPolicy] = {}
        self._left: set[int] = set()
        # Of sessions that are over, by the user's name.
        self._traffic: dict[str, tuple[int, int]] = {}
        self._timer: asyncio.TimerHandle | None = None
        # Events that were fetched and not taken yet, and when they will be.
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._next_turn: asyncio.Handle | None = None
        self._computing: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Whoever has a client's file can make sessions fail, and a store fails each time that it is asked.
        self._failed = Rarely("failed", most=30)
        self._store_failed = Rarely("store_failed", level=logging.ERROR)
        # Each user can come and go, roam and talk as it likes.
        self._connected = RarelyEach("connected", most=MOST_SESSIONS_TOLD)
        self._disconnected = RarelyEach("disconnected", most=MOST_SESSIONS_TOLD)
        self._moved = RarelyEach("moved", most=MOST_TOLD)
        self._notice = RarelyEach("notice", most=MOST_TOLD)
        hook = self.config.disconnected
        self._farewells = None if hook is None else Farewells(hook)
        self._turned_away = {what: Rarely("turned_away") for what in TURNED_AWAY}
        self._empty = asyncio.Event()
        self._closing = False

    # Public.

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Asks the clients to connect again, waits a moment until they know, has the hook `disconnected` run for
        them, and ends. Idempotent."""
        if not self._closing:
            self._closing = True
            await self._dismiss()
            if self._farewells is not None:
                await self._farewells.aclose(LAST_HOOKS)
            await asyncio.to_thread(self.store.settle)
        await self._exit.aclose()

    @property
    def stack(self) -> Stack:
        """LocalProtocolError before the start, and where the kernel has the inner address."""
        return self._inside.stack

    @property
    def places(self) -> list[Listen]:
        """Where it listens, with the ports that the system chose."""
        return list(self._listeners.places)

    @property
    def pool(self) -> Pool:
        """The inner addresses, the server's own among them."""
        return self._admission.pool

    @property
    def clients(self) -> list[Client]:
        """Those whose tunnel is open, and who were not told to go."""
        return [client for client in self._clients.values() if client.is_inside]

    def count(self) -> None:
        """Brings the clients' counters up to this moment; without, they are looked at every few seconds."""
        for client in self.clients:
            self._count(client.peer)

    def traffic(self) -> dict[str, tuple[int, int]]:
        """The bytes from and to each user since the start, by name, of all sessions, as of `count`."""
        counted = dict(self._traffic)
        for client in self._clients.values():
            if client.session is None:
                continue
            rx, tx = counted.get(client.name, (0, 0))
            counted[client.name] = rx + client.rx, tx + client.tx
        return counted

    def kick(self, name: str, reason: str = "ended by the administrator") -> int:
        """Ends a user's sessions, and their data at once; the number of them. Clients are asked to connect again, and
        who may does."""
        now = self._loop.time()
        clients = self._clients.named(name)
        for client in clients:
            tell("kicked", name=client.name, remote=client.remote, reason=reason)
            session = self._endpoint.session(client.peer)
            if session is not None:
                client.leaving = True
                session.cut()
                self._policies[client.peer].restart(now, reason)
                self._endpoint.touch(client.peer, now)
        self._advance()
        return len(clients)

    def look(self) -> None:
        """Ends the sessions of those who were revoked: at once, and not when the store is looked at next."""
        self._expel_revoked()

    def change(self, config: ServerConfig) -> tuple[int, int]:
        """Takes what is pushed (``routes``, ``redirect_gateway``, ``dns``, ``push``) from another configuration.

        How many clients have it now, by PUSH_UPDATE, and how many will when they connect again. What a
        ``connected`` hook added for one of them is not sent again.
        """
        changes = {name: getattr(config, name) for name in ("routes", "redirect_gateway", "dns", "push")}
        self.config = replace(self.config, **changes)
        self._admission.use(self.config)
        done = 0
        for client in self.clients:
            done += self._policies[client.peer].update(self._admission.options(client))
            self._endpoint.touch(client.peer, self._loop.time())
        self._advance()
        return done, len(self.clients) - done

    def statistics(self) -> dict[str, Any]:
        """What `ginnel.openvpn.endpoint` and the data plane counted since the start."""
        hooks_lost = 0 if self._farewells is None else self._farewells.lost
        return {
            "endpoint": {**self._endpoint.statistics(), "disconnected_hooks_lost": hooks_lost},
            "plane": self._plane.statistics(),
            "egress": self._inside.statistics(),
        }

    # Start and end.

    async def _start(self) -> None:
        config = self.config
        self._loop = asyncio.get_running_loop()
        self._inside = self._inner or UserSpace(config)
        self._plane = self._inside.plane
        self._exit.push_async_callback(self._inside.aclose)
        self._plane.set_relaying(config.client_to_client)
        # The endpoint counts exactly, as clients that prove their address don't count; this is what it has time for.
        most, period = config.connect_freq_initial
        self._plane.limit_strangers(STRANGERS * most, period)
        self._settings = _settings(config, self.store)
        if (threads := for_handshakes()) > 0:
            self._computing = ThreadPoolExecutor(threads, "handshakes")
            self._settings = replace(self._settings, elsewhere=True)
        wrap = self._settings.wrap
        if isinstance(wrap, TlsCryptV2Server) and wrap.verify is None:
            self._settings = replace(self._settings, wrap=replace(wrap, verify=self._may_knock))
        self._plane.guard_strangers(locks(self._settings.wrap))
        self._listeners = Listeners(self._plane, config.listen, patience=config.hand_window)
        self._exit.callback(self._listeners.close)
        self._admission = Admission(
            config,
            self.store,
            self._clients,
            scratch=self._scratch,
            is_tcp=self._listeners.is_tcp,
            displace=self._displace,
            count=self._count,
            decide=self._decide,
            inform=lambda peer, text: self._policies[peer].tell(text),
        )
        await self._inside.open(self._admission.pool, self._address_of, [place.port for place in self.places])
        self._endpoint = Endpoint(
            self._settings,
            self._make_policy,
            random=os.urandom,
            unix_time=time.time(),
            now=self._loop.time(),
            limits=Limits(
                # Who is too many is told so: that takes a session, too.
                max_clients=config.max_clients + TOLD_FULL,
                connect_freq=config.connect_freq,
                connect_freq_initial=config.connect_freq_initial,
            ),
            proven=lambda path: self._listeners.is_tcp(path[0]),
            turned_away=self._tell_turned_away,
        )
        self._loop.add_reader(self._plane.fileno(), self._wake)
        self._exit.callback(self._loop.remove_reader, self._plane.fileno())
        self._exit.push_async_callback(self._end_tasks)
        self._spawn(self._watch())
        self.store.set_listeners([str(place) for place in self.places], config.public)
        self.store.set_inner(self.pool)

    def _address_of(self, name: str) -> str | None:
        return next((client.lease.text for client in self._clients.named(name) if client.is_inside), None)

    async def _dismiss(self) -> None:
        self._listeners.close()
        self._endpoint.end_admission()
        now = self._loop.time()
        for peer, session in list(self._endpoint.sessions.items()):
            if session.tunnel is None:
                session.finish(None, retry=True)
            else:
                self._policies[peer].restart(now)
            self._endpoint.touch(peer, now)
        self._advance()
        if self._endpoint.sessions:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), FAREWELL)
        for session in self._endpoint.sessions.values():
            session.finish(None, retry=True)
        for peer in list(self._endpoint.sessions):
            self._endpoint.touch(peer, now)
        self._advance()

    async def _end_tasks(self) -> None:
        if self._computing is not None:
            await asyncio.to_thread(self._computing.shutdown, cancel_futures=True)
        for handle in (self._timer, self._next_turn):
            if handle is not None:
                handle.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Packets and timers.

    def _wake(self) -> None:
        if not self._waiting:
            self._waiting.extend(self._plane.events())
            self._receive()

    def _receive(self) -> None:
        """Takes events for a moment, and the rest when others on this thread have had a turn: whoever is inside and
        opens a connection does not wait until all who come have had their handshakes."""
        now = self._loop.time()
        until = now + TURN
        while self._waiting and now < until:
            kind, *fields = self._waiting.popleft()
            now = self._loop.time()
            if kind == "control":
                self._endpoint.receive_datagram(fields[0], fields[1], now)
                continue
            report = REPORTS[kind](*fields)
            self._endpoint.data_event(report, now)
            if isinstance(report, events.PathClosed):
                self._listeners.forget(report.path[0])
            elif isinstance(report, events.PeerFloat) and (client := self._clients.get(report.peer)) is not None:
                was, client.path = client.remote, report.path
                self._moved.tell(client.name, name=client.name, remote=client.remote, was=was)
        self._advance()
        self._next_turn = self._loop.call_soon(self._receive) if self._waiting else None

    def _fire(self) -> None:
        self._timer = None
        self._endpoint.handle_timer(self._loop.time())
        self._advance()

    def _advance(self) -> None:
        # A client that reads that it is in may send at once: its keys are there before it is told.
        while (entry := self._endpoint.next_event()) is not None:
            self._follow(*entry)
        for datagram, path in self._endpoint.datagrams_to_send(self._loop.time()):
            self._plane.send_control(datagram, path)
        if self._left:
            # A client may have begun anew on the connection of the session that ended.
            for number in self._left - {session.path[0] for session in self._endpoint.sessions.values()}:
                self._listeners.forget(number)
            self._left.clear()
        at = self._endpoint.get_timer()
        # One that is too early does no harm, and each packet puts them off.
        if at is not None and (self._timer is None or at < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(at, self._fire)
        if self._closing and not self._endpoint.sessions:
            self._empty.set()

    def _follow(self, peer: int, event: events.Event) -> None:
        """Carries out what a session asks for, and takes its news."""
        match event:
            case events.Compute(run):
                self._compute(peer, run)
            case events.NewPeer():
                carry_out(self._plane, event)
                self._lead_to(self._clients[peer])
            case events.DelPeer():
                self._count(peer)
                carry_out(self._plane, event)
                # Now, and not when it has heard: its address may be another's by then.
                self._inside.forget(self._clients[peer])
                self._lead_back(self._clients[peer])
            case events.Established():
                self._welcome(self._clients[peer], event)
            case events.Closed(error):
                self._bid_farewell(peer, error)
            case events.Notice(text):
                who = self._who(peer)
                self._notice.tell(who.get("name", origin(self._policies[peer].path[1])), **who, text=text)
            case events.Rekeyed(key_id):
                tell("rekeyed", level=logging.DEBUG, **self._who(peer), key_id=key_id)
            case _:
                report = carry_out(self._plane, event)
                if report is not None:
                    self._endpoint.data_event(report, self._loop.time())

    def _compute(self, peer: int, run: Callable[[], None]) -> None:
        """Has a thread of the pool do it; OpenSSL lets go of the interpreter while it computes."""
        session = self._endpoint.session(peer)
        if self._computing is None or session is None:
            return

        def computed() -> None:
            self._endpoint.computed(peer, session, self._loop.time())
            self._advance()

        asked = self._computing.submit(run)
        asked.add_done_callback(lambda _: self._loop.call_soon_threadsafe(computed))

    # Clients.

    def _make_policy(self, *, peer: int, path: events.Path, unix_time: float) -> ServerPolicy:
        settings = replace(self._settings, tcp=True) if self._listeners.is_tcp(path[0]) else self._settings
        policy = ServerPolicy(settings, self._admission.gate, unix_time=unix_time, peer=peer, peer_id=peer)
        self._policies[peer] = policy
        self._listeners.settle(path[0])
        return policy

    def _tell_turned_away(self, what: str, path: events.Path) -> None:
        self._turned_away[what].tell(remote=f"{path[1]}:{path[2]}", reason=TURNED_AWAY[what])

    def _may_knock(self, metadata: Metadata) -> bool:
        """Who was revoked opens no session any longer: the key of her file says that it is hers."""
        name = metadata.user
        user = None if name is None else self._stored(None, self.store.user, name)
        if user is not None and user.revoked:
            self._turned_away["revoked"].tell(name=name, reason=TURNED_AWAY["revoked"])
            return False
        return True

    def _decide(self, peer: int, verdict: Verdict) -> None:
        now = self._loop.time()
        try:
            self._policies[peer].decide(verdict, now)
        except GinnelError as error:
            session = self._endpoint.session(peer)
            if session is not None:
                session.finish(error, retry=False)
        self._endpoint.touch(peer, now)
        self._advance()

    def _displace(self, name: str, newcomer: int) -> None:
        now = self._loop.time()
        for client in self._clients.named(name):
            peer = client.peer
            session = self._endpoint.session(peer)
            if peer == newcomer or session is None or client.leaving:
                continue
            if session.tunnel is None or client.path == self._clients[newcomer].path:
                session.finish(GinnelError(ANEW), retry=False)
            else:
                # HALT, since who is told to come again, or nothing, comes again, and throws the newcomer out.
                remote = self._clients[newcomer].remote
                client.leaving = True
                session.cut()
                self._policies[peer].halt(now, f"{ANEW}, from {remote}; {EACH_ITS_OWN}")
            self._endpoint.touch(peer, now)

    def _expel(self, peer: int, reason: str) -> None:
        """Tells a client to go. Its data stops at once, whether it hears that or not."""
        now = self._loop.time()
        if self._endpoint.session(peer) is not None:
            self._policies[peer].expel(now, reason)
            self._endpoint.touch(peer, now)

    def _lead_to(self, client: Client) -> None:
        own = [f"{client.lease.text}/32"]
        if client.lease.text6 is not None:
            own.append(f"{client.lease.text6}/128")
        inner = [*own, *client.routes]
        self._plane.set_routes(client.peer, inner, inner)
        self._inside.lead_to(client)

    def _lead_back(self, gone: Client) -> None:
        """Networks behind a user with several sessions are reached through the latest, and after it through another."""
        for client in self._clients.named(gone.name) if gone.routes else ():
            if client.is_inside and client.peer != gone.peer:
                self._lead_to(client)

    def _welcome(self, client: Client, news: events.Established) -> None:
        client.cipher, client.tls, client.since = news.cipher, news.tls, time.time()
        client.session = self._stored(-1, self.store.begin_session, client.name, client.remote)
        self._connected.tell(
            client.name,
            name=client.name,
            remote=client.remote,
            transport=client.transport,
            address=client.lease.text,
            address6=client.lease.text6,
            cipher=client.cipher,
            tls=client.tls,
            version=client.version,
        )

    def _bid_farewell(self, peer: int, error: GinnelError | None) -> None:
        reason = "the server ended the session" if error is None else str(error)
        policy = self._policies.pop(peer)
        client = self._admission.forget(peer)
        if client is None or client.session is None:
            _, host, port = policy.path
            name = None if client is None else client.name
            # A login that is refused has had its line.
            if not isinstance(error, AuthError):
                self._failed.tell(name=name, remote=f"{host}:{port}", reason=reason)
        else:
            told = {"name": client.name, "remote": client.remote, "rx": client.rx, "tx": client.tx, "reason": reason}
            self._disconnected.tell(client.name, **told)
            session = client.session
            rx, tx = self._traffic.get(client.name, (0, 0))
            self._traffic[client.name] = rx + client.rx, tx + client.tx
            self._stored(None, self.store.account, session, client.rx, client.tx)
            self._stored(None, self.store.end_session, session, reason)
            if self._farewells is not None:
                self._farewells.add(client, reason)
        self._left.add(policy.path[0])

    def _count(self, peer: int) -> None:
        client = self._clients.get(peer)
        if client is not None:
            with contextlib.suppress(ValueError):
                client.count(self._plane.peer_statistics(peer), time.monotonic())

    def _who(self, peer: int) -> dict[str, Any]:
        client, session = self._clients.get(peer), self._endpoint.session(peer)
        if client is not None:
            return {"name": client.name, "remote": client.remote}
        return {} if session is None else {"remote": f"{session.path[1]}:{session.path[2]}"}

    # What is looked at again and again.

    async def _watch(self) -> None:
        """Revocations twice a second, byte counts every few seconds."""
        version, counted_at = self._stored(0, self.store.version), self._loop.time()
        while True:
            await asyncio.sleep(POLL)
            try:
                if (latest := self._stored(version, self.store.version)) != version and self._expel_revoked():
                    version = latest
                if (now := self._loop.time()) >= counted_at + ACCOUNTING:
                    counted_at = now
                    self._account()
            except Exception:
                # A fault of ours in one look must not be the last one: whoever is revoked later would stay.
                log.exception("the watch over revocations failed; it goes on")

    def _expel_revoked(self) -> bool:
        """False where the store would not say of everybody: it is to be asked again."""
        known = True
        for peer, client in list(self._clients.items()):
            reason = self._stored(UNKNOWN, self._revocation, client)
            known = known and reason is not UNKNOWN
            if reason is not None and reason is not UNKNOWN:
                tell("expelled", level=logging.WARNING, name=client.name, remote=client.remote, reason=reason)
                self._expel(peer, reason)
        self._advance()
        return known

    def _revocation(self, client: Client) -> str | None:
        """Why a client may stay no longer."""
        user, serial = self.store.user(client.name), client.serial
        if user is None or user.revoked:
            return "the user is revoked"
        is_revoked = serial is not None and self.store.is_revoked(serial)
        return "the certificate was replaced by a new one" if is_revoked else None

    def _account(self) -> None:
        self.count()
        for client in self.clients:
            if (session := client.session) is not None:
                self._stored(None, self.store.account, session, client.rx, client.tx)

    def _stored(self, otherwise: T, action: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """A store that fails (a full disk, a lock) costs nobody his connection."""
        try:
            return action(*arguments, **named)
        except Exception as error:
            self._store_failed.tell(reason=str(error))
            return otherwise

    def _spawn(self, steps: Any) -> None:
        task = self._loop.create_task(steps)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a part of the server ended", exc_info=error)


def _settings(config: ServerConfig, store: Store) -> ServerSettings:
    """Revocation is looked up at each login, with a reason for the client: TLS is not given the list."""
    identity = store.identity
    ping, ping_restart = config.keepalive
    return ServerSettings(
        tls=TlsContext(
            TlsSettings(
                ca=identity.ca,
                cert=identity.cert,
                key=identity.key,
                remote_cert_tls="client" if config.client_certificate else None,
                client_certificate=config.client_certificate,
            ),
            server=True,
        ),
        wrap=config.wrap or TlsCryptV2Server(ServerKey.parse(identity.tls_crypt_v2)),
        hand_window=config.hand_window,
        reneg_sec=config.reneg_sec,
        data_ciphers=config.data_ciphers,
        auth=config.auth,
        tun_mtu=config.tun_mtu,
        mssfix=config.mssfix,
        ping=ping,
        ping_restart=ping_restart,
    )


# Clients that have a valid wrap and get no session: the operator should know.
TURNED_AWAY = {
    "no_early_negotiation": "a client before OpenVPN 2.6 can't prove its address with tls-crypt-v2",
    "full": "too many are on their way in, or are told that the server is full",
    "over_connect_freq": "more clients came than connect_freq lets in",
    "revoked": "the user is revoked",
}
# What who has been replaced by a newcomer is told.
ANEW = "the user logged in anew"
EACH_ITS_OWN = "give each machine a user of its own"
# Sessions beyond max_clients.
TOLD_FULL = 32
# What the store could not say.
UNKNOWN = "unknown"
# So many times the answers that are allowed are looked at.
STRANGERS = 10
# Seconds for which events are taken at a time: many packets of strangers, or one step of TLS.
TURN = 0.0001
# Seconds between two looks at the store, and between two at the counters.
POLL = 0.5
ACCOUNTING = 5.0
# Seconds in which clients are told that the server ends.
FAREWELL = 1.5
# Seconds within which the hook has to end for those who were there at the end.
LAST_HOOKS = 10.0
# Lines a minute for each user: about sessions, and about all else.
MOST_SESSIONS_TOLD = 60
MOST_TOLD = 10
