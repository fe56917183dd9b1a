"""The network stack: two of them on the two ends of one memory device."""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import os
import random
import select
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ginnel._core import Device, End, NetStack
from ginnel.stack import Flow, Stack
from ginnel.stack.sockets import ADDRESS_LEN

MIB = 1 << 20
Pair = tuple[Stack, Stack]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    device = Device("tun", 1500, 1024)
    async with Stack(device.attach("interface")) as left, Stack(device.attach("application")) as right:
        device.set_up(True)
        left.set_addresses(["10.8.0.1/24", "fd00::1/64"])
        right.set_addresses(["10.8.0.2/24", "fd00::2/64"])
        yield left, right


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def send_blocks(writer: asyncio.StreamWriter, size: int, seed: int) -> str:
    block = random.Random(seed).randbytes(MIB)
    digest = hashlib.sha256()
    for _ in range(size // MIB):
        writer.write(block)
        digest.update(block)
        await writer.drain()
    writer.write_eof()
    return digest.hexdigest()


async def receive_all(reader: asyncio.StreamReader) -> tuple[int, str]:
    digest, total = hashlib.sha256(), 0
    while data := await reader.read(MIB):
        digest.update(data)
        total += len(data)
    return total, digest.hexdigest()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells of a counter
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("host", ["10.8.0.2", "fd00::2"])
async def test_200_mb_go_both_ways_at_once(pair: Pair, host: str) -> None:
    left, right = pair
    size = 100 * MIB
    there: asyncio.Future[tuple[str, tuple[int, str]]] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent, received = await asyncio.gather(send_blocks(writer, size, 2), receive_all(reader))
        there.set_result((sent, received))
        writer.close()

    server = await right.start_server(serve)
    reader, writer = await left.open_connection(host, server.port)
    sent, received = await asyncio.gather(send_blocks(writer, size, 1), receive_all(reader))
    sent_there, received_there = await there
    assert received == (size, sent_there)
    assert received_there == (size, sent)
    writer.close()
    await until(lambda: left.statistics()["flows"] == 0 and right.statistics()["flows"] == 0)


async def test_half_close_leaves_the_other_direction_open(pair: Pair) -> None:
    left, right = pair

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read()
        writer.write(b"you said " + question)
        writer.close()

    server = await right.start_server(serve)
    reader, writer = await left.open_connection("10.8.0.2", server.port)
    writer.write(b"everything")
    writer.write_eof()
    assert await reader.read() == b"you said everything"
    writer.close()


async def test_streams_know_the_inner_addresses(pair: Pair) -> None:
    left, right = pair
    seen: asyncio.Future[tuple[object, object]] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result((writer.get_extra_info("peername"), writer.get_extra_info("sockname")))
        writer.close()

    server = await right.start_server(serve)
    _, writer = await left.open_connection("10.8.0.2", server.port)
    own, peer = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
    assert own[0] == "10.8.0.1"
    assert peer == ("10.8.0.2", server.port)
    assert await seen == (own, peer)
    writer.close()


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
async def test_a_reset_by_the_peer_is_a_reset_for_the_program(pair: Pair, family: socket.AddressFamily) -> None:
    left, right = pair
    flows: asyncio.Queue[Flow] = asyncio.Queue()
    server = await right.serve_flows(flows.put_nowait)
    flow = await left.connect_flow("10.8.0.2", server.port)
    ours, theirs = socket_pair(family)
    ours.setblocking(False)
    left.attach(flow, theirs)
    right.abort(await flows.get())
    loop = asyncio.get_running_loop()
    if family == socket.AF_INET:
        with pytest.raises(ConnectionResetError):
            await loop.sock_recv(ours, 1)
    else:
        assert await loop.sock_recv(ours, 1) == b""
    await asyncio.wait_for(flow.ended, 10)
    assert isinstance(flow.error, ConnectionResetError)
    ours.close()


def socket_pair(family: socket.AddressFamily) -> tuple[socket.socket, socket.socket]:
    if family == socket.AF_UNIX:
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


async def test_a_reset_raises_in_asyncio_streams(pair: Pair) -> None:
    left, right = pair
    flows: asyncio.Queue[Flow] = asyncio.Queue()
    server = await right.serve_flows(flows.put_nowait)
    reader, writer = await left.open_connection("10.8.0.2", server.port)
    right.abort(await flows.get())
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_a_program_that_closes_with_bytes_unread_resets_the_peer(pair: Pair) -> None:
    left, right = pair
    flows: asyncio.Queue[Flow] = asyncio.Queue()
    server = await right.serve_flows(flows.put_nowait)
    reader, writer = await left.open_connection("10.8.0.2", server.port)
    ours, theirs = socket.socketpair()
    right.attach(await flows.get(), theirs)
    writer.write(b"unread")
    await until(lambda: bool(select.select([ours], [], [], 0)[0]))
    ours.close()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_connecting_fails_with_the_kernels_errors(pair: Pair) -> None:
    left, _ = pair
    with pytest.raises(ConnectionRefusedError, match=r"10\.8\.0\.2:9"):
        await left.open_connection("10.8.0.2", 9)
    with pytest.raises(ConnectionRefusedError, match=r"\[fd00::2\]:9"):
        await left.open_connection("fd00::2", 9)
    with pytest.raises(TimeoutError, match=r"no connection to 10\.8\.0\.77 port 9 through the tunnel after 0\.05 s"):
        await left.open_connection("10.8.0.77", 9, timeout=0.05)
    assert left.statistics()["flows"] == 0
    with pytest.raises(ConnectionRefusedError, match=r"10\.8\.0\.1:9"):
        await left.open_connection("10.8.0.1", 9)
    for host in ("127.0.0.1", "224.0.0.1"):
        with pytest.raises(OSError, match="No route to host") as caught:
            await left.open_connection(host, 9)
        assert caught.value.errno == errno.EHOSTUNREACH
    left.set_addresses(["10.8.0.1/24"])
    with pytest.raises(OSError, match="Network is unreachable"):
        await left.open_connection("fd00::2", 9)


async def test_a_stalled_reader_holds_only_its_own_writer_back(pair: Pair) -> None:
    left, right = pair
    stalled: asyncio.Queue[asyncio.StreamReader] = asyncio.Queue()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stalled.put_nowait(reader)

    slow = await right.start_server(stall)
    fast = await right.start_server(echo)
    _, writer = await left.open_connection("10.8.0.2", slow.port)
    block = bytes(MIB)
    written = 0
    try:
        while True:
            writer.write(block)
            written += len(block)
            async with asyncio.timeout(0.5):
                await writer.drain()
    except TimeoutError:
        pass
    # Two socket pairs, two rings of at most 5 MiB, two stream buffers.
    assert written < 20 * MIB
    used = left.statistics()
    assert used["buffer_bytes"] <= used["budget_bytes"]
    reader, other = await left.open_connection("10.8.0.2", fast.port)
    other.write(b"x" * MIB)
    assert len(await reader.readexactly(MIB)) == MIB
    other.close()
    # An idle loop: a stall that spun would burn a core.
    before = sum(os.times()[:2])
    await asyncio.sleep(0.5)
    assert sum(os.times()[:2]) - before < 0.25
    reading = await stalled.get()
    writer.write_eof()
    assert (await receive_all(reading))[0] == written
    writer.close()


async def test_100_streams_at_once(pair: Pair) -> None:
    left, right = pair
    server = await right.start_server(echo, backlog=200)

    async def one(seed: int) -> bool:
        data = random.Random(seed).randbytes(MIB // 2)
        reader, writer = await left.open_connection("10.8.0.2", server.port)

        async def send() -> None:
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        _, answer = await asyncio.gather(send(), reader.read())
        writer.close()
        return answer == data

    assert all(await asyncio.gather(*(one(seed) for seed in range(100))))


async def test_1000_connections_leave_nothing_behind(pair: Pair) -> None:
    left, right = pair
    server = await right.start_server(echo)

    async def once() -> None:
        reader, writer = await left.open_connection("10.8.0.2", server.port)
        writer.write(b"hello")
        writer.write_eof()
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()

    async def settle() -> None:
        await until(lambda: left.statistics()["flows"] + right.statistics()["flows"] == 0)
        gc.collect()

    for _ in range(100):
        await once()
    await settle()
    memory, files = resident(), descriptors()
    for _ in range(1000):
        await once()
    await settle()
    assert descriptors() <= files
    assert resident() - memory < 8 * MIB
    assert left.statistics()["buffer_bytes"] == right.statistics()["buffer_bytes"] == 0


async def test_past_the_budget() -> None:
    device = Device("tun", 1500, 1024)
    async with (
        Stack(device.attach("interface"), budget=MIB) as left,
        Stack(device.attach("application")) as right,
    ):
        device.set_up(True)
        left.set_addresses(["10.8.0.1/24"])
        right.set_addresses(["10.8.0.2/24"])
        server = await right.serve_flows(lambda flow: None, backlog=1000)
        flows: list[Flow] = []

        async def connect_on() -> None:
            while True:
                flows.append(await left.connect_flow("10.8.0.2", server.port))

        with pytest.raises(OSError, match="No buffer space") as caught:
            await connect_on()
        assert caught.value.errno == errno.ENOBUFS
        assert len(flows) > 5
        left.abort(flows[0])
        await left.connect_flow("10.8.0.2", server.port)


async def test_500_connections_fit_the_default_budget(pair: Pair) -> None:
    left, right = pair
    server = await right.serve_flows(lambda flow: None, backlog=1000)
    for _ in range(500):
        await left.connect_flow("10.8.0.2", server.port)
    assert left.statistics()["flows"] == right.statistics()["flows"] == 500


async def test_an_address_that_is_gone_takes_its_connections_along(pair: Pair) -> None:
    left, right = pair
    server = await right.start_server(echo)
    flow = await left.connect_flow("10.8.0.2", server.port)
    left.set_addresses(["10.8.0.9/24"])
    assert await asyncio.wait_for(flow.ended, 10) == errno.ENETRESET


async def test_listening_on_a_port_that_is_taken(pair: Pair) -> None:
    left, _ = pair
    async with await left.start_server(echo, port=80):
        with pytest.raises(OSError, match="in use"):
            await left.start_server(echo, port=80)
        with pytest.raises(OSError, match="Cannot assign"):
            await left.start_server(echo, "192.0.2.1", 80)
    await left.start_server(echo, port=80)


async def test_udp_echo(pair: Pair) -> None:
    left, right = pair
    async with await right.open_datagram(port=7) as server, await left.open_datagram() as client:
        for host, own in (("10.8.0.2", "10.8.0.1"), ("fd00::2", "fd00::1")):
            for size in (0, 1, 1400):
                await client.sendto(bytes(size), (host, 7))
                data, address = await server.recvfrom()
                assert address == (own, client.port)
                await server.sendto(data, address)
                assert await client.recvfrom() == (bytes(size), (host, 7))
    await until(lambda: left.statistics()["datagrams"] == 0)


async def test_what_a_program_sends_before_it_closes_goes_out_whatever_it_has_not_read(pair: Pair) -> None:
    left, right = pair
    async with await left.open_datagram() as client:
        for _ in range(20):
            descriptor, port = right.bind_datagrams(None, 0)
            for _ in range(3):
                await client.sendto(b"question", ("10.8.0.2", port))
            first = await asyncio.get_running_loop().run_in_executor(None, descriptor.recv, 100)
            assert await asyncio.to_thread(lambda own=descriptor: select.select([own], [], [], 20)[0])
            for number in range(10):
                descriptor.send(first[:ADDRESS_LEN] + bytes([number]))
            descriptor.close()
            answers = [(await asyncio.wait_for(client.recvfrom(), 20))[0] for _ in range(10)]
            assert answers == [bytes([number]) for number in range(10)]


async def test_what_can_go_nowhere_is_refused(pair: Pair) -> None:
    left, right = pair
    async with await right.open_datagram(port=7) as server, await left.open_datagram() as client:
        with pytest.raises(OSError, match="a datagram of 65508 bytes: 65507 at most") as refused:
            await client.sendto(bytes(65_508), ("10.8.0.2", 7))
        assert refused.value.errno == errno.EMSGSIZE
        with pytest.raises(TypeError, match="bytes-like object is required, not 'str'"):
            await client.sendto("text", ("10.8.0.2", 7))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="an address is a host and a port, not '10.8.0.2'"):
            await client.sendto(b"x", "10.8.0.2")  # type: ignore[arg-type]
        left.set_addresses(["10.8.0.1/24"])
        with pytest.raises(OSError, match="no way to fd00::2 through the tunnel") as refused:
            await client.sendto(b"x", ("fd00::2", 7))
        assert refused.value.errno == errno.ENETUNREACH
        with pytest.raises(TypeError, match="a port is a number, not '80'"):
            await left.open_connection("10.8.0.2", "80")  # type: ignore[arg-type]
        with pytest.raises(socket.gaierror, match="'': that is no name"):
            await left.open_connection("", 80)
        await client.sendto(bytes(65_507), ("10.8.0.2", 7))
        assert len((await server.recvfrom())[0]) == 65_507


async def test_datagrams_for_a_program_that_does_not_read_are_dropped_and_counted(pair: Pair) -> None:
    left, right = pair
    async with await right.open_datagram(port=7), await left.open_datagram() as client:
        for _ in range(2000):
            await client.sendto(bytes(1400), ("10.8.0.2", 7))
        await until(lambda: right.statistics()["dropped_datagram_full"] > 0)


@pytest.mark.parametrize("host", ["10.8.0.2", "fd00::2"])
async def test_ping(pair: Pair, host: str) -> None:
    left, right = pair
    assert await left.ping(host, payload=bytes(1400)) < 5
    with pytest.raises(TimeoutError, match=r"no echo reply from 10\.8\.0\.77 within 0\.05 s"):
        await left.ping("10.8.0.77", timeout=0.05)
    assert right.statistics()["dropped_no_address"] == 1


async def test_the_stack_ends_with_its_device() -> None:
    device = Device("tun", 1500, 64)
    async with Stack(device.attach("interface")) as left, Stack(device.attach("application")) as right:
        device.set_up(True)
        left.set_addresses(["10.8.0.1/24"])
        right.set_addresses(["10.8.0.2/24"])
        server = await right.start_server(echo)
        reader, _ = await left.open_connection("10.8.0.2", server.port)
        device.delete()
        with pytest.raises(OSError, match="this end is closed"):
            await reader.read()


async def test_what_cannot_be_had_is_said_with_its_place(pair: Pair) -> None:
    left, _ = pair
    server, datagram = await left.start_server(echo), await left.open_datagram()
    with pytest.raises(OSError, match=rf"TCP port {server.port} of the stack: Address already in use$"):
        await left.start_server(echo, port=server.port)
    with pytest.raises(OSError, match=rf"UDP port {datagram.port} of the stack: Address already in use$"):
        await left.open_datagram(port=datagram.port)
    datagram.close()
    left.set_addresses(["10.8.0.1/24"])
    with pytest.raises(OSError, match="no echo request to fd00::2: Network is unreachable$"):
        await left.ping("fd00::2")
    for call in (left.open_connection("10.8.0.2", 70_000), left.start_server(echo, port=70_000)):
        with pytest.raises(OverflowError, match="write 0 to 65535"):
            await call
    await left.aclose()
    with pytest.raises(OSError, match="the stack is closed"):
        await left.open_connection("wiki.office", 80)


async def test_what_was_written_before_closing_arrives_when_the_stack_settles(pair: Pair) -> None:
    arrived: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set_result(await receive_all(reader))
        writer.close()

    left, right = pair
    server = await right.start_server(take)
    _, writer = await left.open_connection("10.8.0.2", server.port)
    sent = await send_blocks(writer, 4 * MIB, 7)
    writer.close()
    await writer.wait_closed()
    await left.settle(10)
    await left.aclose()
    assert await arrived == (4 * MIB, sent)


async def test_closing_ends_everything_and_twice_is_once() -> None:
    device = Device("tun", 1500, 64)
    gc.collect()
    files = descriptors()
    left, right = Stack(device.attach("interface")), Stack(device.attach("application"))
    device.set_up(True)
    left.set_addresses(["10.8.0.1/24"])
    right.set_addresses(["10.8.0.2/24"])
    server = await right.start_server(echo)
    reader, writer = await left.open_connection("10.8.0.2", server.port)
    await right.aclose()
    await right.aclose()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    await left.aclose()
    with pytest.raises(OSError, match="No such device"):
        left.statistics()
    del reader, writer
    gc.collect()
    await asyncio.sleep(0)
    device.attach("interface").close()
    del left, right, server
    gc.collect()
    assert descriptors() <= files


# One per process: hypothesis runs every example against it.
@pytest.fixture(scope="module")
def target() -> tuple[Device, NetStack, End]:
    device = Device("tun", 1500, 1024)
    stack = NetStack(device.attach("interface"), MIB)
    stack.set_addresses(["10.8.0.1/24", "fd00::1/64"])
    stack.listen(None, 80, 10)
    end = device.attach("application")
    device.set_up(True)
    return device, stack, end


def sound_packets() -> list[bytes]:
    tcp = struct.pack("!HHIIBBHHH", 40000, 80, 1, 0, 0x50, 2, 65535, 0, 0)
    udp = struct.pack("!HHHH", 40000, 53, 12, 0) + b"data"
    icmp = struct.pack("!BBHHH", 8, 0, 0, 1, 1) + b"ping"
    packets = []
    for protocol, payload in ((6, tcp), (17, udp), (1, icmp)):
        source, destination = socket.inet_aton("10.8.0.2"), socket.inet_aton("10.8.0.1")
        pseudo = b"" if protocol == 1 else source + destination + struct.pack("!HH", protocol, len(payload))
        at = {6: 16, 17: 6, 1: 2}[protocol]
        payload = payload[:at] + checksum(pseudo + payload) + payload[at + 2 :]
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + source + destination
        packets.append(header[:10] + checksum(header) + header[12:] + payload)
    return packets


def checksum(data: bytes) -> bytes:
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_garbage_never_stops_the_stack(target: tuple[Device, NetStack, End], data: st.DataObject) -> None:
    _, stack, end = target
    version = st.sampled_from([b"\x45", b"\x46", b"\x60"])
    noise = st.builds(bytes.__add__, version, st.binary(max_size=200))
    mutated = st.builds(mutate, st.sampled_from(sound_packets()), st.integers(0, 60), st.integers(0, 255))
    end.write_batch(data.draw(st.lists(noise | mutated, max_size=20)))
    numbers = stack.statistics()
    assert numbers["buffer_bytes"] <= numbers["budget_bytes"]
    end.read_batch(1024)


def mutate(packet: bytes, at: int, value: int) -> bytes:
    at = 1 + at % (len(packet) - 1)
    return packet[:at] + bytes([value]) + packet[at + 1 :]
