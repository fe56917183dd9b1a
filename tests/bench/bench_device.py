"""``make bench``: devices against what they are made to replace, in turns, in one run.

One packet at a time from Python: the memory device against a bare SEQPACKET socket pair, the kernel's
device against ``os.read`` and ``os.write`` on the same descriptor. Batches between two Rust threads.
And how long after a write a reader that slept has its packet.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.harness.network import Namespace

from ginnel._core import DescriptorEnd
from ginnel.device import KernelDevice, MemoryDevice
from ginnel.device.base import DeviceEnd
from ginnel.testing.probes import packet
from ginnel.testing.subjects import KernelSubject

PACKET = packet("tun", 0, size=1400)
COUNT = 20_000
FLIGHT = 400
ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="of how many the median is taken (default 15)")
    rounds = parser.parse_args().rounds
    print(f"one packet of {len(PACKET)} bytes at a time, from Python: packets a second, medians of {rounds} rounds")
    with MemoryDevice() as quiet, MemoryDevice() as polled:
        quiet.set_up(True)
        polled.set_up(True)
        polled.interface.fileno()
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pair = measure(rounds, pair=lambda: through_sockets(left, right), memory=lambda: through(quiet))
        report("memory device, socket pair", pair["memory"], pair["pair"])
        pair = measure(rounds, pair=lambda: through_sockets(left, right), memory=lambda: through(polled))
        report("the same, its descriptor polled", pair["memory"], pair["pair"])
    with Namespace() as namespace, namespace.entered(), KernelSubject("tun") as subject:
        subject.device.set_up(True)
        end = subject.end
        runs = measure(rounds, ours=lambda: write_ours(end), raw=lambda: write_raw(end.fileno()))
        report("kernel device: write, os.write", runs["ours"], runs["raw"])
        runs = measure(rounds, ours=lambda: read_ours(subject), raw=lambda: read_raw(subject))
        report("kernel device: read, os.read", runs["ours"], runs["raw"])
    batches()
    wake_ups()


def measure(rounds: int, **candidates: Callable[[], float]) -> dict[str, float]:
    """Packets a second of each, the median; they take turns, so that a busy moment is shared."""
    runs: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            runs[name].append(run())
    return {name: statistics.median(each) for name, each in runs.items()}


def report(what: str, ours: float, other: float) -> None:
    print(f"{what:>34} {ours:>12,.0f} {other:>12,.0f}   ratio {ours / other:.2f}")


def rate(began: float, count: int = COUNT) -> float:
    return count / (time.perf_counter() - began)


def through(device: MemoryDevice) -> float:
    write, read = device.application.write, device.interface.read
    began = time.perf_counter()
    for _ in range(COUNT):
        write(PACKET)
        read()
    return rate(began)


def through_sockets(left: socket.socket, right: socket.socket) -> float:
    send, receive = left.send, right.recv
    began = time.perf_counter()
    for _ in range(COUNT):
        send(PACKET)
        receive(2048)
    return rate(began)


def write_ours(end: DeviceEnd) -> float:
    write = end.write
    began = time.perf_counter()
    for _ in range(COUNT):
        write(PACKET)
    return rate(began)


def write_raw(descriptor: int) -> float:
    write = os.write
    began = time.perf_counter()
    for _ in range(COUNT):
        write(descriptor, PACKET)
    return rate(began)


def read_ours(subject: KernelSubject) -> float:
    read, took = subject.end.read, 0.0
    for _ in range(COUNT // FLIGHT):
        for _ in range(FLIGHT):
            subject.inject(PACKET)
        began = time.perf_counter()
        for _ in range(FLIGHT):
            read()
        took += time.perf_counter() - began
    return COUNT / took


def read_raw(subject: KernelSubject) -> float:
    read, descriptor, took = os.read, subject.end.fileno(), 0.0
    for _ in range(COUNT // FLIGHT):
        for _ in range(FLIGHT):
            subject.inject(PACKET)
        began = time.perf_counter()
        for _ in range(FLIGHT):
            read(descriptor, 2048)
        took += time.perf_counter() - began
    return COUNT / took


def batches() -> None:
    command = ["cargo", "run", "--release", "--locked", "--quiet", "-p", "ginnel-core", "--example", "batches"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    rates = {name: float(value) for name, value in (line.split() for line in printed.splitlines())}
    print("batches of 64 between two Rust threads: packets a second")
    print(f"{'moved':>34} {rates['moved']:>12,.0f}")
    report("their 1400 bytes copied, memcpy", rates["copied"], rates["memcpy"])


def wake_ups() -> None:
    print("from a write to the end of a read that slept: µs, median and 99th percentile of 1,000")
    with MemoryDevice() as device:
        device.set_up(True)
        wake_up("memory device", device.application, device.interface)
    with MemoryDevice() as device:
        device.set_up(True)
        with DescriptorEnd(device.application.open_fd()) as program:
            wake_up("lent device", program, device.interface)
    with Namespace() as namespace, namespace.entered(), KernelDevice() as kernel:
        kernel.set_up(True)
        system = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        wake_up("kernel device", kernel.application, Injector(system, kernel.name))
        system.close()


class Injector:
    """Writes as the kernel's own stack would."""

    def __init__(self, system: socket.socket, name: str) -> None:
        self._system, self._address = system, (name, 0x0800)

    def write(self, each: bytes) -> int:
        return self._system.sendto(each, self._address)


def wake_up(what: str, reader: DeviceEnd, writer: DeviceEnd | Injector) -> None:
    took: list[float] = []
    wrote = 0.0

    def read() -> None:
        while len(took) < 1000:
            if reader.read() == PACKET:
                took.append(time.perf_counter() - wrote)

    thread = threading.Thread(target=read)
    thread.start()
    while thread.is_alive():
        # Long enough that the reader sleeps, and the processor's other work shows.
        time.sleep(0.002)
        wrote = time.perf_counter()
        writer.write(PACKET)
    thread.join()
    took.sort()
    print(f"{what:>34} {took[500] * 1e6:>12.0f} {took[990] * 1e6:>12.0f}")


if __name__ == "__main__":
    main()
