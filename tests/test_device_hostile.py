"""What may come to a device from outside: programs that are killed, and bytes that are no packets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import random
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ginnel._core import DescriptorEnd
from ginnel.device import MemoryDevice
from ginnel.device.base import DeviceEnd, Kind
from ginnel.device.ethernet import EthernetEnd
from ginnel.device.forge import Echo, checksum, parse
from ginnel.errors import DeviceError
from ginnel.stack import Stack
from ginnel.testing.lender import Lender
from ginnel.testing.probes import packet, sound, until
from ginnel.testing.subjects import SUBJECTS, Factory
from tests.harness.network import Namespace

SEED = int(os.environ.get("GINNEL_SEED", "29"))

OWNERS = """
import os, socket, sys
from ginnel.device import MemoryDevice

parent = socket.socket(fileno=0)
while parent.recv(1):
    if pid := os.fork():
        os.waitpid(pid, 0)
        parent.send(b"reaped")
        continue
    device = MemoryDevice()
    interface = device.interface
    device.set_up(True)
    socket.send_fds(parent, [str(os.getpid()).encode()], [device.application.open_fd()])
    while each := interface.read():
        interface.write(each)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def namespace() -> Iterator[None]:
    with Namespace() as own, own.entered():
        yield


def tasks_and_descriptors(process: int | str = "self") -> tuple[int, int]:
    # What other tests left to the collector is not to be mistaken for what goes on here.
    gc.collect()
    return tuple(sum(1 for _ in Path(f"/proc/{process}/{what}").iterdir()) for what in ("task", "fd"))  # type: ignore[return-value]


def errno_of(call: Callable[..., object], *arguments: object) -> int:
    """0 when there is none."""
    try:
        call(*arguments)
    except DeviceError as error:
        return error.errno or 0
    return 0


def read_all(end: DescriptorEnd) -> None:
    while end.read(60):
        pass


def test_programs_that_are_killed_leave_the_device_to_the_next() -> None:
    chance = random.Random(SEED)
    with MemoryDevice() as device:
        interface = device.interface
        device.set_up(True)
        device.application.close()
        before = tasks_and_descriptors()
        for turn in range(100):
            until(lambda: not device.core.is_held("application"))
            descriptor = device.application.open_fd()
            with subprocess.Popen(["cat"], stdin=descriptor, stdout=descriptor) as echo:
                os.close(descriptor)
                interface.write(packet("tun", turn, 255))
                while interface.read(60) != packet("tun", turn, 255):
                    pass
                interface.write_batch([packet("tun", number) for number in range(chance.randrange(400))])
                for _ in range(chance.randrange(20)):
                    interface.read(60)
                echo.kill()
            interface.write(packet("tun", 0))
            while interface.read(60):
                pass
        until(lambda: tasks_and_descriptors() == before)


def test_owners_that_are_killed_end_the_program_s_descriptor() -> None:
    chance = random.Random(SEED)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with subprocess.Popen([sys.executable, "-c", OWNERS], stdin=theirs) as owners, ours:
        theirs.close()
        before = None
        for turn in range(100):
            ours.send(b"1")
            pid, [descriptor], _, _ = socket.recv_fds(ours, 64, 1)
            with DescriptorEnd(descriptor) as end:
                end.write(packet("tun", turn))
                assert end.read(60) == packet("tun", turn)
                end.write_batch([packet("tun", number) for number in range(chance.randrange(100))])
                for _ in range(chance.randrange(3)):
                    end.read_batch(5)
                os.kill(int(pid), signal.SIGKILL)
                # Also if it died before it had read all that we wrote.
                assert errno_of(read_all, end) == 0
                assert errno_of(end.write, packet("tun", 0)) == errno.EPIPE
            assert ours.recv(64) == b"reaped"
            state = tasks_and_descriptors(), tasks_and_descriptors(owners.pid)
            before = before or state
        assert state == before


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("kind", ["tun", "tap"])
@pytest.mark.parametrize("name", [*SUBJECTS, "lender"])
def test_whatever_is_written_is_read_refused_or_counted(name: str, kind: Kind) -> None:
    chance = random.Random(SEED)
    factories: dict[str, Factory] = {**SUBJECTS}
    with contextlib.ExitStack() as stack:
        if name == "lender":
            factories[name] = stack.enter_context(Lender())
        subject = stack.enter_context(factories[name](kind))
        column = subject.column
        subject.device.set_up(True)
        refused = 0
        for turn in range(3000):
            length = chance.choice((chance.randrange(100), chance.randrange(65_536)))
            each = chance.randbytes(length)
            valid = length > 0 and sound(kind, each)
            error = errno_of(subject.end.write, each)
            assert error == (0 if valid or column == "lent" else errno.EINVAL), f"turn {turn} of seed {SEED}"
            refused += not valid
            if valid:
                assert subject.observe() == each, f"turn {turn} of seed {SEED}"
        # The kernel does not count writes of nothing.
        until(lambda: subject.refused() == refused or column == "kernel")
        assert subject.device.statistics()["rx_packets"] == 3000 - refused


OWN = (bytes([10, 0, 0, 1]), bytes.fromhex("fd00" + "00" * 13 + "01"))
OTHERS = (bytes([10, 0, 0, 2]), bytes.fromhex("fd00" + "00" * 13 + "02"))


@pytest.mark.parametrize("kind", ["tun", "tap"])
async def test_no_packet_of_any_length_harms_a_stack(kind: Kind) -> None:
    print(f"GINNEL_SEED={SEED}")
    chance = random.Random(SEED)
    with MemoryDevice(kind) as device:
        async with Stack(device.interface) as stack:
            stack.set_addresses(["10.0.0.1/24", "fd00::1/64"])
            device.set_up(True)
            server = await stack.start_server(lambda reader, writer: writer.close(), None, 80)
            async with await stack.open_datagram(port=7):
                for count in range(4000):
                    each = frame(chance, stack.mac) if kind == "tap" else ip_packet(chance)
                    device.application.write(each)
                    while stack.statistics()["rx_packets"] < count + 1:  # noqa: ASYNC110 - nothing tells of it
                        await asyncio.sleep(0)
                    device.application.read_batch(1000)
                # It answers as ever.
                end = EthernetEnd(device.application) if kind == "tap" else device.application
                for own, other in zip(OWN, OTHERS, strict=True):
                    await asyncio.to_thread(is_answered, end, Echo(other, own, 77, 1, b"still there"))
            server.close()


def is_answered(end: EthernetEnd | DeviceEnd, request: Echo) -> None:
    end.write(request.emit())
    while (packet := end.read(20)) is None or parse(packet) != request.reply():
        pass


def ip_packet(chance: random.Random) -> bytes:
    """Of any length; mostly with a header that is sound, or nearly."""
    size = chance.choice((chance.randrange(200), chance.randrange(1501), chance.randrange(65_536)))
    if chance.random() < 0.2:
        return bytes([chance.choice((0x40, 0x45, 0x4F, 0x60))]) + chance.randbytes(max(size - 1, 0))
    protocol = chance.choice((1, 6, 17, 58, 0, 43, 44, 60, 2, 255))
    payload = chance.randbytes(max(size - 40, 0))
    if protocol in (6, 17) and payload:
        # To where somebody listens.
        payload = struct.pack("!HH", chance.randrange(65_536), chance.choice((80, 7, 9))) + payload[4:]
    claimed = chance.choice((0, 0, 0, -1, 1, 40, -40, 65_535))
    if chance.random() < 0.5:
        length = (20 + len(payload) + claimed) & 0xFFFF
        part = chance.choice((0, 0x2000, 0x2001, 0x1FFF, 0x4000))
        header = struct.pack("!BBHHHBBH", 0x45, 0, length, chance.randrange(4), part, 64, protocol, 0)
        header += chance.choice((OTHERS[0], OWN[0], bytes(4), b"\xff" * 4)) + OWN[0]
        return (header[:10] + checksum(header) + header[12:] + payload)[:65_535]
    header = struct.pack("!IHBB", 6 << 28, (len(payload) + claimed) & 0xFFFF, protocol, 64)
    source = chance.choice((OTHERS[1], OWN[1], bytes(16), b"\xff" * 16))
    return (header + source + OWN[1] + payload)[:65_535]


def frame(chance: random.Random, own: str | None) -> bytes:
    destination = chance.choice((bytes.fromhex((own or "").replace(":", "")), b"\xff" * 6, b"\x33\x33\0\0\0\1"))
    kind = chance.choice((b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00", chance.randbytes(2)))
    body = ip_packet(chance)
    if kind == b"\x08\x06" and chance.random() < 0.8:
        body = bytes.fromhex("0001080006040001") + body[:20]
    elif kind in (b"\x08\x00", b"\x86\xdd") and chance.random() < 0.8:
        kind = b"\x86\xdd" if body[:1] >= b"\x60" else b"\x08\x00"
    return (destination + b"\x02\0\0\0\0\x02" + kind + body)[:65_535]
