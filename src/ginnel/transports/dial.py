"""From a name to a connected socket. Addresses are (IP address as text, port)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Address = tuple[str, int]


@dataclass(frozen=True)
class Local:
    """Where a socket is bound to: an address of this machine and a port; None and 0 leave it to the system."""

    address: str | None = None
    port: int = 0


async def resolve(host: str, port: int, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[Address]:
    """The addresses of a name, IPv6 and IPv4 by turns, the system's favourite first. Raises OSError."""
    found = await _in_thread(lambda: socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM))
    return [(address, port) for address in by_turns([str(address[0]) for *_, address in found])]


def by_turns(addresses: Sequence[str]) -> list[str]:
    """IPv6 and IPv4 addresses by turns, the first one first; none twice."""
    turns = itertools.zip_longest(
        *([each for each in dict.fromkeys(addresses) if (":" in each) == six] for six in _families(addresses))
    )
    return [address for pair in turns for address in pair if address is not None]


async def dial(addresses: list[Address], local: Local | None = None) -> socket.socket:
    """A TCP connection to whichever address answers first (RFC 8305): each is tried a moment after
    the one before, or at once when that failed. Raises the first OSError when all of them fail."""
    waiting, errors = deque(addresses), list[OSError]()
    trying: set[asyncio.Task[socket.socket]] = set()
    try:
        while waiting or trying:
            if waiting:
                trying.add(asyncio.get_running_loop().create_task(_connect(waiting.popleft(), local)))
            done, _ = await asyncio.wait(
                trying, timeout=STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    trying.discard(task)
                    return task.result()
                trying.discard(task)
                if not isinstance(error, OSError):
                    raise error
                errors.append(error)
        raise errors[0]
    finally:
        for task in trying:
            task.add_done_callback(_close_result)
            task.cancel()


def udp_socket(address: Address, local: Local | None = None, *, connected: bool = True) -> socket.socket:
    """Connected, it takes datagrams from the server alone, and hears at once of a route that is missing."""
    if connected:
        return _socket(address, socket.SOCK_DGRAM, local, lambda made: made.connect(address))
    anywhere = "::" if ":" in address[0] else "0.0.0.0"
    where = local or Local()
    return _socket(address, socket.SOCK_DGRAM, None, lambda made: made.bind((where.address or anywhere, where.port)))


def source_address(address: str) -> str | None:
    """Our own address that packets to this one leave from; None without a way there."""
    try:
        with udp_socket((address, 9)) as probe:
            return str(probe.getsockname()[0])
    except OSError:
        return None


async def _connect(address: Address, local: Local | None) -> socket.socket:
    made = _socket(address, socket.SOCK_STREAM, local)
    try:
        try:
            await asyncio.get_running_loop().sock_connect(made, address)
        except OSError as error:
            # asyncio puts its own words in place of the system's.
            raise OSError(error.errno, os.strerror(error.errno or 0)) from None
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        made.close()
        raise
    return made


def _socket(
    address: Address, kind: socket.SocketKind, local: Local | None, act: Callable[[socket.socket], None] | None = None
) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    made = socket.socket(family, kind)
    try:
        made.setblocking(False)
        if local is not None and (local.address is not None or local.port):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((local.address or ("::" if family is socket.AF_INET6 else "0.0.0.0"), local.port))
        if act is not None:
            act(made)
    except BaseException:
        made.close()
        raise
    return made


def _families(addresses: Sequence[str]) -> tuple[bool, bool]:
    six = ":" in addresses[0]
    return six, not six


def _close_result(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _in_thread(act: Callable[[], Any]) -> Any:
    """Runs it on a thread of its own. Unlike an executor's, which the program's end waits for, it is left
    behind when nobody waits for it any more: a resolver may take a minute to give up. Raises OSError (EAGAIN) where
    none can be started."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = act()
        except BaseException as caught:
            error = caught
        # The loop is closed when nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, value, error)

    thread = threading.Thread(target=run, name="ginnel-resolve", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no room for another thread") from None
    return await future


STAGGER = 0.25
