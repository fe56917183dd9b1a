"""The sockets on which clients come: UDP ones for the data plane, and TCP connections that it is given.

A TCP connection that leads to no session within the time for a handshake is closed, and so is one whose
session has ended. Those that wait for a session are bounded, of all and of each address, and the oldest makes way.
Where descriptors run out, accepting pauses; who is connected stays so.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Sequence
from dataclasses import replace

from ginnel._core import DataPlane
from ginnel.errors import DeviceError
from ginnel.openvpn.strangers import origin
from ginnel.server.config import DEFAULT_PORT, Listen
from ginnel.server.journal import Rarely

log = logging.getLogger(__name__)


class Listeners:
    """Numbers are those of the data plane's sockets."""

    def __init__(self, plane: DataPlane, wanted: Sequence[Listen], *, patience: float) -> None:
        """``patience``: seconds that a TCP connection has to lead to a session.

        Raises DeviceError where an address can't be listened on.
        """
        self._loop = asyncio.get_running_loop()
        self._plane = plane
        self._patience = patience
        self._accepting: list[socket.socket] = []
        self._connections: set[int] = set()
        # Of those without a session: where from, and until when they may wait. The oldest is the first.
        self._waiting: dict[int, tuple[str, asyncio.TimerHandle]] = {}
        self._crowded = Rarely("tcp_crowded")
        self._accept_failed = Rarely("accept_failed")
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

    def settle(self, number: int) -> None:
        """A TCP connection has a session, which says from now on how long it stays. Harmless for any other number."""
        if (waiting := self._waiting.pop(number, None)) is not None:
            waiting[1].cancel()

    def forget(self, number: int) -> None:
        """A TCP connection is over. Harmless for any other number."""
        self.settle(number)
        if number in self._connections:
            self._connections.remove(number)
            self._plane.remove_socket(number)

    def close(self) -> None:
        """No more clients come. Those who are connected stay so."""
        for sock in self._accepting:
            self._loop.remove_reader(sock)
            sock.close()
        for timer in (*self._pauses, *(timer for _, timer in self._waiting.values())):
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
                sock, (address, *_) = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listening, error)
                return
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                number = self._plane.add_tcp(sock.detach())
            except OSError as error:
                log.info("a TCP connection ended at once: %s", error)
                continue
            self._connections.add(number)
            self._make_room(place := origin(address))
            self._waiting[number] = place, self._loop.call_later(self._patience, self.forget, number)

    def _make_room(self, place: str) -> None:
        """Who opens connections and says nothing keeps nobody else out."""
        own = [number for number, (other, _) in self._waiting.items() if other == place]
        if len(own) >= HALF_OPEN_EACH:
            self._crowded.tell(remote=place, reason=f"{len(own)} connections from there wait; the oldest is closed")
            self.forget(own[0])
        elif len(self._waiting) >= HALF_OPEN:
            self._crowded.tell(reason=f"{len(self._waiting)} connections wait for a session; the oldest is closed")
            self.forget(next(iter(self._waiting)))

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Accepting fails, for want of descriptors mostly: the connection waits, and would wake us at once."""
        self._accept_failed.tell(reason=error.strerror or str(error))
        self._loop.remove_reader(listening)

        def resume() -> None:
            self._pauses.remove(timer)
            if listening in self._accepting:
                self._loop.add_reader(listening, self._accept, listening)

        timer = self._loop.call_later(PAUSE, resume)
        self._pauses.append(timer)


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
# TCP connections that wait for a session, of all and from one place.
HALF_OPEN = 256
HALF_OPEN_EACH = 64
PAUSE = 1.0
