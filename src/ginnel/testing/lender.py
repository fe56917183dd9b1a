"""The lent device as a program has it under `ginnel lend`, as a subject of `ginnel.testing.check_device`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ginnel._core import DescriptorEnd
from ginnel.device.base import DeviceEnd, Kind
from ginnel.device.interface import Interface, Interfaces
from ginnel.device.kernel import FLAGS, IFF_NO_PI
from ginnel.device.lend import LentProgram
from ginnel.device.memory import MemoryDevice
from ginnel.stack import Stack
from ginnel.testing.subjects import LentSubject

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")


class Lender:
    """Lends devices to a program that opens them as any does, and makes a subject of each. A context manager.

    The program hands the descriptors over that it was given, and keeps none. The interface end of its devices is an
    object in this process, in place of their stacks.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._made = 0
        self._moved: list[Stack] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.set_inheritable(True)
            self._program = self._call(self._start(theirs.fileno()))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._control.close()
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __call__(self, kind: Kind) -> LenderSubject:
        self._made += 1
        return LenderSubject(self, kind, f"{kind}{self._made}")

    def open(self, kind: Kind, name: str, flags: int = IFF_NO_PI) -> tuple[int, Interface | None]:
        """Has the program open a device of this name, which stays when it is closed: a descriptor, and its interface.
        Without a name it is attached to none.

        ``flags``: those of TUNSETIFF besides the kind. OSError as the program's.
        """
        self._control.send(json.dumps([name, FLAGS[kind] | flags]).encode())
        answer, descriptors, _, _ = socket.recv_fds(self._control, 64, 1)
        if not descriptors:
            raise OSError(int(answer), name)
        return descriptors[0], self._interfaces.get(name)

    def delete(self, interface: Interface) -> None:
        self._call(self._interfaces.delete(interface))

    async def _start(self, control: int) -> LentProgram:
        self._interfaces = Interfaces(first_index=1 << 20)
        self._interfaces.on_create.append(self._free_interface_end)
        program = LentProgram([sys.executable, "-I", "-c", PROGRAM, str(control)], self._interfaces)
        await program.start()
        return program

    async def _stop(self) -> None:
        await self._program.aclose()
        await self._interfaces.aclose()
        for stack in self._moved:
            await stack.aclose()

    def _free_interface_end(self, interface: Interface) -> None:
        """Its stack lives on another device, which nobody is at the other end of."""
        self._moved.append(interface.stack)
        interface.stack._core.close()
        interface.stack = Stack(MemoryDevice(interface.kind).interface)
        # Held before the program is there, which would see its descriptor end otherwise.
        interface.device.interface.fileno()

    def _call(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(60)


class LenderSubject(LentSubject):
    """A device that a lent program has made."""

    def __init__(self, lender: Lender, kind: Kind, name: str) -> None:
        self.kind = kind
        self._lender = lender
        self._name = name
        descriptor, interface = lender.open(kind, name)
        assert interface is not None
        self._interface = interface
        self.end = DescriptorEnd(descriptor)
        self.device = self._interface.device

    def open(self) -> DeviceEnd:
        return DescriptorEnd(self._lender.open(self.kind, self._name)[0])

    def delete(self) -> None:
        self._lender.delete(self._interface)

    @contextlib.contextmanager
    def unattached(self) -> Iterator[int]:
        descriptor, _ = self._lender.open(self.kind, "")
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def information(self) -> Iterator[tuple[int, Callable[[bytes], object]]]:
        descriptor, interface = self._lender.open(self.kind, f"{self._name}i", 0)
        assert interface is not None
        try:
            interface.device.set_up(True)
            yield descriptor, interface.device.interface.write
        finally:
            os.close(descriptor)
            self._lender.delete(interface)

    def close(self) -> None:
        self.end.close()
        self._lender.delete(self._interface)


PROGRAM = """
import fcntl, json, os, socket, struct, sys

control = socket.socket(fileno=int(sys.argv[1]))
while order := control.recv(64):
    name, flags = json.loads(order)
    device = os.open("/dev/net/tun", os.O_RDWR)
    try:
        if name:
            fcntl.ioctl(device, 0x400454CA, struct.pack("=16sH22x", name.encode(), flags))
            fcntl.ioctl(device, 0x400454CB, 1)
        socket.send_fds(control, [b"0"], [device])
    except OSError as error:
        control.send(str(error.errno).encode())
    os.close(device)
"""
