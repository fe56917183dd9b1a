"""What the gateways share: accepting connections, and joining one with a stream of the tunnel.

A gateway reads the first words of a connection in Python, exactly as many bytes as it needs; then
both descriptors go to the stack's thread and Python sees no byte of the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from ginnel.errors import ConfigError, DeviceError

log = logging.getLogger(__name__)

Handler = Callable[[socket.socket], Awaitable[None]]
"""Serves one accepted, non-blocking connection; it detaches the socket when the stack takes it over."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gateway listens: a TCP address, or the path of a unix socket."""

    host: str = "127.0.0.1"
    port: int = 0
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``[ADDR:]PORT`` or ``unix:PATH``; an IPv6 address stands in brackets.

        Raises ConfigError.
        """
        if text.startswith("unix:"):
            if not text[5:]:
                raise ConfigError(f"'{text}' names no path", instead="write unix:PATH")
            if len(os.fsencode(text[5:])) > LONGEST_PATH:
                raise ConfigError(f"the path in '{text}' is longer than {LONGEST_PATH} bytes")
            return cls(path=Path(text[5:]))
        host, separator, port = text.rpartition(":")
        if not separator:
            host = "127.0.0.1"
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ConfigError(f"'{text}' is no place to listen", instead="write [ADDR:]PORT or unix:PATH")
        try:
            ipaddress.ip_address(host)
        except ValueError:
            if host != "localhost":
                raise ConfigError(
                    f"'{host}' in '{text}' is no address to listen on", instead="write [ADDR:]PORT"
                ) from None
            host = "127.0.0.1"
        return cls(host, int(port))

    @property
    def is_private(self) -> bool:
        """Whether only this user (a unix socket) or this machine (loopback) can reach it."""
        return self.path is not None or ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Listener:
    """A socket that listens at an address. Made before there is anything to serve, so that an address
    that is taken is found out at once; connections wait in the system's backlog meanwhile."""

    def __init__(self, address: Address) -> None:
        """Raises DeviceError when the system refuses it."""
        try:
            self.socket = _unix_socket(address.path) if address.path is not None else _tcp_socket(address)
        except OSError as error:
            raise DeviceError(error.errno or errno.EIO, f"cannot listen on {address}") from error
        self._inode = address.path.stat().st_ino if address.path is not None else None
        port = 0 if address.path is not None else self.socket.getsockname()[1]
        self.address = replace(address, port=port)

    def close(self) -> None:
        """Stops listening, and removes the path if it is still ours. Idempotent."""
        if self.socket.fileno() < 0:
            return
        self.socket.close()
        path = self.address.path
        if path is not None:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == self._inode:
                    path.unlink()


def listen_everywhere(port: int) -> Listener:
    """At every address of this machine: of both families, or of IPv4 where there is no IPv6. Raises DeviceError."""
    try:
        return Listener(Address("::", port))
    except DeviceError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
    return Listener(Address("0.0.0.0", port))


class Acceptor:
    """Gives each connection of a listener to a handler, in a task of its own.

    At most ``limit`` connections are with their handlers at a time; further ones wait in the
    system's backlog. Where descriptors run out, it waits and goes on; those who are in are not
    disturbed. What a handler raises ends its connection only.
    """

    def __init__(self, listener: Listener, handler: Handler, *, limit: int = 1024) -> None:
        self._listener = listener
        self._handler = handler
        self._limit = asyncio.Semaphore(limit)
        self._tasks: set[asyncio.Task[None]] = set()
        self._tasks.add(asyncio.get_running_loop().create_task(self._accept(listener.socket)))

    async def aclose(self) -> None:
        """Stops listening and drops the connections that are still with their handlers."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop, waits = asyncio.get_running_loop(), False
        while True:
            await self._limit.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._limit.release()
                if error.errno in _EXHAUSTED:
                    log.log(logging.DEBUG if waits else logging.WARNING, "cannot accept: %s; waiting", error.strerror)
                    waits = True
                    await asyncio.sleep(_BACK_OFF)
                    continue
                if error.errno in _GONE_ALREADY:
                    continue
                log.error("no longer accepting connections: %s", error)
                return
            except BaseException:
                self._limit.release()
                raise
            waits = False
            connection.setblocking(False)
            task = loop.create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            await self._handler(connection)
        except (OSError, EOFError, TimeoutError) as error:
            log.debug("connection dropped: %s", error)
        except Exception:
            log.exception("connection dropped")
        finally:
            self._limit.release()
            connection.close()


async def read_exactly(connection: socket.socket, count: int) -> bytes:
    """Reads ``count`` bytes and not one more. EOFError when the other side ends before."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < count:
        more = await loop.sock_recv(connection, count - len(data))
        if not more:
            raise EOFError("the other side closed the connection early")
        data += more
    return bytes(data)


class Failures:
    """Says in the log what could not be done: each text once a minute, and not many in all."""

    def __init__(self, what: str) -> None:
        """``what`` begins each line."""
        self._what = what
        self._told: set[str] = set()
        self._since = -FORGET

    def tell(self, host: str, port: int, error: Exception) -> str:
        """What could not be reached. Returns why, for whoever is told otherwise."""
        why = reason(error)
        self.say(f"cannot reach {host} port {port}: {why}")
        return why

    def say(self, text: str) -> None:
        if (now := time.monotonic()) > self._since + FORGET:
            self._told, self._since = set(), now
        text = f"{self._what}: {text}"
        is_new = text not in self._told and len(self._told) < MOST_TOLD
        log.log(logging.WARNING if is_new else logging.INFO, "%s", text)
        if is_new:
            self._told.add(text)


def reason(error: Exception) -> str:
    """What an error says to people, without its number."""
    return getattr(error, "strerror", None) or str(error) or "no answer in time"


def reset(connection: socket.socket) -> None:
    """Closes a TCP connection so that the other side sees a reset, not an orderly end."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _tcp_socket(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.host == "::":
            # IPv4 too, whatever the system's default is.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((address.host, address.port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _unix_socket(path: Path) -> socket.socket:
    # A socket left behind by a process that was killed refuses connections; one in use does not.
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(os.fspath(path))
                except ConnectionRefusedError:
                    path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Between bind and chmod the socket does not listen yet, so nobody can slip in.
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


LONGEST_PATH = 107
"""Of a unix socket (``sun_path``, unix(7))."""
FORGET = 60.0
"""Seconds after which what failed is news again."""
MOST_TOLD = 20

_BACKLOG = 1024
_BACK_OFF = 0.2
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_GONE_ALREADY = {errno.ECONNABORTED, errno.EPROTO, errno.EAGAIN, errno.EINTR}
