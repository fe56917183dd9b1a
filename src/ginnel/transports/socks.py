"""A way through a SOCKS5 proxy: CONNECT and UDP ASSOCIATE (RFC 1928), with a user and password where it asks
(RFC 1929)."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from ginnel.errors import AuthError, RemoteProtocolError, UnreachableError
from ginnel.openvpn.config import SocksProxy
from ginnel.socks5 import IPV4, IPV6, NAME, emit_address
from ginnel.transports.dial import Address


async def connect(sock: socket.socket, proxy: SocksProxy, host: str, port: int) -> None:
    """Leads a connection to the proxy on to host and port; a name is resolved there.

    Raises OSError, AuthError when the proxy refuses the login, UnreachableError when it can't reach the
    server or ends, RemoteProtocolError for what is no SOCKS5.
    """
    channel = _Channel(sock, f"the proxy {proxy.host}:{proxy.port}")
    await _log_in(channel, proxy)
    await _request(channel, CONNECT, host, port, f"connect to {host}:{port}")


async def associate(sock: socket.socket, proxy: SocksProxy) -> Address:
    """Has the proxy relay datagrams for as long as this connection to it stays open. Returns where they go, each
    behind `ginnel.socks5.datagram_header`.

    Raises as `connect` does.
    """
    channel = _Channel(sock, f"the proxy {proxy.host}:{proxy.port}")
    await _log_in(channel, proxy)
    # Which port of ours they will come from, and from which address behind a NAT, we don't know.
    host, port = await _request(channel, UDP_ASSOCIATE, "0.0.0.0", 0, "relay datagrams")
    if not port or not _is_address(host):
        raise RemoteProtocolError(f"{channel.where} gives no address that datagrams go to")
    return (sock.getpeername()[0] if host in ("0.0.0.0", "::") else host), port


def _is_address(host: str) -> bool:
    """A name would have to be resolved here, by whom the way through the proxy is not to be told."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _request(channel: _Channel, command: int, host: str, port: int, what: str) -> Address:
    """Asks for something; returns the address in the answer."""
    await channel.send(bytes((5, command, 0)) + emit_address(host, port))
    version, reply, _, kind = await channel.receive(4)
    if version != 5:
        raise RemoteProtocolError(f"{channel.where} does not speak SOCKS5")
    if reply:
        reason = REPLIES.get(reply, f"code {reply}")
        raise UnreachableError(f"{channel.where} can't {what}: {reason}")
    if kind == IPV4:
        bound = str(IPv4Address(await channel.receive(4)))
    elif kind == IPV6:
        bound = str(IPv6Address(await channel.receive(16)))
    elif kind == NAME:
        (length,) = await channel.receive(1)
        bound = (await channel.receive(length)).decode("ascii", "replace")
    else:
        raise RemoteProtocolError(f"{channel.where} does not speak SOCKS5")
    return bound, int.from_bytes(await channel.receive(2))


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
                raise UnreachableError(f"{self.where} closed the connection in the midst of its answer")
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
        username, password = (
            (text or "").encode(errors="surrogateescape") for text in (proxy.username, proxy.password)
        )
        if not (0 < len(username) < 256 and 0 < len(password) < 256):
            raise AuthError(f"{channel.where}: SOCKS5 takes users and passwords of 1 to 255 bytes")
        await channel.send(bytes((1, len(username))) + username + bytes((len(password),)) + password)
        _, status = await channel.receive(2)
        if status:
            raise AuthError(f"{channel.where} refuses the login")


CONNECT, UDP_ASSOCIATE = 1, 3
NOTHING, PASSWORD, REFUSED = 0, 2, 0xFF
REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "it took too long",
    7: "it does not support that",
    8: "the kind of address is not supported",
}
