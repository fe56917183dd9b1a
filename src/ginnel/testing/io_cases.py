"""Read, write, poll, queue and settings: the contract's lines about them, as Linux has them."""

from __future__ import annotations

import errno
import os
import select
import struct
from functools import partial
from typing import Any

from ginnel.device.base import QUEUE, Kind
from ginnel.errors import DeviceError
from ginnel.testing.cases import kernel, lent, line
from ginnel.testing.probes import (
    COUNTED,
    GONE,
    READ,
    WRITE,
    Background,
    Network,
    asleep,
    by_poll,
    by_select,
    dropped,
    ended_for_good,
    malformed,
    packet,
    refused_for_good,
    refuses,
    until,
    works,
    would_wait,
)
from ginnel.testing.subjects import Subject

UNATTACHED = "Operation on an unattached descriptor: EBADFD; poll POLLERR"


@lent(UNATTACHED)
def unattached_lent(subject: Subject) -> None:
    with subject.unattached() as descriptor:
        refuses(errno.ENOTCONN, os.read, descriptor, 2000)
        refuses(errno.ENOTCONN, os.write, descriptor, packet(subject.kind, 0))
        assert by_poll(descriptor)(0) & select.POLLHUP
    closed(subject)


@line(UNATTACHED)
def unattached(subject: Subject) -> None:
    # In memory there is nothing to attach.
    if subject.column != "memory":
        with subject.unattached() as descriptor:
            refuses(errno.EBADFD, os.read, descriptor, 2000)
            refuses(errno.EBADFD, os.write, descriptor, packet(subject.kind, 0))
            assert by_poll(descriptor)(0) & select.POLLERR
    closed(subject)


def closed(subject: Subject) -> None:
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


SHORT = "Read: Short buffer: truncated, the rest lost, and with packet information TUN_PKT_STRIP set."


@line(SHORT)
def short_buffer(subject: Subject) -> None:
    cut_short(subject)
    # In memory there is no packet information.
    if subject.column != "memory":
        assert flags_of_a_short_read(subject) == TUN_PKT_STRIP


@lent(SHORT)
def short_buffer_lent(subject: Subject) -> None:
    cut_short(subject)
    # Nobody knows of it but the program itself.
    assert flags_of_a_short_read(subject) == 0


def cut_short(subject: Subject) -> None:
    subject.device.set_up(True)
    buffer = bytearray(20)
    for number in range(2):
        subject.inject(packet(subject.kind, number))
    assert subject.end.read_into(buffer, 20) == 20
    assert buffer == packet(subject.kind, 0)[:20]
    assert subject.end.read(20) == packet(subject.kind, 1)


def flags_of_a_short_read(subject: Subject) -> int:
    """In the packet information of a packet that is cut; the next one is whole."""
    with subject.information() as (descriptor, inject):
        for number in range(2):
            inject(packet(subject.kind, number))
        assert by_poll(descriptor)(20, READ)
        cut, whole = os.read(descriptor, 24), os.read(descriptor, 2000)
        assert cut[4:] == packet(subject.kind, 0)[:20]
        assert whole[4:] == packet(subject.kind, 1)
        assert cut[2:4] == whole[2:4]
        return int(struct.unpack_from("=H", cut)[0])


SMALL = "Read: Buffer smaller than the header it needs: EINVAL."


@line(SMALL)
def smaller_than_the_header(subject: Subject) -> None:
    if subject.column == "memory":
        # An end there needs none.
        subject.device.set_up(True)
        subject.inject(packet(subject.kind, 1))
        assert subject.end.read_into(bytearray(3), 20) == 3
        return
    with subject.information() as (descriptor, inject):
        inject(packet(subject.kind, 0))
        refuses(errno.EINVAL, os.read, descriptor, 3)


@lent(SMALL)
def smaller_than_the_header_lent(subject: Subject) -> None:
    with subject.information() as (descriptor, inject):
        inject(packet(subject.kind, 0))
        assert by_poll(descriptor)(20, READ)
        assert os.read(descriptor, 3) == b"\0\0" + ETHERTYPE[subject.kind][:1]


DELETED = "Read: Device deleted under a blocked read: an error, then EBADFD."


@line(DELETED)
def deleted_under_a_read(subject: Subject) -> None:
    outcome = read_and_delete(subject)
    assert isinstance(outcome, DeviceError)
    assert outcome.errno == errno.EBADFD
    refused_for_good(subject.end, subject.kind)


@lent(DELETED)
def deleted_under_a_read_lent(subject: Subject) -> None:
    assert read_and_delete(subject) == b""
    ended_for_good(subject.end, subject.kind)


def read_and_delete(subject: Subject) -> object:
    """How the read ends."""
    with Background(subject.end.read) as reader:
        asleep(reader)
        subject.delete()
    return reader.outcome[0]


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
        assert subject.refused() == before + 1
    works(subject, 1)


@kernel(MALFORMED)
def write_malformed_kernel(subject: Subject) -> None:
    subject.device.set_up(True)
    for each in malformed(subject.kind):
        before = subject.refused()
        refuses(errno.EINVAL, subject.end.write, each)
        # It refuses short frames before it gets as far as to count.
        assert subject.refused() == before + (subject.kind == "tun")
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
    each = packet(subject.kind, 0)
    subject.end.write_batch([each] * (QUEUE[subject.kind] - 1))
    assert wait(0) & WRITE
    subject.end.write(each)
    assert not wait(0) & WRITE
    subject.observe()
    assert wait(0) & WRITE
    subject.device.set_up(False)
    assert not wait(0) & WRITE


@kernel(POLL_OUT)
def poll_out_kernel(subject: Subject) -> None:
    """Its stack takes whatever comes, at once."""
    wait = by_poll(subject.end.fileno())
    assert not wait(0) & WRITE
    subject.device.set_up(True)
    assert wait(20, WRITE)
    subject.end.write_batch([packet(subject.kind, 0)] * 2 * QUEUE[subject.kind])
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


MAC = "TAP: a locally administered MAC, settable while down."


@line(MAC, "tap")
def mac(subject: Subject) -> None:
    with Network(subject) as network:
        device = set_while_down(network)
        refuses(errno.EBUSY, device.set_mac, bytes.fromhex("020000000002"))


@kernel(MAC, "tap")
def mac_kernel(subject: Subject) -> None:
    """There it has IFF_LIVE_ADDR_CHANGE."""
    with Network(subject) as network:
        device = set_while_down(network)
        device.set_mac(bytes.fromhex("020000000002"))
        assert device.mac == bytes.fromhex("020000000002")


def set_while_down(network: Network) -> Any:
    """A device, which is up after."""
    device = network.make("tap5")
    assert len(device.mac) == 6
    assert device.mac[0] & 3 == 2
    device.set_mac(bytes.fromhex("020000000001"))
    assert device.mac == bytes.fromhex("020000000001")
    device.set_up(True)
    return device


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
ETHERTYPE: dict[Kind, bytes] = {"tun": b"\x08\x00", "tap": b"\x88\xb5"}
