"""Where to try next, and a socket on the way there."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Self

from ginnel.openvpn.config import HttpProxy, Remote, SocksProxy
from ginnel.openvpn.events import Advance
from ginnel.socks5 import datagram_header
from ginnel.transports import http_proxy, socks
from ginnel.transports.dial import Address, Local, dial, resolve, source_address, udp_socket

ProxyLogin = Callable[[HttpProxy], Awaitable[tuple[str, str] | None]]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to a remote. Over UDP to one address; where there is a connection to be made ``addresses`` race,
    and with a proxy they are its own. ``alone``: there is no other. ``first``: its like were not tried before."""

    remote: Remote
    addresses: tuple[Address, ...]
    alone: bool
    first: bool


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A remote, or its proxy, whose name has no address now."""

    remote: Remote
    host: str
    error: OSError


class Outside:
    """What is done before a server is dialed. This one is for where nothing is in the way."""

    async def resolve(self, host: str, port: int, family: socket.AddressFamily) -> list[Address]:
        """As `dial.resolve`."""
        return await resolve(host, port, family)

    def source(self, address: str) -> str | None:
        """As `dial.source_address`."""
        return source_address(address)

    async def open(self, way: Way) -> None:
        """Raises UnreachableError where the way can't be opened now, DeviceError where none can."""

    async def relayed(self, relay: str) -> None:
        """Before a socket is made for datagrams to this address of a proxy's. Raises DeviceError."""

    async def let_out(self, sock: socket.socket) -> None:
        """Before the first datagram leaves by a socket for which no remote says where to. Raises DeviceError."""


class Ways:
    """The remotes in their order, and the addresses of each. Names are resolved anew each time round: a
    server may have moved."""

    def __init__(self, remotes: tuple[Remote, ...], outside: Outside, *, shuffled: bool) -> None:
        self._remotes = list(remotes)
        self._outside = outside
        if shuffled:
            random.shuffle(self._remotes)
        self._at = -1
        self._left: list[Way] = []
        self._current: Way | Unresolved | None = None
        self._rounds = 0
        self.resolving: str | None = None
        """The name that is asked for now."""

    async def next(self, advance: Advance) -> Way | Unresolved:
        if advance == "stay" and isinstance(self._current, Way):
            return self._current
        if advance == "remote":
            self._left.clear()
        if not self._left:
            self._at += 1
            if self._at == len(self._remotes):
                self._at = 0
                self._rounds += 1
            found = await self._resolve(self._remotes[self._at])
            if isinstance(found, Unresolved):
                self._current = found
                return found
            self._left = found
        self._current = self._left.pop(0)
        return self._current

    @property
    def at_last_address(self) -> bool:
        """No other address of the current remote is left."""
        return not self._left

    async def _resolve(self, remote: Remote) -> list[Way] | Unresolved:
        if remote.local is not None and not is_address(remote.local):
            try:
                # The machine's own names are its own resolver's to know, whatever is outside.
                (own, _), *_ = await resolve(remote.local, 0, _family_to(remote))
            except OSError as error:
                return Unresolved(remote, remote.local, error)
            remote = replace(remote, local=own)
        host, port, family = where(remote)
        self.resolving = host
        try:
            addresses = await self._outside.resolve(host, port, family)
        except OSError as error:
            return Unresolved(remote, host, error)
        finally:
            self.resolving = None
        races = remote.tcp or remote.proxy is not None
        groups = [tuple(addresses)] if races else [(address,) for address in addresses]
        alone = len(self._remotes) == len(groups) == 1
        return [Way(remote, group, alone, self._rounds == 0) for group in groups]


@dataclass(frozen=True, slots=True)
class Opened:
    """A socket to a remote, or to a relay of datagrams for it, at ``address``.

    ``header`` stands before each datagram there and back. ``association`` is the connection that the relay lasts
    as long as; nothing comes through it but its end.
    """

    sock: socket.socket
    address: Address
    header: bytes = b""
    association: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """What has not been given away. Idempotent."""
        self.sock.close()
        if self.association is not None:
            self.association.close()


async def open_way(way: Way, proxy_login: ProxyLogin, outside: Outside, *, floats: bool) -> Opened:
    """``floats``: datagrams may come from anywhere. Raises OSError, what ``outside`` does, and a proxy's refusals as
    the proxies' modules do."""
    remote = way.remote
    local = Local(remote.local, remote.local_port)
    match remote.proxy:
        case None if remote.tcp:
            return _connected(await dial(list(way.addresses), local))
        case None:
            (address,) = way.addresses
            opened = Opened(udp_socket(address, local, connected=not floats), address)
            return await _let_out(opened, outside) if floats else opened
        case HttpProxy() as proxy:
            return _connected(
                await http_proxy.connect(
                    lambda: dial(list(way.addresses), local),
                    proxy,
                    remote.host,
                    remote.port,
                    functools.partial(proxy_login, proxy),
                )
            )
        case SocksProxy() as proxy:
            sock = await dial(list(way.addresses), local if remote.tcp else None)
            try:
                if remote.tcp:
                    await socks.connect(sock, proxy, remote.host, remote.port)
                    return _connected(sock)
                relay = await socks.associate(sock, proxy)
                await outside.relayed(relay[0])
                header = datagram_header(remote.host, remote.port)
                return await _let_out(Opened(udp_socket(relay, local), relay, header, sock), outside)
            except BaseException:
                sock.close()
                raise


async def _let_out(opened: Opened, outside: Outside) -> Opened:
    try:
        await outside.let_out(opened.sock)
    except BaseException:
        opened.close()
        raise
    return opened


def _connected(sock: socket.socket) -> Opened:
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        # It has ended already.
        sock.close()
        raise
    return Opened(sock, (host, port))


def where(remote: Remote) -> tuple[str, int, socket.AddressFamily]:
    """The name, the port and the family of where packets go first: the server, or the proxy before it."""
    host, port, family = remote.host, remote.port, _FAMILIES[remote.proto[3:]]
    if remote.proxy is not None:
        host, port, family = remote.proxy.host, remote.proxy.port, socket.AF_UNSPEC
    if remote.local is not None and is_address(remote.local) and (remote.tcp or remote.proxy is None):
        # From an address of one family only its own can be reached.
        family = socket.AF_INET6 if ":" in remote.local else socket.AF_INET
    return host, port, family


def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _family_to(remote: Remote) -> socket.AddressFamily:
    """The one that is known before anything is resolved."""
    host, _, family = where(remote)
    if is_address(host):
        return socket.AF_INET6 if ":" in host else socket.AF_INET
    return family


def describe(remote: Remote) -> str:
    """The remote, as part of a sentence."""
    text = f"{remote.host} port {remote.port} ({remote.proto[:3].upper()})"
    return f"{text} through the proxy {remote.proxy.host}:{remote.proxy.port}" if remote.proxy else text


async def pause(seconds: float, nudge: asyncio.Event) -> None:
    """Waits so long, or until nudged."""
    nudge.clear()
    with contextlib.suppress(TimeoutError):
        # Not wait_for, which loses a cancellation that comes together with the nudge.
        async with asyncio.timeout(seconds):
            await nudge.wait()


_FAMILIES = {"": socket.AF_UNSPEC, "4": socket.AF_INET, "6": socket.AF_INET6}
