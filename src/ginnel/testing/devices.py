"""What every device promises, as cases that run on each kind of device alike.

A case is named after its line of the contract. Where a lent descriptor cannot do what the line says,
because no data call is trapped, the line has a case of its own in the ``lent`` column; nowhere else.
`check_device` runs them all; ``device_cases`` lists them, for pytest's parametrize.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network

from ginnel.device.base import QUEUE, Kind
from ginnel.device.interface import Address, Route
from ginnel.device.kernel import NODE
from ginnel.testing.probes import (
    COUNTED,
    GONE,
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
    is_end,
    is_over,
    malformed,
    network_state,
    number_of,
    opened,
    packet,
    packet_information,
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
from ginnel.testing.subjects import Column, Factory, Subject


@dataclass(frozen=True)
class Case:
    """A promise, in the contract's words, and the check of it on a fresh subject."""

    name: str
    check: Callable[[Subject], None]
    kinds: tuple[Kind, ...] = ("tun", "tap")

    def run(self, factory: Factory, kind: Kind) -> None:
        with factory(kind) as subject:
            self.check(subject)


def device_cases(column: Column) -> list[Case]:
    """The cases of a column, in the order of the contract."""
    return [LENT[case.name] if column == "lent" and case.name in LENT else case for case in CASES]


def check_device(factory: Factory, column: Column = "memory") -> None:
    """Runs every case on devices that ``factory`` makes. Raises AssertionError, with the case's name."""
    for case in device_cases(column):
        for kind in case.kinds:
            try:
                case.run(factory, kind)
            except Exception as error:
                raise AssertionError(f"{kind}: {case.name}: {error!r}") from error


CASES: list[Case] = []
LENT: dict[str, Case] = {}

Check = Callable[[Subject], None]


def line(name: str, *kinds: Kind) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        CASES.append(Case(name, check, kinds or ("tun", "tap")))
        return check

    return add


def lent(name: str, *kinds: Kind) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        LENT[name] = Case(name, check, kinds or ("tun", "tap"))
        return check

    return add


# Faults of the first driver of this kind


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


@line("when one side crashed, the other hung for ever, and so did whoever came next")
def one_side_crashed(subject: Subject) -> None:
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
    system_side_crashes(subject)


def system_side_crashes(subject: Subject) -> None:
    if subject.column == "kernel":
        return  # It would be the kernel that crashed.
    poll = select.poll()
    poll.register(subject.end.fileno(), select.POLLIN | select.POLLOUT)
    with Background(subject.end.read) as reader:
        asleep(reader)
        subject.device.interface.close()
    assert reader.outcome == [b""]
    assert poll.poll(20_000)[0][1] & select.POLLHUP
    if subject.column == "lent":
        subject.end.close()
    subject.device.interface.fileno()
    subject.device.set_up(True)
    if subject.column == "lent":
        subject.end = subject.open()
    works(subject, 9)


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
        others = [each for each in os.listdir("/proc/self/task") if int(each) != threading.get_native_id()]
        before = {each: switches(each) for each in others}
        time.sleep(0.5)
        assert {each: switches(each) for each in others} == before
        subject.inject(packet(subject.kind, 0))


@line("ctrl-C in a read, and deleting the interface, stalled the system")
def interrupted(subject: Subject) -> None:
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
    for reader in readers:
        assert is_end(subject, reader.outcome[0])
    is_over(subject)


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


# Read, write, poll


UNATTACHED = "Operation on an unattached descriptor: EBADFD; poll POLLERR"


@line(UNATTACHED)
def unattached(subject: Subject) -> None:
    if subject.column == "kernel":
        with opened(NODE) as descriptor:
            refuses(errno.EBADFD, os.read, descriptor, 2000)
            refuses(errno.EBADFD, os.write, descriptor, packet(subject.kind, 0))
            assert by_poll(descriptor)(0) & select.POLLERR
    subject.end.close()
    refused_for_good(subject.end, subject.kind)
    refuses(errno.EBADFD, subject.end.fileno)


@line("Read: one packet a call.")
def one_packet_a_call(subject: Subject) -> None:
    subject.device.set_up(True)
    sent = [packet(subject.kind, number) + bytes(number) for number in range(5)]
    for each in sent:
        subject.inject(each)
    assert [subject.end.read(20) for _ in sent] == sent
    would_wait(subject)
    for each in sent:
        subject.inject(each)
    got: list[bytes] = []
    while len(got) < len(sent):
        got += subject.end.read_batch(3)
    assert got == sent
    if subject.column != "memory":
        subject.inject(sent[3])
        assert by_poll(subject.end.fileno())(20, READ)
        assert os.read(subject.end.fileno(), 70_000) == sent[3]


@line("Read: Zero-length buffer: 0, nothing consumed.")
def zero_length_buffer(subject: Subject) -> None:
    subject.device.set_up(True)
    assert subject.end.read_into(bytearray()) == 0
    subject.inject(packet(subject.kind, 1))
    assert subject.end.read_into(bytearray()) == 0
    assert subject.end.read(20) == packet(subject.kind, 1)


@line("Read: Empty and non-blocking: EAGAIN.")
def empty(subject: Subject) -> None:
    subject.device.set_up(True)
    would_wait(subject)
    assert subject.end.read_batch(5) == []
    if subject.column != "memory":
        refuses(errno.EAGAIN, os.read, subject.end.fileno(), 2000)


@line("Read: Short buffer: truncated, the rest lost, and with packet information TUN_PKT_STRIP set.")
def short_buffer(subject: Subject) -> None:
    subject.device.set_up(True)
    buffer = bytearray(20)
    for number in range(2):
        subject.inject(packet(subject.kind, number))
    assert subject.end.read_into(buffer, 20) == 20
    assert buffer == packet(subject.kind, 0)[:20]
    assert subject.end.read(20) == packet(subject.kind, 1)
    if subject.column == "kernel":
        with packet_information(subject.kind) as (descriptor, inject):
            inject(packet(subject.kind, 0))
            flags, _ = struct.unpack("=HH", os.read(descriptor, 24)[:4])
            assert flags & TUN_PKT_STRIP


@line("Read: Buffer smaller than the header it needs: EINVAL.")
def smaller_than_the_header(subject: Subject) -> None:
    if subject.column == "kernel":
        with packet_information(subject.kind) as (descriptor, inject):
            inject(packet(subject.kind, 0))
            refuses(errno.EINVAL, os.read, descriptor, 3)


DELETED = "Read: Device deleted under a blocked read: an error, then EBADFD."


@line(DELETED)
def deleted_under_a_read(subject: Subject) -> None:
    with Background(subject.end.read) as reader:
        asleep(reader)
        subject.delete()
    assert is_end(subject, reader.outcome[0])
    is_over(subject)


@line("Write: the full count.")
def full_count(subject: Subject) -> None:
    subject.device.set_up(True)
    for each in (packet(subject.kind, 0), bytearray(packet(subject.kind, 1)), memoryview(packet(subject.kind, 2))):
        assert subject.end.write(each) == len(each)
        assert subject.observe() == bytes(each)
    assert subject.end.write_batch([packet(subject.kind, number) for number in range(9)]) == 9
    assert [subject.observe() for _ in range(9)] == [packet(subject.kind, number) for number in range(9)]
    if subject.column != "memory":
        assert os.write(subject.end.fileno(), packet(subject.kind, 1)) == len(packet(subject.kind, 1))
        assert subject.observe() == packet(subject.kind, 1)


DOWN = "Write: Interface down: EIO, counted."


@line(DOWN)
def write_down(subject: Subject) -> None:
    refuses(errno.EIO, subject.end.write, packet(subject.kind, 0))
    assert subject.refused() == 1


@lent(DOWN)
def write_down_lent(subject: Subject) -> None:
    subject.end.write(packet(subject.kind, 0))
    until(lambda: subject.refused() == 1)


MALFORMED = (
    "Write: Empty packet, a TUN packet whose version is neither 4 nor 6 (without packet information), "
    "a TAP frame under 14 bytes: EINVAL."
)


@line(MALFORMED)
def write_malformed(subject: Subject) -> None:
    subject.device.set_up(True)
    for each in malformed(subject.kind):
        before = subject.refused()
        refuses(errno.EINVAL, subject.end.write, each)
        # The kernel refuses a write of nothing before it gets as far as to count.
        assert subject.refused() == before + 1 or subject.column == "kernel"
    works(subject, 1)


@lent(MALFORMED)
def write_malformed_lent(subject: Subject) -> None:
    subject.device.set_up(True)
    for each in malformed(subject.kind):
        os.write(subject.end.fileno(), each)
    until(lambda: subject.refused() == len(malformed(subject.kind)))
    works(subject, 1)


@line("Write: Longer than the MTU: taken, as the kernel does (up to 65,535 bytes); the stack behind decides.")
def longer_than_the_mtu(subject: Subject) -> None:
    subject.device.set_up(True)
    for size in (1515, 9000, 65_535):
        longer = packet(subject.kind, 1, size=size)
        assert subject.end.write(longer) == size
        assert subject.observe() == longer


@line("Poll: IN when a packet waits;")
def poll_in(subject: Subject) -> None:
    subject.device.set_up(True)
    wait = by_poll(subject.end.fileno())
    assert not wait(0) & READ
    subject.inject(packet(subject.kind, 0))
    assert wait(20, READ)
    subject.end.read(20)
    assert not wait(0) & READ


POLL_OUT = "Poll: OUT when up and a write would be taken;"


@line(POLL_OUT)
def poll_out(subject: Subject) -> None:
    wait = by_poll(subject.end.fileno())
    assert not wait(0) & WRITE
    subject.device.set_up(True)
    assert wait(20, WRITE)
    if subject.column == "memory":
        each = packet(subject.kind, 0)
        subject.end.write_batch([each] * (QUEUE[subject.kind] - 1))
        assert wait(0) & WRITE
        subject.end.write(each)
        assert not wait(0) & WRITE
        subject.observe()
        assert wait(0) & WRITE
    subject.device.set_up(False)
    assert not wait(0) & WRITE


@lent(POLL_OUT)
def poll_out_lent(subject: Subject) -> None:
    assert by_poll(subject.end.fileno())(0) & WRITE


@line("Poll: HUP/ERR when the device or the peer is gone.")
def poll_gone(subject: Subject) -> None:
    subject.device.set_up(True)
    wait = by_poll(subject.end.fileno())
    assert not wait(0) & GONE
    with Background(partial(wait, 20, READ)) as sleeper:
        asleep(sleeper)
        subject.delete()
    assert sleeper.outcome[0] & GONE


QUEUE_LINE = "Queue: 500 packets for TUN, 1,000 for TAP, resizable; past it the newest packet is dropped and counted."


@line(QUEUE_LINE)
def queue(subject: Subject) -> None:
    subject.device.set_up(True)
    for length in (QUEUE[subject.kind], 20, 40):
        if length != QUEUE[subject.kind]:
            subject.device.set_queue_length(length)
        assert subject.device.queue_length == length
        before = dropped(subject)
        sent = [packet(subject.kind, number) for number in range(length + 10)]
        for each in sent:
            subject.inject(each)
        assert dropped(subject) == before + 10
        assert subject.end.read_batch(5000) == sent[:length]


@lent(QUEUE_LINE)
def queue_lent(subject: Subject) -> None:
    subject.device.set_up(True)
    count, each = 20_000, packet(subject.kind, 0)
    for _ in range(count):
        subject.inject(each)
    got = 0
    while got + dropped(subject) < count:
        got += len(subject.end.read_batch(500))
    assert got + dropped(subject) == count


@line("Counters: packets, bytes, dropped, errors, each way.")
def counters(subject: Subject) -> None:
    subject.device.set_up(True)
    each = packet(subject.kind, 0)
    for _ in range(3):
        subject.end.write(each)
        assert subject.observe() == each
    for _ in range(2):
        subject.inject(each)
        assert subject.end.read(20) == each
    counted = subject.device.statistics()
    assert {name: value for name, value in counted.items() if value} == {
        "rx_packets": 3,
        "rx_bytes": 3 * len(each),
        "tx_packets": 2,
        "tx_bytes": 2 * len(each),
    }
    assert set(counted) == {f"{way}_{what}" for way in ("rx", "tx") for what in COUNTED}


@line("MTU 1500 by default, 68 to 65,535 (TAP 65,521).")
def mtu(subject: Subject) -> None:
    highest = 65_535 if subject.kind == "tun" else 65_521
    assert subject.device.mtu == 1500
    for value in (68, highest):
        subject.device.set_mtu(value)
        assert subject.device.mtu == value
    for value in (67, highest + 1):
        refuses(errno.EINVAL, subject.device.set_mtu, value)
    assert subject.device.mtu == highest


@line("TAP: a locally administered MAC, settable while down.", "tap")
def mac(subject: Subject) -> None:
    with Network(subject) as network:
        device = network.make("tap5")
        assert len(device.mac) == 6
        assert device.mac[0] & 3 == 2
        device.set_mac(bytes.fromhex("020000000001"))
        assert device.mac == bytes.fromhex("020000000001")
        device.set_up(True)
        if subject.column != "kernel":  # which has IFF_LIVE_ADDR_CHANGE
            refuses(errno.EBUSY, device.set_mac, bytes.fromhex("020000000002"))


@line("fileno(): on a kernel or lent device real I/O; on an in-process memory end open_fd() gives a real one")
def real_descriptor(subject: Subject) -> None:
    subject.device.set_up(True)
    descriptor = subject.give_away()
    try:
        subject.inject(packet(subject.kind, 1))
        assert by_select(descriptor)(20, READ)
        assert os.read(descriptor, 70_000) == packet(subject.kind, 1)
        assert os.write(descriptor, packet(subject.kind, 2)) == len(packet(subject.kind, 2))
        assert subject.observe() == packet(subject.kind, 2)
    finally:
        os.close(descriptor)


TUN_PKT_STRIP = 1
