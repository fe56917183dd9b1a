"""What the stack hands out: flows, asyncio streams over them, servers, datagram sockets."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from ginnel.stack.stack import Stack

Address = tuple[str, int]
ConnectedCallback = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


class Flow:
    """A TCP connection of the stack: numbers and addresses, no bytes.

    ``local`` and ``remote`` are the inner addresses. ``ended`` is a future of the errno that the
    connection ended with, 0 for an orderly end.
    """

    def __init__(self, number: int, local: Address, remote: Address, ended: asyncio.Future[int]) -> None:
        self.number = number
        self.local = local
        self.remote = remote
        self.ended = ended

    @property
    def error(self) -> OSError | None:
        """Why the connection ended before its time; None while it lives, and after an orderly end."""
        if not self.ended.done() or self.ended.cancelled():
            return None
        number = self.ended.result()
        return os_error(number, self.remote) if number else None


class StreamWriter(asyncio.StreamWriter):
    """An asyncio stream writer that knows the inner addresses."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.BaseProtocol,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
        flow: Flow,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self.flow = flow

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As for a TCP socket: ``peername`` and ``sockname`` are those of the connection in the tunnel."""
        if name == "peername":
            return self.flow.remote
        if name == "sockname":
            return self.flow.local
        return super().get_extra_info(name, default)


class FlowProtocol(asyncio.StreamReaderProtocol):
    """Turns the end of the local socket into what the connection really ended with."""

    def __init__(self, stack: Stack, flow: Flow, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self._stack = stack
        self._flow = flow
        self._reader = reader
        self._held: StreamWriter | None = None

    def hold(self, writer: StreamWriter) -> None:
        """Keeps the writer, which closes its connection when it is forgotten, while the connection lives."""
        self._held = writer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._own_transport = transport
        self._stack.streams.add(transport)

    def eof_received(self) -> bool | None:
        # The stack publishes why a connection ended before it closes the socket.
        self._stack.handle_events()
        error = self._flow.error
        if error is not None:
            self._reader.set_exception(error)
            return False
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stack.handle_events()
        super().connection_lost(self._flow.error or exc)
        self._held = None
        self._stack.streams.discard(self._own_transport)
        self._stack.finishing(self._flow)


async def open_streams(
    stack: Stack, flow: Flow, *, hold: bool = False
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Attaches a flow to one end of a socket pair and opens asyncio streams on the other.

    With ``hold`` the connection lives on where the program forgets them, as on asyncio's own servers.
    """
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(False)
        stack.attach(flow, theirs)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=STREAM_LIMIT)
        protocol = FlowProtocol(stack, flow, reader)
        transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
    except BaseException:
        ours.close()
        theirs.close()
        raise
    writer = StreamWriter(transport, protocol, reader, loop, flow)
    if hold:
        protocol.hold(writer)
    return reader, writer


class Server:
    """Connections to one port of the stack. An asynchronous context manager that closes it."""

    def __init__(self, stack: Stack, number: int, port: int, on_flow: Callable[[Flow], object]) -> None:
        self._stack = stack
        self._number = number
        self._on_flow = on_flow
        self._closed = asyncio.Event()
        self.port = port

    def accepted(self, flow: Flow) -> None:
        self._on_flow(flow)

    def close(self) -> None:
        """Stops listening. Connections that were accepted go on. Idempotent."""
        if not self._closed.is_set():
            self._closed.set()
            self._stack.close_server(self._number)

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DatagramSocket:
    """A UDP port of the stack. An asynchronous context manager that closes it."""

    def __init__(self, stack: Stack, number: int, port: int, sock: socket.socket) -> None:
        self._stack = stack
        self._number = number
        self._sock = sock
        self.port = port

    async def sendto(self, data: bytes | bytearray | memoryview, address: Address) -> None:
        """Sends one datagram. Waits while the stack is behind.

        What is longer than the MTU leaves in fragments. OSError: EMSGSIZE past 65,507 bytes, ENETUNREACH without an
        own address of that family, EBADF once closed; socket.gaierror for a name without address.
        """
        payload = bytes(memoryview(data))
        try:
            host, port = address
        except ValueError:
            raise TypeError(f"an address is a host and a port, not {address!r}") from None
        if len(payload) > LONGEST_DATAGRAM:
            raise OSError(errno.EMSGSIZE, f"a datagram of {len(payload)} bytes: {LONGEST_DATAGRAM} at most")
        found = (await self._stack.resolve(host))[0]
        if not self._stack.has_address_for(found):
            raise OSError(errno.ENETUNREACH, f"no way to {found} through the tunnel: it has no address of that family")
        await asyncio.get_running_loop().sock_sendall(self._sock, pack_address(found, port) + payload)

    async def recvfrom(self) -> tuple[bytes, Address]:
        """The next datagram and where it came from. OSError (EBADF) once closed, ENODEV once the stack is."""
        message = await asyncio.get_running_loop().sock_recv(self._sock, LONGEST_MESSAGE)
        if not message:
            raise OSError(errno.ENODEV, "the stack is closed")
        return message[ADDRESS_LEN:], unpack_address(message[:ADDRESS_LEN])

    def close(self) -> None:
        """Frees the port. Idempotent."""
        if self._sock.fileno() >= 0:
            # In this order what was sent last still goes out.
            self._stack.close_datagram(self._number)
            self._sock.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def pack_address(host: str, port: int) -> bytes:
    """An address before a datagram: 16 bytes, IPv4 mapped into IPv6, and the port."""
    address = ipaddress.ip_address(host)
    packed = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
    return packed + port.to_bytes(2, "big")


def unpack_address(packed: bytes) -> Address:
    """The reverse of :func:`pack_address`."""
    address = ipaddress.IPv6Address(packed[:16])
    return str(address.ipv4_mapped or address), int.from_bytes(packed[16:18], "big")


def os_error(number: int, remote: Address) -> OSError:
    """The OSError (ConnectionResetError, TimeoutError, ...) of a connection that failed."""
    host, port = remote
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    reason = "this end is closed" if number == errno.ENODEV else os.strerror(number)
    return OSError(number, f"connection to {shown} through the tunnel: {reason}")


ADDRESS_LEN = 18
LONGEST_DATAGRAM = 65_507
LONGEST_MESSAGE = ADDRESS_LEN + 65_535
STREAM_LIMIT = 64 * 1024
