"""Eight writers and eight readers on one device, each way: each packet once, whole, in its writer's order, or counted.

``rust/core/tests/many.rs`` and ``rust/io/tests/descriptors.rs`` do the same without Python, and so does
``rust/io/examples/kernel_many.rs``, which one of these runs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_interface
from pathlib import Path

import pytest

from ginnel.device import KernelDevice
from ginnel.device.address import Address
from ginnel.device.base import Kind
from ginnel.testing.lender import Lender
from ginnel.testing.probes import Background, number_of, packet, writer_of
from ginnel.testing.subjects import SUBJECTS, Factory, set_ipv6
from tests.harness.network import Namespace

THREADS = 8
# Of each writer; `make soak` has more.
COUNT = int(os.environ.get("GINNEL_PACKETS", 20_000)) // THREADS
ROOT = Path(__file__).parents[1]
# Fewer than any queue on the way holds.
ON_THEIR_WAY = 200


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with Namespace() as own, own.entered():
        yield


@pytest.mark.parametrize("kind", ["tun", "tap"])
@pytest.mark.parametrize("name", [*SUBJECTS, "lender"])
def test_paced_by_the_readers_every_packet_arrives(name: str, kind: Kind) -> None:
    factories: dict[str, Factory] = {**SUBJECTS}
    with contextlib.ExitStack() as stack:
        if name == "lender":
            factories[name] = stack.enter_context(Lender())
        subject = stack.enter_context(factories[name](kind))
        subject.device.set_up(True)
        cross(kind, lambda each: subject.end.write(each), lambda: subject.observe(60))
        if name != "kernel":
            cross(kind, subject.inject, lambda: subject.end.read(60))
        counted = subject.device.statistics()
        assert counted["rx_packets"] == THREADS * (COUNT + 1)
        assert [counted[f"{way}_{what}"] for way in ("rx", "tx") for what in ("dropped", "errors")] == [0] * 4


def cross(kind: Kind, write: Callable[[bytes], object], read: Callable[[], bytes]) -> None:
    room = threading.Semaphore(ON_THEIR_WAY)

    def send(writer: int) -> None:
        for number in range(COUNT):
            assert room.acquire(timeout=60)
            write(packet(kind, number, writer, size=60 + number % 64))

    got: list[list[tuple[int, int]]] = [[] for _ in range(THREADS)]

    def receive(reader: int) -> None:
        while (each := read())[-1:] != b"!":
            writer, number = writer_of(kind, each), number_of(kind, each)
            assert each == packet(kind, number, writer, size=60 + number % 64)
            got[reader].append((writer, number))
            room.release()

    with contextlib.ExitStack() as readers:
        reading = [readers.enter_context(Background(partial(receive, number))) for number in range(THREADS)]
        with contextlib.ExitStack() as writers:
            writing = [writers.enter_context(Background(partial(send, number))) for number in range(THREADS)]
        for _ in range(THREADS):
            write(packet(kind, 0) + b"!")
    assert [each.outcome for each in (*reading, *writing)] == [[None]] * 2 * THREADS
    every = sorted(each for some in got for each in some)
    assert every == [(writer, number) for writer in range(THREADS) for number in range(COUNT)]
    for some in got:
        for writer in range(THREADS):
            numbers = [number for each, number in some if each == writer]
            assert numbers == sorted(numbers)


def test_what_the_kernels_device_does_not_deliver_it_counts() -> None:
    command = ["cargo", "run", "--locked", "--quiet", "-p", "ginnel-io", "--example", "kernel_many", "--"]
    with KernelDevice() as device:
        # Of its own accord the interface says nothing then.
        set_ipv6(device.name, False)
        device.set_up(True)
        device.add_address(Address(ip_interface("10.9.0.1/24")))
        descriptor = device.application.fileno()
        printed = subprocess.run(
            [*command, str(descriptor), "10.9.0.2:4000", str(COUNT)],
            cwd=ROOT,
            pass_fds=[descriptor],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        counted = device.statistics()
        print(f"{printed.strip()} received, {counted['tx_dropped']} dropped")
        assert int(printed) + counted["tx_dropped"] == THREADS * COUNT
        assert counted["tx_packets"] == int(printed)
