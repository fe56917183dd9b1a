"""What happens to this machine: its routes and addresses change, it sleeps and wakes."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections.abc import AsyncIterator


async def network_changes() -> AsyncIterator[None]:
    """One item a moment after links, addresses or routes changed, however many changes there were.

    Ends at once on a system that has no such news to tell.
    """
    try:
        news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    except (OSError, AttributeError):
        return
    loop = asyncio.get_running_loop()
    with news:
        news.setblocking(False)
        news.bind((0, GROUPS))
        while True:
            await _change(loop, news)
            # One change of the network is many messages; the last of them leaves it usable.
            await asyncio.sleep(SETTLING)
            _drain(news)
            yield


async def sleeps() -> AsyncIterator[float]:
    """The seconds that the machine was suspended for, each time it wakes from more than a moment."""
    before = _suspended()
    while True:
        await asyncio.sleep(TICK)
        now = _suspended()
        if now - before > MOMENT:
            yield now - before
        before = now


async def _change(loop: asyncio.AbstractEventLoop, news: socket.socket) -> None:
    try:
        while not CHANGES.intersection(_kinds(await loop.sock_recv(news, 1 << 16))):
            pass
    except OSError as error:
        # So many changes at once that some got lost are a change as well.
        if error.errno != errno.ENOBUFS:
            raise


def _drain(news: socket.socket) -> None:
    while True:
        try:
            news.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


def _kinds(messages: bytes) -> list[int]:
    """The types of the netlink messages (``linux/netlink.h``)."""
    kinds, at = [], 0
    while at + HEADER.size <= len(messages):
        length, kind, _, _, _ = HEADER.unpack_from(messages, at)
        kinds.append(kind)
        at += max(HEADER.size, (length + 3) & ~3)
    return kinds


def _suspended() -> float:
    """The boot clock goes on while the machine is suspended, the monotonic one doesn't."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


# nlmsghdr: length, type, flags, sequence, port.
HEADER = struct.Struct("=IHHII")
# RTMGRP_LINK, and RTMGRP_*_IFADDR and RTMGRP_*_ROUTE of both families.
GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
# RTM_NEWLINK and RTM_DELLINK, the same of addresses and of routes.
CHANGES = frozenset((16, 17, 20, 21, 24, 25))
SETTLING = 0.3
TICK = 5.0
MOMENT = 2.0
