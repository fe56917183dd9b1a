"""The memory device beyond the contract's lines, which tests/test_device_contract.py runs."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import select
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ginnel._core import DescriptorEnd
from ginnel.device import Device, MemoryDevice
from ginnel.device.base import DeviceEnd
from ginnel.device.interface import Interfaces
from ginnel.errors import DeviceError, GinnelError
from ginnel.testing.probes import Background, asleep, packet, refuses, switches

PACKET = packet("tun", 0)


@pytest.fixture
def device() -> Iterator[MemoryDevice]:
    with MemoryDevice() as made:
        made.set_up(True)
        yield made


def descriptors() -> int:
    # Not those of what nobody refers to any more, which close at any time.
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def ready(end: DeviceEnd) -> int:
    poll = select.poll()
    poll.register(end.fileno(), select.POLLIN | select.POLLOUT)
    return dict(poll.poll(0)).get(end.fileno(), 0)


def test_a_new_device_is_down_and_has_the_usual_numbers() -> None:
    device: Device = MemoryDevice()
    assert (device.kind, device.mtu, device.up, device.closed) == ("tun", 1500, False, False)
    assert set(device.statistics().values()) == {0}
    device.close()


def test_whatever_holds_bytes_can_be_written_and_read_into(device: MemoryDevice) -> None:
    for kind in (bytes, bytearray, memoryview):
        device.interface.write(kind(b"\x60 content"))
        assert device.application.read() == b"\x60 content"
    device.interface.write(memoryview(bytes(range(0x40, 0x50)))[::2])
    assert device.application.read() == bytes(range(0x40, 0x50, 2))
    buffer = bytearray(20)
    device.interface.write(b"\x45abc")
    assert device.application.read_into(memoryview(buffer)[5:15]) == 4
    assert buffer == bytes(5) + b"\x45abc" + bytes(11)
    with pytest.raises(TypeError, match="cannot be written"):
        device.application.read_into(bytes(4))  # type: ignore[arg-type]


def test_a_refusal_is_one_of_ours_and_one_line(device: MemoryDevice) -> None:
    with pytest.raises(DeviceError) as caught:
        device.application.write(b"")
    assert isinstance(caught.value, GinnelError)
    assert "\n" not in str(caught.value)


def test_a_batch_counts_each_of_its_packets(device: MemoryDevice) -> None:
    end = device.application
    device.set_queue_length(3)
    assert end.write_batch(iter([PACKET, b"", bytes(70_000), PACKET, PACKET, PACKET])) == 3
    counted = device.statistics()
    assert (counted["rx_dropped"], counted["rx_errors"]) == (1, 2)
    assert device.interface.read_batch(9) == [PACKET] * 3
    with pytest.raises(TypeError):
        end.write_batch([PACKET, 7])  # type: ignore[list-item]
    assert device.interface.read_batch(9) == []
    device.set_up(False)
    refuses(errno.EIO, end.write_batch, [PACKET, PACKET])
    assert device.statistics()["rx_errors"] == 4


def test_an_end_has_one_holder_and_can_be_attached_again(device: MemoryDevice) -> None:
    first = device.application
    assert device.application is first
    refuses(errno.EBUSY, device.core.attach, "application")
    first.close()
    first.close()
    with device.application as second:
        device.interface.write(PACKET)
        assert second.read() == PACKET
    assert second.closed


def test_closing_an_end_wakes_whoever_reads_it(device: MemoryDevice) -> None:
    end = device.application
    with Background(end.read) as first, Background(end.read) as second:
        asleep(first)
        asleep(second)
        end.close()
    for reader in (first, second):
        assert isinstance(reader.outcome[0], DeviceError)


def test_the_end_of_a_file_comes_after_what_waits_and_passes(device: MemoryDevice) -> None:
    application = device.application
    assert ready(application) == select.POLLOUT
    number = application.fileno()
    device.interface.write(PACKET)
    device.interface.close()
    assert ready(application) == select.POLLIN | select.POLLHUP
    assert [application.read(), application.read(), application.read(5)] == [PACKET, b"", b""]
    refuses(errno.EIO, application.write, PACKET)
    assert not device.interface.closed
    assert ready(application) == 0
    device.set_up(True)
    assert (application.fileno(), ready(application)) == (number, select.POLLOUT)
    refuses(errno.EAGAIN, application.read, 0)
    device.interface.write(PACKET)
    assert ready(application) == select.POLLIN | select.POLLOUT


def test_a_stack_without_a_program_goes_on(device: MemoryDevice) -> None:
    interface = device.interface
    device.application.close()
    assert interface.read() == b""
    assert ready(interface) == select.POLLIN | select.POLLHUP
    assert interface.write(PACKET) == len(PACKET)
    assert device.statistics()["tx_dropped"] == 1
    device.application.write(PACKET)
    assert interface.read() == PACKET


def test_readiness_is_exact_through_any_history() -> None:
    seed = 11
    chance = random.Random(seed)
    with MemoryDevice(queue=4) as device:
        application, interface = device.application, device.interface
        device.set_up(up := True)
        waiting = [0, 0]
        for step in range(4000):
            match chance.randrange(5):
                case 0:
                    waiting[0] += interface.write_batch([PACKET] * chance.randint(1, 3)) if up else 0
                case 1:
                    waiting[1] += application.write_batch([PACKET] * chance.randint(1, 3)) if up else 0
                case 2:
                    waiting[0] -= len(application.read_batch(chance.randint(1, 4)))
                case 3:
                    waiting[1] -= len(interface.read_batch(chance.randint(1, 4)))
                case 4:
                    device.set_up(up := chance.random() < 0.7)
            for own, other, end in ((0, 1, application), (1, 0, interface)):
                expected = (select.POLLIN if waiting[own] else 0) | (select.POLLOUT if up and waiting[other] < 4 else 0)
                assert ready(end) == expected, f"step {step} of seed {seed}"


async def test_asyncio_reads_and_writes_as_they_become_possible(device: MemoryDevice) -> None:
    loop, got = asyncio.get_running_loop(), asyncio.Queue[bytes]()
    left = [packet("tun", number) for number in range(2000)]
    end, other = device.application, device.interface
    device.set_queue_length(16)
    loop.add_reader(other.fileno(), lambda: [got.put_nowait(each) for each in other.read_batch(3)])
    loop.add_writer(end.fileno(), lambda: end.write(left.pop(0)) if left else loop.remove_writer(end.fileno()))
    for number in range(2000):
        assert await asyncio.wait_for(got.get(), 20) == packet("tun", number)
    loop.remove_reader(other.fileno())
    assert device.statistics()["rx_dropped"] == 0


def test_signals_that_raise_nothing_do_not_end_a_read(device: MemoryDevice) -> None:
    came: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _: came.append(number))

    def disturb() -> None:
        for _ in range(3):
            asleep(threading.main_thread())
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        device.interface.write(PACKET)

    try:
        with Background(disturb):
            assert device.application.read(60) == PACKET
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert came


def test_a_kind_queue_or_timeout_that_makes_no_sense_is_refused(device: MemoryDevice) -> None:
    with pytest.raises(ValueError, match="tun"):
        MemoryDevice("tin")  # type: ignore[arg-type]
    for length in (-1, 524_289, 1 << 70):
        refuses(errno.ERANGE, lambda length=length: MemoryDevice("tun", queue=length))
        refuses(errno.ERANGE, device.set_queue_length, length)
    refuses(errno.EINVAL, device.set_mtu, 1 << 70)
    with pytest.raises(ValueError, match="timeout"):
        device.application.read(float("nan"))
    refuses(errno.EINVAL, MemoryDevice, "tap", 65_522)
    for forever in (1e30, float("inf")):
        device.interface.write(PACKET)
        assert device.application.read(forever) == PACKET


def test_a_deleted_device_refuses_everything() -> None:
    device = MemoryDevice()
    interface = device.interface
    device.close()
    device.close()
    refuses(errno.EBADFD, interface.write, PACKET)
    refuses(errno.EBADFD, getattr, device, "application")
    refuses(errno.EBADFD, device.set_up, True)


def test_devices_leave_no_descriptors_and_no_threads() -> None:
    def threads() -> list[str]:
        return os.listdir("/proc/self/task")

    before, running = descriptors(), len(threads())
    for _ in range(300):
        with MemoryDevice() as device:
            assert device.application.fileno() != device.interface.fileno()
    for _ in range(50):
        with MemoryDevice() as device, DescriptorEnd(device.application.open_fd()):
            pass
    deadline = time.monotonic() + 20
    while (descriptors(), len(threads())) != (before, running):
        assert time.monotonic() < deadline
        os.sched_yield()


def test_idle_devices_switch_no_context_in_ten_seconds() -> None:
    async def hold(ready: threading.Event, enough: threading.Event) -> None:
        interfaces = Interfaces()
        made = [interfaces.create() for _ in range(3)]
        programs = [interface.attach()[0] for interface in made]
        for interface in made:
            interface.set_up(True)
        loop = asyncio.get_running_loop()
        loop.call_soon(ready.set)
        await loop.run_in_executor(None, enough.wait)
        await interfaces.aclose()
        for program in programs:
            program.close()

    def stir(enough: threading.Event) -> None:
        """As threads of pytest's do, when they like."""
        while not enough.wait(0.2):
            pass

    ready, enough = threading.Event(), threading.Event()
    holding, stirring = Background(lambda: asyncio.run(hold(ready, enough))), Background(lambda: stir(enough))
    with MemoryDevice() as device, holding as loop, stirring:
        device.set_up(True)
        try:
            with Background(device.application.read) as reader:
                assert ready.wait(60)
                asleep(reader)
                asleep(loop)
                before = switches(reader, loop)
                assert len(before) >= 5
                time.sleep(10)
                assert switches(reader, loop) == before
                device.interface.write(PACKET)
        finally:
            enough.set()


def test_a_descriptor_end_is_closed_for_all_who_wait(device: MemoryDevice) -> None:
    end = DescriptorEnd(device.application.open_fd())
    with Background(end.read) as reader:
        asleep(reader)
        end.close()
    assert isinstance(reader.outcome[0], DeviceError)
    assert reader.outcome[0].errno == errno.EBADFD
    refuses(errno.EBADF, DescriptorEnd, 1_000_000)
