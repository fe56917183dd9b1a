"""Faults of the first driver of this kind, each a case that carries the words of its row."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network

from ginnel.device.address import Address, Route
from ginnel.device.base import Kind
from ginnel.device.bridge import Bridge
from ginnel.device.interface import Interfaces
from ginnel.device.memory import MemoryDevice
from ginnel.errors import DeviceError
from ginnel.stack import Stack
from ginnel.testing.cases import kernel, lent, line
from ginnel.testing.ioctl_cases import IOCTL_CASES, MemorySystem, RealSystem
from ginnel.testing.probes import (
    READ,
    WRITE,
    Background,
    Interrupted,
    Network,
    allow_system_packets,
    asleep,
    by_asyncio,
    by_epoll,
    by_poll,
    by_select,
    dropped,
    ended_for_good,
    network_state,
    number_of,
    packet,
    raises,
    refused_for_good,
    refuses,
    signals_itself_when_asleep,
    sound,
    switches,
    until,
    works,
    would_wait,
    writer_of,
)
from ginnel.testing.subjects import Subject


@line("the first read after an open returned garbage and skipped the wait")
def first_read(subject: Subject) -> None:
    subject.device.set_up(True)
    for number in range(3):
        would_wait(subject)
        with Background(subject.end.read) as reader:
            asleep(reader)
            subject.inject(packet(subject.kind, number))
        assert reader.outcome == [packet(subject.kind, number)]
        subject.end.close()
        subject.end = subject.open()


@line("a packet that the system sends when the interface comes up surprised the driver")
def packets_at_interface_up(subject: Subject) -> None:
    asyncio.run(stack_comes_up(subject))


@kernel("a packet that the system sends when the interface comes up surprised the driver")
def packets_at_interface_up_kernel(subject: Subject) -> None:
    system = allow_system_packets(subject)
    subject.device.set_up(True)
    sent = [packet(subject.kind, number) for number in range(20)]
    for each in sent:
        subject.inject(each)
    got: list[bytes] = []
    while sent[-1] not in got or len(got) == len(sent) + (not system):
        got.append(subject.end.read(20))
        assert sound(subject.kind, got[-1])
    assert [each for each in got if each in sent] == sent


async def stack_comes_up(subject: Subject) -> None:
    """A network stack of ours on the interface end: its stations announce their addresses, and then ask. Point to
    point there is nothing to announce."""
    assert isinstance(subject.device, MemoryDevice)
    async with Stack(subject.device.interface) as stack:
        stack.set_addresses(["10.0.0.1/24", "fd00::1/64"])
        subject.device.set_up(True)
        seen: list[bytes] = []

        async def read_until(what: Callable[[bytes], bool]) -> None:
            while not any(map(what, seen)):
                seen.append(await asyncio.to_thread(subject.end.read, 20))
                assert sound(subject.kind, seen[-1])

        if subject.kind == "tap":
            await read_until(lambda each: each[12:14] == b"\x08\x06" and each[38:42] == bytes([10, 0, 0, 1]))
            await read_until(lambda each: each[54:55] == b"\x88" and each[62:64] == b"\xfd\0")
        for host in ("10.0.0.2", "fd00::2"):
            asking = asyncio.ensure_future(stack.ping(host, timeout=20))
            # As a station it asks first who has the address.
            await read_until(partial(asks_for, subject.kind, ip_address(host).packed))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        counted = subject.device.statistics()
        assert counted["tx_dropped"] == counted["tx_errors"] == 0
        assert counted["tx_packets"] >= len(seen)


def asks_for(kind: Kind, host: bytes, each: bytes) -> bool:
    """Whether a packet is an echo request to a host, or a frame about its address."""
    if kind == "tap":
        return host in each[14:]
    return host in each[:40] and each[9 if len(host) == 4 else 6] in (1, 58)


@line("more than two senders at once crashed the program")
def many_at_once(subject: Subject) -> None:
    threads, count = 8, 100
    subject.device.set_up(True)
    subject.device.set_queue_length(2 * threads * count)
    end = subject.end

    def write(writer: int) -> None:
        for number in range(count):
            end.write(packet(subject.kind, number, writer))

    def inject(writer: int) -> None:
        for number in range(count):
            subject.inject(packet(subject.kind, number, writer))

    got: list[list[bytes]] = [[] for _ in range(threads)]

    def read(reader: int) -> None:
        while (each := end.read(20))[-1:] != b"!":
            got[reader].append(each)

    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(Background(partial(read, number))) for number in range(threads)]
        with contextlib.ExitStack() as writers:
            for number in range(threads):
                writers.enter_context(Background(partial(write, number)))
                writers.enter_context(Background(partial(inject, number)))
            seen = [subject.observe() for _ in range(threads * count)]
        for _ in readers:
            subject.inject(packet(subject.kind, 0) + b"!")
    every = sorted(packet(subject.kind, number, writer) for number in range(count) for writer in range(threads))
    assert sorted(seen) == every
    assert sorted(each for some in got for each in some) == every
    for some in [seen, *got]:
        for writer in range(threads):
            numbers = [number_of(subject.kind, each) for each in some if writer_of(subject.kind, each) == writer]
            assert numbers == sorted(numbers)


WRITE_DOWN = "writing while the other end was not there deadlocked"


@line(WRITE_DOWN)
def other_end_not_there(subject: Subject) -> None:
    refuses(errno.EIO, subject.end.write, packet(subject.kind, 0))
    no_application(subject)


@lent(WRITE_DOWN)
def other_end_not_there_lent(subject: Subject) -> None:
    assert subject.end.write(packet(subject.kind, 0))
    until(lambda: subject.refused() == 1)
    no_application(subject)


def no_application(subject: Subject) -> None:
    subject.device.set_up(True)
    subject.end.close()
    before = dropped(subject)
    until(lambda: not subject.held())
    for number in range(5):
        subject.inject(packet(subject.kind, number))
    until(lambda: dropped(subject) == before + 5)
    subject.end = subject.open()
    would_wait(subject)


CRASHED = "when one side crashed, the other hung for ever, and so did whoever came next"


@line(CRASHED)
def one_side_crashed(subject: Subject) -> None:
    programs_crash(subject)
    system_side_crashes(subject)
    subject.device.interface.fileno()
    subject.device.set_up(True)
    if subject.column == "memory":
        # A socket that has ended has ended for good; an end in memory serves the next.
        works(subject, 8)
    subject.end.close()
    subject.end = subject.open()
    works(subject, 9)


@kernel(CRASHED)
def programs_crash(subject: Subject) -> None:
    subject.device.set_up(True)
    for number in range(3):
        descriptor = subject.give_away()
        program = subprocess.Popen(["sleep", "1000"], pass_fds=[descriptor])
        os.close(descriptor)
        program.kill()
        program.wait()
        until(lambda: not subject.held())
        subject.inject(packet(subject.kind, 100))
        subject.end = subject.open()
        works(subject, number)
    subject.end.close()
    subject.end = subject.open()


def system_side_crashes(subject: Subject) -> None:
    poll = select.poll()
    poll.register(subject.end.fileno(), select.POLLIN | select.POLLOUT)
    with Background(subject.end.read) as reader:
        asleep(reader)
        subject.device.interface.close()
    assert reader.outcome == [b""]
    assert poll.poll(20_000)[0][1] & select.POLLHUP


@line("select/poll lost wake-ups: latency over 2 s, 60 % loss")
def readiness_is_exact(subject: Subject) -> None:
    subject.device.set_up(True)
    for wait in (by_select, by_poll, by_epoll, by_asyncio):
        waiter = wait(subject.end.fileno())
        waiting = 0
        for step in (1, 2, -1, -2, 3, -3, 1, -1):
            if step > 0:
                for number in range(step):
                    subject.inject(packet(subject.kind, number))
                assert waiter(20, READ)
            else:
                for _ in range(-step):
                    assert len(subject.end.read(20)) == len(packet(subject.kind, 0))
            waiting += step
            assert bool(waiter(20 if waiting else 0, READ)) == (waiting > 0), wait
            assert waiter(0) & WRITE, wait
        with Background(partial(waiter, 20, READ)) as sleeper:
            asleep(sleeper)
            subject.inject(packet(subject.kind, 7))
        assert sleeper.outcome[0] & READ
        subject.end.read(20)


@line("OpenVPN spun at 99 % CPU")
def idle(subject: Subject) -> None:
    subject.device.set_up(True)
    with Background(subject.end.read) as reader:
        asleep(reader)
        before = switches(reader)
        time.sleep(0.5)
        assert switches(reader) == before
        subject.inject(packet(subject.kind, 0))


STALLED = "ctrl-C in a read, and deleting the interface, stalled the system"


@line(STALLED)
def interrupted(subject: Subject) -> None:
    for outcome in interrupted_and_deleted(subject):
        assert isinstance(outcome, DeviceError)
        assert outcome.errno == errno.EBADFD
    refused_for_good(subject.end, subject.kind)


@lent(STALLED)
def interrupted_lent(subject: Subject) -> None:
    assert interrupted_and_deleted(subject) == [b""] * 4
    ended_for_good(subject.end, subject.kind)


def interrupted_and_deleted(subject: Subject) -> list[object]:
    """How four reads end."""
    subject.device.set_up(True)
    if threading.current_thread() is threading.main_thread():
        with signals_itself_when_asleep():
            raises(Interrupted, subject.end.read)
    works(subject, 1)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(Background(subject.end.read)) for _ in range(4)]
        for reader in readers:
            asleep(reader)
        subject.delete()
    return [reader.outcome[0] for reader in readers]


@line("devices were a fixed list made at boot")
def made_by_name(subject: Subject) -> None:
    kind = subject.kind
    with Network(subject) as network:
        make = network.make
        first, third, free = make(f"{kind}7"), make(f"{kind}9"), make(f"{kind}%d")
        assert (first.name, third.name) == (f"{kind}7", f"{kind}9")
        assert free.name.startswith(kind)
        assert free.name not in (first.name, third.name)
        refuses((errno.EBUSY, errno.EEXIST), make, f"{kind}7")
        network.remove(first)
        again = make(f"{kind}7")
        assert (again.name, again.up) == (f"{kind}7", False)


@line("the interface was up before anyone asked")
def down_at_first(subject: Subject) -> None:
    assert not subject.device.up
    before = network_state()
    with Network(subject) as network:
        made = network.make(f"{subject.kind}5")
        assert not made.up
        assert [each for each in network_state() if f"{subject.kind}5" not in each] == before
        made.set_up(True)
        assert made.up


@line("no point-to-point, so TUN could not be routed", "tun")
def point_to_point(subject: Subject) -> None:
    with Network(subject) as network:
        device = network.make("tun5")
        own = [Address(ip_interface("10.7.0.1/32"), ip_address("10.7.0.2")), Address(ip_interface("fd07::1/64"))]
        routes = [Route(ip_network("10.70.0.0/16")), Route(ip_network("fd70::/16"), metric=9)]
        device.set_mtu(1400)
        device.set_up(True)
        for address in own:
            device.add_address(address)
        for route in routes:
            device.add_route(route)
        assert [each for each in device.addresses if not each.interface.is_link_local] == own
        assert {str(each.destination) for each in device.routes} >= {"10.70.0.0/16", "fd70::/16"}
        assert device.mtu == 1400
        refuses(errno.EEXIST, device.add_address, own[0])
        refuses(errno.EEXIST, device.add_route, routes[0])
        device.remove_route(routes[0])
        refuses(errno.ESRCH, device.remove_route, routes[0])
        device.remove_address(own[0].interface)
        refuses(errno.EADDRNOTAVAIL, device.remove_address, own[0].interface)


@line("ioctl did nothing")
def every_ioctl(subject: Subject) -> None:
    asyncio.run(ioctls_in_memory())


@kernel("ioctl did nothing")
def every_ioctl_kernel(subject: Subject) -> None:
    # They make devices of its name.
    subject.delete()
    for case in IOCTL_CASES:
        case.check(RealSystem())


async def ioctls_in_memory() -> None:
    for case in IOCTL_CASES:
        interfaces = Interfaces()
        try:
            case.check(MemorySystem(interfaces))
        finally:
            await interfaces.aclose()


@line("no way to bridge", "tap")
def bridged(subject: Subject) -> None:
    subject.device.set_up(True)
    with Bridge() as bridge, MemoryDevice("tap") as other:
        other.set_up(True)
        bridge.add(subject.end)  # type: ignore[arg-type]
        bridge.add(other.application)
        for number in range(3):
            subject.inject(packet("tap", number))
            assert other.interface.read(20) == packet("tap", number)
            back = packet("tap", number)[6:12] + packet("tap", number)[:6] + packet("tap", number)[12:]
            other.interface.write(back)
            assert subject.observe() == back
        # Each knows now who is where.
        assert sorted(each.port for each in bridge.stations()) == [1, 2]
