"""A SOCKS5 gateway: CONNECT and UDP ASSOCIATE (RFC 1928), with a user and a password where asked (RFC 1929).

Names that a client sends are resolved inside the tunnel. BIND is answered with "command not supported", and so is
UDP ASSOCIATE on a unix socket, whose clients have no address.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import ipaddress
import logging
import socket
import struct
from dataclasses import dataclass, field
from typing import Protocol

from ginnel.errors import GinnelError
from ginnel.gateways.relay import Acceptor, Failures, Listener, read_exactly
from ginnel.gateways.udp_associate import Relay
from ginnel.socks5 import IPV4, IPV6, NAME, emit_address
from ginnel.stack.sockets import DatagramSocket, Flow

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Login:
    """What a client must present."""

    username: str
    password: str = field(repr=False)


class Outlet(Protocol):
    """What a gateway needs of a `ginnel.stack.Stack`."""

    async def connect_flow(self, host: str, port: int) -> Flow: ...

    def attach(self, flow: Flow, sock: socket.socket) -> None: ...

    def abort(self, flow: Flow) -> None: ...

    async def open_datagram(self) -> DatagramSocket: ...


class Socks5Gateway:
    """Takes SOCKS5 connections and joins each with a stream of the tunnel."""

    def __init__(self, stack: Outlet, listener: Listener, login: Login | None = None) -> None:
        self._stack = stack
        self._login = login
        self._relays = 0
        self._failures = Failures("SOCKS")
        self._acceptor = Acceptor(listener, self._serve)

    async def aclose(self) -> None:
        """Stops listening. Streams that are joined already go on."""
        await self._acceptor.aclose()

    async def _serve(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await self._greet(client)
                command, host, port = await self._request(client)
        except _RefusedError as refused:
            log.debug("SOCKS client refused: %s", refused)
            await loop.sock_sendall(client, refused.answer)
            return
        if command == _UDP_ASSOCIATE:
            await self._associate(client, port)
        else:
            await self._connect(client, host, port)

    async def _connect(self, client: socket.socket, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            flow = await self._stack.connect_flow(host, port)
        except (OSError, TimeoutError, GinnelError) as error:
            self._failures.tell(host, port, error)
            await loop.sock_sendall(client, _reply(_reply_code(error)))
            return
        try:
            await loop.sock_sendall(client, _reply(_SUCCEEDED, *flow.local))
        except BaseException:
            self._stack.abort(flow)
            raise
        self._stack.attach(flow, client)

    async def _associate(self, client: socket.socket, port: int) -> None:
        loop = asyncio.get_running_loop()
        if self._relays >= MOST_RELAYS:
            await loop.sock_sendall(client, _reply(_GENERAL_FAILURE))
            return
        self._relays += 1
        try:
            try:
                relay = await self._open_relay(client, port)
            except (OSError, GinnelError) as error:
                log.info("SOCKS: no relay for datagrams: %s", error)
                await loop.sock_sendall(client, _reply(_reply_code(error)))
                return
            with contextlib.closing(relay):
                await loop.sock_sendall(client, _reply(_SUCCEEDED, *relay.address))
                await _while_connected(client, relay)
        finally:
            self._relays -= 1

    async def _open_relay(self, client: socket.socket, port: int) -> Relay:
        tunnel = await self._stack.open_datagram()
        try:
            return Relay(client, port, tunnel)
        except BaseException:
            tunnel.close()
            raise

    async def _greet(self, client: socket.socket) -> None:
        version, count = await read_exactly(client, 2)
        if version != _VERSION:
            raise self._other_protocol(client, version)
        offered = await read_exactly(client, count)
        wanted = _NO_LOGIN if self._login is None else _USERNAME_PASSWORD
        if wanted not in offered:
            raise _RefusedError("no acceptable way to log in", bytes([_VERSION, _NOTHING_ACCEPTABLE]))
        await asyncio.get_running_loop().sock_sendall(client, bytes([_VERSION, wanted]))
        if self._login is not None:
            await self._log_in(client, self._login)

    def _other_protocol(self, client: socket.socket, first: int) -> _RefusedError:
        """A browser or curl whose user took this for an HTTP proxy shows him what he is answered."""
        if not chr(first).isupper():
            return _RefusedError("not SOCKS5", b"")
        self._failures.say("a client speaks HTTP, and this is SOCKS5: its proxy begins with socks5h://")
        with contextlib.suppress(OSError):
            # What is not read would reset the connection before the answer is.
            client.recv(1 << 16)
        return _RefusedError("HTTP", _NO_HTTP)

    async def _log_in(self, client: socket.socket, login: Login) -> None:
        version, length = await read_exactly(client, 2)
        if version != _LOGIN_VERSION:
            raise _RefusedError("malformed login", bytes([_LOGIN_VERSION, 1]))
        username = await read_exactly(client, length)
        (length,) = await read_exactly(client, 1)
        password = await read_exactly(client, length)
        known = hmac.compare_digest(username, login.username.encode())
        if not (hmac.compare_digest(password, login.password.encode()) and known):
            raise _RefusedError("wrong user or password", bytes([_LOGIN_VERSION, 1]))
        await asyncio.get_running_loop().sock_sendall(client, bytes([_LOGIN_VERSION, 0]))

    async def _request(self, client: socket.socket) -> tuple[int, str, int]:
        version, command, _, kind = await read_exactly(client, 4)
        if version != _VERSION:
            raise _RefusedError("malformed request", _reply(_GENERAL_FAILURE))
        if kind == IPV4:
            host = str(ipaddress.IPv4Address(await read_exactly(client, 4)))
        elif kind == IPV6:
            host = str(ipaddress.IPv6Address(await read_exactly(client, 16)))
        elif kind == NAME:
            (length,) = await read_exactly(client, 1)
            host = _name(await read_exactly(client, length))
        else:
            raise _RefusedError("unknown address type", _reply(_ADDRESS_NOT_SUPPORTED))
        (port,) = struct.unpack("!H", await read_exactly(client, 2))
        if command != _CONNECT and (command != _UDP_ASSOCIATE or client.family == socket.AF_UNIX):
            raise _RefusedError(f"command {command}", _reply(_COMMAND_NOT_SUPPORTED))
        return command, host, port


class _RefusedError(Exception):
    """The client is told ``answer`` and dropped."""

    def __init__(self, why: str, answer: bytes) -> None:
        super().__init__(why)
        self.answer = answer


async def _while_connected(client: socket.socket, relay: Relay) -> None:
    """Runs a relay until its client closes the connection, on which nothing more is said."""
    loop = asyncio.get_running_loop()
    running = loop.create_task(relay.run())
    closed = loop.create_task(loop.sock_recv(client, 1))
    try:
        await asyncio.wait({running, closed}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        running.cancel()
        closed.cancel()
        await asyncio.gather(running, closed, return_exceptions=True)


def _name(raw: bytes) -> str:
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        raise _RefusedError("a name that is not ASCII", _reply(_HOST_UNREACHABLE)) from None
    if not name or not name.isprintable() or " " in name:
        raise _RefusedError("a name that cannot be one", _reply(_HOST_UNREACHABLE))
    return name


def _reply(code: int, host: str = "0.0.0.0", port: int = 0) -> bytes:
    return bytes([_VERSION, code, 0]) + emit_address(host, port)


def _reply_code(error: BaseException) -> int:
    if isinstance(error, socket.gaierror):
        return _HOST_UNREACHABLE
    if isinstance(error, OSError) and error.errno in _CODES:
        return _CODES[error.errno]
    return _TTL_EXPIRED if isinstance(error, TimeoutError) else _GENERAL_FAILURE


HANDSHAKE_SECONDS = 30.0
"""How long a client may take to say what it wants."""
MOST_RELAYS = 256

_NO_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This is a SOCKS5 proxy, not an HTTP proxy.\n"
)
_VERSION = 5
_LOGIN_VERSION = 1
_NO_LOGIN, _USERNAME_PASSWORD, _NOTHING_ACCEPTABLE = 0x00, 0x02, 0xFF
_CONNECT, _UDP_ASSOCIATE = 1, 3
_SUCCEEDED, _GENERAL_FAILURE, _NETWORK_UNREACHABLE, _HOST_UNREACHABLE = 0, 1, 3, 4
_REFUSED, _TTL_EXPIRED, _COMMAND_NOT_SUPPORTED, _ADDRESS_NOT_SUPPORTED = 5, 6, 7, 8
_CODES = {
    errno.ENETUNREACH: _NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: _HOST_UNREACHABLE,
    errno.ECONNREFUSED: _REFUSED,
    errno.ETIMEDOUT: _TTL_EXPIRED,
}
