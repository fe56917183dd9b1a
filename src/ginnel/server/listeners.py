"""The sockets on which clients come: UDP ones for the data plane, and TCP connections that it is given.

A TCP connection that leads to no session within the time for a handshake is closed, and so is one whose
session has ended. Where descriptors run out, accepting pauses; who is connected stays so.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace

from ginnel._core import DataPlane
from ginnel.errors import DeviceError
from ginnel.server.config import DEFAULT_PORT, Listen
from ginnel.server.journal import tell

log = logging.getLogger(__name__)


class Listeners:
    """``used`` says whether a TCP connection has a session, by its socket number."""

    def __init__(
        self, plane: DataPlane, wanted: Sequence[Listen], *, patience: float, most: int, used: Callable[[int], bool]
    ) -> None:
        """``patience``: seconds that a TCP connection has for its handshake; ``most``: connections at a time.

        Raises DeviceError where an address can't be listened on.
        """
        self._loop = asyncio.get_running_loop()
        self._plane = plane
        self._patience = patience
        self._most = most
        self._used = used
        self._accepting: list[socket.socket] = []
        self._connections: dict[int, asyncio.TimerHandle] = {}
        self._pauses: list[asyncio.TimerHandle] = []
        self.places: list[Listen] = []
        try:
            for listen in wanted or DEFAULT:
                self._open(listen, optional=not wanted and ":" in listen.address)
        except BaseException:
            self.close()
            raise

    def is_tcp(self, number: int) -> bool:
        return number in self._connections

    def forget(self, number: int) -> None:
        """A TCP connection is over. Harmless for any other number."""
        if (timer := self._connections.pop(number, None)) is not None:
            timer.cancel()
            self._plane.remove_socket(number)

    def close(self) -> None:
        """No more clients come. Those who are connected stay so."""
        for sock in self._accepting:
            self._loop.remove_reader(sock)
            sock.close()
        for timer in (*self._pauses, *self._connections.values()):
            timer.cancel()
        self._accepting.clear()

    def _open(self, listen: Listen, *, optional: bool) -> None:
        try:
            socks = _shared(listen, self._plane.lanes) if listen.proto == "udp" else [_bound(listen)]
        except OSError as error:
            if optional and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                return
            raise DeviceError(error.errno or errno.EINVAL, f"cannot listen on {listen}") from None
        address, port = socks[0].getsockname()[:2]
        self.places.append(Listen(listen.proto, address, port))
        for sock in socks:
            if listen.proto == "udp":
                self._plane.add_udp(sock.detach())
            else:
                self._accepting.append(sock)
                self._loop.add_reader(sock, self._accept, sock)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(MAX_ACCEPTS):
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listening, error)
                return
            if len(self._connections) >= self._most:
                sock.close()
                continue
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                number = self._plane.add_tcp(sock.detach())
            except OSError as error:
                log.info("a TCP connection ended at once: %s", error)
                continue
            self._connections[number] = self._loop.call_later(self._patience, self._lose_patience, number)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Accepting fails, for want of descriptors mostly: the connection waits, and would wake us at once."""
        tell("accept_failed", level=logging.WARNING, reason=error.strerror or str(error))
        self._loop.remove_reader(listening)

        def resume() -> None:
            self._pauses.remove(timer)
            if listening in self._accepting:
                self._loop.add_reader(listening, self._accept, listening)

        timer = self._loop.call_later(PAUSE, resume)
        self._pauses.append(timer)

    def _lose_patience(self, number: int) -> None:
        if not self._used(number):
            self.forget(number)


def _shared(listen: Listen, count: int) -> list[socket.socket]:
    """So many sockets at one address: the system gives each client to one of them, and always the same."""
    first = _bound(listen)
    if count == 1:
        return [first]
    place = replace(listen, port=first.getsockname()[1])
    socks = [first]
    try:
        # Only now, or the first would share its address with another program that shares.
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        socks.extend(_bound(place, shares=True) for _ in range(1, count))
    except BaseException:
        for sock in socks:
            sock.close()
        raise
    return socks


def _bound(listen: Listen, *, shares: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.address else socket.AF_INET
    kind = socket.SOCK_DGRAM if listen.proto == "udp" else socket.SOCK_STREAM
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((listen.address, listen.port))
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


DEFAULT = [
    *Listen.parse(f"0.0.0.0:{DEFAULT_PORT}"),
    *Listen.parse(f"[::]:{DEFAULT_PORT}"),
]
BACKLOG = 128
MAX_ACCEPTS = 32
PAUSE = 1.0
