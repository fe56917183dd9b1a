"""The learning switch: stations on TAP devices in memory, and circles that must not melt."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from ginnel._core import DescriptorEnd
from ginnel.device import create, named
from ginnel.device.bridge import Bridge
from ginnel.device.memory import MemoryDevice
from ginnel.errors import DeviceError
from ginnel.stack import Stack


@pytest.fixture
def exits() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def station(bridge: Bridge, exits: ExitStack, queue: int = 1000) -> tuple[MemoryDevice, int]:
    device = exits.enter_context(MemoryDevice("tap", queue=queue))
    device.set_up(True)
    return device, bridge.add(device.application)


@pytest.fixture
async def office() -> AsyncIterator[tuple[Bridge, list[Stack], list[int]]]:
    """A bridge with four hosts."""
    async with AsyncExitStack() as exits:
        bridge = exits.enter_context(Bridge())
        joined = [station(bridge, exits.enter_context(ExitStack())) for _ in range(4)]
        stacks = []
        for number, (device, _) in enumerate(joined, 1):
            stack = await exits.enter_async_context(Stack(device.interface))
            stack.set_addresses([f"10.8.0.{number}/24", f"fd00::{number}/64"])
            stacks.append(stack)
        ports = [port for _, port in joined]
        assert ports == [1, 2, 3, 4]
        yield bridge, stacks, ports


async def test_devices_with_a_name_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Bridge() as bridge:
        async with (
            create("tap0", kind="tap", addresses=["10.8.0.1/24"]),
            create("tap1", kind="tap", addresses=["10.8.0.2/24"]) as other,
            create("tun0"),
        ):
            for name in ("tap0", "tap1"):
                bridge.add(await asyncio.to_thread(named.open, name))
            with pytest.raises(DeviceError, match="tun0 is a TUN device"):
                bridge.add(await asyncio.to_thread(named.open, "tun0"))
            assert await other.stack.ping("10.8.0.1", timeout=20) > 0


async def test_hosts_on_a_bridge_speak_with_each_other(office: tuple[Bridge, list[Stack], list[int]]) -> None:
    """no way to bridge: a learning switch joins TAP devices"""
    bridge, stacks, ports = office
    one, two, *_ = stacks
    assert await one.ping("10.8.0.2") > 0
    assert await one.ping("fd00::3") > 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    server = await two.start_server(serve)
    before = counters(bridge)[ports[3]]["tx_frames"]
    reader, writer = await one.open_connection("10.8.0.2", server.port)
    writer.write(bytes(1_000_000))
    writer.write_eof()
    assert len(await reader.read()) == 1_000_000
    writer.close()
    # What two say to each other, the others do not hear.
    assert counters(bridge)[ports[3]]["tx_frames"] - before < 10
    assert {(row.mac, row.port) for row in bridge.stations()} >= {(one.mac, ports[0]), (two.mac, ports[1])}
    check_sums(bridge)


def test_every_frame_is_forwarded_flooded_or_counted(exits: ExitStack) -> None:
    seed = random.getrandbits(32)
    print(f"seed {seed}")
    source = random.Random(seed)
    bridge = exits.enter_context(Bridge(stations=20))
    devices = [station(bridge, exits, queue=100)[0] for _ in range(4)]
    macs = [bytes([2, 0, 0, 0, 0, number]) for number in range(30)] + [b"\xff" * 6, bytes.fromhex("0180c200000e")]
    written = [0] * 4
    for _ in range(3000):
        number = source.randrange(4)
        frame = source.choice(macs) + macs[number * 7 + source.randrange(7)] + source.randbytes(source.randrange(1600))
        if len(frame) >= 14:
            written[number] += devices[number].interface.write_batch([frame])
        if source.random() < 0.01:
            devices[source.randrange(4)].interface.read_batch(1000)
    wait_until(lambda: [port.counters["rx_frames"] for port in bridge.ports()] == written)
    check_sums(bridge)
    for device, port in zip(devices, bridge.ports(), strict=True):
        device.interface.read_batch(1000)  # a device counts what has been read
        statistics = device.statistics()
        assert port.counters["tx_frames"] == statistics["rx_packets"]
        assert port.counters["tx_dropped"] == statistics["rx_dropped"]
    assert bridge.statistics()["crowded"] > 0
    assert len(bridge.stations()) <= 20


def test_tagged_frames_pass_as_they_are(exits: ExitStack) -> None:
    bridge = exits.enter_context(Bridge())
    (one, _), (two, _) = station(bridge, exits), station(bridge, exits)
    frame = b"\xff" * 6 + bytes([2, 0, 0, 0, 0, 1]) + bytes.fromhex("81000007 88a80008 0800") + bytes(range(100))
    one.interface.write(frame)
    assert two.interface.read(20) == frame
    with pytest.raises(TimeoutError):
        one.interface.read(0)


def test_ports_come_and_go(exits: ExitStack) -> None:
    bridge = exits.enter_context(Bridge())
    (one, first), (two, second) = station(bridge, exits), station(bridge, exits)
    frame = b"\xff" * 6 + bytes([2, 0, 0, 0, 0, 1]) + bytes(50)
    one.interface.write(frame)
    assert two.interface.read(20) == frame
    bridge.remove(second)
    with pytest.raises(KeyError):
        bridge.remove(second)
    again = two.application  # it is free
    second = bridge.add(again)
    one.interface.write(frame)
    assert two.interface.read(20) == frame
    two.close()
    wait_until(lambda: [port.number for port in bridge.ports()] == [first])
    with pytest.raises(DeviceError, match="port of the bridge"):
        bridge.add(exits.enter_context(MemoryDevice("tun")).application)
    bridge.close()
    bridge.close()
    with pytest.raises(DeviceError, match="closed"):
        bridge.ports()


def test_an_end_that_another_process_holds(exits: ExitStack) -> None:
    bridge = exits.enter_context(Bridge())
    device, first = station(bridge, exits)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = DescriptorEnd(ours.detach())
    second = bridge.add(end)
    assert end.closed
    with theirs:
        theirs.settimeout(20)
        frames = [b"\xff" * 6 + bytes([2, 0, 0, 0, 0, number]) + bytes(50 + number) for number in range(200)]
        device.interface.write_batch(frames)
        assert [theirs.recv(2000) for _ in frames] == frames
        theirs.send(frames[0])
        assert device.interface.read(20) == frames[0]
        # It reads no more: what finds no room is counted, and the others go on.
        written = len(frames) + sum(device.interface.write_batch(frames) for _ in range(50))
        wait_until(lambda: counters(bridge)[first]["rx_frames"] == written)
        assert counters(bridge)[second]["tx_dropped"] > 0
    wait_until(lambda: [port.number for port in bridge.ports()] == [first])


async def test_two_bridges_in_a_circle_do_not_melt(exits: ExitStack) -> None:
    left, right = exits.enter_context(Bridge()), exits.enter_context(Bridge())
    cables = [exits.enter_context(MemoryDevice("tap")) for _ in range(2)]
    for cable in cables:
        cable.set_up(True)
        left.add(cable.application)
        right.add(cable.interface)
    devices = [station(bridge, exits)[0] for bridge in (left, right)]
    async with AsyncExitStack() as stacks:
        hosts = []
        for number, device in enumerate(devices, 1):
            hosts.append(await stacks.enter_async_context(Stack(device.interface)))
            hosts[-1].set_addresses([f"10.8.0.{number}/24"])
        # A broadcast would go round for ever, and double with each turn.
        await wait_for(lambda: left.statistics()["loops"] + right.statistics()["loops"] > 0)
        closed = [*left.loops(), *right.loops()]
        assert "leads back to the bridge" in str(closed[0])
        # What was under way is lost, and where both have closed the circle one opens it again.
        async with asyncio.timeout(60):
            while not await answers(hosts[0], "10.8.0.2"):
                pass
        assert left.statistics()["rx_frames"] + right.statistics()["rx_frames"] < 20_000
    check_sums(left)
    check_sums(right)


async def answers(stack: Stack, host: str) -> bool:
    try:
        return await stack.ping(host, timeout=0.2) > 0
    except TimeoutError:
        return False


def counters(bridge: Bridge) -> dict[int, dict[str, int]]:
    return {port.number: port.counters for port in bridge.ports()}


def check_sums(bridge: Bridge) -> None:
    """Each frame that came in went on or was dropped, and each that was to go out went or was dropped."""
    ports = [port.counters for port in bridge.ports()]
    for port in ports:
        dropped = sum(value for name, value in port.items() if name.startswith("dropped_"))
        assert port["rx_frames"] == port["forwarded"] + port["flooded"] + dropped
    total = bridge.statistics()
    leaving = total["tx_frames"] + total["tx_dropped"] + total["tx_blocked"]
    assert leaving == total["forwarded"] + total["flooded"] * (len(ports) - 1)


def wait_until(condition: Callable[[], bool]) -> None:
    asyncio.run(wait_for(condition))


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells of a counter
            await asyncio.sleep(0.002)
