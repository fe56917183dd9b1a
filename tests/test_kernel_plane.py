"""The data plane on kernel devices: long packets are cut and joined as the kernel itself would."""

from __future__ import annotations

import contextlib
import hashlib
import random
import select
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import ip_interface

import pytest

from ginnel._core import DataPlane
from ginnel.device.address import Address
from ginnel.device.base import Kind
from ginnel.device.kernel import KernelDevice
from ginnel.device.memory import MemoryDevice
from tests.harness.network import Namespace

KEYS = bytes(range(128)), bytes(range(128, 256))
MSS = 1380


def join(one: DataPlane, other: DataPlane, kind: Kind = "tun") -> None:
    """Two planes with one peer each, who share keys, over loopback."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
        each.setblocking(False)
    addresses = [each.getsockname() for each in sockets]
    for index, plane in enumerate((one, other)):
        host, port = addresses[1 - index]
        sockets[index].connect((host, port))
        number = plane.add_udp(sockets[index].detach())
        plane.new_peer(0, (number, host, port), 0)
        plane.new_key(0, 1, 0, "AES-256-GCM", KEYS[index], KEYS[1 - index])
        plane.swap(0, 1)
        if kind == "tun":
            plane.set_routes(0, ["0.0.0.0/0", "::/0"], None)
        plane.set_peer(0, 0, 0, MSS)


@contextlib.contextmanager
def device(
    namespace: Namespace, *addresses: str, kind: Kind = "tun", vnet_header: bool = True
) -> Iterator[KernelDevice]:
    with namespace.entered():
        made = KernelDevice(None, kind, vnet_header=vnet_header)
        for address in addresses:
            made.add_address(Address(ip_interface(address)))
        made.set_up(True)
    try:
        yield made
    finally:
        with namespace.entered():
            made.close()


@contextlib.contextmanager
def tunnel(
    vnet_header: tuple[bool, bool], kind: Kind = "tun"
) -> Iterator[tuple[Namespace, Namespace, DataPlane, DataPlane]]:
    with contextlib.ExitStack() as stack:
        spaces = [stack.enter_context(Namespace()) for _ in range(2)]
        planes = []
        for number, (space, offload) in enumerate(zip(spaces, vnet_header, strict=True), 1):
            # Nobody else has these addresses, and nothing waits until that is known.
            space.run(["sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad"])
            addresses = f"10.66.0.{number}/24", f"fd66::{number}/64"
            made = stack.enter_context(device(space, *addresses, kind=kind, vnet_header=offload))
            with space.entered():
                plane = made.data_plane()
            stack.callback(plane.close)
            planes.append(plane)
        join(*planes, kind)
        yield spaces[0], spaces[1], planes[0], planes[1]


@pytest.mark.parametrize("kind", ["tun", "tap"])
@pytest.mark.parametrize("vnet_header", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("address", ["10.66.0.2", "fd66::2"])
def test_tcp_arrives_whole_both_ways(kind: Kind, vnet_header: tuple[bool, bool], address: str) -> None:
    data = random.Random(7).randbytes(16 << 20)
    with tunnel(vnet_header, kind) as (left, right, one, other):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with right.socket(family) as listener, left.socket(family) as client:
            listener.bind(("", 80))
            listener.listen()
            listener.settimeout(60)
            client.settimeout(60)
            wait_for_route(client, address)
            server, _ = listener.accept()
            with server:
                server.settimeout(60)
                assert carry(client, server, data) == hashlib.sha256(data).digest()
                assert carry(server, client, data) == hashlib.sha256(data).digest()
        if all(vnet_header):
            for plane in (one, other):
                counted = plane.statistics()
                assert counted["device_reads"] * 3 < counted["device_read_packets"], "long packets are read"
                assert counted["device_writes"] * 2 < counted["device_written_packets"], "long packets are written"
        assert one.statistics()["device_read_malformed"] == 0
        assert other.statistics()["device_write_errors"] == 0


def test_datagrams_of_every_size_arrive() -> None:
    with (
        tunnel((True, True)) as (left, right, _, _),
        right.socket(kind=socket.SOCK_DGRAM) as receiver,
        left.socket(kind=socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("10.66.0.2", 9))
        receiver.settimeout(30)
        sender.connect(("10.66.0.2", 9))
        for size in (0, 1, 2, 3, 100, 1399, 1400, 1472, 1473, 9000, 60_000):
            payload = random.Random(size).randbytes(size)
            sender.send(payload)
            assert receiver.recv(65_536) == payload


def test_a_device_that_is_deleted_is_reported() -> None:
    with tunnel((True, True)) as (left, _, plane, _):
        left.ip("link delete tun0")
        assert select.select([plane], [], [], 30)[0]
        kinds = {kind for kind, *_ in plane.events()}
        assert "device_closed" in kinds


@pytest.mark.parametrize("kind", ["tun", "tap"])
@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("payload", [1, 1000, 1001, 2000, 2001, 50_000])
def test_a_long_packet_is_cut_as_the_kernel_cuts_it(kind: Kind, ipv6: bool, transport: str, payload: int) -> None:
    """The same packet to a device without offloads, for which the kernel cuts it, and to ours."""
    size = 1000
    long = packet(ipv6, transport, random.Random(payload).randbytes(payload), flags=0x99)
    sort = {("tcp", False): 1, ("tcp", True): 4, ("udp", False): 5, ("udp", True): 5}[transport, ipv6]
    start, offset = (40 if ipv6 else 20), (16 if transport == "tcp" else 6)
    gso = (sort, size) if payload > size else (0, 0)
    link = ETHERNET[ipv6] if kind == "tap" else b""
    at = len(link) + start
    header = struct.pack("=BBHHHH", 1, gso[0], at + (32 if transport == "tcp" else 8), gso[1], at, offset)
    with (
        Namespace() as space,
        device(space, kind=kind, vnet_header=False) as plain,
        device(space, kind=kind) as ours,
    ):
        with space.entered():
            plane = ours.data_plane()
            memory = MemoryDevice(kind)
            memory.set_up(True)
            peer = DataPlane(memory.application)
        with contextlib.closing(plane), contextlib.closing(peer), memory:
            join(plane, peer, kind)
            with space.entered():
                for target in (plain, ours):
                    inject(target.name, header + link + partial(long, start, offset), ipv6)
            count = -(-payload // size)
            cut_by_kernel = receive(plain.application, count)
            cut_by_us = receive(memory.interface, count)
            assert cut_by_us == cut_by_kernel


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_what_is_joined_is_cut_by_the_kernel_into_what_it_was(ipv6: bool, transport: str) -> None:
    with forwarding() as (memory, plane, plain):
        # A datagram that comes alone is joined to nothing: how they come is the machine's affair.
        for seed in range(MOST_TRAINS):
            train = mixed(random.Random(seed), ipv6, transport)
            memory.interface.write_batch(train)
            wanted = [forwarded(each) for each in train]
            # Of two flows that are mixed each keeps its own order.
            came = receive(plain.application, len(train))
            assert sorted(came, key=ports_of) == sorted(wanted, key=ports_of), f"seed {seed}"
            counted = plane.statistics()
            if seed >= LEAST_TRAINS and counted["device_writes"] * 2 < counted["device_written_packets"]:
                return
    pytest.fail(f"packets are not joined: {counted}")


def test_a_burst_of_more_small_datagrams_than_the_kernel_takes_in_one_piece_arrives_whole() -> None:
    """As voices and games send them: a run of more than 128 (64 in older kernels) would be refused as one."""
    with forwarding() as (memory, plane, plain):
        for seed in range(LEAST_TRAINS):
            train = cut(random.Random(seed), False, "udp", count=400, size=64)
            memory.interface.write_batch(train)
            assert receive(plain.application, len(train)) == [forwarded(each) for each in train], f"seed {seed}"
        assert plane.statistics()["device_write_errors"] == 0


@contextlib.contextmanager
def forwarding() -> Iterator[tuple[MemoryDevice, DataPlane, KernelDevice]]:
    """What the memory device's interface end writes comes by datagrams to the plane, which gives it to the kernel, and
    that forwards it to a device without offloads."""
    with (
        Namespace() as space,
        device(space, "10.66.0.1/24", "fd66::1/64") as ours,
        device(space, "10.99.0.1/24", "fd99::1/64", vnet_header=False) as plain,
        MemoryDevice() as memory,
    ):
        space.run(["sh", "-c", "cd /proc/sys/net; echo 1 | tee ipv4/ip_forward ipv6/conf/all/forwarding"])
        with space.entered():
            plane = ours.data_plane()
            memory.set_up(True)
            peer = DataPlane(memory.application)
            with contextlib.closing(plane), contextlib.closing(peer):
                join(plane, peer)
                yield memory, plane, plain


def mixed(source: random.Random, ipv6: bool, transport: str) -> list[bytes]:
    """The packets of one or two flows."""
    flows = [cut(source, ipv6, transport)]
    if source.randrange(2):
        flows.append(cut(source, ipv6, transport, ports=OTHER_PORTS))
    packets = []
    while any(flows):
        flow = source.choice([flow for flow in flows if flow])
        number = source.randrange(1, 4)
        packets += flow[:number]
        del flow[:number]
    return packets


def cut(
    source: random.Random, ipv6: bool, transport: str, *, count: int = 0, size: int = 0, ports: bytes = b""
) -> list[bytes]:
    """Packets that follow one another, each built for itself."""
    size, count, start = size or source.randrange(8, 1300), count or source.randrange(2, 30), 40 if ipv6 else 20
    may_be_fragmented, congested = source.randrange(2), source.choice([0, 0x40])
    packets = []
    for index in range(count):
        last = index == count - 1
        # Even lengths: the checksum below takes words.
        payload = source.randbytes((source.randrange(1, size + 1) if last else size) // 2 * 2 or 2)
        end = source.choice([0x10, 0x18, 0x11, 0x19]) if last else 0x10
        whole = bytearray(packet(ipv6, transport, payload, flags=end | congested))
        whole[start : start + 4] = ports or PORTS
        if transport == "tcp":
            sequence = 0xFFFFFF00 + index * (size // 2 * 2) & 0xFFFFFFFF
            whole[start + 4 : start + 8] = struct.pack("!I", sequence)
        if not ipv6:
            whole[4:6] = struct.pack("!H", (0xFFFE + index) & 0xFFFF)
            # The other side's address, which is not one of this machine's.
            whole[12:20] = socket.inet_aton("10.98.0.1") + socket.inet_aton("10.99.0.2")
            if may_be_fragmented:
                whole[6] = 0
            whole[10:12] = bytes(2)
            whole[10:12] = struct.pack("!H", checksum(bytes(whole[:20])))
        else:
            whole[8:24] = socket.inet_pton(socket.AF_INET6, "fd98::1")
        offset = start + (16 if transport == "tcp" else 6)
        with_sum = partial(bytes(whole), start, offset - start)
        # That there is none is said by zero in UDP only.
        none = 0xFFFF if transport == "udp" else 0
        whole[offset : offset + 2] = struct.pack("!H", checksum(with_sum[start:]) or none)
        packets.append(bytes(whole))
    return packets


def forwarded(packet: bytes) -> bytes:
    """After one router."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes([packet[7] - 1]) + packet[8:]
    head = packet[:8] + bytes([packet[8] - 1]) + packet[9:10] + bytes(2) + packet[12:20]
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + packet[20:]


def wait_for_route(client: socket.socket, address: str) -> None:
    """Connects; an IPv6 address is not usable until nobody else has claimed it."""
    while True:
        try:
            return client.connect((address, 80))
        except OSError as error:
            if ":" not in address or error.errno not in (99, 101, 113):
                raise
            select.select([], [], [], 0.05)


def carry(source: socket.socket, target: socket.socket, data: bytes) -> bytes:
    sender = threading.Thread(target=source.sendall, args=(data,))
    sender.start()
    digest, left = hashlib.sha256(), len(data)
    while left > 0:
        piece = target.recv(1 << 20)
        assert piece, "the stream ended early"
        digest.update(piece)
        left -= len(piece)
    sender.join()
    return digest.digest()


def receive(end: object, count: int) -> list[bytes]:
    """That many packets of the test's own, and none of those that the kernel sends for itself."""
    packets: list[bytes] = []
    while len(packets) < count:
        came: bytes = end.read(30)  # type: ignore[attr-defined]
        if came[:1] and any(ports in came[20:62] for ports in (PORTS, OTHER_PORTS)):
            packets.append(came)
    return packets


def ports_of(packet: bytes) -> bytes:
    start = 40 if packet[0] >> 4 == 6 else 20
    return packet[start : start + 4]


def inject(name: str, message: bytes, ipv6: bool) -> None:
    """Sends a packet with a vnet header through a device."""
    protocol = 0x86DD if ipv6 else 0x0800
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        raw.sendto(message, (name, protocol))


def packet(ipv6: bool, transport: str, payload: bytes, flags: int) -> bytes:
    """A packet without checksums in its transport header."""
    if transport == "tcp":
        options = bytes([1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6])
        inner = PORTS + struct.pack("!IIBBHHH", 0xFFFFFF00, 7, 8 << 4, flags, 500, 0, 0) + options + payload
    else:
        inner = PORTS + struct.pack("!HH", 8 + len(payload), 0) + payload
    number = 6 if transport == "tcp" else 17
    if ipv6:
        addresses = socket.inet_pton(socket.AF_INET6, "fd99::1") + socket.inet_pton(socket.AF_INET6, "fd99::2")
        return struct.pack("!IHBB", 0x60000000, len(inner), number, 64) + addresses + inner
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(inner), 0xFFFE, 0x4000, 64, number, 0)
    head += socket.inet_aton("10.99.0.1") + socket.inet_aton("10.99.0.2")
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + inner


def partial(packet: bytes, start: int, offset: int) -> bytes:
    """With the pseudo header's sum in the transport's checksum."""
    ipv6 = start == 40
    addresses, number = (packet[8:40], packet[6]) if ipv6 else (packet[12:20], packet[9])
    pseudo = addresses + struct.pack("!II", len(packet) - start, number)
    at = start + offset
    return packet[:at] + struct.pack("!H", ~checksum(pseudo) & 0xFFFF) + packet[at + 2 :]


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# The head of a frame, of an IPv4 packet's and an IPv6 packet's.
ETHERNET = [b"\x02\0\0\0\0\1" + b"\x66\0\0\0\0\2" + kind for kind in (b"\x08\0", b"\x86\xdd")]
SOL_PACKET, PACKET_VNET_HDR = 263, 15
LEAST_TRAINS, MOST_TRAINS = 10, 200
PORTS, OTHER_PORTS = struct.pack("!HH", 4321, 1234), struct.pack("!HH", 4322, 1234)
