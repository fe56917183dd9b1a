"""Devices with a name: an interface of this process that other processes of this user open, show and set.

Each has a socket in `ginnel.device.directory`. A message there is a JSON object, ``{"do": what, ...}``,
and is answered with one: what was asked for, or ``{"errno": number, "error": line}``. What is a
descriptor comes beside the answer (SCM_RIGHTS).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ginnel.device.address import MAIN_TABLE, Address, parse_address
from ginnel.device.base import DEFAULT_MTU, Kind
from ginnel.device.capture import Capture
from ginnel.device.directory import MAX_ANSWER, Claim, claim_name
from ginnel.device.interface import Interface
from ginnel.errors import DeviceError

if TYPE_CHECKING:
    from typing import Self

    from ginnel.stack import Stack

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Holder:
    """A program that holds a queue of the application end. ``pid`` is 0 where it is not known."""

    pid: int
    program: str
    shares: bool = False
    """It leaves room for others, each with a queue of its own."""

    def __str__(self) -> str:
        return f"{self.program} (pid {self.pid})" if self.pid else self.program


class Service:
    """Serves an interface under a name that was claimed, until it is closed. An asynchronous context manager.

    It closes neither the interface nor the claim.
    """

    def __init__(
        self,
        interface: Interface,
        claim: Claim,
        *,
        guest: Holder | None = None,
        on_delete: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """``guest``: who holds the queues that were not opened by the name. ``on_delete`` is called when somebody
        deletes the device; None: that closes the interface.
        """
        self.interface = interface
        self.name = claim.name
        self.holders: dict[int, Holder] = {}
        """Who holds which of the queues that were opened by the name."""
        self.on_holders: list[Callable[[], object]] = []
        """Called when somebody holds a queue who did not, or no more."""
        self._guest = guest or Holder(0, "another program")
        self._on_delete = on_delete or interface.aclose
        self._deleted = asyncio.Event()
        self._freed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._clients: set[asyncio.Task[None]] = set()
        self._listener = claim.listen()
        self._listener.setblocking(False)
        self._retry: asyncio.TimerHandle | None = None
        self._listen()
        interface.on_detach.append(self._detached)

    @property
    def stack(self) -> Stack:
        """The network stack on the interface end."""
        return self.interface.stack

    async def wait_deleted(self) -> None:
        """Returns when somebody has deleted the device."""
        await self._deleted.wait()

    def describe(self) -> dict[str, Any]:
        """What ``ginnel device show`` shows."""
        interface, routes = self.interface, self.interface.routes
        return {
            "name": self.name,
            "kind": interface.kind,
            "state": "up" if interface.up else "down",
            "mtu": interface.mtu,
            "mac": interface.mac.hex(":") or None,
            "addresses": [
                _words(address.interface, peer=address.peer) for address in interface.addresses[:MAX_ADDRESSES]
            ],
            "address_count": len(interface.addresses),
            "routes": [
                _words(route.destination, gateway=route.gateway, metric=route.metric or None, table=_other(route.table))
                for route in routes[:MAX_ROUTES]
            ],
            "route_count": len(routes),
            "queue_length": interface.queue_length,
            "application": [
                {"queue": number, "pid": holder.pid or None, "program": holder.program}
                for number, holder in self._all_holders().items()
            ],
            "interface": {"pid": os.getpid(), "program": program_name(os.getpid())},
            "statistics": interface.statistics(),
            "stack": interface.stack.statistics(),
        }

    async def aclose(self) -> None:
        """Idempotent."""
        if self._listener.fileno() < 0:
            return
        self._loop.remove_reader(self._listener)
        if self._retry is not None:
            self._retry.cancel()
        self._listener.close()
        if self._detached in self.interface.on_detach:
            self.interface.on_detach.remove(self._detached)
        # Whoever deleted the device is one of them, and waits for an answer.
        if self._clients:
            await asyncio.wait(self._clients, timeout=0.5 if self._deleted.is_set() else 0)
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # No descriptor is free: whoever waits is still there in a while.
            self._loop.remove_reader(self._listener)
            self._retry = self._loop.call_later(1, self._listen)
            return
        pid, user = _peer(sock)
        if user not in (os.geteuid(), 0):
            sock.close()
            return
        sock.setblocking(False)
        # For the longest answer.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_ANSWER)
        if len(self._clients) >= MAX_CLIENTS:
            line = f"{MAX_CLIENTS} programs ask the owner of {self.name} already; try again in a moment"
            with sock, contextlib.suppress(OSError):
                sock.send(_pack({"errno": errno.EBUSY, "error": line}))
            return
        client = self._loop.create_task(self._serve(sock, pid))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _serve(self, sock: socket.socket, pid: int) -> None:
        with sock, contextlib.suppress(OSError, TimeoutError):
            while True:
                async with asyncio.timeout(IDLE):
                    message = await self._loop.sock_recv(sock, MAX_REQUEST + 1)
                if not message:
                    return
                descriptors: list[socket.socket] = []
                try:
                    answer = await self._answer(_parse(message), pid, descriptors)
                except OSError as error:
                    answer = {"errno": error.errno or errno.EIO, "error": error.strerror or str(error)}
                except Exception:
                    # Who asks must not take the owner for dead.
                    log.exception("a request of process %d could not be answered", pid)
                    answer = {"errno": errno.EIO, "error": f"the owner of {self.name} failed at it; its log says more"}
                try:
                    numbers = [descriptor.fileno() for descriptor in descriptors]
                    socket.send_fds(sock, [_pack(answer)], numbers)
                finally:
                    for descriptor in descriptors:
                        descriptor.close()
                if self.interface.device.closed:
                    return

    async def _answer(self, request: dict[str, Any], pid: int, descriptors: list[socket.socket]) -> dict[str, Any]:
        match request:
            case {"do": "show"}:
                return self.describe()
            case {"do": "open", "packet_info": bool(packet_info), "share": bool(share)}:
                return await self._open(packet_info, Holder(pid, program_name(pid), share), descriptors)
            case {"do": "set", "up": bool(up)}:
                self.interface.set_up(up)
                return {}
            case {"do": "set", "mtu": int(mtu)}:
                self.interface.set_mtu(mtu)
                return {}
            case {"do": "set", "address": str(address)}:
                self.interface.add_address(_address(address))
                return {}
            case {"do": "set", "no_address": str(address)}:
                self.interface.remove_address(_address(address).interface)
                return {}
            case {"do": "delete"}:
                self._deleted.set()
                await self._on_delete()
                return {}
            case {"do": "ping", "address": str(address), "timeout": int() | float() as timeout}:
                return await self._ping(address, min(max(timeout, 0.0), PING_PATIENCE))
            case {"do": "datagrams", "port": int(port)} if 0 <= port < 65536:
                return self._datagrams(port, descriptors)
        raise DeviceError(errno.EINVAL, "not a request that ginnel knows; are both of the same version?")

    async def _open(self, packet_info: bool, holder: Holder, descriptors: list[socket.socket]) -> dict[str, Any]:
        def is_taken() -> bool:
            held = self._all_holders().values()
            return bool(held) and not (holder.shares and all(other.shares for other in held))

        # One that has just died is noted in a moment.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DYING):
                while is_taken():
                    self._freed.clear()
                    await self._freed.wait()
        if is_taken():
            raise DeviceError(
                errno.EBUSY, f"{self.name} is held by {', '.join(map(str, self._all_holders().values()))}"
            )
        descriptor, number = self.interface.attach(packet_info)
        descriptors.append(descriptor)
        self.holders[number] = holder
        self._tell()
        return {"name": self.name, "kind": self.interface.kind, "mtu": self.interface.mtu}

    async def _ping(self, address: str, timeout: float) -> dict[str, Any]:
        if not self.interface.up:
            raise DeviceError(errno.ENETDOWN, f"{self.name} is down; set it up with `ginnel device set {self.name} up`")
        if not self.interface.addresses:
            raise DeviceError(errno.EADDRNOTAVAIL, f"{self.name} has no address to send from")
        try:
            zone = getattr(ipaddress.ip_address(address), "scope_id", None)
        except ValueError:
            raise DeviceError(errno.EINVAL, f"{address!r} is no address") from None
        if zone is not None:
            raise DeviceError(errno.EINVAL, f"{address}: leave %{zone} out, {self.name} is one link alone")
        try:
            return {"seconds": await self.stack.ping(address, timeout=timeout)}
        except TimeoutError:
            return {"seconds": None}

    def _datagrams(self, port: int, descriptors: list[socket.socket]) -> dict[str, Any]:
        descriptor, bound = self.stack.bind_datagrams(None, port)
        descriptors.append(descriptor)
        return {"port": bound}

    def _all_holders(self) -> dict[int, Holder]:
        return {number: self.holders.get(number, self._guest) for number in self.interface.queues}

    def _detached(self, number: int) -> None:
        self.holders.pop(number, None)
        self._freed.set()
        self._tell()

    def _tell(self) -> None:
        for call in self.on_holders:
            call()


@contextlib.asynccontextmanager
async def create(
    name: str | None = None,
    *,
    kind: Kind = "tun",
    addresses: Iterable[str] = (),
    mtu: int = DEFAULT_MTU,
    up: bool | None = None,
    capture: str | os.PathLike[str] | None = None,
) -> AsyncIterator[Service]:
    """A named device with a network stack on its interface end, for the time of the block.

    ``name`` may hold a ``%d`` for the next free number (None: ``tun%d``, ``tap%d``), ``addresses`` are in CIDR
    notation. Without ``up`` it is up if it has an address. ``capture``: a pcapng file for all packets. Raises
    DeviceError (EEXIST, EINVAL, EPERM), ConfigError for the capture's file.
    """
    parsed = [_address(text) for text in addresses]
    with claim_name(f"{kind}%d" if name is None else name) as claim:
        async with contextlib.AsyncExitStack() as stack:
            interface = Interface(claim.name, 1, kind, mtu)
            stack.push_async_callback(interface.aclose)
            if capture is not None:
                stack.enter_context(Capture(capture, interface.kind, claim.name)).observe(interface.device)
            for address in parsed:
                interface.add_address(address)
            if bool(parsed) if up is None else up:
                interface.set_up(True)
            yield await stack.enter_async_context(Service(interface, claim))


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise DeviceError(errno.EINVAL, str(error)) from None


def program_name(pid: int) -> str:
    """The program that a process runs, of a Python's its script; ``?`` where the system does not say."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "?"
    if name.startswith("python") and "-c" not in words:
        name = next((Path(word).name for word in words[1:] if word and not word.startswith("-")), name)
    # It is shown on terminals.
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:MAX_PROGRAM] or "?"


def _peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other side of a unix socket."""
    pid, user, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, user


def _parse(message: bytes) -> dict[str, Any]:
    if len(message) > MAX_REQUEST:
        raise DeviceError(errno.EMSGSIZE, f"a request is longer than {MAX_REQUEST} bytes")
    # Too deep a nesting is a RecursionError.
    with contextlib.suppress(ValueError, RecursionError):
        request = json.loads(message, parse_constant=_refuse)
        if isinstance(request, dict):
            return request
    raise DeviceError(errno.EINVAL, "a request is no JSON object")


def _pack(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False).encode()


def _other(table: int) -> int | None:
    return None if table == MAIN_TABLE else table


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _words(subject: object, **more: object) -> str:
    return " ".join([str(subject), *(f"{key} {value}" for key, value in more.items() if value is not None)])


MAX_REQUEST = 4096
MAX_PROGRAM = 40
# What is shown: with 256 holders it is shorter than an answer may be.
MAX_ROUTES = 500
MAX_ADDRESSES = 300
MAX_CLIENTS = 64
IDLE = 60.0
PING_PATIENCE = 60.0
DYING = 0.5
