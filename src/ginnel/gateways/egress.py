"""A server's way out without root: what clients send to others leaves through ordinary sockets of this host."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Self

from ginnel.errors import DeviceError
from ginnel.gateways.access import AccessList
from ginnel.gateways.clients import Clients, Slots, Source
from ginnel.gateways.nameserver import Nameserver
from ginnel.gateways.publish import COUNTERS as PUBLISHED_COUNTERS
from ginnel.gateways.publish import Publisher
from ginnel.gateways.relay import Listener, reset
from ginnel.stack import Arrival, DatagramFlow, Echo, Interception, Stack
from ginnel.stack.sockets import Address, Flow
from ginnel.stack.transparent import Unreachable

log = logging.getLogger(__name__)


class Egress:
    """Carries the TCP connections, datagrams and echo requests of a stack's clients to where they are for.

    A connection is made outside before it is answered inside, so that a client sees what became of it. Port 53 of the
    stack's own addresses answers names. An asynchronous context manager; when it ends, all of it ends.
    """

    def __init__(
        self,
        stack: Stack,
        *,
        allow: Sequence[str] = (),
        resolvers: Sequence[Address] | None = None,
        limit: int = 8192,
        client_limit: int = 1024,
        connect_timeout: float = 30.0,
        datagram_idle: float = 120.0,
        on_closed: Callable[[str, str], None] = lambda client, host: None,
        on_dns_failure: Callable[[str], None] = lambda reason: None,
        on_crowded: Callable[[str, str], None] = lambda source, what: None,
    ) -> None:
        """``allow``: networks that are open beside public ones (:class:`AccessList`); ``resolvers``: the DNS servers
        that names are asked of, this host's own with None; ``limit`` and ``client_limit``: connections and flows of
        datagrams at a time, of all and of each client, fewer where the host grants fewer descriptors, of which nobody
        has more than a quarter, and less where others have much (:class:`Slots`); timeouts are in seconds.
        ``on_closed`` is told of each client that asked for what is closed, ``on_dns_failure`` why a name was not
        answered, ``on_crowded`` of who has too many of what. Raises ConfigError for what is no network.
        """
        self._stack = stack
        self._access = AccessList(allow)
        most = min(limit, _descriptors() // 2)
        self._slots = Slots(most, min(client_limit, max(1, most // 4)))
        self._publish_limit = max(1, min(PUBLISHED, most // 4))
        self._clients = Clients()
        self._exhausted_told = float("-inf")
        self._connect_timeout = connect_timeout
        self._datagram_idle = datagram_idle
        self._on_closed = on_closed
        self._on_crowded = on_crowded
        self._flows: dict[Flow, Source] = {}
        self._arriving: dict[asyncio.Task[None], Source] = {}
        self._echoes = Slots(ECHOES, CLIENT_ECHOES)
        self._counts: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._nameserver = Nameserver(
            stack,
            resolvers,
            on_dns_failure,
            whose=self._clients.of,
            on_crowded=lambda source: on_crowded(source, NAMES),
        )
        self._publishers: list[Publisher] = []
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """DeviceError where port 53 of the stack is taken."""
        async with contextlib.AsyncExitStack() as exits:
            exits.callback(self._access.close)
            exits.push_async_callback(self._end)
            self._capture = await exits.enter_async_context(
                Interception(self._stack, self._arrived, self._datagrams, self._echo, idle=self._datagram_idle)
            )
            await exits.enter_async_context(self._nameserver)
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    def publish(self, listener: Listener, find: Callable[[], str | None], port: int) -> None:
        """Leads connections to ``listener``, a socket of this host, to a client's port.

        ``find`` gives the client's inner address, None while it is not connected: then connections are reset.
        The listener is closed with all else.
        """
        self._publishers.append(
            Publisher(
                self._stack,
                listener,
                find,
                port,
                limit=self._publish_limit,
                on_crowded=lambda place: self._on_crowded(place, PUBLISHED_PORT),
            )
        )

    def set_client(self, client: int, networks: Sequence[str]) -> None:
        """A client's inner addresses and the networks behind it, in CIDR notation: its limits are for all of them
        together."""
        self._clients.set(client, networks)
        self._stack.set_client(client, networks)

    def forget(self, client: int) -> None:
        """Ends what a client has open. For when it leaves, and its inner addresses may go to another."""
        for task, source in self._arriving.items():
            if source == client:
                task.cancel()
        for flow in [flow for flow, source in self._flows.items() if source == client]:
            self._stack.abort(flow)
        for datagrams in self._capture.datagram_flows:
            if self._clients.of(datagrams.source[0]) == client:
                datagrams.close()
        for publisher in self._publishers:
            for flow in [flow for flow, host in publisher.flows.items() if self._clients.of(host) == client]:
                self._stack.abort(flow)
        self.set_client(client, ())

    def statistics(self) -> dict[str, int]:
        """What is open, and what was counted since the start, by name."""
        published = Counter(dict.fromkeys(PUBLISHED_COUNTERS, 0))
        for publisher in self._publishers:
            published.update(publisher.counts)
        return {"open": self._slots.taken, **self._counts, **self._nameserver.statistics(), **published}

    async def _arrived(self, arrival: Arrival) -> None:
        # In a task that can be cancelled: a client may have to be forgotten before its connection is open.
        task = asyncio.get_running_loop().create_task(self._join(arrival))
        self._arriving[task] = self._clients.of(arrival.source[0])
        task.add_done_callback(self._arriving.pop)
        try:
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _join(self, arrival: Arrival) -> None:
        address = arrival.source[0]
        if not self._may_pass(address, arrival.destination[0]):
            arrival.refuse("reset")
            return
        client = self._clients.of(address)
        if not self._slots.take(client):
            self._refuse_crowded(address, FLOWS)
            arrival.refuse("prohibited")
            return
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._slots.free, client)
            try:
                # Before anything is opened outside: nobody is to cause there what he cannot have.
                arrival.reserve()
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self._refuse_crowded(address, BUFFERS)
                    arrival.refuse("prohibited")
                return
            sock = await self._connect(arrival)
            if sock is None:
                return
            on_failure.callback(reset, sock)
            try:
                flow = await arrival.accept()
                self._stack.attach(flow, sock)
            except OSError as error:
                self._counts["connections_failed"] += 1
                log.debug("%s gave up its connection to %s: %s", address, arrival.destination, error)
                return
            on_failure.pop_all()
        self._counts["connections"] += 1
        self._flows[flow] = client
        flow.ended.add_done_callback(lambda _: self._ended(flow))

    async def _connect(self, arrival: Arrival) -> socket.socket | None:
        host, port = arrival.destination
        sock: socket.socket | None = None
        try:
            sock = _socket(host, socket.SOCK_STREAM)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Who vanishes outside is found out by the host's kernel, who vanishes inside by the stack.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with asyncio.timeout(self._connect_timeout):
                await asyncio.get_running_loop().sock_connect(sock, (host, port))
            return sock
        except OSError as error:
            self._counts["connections_failed"] += 1
            self._log_failure(error, f"{host} port {port}")
            arrival.refuse(_reason(error))
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        if sock is not None:
            sock.close()
        return None

    async def _datagrams(self, flow: DatagramFlow) -> None:
        address, (host, port) = flow.source[0], flow.destination
        if not self._may_pass(address, host):
            flow.refuse("prohibited")
            return
        client = self._clients.of(address)
        if not self._slots.take(client):
            self._refuse_crowded(address, FLOWS)
            flow.refuse("prohibited")
            return
        try:
            sock = _socket(host, socket.SOCK_DGRAM)
            try:
                sock.connect((host, port))
            except OSError:
                sock.close()
                raise
            flow.attach(sock)
        except OSError as error:
            self._slots.free(client)
            self._counts["datagram_flows_failed"] += 1
            self._log_failure(error, f"{host} port {port} by UDP")
            reason = _reason(error)
            flow.refuse("host" if reason == "reset" else reason)
            return
        flow.ended.add_done_callback(lambda _: self._slots.free(client))
        self._counts["datagram_flows"] += 1

    async def _echo(self, echo: Echo) -> None:
        if not self._may_pass(echo.source, echo.destination):
            return
        client = self._clients.of(echo.source)
        if not self._echoes.take(client):
            self._refuse_crowded(echo.source, PINGS)
            return
        try:
            async with asyncio.timeout(ECHO_SECONDS):
                await _ping(echo.destination, echo.sequence, echo.payload)
        except OSError as error:
            self._counts["echoes_failed"] += 1
            self._log_failure(error, f"{echo.destination} by an echo request")
            return
        finally:
            self._echoes.free(client)
        self._counts["echoes"] += 1
        echo.reply()

    def _may_pass(self, client: str, host: str) -> bool:
        try:
            if self._access.is_open(host):
                return True
        except DeviceError as error:
            log.warning("%s; it stays closed", error)
        else:
            self._on_closed(client, host)
        self._counts["refused_closed"] += 1
        return False

    def _refuse_crowded(self, address: str, what: str) -> None:
        self._counts["refused_crowded"] += 1
        self._on_crowded(address, what)

    def _log_failure(self, error: OSError, where: str) -> None:
        """A host without descriptors is the operator's business, a destination that does not answer the client's."""
        level, now = logging.DEBUG, time.monotonic()
        if error.errno in EXHAUSTED and now >= self._exhausted_told + TOLD_EVERY:
            level, self._exhausted_told = logging.WARNING, now
        log.log(level, "cannot reach %s: %s", where, error.strerror or "no answer")

    def _ended(self, flow: Flow) -> None:
        self._slots.free(self._flows.pop(flow))

    async def _end(self) -> None:
        for publisher in self._publishers:
            await publisher.aclose()
        # A stack that is closed has ended them.
        with contextlib.suppress(OSError):
            for flow in list(self._flows):
                self._stack.abort(flow)
            for datagrams in self._capture.datagram_flows:
                datagrams.close()


def may_ping() -> bool:
    """Whether the system lets this user have sockets for echo requests (net.ipv4.ping_group_range)."""
    try:
        _socket("127.0.0.1", socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM)
    return True


async def _ping(host: str, sequence: int, payload: bytes) -> None:
    """Sends an echo request from this host, and waits for the reply.

    The kernel chooses the identifier and gives the socket only its own replies. OSError: EACCES where the system lets
    this user have no such socket (net.ipv4.ping_group_range), or what the network answered instead.
    """
    loop = asyncio.get_running_loop()
    request, reply = (8, 0) if ":" not in host else (128, 129)
    with _socket(host, socket.SOCK_DGRAM, socket.IPPROTO_ICMP if request == 8 else socket.IPPROTO_ICMPV6) as sock:
        sock.connect((host, 0))
        await loop.sock_sendall(sock, struct.pack("!BBHHH", request, 0, 0, 0, sequence) + payload)
        while True:
            answer = await loop.sock_recv(sock, 65536)
            if answer[0] == reply and answer[6:8] == sequence.to_bytes(2, "big") and answer[8:] == payload:
                return


def _socket(host: str, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind, protocol)
    sock.setblocking(False)
    return sock


def _reason(error: OSError) -> Unreachable | Literal["reset"]:
    if isinstance(error, ConnectionRefusedError):
        return "reset"
    if error.errno in (errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
        return "network"
    return "prohibited" if error.errno in (errno.EACCES, errno.EPERM) else "host"


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft


COUNTERS = (
    "connections",
    "connections_failed",
    "datagram_flows",
    "datagram_flows_failed",
    "echoes",
    "echoes_failed",
    "refused_closed",
    "refused_crowded",
)
# What there is too much of.
FLOWS = "connections and flows of datagrams"
BUFFERS = "memory for connections"
PINGS = "echo requests"
NAMES = "questions for names"
PUBLISHED_PORT = "connections to a published port"
# Connections to a published port.
PUBLISHED = 2048
ECHOES = 512
CLIENT_ECHOES = 32
ECHO_SECONDS = 10.0
# Seconds between two lines about a host that has nothing left.
TOLD_EVERY = 60.0
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
