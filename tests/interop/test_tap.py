"""Our stack and our bridge on Ethernet with the kernel's: real TAP devices in namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from ginnel._core import End
from ginnel.device.bridge import Bridge
from ginnel.device.memory import MemoryDevice
from ginnel.stack import Stack
from tests.harness.network import Namespace


class Tap:
    """A kernel's TAP device in a namespace of its own, and a memory device that carries the same frames.

    ``wire`` is its interface end: what is written there, the kernel receives.
    """

    def __init__(self, *addresses: str) -> None:
        self.namespace = Namespace()
        with self.namespace.entered():
            self._tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self._tap, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI))
            self.mac = fcntl.ioctl(self._tap, SIOCGIFHWADDR, bytes(40))[18:24].hex(":")
        self.device = MemoryDevice("tap")
        self.device.set_up(True)
        self.frames = [0, 0]
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()
        self.namespace.ip(*(f"address add {address} dev tap0 nodad" for address in addresses), "link set tap0 up")

    @property
    def wire(self) -> End:
        return self.device.interface

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        os.close(self._tap)
        self.device.close()
        self.namespace.close()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _carry(self) -> None:
        end = self.device.application
        while True:
            ready, _, _ = select.select([self._tap, end, self._stop], [], [])
            if self._stop in ready:
                return
            if end in ready:
                for frame in end.read_batch(100):
                    with contextlib.suppress(OSError):
                        self.frames[0] += 1
                        os.write(self._tap, frame)
            if self._tap in ready:
                with contextlib.suppress(OSError):
                    end.write(os.read(self._tap, 65536))
                    self.frames[1] += 1


Link = tuple[Stack, Tap]


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    with Tap("10.8.0.2/24", "fd00::2/64") as tap:
        async with Stack(tap.wire) as stack:
            stack.set_addresses(["10.8.0.1/24", "fd00::1/64"])
            yield stack, tap


async def ping(tap: Tap, host: str, size: int = 56, count: int = 3) -> None:
    """Echo requests from the kernel's side, each answered whole."""
    six = ":" in host
    with tap.namespace.entered():
        family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
        sock = socket.socket(family, socket.SOCK_RAW, protocol)
        address = socket.getaddrinfo(host, 7, family, socket.SOCK_DGRAM)[0][4]
        # A raw socket's address has no port.
        address = (address[0], 0, *address[2:])
    with sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        for sequence in range(count):
            request = echo(128 if six else 8, sequence, bytes(size))
            reply = echo(129 if six else 0, sequence, bytes(size))
            sock.sendto(request, address)
            async with asyncio.timeout(20):
                while True:
                    data = await loop.sock_recv(sock, 65536)
                    if (data if six else data[20:])[4:] == reply[4:] and data[0 if six else 20] == reply[0]:
                        break


def echo(kind: int, sequence: int, payload: bytes) -> bytes:
    """The kernel itself writes the checksum of ICMPv6."""
    message = bytearray(struct.pack("!BBHHH", kind, 0, 0, 7, sequence) + payload)
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", message, 2, ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
    return bytes(message)


@pytest.mark.parametrize(("ours", "theirs"), [("10.8.0.1", "10.8.0.2"), ("fd00::1", "fd00::2")])
async def test_each_finds_the_other_and_pings(link: Link, ours: str, theirs: str) -> None:
    stack, tap = link
    assert await stack.ping(theirs, timeout=20) > 0
    await ping(tap, ours)
    known = tap.namespace.run(["ip", "neigh", "show", ours])
    assert str(stack.mac) in known
    (row,) = [row for row in stack.neighbours() if row.address == theirs]
    assert row.mac == tap.mac
    # In pieces, both ways.
    await ping(tap, ours, size=20_000)
    assert await stack.ping(theirs, payload=bytes(20_000), timeout=20) > 0


async def test_the_kernel_speaks_first_and_by_the_link_local_address(link: Link) -> None:
    stack, tap = link
    await ping(tap, "10.8.0.1")
    first = bytes.fromhex(str(stack.mac).replace(":", ""))
    tail = socket.inet_ntop(
        socket.AF_INET6, b"\xfe\x80" + bytes(6) + bytes([first[0] ^ 2]) + first[1:3] + b"\xff\xfe" + first[3:]
    )
    await ping(tap, f"{tail}%tap0")
    # All nodes on the link, of which we are one.
    await ping(tap, "ff02::1%tap0")


@pytest.mark.parametrize(("ours", "theirs"), [("10.8.0.1", "10.8.0.2"), ("fd00::1", "fd00::2")])
async def test_tcp_both_ways(link: Link, ours: str, theirs: str) -> None:
    stack, tap = link
    family = socket.AF_INET6 if ":" in ours else socket.AF_INET

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        content = os.urandom(2_000_000)
        writer.write(content)
        writer.write_eof()
        assert await reader.read() == content
        writer.close()

    with tap.namespace.socket(family) as listening:
        listening.bind((theirs, 0))
        listening.listen()
        port = listening.getsockname()[1]
        async with await asyncio.start_server(answer, sock=listening):
            await ask(*await stack.open_connection(theirs, port, timeout=20))
    server = await stack.start_server(answer)
    connecting = tap.namespace.socket(family)
    connecting.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connecting, (ours, server.port))
    await ask(*await asyncio.open_connection(sock=connecting))


async def test_routes_by_a_gateway(link: Link) -> None:
    stack, tap = link
    tap.namespace.ip("address add 192.0.2.9/32 dev lo", "address add 2001:db8::9/128 dev lo nodad")
    with pytest.raises(OSError, match="unreachable"):
        await stack.ping("192.0.2.9")
    stack.set_routes([("0.0.0.0/0", "10.8.0.2"), ("::/0", "fd00::2")])
    assert await stack.ping("192.0.2.9", timeout=20) > 0
    assert await stack.ping("2001:db8::9", timeout=20) > 0


async def test_the_kernel_finds_our_address_taken(link: Link) -> None:
    _, tap = link
    tap.namespace.ip("address add fd00::1/64 dev tap0")
    await until(lambda: "dadfailed" in tap.namespace.run(["ip", "-6", "address", "show", "dev", "tap0"]))


async def test_every_frame_is_received_or_counted(link: Link) -> None:
    stack, tap = link
    await ping(tap, "10.8.0.1", count=500)
    await until(lambda: tap.frames[1] == stack.statistics()["rx_packets"])
    device = tap.device.statistics()
    assert device["tx_dropped"] == device["rx_dropped"] == 0
    assert stack.statistics()["tx_packets"] == device["tx_packets"]


@pytest.fixture
def bridged() -> Iterator[tuple[Bridge, Tap, Tap]]:
    with Bridge() as bridge, Tap("10.8.0.2/24") as left, Tap("10.8.0.3/24") as right:
        bridge.add(left.wire)
        bridge.add(right.wire)
        # A port is the interface end here: it belongs to who holds it to set it up.
        yield bridge, left, right


async def test_a_bridge_joins_two_kernels_and_a_stack(bridged: tuple[Bridge, Tap, Tap]) -> None:
    bridge, left, right = bridged
    with MemoryDevice("tap") as device:
        bridge.add(device.application)
        device.set_up(True)
        async with Stack(device.interface) as stack:
            stack.set_addresses(["10.8.0.1/24"])
            await ping(left, "10.8.0.3")
            await ping(right, "10.8.0.1")
            # Tagged frames pass the bridge, and are none of the stack's concern.
            frame = b"\xff" * 6 + bytes([2, 0, 0, 0, 0, 9]) + struct.pack("!HHH", VLAN, 7, 0x88B5) + bytes(50)
            with packet_socket(left) as sending, packet_socket(right) as receiving:
                await asyncio.get_running_loop().sock_sendall(sending, frame)
                assert await tagged(receiving) == (7, frame[:12] + frame[16:])
            assert stack.statistics()["dropped_tagged"] > 0
    assert {left.mac, right.mac} <= {row.mac for row in bridge.stations()}


def packet_socket(tap: Tap) -> socket.socket:
    with tap.namespace.entered():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sock.bind(("tap0", ETH_P_ALL))
    sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    sock.setblocking(False)
    return sock


async def tagged(sock: socket.socket) -> tuple[int, bytes]:
    """The next tagged frame: the kernel gives the tag beside it (struct tpacket_auxdata, linux/if_packet.h)."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(BlockingIOError):
                frame, ancillary, _, _ = sock.recvmsg(65536, 256)
                for _, _, data in ancillary:
                    tag, kind = struct.unpack_from("HH", data, 16)
                    if kind == VLAN:
                        return tag, frame
            await asyncio.sleep(0.005)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.02)


TUNSETIFF, SIOCGIFHWADDR, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x8927, 0x0002, 0x1000
ETH_P_ALL, VLAN, SOL_PACKET, PACKET_AUXDATA = 0x0003, 0x8100, 263, 8
