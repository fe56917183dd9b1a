"""Traffic for others' addresses: a client's stack behind one that captures, and sockets of the host behind that."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from ginnel._core import Device, End
from ginnel.stack import Arrival, DatagramFlow, Echo, Interception, Stack


class Gate:
    """Decides as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, int], tuple[str, int]]] = []
        self.echoes: list[tuple[str, str, bytes]] = []
        self.flows: list[DatagramFlow] = []
        self.port = 0
        self.refuse: str | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.cancelled = 0
        self.stack: Stack

    async def arrival(self, arrival: Arrival) -> None:
        self.asked.append((arrival.source, arrival.destination))
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.refuse is not None:
            arrival.refuse(self.refuse)  # type: ignore[arg-type]
            return
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setblocking(False)
        flow = await arrival.accept()
        assert (flow.remote, flow.local) == (arrival.source, arrival.destination)
        self.stack.attach(flow, sock)

    async def datagrams(self, flow: DatagramFlow) -> None:
        self.asked.append((flow.source, flow.destination))
        self.flows.append(flow)
        await self.hold.wait()
        if self.refuse is not None:
            flow.refuse(self.refuse)  # type: ignore[arg-type]
            return
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("127.0.0.1", self.port))
        flow.attach(sock)

    async def echo(self, echo: Echo) -> None:
        self.echoes.append((echo.source, echo.destination, echo.payload))
        if self.refuse is None:
            echo.reply()


Setup = tuple[Stack, Stack, Gate]


@pytest.fixture(params=["tun", "tap"])
async def setup(request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
    device = Device(request.param, 1500, 1024)
    gate = Gate()
    async with AsyncExitStack() as exits:
        client = await exits.enter_async_context(Stack(device.attach("interface")))
        server = await exits.enter_async_context(Stack(device.attach("application")))
        device.set_up(True)
        client.set_addresses(["10.8.0.2/24", "fd00::2/64"])
        server.set_addresses(["10.8.0.1/24", "fd00::1/64"])
        client.set_routes([("0.0.0.0/0", "10.8.0.1"), ("::/0", "fd00::1")])
        gate.stack = server
        await exits.enter_async_context(Interception(server, gate.arrival, gate.datagrams, gate.echo, idle=6))
        yield client, server, gate


DESTINATIONS = pytest.mark.parametrize("host", ["198.51.100.7", "2001:db8::7"])


@DESTINATIONS
async def test_a_connection_to_anywhere_leaves_through_the_hosts_socket(setup: Setup, host: str) -> None:
    client, server, gate = setup

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    async with await asyncio.start_server(shout, "127.0.0.1", 0) as outside:
        gate.port = outside.sockets[0].getsockname()[1]
        reader, writer = await client.open_connection(host, 443)
        writer.write(b"x" * 500_000)
        writer.write_eof()
        assert await reader.read() == b"X" * 500_000
        ((source, destination),) = gate.asked
        assert (source, destination) == (writer.get_extra_info("sockname"), (host, 443))
        writer.close()
    await until(lambda: server.statistics()["flows"] == 0)


@DESTINATIONS
@pytest.mark.parametrize(
    ("reason", "code"),
    [("reset", errno.ECONNREFUSED), ("port", errno.ECONNREFUSED), ("host", errno.EHOSTUNREACH)],
)
async def test_refused_before_the_syn_is_answered(setup: Setup, host: str, reason: str, code: int) -> None:
    client, server, gate = setup
    gate.refuse = reason
    with pytest.raises(OSError, match="through the tunnel") as caught:
        await client.open_connection(host, 80)
    assert caught.value.errno == code
    assert server.statistics()["arrivals"] == server.statistics()["flows"] == 0
    assert server.statistics()["dropped_refused"] == 1


async def test_prohibited_is_a_host_that_cannot_be_reached(setup: Setup) -> None:
    client, _, gate = setup
    gate.refuse = "prohibited"
    with pytest.raises(OSError, match="through the tunnel") as caught:
        await client.open_connection("198.51.100.7", 80)
    assert caught.value.errno == errno.EHOSTUNREACH


async def test_a_callback_that_fails_has_refused(setup: Setup) -> None:
    client, _, gate = setup
    asyncio.get_running_loop().set_exception_handler(lambda _, context: None)
    gate.port = 0  # to which nobody connects
    with pytest.raises(OSError, match="through the tunnel"):
        await client.open_connection("198.51.100.7", 80)


async def test_a_source_has_only_so_many_connections_that_are_not_open() -> None:
    device = Device("tun", 1500, 4096)
    wire = device.attach("application")
    gate = Gate()
    gate.hold.clear()
    async with Stack(device.attach("interface")) as server:
        device.set_up(True)
        server.set_addresses(["10.8.0.1/24"])
        async with Interception(server, gate.arrival, gate.datagrams, gate.echo):
            for port in range(1000):
                wire.write(syn("10.8.0.2", 1024 + port, "198.51.100.7", 80))
            wire.write(syn("10.8.0.3", 1024, "198.51.100.7", 80))
            wire.write(syn("10.8.0.3", 1024, "198.51.100.7", 80))  # again: the same
            await until(lambda: server.statistics()["rx_packets"] == 1002)
            assert server.statistics()["arrivals"] == 129
            assert server.statistics()["dropped_crowded"] == 1000 - 128
            await until(lambda: len(gate.asked) == 129)
            # One is given up by its source; whoever connects for it is told.
            wire.write(syn("10.8.0.3", 1024, "198.51.100.7", 80, flags=4))
            await until(lambda: gate.cancelled == 1)
            assert server.statistics()["arrivals"] == 128
            assert wire.read_batch(9) == []
        assert gate.cancelled == 129
        await until(lambda: len(answers(wire)) > 0)
        assert server.statistics()["arrivals"] == 0


async def test_datagrams_to_anywhere_leave_through_the_hosts_socket(setup: Setup) -> None:
    client, server, gate = setup
    outside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with outside:
        outside.bind(("127.0.0.1", 0))
        outside.setblocking(False)
        gate.port = outside.getsockname()[1]
        loop = asyncio.get_running_loop()
        async with await client.open_datagram() as sock:
            for content in (b"first", b"", bytes(9000)):
                await sock.sendto(content, ("198.51.100.7", 53))
            for content in (b"first", b"", bytes(9000)):
                data, sender = await loop.sock_recvfrom(outside, 65536)
                assert data == content
            for content in (b"answer", b"", bytes(9000)):
                await loop.sock_sendto(outside, content, sender)
                assert await sock.recvfrom() == (content, ("198.51.100.7", 53))
            (flow,) = gate.flows
            assert (flow.source, flow.destination) == (("10.8.0.2", sock.port), ("198.51.100.7", 53))
            assert server.statistics()["associations"] == 1
            async with asyncio.timeout(20):
                await flow.ended  # it is idle
            await until(lambda: server.statistics()["associations"] == 0)
            await sock.sendto(b"once more", ("198.51.100.7", 53))
            assert (await loop.sock_recvfrom(outside, 65536))[0] == b"once more"
            assert len(gate.flows) == 2


async def test_a_port_that_nobody_holds_outside_is_reported_inside() -> None:
    device = Device("tun", 1500, 1024)
    wire = device.attach("application")
    gate = Gate()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        gate.port = unused.getsockname()[1]
    async with Stack(device.attach("interface")) as server:
        device.set_up(True)
        server.set_addresses(["10.8.0.1/24"])
        async with Interception(server, gate.arrival, gate.datagrams, gate.echo):
            wire.write(udp("10.8.0.2", 1024, "198.51.100.7", 53, b"?"))
            await expect_unreachable(wire, 3, "198.51.100.7")
            gate.refuse = "prohibited"
            wire.write(udp("10.8.0.2", 1025, "198.51.100.8", 53, b"?"))
            await expect_unreachable(wire, 13, "198.51.100.8")
            # Refused for a while: nobody is asked again.
            wire.write(udp("10.8.0.2", 1025, "198.51.100.8", 53, b"?"))
            await expect_unreachable(wire, 13, "198.51.100.8")
            assert len(gate.asked) == 2


async def test_a_source_has_only_so_many_flows_of_datagrams() -> None:
    device = Device("tun", 1500, 4096)
    wire = device.attach("application")
    gate = Gate()
    gate.hold.clear()
    async with Stack(device.attach("interface")) as server:
        device.set_up(True)
        server.set_addresses(["10.8.0.1/24"])
        async with Interception(server, gate.arrival, gate.datagrams, gate.echo):
            for port in range(1000):
                wire.write(udp("10.8.0.2", 1024 + port, "198.51.100.7", 53, b"?"))
            for _ in range(10):
                wire.write(udp("10.8.0.2", 1024, "198.51.100.7", 53, b"?"))
            await until(lambda: server.statistics()["rx_packets"] == 1010)
            counted = server.statistics()
            assert counted["associations"] == 512
            assert counted["dropped_crowded"] == 1000 - 512
            assert counted["dropped_datagram_full"] == 10 - 3


@DESTINATIONS
async def test_echo_to_anywhere_is_decided_on(setup: Setup, host: str) -> None:
    client, _, gate = setup
    assert await client.ping(host, payload=b"are you there?") > 0
    own = "fd00::2" if ":" in host else "10.8.0.2"
    assert gate.echoes == [(own, host, b"are you there?")]
    gate.refuse = "host"
    with pytest.raises(TimeoutError):
        await client.ping(host, timeout=0.05)
    # Our own address answers by itself.
    assert await client.ping("10.8.0.1") > 0
    assert len(gate.echoes) == 2


async def test_without_a_capture_others_addresses_are_no_concern_of_ours() -> None:
    device = Device("tun", 1500, 64)
    wire = device.attach("application")
    async with Stack(device.attach("interface")) as server:
        device.set_up(True)
        server.set_addresses(["10.8.0.1/24"])
        wire.write(syn("10.8.0.2", 1024, "198.51.100.7", 80))
        await until(lambda: server.statistics()["dropped_no_address"] == 1)


async def expect_unreachable(wire: End, code: int, host: str) -> None:
    packets: list[bytes] = []
    await until(lambda: bool(packets.extend(wire.read_batch(9)) or packets))
    (packet,) = packets
    assert (packet[9], packet[20], packet[21]) == (1, 3, code)
    assert packet[12:16] == socket.inet_aton(host)
    assert packet[28 + 16 : 28 + 20] == socket.inet_aton(host)


def answers(wire: End) -> list[bytes]:
    return wire.read_batch(999)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells of a counter
            await asyncio.sleep(0.002)


def syn(source: str, port: int, destination: str, to_port: int, *, flags: int = 2) -> bytes:
    tcp = port.to_bytes(2, "big") + to_port.to_bytes(2, "big") + bytes(8) + bytes([0x50, flags, 255, 255, 0, 0, 0, 0])
    return ipv4(source, destination, 6, tcp, 16)


def udp(source: str, port: int, destination: str, to_port: int, payload: bytes) -> bytes:
    header = port.to_bytes(2, "big") + to_port.to_bytes(2, "big") + (8 + len(payload)).to_bytes(2, "big")
    return ipv4(source, destination, 17, header + bytes(2) + payload, 6)


def ipv4(source: str, destination: str, protocol: int, payload: bytes, checksum_at: int) -> bytes:
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    pseudo = ends + bytes([0, protocol]) + len(payload).to_bytes(2, "big")
    summed = checksum(pseudo + payload)
    payload = payload[:checksum_at] + summed + payload[checksum_at + 2 :]
    header = b"\x45\0" + (20 + len(payload)).to_bytes(2, "big") + bytes(4) + bytes([64, protocol])
    return header + checksum(header + bytes(2) + ends) + ends + payload


def checksum(data: bytes) -> bytes:
    padded = data + bytes(len(data) % 2)
    total = sum(int.from_bytes(padded[at : at + 2], "big") for at in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")
