"""Proxies to run in a namespace: HTTP with Basic or Digest, and SOCKS5 with a password.

``python -m tests.harness.proxy ADDRESS [RELAY]`` listens on both ports, prints "ready", and a line for each
connection that it leads on. Datagrams are relayed at another address where one is given.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import re
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from ginnel.socks5 import datagram_header, parse_datagram
from tests.harness.network import Namespace


class Proxies:
    """Both proxies, running on an address of a namespace; datagrams are relayed there as well, or on ``relay``."""

    def __init__(self, namespace: Namespace, address: str, *relay: str) -> None:
        root = str(Path(__file__).parents[2])
        self.process = namespace.start(
            [sys.executable, "-m", "tests.harness.proxy", address, *relay], env={**os.environ, "PYTHONPATH": root}
        )
        try:
            self.process.wait_line("ready", 20)
        except BaseException:
            self.process.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.close()


async def serve_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, scheme: str) -> None:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        host, port = re.match(r"CONNECT (\S+):(\d+) HTTP", head).groups()  # type: ignore[union-attr]
        sent = re.search(r"(?im)^proxy-authorization: (.*)\r$", head)
        if sent is not None and CHECKS[scheme](sent[1], f"{host}:{port}"):
            break
        writer.write(
            f"HTTP/1.1 407 Login\r\nProxy-Authenticate: {OFFERS[scheme]}\r\nContent-Length: 2\r\n\r\nno".encode()
        )
        await writer.drain()
    await lead_on(reader, writer, host, int(port), b"HTTP/1.1 200 OK\r\n\r\n", scheme)


async def serve_socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *elsewhere: str) -> None:
    _, count = await reader.readexactly(2)
    methods = await reader.readexactly(count)
    writer.write(b"\5\2" if 2 in methods else b"\5\xff")
    await writer.drain()
    _, length = await reader.readexactly(2)
    user = await reader.readexactly(length)
    (length,) = await reader.readexactly(1)
    password = await reader.readexactly(length)
    good = (user.decode(), password.decode()) == LOGIN
    writer.write(b"\1\0" if good else b"\1\1")
    await writer.drain()
    if not good:
        return
    _, command, _, kind = await reader.readexactly(4)
    if kind == 3:
        (length,) = await reader.readexactly(1)
        host = (await reader.readexactly(length)).decode()
    else:
        packed = await reader.readexactly(4 if kind == 1 else 16)
        host = socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, packed)
    port = int.from_bytes(await reader.readexactly(2))
    if command == 3:
        await relay(reader, writer, *elsewhere)
        return
    await lead_on(reader, writer, host, port, b"\5\0\0\1\0\0\0\0\0\0", "socks")


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, elsewhere: str = "") -> None:
    """Datagrams to and fro while the connection lasts; at the proxy's own address that is not said, as with many."""
    loop = asyncio.get_running_loop()
    here = elsewhere or writer.get_extra_info("sockname")[0]
    inside, outside = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
    with inside, outside:
        for each in (inside, outside):
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
            each.bind((here, 0))
        clients: list[tuple[str, int]] = []
        longest = 0

        def outwards() -> None:
            nonlocal longest
            message, client = inside.recvfrom(1 << 16)
            datagram = parse_datagram(message)
            assert datagram is not None
            if not clients:
                relay = inside.getsockname()[0]
                print(f"datagrams go to {datagram.host}:{datagram.port} by {relay}", flush=True)
            clients[:] = [client]
            if len(message) > longest:
                longest = len(message)
                print(f"longest datagram {longest}", flush=True)
            with contextlib.suppress(BlockingIOError):
                outside.sendto(datagram.payload, (datagram.host, datagram.port))

        def inwards() -> None:
            message, server = outside.recvfrom(1 << 16)
            with contextlib.suppress(BlockingIOError):
                inside.sendto(datagram_header(*server) + message, clients[0])

        loop.add_reader(inside, outwards)
        loop.add_reader(outside, inwards)
        try:
            writer.write(b"\5\0\0\1" + socket.inet_aton(elsewhere or "0.0.0.0") + inside.getsockname()[1].to_bytes(2))
            await reader.read()
        finally:
            loop.remove_reader(inside)
            loop.remove_reader(outside)


async def lead_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int, reply: bytes, how: str
) -> None:
    there, back = await asyncio.open_connection(host, port)
    writer.write(reply)
    print(f"{how} leads to {host}:{port}", flush=True)
    await asyncio.gather(copy(reader, back), copy(there, writer))


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


def check_basic(value: str, target: str) -> bool:
    return value == "Basic " + base64.b64encode(":".join(LOGIN).encode()).decode()


def check_digest(value: str, target: str) -> bool:
    said = {name: quoted or bare for name, quoted, bare in re.findall(r'(\w+)=(?:"([^"]*)"|([^,\s]*))', value)}

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    middle = f"{NONCE}:{said['nc']}:{said['cnonce']}:auth"
    wanted = digest(f"{digest(f'{LOGIN[0]}:proxy:{LOGIN[1]}')}:{middle}:{digest(f'CONNECT:{target}')}")
    return said["username"] == LOGIN[0] and said["nonce"] == NONCE and said["response"] == wanted


async def main(address: str, *elsewhere: str) -> None:
    async def quiet(serve: object, *arguments: object) -> None:
        with contextlib.suppress(OSError, EOFError):
            await serve(*arguments)  # type: ignore[operator]
        arguments[1].close()  # type: ignore[attr-defined]

    for scheme, port in (("basic", BASIC_PORT), ("digest", DIGEST_PORT)):
        await asyncio.start_server(lambda r, w, scheme=scheme: quiet(serve_http, r, w, scheme), address, port)
    await asyncio.start_server(lambda r, w: quiet(serve_socks, r, w, *elsewhere), address, SOCKS_PORT)
    print("ready", flush=True)
    await asyncio.Event().wait()


LOGIN = ("carol", "proxy pass")
SO_RCVBUFFORCE = 33
NONCE = "0123456789abcdef"
BASIC_PORT, DIGEST_PORT, SOCKS_PORT = 3128, 3129, 1080
OFFERS = {
    "basic": 'Basic realm="proxy"',
    "digest": f'Digest realm="proxy", qop="auth", algorithm=SHA-256, nonce="{NONCE}"',
}
CHECKS = {"basic": check_basic, "digest": check_digest}

if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
