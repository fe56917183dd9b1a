"""A server's counters over HTTP, for Prometheus to fetch."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import h11

from ginnel.gateways.relay import Acceptor, Listener
from ginnel.server.metrics import metrics
from ginnel.server.service import Server
from ginnel.server.status import describe


class Exporter:
    """Answers ``GET /metrics``, one request a connection, from now on until `aclose`."""

    def __init__(self, server: Server, listener: Listener) -> None:
        self._server = server
        self._acceptor = Acceptor(listener, self._answer, limit=MOST)

    async def aclose(self) -> None:
        await self._acceptor.aclose()

    async def _answer(self, sock: socket.socket) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        with contextlib.suppress(OSError, TimeoutError, h11.RemoteProtocolError):
            async with asyncio.timeout(PATIENCE):
                request = await _request(sock, connection)
                if request is None:
                    return
                status, text = self._page(request)
                await asyncio.get_running_loop().sock_sendall(sock, _response(connection, request, status, text))

    def _page(self, request: h11.Request) -> tuple[int, str]:
        if request.method not in (b"GET", b"HEAD"):
            return 405, "only GET\n"
        if request.target.partition(b"?")[0] != b"/metrics":
            return 404, "the counters are at /metrics\n"
        return 200, metrics(describe(self._server))


async def _request(sock: socket.socket, connection: h11.Connection) -> h11.Request | None:
    """None for who sends no whole request."""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        connection.receive_data(await asyncio.get_running_loop().sock_recv(sock, 4096))


def _response(connection: h11.Connection, request: h11.Request, status: int, text: str) -> bytes:
    body = text.encode()
    headers = [
        ("Content-Type", "text/plain; version=0.0.4; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    data = connection.send(h11.Response(status_code=status, headers=headers)) or b""
    if request.method != b"HEAD":
        data += connection.send(h11.Data(data=body)) or b""
    return data + (connection.send(h11.EndOfMessage()) or b"")


# Connections at a time, seconds for one, and bytes of a request's head.
MOST = 16
PATIENCE = 10.0
MAX_REQUEST = 8192
