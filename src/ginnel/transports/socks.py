"""A way through a SOCKS5 proxy: CONNECT (RFC 1928), with a user and password where it asks (RFC 1929)."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

from ginnel.errors import AuthError, RemoteProtocolError, UnreachableError
from ginnel.openvpn.config import SocksProxy


async def connect(sock: socket.socket, proxy: SocksProxy, host: str, port: int) -> None:
    """Leads a connection to the proxy on to host and port; a name is resolved there.

    Raises OSError, AuthError when the proxy refuses the login, UnreachableError when it can't reach the
    server, RemoteProtocolError for what is no SOCKS5.
    """
    channel = _Channel(sock, f"the proxy {proxy.host}:{proxy.port}")
    await _log_in(channel, proxy)
    await channel.send(bytes((5, CONNECT, 0)) + _address(host) + port.to_bytes(2))
    version, reply, _, kind = await channel.receive(4)
    if version != 5:
        raise RemoteProtocolError(f"{channel.where} does not speak SOCKS5")
    if reply:
        reason = REPLIES.get(reply, f"code {reply}")
        raise UnreachableError(f"{channel.where} can't connect to {host}:{port}: {reason}")
    match kind:
        case 1:
            await channel.receive(4 + 2)
        case 3:
            (length,) = await channel.receive(1)
            await channel.receive(length + 2)
        case 4:
            await channel.receive(16 + 2)
        case _:
            raise RemoteProtocolError(f"{channel.where} does not speak SOCKS5")


class _Channel:
    def __init__(self, sock: socket.socket, where: str) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self.where = where

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def receive(self, size: int) -> bytes:
        """Exactly so many bytes: what comes after the reply is the server's."""
        data = b""
        while len(data) < size:
            piece = await self._loop.sock_recv(self._sock, size - len(data))
            if not piece:
                raise RemoteProtocolError(f"{self.where} closed the connection in the midst of its answer")
            data += piece
        return data


async def _log_in(channel: _Channel, proxy: SocksProxy) -> None:
    methods = bytes([NOTHING, PASSWORD] if proxy.username is not None else [NOTHING])
    await channel.send(bytes((5, len(methods))) + methods)
    version, method = await channel.receive(2)
    if version != 5 or (method not in methods and method != REFUSED):
        raise RemoteProtocolError(f"{channel.where} does not speak SOCKS5")
    if method == REFUSED:
        hint = "" if proxy.username is not None else "; name a file with it after socks-proxy HOST PORT"
        raise AuthError(f"{channel.where} wants another login{hint}")
    if method == PASSWORD:
        username, password = ((text or "").encode() for text in (proxy.username, proxy.password))
        if not (0 < len(username) < 256 and 0 < len(password) < 256):
            raise AuthError(f"{channel.where}: SOCKS5 takes users and passwords of 1 to 255 bytes")
        await channel.send(bytes((1, len(username))) + username + bytes((len(password),)) + password)
        _, status = await channel.receive(2)
        if status:
            raise AuthError(f"{channel.where} refuses the login")


def _address(host: str) -> bytes:
    try:
        packed = ip_address(host).packed
    except ValueError:
        name = host.encode("idna" if not host.isascii() else "ascii")
        return bytes((3, len(name))) + name
    return bytes((1 if len(packed) == 4 else 4,)) + packed


CONNECT = 1
NOTHING, PASSWORD, REFUSED = 0, 2, 0xFF
REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "it took too long",
    7: "CONNECT is not supported",
    8: "the kind of address is not supported",
}
