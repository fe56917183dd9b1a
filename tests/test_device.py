"""The memory device: what `ginnel.device.base` promises."""

import errno
import os
import random
import select
import signal
import struct
import threading
import time
from pathlib import Path

import pytest

from ginnel.device import Device, MemoryDevice
from ginnel.errors import DeviceError, GinnelError


def packet(writer, number):
    return b"\x45" + struct.pack("!BI", writer, number) + bytes(20)


@pytest.fixture
def device():
    with MemoryDevice() as made:
        made.set_up(True)
        assert made.application
        assert made.interface
        yield made


def refused(code, call, *arguments):
    with pytest.raises(DeviceError) as caught:
        call(*arguments)
    assert caught.value.errno == code
    assert isinstance(caught.value, GinnelError)
    assert "\n" not in str(caught.value)


def in_thread(call):
    """Runs a call in a thread; returns the thread and where its outcome will be."""
    outcome = []

    def run():
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def asleep(thread):
    """Waits until a thread sleeps in a system call."""
    path = f"/proc/self/task/{thread.native_id}/stat"
    deadline = time.monotonic() + 20
    while True:
        with open(path) as file:
            if file.read().rpartition(")")[2].split()[0] == "S":
                return
        assert time.monotonic() < deadline


def test_a_new_device_is_down_and_has_the_usual_numbers():
    device: Device = MemoryDevice()
    assert (device.kind, device.mtu, device.up, device.closed) == ("tun", 1500, False, False)
    assert set(device.statistics().values()) == {0}
    device.close()


def test_a_packet_is_read_whole_in_order_once(device):
    packets = [packet(0, number) for number in range(100)]
    for each in packets:
        assert device.application.write(each) == len(each)
    assert [device.interface.read(0) for _ in packets] == packets
    with pytest.raises(TimeoutError):
        device.interface.read(0)
    assert device.application.read_batch(10) == []


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_whatever_holds_bytes_can_be_written(device, kind):
    device.interface.write(kind(b"\x60 content"))
    assert device.application.read() == b"\x60 content"
    device.interface.write(memoryview(bytes(range(0x40, 0x50)))[::2])
    assert device.application.read() == bytes(range(0x40, 0x50, 2))


def test_the_first_read_waits_for_a_packet(device):
    reader, outcome = in_thread(device.application.read)
    asleep(reader)
    device.interface.write(b"\x45first")
    reader.join(20)
    assert outcome == [b"\x45first"]


def test_down_refuses_at_once_and_counts():
    with MemoryDevice() as device:
        refused(errno.EIO, device.application.write, b"\x45")
        refused(errno.EIO, device.application.write_batch, [b"\x45", b"\x46"])
        assert device.statistics()["rx_errors"] == 3


@pytest.mark.parametrize("wrong", [b"", b"\x00\x00\x08\x00\x45", b"\x50", bytes([0x45]) + bytes(65_535)])
def test_what_is_no_packet_is_refused_and_counted(device, wrong):
    refused(errno.EINVAL, device.application.write, wrong)
    assert device.statistics()["rx_errors"] == 1
    assert device.application.write_batch([wrong, b"\x45"]) == 1
    assert device.statistics()["rx_errors"] == 2
    assert device.interface.read(0) == b"\x45"


def test_tap_takes_frames():
    with MemoryDevice("tap") as device:
        device.set_up(True)
        assert device.interface
        refused(errno.EINVAL, device.application.write, bytes(13))
        device.application.write(bytes(14))
        assert device.interface.read(0) == bytes(14)


def test_longer_than_the_mtu_is_taken(device):
    longest = b"\x45" + bytes(65_534)
    device.application.write(longest)
    assert device.interface.read(0) == longest


@pytest.mark.parametrize(("kind", "capacity"), [("tun", 500), ("tap", 1000)])
def test_past_the_queue_the_newest_is_dropped_and_counted(kind, capacity):
    with MemoryDevice(kind) as device:
        device.set_up(True)
        assert device.application
        frames = [b"\x45" + bytes(12) + struct.pack("!I", number) for number in range(capacity + 10)]
        assert device.interface.write_batch(frames) == capacity
        assert device.interface.write(frames[0]) == 17
        assert device.statistics()["tx_dropped"] == 11
        assert device.application.read_batch(5000) == frames[:capacity]


def test_without_a_reader_packets_are_dropped_counted_and_nobody_waits():
    with MemoryDevice() as device:
        device.set_up(True)
        device.application.close()
        assert device.interface.write(b"\x45") == 1
        assert device.statistics()["tx_dropped"] == 1
        assert device.application.read_batch(9) == []


def test_an_end_has_one_holder_and_can_be_attached_again(device):
    first = device.application
    assert device.application is first
    first.close()
    first.close()
    refused(errno.EBADFD, first.read, 0)
    refused(errno.EBADFD, first.fileno)
    second = device.application
    device.interface.write(b"\x45")
    assert second.read() == b"\x45"


def test_closing_the_interface_end_sets_the_device_down(device):
    device.interface.close()
    assert not device.up
    refused(errno.EIO, device.application.write, b"\x45")


@pytest.mark.parametrize("how", ["delete", "close"])
def test_deleting_or_closing_wakes_every_reader(device, how):
    end = device.application
    readers = [in_thread(end.read) for _ in range(5)]
    for reader, _ in readers:
        asleep(reader)
    device.close() if how == "delete" else end.close()
    for reader, outcome in readers:
        reader.join(20)
        assert isinstance(outcome[0], DeviceError)
        assert outcome[0].errno == errno.EBADFD


def test_a_deleted_device_refuses_everything():
    device = MemoryDevice()
    device.set_up(True)
    interface = device.interface
    device.close()
    device.close()
    refused(errno.EBADFD, interface.write, b"\x45")
    refused(errno.EBADFD, getattr, device, "application")
    refused(errno.EBADFD, device.set_up, True)


def test_readiness_is_exact(device):
    end = device.application
    poll = select.poll()
    poll.register(end, select.POLLIN)
    chance = random.Random(11)
    waiting = 0
    for _ in range(5000):
        if chance.random() < 0.5 and waiting < 400:
            waiting += device.interface.write_batch([packet(0, 0)] * chance.randint(1, 3))
        else:
            waiting -= len(end.read_batch(chance.randint(1, 4)))
        assert bool(poll.poll(0)) == (waiting > 0)


def test_a_signal_interrupts_a_read(device):
    class Interrupted(Exception):  # noqa: N818
        pass

    def handler(*_):
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupted):
            device.application.read()
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_many_writers_and_readers_lose_and_repeat_nothing(device):
    writers, count = 8, 2000
    end, received, lock = device.application, [], threading.Lock()

    def write(writer):
        for number in range(count):
            device.interface.write(packet(writer, number))
            while device.statistics()["tx_packets"] - len(received) > 400:
                os.sched_yield()

    def read():
        while True:
            with lock:
                received.append(end.read())

    readers = [in_thread(read) for _ in range(4)]
    threads = [in_thread(lambda writer=writer: write(writer)) for writer in range(writers)]
    for thread, outcome in threads:
        thread.join(60)
        assert outcome == [None]
    deadline = time.monotonic() + 20
    while len(received) < writers * count - device.statistics()["tx_dropped"]:
        assert time.monotonic() < deadline
        os.sched_yield()
    end.close()
    for reader, _ in readers:
        reader.join(20)
    assert device.statistics()["tx_dropped"] == 0
    for writer in range(writers):
        own = [each for each in received if each[1] == writer]
        assert own == [packet(writer, number) for number in range(count)]


@pytest.mark.parametrize(("kind", "low", "high"), [("tun", 68, 65_535), ("tap", 68, 65_521)])
def test_the_mtu_has_its_limits(kind, low, high):
    with MemoryDevice(kind) as device:
        for mtu in (low, high):
            device.set_mtu(mtu)
            assert device.mtu == mtu
        refused(errno.EINVAL, device.set_mtu, low - 1)
        refused(errno.EINVAL, device.set_mtu, high + 1)
        refused(errno.EINVAL, MemoryDevice, kind, high + 1)


def test_a_kind_or_queue_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="tun"):
        MemoryDevice("tin")
    with pytest.raises(ValueError, match="queue"):
        MemoryDevice("tun", queue=0)


def test_devices_leave_no_descriptors():
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for _ in range(300):
        with MemoryDevice() as device:
            assert device.application.fileno() != device.interface.fileno()
    del device
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


def test_waiting_costs_no_cpu(device):
    before = time.process_time()
    with pytest.raises(TimeoutError):
        device.application.read(1.0)
    assert time.process_time() - before < 0.1
