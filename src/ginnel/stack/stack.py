"""The network stack's asyncio face. The stack itself runs in Rust, with a thread of its own."""

# Timeouts are arguments, as in asyncio's own open_connection and its kin of other libraries.

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import ipaddress
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ginnel._core import End, NetStack
from ginnel.stack.sockets import (
    Address,
    ConnectedCallback,
    DatagramSocket,
    Flow,
    Server,
    open_streams,
    os_error,
)

if TYPE_CHECKING:
    from ginnel.stack.transparent import Interception

#: Bytes of buffers that a stack's connections share.
DEFAULT_BUDGET = 64 * 1024 * 1024


class Neighbour(NamedTuple):
    """A station on the link."""

    address: str
    #: None while it is asked for.
    mac: str | None
    #: "incomplete", "reachable", "stale", "delay" or "probe" (RFC 4861, 7.3.2).
    state: str
    #: Seconds since it was heard of, or first asked for.
    age: float


class Stack:
    """A TCP/IP stack on one end of a device, used from one event loop.

    An asynchronous context manager that closes it. Hosts are IP addresses, or names that the tunnel's DNS
    servers resolve. Made inside a running event loop; it takes the end over.
    """

    def __init__(self, end: End, *, budget: int = DEFAULT_BUDGET, dns_timeout: float = 10.0) -> None:
        """``budget``: bytes of buffers that all connections share."""
        # Late: dnspython takes longer to import than all else that a device needs.
        from ginnel.stack.dns import Resolver

        self._loop = asyncio.get_running_loop()
        self._core = NetStack(end, budget)
        self._resolver = Resolver(self, timeout=dns_timeout)
        self._families: list[int] = []
        self._connecting: dict[int, asyncio.Future[Address]] = {}
        self._flows: dict[int, Flow] = {}
        self._servers: dict[int, Server] = {}
        self._pongs: dict[tuple[str, int, int], asyncio.Future[None]] = {}
        self._identifier = secrets.randbits(16)
        self._sequence = 0
        self._finishing: set[asyncio.Future[int]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._capture: Interception | None = None
        #: The transports of open streams. For :class:`ginnel.stack.sockets.FlowProtocol`.
        self.streams: set[asyncio.BaseTransport] = set()
        self._loop.add_reader(self._core.fileno(), self.handle_events)

    @property
    def core(self) -> NetStack:
        """The stack itself, for the parts of ginnel in Rust."""
        return self._core

    def set_addresses(self, addresses: Sequence[str]) -> None:
        """The own addresses, in CIDR notation. Connections from one that is gone end with ENETRESET."""
        interfaces = [ipaddress.ip_interface(address) for address in addresses]
        self._core.set_addresses([str(interface) for interface in interfaces])
        versions = dict.fromkeys(interface.version for interface in interfaces)
        self._families = [socket.AF_INET if version == 4 else socket.AF_INET6 for version in versions]

    def set_mac(self, mac: str) -> None:
        """The hardware address on a TAP device ("aa:bb:cc:dd:ee:ff"; a random one at first). The neighbours are told.

        ValueError for a group's address, OSError (EOPNOTSUPP) on a TUN device.
        """
        self._core.set_mac(mac)

    @property
    def mac(self) -> str | None:
        """None on a TUN device."""
        return self._core.mac

    def set_routes(self, routes: Sequence[tuple[str, str | None]] | None) -> None:
        """Replaces the routes: a prefix in CIDR notation, and its gateway (None: on the link).

        The longest prefix wins; the own addresses' subnets are always on the link. With None everything goes
        through a TUN device, and nothing beyond the subnets through a TAP device. Connections without a route
        are refused with ENETUNREACH, other packets are counted as ``dropped_no_route``.
        """
        given = [] if routes is None else [_route(prefix, gateway) for prefix, gateway in routes]
        self._core.set_routes(None if routes is None else given)

    def add_route(self, prefix: str, gateway: str | None = None) -> None:
        """One route more, or another to the same prefix, as `set_routes` takes them. On a TUN device with none so far,
        this is the only one then."""
        self._core.add_route(*_route(prefix, gateway))

    def remove_route(self, prefix: str) -> None:
        """Takes a route back. Harmless where there is none to this prefix."""
        self._core.remove_route(_route(prefix, None)[0])

    def set_client(self, client: int, networks: Sequence[str]) -> None:
        """The addresses and networks (CIDR) of one who shares the stack with others; none: it is gone.

        Each has a part of the memory for connections and of what may be undecided for certain, and more while it
        leaves as much to others.
        """
        self._core.set_client(client, list(networks))

    def set_mtu(self, mtu: int) -> None:
        """Sets the device's MTU. Connections that are open only ever take a lower one.

        DeviceError (EINVAL) below 68, above 65,535 (TAP: 65,521).
        """
        self._core.set_mtu(mtu)

    @property
    def mtu(self) -> int:
        return self._core.mtu

    def neighbours(self) -> list[Neighbour]:
        """The stations known on a TAP device's link, by address; empty on TUN."""
        return [Neighbour(*row) for row in self._core.neighbours()]

    def set_dns(
        self,
        servers: Sequence[str],
        search_domains: Sequence[str] = (),
        domains: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """The DNS servers that are asked for names, and the domains tried after a name.

        A server is an IP address, with a port as ``10.0.0.1:5353`` or ``[fd00::1]:5353``; with a name after it, as
        ``10.0.0.1#dns.example``, it is asked over TLS alone and has to have that name's certificate. Names in one of
        ``domains``, and below, are asked of its own servers alone, of nobody without any; the longest fit counts.
        ValueError for what is no address and no domain.
        """
        self._resolver.configure(servers, search_domains, domains)

    @property
    def has_dns(self) -> bool:
        """Whether there is a server that is asked for names."""
        return self._resolver.has_servers

    def has_address_for(self, address: str) -> bool:
        """Whether there is an own address of the family of ``address``."""
        return (socket.AF_INET6 if ":" in address else socket.AF_INET) in self._families

    async def resolve(self, name: str, family: int | None = None) -> list[str]:
        """The addresses of a name, of ``family`` or of all that the stack has; of an address, itself.

        Raises socket.gaierror, also for an address with a zone ("fe80::1%eth0"); OSError (ENODEV) once closed.
        """
        self._check_open()
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(name)
            if "%" in name:
                raise socket.gaierror(socket.EAI_NONAME, f"{name}: no zones here, this stack has one link alone")
            return [str(address)]
        return await self._resolver.resolve(name, self._families if family is None else [family])

    async def connect_flow(self, host: str, port: int, *, timeout: float | None = None) -> Flow:
        """Opens a TCP connection, for :meth:`attach`. Tries the host's addresses one after the other.

        Raises OSError (ConnectionRefusedError, TimeoutError, EHOSTUNREACH, ENOBUFS, ...) or socket.gaierror.
        """
        _check_port(port)
        failure: OSError | None = None
        try:
            async with asyncio.timeout(timeout) as limit:
                for address in await self.resolve(host):
                    try:
                        return await self._connect((address, port))
                    except OSError as error:
                        failure = error
        except TimeoutError:
            if not limit.expired():
                raise
            raise _timed_out(f"no connection to {host} port {port} through the tunnel after {timeout:g} s") from None
        raise failure if failure else OSError(errno.EHOSTUNREACH, f"{host} has no address")

    def attach(self, flow: Flow, sock: socket.socket) -> None:
        """Joins a flow with a stream socket, which it takes over: bytes go between them in Rust.

        Raises OSError where the flow has ended; the socket is closed then.
        """
        try:
            self._core.attach(flow.number, sock.detach())
        except OSError:
            self.handle_events()
            if flow.error is not None:
                raise flow.error from None
            raise

    def abort(self, flow: Flow) -> None:
        """Resets a flow. Harmless for one that has ended."""
        self._core.abort(flow.number)
        self._ended(flow.number, errno.ECONNABORTED)

    async def open_connection(
        self, host: str, port: int, *, timeout: float | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As asyncio.open_connection, through the device. Raises what :meth:`connect_flow` does."""
        flow = await self.connect_flow(host, port, timeout=timeout)
        try:
            return await open_streams(self, flow)
        except BaseException:
            self.abort(flow)
            raise

    async def serve_flows(
        self, on_flow: Callable[[Flow], object], host: str | None = None, port: int = 0, *, backlog: int = 100
    ) -> Server:
        """Listens, and calls ``on_flow`` with every connection, which it then attaches or aborts.

        Raises OSError: EADDRINUSE, EADDRNOTAVAIL.
        """
        self._check_open()
        _check_port(port)
        try:
            number, bound = self._core.listen(host, port, backlog)
        except OSError as error:
            raise _located(error, f"TCP port {port} of the stack") from None
        server = Server(self, number, bound, on_flow)
        self._servers[number] = server
        return server

    async def start_server(
        self,
        client_connected_cb: ConnectedCallback,
        host: str | None = None,
        port: int = 0,
        *,
        backlog: int = 100,
    ) -> Server:
        """As asyncio.start_server, on an own address (None: on all) and a port (0: a free one)."""

        async def serve(flow: Flow) -> None:
            try:
                reader, writer = await open_streams(self, flow, hold=True)
            except OSError:
                return  # the client is gone already
            result = client_connected_cb(reader, writer)
            if inspect.isawaitable(result):
                await result

        def start(flow: Flow) -> None:
            task = self._loop.create_task(serve(flow))
            self._tasks.add(task)
            task.add_done_callback(self._served)

        return await self.serve_flows(start, host, port, backlog=backlog)

    async def open_datagram(self, host: str | None = None, port: int = 0) -> DatagramSocket:
        """Binds a UDP port (0: a free one) on an own address (None: on all).

        Raises OSError: EADDRINUSE, EADDRNOTAVAIL.
        """
        ours, bound, number = self._bind_datagrams(host, port)
        ours.setblocking(False)
        return DatagramSocket(self, number, bound, ours)

    def bind_datagrams(self, host: str | None = None, port: int = 0) -> tuple[socket.socket, int]:
        """As :meth:`open_datagram`, for another program: the socket, which frees the port when it ends, and the port.

        A message on it is a datagram, its other side's address in front (:func:`ginnel.stack.sockets.pack_address`).
        """
        ours, bound, _ = self._bind_datagrams(host, port)
        return ours, bound

    async def ping(self, host: str, *, timeout: float = 5.0, payload: bytes = b"ginnel") -> float:
        """Sends an echo request. Returns the seconds until the reply; TimeoutError without one.

        Raises OSError (ENETUNREACH, ...) where it cannot be sent, socket.gaierror for a name without address.
        """
        address = (await self.resolve(host))[0]
        self._sequence = (self._sequence + 1) & 0xFFFF
        key = (address, self._identifier, self._sequence)
        pong = self._pongs[key] = self._loop.create_future()
        try:
            sent = self._loop.time()
            try:
                self._core.ping(*key, payload)
            except OSError as error:
                raise _located(error, f"no echo request to {host}") from None
            try:
                async with asyncio.timeout(timeout):
                    await pong
            except TimeoutError:
                # A loop that stood still finds the answer and the end of the time together: the answer counts.
                if not pong.done() or pong.cancelled():
                    raise _timed_out(f"no echo reply from {host} within {timeout:g} s") from None
            return self._loop.time() - sent
        finally:
            del self._pongs[key]

    def statistics(self) -> dict[str, int]:
        """What the stack has and has counted. OSError (ENODEV) once closed."""
        return self._core.statistics()

    async def settle(self, timeout: float) -> None:
        """Waits until the streams that the program closed have delivered their last bytes.

        At most ``timeout`` seconds.
        """
        if self._finishing:
            await asyncio.wait(self._finishing, timeout=timeout)

    def discard(self) -> None:
        """Closes one that has not been used yet, without waiting."""
        self._closed = True
        self._loop.remove_reader(self._core.fileno())
        self._core.close()

    async def aclose(self) -> None:
        """Resets all connections, frees all ports and the device's end. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._core.close)
        self.handle_events()
        self._loop.remove_reader(self._core.fileno())
        for number in list(self._flows):
            self._ended(number, errno.ENODEV)
        for connecting in self._connecting.values():
            if not connecting.done():
                connecting.set_exception(OSError(errno.ENODEV, "the stack is closed"))
        for server in list(self._servers.values()):
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._capture is not None:
            await self._capture.aclose()
        for transport in self.streams:
            transport.close()
        # Transports end one turn of the loop after they are told to.
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def finishing(self, flow: Flow) -> None:
        """For :class:`FlowProtocol`: the program has closed its end of a flow."""
        if not flow.ended.done():
            self._finishing.add(flow.ended)
            flow.ended.add_done_callback(self._finishing.discard)

    def capture_flows(self, capture: Interception, idle: float) -> None:
        """For :class:`Interception`, which is told of everything from now on."""
        self._core.capture_flows(idle)
        self._capture = capture

    def reserve_arrival(self, number: int) -> None:
        """For :class:`Arrival`."""
        self._core.reserve(number)

    async def accept_arrival(self, number: int, source: Address) -> Flow:
        """For :class:`Arrival`."""
        return await self._open(lambda: self._core.accept(number), source)

    def refuse_arrival(self, number: int, reason: str) -> None:
        """For :class:`Arrival`."""
        self._core.refuse(number, reason)

    def attach_datagram_flow(self, number: int, sock: socket.socket) -> None:
        """For :class:`DatagramFlow`."""
        self._core.attach_datagram_flow(number, sock.detach())

    def refuse_datagram_flow(self, number: int, reason: str) -> None:
        """For :class:`DatagramFlow`."""
        self._core.refuse_datagram_flow(number, reason)

    def close_datagram_flow(self, number: int) -> None:
        """For :class:`DatagramFlow`."""
        self._core.close_datagram_flow(number)

    def echo_reply(self, source: str, destination: str, identifier: int, sequence: int, payload: bytes) -> None:
        """For :class:`Echo`."""
        self._core.echo_reply(source, destination, identifier, sequence, payload)

    def close_server(self, number: int) -> None:
        """For :class:`Server`."""
        self._servers.pop(number, None)
        self._core.close_listener(number)

    def close_datagram(self, number: int) -> None:
        """For :class:`DatagramSocket`."""
        self._core.close_datagram(number)

    def handle_events(self) -> None:
        """Takes note of what the stack says. Harmless at any time."""
        for event in self._core.events():
            match event:
                case ("connected", number, host, port):
                    self._connected(number, (host, port))
                case ("failed", number, code):
                    self._failed(number, code)
                case ("accepted", listener, number, host, port, own_host, own_port):
                    self._accepted(listener, number, (host, port), (own_host, own_port))
                case ("closed", number, code):
                    self._ended(number, code)
                case ("pong", host, identifier, sequence, _):
                    pong = self._pongs.get((host, identifier, sequence))
                    if pong is not None and not pong.done():
                        pong.set_result(None)
                case _ if self._capture is not None:
                    self._captured(self._capture, event)

    def _captured(self, capture: Interception, event: tuple[Any, ...]) -> None:
        match event:
            case ("arrived", number, host, port, own_host, own_port):
                capture.arrived(number, (host, port), (own_host, own_port))
            case ("withdrawn", number):
                capture.withdrawn(number)
            case ("datagram_flow", number, host, port, own_host, own_port):
                capture.datagrams(number, (host, port), (own_host, own_port))
            case ("datagram_flow_ended", number):
                capture.datagrams_ended(number)
            case ("echo", *details):
                capture.echo(*details)

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.ENODEV, "the stack is closed")

    def _bind_datagrams(self, host: str | None, port: int) -> tuple[socket.socket, int, int]:
        self._check_open()
        _check_port(port)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            number, bound = self._core.open_datagram(host, port, theirs.detach())
        except OSError as error:
            ours.close()
            raise _located(error, f"UDP port {port} of the stack") from None
        except BaseException:
            ours.close()
            raise
        return ours, bound, number

    async def _connect(self, remote: Address) -> Flow:
        return await self._open(lambda: self._core.connect(*remote), remote)

    async def _open(self, begin: Callable[[], int], remote: Address) -> Flow:
        try:
            number = begin()
        except OSError as error:
            raise os_error(error.errno or errno.EIO, remote) from None
        connecting = self._connecting[number] = self._loop.create_future()
        try:
            local = await connecting
        except OSError as error:
            raise os_error(error.errno or errno.EIO, remote) from None
        except BaseException:
            self._core.abort(number)
            self._flows.pop(number, None)
            raise
        finally:
            del self._connecting[number]
        flow = self._flows.get(number)
        if flow is None:
            raise os_error(errno.ECONNRESET, remote)
        flow.local, flow.remote = local, remote
        return flow

    def _connected(self, number: int, local: Address) -> None:
        connecting = self._connecting.get(number)
        if connecting is not None and not connecting.done():
            self._flows[number] = Flow(number, local, local, self._loop.create_future())
            connecting.set_result(local)

    def _failed(self, number: int, code: int) -> None:
        connecting = self._connecting.get(number)
        if connecting is not None and not connecting.done():
            connecting.set_exception(OSError(code, "connection failed"))

    def _accepted(self, listener: int, number: int, remote: Address, local: Address) -> None:
        server = self._servers.get(listener)
        if server is None:
            return
        flow = self._flows[number] = Flow(number, local, remote, self._loop.create_future())
        server.accepted(flow)

    def _ended(self, number: int, code: int) -> None:
        flow = self._flows.pop(number, None)
        if flow is not None and not flow.ended.done():
            flow.ended.set_result(code)

    def _served(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        # That its connection ended with the stack is no fault of the callback's.
        if error is not None and not (self._closed and isinstance(error, OSError)):
            context = {"message": "a client's callback failed", "exception": error, "task": task}
            self._loop.call_exception_handler(context)


def _route(prefix: str, gateway: str | None) -> tuple[str, str | None]:
    network = ipaddress.ip_network(prefix)
    return str(network), None if gateway is None else str(ipaddress.ip_address(gateway))


def _check_port(port: int) -> None:
    """Raises OverflowError, as the socket module does, and TypeError."""
    if not isinstance(port, int):
        raise TypeError(f"a port is a number, not {port!r}")
    if not 0 <= port <= 65_535:
        raise OverflowError(f"port {port} is none: write 0 to 65535")


def _timed_out(text: str) -> OSError:
    """A TimeoutError that says what took too long."""
    return OSError(errno.ETIMEDOUT, text)


def _located(error: OSError, where: str) -> OSError:
    return OSError(error.errno, f"{where}: {error.strerror}")
