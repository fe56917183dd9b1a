"""Devices as `ginnel.testing.check_device` sees them: something to read and write at either side.

A subject belongs to a column of the contract: ``memory``, ``lent`` (a descriptor for a program, with
a memory device behind it) or ``kernel`` (/dev/net/tun; needs CAP_NET_ADMIN and CAP_NET_RAW, and a
network namespace of its own if the machine's is not to be touched).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from ginnel._core import DescriptorEnd, Link
from ginnel.device.base import DeviceEnd, Kind
from ginnel.device.kernel import FLAGS, NODE, TUNSETIFF, KernelDevice
from ginnel.device.memory import MemoryDevice
from ginnel.errors import DeviceError

if TYPE_CHECKING:
    from typing import Self

Column = Literal["memory", "lent", "kernel"]


class Subject(ABC):
    """A device that is down, its application end open."""

    column: Column
    kind: Kind
    device: MemoryDevice | KernelDevice
    end: DeviceEnd
    """The application end, as its program has it."""

    @abstractmethod
    def open(self) -> DeviceEnd:
        """Opens the application end again, when its holder has closed or died."""

    @abstractmethod
    def give_away(self) -> int:
        """The application end as a descriptor for another process; ``end`` is closed."""

    @abstractmethod
    def inject(self, packet: bytes) -> None:
        """The system sends a packet out of the interface. Never waits."""

    @abstractmethod
    def observe(self, timeout: float = 20) -> bytes:
        """The next packet that the interface received from the application. Raises TimeoutError."""

    @abstractmethod
    def refused(self) -> int:
        """How many of the application's writes were refused so far."""

    @abstractmethod
    def held(self) -> bool:
        """Whether a program still has the application end."""

    def unattached(self) -> contextlib.AbstractContextManager[int]:
        """A descriptor of the device as a program has it before TUNSETIFF. Not of an end in memory."""
        raise NotImplementedError

    def information(self) -> contextlib.AbstractContextManager[tuple[int, Callable[[bytes], object]]]:
        """A descriptor of such a device whose packets have 4 bytes in front (without IFF_NO_PI), and how the system
        sends one. Not of an end in memory."""
        raise NotImplementedError

    @abstractmethod
    def delete(self) -> None:
        """Somebody deletes the device; the application still has its end."""

    def close(self) -> None:
        self.end.close()
        self.device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


Factory = Callable[[Kind], Subject]


class MemorySubject(Subject):
    """Both ends are objects in this process."""

    column: Column = "memory"
    device: MemoryDevice

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.device = MemoryDevice(kind)
        self.end = self.open()

    def open(self) -> DeviceEnd:
        return self.device.application

    def give_away(self) -> int:
        return self.device.application.open_fd()

    def inject(self, packet: bytes) -> None:
        self.device.interface.write(packet)

    def observe(self, timeout: float = 20) -> bytes:
        return self.device.interface.read(timeout)

    def refused(self) -> int:
        return self.device.statistics()["rx_errors"]

    def held(self) -> bool:
        return self.device.core.is_held("application")

    def delete(self) -> None:
        self.device.core.delete()


class LentSubject(MemorySubject):
    """The application end is a descriptor such as a lent program is handed, read and written for real."""

    column: Column = "lent"

    def open(self) -> DeviceEnd:
        # The thread that serves a descriptor learns a moment later that it was closed.
        while True:
            try:
                return DescriptorEnd(self.device.application.open_fd())
            except DeviceError as error:
                if error.errno != errno.EBUSY:
                    raise
            os.sched_yield()

    def give_away(self) -> int:
        descriptor = os.dup(self.end.fileno())
        self.end.close()
        return descriptor

    @contextlib.contextmanager
    def unattached(self) -> Iterator[int]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as program:
            yield program.fileno()

    @contextlib.contextmanager
    def information(self) -> Iterator[tuple[int, Callable[[bytes], object]]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, MemoryDevice(self.kind) as device:
            device.application.close()
            device.set_up(True)
            link = Link(device.core, "application")
            link.add(ours.detach(), True)
            yield theirs.fileno(), device.interface.write
            link.close()


class KernelSubject(Subject):
    """/dev/net/tun, persistent so that its programs may come and go; the system's side is a packet socket."""

    column: Column = "kernel"
    device: KernelDevice

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.device = KernelDevice(kind=kind, persist=True)
        try:
            # Of its own accord the interface sends nothing then, and the queues hold what the tests put there.
            set_ipv6(self.device.name, False)
            self.end = self.device.application
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
            self._socket.bind((self.device.name, ETH_P_ALL))
            self._sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 64 << 20)
        except BaseException:
            self.device.close()
            raise

    def open(self) -> DeviceEnd:
        end = self.device.application
        if self.device.up:
            # By itself the kernel takes up to a second to see that there is somebody again.
            self.device.set_up(False)
            self.device.set_up(True)
        return end

    def give_away(self) -> int:
        descriptor = os.dup(self.end.fileno())
        self.end.close()
        return descriptor

    @contextlib.contextmanager
    def unattached(self) -> Iterator[int]:
        descriptor = os.open(NODE, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def information(self) -> Iterator[tuple[int, Callable[[bytes], object]]]:
        from pyroute2 import IPRoute

        with self.unattached() as descriptor:
            wanted = struct.pack("16sH22x", f"{self.kind}%d".encode(), FLAGS[self.kind])
            name = fcntl.ioctl(descriptor, TUNSETIFF, wanted)[:16].rstrip(b"\0").decode()
            set_ipv6(name, False)
            with IPRoute() as ip:
                ip.link("set", index=socket.if_nametoindex(name), state="up")
            yield descriptor, lambda packet: self._sender.sendto(packet, (name, self._protocol(packet)))

    def inject(self, packet: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            self._sender.sendto(packet, socket.MSG_DONTWAIT, (self.device.name, self._protocol(packet)))

    def _protocol(self, packet: bytes) -> int:
        return int.from_bytes(packet[12:14], "big") if self.kind == "tap" else ETHERTYPES[packet[0] >> 4]

    def observe(self, timeout: float = 20) -> bytes:
        self._socket.settimeout(timeout)
        while True:
            try:
                packet, (_, _, direction, *_) = self._socket.recvfrom(1 << 17)
            except OSError as error:
                # It says once that the interface went down, and receives again when that is up.
                if error.errno != errno.ENETDOWN:
                    raise
                continue
            if direction != PACKET_OUTGOING:
                return packet

    def refused(self) -> int:
        counted = self.device.statistics()
        return counted["rx_dropped"] + counted["rx_errors"]

    def held(self) -> bool:
        # The kernel takes it back before close() returns, or a process is reaped.
        return not self.end.closed

    def delete(self) -> None:
        from pyroute2 import IPRoute

        with IPRoute() as ip:
            ip.link("del", index=self.device.index)

    def close(self) -> None:
        self._socket.close()
        self._sender.close()
        super().close()


def set_ipv6(name: str, enabled: bool) -> None:
    """Whether the kernel speaks IPv6 on an interface of its."""
    with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as file:
        file.write("0" if enabled else "1")


SUBJECTS: dict[Column, Factory] = {"memory": MemorySubject, "lent": LentSubject, "kernel": KernelSubject}

ETH_P_ALL = 3
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
PACKET_OUTGOING = 4
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
