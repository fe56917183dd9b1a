"""A way through an HTTP proxy: CONNECT, with Basic or Digest authentication."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

import h11

from ginnel.errors import AuthError, RemoteProtocolError, UnreachableError
from ginnel.openvpn.config import HttpProxy
from ginnel.openvpn.words import escape
from ginnel.transports import http_auth

Dial = Callable[[], Awaitable[socket.socket]]
Credentials = Callable[[], Awaitable[tuple[str, str] | None]]


async def connect(dial: Dial, proxy: HttpProxy, host: str, port: int, credentials: Credentials) -> socket.socket:
    """A connection to host and port through the proxy that ``dial`` connects to.

    The proxy gets ``credentials`` only when it asks, and the password itself only where it takes nothing
    better. Raises OSError, AuthError when the proxy refuses the login, UnreachableError for other refusals,
    RemoteProtocolError for what is no HTTP.
    """
    name = host if host.isascii() else host.encode("idna").decode()
    authority = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    authorization: str | None = None
    sock: socket.socket | None = None
    where = f"the proxy {proxy.host}:{proxy.port}"
    try:
        for _ in range(MAX_TRIES):
            if sock is None:
                sock = await dial()
            response, reusable = await _ask(sock, _request(proxy, authority, authorization), where)
            if 200 <= response.status_code < 300:
                connected, sock = sock, None
                return connected
            if response.status_code != 407:
                reason = escape(bytes(response.reason).decode("latin-1"))
                raise UnreachableError(f"{where} refuses to connect to {authority}: {response.status_code} {reason}")
            if authorization is not None and not _is_stale(response):
                raise AuthError(f"{where} refuses the login")
            authorization = await _authorization(proxy, response, authority, credentials, where)
            if not reusable:
                sock.close()
                sock = None
        raise AuthError(f"{where} asks for a login again and again")
    finally:
        if sock is not None:
            sock.close()


def _request(proxy: HttpProxy, authority: str, authorization: str | None) -> h11.Request:
    headers = [("Host", authority), *([("User-Agent", proxy.agent)] if proxy.agent else [])]
    # A header of the file's own replaces ours of that name.
    own = {name.lower() for name, _ in proxy.headers}
    headers = [pair for pair in headers if pair[0].lower() not in own] + list(proxy.headers)
    if authorization is not None:
        headers.append(("Proxy-Authorization", authorization))
    # A user of Digest's stands in it as the proxy is to read it.
    fields = [(name.encode(), value.encode(errors="surrogateescape")) for name, value in headers]
    return h11.Request(method="CONNECT", target=authority, headers=fields)


async def _ask(sock: socket.socket, request: h11.Request, where: str) -> tuple[h11.Response, bool]:
    """The answer, and whether the connection is good for another question."""
    loop = asyncio.get_running_loop()
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    await loop.sock_sendall(sock, (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    response: h11.Response | None = None
    size = 0
    ended = False
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await loop.sock_recv(sock, 4096)
                size += len(data)
                ended = not data
                if size > MAX_ANSWER:
                    raise RemoteProtocolError(f"{where} answers with more than {MAX_ANSWER} bytes")
                connection.receive_data(data)
            elif isinstance(event, h11.Response):
                response = event
                if 200 <= event.status_code < 300:
                    if connection.trailing_data[0]:
                        raise RemoteProtocolError(f"{where} sent data before the server could have")
                    return response, False
            elif isinstance(event, h11.EndOfMessage):
                assert response is not None
                return response, connection.their_state is h11.DONE
            elif isinstance(event, h11.ConnectionClosed | type(h11.PAUSED)):
                raise UnreachableError(f"{where} closed the connection without an answer")
    except h11.RemoteProtocolError as error:
        if ended:
            raise UnreachableError(f"{where} closed the connection in the midst of its answer") from None
        raise RemoteProtocolError(f"{where} does not speak HTTP: {escape(str(error))}") from None


async def _authorization(
    proxy: HttpProxy, response: h11.Response, authority: str, credentials: Credentials, where: str
) -> str:
    headers = [value for name, value in response.headers if name == b"proxy-authenticate"]
    asked = [value.decode(errors="surrogateescape") for value in headers]
    challenges = http_auth.parse_challenges(asked)
    if not proxy.cleartext:
        challenges = [challenge for challenge in challenges if challenge.scheme != "basic"]
    if not challenges:
        kinds = ", ".join(http_auth.schemes(asked)[:MAX_KINDS]) or "none that it names"
        raise AuthError(f"{where} asks for a login of a kind that is not supported or not allowed: {kinds}")
    who = await credentials()
    if who is None:
        raise AuthError(f"{where} asks for a login, and there is none; name a file with it after http-proxy HOST PORT")
    try:
        return http_auth.answer(challenges[0], *who, "CONNECT", authority, os.urandom(16).hex())
    except ValueError as error:
        raise AuthError(f"{where}: {error}") from None


def _is_stale(response: h11.Response) -> bool:
    values = b",".join(value for name, value in response.headers if name == b"proxy-authenticate")
    return b"stale=true" in values.lower().replace(b" ", b"").replace(b'"', b"")


MAX_HEAD = 16 * 1024
# So many kinds of a login are named to the user.
MAX_KINDS = 4
MAX_ANSWER = 256 * 1024
# The question, the answer to its challenge, and once more for a nonce that grew old in between.
MAX_TRIES = 3
