"""Who is let in: the certificate's name, the password or its token, and whom the configuration asks besides.

What can be told at once is; a password, a program and a hook take their time on the side, and the client waits.
Everyone who is asked must accept, and what goes wrong with them is a refusal. What goes wrong here (a store that
fails, no descriptor for a program) is none for who is connected already: only newcomers wait until it is over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ginnel.errors import AuthError, GinnelError
from ginnel.openvpn.auth_token import EXPIRED, AuthTokens, is_token, session_of
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.push_values import Ifconfig, IfconfigIpv6, Route, RouteIpv6
from ginnel.openvpn.server import ClientLogin, Refusal, Verdict
from ginnel.openvpn.strangers import origin
from ginnel.server.clients import Client, Clients
from ginnel.server.config import ServerConfig
from ginnel.server.guesses import Guesses
from ginnel.server.journal import RarelyEach
from ginnel.server.pool import Lease, Pool
from ginnel.server.program import UndecidedError, ask_program
from ginnel.server.records import Store, User
from ginnel.server.values import parse_push

P = ParamSpec("P")
T = TypeVar("T")


class Admission:
    """``clients`` are all who were let in, by peer; who is let in is put there. ``displace`` ends the other sessions
    of a user, ``count`` brings a client's counters up to date, ``decide`` takes what was decided later, and
    ``inform`` words for a client that waits."""

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        clients: Clients,
        *,
        scratch: Path | None = None,
        is_tcp: Callable[[int], bool],
        displace: Callable[[str, int], None],
        count: Callable[[int], None],
        decide: Callable[[int, Verdict], None],
        inform: Callable[[int, str], None],
    ) -> None:
        self._config = config
        self._store = store
        self._clients = clients
        self._pool = Pool(config.network, config.network6, config.topology)
        self._scratch = scratch
        self._is_tcp = is_tcp
        self._displace = displace
        self._count = count
        self._decide = decide
        self._inform = inform
        self._waiting: dict[int, asyncio.Task[None]] = {}
        # Whose new address is not on the disk yet.
        self._noted: set[int] = set()
        # Each takes 64 MiB while it lasts.
        self._hashing = asyncio.Semaphore(MOST_HASHING)
        # What everyone is pushed, by whether it is over TCP.
        self._common: dict[bool, PushReply] = {}
        # When the token that each session showed last was made: those before it are used up.
        self._shown = OrderedDict(store.shown_tokens())
        self._guesses = Guesses()
        self._refused = RarelyEach("refused", level=logging.WARNING, most=MOST_TOLD)
        self._nobody_decides = RarelyEach("undecided", level=logging.ERROR, most=MOST_TOLD)
        # The wall clock may be set while we run: tokens go by the time since the start.
        self._clock = time.time() - time.monotonic()
        self._tokens: AuthTokens | None = None
        if config.token_lifetime is not None:
            self._tokens = AuthTokens(
                store.identity.token_key, os.urandom, config.token_lifetime, int(config.reneg_sec) or 3600
            )

    @property
    def pool(self) -> Pool:
        return self._pool

    def gate(self, login: ClientLogin) -> Verdict | None:
        """See `ginnel.openvpn.server.Gate`."""
        try:
            user = self._identify(login)
        except Exception as error:
            return self._undecided(login, error)
        if isinstance(user, Refusal):
            if self._config.client_certificate or login.peer in self._waiting:
                return self._refuse(login, user.reason)
            # Whoever has no certificate is to learn neither from words nor from the time who is a user.
            self._later(login, self._reject(login, user))
            return None
        if login.again and user.name != self._clients[login.peer].name:
            return self._refuse(login, "another user in a renegotiation")
        token: str | None = None
        asked = user.has_password or not self._config.client_certificate or self._asks_others
        if asked and self._tokens is not None and is_token(login.password):
            token = self._tokens.renew(login.password, _subject(login, user), self._clock + time.monotonic())
            if token is None:
                reason = "the token is not valid or no longer, or the password was changed since"
                return self._refuse(login, reason, told=EXPIRED)
            if not self._is_latest(login.password):
                return self._refuse(login, "the token was used before, and has been replaced", told=EXPIRED)
            asked = False
        if not asked and (self._config.connected is None or login.again):
            verdict = self._let_in(login, user, token)
            if login.peer not in self._noted or isinstance(verdict, Refusal):
                return self._take_over(login, verdict)
            self._later(login, self._conclude(login, verdict))
            return None
        if login.peer in self._waiting:
            return self._refuse(login, "another login is being looked at")
        self._later(login, self._settle(login, user, token, asked=asked))
        return None

    def use(self, config: ServerConfig) -> None:
        """Pushes what this says from now on."""
        self._config = config
        self._common.clear()

    def options(self, client: Client) -> PushReply:
        """What a client is pushed by the configuration."""
        return self._options(client.lease, tcp=client.transport == "tcp")

    def forget(self, peer: int) -> Client | None:
        """The session is over: whoever is asked is asked no longer, and the addresses are free."""
        if (task := self._waiting.pop(peer, None)) is not None:
            task.cancel()
        self._noted.discard(peer)
        client = self._clients.remove(peer)
        if client is not None:
            self._pool.give_back(peer, client.lease)
            # Of a newcomer that was refused after all: whom it was to replace has them still.
            for other in self._clients.named(client.name):
                if other.lease == client.lease:
                    self._pool.hold(other.peer, other.lease)
        return client

    @property
    def _asks_others(self) -> bool:
        return self._config.authenticate is not None or bool(self._config.auth_program)

    def _identify(self, login: ClientLogin) -> User | Refusal:
        name = login.name if self._config.client_certificate else login.username
        user = self._store.user(name)
        if user is None:
            return Refusal("unknown user")
        if login.serial is not None and self._store.is_revoked(login.serial):
            what = "is revoked" if user.revoked else "was replaced by a new one"
            return Refusal(f"the certificate {what}")
        if user.revoked:
            return Refusal("the user is revoked")
        if user.has_password and login.username != user.name:
            return Refusal(WRONG)
        return user

    def _undecided(self, login: ClientLogin, error: Exception) -> Verdict:
        """For our sake: who is connected stays so, and others are to try again."""
        if login.again:
            self._tell(self._nobody_decides, login, f"{error}; the client stays connected")
            return PushReply()
        self._tell(self._nobody_decides, login, f"nobody can decide: {error}")
        return Refusal("try again later", BACKOFF)

    def _is_latest(self, token: str) -> bool:
        session, _, made = session_of(token)
        if made < self._shown.get(session, 0):
            return False
        self._shown[session] = made
        self._store.show_token(session, made)
        self._shown.move_to_end(session)
        while len(self._shown) > MAX_TOKENS:
            self._shown.popitem(last=False)
        return True

    def _elsewhere(self, user: User, login: ClientLogin) -> Client | None:
        """Where the user is logged in and alive. A client that begins anew at the same address replaces itself."""
        patience = 1.5 * self._config.keepalive[0]
        for client in self._clients.named(user.name):
            if client.is_inside and client.path[1] != login.path[1]:
                self._count(client.peer)
                if time.monotonic() - client.heard < patience:
                    return client
        return None

    def _later(self, login: ClientLogin, steps: Coroutine[Any, Any, None]) -> None:
        self._waiting[login.peer] = asyncio.get_running_loop().create_task(steps)

    async def _conclude(self, login: ClientLogin, verdict: Verdict) -> None:
        """Tells what was decided, when the client's address is on the disk: it counts on that. A disk that is slow or
        full holds nobody up."""
        if login.peer in self._noted and isinstance(verdict, PushReply):
            self._noted.remove(login.peer)
            await asyncio.to_thread(self._store.settle, NOTING)
        del self._waiting[login.peer]
        self._decide(login.peer, self._take_over(login, verdict))

    async def _settle(self, login: ClientLogin, user: User, token: str | None, *, asked: bool) -> None:
        """What takes its time."""
        try:
            if asked:
                await self._ask(login, user)
                # Who was revoked meanwhile is on nobody's list of those to throw out.
                found = _stored(self._identify, login)
                if isinstance(found, Refusal):
                    raise AuthError(found.reason, found.reason)
                if self._tokens is not None:
                    token = self._tokens.first(_subject(login, user), self._clock + time.monotonic())
            verdict = self._let_in(login, user, token)
            if self._config.connected is not None and isinstance(verdict, PushReply) and not login.again:
                more = await self._config.connected(self._clients[login.peer])
                verdict = parse_push([*verdict.options(), *(more or ())])
        except UndecidedError as error:
            verdict = self._undecided(login, error)
        except AuthError as error:
            verdict = self._refuse(login, str(error), told=error.reason)
        except GinnelError as error:
            verdict = self._refuse(login, str(error), told="")
        except Exception as error:
            # A hook is not ours: whatever it raises is never the server's end.
            log.exception("a hook failed")
            verdict = self._undecided(login, error)
        await self._conclude(login, verdict)

    async def _ask(self, login: ClientLogin, user: User) -> None:
        """The password, the program and the hook, in this order. Raises AuthError and UndecidedError."""
        wanted = user.has_password or not self._config.client_certificate
        if wanted and not await self._is_password(login, user.name, known=True):
            raise AuthError("the password is wrong", WRONG)
        if self._config.auth_program:
            await ask_program(
                self._config.auth_program,
                login,
                user.name,
                scratch=self._scratch,
                timeout=self._config.hand_window,
                tell=lambda text: self._inform(login.peer, text),
            )
        if self._config.authenticate is not None:
            answer = await self._config.authenticate(login)
            if answer is not None and answer is not True:
                # Who forgot to raise meant no.
                what = "False" if answer is False else f"a {type(answer).__name__}, and is to return None"
                raise AuthError(f"authenticate returned {what}")

    async def _is_password(self, login: ClientLogin, name: str, *, known: bool) -> bool:
        """Takes as long, and counts as much, for a name that is no user's (not ``known``). Raises AuthError and
        UndecidedError."""
        self._guesses.check(login, name, known=known)
        async with self._hashing:
            self._guesses.check(login, name, known=known)
            self._guesses.count(login, name, known=known)
            right = await asyncio.to_thread(_stored, self._store.check_password, name, login.password)
        if right and known:
            self._guesses.right(login, name)
        return right and known

    async def _reject(self, login: ClientLogin, refusal: Refusal) -> None:
        try:
            await self._is_password(login, login.username, known=False)
            verdict: Verdict = self._refuse(login, refusal.reason, told=WRONG)
        except UndecidedError as error:
            verdict = self._undecided(login, error)
        except AuthError as error:
            verdict = self._refuse(login, str(error), told=error.reason)
        await self._conclude(login, verdict)

    def _let_in(self, login: ClientLogin, user: User, token: str | None) -> Verdict:
        if login.again:
            return PushReply(auth_token=token)
        over: list[int] = []
        if not self._config.duplicate_cn:
            over = [client.peer for client in self._clients.named(user.name)]
        if len(self._clients) - len(over) >= self._config.max_clients:
            reason = f"the server is full: max_clients is {self._config.max_clients}"
            return self._refuse(login, reason, told="the server is full", backoff=BACKOFF)
        if not self._config.duplicate_cn:
            other = None if self._config.takeover else self._elsewhere(user, login)
            if other is not None:
                reason = f"{user.name} is logged in already, from {other.remote}"
                backoff = round(1.5 * self._config.keepalive[0])
                return self._refuse(login, reason, told="already logged in elsewhere", backoff=backoff)
        try:
            held, reserved = self._store.lease(user.name), self._store.fixed_addresses()
        except Exception as error:
            return self._undecided(login, error)
        lease = self._pool.take(login.peer, user.address, user.address6, held[0], reserved, over)
        if lease is None:
            reason, told = self._why_no_address(user)
            return self._refuse(login, reason, told=told, backoff=BACKOFF)
        if user.address is None and not self._config.duplicate_cn and held != (lease.address, lease.address6):
            self._store.set_lease(user.name, lease.address, lease.address6)
            self._noted.add(login.peer)
        client = Client(
            peer=login.peer,
            name=user.name,
            username=login.username,
            path=login.path,
            transport="tcp" if self._is_tcp(login.path[0]) else "udp",
            lease=lease,
            # One of the inner addresses would be taken from who has it.
            routes=tuple(route for route in user.routes if not self._pool.overlaps(ip_network(route))),
            serial=login.serial,
            peer_info=login.peer_info,
        )
        self._clients.add(client)
        return self._options(lease, token, tcp=self._is_tcp(login.path[0]))

    def _take_over(self, login: ClientLogin, verdict: Verdict) -> Verdict:
        """Only who is let in by everyone ends the user's other sessions."""
        if isinstance(verdict, PushReply) and not login.again and not self._config.duplicate_cn:
            self._displace(self._clients[login.peer].name, login.peer)
        return verdict

    def _why_no_address(self, user: User) -> tuple[str, str]:
        """For the log, and for the client."""
        fixed = [address for address in (user.address, user.address6) if address is not None]
        for other in self._clients.values():
            if other.address in fixed or other.address6 in fixed:
                reason = f"{other.name} has an address that is fixed for {user.name}, until that session ends"
                return reason, "another client still has the address that is fixed for this user"
        for address in fixed:
            if not self._pool.is_clients(address):
                own = self._pool.network if address.version == 4 else self._pool.network6
                reason = f"{address}, which is fixed for {user.name}, is none of {own}'s for clients"
                return reason, "the address that is fixed for this user is none of the server's"
        return f"no address is free for {user.name}", "no address is free"

    def _refuse(self, login: ClientLogin, reason: str, *, told: str | None = None, backoff: int = 0) -> Refusal:
        """Refused with a line in the log; the client is told the same, or what is better told to strangers."""
        self._tell(self._refused, login, reason)
        return Refusal(reason if told is None else told, backoff)

    def _tell(self, event: RarelyEach, login: ClientLogin, reason: str) -> None:
        """As often for each certificate, or for each place: whoever has none calls himself as he likes."""
        event.tell(
            login.name or origin(login.path[1]),
            name=login.name or None,
            username=login.username or None,
            remote=f"{login.path[1]}:{login.path[2]}",
            reason=reason,
        )

    def _options(self, lease: Lease, token: str | None = None, *, tcp: bool) -> PushReply:
        """What a client with these addresses is pushed."""
        pool = self._pool
        common = self._common.get(tcp)
        if common is None:
            common = self._common[tcp] = self._make_common(tcp=tcp)
        remote = pool.network.netmask if pool.topology == "subnet" else IPv4Address(int(lease.address) - 1)
        both: IfconfigIpv6 | None = common.ifconfig_ipv6
        if lease.address6 is not None and pool.network6 is not None and pool.address6 is not None:
            both = IfconfigIpv6(lease.address6, pool.network6.prefixlen, pool.address6)
        return replace(common, ifconfig=Ifconfig(lease.address, remote), ifconfig_ipv6=both, auth_token=token)

    def _make_common(self, *, tcp: bool) -> PushReply:
        config, pool = self._config, self._pool
        reply = parse_push(config.push)
        if pool.topology == "subnet":
            reply = replace(reply, topology="subnet", route_gateway=pool.address)
        else:
            # With net30 nobody else is on the link.
            own = Route(pool.network if config.client_to_client else IPv4Network(f"{pool.address}/32"))
            reply = replace(reply, topology="net30", routes=(own, *reply.routes))
        redirect = config.redirect_gateway if reply.redirect_gateway is None else reply.redirect_gateway
        own_dns = (pool.address,) if redirect is not None else ()
        ours = [Route(network) for network in config.routes if isinstance(network, IPv4Network)]
        ours6 = [RouteIpv6(network) for network in config.routes if isinstance(network, IPv6Network)]
        return replace(
            reply,
            routes=(*reply.routes, *ours),
            routes_ipv6=(*reply.routes_ipv6, *ours6),
            redirect_gateway=redirect,
            dhcp_dns=(*reply.dhcp_dns, *(own_dns if config.dns is None else config.dns)),
            tun_mtu=config.tun_mtu,
            explicit_exit_notify=None if tcp else 1,
        )


def _subject(login: ClientLogin, user: User) -> str:
    """Whom a token is for: one of before a change of the password is for somebody else, whatever the clocks say."""
    return f"{user.name}\0{login.username}\0{user.password_since!r}"


def _stored(ask: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What a store says. Raises UndecidedError where it fails."""
    try:
        return ask(*arguments, **named)
    except Exception as error:
        raise UndecidedError(str(error)) from error


log = logging.getLogger(__name__)
# Whoever guesses does not learn which of the two it was.
WRONG = "wrong user name or password"
# Passwords that are looked at at a time.
MOST_HASHING = 4
# Seconds that a client waits for its address to be written down.
NOTING = 0.5
# Seconds after which a client that was refused for our sake may try again.
BACKOFF = 30
MAX_TOKENS = 10_000
# Refused logins a minute that are told of each certificate or place.
MOST_TOLD = 20
