"""Devices with a name, from any process of the user: open, list, show, set, delete."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ginnel._core import DescriptorEnd
from ginnel.device.base import Kind
from ginnel.device.directory import MAX_ANSWER, PATIENCE, Directory
from ginnel.errors import DeviceError

if TYPE_CHECKING:
    from typing import Self


class NamedEnd:
    """The application end of a named device: a `ginnel.device.base.DeviceEnd`, and a context manager.

    ``fileno()`` is a real descriptor of the device: ``os.read`` gives a packet, ``os.write`` takes one. It does not
    block; that of `open_fd` does. When the device is deleted or its owner dies, both end.
    """

    def __init__(self, name: str, kind: Kind, mtu: int, descriptor: int) -> None:
        """``mtu`` as it is now."""
        self.name = name
        self.kind: Kind = kind
        self.mtu = mtu
        self._end = DescriptorEnd(descriptor)

    def read(self, timeout: float | None = None) -> bytes:
        return self._end.read(timeout)

    def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        return self._end.read_into(buffer, timeout)

    def write(self, packet: bytes | bytearray | memoryview) -> int:
        return self._end.write(packet)

    def read_batch(self, limit: int) -> list[bytes]:
        return self._end.read_batch(limit)

    def write_batch(self, packets: Iterable[bytes | bytearray | memoryview]) -> int:
        return self._end.write_batch(packets)

    def fileno(self) -> int:
        return self._end.fileno()

    @property
    def dropped(self) -> int:
        """Packets that were written here and for which the descriptor had no room: the owner never knew of them."""
        return self._end.dropped

    @property
    def core(self) -> DescriptorEnd:
        """The descriptor, for the parts of ginnel in Rust."""
        return self._end

    def open_fd(self) -> int:
        """Closes this object and gives its descriptor, blocking, in its place. It reads as empty at the end."""
        descriptor = os.dup(self._end.fileno())
        self._end.close()
        os.set_blocking(descriptor, True)
        return descriptor

    def close(self) -> None:
        self._end.close()

    @property
    def closed(self) -> bool:
        return self._end.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open(name: str, *, share: bool = False) -> NamedEnd:
    """Opens the application end of a named device.

    With ``share`` others that share may open it too; a flow's packets keep to one of them. Raises DeviceError:
    ENODEV when there is none of this name, EBUSY when another program holds it, E2BIG past 256.
    """
    answer, descriptors = _ask(name, {"do": "open", "packet_info": False, "share": share}, wanted=1)
    return NamedEnd(answer["name"], answer["kind"], answer["mtu"], descriptors[0])


def list_devices() -> list[dict[str, Any]]:
    """What `show` says of each named device that is there. Of one whose owner does not answer at once, its name and
    the state `SILENT`."""
    with Directory() as directory:
        names = directory.names()
    with ThreadPoolExecutor(max_workers=ASKED_AT_ONCE) as pool:
        return [found for found in pool.map(_look, names) if found is not None]


def _look(name: str) -> dict[str, Any] | None:
    try:
        return _ask(name, {"do": "show"}, patience=BRIEFLY)[0]
    except DeviceError as error:
        if error.errno in (errno.ENODEV, errno.EINVAL):
            return None
        if error.errno in (errno.ETIMEDOUT, errno.EBUSY):
            return {"name": name, "state": SILENT}
        raise


def show(name: str) -> dict[str, Any]:
    """State, addresses, routes, queues, counters, and who holds which end. Raises DeviceError (ENODEV)."""
    return _ask(name, {"do": "show"})[0]


def set_up(name: str, up: bool) -> None:
    """Raises DeviceError (ENODEV)."""
    _ask(name, {"do": "set", "up": up})


def set_mtu(name: str, mtu: int) -> None:
    """Raises DeviceError: ENODEV, EINVAL below 68 and above 65,535 (TAP: 65,521)."""
    _ask(name, {"do": "set", "mtu": mtu})


def add_address(name: str, address: str) -> None:
    """``address`` in CIDR notation. Raises DeviceError: ENODEV, EINVAL, EEXIST."""
    _ask(name, {"do": "set", "address": address})


def remove_address(name: str, address: str) -> None:
    """The reverse of `add_address`. Raises DeviceError: ENODEV, EINVAL, EADDRNOTAVAIL when it does not have it."""
    _ask(name, {"do": "set", "no_address": address})


def delete(name: str) -> None:
    """Deletes a named device: its owner ends, and so do the descriptors of those who hold it."""
    _ask(name, {"do": "delete"})


def ping(name: str, address: str, timeout: float) -> float | None:
    """Seconds until the reply to an echo request of the device's own network stack; None without one."""
    answer, _ = _ask(name, {"do": "ping", "address": address, "timeout": timeout}, patience=PATIENCE + timeout)
    seconds: float | None = answer["seconds"]
    return seconds


def open_datagrams(name: str, port: int = 0) -> tuple[socket.socket, int]:
    """A UDP port (0: a free one) of the device's own network stack.

    A message on the socket is a datagram, its other side's address in front
    (`ginnel.stack.sockets.pack_address`).
    """
    answer, (descriptor,) = _ask(name, {"do": "datagrams", "port": port}, wanted=1)
    return socket.socket(fileno=descriptor), answer["port"]


def _ask(
    name: str, request: dict[str, Any], *, wanted: int = 0, patience: float = PATIENCE
) -> tuple[dict[str, Any], list[int]]:
    with Directory() as directory, directory.connect(name, patience) as sock:
        try:
            # An owner that has no time for us has said so, and closed.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.send(json.dumps(request).encode())
            try:
                message, descriptors, _, _ = socket.recv_fds(sock, MAX_ANSWER, wanted)
            except ConnectionResetError:
                message, descriptors, _, _ = socket.recv_fds(sock, MAX_ANSWER, wanted)
            if not message:
                raise ConnectionResetError
            answer: dict[str, Any] = json.loads(message)
        except BlockingIOError:
            raise DeviceError(errno.ETIMEDOUT, f"the owner of {name} does not answer") from None
        except OSError:
            raise DeviceError(errno.ENODEV, f"the owner of {name} has just ended") from None
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    if "errno" in answer:
        raise DeviceError(answer["errno"], _without_errno(answer["error"], answer["errno"]))
    return answer, descriptors


def _without_errno(line: str, number: int) -> str:
    return line.removesuffix(f": {os.strerror(number)}")


SILENT = "not answering"
BRIEFLY = 1.0
ASKED_AT_ONCE = 32
