"""A lent program's NETLINK_ROUTE sockets: SOCK_SEQPACKET pairs that look like netlink from its end.

The program's sendmsg and recvmsg are not trapped. A program that looks where a message came from finds 12 bytes,
as long as a netlink address, whose port is 0, the kernel's: our end of the pair is bound to an abstract address made
so.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Self

from ginnel.device.lend import messages as nl
from ginnel.device.lend.rtnetlink import RouteNetlink

log = logging.getLogger(__name__)


class NetlinkSocket:
    """Our end of one. ``port`` is what the program's own address shows, ``kind`` what it asked for: SOCK_RAW or
    SOCK_DGRAM."""

    def __init__(self, routes: RouteNetlink, port: int, kind: int, ours: socket.socket) -> None:
        self.port = port
        self.kind = kind
        self.groups = 0
        self.dropped = 0
        """Messages that the program left no room for."""
        self._overrun = b""
        self._routes = routes
        self._socket = ours
        # Each with whether it is part of an answer; how many are not, and how many are: neither takes the other's room.
        self._waiting: deque[tuple[bytes, bool]] = deque()
        self._counts = [0, 0]
        self._kernel: socket.socket | None = None
        self._on_close: Callable[[], object] = lambda: None
        self._loop = asyncio.get_running_loop()

    @classmethod
    def make(cls, routes: RouteNetlink, port: int, kind: int) -> tuple[Self, socket.socket]:
        """One, and the program's end of it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        while True:
            chance = secrets.token_bytes(5)
            try:
                ours.bind(b"\0" + chance[:1] + bytes(4) + chance[1:])
                return cls(routes, port, kind, ours), theirs
            except OSError:
                # Somebody has it: one in 2**40.
                continue

    def serve(self, on_close: Callable[[], object]) -> None:
        """Answers until the program has closed it; then calls ``on_close``."""
        self._on_close = on_close
        self._loop.add_reader(self._socket, self._read)
        self._routes.listeners.add(self)

    def close(self) -> None:
        """Idempotent."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._routes.listeners.discard(self)
        self._socket.close()
        self._follow_kernel(0)
        self._on_close()

    def join_groups(self, groups: int) -> None:
        """What the program wants to hear of: a bit a group."""
        self.groups = groups
        self._follow_kernel(groups)

    def change_membership(self, group: int, join: bool) -> None:
        """As `join_groups`, for one by its number, from 1 on. Those past 32 are never heard of."""
        if 1 <= group <= 32:
            bit = 1 << (group - 1)
            self.join_groups(self.groups | bit if join else self.groups & ~bit)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_LONGEST)
        except BlockingIOError:
            return
        except OSError:
            # Closed with answers unread.
            self.close()
            return
        if not data:
            if self._is_hung_up():
                self.close()
            return
        answers = self._routes.answer(data, self.port)
        if self._counts[True] < _MOST_WAITING:
            # All of them: somebody waits for the end of a dump.
            for each in answers:
                self._queue(each, True)
        else:
            self._lose(len(answers), list(nl.parse_messages(data))[-1:])
        self._write()

    def tell(self, message: bytes) -> None:
        """Announces a change."""
        if self._counts[False] < _MOST_WAITING:
            self._queue(message, False)
        else:
            self._lose(1, [])
        self._write()

    def _queue(self, message: bytes, answer: bool) -> None:
        self._waiting.append((message, answer))
        self._counts[answer] += 1

    def _lose(self, count: int, requests: list[nl.Message]) -> None:
        """The program is told when it has read the rest: ENOBUFS, as an answer to the last request that has none."""
        self.dropped += count
        if requests or not self._overrun:
            request = requests[0] if requests else nl.Message(nl.NLMSG_NOOP, 0, 0, b"")
            self._overrun = nl.acknowledge(request, self.port, errno.ENOBUFS).pack(self.port)

    def _write(self) -> None:
        while self._waiting or self._overrun:
            if not self._waiting:
                self._queue(self._overrun, False)
                self._overrun = b""
            try:
                self._socket.send(self._waiting[0][0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._write)
                return
            except OSError:
                self.close()
                return
            _, answer = self._waiting.popleft()
            self._counts[answer] -= 1
        if self._socket.fileno() >= 0:
            self._loop.remove_writer(self._socket)

    def _is_hung_up(self) -> bool:
        # An empty message looks the same as the end.
        poll = select.poll()
        poll.register(self._socket, 0)
        return bool(poll.poll(0))

    def _follow_kernel(self, groups: int) -> None:
        """Passes on what the kernel announces to these groups."""
        if self._kernel is not None:
            self._loop.remove_reader(self._kernel)
            self._kernel.close()
            self._kernel = None
        if not groups:
            return
        kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            kernel.setblocking(False)
            kernel.bind((0, groups))
        except OSError as error:
            log.info("the kernel's announcements are not passed on: %s", error)
            kernel.close()
            return
        self._kernel = kernel
        self._loop.add_reader(kernel, self._pass_on, kernel)

    def _pass_on(self, kernel: socket.socket) -> None:
        try:
            self.tell(kernel.recv(_LONGEST))
        except OSError as error:
            # ENOBUFS: some were lost, as they are for everyone who is slow.
            self._lose(1, [])
            self._write()
            log.debug("the kernel's announcements: %s", error)


_BUFFER = 1 << 20
_LONGEST = 1 << 17
_MOST_WAITING = 8192
