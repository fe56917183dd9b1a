"""The public face: a VPN connection with a network stack of its own, in user space.

The examples in this module are run by the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType
from typing import Any, Literal, NoReturn, Self

from ginnel._core import DataPlane
from ginnel.device import Capture, MemoryDevice
from ginnel.device.capture import File as CaptureFile
from ginnel.errors import ConfigError, GinnelError, LocalProtocolError, UnreachableError
from ginnel.gateways.local import Proxy
from ginnel.openvpn import aio
from ginnel.openvpn.aio import Ask, Client, Lost, Rose
from ginnel.openvpn.config import ClientConfig
from ginnel.openvpn.events import OpenUrl as OpenUrl
from ginnel.openvpn.events import Prompt as Prompt
from ginnel.openvpn.events import Reconfigured
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.push_values import NameServers, left_out, why_left_out
from ginnel.stack import DatagramSocket, Server, Stack
from ginnel.stack.sockets import ConnectedCallback
from ginnel.threads import for_one_peer
from ginnel.transports.ways import Outside

log = logging.getLogger("ginnel")


class State(StrEnum):
    """Where a `Vpn` is in its life."""

    CONNECTING = "connecting"
    UP = "up"
    RECONNECTING = "reconnecting"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Info:
    """What is known of a tunnel that is up.

    ``address`` and ``address6`` are our own with their prefix length (``10.8.0.2/24``), None without
    one. ``server`` is the server's address and port, ``proxy`` the proxy's before it, None without one; with a
    proxy both are as the file names them. ``transport`` is ``udp`` or ``tcp``, ``cipher`` that of the
    data channel, ``tls`` the version and suite of the control channel. ``handshake`` is the time in
    seconds from the first packet to the tunnel being up.
    """

    address: str | None
    address6: str | None
    server: str
    proxy: str | None
    transport: str
    cipher: str
    tls: str
    handshake: float


@dataclass(frozen=True, slots=True)
class Up:
    """The tunnel is up, at first or again."""

    info: Info


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The tunnel was lost, or an attempt to reach the server failed; the next follows in ``delay`` seconds."""

    error: GinnelError
    delay: float


@dataclass(frozen=True, slots=True)
class Down:
    """The connection is over: ``error`` says why, None when it was asked to end."""

    error: GinnelError | None


Change = Up | Reconnecting | OpenUrl | Down


def connect(
    config: str | os.PathLike[str] | ClientConfig,
    *,
    auth_user_pass: tuple[str, str] | None = None,
    ask: Ask | None = None,
    timeout: float | None = 30.0,
    budget: int = 64 << 20,
    capture: str | os.PathLike[str] | None = None,
) -> Vpn:
    """A connection to the OpenVPN server that an ``.ovpn`` file (or a configuration read before) names.

    ``auth_user_pass`` is the user and password, where the file leaves them out. ``ask`` is called with
    each `Prompt` (a password, a second factor) and returns the answer, None when there is nobody to ask.
    ``capture`` is a pcapng file to which every packet inside the tunnel is written.
    ``timeout`` bounds the first connection in seconds, what ``ask`` takes not counted; None is for as
    long as the file allows. ``budget`` is the memory in
    bytes that all streams of the connection share for their buffers.

    Use it with ``async with``: it is up inside the block, comes back by itself after the server was
    lost, and is gone after the block. Where no block fits (a notebook's cells), ``await`` it, and `Vpn.aclose` at last.

    >>> async with ginnel.connect("office.ovpn") as vpn:
    ...     reader, writer = await vpn.open_connection("wiki.office", 80)
    ...     writer.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
    ...     page = await reader.read()

    Raises ConfigError at once. Entering the block, or ``await``, raises UnreachableError, AuthError or
    RemoteProtocolError, each with one line that says what happened.
    """
    if not isinstance(config, ClientConfig):
        config = read_ovpn(config)
    return Vpn(config, auth_user_pass=auth_user_pass, ask=ask, timeout=timeout, budget=budget, capture=capture)


class Vpn:
    """A VPN connection: see `connect`."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        auth_user_pass: tuple[str, str] | None = None,
        ask: Ask | None = None,
        timeout: float | None = 30.0,
        budget: int = 64 << 20,
        capture: str | os.PathLike[str] | CaptureFile | None = None,
    ) -> None:
        if isinstance(auth_user_pass, str) or len(auth_user_pass or "12") != 2:
            raise ConfigError("auth_user_pass is a user and a password", instead='write ("alice", "her password")')
        self._config = config
        self._login = auth_user_pass
        self._ask = ask
        self._timeout = timeout
        self._budget = budget
        self._device: MemoryDevice | None = None
        self._capture_file = capture
        self._capture: Capture | None = None
        self._stack: Stack | None = None
        self._client: Client | None = None
        self._runner: asyncio.Task[None] | None = None
        self._state = State.CONNECTING
        self._info: Info | None = None
        self._fatal: GinnelError | None = None
        self._tun_mtu = config.tun_mtu
        self._outside = Outside()
        self._proxies: list[Proxy] = []
        self._changes: set[asyncio.Queue[Change]] = set()
        self._changed = asyncio.Event()
        self._told: set[str] = set()

    async def __aenter__(self) -> Self:
        if self._state in (State.UP, State.RECONNECTING):
            # It was awaited.
            return self
        try:
            await self._start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    def __enter__(self) -> NoReturn:
        raise TypeError("write 'async with'; in a program without asyncio: 'with ginnel.blocking.connect(…)'")

    def __exit__(self, *exc_info: object) -> None:
        """For `__enter__`."""

    def __repr__(self) -> str:
        where = f" {self._info.server}" if self._info is not None else ""
        return f"<Vpn{where} {self._state}>"

    @property
    def state(self) -> State:
        return self._state

    @property
    def info(self) -> Info:
        """What is known of the tunnel since it was last up. LocalProtocolError before it was."""
        if self._info is None:
            raise LocalProtocolError("the connection was never up; enter it with 'async with' first")
        return self._info

    @property
    def stack(self) -> Stack:
        """The network stack inside the tunnel. LocalProtocolError before the connection was entered,
        ConnectionAbortedError once it is over."""
        if self._stack is None:
            raise LocalProtocolError("the connection was never up; enter it with 'async with' first")
        if self._state is State.CLOSED:
            raise ConnectionAbortedError(errno.ECONNABORTED, "this connection is closed")
        return self._stack

    async def open_connection(
        self, host: str, port: int, *, timeout: float | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TCP connection through the tunnel, as `asyncio.open_connection` would give.

        A name is resolved by the servers that the VPN pushed, never by this machine's.
        Raises OSError as a socket would (ConnectionRefusedError, TimeoutError after ``timeout`` seconds, which are
        for the name too), socket.gaierror for a name that is not known, ConnectionAbortedError after the block.
        """
        return await self.stack.open_connection(host, port, timeout=timeout)

    async def start_server(
        self, connected: ConnectedCallback, host: str | None = None, port: int = 0, *, backlog: int = 100
    ) -> Server:
        """A TCP server on our own address inside the tunnel, as `asyncio.start_server`.

        Raises OSError: EADDRINUSE, EADDRNOTAVAIL.

        >>> async with ginnel.connect("office.ovpn") as vpn:
        ...     server = await vpn.start_server(handle, port=8000)
        """
        return await self.stack.start_server(connected, host, port, backlog=backlog)

    async def start_http(
        self, host: str = "127.0.0.1", port: int = 0, *, login: tuple[str, str] | None = None
    ) -> Proxy:
        """An HTTP proxy into the tunnel, for what in this program or beside it takes one, until the connection ends.

        It listens on an address of this machine's, and asks for the user and password in ``login``; without, some are
        made up, which are in its ``url``. Raises ConfigError for what is no address, and OSError: EADDRINUSE,
        EADDRNOTAVAIL, EACCES.

        >>> async with ginnel.connect("office.ovpn") as vpn:
        ...     proxy = await vpn.start_http()
        ...     async with httpx.AsyncClient(proxy=proxy.url) as web:
        ...         page = await web.get("https://wiki.office/")
        """
        return self._start_proxy("http", host, port, login)

    async def start_socks(
        self, host: str = "127.0.0.1", port: int = 0, *, login: tuple[str, str] | None = None
    ) -> Proxy:
        """The same as a SOCKS5 proxy: for streams of any kind, and for datagrams."""
        return self._start_proxy("socks5h", host, port, login)

    async def open_datagram(self, host: str | None = None, port: int = 0) -> DatagramSocket:
        """A UDP socket on our own address inside the tunnel. Raises OSError: EADDRINUSE, EADDRNOTAVAIL.

        >>> async with ginnel.connect("office.ovpn") as vpn:
        ...     async with await vpn.open_datagram() as datagram:
        ...         await datagram.sendto(b"hello", ("echo.office", 7))
        ...         data, address = await datagram.recvfrom()
        """
        return await self.stack.open_datagram(host, port)

    async def ping(self, host: str, *, timeout: float = 5.0) -> float:
        """Sends an ICMP echo request and returns the seconds until its reply. TimeoutError without one in time.

        Raises OSError where it cannot be sent, socket.gaierror for a name that is not known.
        """
        return await self.stack.ping(host, timeout=timeout)

    async def resolve(self, name: str) -> list[str]:
        """The addresses of a name, by the DNS servers that the VPN pushed. socket.gaierror if there are none."""
        return await self.stack.resolve(name)

    def statistics(self) -> dict[str, dict[str, int]]:
        """Counters of the parts: ``plane``, ``device``, ``stack``, ``session``."""
        if self._client is None or self._stack is None or self._device is None:
            return {}
        return {
            "plane": self._client.plane_statistics(),
            "device": self._device.statistics(),
            "stack": self._stack.statistics(),
            "session": self._client.session_statistics(),
        }

    @property
    def handshake_age(self) -> float:
        """Seconds since the keys now in use were agreed on."""
        return time.monotonic() - self._client.keyed_at if self._client else 0.0

    def changes(self) -> AsyncIterator[Change]:
        """What happens to the connection from this call on; ends after `Down`.

        A reader that is more than 64 changes behind loses the oldest.
        """
        queue: asyncio.Queue[Change] = asyncio.Queue(_CHANGES)
        if self._state is not State.CLOSED:
            self._changes.add(queue)
        return self._take(queue)

    def reconnect(self) -> None:
        """Connects anew, to the same server first. Streams live on if the address inside stays the same."""
        if self._client is not None:
            self._client.reconnect()

    async def wait_closed(self) -> None:
        """Waits until the connection is over. Raises what ended it, if it was not asked to."""
        if self._runner is not None:
            await asyncio.shield(self._runner)

    async def aclose(self) -> None:
        """Ends the connection and frees everything. Idempotent.

        Streams that the program has closed get a second to deliver what was written last; those that are
        open are reset. The server is told where it asked to be.
        """
        if self._stack is not None and self._state is State.UP:
            await self._stack.settle(_LAST_WORDS)
        if self._runner is not None:
            if not self._runner.done() and self._client is not None:
                self._client.leave()
                await asyncio.wait({self._runner}, timeout=_FAREWELL if self._client.is_leaving else 0)
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError, GinnelError):
                await self._runner
        if self._client is not None:
            self._client.close()
        await self._close_device()
        if self._capture is not None:
            await asyncio.to_thread(self._capture.close)
        if self._state is not State.CLOSED:
            self._announce(Down(None))

    def _start_proxy(
        self, scheme: Literal["http", "socks5h"], host: str, port: int, login: tuple[str, str] | None
    ) -> Proxy:
        proxy = Proxy(scheme, self.stack, host, port, login)
        self._proxies = [*(each for each in self._proxies if each.is_open), proxy]
        return proxy

    async def _take(self, queue: asyncio.Queue[Change]) -> AsyncIterator[Change]:
        try:
            while queue in self._changes:
                change = await queue.get()
                yield change
                if isinstance(change, Down):
                    return
        finally:
            self._changes.discard(queue)

    async def _start(self) -> None:
        if self._runner is not None:
            raise LocalProtocolError("this connection was opened before; make a new one with connect()")
        self._client = Client(
            self._config,
            self._open_device(),
            login=self._login,
            ask=self._ask,
            on_change=self._on_change,
            outside=self._outside,
        )
        self._runner = asyncio.get_running_loop().create_task(self._run(self._client))
        first = asyncio.get_running_loop().create_task(self._changed.wait())
        began = time.monotonic()
        try:
            while not (first.done() or self._runner.done()):
                left = None
                if self._timeout is not None:
                    # What the user takes to answer is not the server's delay.
                    left = self._timeout + self._client.users_time - (time.monotonic() - began)
                    if left <= 0:
                        break
                await asyncio.wait({first, self._runner}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            first.cancel()
        if self._runner.done():
            self._runner.result()
        if self._state is not State.UP:
            raise self._timed_out()

    def _open_device(self) -> DataPlane:
        self._device = MemoryDevice(self._config.dev_type, mtu=self._config.tun_mtu, queue=_QUEUE)
        self._device.set_up(True)
        self._stack = Stack(self._device.interface, budget=self._budget)
        if (capture := self._open_capture(self._config.dev_type)) is not None:
            capture.observe(self._device)
        return DataPlane(self._device.application, **for_one_peer())

    async def _close_device(self) -> None:
        if self._stack is not None:
            await self._stack.aclose()
        if self._device is not None:
            self._device.close()

    def _open_capture(self, name: str) -> Capture | None:
        """``name`` is the interface's."""
        if self._capture_file is not None:
            self._capture = Capture(self._capture_file, self._config.dev_type, name)
        return self._capture

    def _timed_out(self) -> GinnelError:
        assert self._client is not None
        return UnreachableError(f"{self._client.progress}; gave up after {self._timeout:g} s")

    async def _run(self, client: Client) -> None:
        try:
            await self._hold(client)
        finally:
            for proxy in self._proxies:
                await proxy.aclose()

    async def _hold(self, client: Client) -> None:
        try:
            await client.run()
        except GinnelError as error:
            self._announce(Down(error))
            raise
        except asyncio.CancelledError:
            if self._fatal is None:
                raise
            self._announce(Down(self._fatal))
            raise self._fatal from None
        self._announce(Down(None))

    def _fail(self, error: GinnelError) -> None:
        """Ends the connection: without what failed, no tunnel makes sense."""
        if self._fatal is None and self._runner is not None and self._client is not None:
            self._fatal = error
            self._client.leave()
            self._runner.cancel()

    def _on_change(self, change: aio.Change) -> None:
        match change:
            case Reconfigured(push):
                assert self._info is not None
                self._configure(push)
                address, address6 = _shown_addresses(push, self._config.local)
                self._info = replace(self._info, address=address, address6=address6)
                self._announce(Up(self._info))
            case OpenUrl():
                self._announce(change)
            case Rose():
                self._tun_mtu = self._config.for_remote(change.remote).tun_mtu
                self._configure(change.established.push)
                self._info = _info(change, self._config.local)
                self._announce(Up(self._info))
            case Lost():
                self._announce(Reconnecting(change.error, change.delay))

    def _configure(self, push: PushReply) -> None:
        assert self._stack is not None
        assert self._device is not None
        self._device.set_mtu(self._tun_mtu if push.tun_mtu is None else push.tun_mtu)
        self._tell(configure(self._stack, push, self._config.local, self._config.dev_type))

    def _tell(self, sentences: list[str]) -> None:
        """Once each, however often the tunnel is set up."""
        for sentence in sentences:
            if sentence not in self._told and len(self._told) < _MAX_TOLD:
                self._told.add(sentence)
                log.warning("%s", sentence)

    def _announce(self, change: Change) -> None:
        match change:
            case Up():
                self._state = State.UP
                self._changed.set()
            case Reconnecting():
                self._state = State.RECONNECTING if self._info else State.CONNECTING
            case Down():
                self._state = State.CLOSED
        for queue in self._changes:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(change)


def configure(stack: Stack, push: PushReply, local: PushReply, dev_type: str) -> list[str]:
    """Gives the stack what the server pushed and, where it pushed nothing of the kind, what the file has. Returns
    sentences on name servers that are not asked, since they can't be as they want to."""
    stack.set_addresses([address for address in _shown_addresses(push, local) if address])
    if dev_type == "tap":
        stack.set_routes(_gateways(push))
    servers: list[str] = []
    domains: dict[str, list[str]] = {}
    groups = push.name_servers or local.name_servers
    unable = list(left_out(groups, transports=("plain", "DoT"), validates=False))
    for entry in groups:
        # Nobody else is asked for the domains of those.
        texts = [] if entry in unable else [_name_server(ip, port, entry) for ip, port in entry.addresses]
        if not entry.domains:
            servers = servers or texts
        for domain in entry.domains:
            domains.setdefault(domain, texts)
    stack.set_dns(servers, push.search_domains or local.search_domains, domains)
    return [why_left_out(group, who="there is none here") for group in unable]


def _name_server(address: IPv4Address | IPv6Address, port: int, group: NameServers) -> str:
    text = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    return f"{text}#{group.sni or address}" if group.transport == "DoT" else text


def _shown_addresses(push: PushReply, local: PushReply) -> tuple[str | None, str | None]:
    """IPv4 and IPv6. Where IPv6 is blocked nothing can be reached by it, at once, as with stock."""
    address = push.address or local.address
    address6 = push.address6 or local.address6
    if push.block_ipv6 or local.block_ipv6:
        address6 = None
    return (str(address) if address else None, str(address6) if address6 else None)


def _gateways(push: PushReply) -> list[tuple[str, str | None]]:
    """On Ethernet somebody has to carry on what is not for the link: whoever the server says, for everything."""
    routes: list[tuple[str, str | None]] = []
    if push.route_gateway not in (None, "dhcp"):
        routes.append(("0.0.0.0/0", str(push.route_gateway)))
    if push.ifconfig_ipv6 is not None:
        routes.append(("::/0", str(push.ifconfig_ipv6.remote)))
    return routes


def _info(rose: Rose, local: PushReply) -> Info:
    established = rose.established
    _, host, port = rose.path
    remote, proxy = rose.remote, rose.remote.proxy
    address, address6 = _shown_addresses(established.push, local)
    return Info(
        address=address,
        address6=address6,
        server=_place(host, port) if proxy is None else _place(remote.host, remote.port),
        proxy=None if proxy is None else _place(proxy.host, proxy.port),
        transport=remote.proto[:3],
        cipher=established.cipher,
        tls=f"{established.tls} {established.control_cipher}",
        handshake=rose.handshake,
    )


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_CHANGES = 64
_MAX_TOLD = 100
# Seconds that streams which the program has closed may take to deliver what it wrote last.
_LAST_WORDS = 1.0
# Seconds for which a server is told that we go, until it has heard: enough to say it again twice.
_FAREWELL = 0.4
# The stack takes packets in batches on its own thread; a busy machine lets it wait for some
# milliseconds, in which a fast server sends thousands.
_QUEUE = 4096
