"""A SOCKS5 client of our own (RFC 1928), for tests that need more of it than curl gives."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from tests.harness.network import Namespace

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def open_gateway(namespace: Namespace, socks: str) -> Stream:
    """A connection to the gateway ``ADDR:PORT`` in a namespace, on which nothing was said yet."""
    host, _, port = socks.rpartition(":")
    sock = namespace.socket()
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        return await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise


async def open_connection(namespace: Namespace, socks: str, host: str, port: int) -> Stream:
    """A stream through the gateway. ConnectionError with the reply's code if it is refused."""
    reader, writer = await open_gateway(namespace, socks)
    try:
        writer.write(GREETING + request(host, port))
        await reader.readexactly(2)
        reply = await reader.readexactly(4)
        if reply[1]:
            raise ConnectionError(f"SOCKS reply {reply[1]}")
        await reader.readexactly({1: 4, 4: 16}[reply[3]] + 2)
    except BaseException:
        await close(writer)
        raise
    return reader, writer


def request(host: str, port: int) -> bytes:
    """CONNECT to a name."""
    name = host.encode()
    return bytes([5, 1, 0, 3, len(name)]) + name + port.to_bytes(2)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def reset(writer: asyncio.StreamWriter) -> None:
    """Vanishes: the other side gets a reset."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    writer.transport.abort()


async def get(namespace: Namespace, socks: str, path: str, host: str = "files.office") -> bytes:
    """The body that HTTP gives for a path."""
    reader, writer = await open_connection(namespace, socks, host, 80)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.split()[1] == b"200", head
        return await reader.read()
    finally:
        await close(writer)


GREETING = b"\x05\x01\x00"
