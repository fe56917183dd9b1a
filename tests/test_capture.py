"""Captures: what passes a device is in the file, and what is lost on the way is noted there."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ginnel.device import Capture, MemoryDevice, NamedEnd
from ginnel.errors import ConfigError, DeviceError
from tests.harness.pcapng import CaptureFile
from tests.harness.process import run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tun0.pcapng"


def test_every_packet_both_ways_with_direction_time_and_order(path: Path) -> None:
    before = time.time_ns()
    with MemoryDevice() as device, Capture(path, "tun", "tun0") as capture:
        capture.observe(device)
        device.set_up(True)
        wanted = []
        for size in (1, 20, 21, 22, 23, 1500, 1984, 1985, 65_535):
            packet = b"\x60" + os.urandom(size - 1)
            device.application.write(packet)
            device.interface.write(packet)
            assert device.interface.read(10) == packet
            wanted += [("in", packet), ("out", device.application.read(10))]
        assert capture.statistics() == {"packets": len(wanted), "dropped": 0, "lost": 0}
    found = CaptureFile(path)
    assert (found.link_type, found.name) == (101, "tun0")
    assert [(packet.direction, packet.data) for packet in found.packets] == wanted
    times = [packet.nanoseconds for packet in found.packets]
    assert before <= times[0]
    assert times == sorted(times)
    assert times[-1] <= time.time_ns()
    assert found.statistics == {"received": len(wanted), "dropped": 0, "lost": 0, "delivered": len(wanted)}


def test_what_the_device_drops_is_noted_where_it_happened(path: Path) -> None:
    with MemoryDevice("tap", queue=3) as device, Capture(path, "tap", "tap0") as capture:
        capture.observe(device)
        device.set_up(True)
        frames = [bytes([number]) * 14 for number in range(5)]
        assert device.interface.write_batch(frames) == 3
        device.application.read_batch(9)
        device.interface.write(frames[0])
        device.application.close()
        device.interface.write(frames[1])
        statistics = capture.statistics()
        assert statistics["dropped"] == device.statistics()["tx_dropped"] == 4
    found = CaptureFile(path)
    assert found.link_type == 1
    assert [packet.data for packet in found.packets] == [*frames[:3], frames[0]]
    assert [packet.dropped for packet in found.packets] == [0, 0, 0, 2]
    # Seven were written: three were never taken, one was, and then nobody read it.
    assert found.statistics == {"received": 7, "dropped": 4, "lost": 0, "delivered": 4}


def test_wiresharks_tools_open_it(path: Path) -> None:
    with MemoryDevice() as device, Capture(path, "tun", "tun0") as capture:
        capture.observe(device)
        device.set_up(True)
        packet = bytes.fromhex("4500001c00004000401126ce0a0000010a00000204d200070008e6fc")
        device.application.write(packet)
        device.interface.write(packet)
    fields = ["frame.packet_flags_direction", "ip.src", "udp.dstport", "frame.interface_name"]
    words = [word for name in fields for word in ("-e", name)]
    lines = run(["tshark", "-r", path, "-T", "fields", *words]).splitlines()
    # Wireshark 4.0 prints the direction in hexadecimal, 4.2 and later in decimal.
    assert [line.split("\t")[1:] for line in lines] == [["10.0.0.1", "7", "tun0"]] * 2
    assert [int(line.split("\t")[0], 0) for line in lines] == [1, 2]
    assert run(["capinfos", "-T", "-r", "-c", path]).split()[-1] == "2"


def test_devices_of_several_names_are_several_interfaces_and_the_same_name_is_the_same(path: Path) -> None:
    with Capture(path, "tun", "tun0") as capture:
        for turn, (kind, name) in enumerate([("tun", "tun0"), ("tap", "tap0"), ("tun", "tun0"), ("tun", "tun1")]):
            with MemoryDevice(kind) as device:  # type: ignore[arg-type]
                capture.observe(device, name)
                device.set_up(True)
                device.application.write(b"\x45" + bytes([turn]) * 19)
                device.interface.read(10)
                if turn == 3:
                    device.interface.write(b"\x45" + bytes(19))
                    device.application.close()
    found = CaptureFile(path)
    assert [(each.link_type, each.name) for each in found.interfaces] == [(101, "tun0"), (1, "tap0"), (101, "tun1")]
    assert [(packet.interface, packet.data[1]) for packet in found.packets[:4]] == [(0, 0), (1, 1), (0, 2), (2, 3)]
    assert [each.statistics["received"] for each in found.interfaces] == [2, 1, 2]
    assert [each.statistics["dropped"] for each in found.interfaces] == [0, 0, 1]
    assert run(["capinfos", "-T", "-r", "-c", path]).split()[-1] == "5"


def test_a_device_that_is_gone_is_not_kept_by_its_capture(path: Path) -> None:
    with Capture(path, "tun", "tun0") as capture:
        before = resident()
        for _ in range(3000):
            with MemoryDevice(queue=1000) as device:
                capture.observe(device, "tun0")
        assert resident() < before + (16 << 20)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_device_elsewhere_is_refused_in_one_line(path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        Capture(path, "tun", "tun0") as capture,
        theirs,
        NamedEnd("tun0", "tun", 1500, ours.detach()) as end,
        pytest.raises(DeviceError, match=r"^[^\n]*--capture[^\n]*$"),
    ):
        capture.observe(end)  # type: ignore[arg-type]


def test_it_is_there_while_the_capture_runs(path: Path) -> None:
    with MemoryDevice() as device, Capture(path, "tun", "tun0") as capture:
        capture.observe(device)
        device.set_up(True)
        for count in range(1, 20):
            device.application.write(b"\x45 now")
            deadline = time.monotonic() + 20
            while len(CaptureFile(path).packets) < count:
                assert time.monotonic() < deadline
                os.sched_yield()


def test_the_file_is_for_its_owner_alone_even_where_it_was_there_before(path: Path) -> None:
    for there in (b"", b"\x0a\x0d\x0d\x0a and more"):
        path.write_bytes(there)
        path.chmod(0o644)
        Capture(path, "tun", "tun0").close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert CaptureFile(path).packets == []


def test_a_file_that_is_no_capture_is_not_overwritten(path: Path) -> None:
    path.write_text("client\n")
    with pytest.raises(ConfigError, match="no capture"):
        Capture(path, "tun", "tun0")
    assert path.read_text() == "client\n"


def test_two_captures_are_not_written_into_one_file(path: Path) -> None:
    with MemoryDevice() as device, Capture(path, "tun", "tun0") as capture:
        capture.observe(device)
        device.set_up(True)
        with pytest.raises(ConfigError, match=r"another capture is being written to .*tun0\.pcapng"):
            Capture(path, "tun", "tun0")
        device.interface.write(b"\x45" + bytes(19))
    assert len(CaptureFile(path).packets) == 1
    Capture(path, "tun", "tun0").close()
    assert not CaptureFile(path).packets


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^cannot write .*no/such/folder: No such file or directory$"):
        Capture(tmp_path / "no/such/folder", "tun", "tun0")


def test_a_full_disk_is_said_once_counted_and_the_device_goes_on(path: Path) -> None:
    # /dev/full refuses the header already: nothing begins.
    with pytest.raises(DeviceError, match="cannot write /dev/full: No space left"):
        Capture("/dev/full", "tun", "tun0")
    limit = 20_000
    script = f"""
import asyncio, logging, resource, signal
from ginnel.device import Capture, MemoryDevice
logging.basicConfig(format="%(message)s")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
async def main():
    with MemoryDevice() as device, Capture({str(path)!r}, "tun", "tun0") as capture:
        capture.observe(device)
        device.set_up(True)
        for _ in range(300):
            device.application.write(b"\\x45" + bytes(999))
            assert device.interface.read(10)
            await asyncio.sleep(0)
    assert capture.statistics()["packets"] == 300
    print(capture.statistics()["lost"])
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"cannot write {path}: File too large; what is lost is counted"]
    found = CaptureFile(path)
    assert len(found.packets) == 19
    assert len(found.packets) + int(done.stdout) == 300


def test_a_disk_that_is_slower_than_the_device_costs_packets_of_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with MemoryDevice() as device, Capture(path, "tun", "tun0") as capture:
        capture.observe(device)
        device.set_up(True)
        # Nobody reads the pipe: what is written waits, and no more than 16 MiB of it.
        for _ in range(900):
            device.application.write(b"\x45" + bytes(65_000))
            assert len(device.interface.read(10)) == 65_001
        statistics = capture.statistics()
        assert statistics["packets"] == 900
        # One buffer is being written while the other fills.
        assert statistics["lost"] >= 900 - 2 * (16 << 20) // 65_000
        os.close(reader)


def test_many_writers_are_all_in_it_in_the_order_of_the_readers(path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    received = []

    def write(device: MemoryDevice, writer: int) -> None:
        for number in range(500):
            device.application.write(b"\x45" + struct.pack("!BI", writer, number) + bytes(chance.randrange(100)))

    async def main(device: MemoryDevice) -> None:
        writers = [asyncio.create_task(asyncio.to_thread(write, device, writer)) for writer in range(4)]
        while not all(writer.done() for writer in writers):
            received.extend(device.interface.read_batch(100))
            await asyncio.sleep(0)
        received.extend(device.interface.read_batch(10_000))

    with MemoryDevice(queue=100) as device, Capture(path, "tun", "tun0") as capture:
        capture.observe(device)
        device.set_up(True)
        asyncio.run(main(device))
        dropped = device.statistics()["rx_dropped"]
    found = CaptureFile(path)
    assert [packet.data for packet in found.packets] == received
    assert len(received) + dropped == 2000
    assert found.statistics["dropped"] == dropped


def test_a_device_goes_on_without_its_capture(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with MemoryDevice() as device:
        device.set_up(True)
        capture = Capture(path, "tun", "tun0")
        capture.observe(device)
        device.application.write(b"\x45 seen")
        capture.close()
        capture.close()
        device.application.write(b"\x45 not seen")
        assert len(device.interface.read_batch(9)) == 2
    assert [packet.data for packet in CaptureFile(path).packets] == [b"\x45 seen"]
    assert caplog.records == []
