"""The network stack on Ethernet: two of them on one TAP device, and frames forged at its other end."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import struct
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ginnel._core import Device, End
from ginnel.errors import DeviceError
from ginnel.stack import Stack

Pair = tuple[Stack, Stack]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    device = Device("tap", 1500, 1024)
    async with Stack(device.attach("interface")) as left, Stack(device.attach("application")) as right:
        device.set_up(True)
        left.set_addresses(["10.8.0.1/24", "fd00::1/64"])
        right.set_addresses(["10.8.0.2/24", "fd00::2/64"])
        yield left, right


@pytest.fixture
async def station() -> AsyncIterator[tuple[Stack, End]]:
    """A stack, and the bare end of the wire that leads to it."""
    device = Device("tap", 1500, 1024)
    wire = device.attach("application")
    async with Stack(device.attach("interface")) as stack:
        stack.set_mac(OURS)
        stack.set_addresses(["10.8.0.1/24", "fd00::1/64"])
        device.set_up(True)
        await frames(wire, 3)  # its addresses
        yield stack, wire


@pytest.mark.parametrize("host", ["10.8.0.2", "fd00::2"])
async def test_neighbours_find_each_other_and_speak_tcp_both_ways(pair: Pair, host: str) -> None:
    left, right = pair
    content = random.Random(1).randbytes(3_000_000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    server = await right.start_server(serve)
    reader, writer = await left.open_connection(host, server.port)
    writer.write(content)
    writer.write_eof()
    assert hashlib.sha256(await reader.read()).digest() == hashlib.sha256(content).digest()
    writer.close()
    (known,) = [row for row in left.neighbours() if row.address == host]
    assert (known.mac, known.state) == (right.mac, "reachable")
    await until(lambda: left.statistics()["tx_packets"] == right.statistics()["rx_packets"])


async def test_a_station_that_nobody_is_has_no_route_to_it(pair: Pair) -> None:
    left, _ = pair
    with pytest.raises(OSError, match=os.strerror(errno.EHOSTUNREACH)):
        await left.open_connection("10.8.0.77", 80)
    assert left.statistics()["dropped_unresolved"] >= 1


async def test_routes_say_what_is_sent_and_through_whom(pair: Pair) -> None:
    left, right = pair
    with pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)):
        await left.open_connection("192.0.2.1", 80)
    right.set_addresses(["10.8.0.2/24", "192.0.2.1/32", "fd00::2/64", "2001:db8::1/128"])
    left.set_routes([("192.0.2.0/24", "10.8.0.2"), ("::/0", "fd00::2")])
    right.set_routes([("0.0.0.0/0", "10.8.0.1"), ("::/0", None)])
    assert await left.ping("192.0.2.1") > 0
    assert await left.ping("2001:db8::1") > 0
    left.set_routes(None)
    with pytest.raises(OSError, match="unreachable"):
        await left.ping("192.0.2.1")
    with pytest.raises(ValueError, match="family"):
        left.set_routes([("192.0.2.0/24", "fd00::2")])


async def test_a_stack_reaches_its_own_addresses(pair: Pair) -> None:
    left, _ = pair
    server = await left.start_server(lambda _, writer: writer.write_eof())
    reader, writer = await left.open_connection("10.8.0.1", server.port)
    assert await reader.read() == b""
    writer.close()
    assert left.statistics()["looped_packets"] > 0


@pytest.mark.parametrize("host", ["10.8.0.2", "fd00::2"])
async def test_what_is_longer_than_a_packet_goes_in_pieces(pair: Pair, host: str) -> None:
    left, right = pair
    assert await left.ping(host, payload=bytes(20_000)) > 0
    content = random.Random(2).randbytes(65_000 if host == "10.8.0.2" else 60_000)
    async with await right.open_datagram(port=9) as there, await left.open_datagram() as here:
        await here.sendto(content, (host, 9))
        data, sender = await there.recvfrom()
        assert data == content
        await there.sendto(data, sender)
        assert (await here.recvfrom())[0] == content
    assert left.statistics()["fragmented"] == 0
    assert left.statistics()["dropped_fragments"] == 0


@pytest.mark.parametrize("group", ["10.8.0.255", "255.255.255.255", "224.0.0.251", "ff02::1"])
async def test_datagrams_to_many_reach_who_has_bound_the_port(pair: Pair, group: str) -> None:
    left, right = pair
    async with await right.open_datagram(port=67) as there, await left.open_datagram() as here:
        await here.sendto(b"who is there?", (group, 67))
        assert (await there.recvfrom())[0] == b"who is there?"
        await here.sendto(b"and here?", (group, 68))
    await until(lambda: right.statistics()["dropped_no_port"] == 1)


async def test_a_lower_mtu_holds_at_once(pair: Pair) -> None:
    left, right = pair
    server = await right.start_server(lambda _, writer: writer.write(bytes(200_000)) or writer.write_eof())
    left.set_mtu(600)
    assert right.mtu == 600
    before = left.statistics()["rx_packets"]
    reader, writer = await left.open_connection("10.8.0.2", server.port)
    assert len(await reader.read()) == 200_000
    assert left.statistics()["rx_packets"] - before > 200_000 // 560
    writer.close()
    with pytest.raises(DeviceError):
        left.set_mtu(65_522)


async def test_the_link_is_told_when_it_comes_up_and_when_the_station_changes() -> None:
    device = Device("tap", 1500, 100)
    wire = device.attach("application")
    async with Stack(device.attach("interface")) as stack:
        stack.set_mac(OURS)
        stack.set_addresses(["10.8.0.1/24", "fd00::1/64"])
        stack.statistics()
        assert wire.read_batch(99) == []
        device.set_up(True)
        announced = await frames(wire, 3)
        assert [frame[54] for frame in announced[:2]] == [136, 136]  # of fd00::1, and of the link-local address
        assert arp_of(announced[2]) == (1, OURS, "10.8.0.1", "10.8.0.1")
        assert stack.statistics()["dropped_device"] == 0
        stack.set_mac("02:00:00:00:00:99")
        assert arp_of((await frames(wire, 3))[2])[1] == "02:00:00:00:00:99"


async def test_asked_for_our_address_we_answer(station: tuple[Stack, End]) -> None:
    stack, wire = station
    wire.write(arp(1, THEIRS, "10.8.0.2", "10.8.0.1"))
    (answer,) = await frames(wire, 1)
    assert answer[:6] == mac(THEIRS)
    assert arp_of(answer) == (2, OURS, "10.8.0.1", "10.8.0.2")
    assert [row[:3] for row in stack.neighbours()] == [("10.8.0.2", THEIRS, "stale")]
    # For another, and from one who has no address yet: nothing is learnt from them.
    wire.write(arp(1, "02:00:00:00:00:03", "10.8.0.3", "10.8.0.4"))
    wire.write(arp(1, "02:00:00:00:00:03", "0.0.0.0", "10.8.0.1"))
    assert arp_of((await frames(wire, 1))[0]) == (2, OURS, "10.8.0.1", "0.0.0.0")
    assert len(stack.neighbours()) == 1
    wire.write(arp(2, "02:00:00:00:00:04", "10.8.0.1", "10.8.0.1"))
    await until(lambda: stack.statistics()["address_conflicts"] == 1)


async def test_what_is_not_for_us_is_counted(station: tuple[Stack, End]) -> None:
    stack, wire = station
    ours, theirs = mac(OURS), mac(THEIRS)
    for frame in [
        ours + theirs + b"\x81\x00\x00\x07\x08\x00" + bytes(50),
        ours + theirs + b"\x88\xa8\x00\x07\x81\x00" + bytes(50),
        mac("02:00:00:00:00:55") + theirs + b"\x08\x00E" + bytes(50),
        ours + theirs + b"\x88\xcc" + bytes(50),
        ours + b"\xff" * 6 + b"\x08\x00E" + bytes(50),
        ours + theirs + b"\x08\x00",
    ]:
        wire.write(frame)
    await until(lambda: stack.statistics()["rx_packets"] == 6)
    counted = stack.statistics()
    names = ["tagged", "not_our_mac", "no_protocol", "malformed"]
    assert [counted[f"dropped_{name}"] for name in names] == [2, 1, 1, 2]


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.data())
def test_no_frame_of_any_length_does_harm(data: st.DataObject) -> None:
    ethertypes = st.sampled_from([b"\x08\x00", b"\x08\x06", b"\x86\xdd", b"\x81\x00", b"\x00\x00"])
    heads = st.sampled_from([b"", b"\x45", b"\x60", bytes.fromhex("0001080006040001"), b"\x46\0\0\x20\0\1\x20\0"])
    length = data.draw(st.integers(0, 65_521))
    seed = data.draw(st.integers(0, 2**32))
    frame = mac(OURS) + mac(THEIRS) + data.draw(ethertypes) + data.draw(heads)
    frame += random.Random(seed).randbytes(max(length - len(frame), 0))

    async def run() -> None:
        device = Device("tap", 1500, 100)
        wire = device.attach("application")
        async with Stack(device.attach("interface")) as stack:
            device.set_up(True)
            stack.set_mac(OURS)
            stack.set_addresses(["10.8.0.1/24", "fd00::1/64"])
            wire.write(frame)
            await until(lambda: stack.statistics()["rx_packets"] == 1)
            wire.write(arp(1, THEIRS, "10.8.0.2", "10.8.0.1"))
            await until(lambda: any(arp_of(frame)[0] == 2 for frame in wire.read_batch(99) if is_arp(frame)))

    asyncio.run(run())


async def frames(wire: End, count: int) -> list[bytes]:
    """The next so many frames on the wire."""
    found: list[bytes] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found += wire.read_batch(count - len(found))
            await asyncio.sleep(0.002)
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells of a counter
            await asyncio.sleep(0.002)


def arp(operation: int, sender: str, sender_host: str, target_host: str) -> bytes:
    header = b"\xff" * 6 + mac(sender) + b"\x08\x06" + bytes.fromhex("000108000604") + struct.pack(">H", operation)
    return header + mac(sender) + address(sender_host) + bytes(6) + address(target_host)


def is_arp(frame: bytes) -> bool:
    return frame[12:14] == b"\x08\x06"


def arp_of(frame: bytes) -> tuple[int, str, str, str]:
    assert is_arp(frame)
    hosts = [".".join(map(str, frame[at : at + 4])) for at in (28, 38)]
    return frame[21], frame[22:28].hex(":"), hosts[0], hosts[1]


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def address(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


OURS, THEIRS = "02:00:00:00:00:01", "02:00:00:00:00:02"
