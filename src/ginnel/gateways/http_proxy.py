"""An HTTP proxy (RFC 9110, RFC 9112): CONNECT, and requests for ``http://`` addresses.

What follows a CONNECT goes to the stack's thread as with SOCKS. Other requests are passed on in Python, each on a
connection of its own: between two of them the client may turn to another host.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import h11

from ginnel.errors import GinnelError
from ginnel.gateways.relay import Acceptor, Failures, Listener
from ginnel.gateways.socks5 import Login
from ginnel.stack.sockets import Flow

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
T = TypeVar("T")


class Outlet(Protocol):
    """What the proxy needs of a `ginnel.stack.Stack`."""

    async def connect_flow(self, host: str, port: int) -> Flow: ...

    async def open_connection(self, host: str, port: int) -> Streams: ...

    def attach(self, flow: Flow, sock: socket.socket) -> None: ...

    def abort(self, flow: Flow) -> None: ...


class HttpProxy:
    """Takes requests of HTTP clients into the tunnel. Names are resolved there."""

    def __init__(self, stack: Outlet, listener: Listener, login: Login | None = None) -> None:
        """With ``login`` clients have to give it (Basic)."""
        self._stack = stack
        self._login = login
        self._failures = Failures("HTTP proxy")
        self._acceptor = Acceptor(listener, self._serve)

    async def aclose(self) -> None:
        """Stops listening, and drops plain requests. Tunnels that CONNECT made go on."""
        await self._acceptor.aclose()

    async def _serve(self, sock: socket.socket) -> None:
        client = _Client(sock)
        try:
            while await self._answer(client):
                client.http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            await client.refuse(_RefusedError(error.error_status_hint, "the request is not HTTP"))

    async def _answer(self, client: _Client) -> bool:
        """Answers one request. Returns whether another may follow."""
        async with asyncio.timeout(HEAD_SECONDS):
            request = await client.next_request()
        if request is None:
            return False
        try:
            self._check_login(request)
            if request.method == b"CONNECT":
                await self._tunnel(client, request)
                return False
            host, port, passed_on = _onward(request)
            reader, writer = await self._reach(self._stack.open_connection, host, port)
        except _RefusedError as refused:
            await client.refuse(refused)
            return False
        try:
            await _exchange(client, passed_on, reader, writer)
        finally:
            writer.transport.abort()
        return client.http.our_state is h11.DONE and client.http.their_state is h11.DONE

    async def _tunnel(self, client: _Client, request: h11.Request) -> None:
        host, port = _authority(request.target)
        if _has_content(request):
            raise _RefusedError(400, "CONNECT has no content")
        await client.next_event()  # the request's end
        flow = await self._reach(self._stack.connect_flow, host, port)
        try:
            await client.send(h11.Response(status_code=200, headers=[], reason="Connection established"))
        except BaseException:
            self._stack.abort(flow)
            raise
        self._stack.attach(flow, client.sock)

    async def _reach(self, connect: Callable[[str, int], Awaitable[T]], host: str, port: int) -> T:
        try:
            return await connect(host, port)
        except (OSError, GinnelError) as error:
            why = self._failures.tell(host, port, error)
            status = 504 if isinstance(error, TimeoutError) else 502
            raise _RefusedError(status, f"cannot reach {host} port {port}: {why}") from None

    def _check_login(self, request: h11.Request) -> None:
        if self._login is None:
            return
        wanted = b"basic " + base64.b64encode(f"{self._login.username}:{self._login.password}".encode())
        for name, value in request.headers:
            if name == b"proxy-authorization":
                scheme, _, rest = value.partition(b" ")
                if hmac.compare_digest(scheme.lower() + b" " + rest.strip(), wanted):
                    return
        raise _RefusedError(407, "this proxy asks for a user and a password", [(b"Proxy-Authenticate", CHALLENGE)])


class _RefusedError(Exception):
    """The client is told a status and a line of text, and dropped."""

    def __init__(self, status: int, text: str, headers: Headers | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers or []


class _Client:
    """A client's connection: HTTP on a non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    async def next_request(self) -> h11.Request | None:
        """The next request's head, and no byte that follows it. None where the client has ended. TimeoutError."""
        head = await self._read_head()
        if not head:
            return None
        self.http.receive_data(head)
        event = self.http.next_event()
        if not isinstance(event, h11.Request):
            raise h11.RemoteProtocolError("no request", error_status_hint=431 if len(head) == MAX_HEAD else 400)
        return event

    async def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """What follows a request's head."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await asyncio.get_running_loop().sock_recv(self.sock, CHUNK))
        return event

    async def send(self, event: h11.Event) -> None:
        data = self.http.send(event)
        if data:
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def refuse(self, refused: _RefusedError) -> None:
        """Says why, where nothing else was said."""
        if self.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        text = f"{refused}\n".encode()
        headers = [(b"Content-Type", b"text/plain; charset=utf-8"), (b"Content-Length", b"%d" % len(text))]
        answer = h11.Response(
            status_code=refused.status,
            headers=[*headers, *refused.headers, (b"Connection", b"close")],
            reason=HTTPStatus(refused.status).phrase,
        )
        await self.send(answer)
        # A HEAD is answered without the text.
        with contextlib.suppress(h11.LocalProtocolError):
            await self.send(h11.Data(data=text))
            await self.send(h11.EndOfMessage())
        await self._see_off()

    async def _see_off(self) -> None:
        """Waits a little for the client to end: a socket closed with bytes unread resets, and the answer is lost."""
        self.sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(FAREWELL_SECONDS):
            while await asyncio.get_running_loop().sock_recv(self.sock, CHUNK):
                pass

    async def _read_head(self) -> bytes:
        head = b""
        while len(head) < MAX_HEAD:
            await _readable(self.sock)
            try:
                seen = self.sock.recv(MAX_HEAD - len(head), socket.MSG_PEEK)
            except BlockingIOError:
                continue
            end = HEAD_END.search(head + seen, max(0, len(head) - 2))
            taken = self.sock.recv(len(seen) if end is None else end.end() - len(head)) if seen else b""
            head += taken
            if end is not None or not taken:
                break
        return head


async def _exchange(
    client: _Client, request: h11.Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Passes a request on, and the answer back. What the server does wrong is a 502, or an answer cut off."""
    server = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    writer.write(server.send(request) or b"")
    sending = asyncio.get_running_loop().create_task(_pass_content(client, server, writer))
    try:
        await _pass_answer(client, server, reader, close=_has_content(request))
    except (OSError, EOFError, h11.RemoteProtocolError) as error:
        # The client's own fault comes first: it ended the server's side, too.
        if sending.done() and (cause := sending.exception()) is not None:
            raise cause from None
        log.info("HTTP proxy: %s", error)
        await client.refuse(_RefusedError(502, "the server broke the connection off, or does not speak HTTP"))
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _pass_content(client: _Client, server: h11.Connection, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            event = await client.next_event()
            if not isinstance(event, h11.Data | h11.EndOfMessage):
                raise EOFError("the client ended in the middle of its request")
            writer.write(server.send(event) or b"")
            await writer.drain()
            if isinstance(event, h11.EndOfMessage):
                return
    except BaseException:
        writer.transport.abort()
        raise


async def _pass_answer(client: _Client, server: h11.Connection, reader: asyncio.StreamReader, *, close: bool) -> None:
    while True:
        event = server.next_event()
        if event is h11.NEED_DATA:
            async with asyncio.timeout(SILENCE_SECONDS):
                server.receive_data(await reader.read(CHUNK))
        elif isinstance(event, h11.InformationalResponse) and event.status_code != SWITCHING:
            await client.send(event)
        elif isinstance(event, h11.Response):
            # Behind content there may be bytes of the next request already, which a CONNECT could not do without.
            end = [(b"Connection", b"close")] if close else []
            headers = [*_end_to_end(event.headers), *end]
            await client.send(h11.Response(status_code=event.status_code, headers=headers, reason=event.reason))
        elif isinstance(event, h11.Data):
            await client.send(h11.Data(data=bytes(event.data)))
        elif isinstance(event, h11.EndOfMessage):
            await client.send(h11.EndOfMessage())
            return
        else:
            raise EOFError("the server closed the connection without an answer")


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _settle, readable)
    try:
        await readable
    finally:
        loop.remove_reader(sock)


def _settle(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)


def _onward(request: h11.Request) -> tuple[str, int, h11.Request]:
    """Host and port of a request for an absolute address, and what the server there gets."""
    target = request.target.decode("ascii", "replace")
    try:
        url = urlsplit(target)
        host, port = url.hostname, url.port or 80
    except ValueError:
        raise _RefusedError(400, "that is no address") from None
    if url.scheme != "http" or not host or "@" in url.netloc:
        raise _RefusedError(400, "this is a proxy, for CONNECT and for addresses that begin with http://")
    path = target[target.index(url.netloc) + len(url.netloc) :].partition("#")[0]
    if not path.startswith("/"):
        path = "*" if request.method == b"OPTIONS" and not path else f"/{path}"
    headers = [pair for pair in _end_to_end(request.headers) if pair[0] != b"host"]
    headers = [(b"Host", url.netloc.encode()), *headers, (b"Connection", b"close")]
    return host, port, h11.Request(method=request.method, target=path, headers=headers)


def _authority(target: bytes) -> tuple[str, int]:
    try:
        url = urlsplit(f"//{target.decode('ascii')}")
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if not host or not port or url.netloc != target.decode("ascii") or "@" in url.netloc:
        raise _RefusedError(400, "CONNECT takes HOST:PORT")
    return host, port


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Without what is between two neighbours only (RFC 9110, 7.6.1). The framing stays, h11 does it on either side."""
    named = {
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    }
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP | (named - FRAMING)]


def _has_content(request: h11.Request) -> bool:
    return any(name in FRAMING and value != b"0" for name, value in request.headers)


HEAD_SECONDS = 60.0
"""How long a client may take for a request's head, and between two requests."""
SILENCE_SECONDS = 300.0
FAREWELL_SECONDS = 2.0
MAX_HEAD = 64 * 1024
CHUNK = 64 * 1024
SWITCHING = 101
HEAD_END = re.compile(rb"\n\r?\n")
CHALLENGE = b'Basic realm="ginnel", charset="UTF-8"'
FRAMING = frozenset((b"content-length", b"transfer-encoding"))
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"upgrade",
    )
)
