"""User-space interfaces, and the descriptors by which programs hold their application end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import select
import socket
import struct
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from ginnel._core import DescriptorEnd, Link
from ginnel.device.address import Address, Route, parse_address
from ginnel.device.base import Kind
from ginnel.device.interface import Interface, Interfaces
from ginnel.device.memory import MemoryDevice
from ginnel.errors import DeviceError
from tests.harness.process import no_descriptors

PACKET = b"\x45" + bytes(30)
KINDS: tuple[Kind, ...] = ("tun", "tap")


class Joined:
    """A device that is up, a link to its application end, and a program's descriptor."""

    def __init__(self, *, packet_info: bool = False, queue: int | None = None) -> None:
        self.device = MemoryDevice(queue=queue)
        self.device.application.close()
        self.device.set_up(True)
        self.link = Link(self.device.core, "application")
        self._sockets: list[socket.socket] = []
        self.program, self.number = self.join(packet_info)

    def join(self, packet_info: bool = False) -> tuple[socket.socket, int]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets.append(theirs)
        theirs.settimeout(10)
        try:
            return theirs, self.link.add(ours.detach(), packet_info)
        except DeviceError:
            theirs.close()
            raise

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()
        self.device.close()
        for program in self._sockets:
            program.close()


def readable(descriptor: int, timeout: float = 10) -> bool:
    return bool(select.select([descriptor], [], [], timeout)[0])


def test_descriptors_that_a_program_sends_are_not_kept(tmp_path: Path) -> None:
    """Nor those beside what it wrote just before it ended, when messages are looked at more closely."""
    path = tmp_path / "sent"
    with Joined() as joined, path.open("w") as file:
        for _ in range(20):
            program, number = joined.join()
            for _ in range(40):
                socket.send_fds(program, [PACKET], [file.fileno()] * 4)
            program.close()
            assert readable(joined.link.fileno())
            assert [gone for _, gone in joined.link.events()] == [number]
        led_to = [each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
        assert led_to.count(path) == 1


async def test_an_interface_that_cannot_be_made_leaves_nothing() -> None:
    """At whichever descriptor the system has no more: a lent program that asks again must not make it worse."""
    interfaces = Interfaces()
    await interfaces.delete(interfaces.create())
    refused: list[int] = []
    made = None
    while made is None:
        before = open_here()
        with no_descriptors(but=len(refused)):
            try:
                made = interfaces.create()
            except DeviceError as error:
                refused.append(error.errno)
        assert made or open_here() == before
    await interfaces.delete(made)
    assert len(refused) > 3
    assert set(refused) == {errno.EMFILE}


def open_here() -> tuple[int, int]:
    """Descriptors and threads of this process, but those of what nobody refers to any more."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def test_packets_go_both_ways_whole() -> None:
    with Joined() as joined:
        device, program = joined.device, joined.program
        for size in (1, 20, 1984, 1985, 9000, 65_535):
            packet = b"\x60" + os.urandom(size - 1)
            program.send(packet)
            assert device.interface.read(10) == packet
            device.interface.write(packet)
            assert program.recv(65_536) == packet


def threads() -> set[tuple[str, str]]:
    """Of this process: their numbers and names."""
    return {(each, Path(f"/proc/self/task/{each}/comm").read_text().strip()) for each in os.listdir("/proc/self/task")}


async def test_a_packet_passes_one_thread_between_a_program_and_the_stack() -> None:
    before = threads()
    interfaces = Interfaces()
    interface = interfaces.create()
    program, _ = interface.attach()
    assert [name for _, name in threads() - before] == ["ginnel-stack"]
    with pytest.raises(OSError, match="in use"):
        Link(interface.device.core, "interface", interface.stack.core)
    # The stack goes: the program sees that, and another stack may come.
    await interface.stack.aclose()
    program.settimeout(10)
    assert program.recv(100) == b""
    interface.device.set_up(True)
    system = interface.device.interface
    system.fileno()
    again, _ = interface.attach()
    again.send(PACKET)
    assert system.read(10) == PACKET
    system.write(PACKET)
    assert again.recv(100) == PACKET
    for each in (program, again):
        each.close()
    await interfaces.aclose()


def test_packet_information_is_put_in_front_and_taken_off() -> None:
    with Joined(packet_info=True) as joined:
        device, program = joined.device, joined.program
        for size in (1, 1980, 1981, 1984, 65_535):
            packet = b"\x60" + os.urandom(size - 1)
            program.send(b"\0\0\x86\xdd" + packet)
            assert device.interface.read(10) == packet
            device.interface.write(packet)
            assert program.recv(65_540) == b"\0\0\x86\xdd" + packet
        program.send(b"\0\0\x86\xdd")
        program.send(b"\0\0\x08\0" + PACKET)
        assert device.interface.read(10) == PACKET
        assert device.statistics()["rx_errors"] == 1


def test_what_the_kernel_would_refuse_is_counted() -> None:
    with Joined() as joined:
        device, program = joined.device, joined.program
        for bad in (b"", b"\x50bad", b"\x45" + bytes(65_535)):
            program.send(bad)
        program.send(PACKET)
        assert device.interface.read(10) == PACKET
        assert device.statistics()["rx_errors"] == 3
        assert device.statistics()["rx_packets"] == 1


def test_empty_messages_are_not_taken_for_the_end() -> None:
    with Joined() as joined:
        device, program = joined.device, joined.program
        link, number = joined.link, joined.number
        for _ in range(40):
            program.send(b"")
        program.send(PACKET)
        program.close()
        assert device.interface.read(10) == PACKET
        assert readable(link.fileno())
        assert link.events() == [("gone", number)]
        assert device.statistics()["rx_packets"] == 1


def test_a_packet_for_which_the_system_has_no_buffer_is_dropped_and_the_next_one_passes() -> None:
    """As with a small net.core.wmem_max."""
    with Joined() as joined:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, ours.dup() as same:
            joined.link.remove(joined.number)
            joined.link.add(ours.detach(), False)
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
            theirs.settimeout(10)
            for _ in range(5):
                joined.device.interface.write(b"\x45" + bytes(9000))
                joined.device.interface.write(PACKET)
                assert theirs.recv(10_000) == PACKET
            assert joined.device.statistics()["tx_dropped"] == 5


def test_what_a_packet_costs_that_is_longer_than_a_programs_buffer() -> None:
    with Joined() as joined, DescriptorEnd(joined.program.detach()) as end:
        with socket.socket(fileno=os.dup(end.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
        with pytest.raises(DeviceError, match=r"wmem_max\): Message too long$"):
            end.write(b"\x45" + bytes(9000))


@pytest.mark.parametrize("batch", [False, True])
def test_what_finds_no_room_in_a_descriptor_is_dropped_and_counted_there(batch: bool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sent = [b"\x45" + struct.pack("!I", number) + bytes(1000) for number in range(2000)]
    with DescriptorEnd(ours.detach()) as end, theirs:
        if batch:
            taken = end.write_batch(iter(sent))
            assert 0 < taken < len(sent)
        else:
            assert {end.write(packet) for packet in sent} == {1005}
            taken = len(sent) - end.dropped
        theirs.setblocking(False)
        received = []
        with contextlib.suppress(BlockingIOError):
            while True:
                received.append(theirs.recv(2000))
        assert received == sent[:taken]
        assert end.dropped == len(sent) - taken
        assert end.write_batch([PACKET] * 3) == 3


@pytest.mark.parametrize("unread", [0, 5])
def test_what_a_program_writes_before_it_ends_arrives_whatever_it_has_not_read(unread: int) -> None:
    for _ in range(50):
        with Joined() as joined:
            for _ in range(unread):
                joined.device.interface.write(PACKET)
            if unread:
                assert readable(joined.program.fileno())
            for _ in range(100):
                joined.program.send(PACKET)
            joined.program.close()
            assert readable(joined.link.fileno())
            assert joined.link.events() == [("gone", joined.number)]
            counted = joined.device.statistics()
            assert len(joined.device.interface.read_batch(200)) == 100, counted


def test_a_program_whose_device_dies_with_packets_unread_sees_the_end_and_no_error() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with DescriptorEnd(theirs.detach()) as end:
        ours.send(PACKET)
        end.write_batch([PACKET] * 10)
        ours.close()
        assert [end.read(10), end.read(10)] == [PACKET, b""]
        with pytest.raises(DeviceError, match="^the device has ended: Broken pipe$") as caught:
            end.write(PACKET)
        assert caught.value.errno == errno.EPIPE


def test_a_batch_for_an_interface_that_is_down_is_counted_whole() -> None:
    with Joined() as joined, DescriptorEnd(joined.program.detach()) as end:
        joined.device.set_up(False)
        assert end.write_batch([PACKET] * 5) == 5
        while joined.device.statistics()["rx_errors"] < 5:
            os.sched_yield()


def test_a_program_that_does_not_read_costs_the_newest_packets_and_they_are_counted() -> None:
    with Joined(queue=50) as joined:
        device, program = joined.device, joined.program
        total = 3000
        for number in range(total):
            device.interface.write(b"\x45" + struct.pack("!I", number) + bytes(1000))
        received = []
        while readable(program.fileno(), 0.5):
            received.append(struct.unpack_from("!I", program.recv(2000), 1)[0])
        assert received == sorted(set(received))
        assert len(received) + device.statistics()["tx_dropped"] == total
        # The program is there again.
        device.interface.write(PACKET)
        assert program.recv(2000) == PACKET


def test_deleting_the_device_ends_the_programs_descriptor() -> None:
    with Joined() as joined:
        device, program = joined.device, joined.program
        device.close()
        assert program.recv(100) == b""


def test_a_new_program_can_attach_after_one_has_died() -> None:
    with Joined() as joined:
        device, program = joined.device, joined.program
        link, number = joined.link, joined.number
        with pytest.raises(DeviceError) as refused:
            _ = device.application
        assert refused.value.errno == errno.EBUSY
        program.close()
        assert readable(link.fileno())
        assert link.events() == [("gone", number)]
        assert device.interface.write(PACKET) == len(PACKET)
        assert device.statistics()["tx_dropped"] == 1
        theirs, _ = joined.join()
        device.interface.write(PACKET)
        assert theirs.recv(100) == PACKET


def test_several_queues_share_the_flows() -> None:
    with Joined() as joined:
        device, link, first = joined.device, joined.link, joined.program
        second, number = joined.join()
        flows = [b"\x45" + bytes(8) + b"\x11" + bytes(10) + struct.pack("!HH", port, 7) for port in range(64)]
        for _ in range(3):
            for packet in flows:
                device.interface.write(packet)
        seen: dict[bytes, set[int]] = {}
        while ready := select.select([first, second], [], [], 0.5)[0]:
            for program in ready:
                seen.setdefault(program.recv(100), set()).add(program.fileno())
        assert set(seen) == set(flows)
        assert all(len(queues) == 1 for queues in seen.values())
        assert {fd for queues in seen.values() for fd in queues} == {first.fileno(), second.fileno()}
        link.set_enabled(number, False)
        for packet in flows:
            device.interface.write(packet)
        assert {first.recv(100) for _ in flows} == set(flows)
        for _ in range(254):
            joined.join()
        with pytest.raises(DeviceError) as refused:
            joined.join()
        assert refused.value.errno == errno.E2BIG


def test_an_interface_answers_echo_requests_to_its_address() -> None:
    async def scenario() -> None:
        interfaces = Interfaces()
        left, right = interfaces.create(), interfaces.create()
        assert [interface.name for interface in interfaces] == ["tun0", "tun1"]
        assert interfaces.by_index(right.index) is right
        programs = _join(left, right)
        for interface, own in ((left, "10.1.0.1/24"), (right, "10.1.0.2/24")):
            interface.add_address(parse_address(own))
            interface.set_up(True)
        assert await left.stack.ping("10.1.0.2", timeout=10) < 10
        await interfaces.aclose()
        for program in programs:
            asyncio.get_running_loop().remove_reader(program)
            program.close()

    asyncio.run(scenario())


def test_configuration_is_refused_as_the_kernel_would() -> None:
    async def scenario() -> None:
        interfaces = Interfaces()
        interface = interfaces.create("tun3")
        cases = [
            (errno.EEXIST, lambda: interfaces.create("tun3")),
            (errno.EINVAL, lambda: interfaces.create("a/b")),
            (errno.EINVAL, lambda: interfaces.create("a" * 16)),
            (errno.EINVAL, lambda: interfaces.create("%d%d")),
            (errno.EINVAL, lambda: interface.set_mtu(67)),
            (errno.EOPNOTSUPP, lambda: interface.set_mac(b"\x02" + bytes(5))),
            (errno.EADDRNOTAVAIL, lambda: interface.remove_address(ip_interface("10.0.0.1/24"))),
            (errno.ESRCH, lambda: interface.remove_route(Route(ip_network("10.0.0.0/8")))),
        ]
        for number, refused in cases:
            with pytest.raises(DeviceError) as error:
                refused()
            assert error.value.errno == number

        def refuse(interface: Interface) -> None:
            raise ValueError

        interfaces.on_create.append(refuse)
        for _ in range(2):
            with pytest.raises(ValueError, match="^$"):
                interfaces.create("tun4", index=9)
        assert [own.name for own in interfaces] == ["tun3"]
        interfaces.on_create.remove(refuse)
        assert interfaces.create("tun4", index=9).index == 9
        interface.add_address(Address(ip_interface("10.0.0.1/24"), ip_address("10.0.0.2")))
        interface.add_route(Route(ip_network("10.9.0.0/16"), ip_address("10.0.0.2")))
        await interfaces.aclose()

    asyncio.run(scenario())


def _join(left: Interface, right: Interface) -> tuple[socket.socket, socket.socket]:
    """Carries packets between the application ends."""
    (one, _), (other, _) = left.attach(), right.attach()
    loop = asyncio.get_running_loop()
    for source, target in ((one, other), (other, one)):
        source.setblocking(False)
        loop.add_reader(source, lambda source=source, target=target: _carry(source, target))
    return one, other


def _carry(source: socket.socket, target: socket.socket) -> None:
    target.send(source.recv(65_536))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_network_whose_route_is_removed_is_not_reached_until_the_interface_is_set_up_again(kind: Kind) -> None:
    interfaces = Interfaces()
    interface = interfaces.create(kind=kind)
    program, _ = interface.attach()
    own, other = (Address(ip_interface(text)) for text in ("10.0.0.1/24", "fd00::1/64"))
    for each in (own, other):
        interface.add_address(each)
    interface.set_up(True)
    core = interface.stack.core
    for each, host in ((own, "10.0.0.2"), (other, "fd00::2")):
        core.abort(core.connect(host, 80))
        interface.disconnect(each)
        with pytest.raises(OSError, match="unreachable") as caught:
            core.connect(host, 80)
        assert caught.value.errno == errno.ENETUNREACH
        with pytest.raises(DeviceError):
            interface.disconnect(each)
    # A route there is a way again, and the address is still its own.
    interface.add_route(Route(ip_network("10.0.0.0/28"), ip_address("10.0.0.1")))
    core.abort(core.connect("10.0.0.2", 80))
    with pytest.raises(OSError, match="unreachable"):
        core.connect("192.0.2.1", 80)
    core.abort(core.connect("10.0.0.1", 80))
    interface.set_up(False)
    interface.set_up(True)
    for host in ("10.0.0.77", "fd00::2", *(["192.0.2.1"] if kind == "tun" else [])):
        core.abort(core.connect(host, 80))
    program.close()
    await interfaces.aclose()


async def test_the_route_with_the_least_metric_is_taken() -> None:
    """As the station shows that is asked for."""
    interfaces = Interfaces()
    interface = interfaces.create(kind="tap")
    program, _ = interface.attach()
    program.setblocking(False)
    interface.add_address(Address(ip_interface("10.0.0.1/24")))
    interface.set_up(True)
    far = ip_network("192.0.2.0/24")
    ways = [Route(far, ip_address(f"10.0.0.{metric}"), metric) for metric in (30, 10, 20)]
    for way in ways:
        interface.add_route(way)
    interface.add_route(Route(far, ip_address("10.0.0.5"), 5, table=100))
    for metric in (10, 20, 30):
        core = interface.stack.core
        core.abort(core.connect("192.0.2.1", 80))
        while True:
            frame = await asyncio.get_running_loop().sock_recv(program, 2000)
            if frame[12:14] == b"\x08\x06" and frame[38:42] != bytes([10, 0, 0, 1]):
                break
        assert frame[38:42] == bytes([10, 0, 0, metric])
        interface.remove_route(next(way for way in ways if way.metric == metric))
    with pytest.raises(OSError, match="unreachable"):
        core.connect("192.0.2.1", 80)
    with pytest.raises(DeviceError):
        interface.add_route(Route(far, ip_address("fd00::2")))
    program.close()
    await interfaces.aclose()


async def test_as_many_routes_as_an_interface_has() -> None:
    """The time each takes does not grow with how many there are."""
    interfaces = Interfaces()
    for kind in KINDS:
        interface = interfaces.create(kind=kind)
        interface.set_up(True)
        routes = [
            Route(ip_network(f"10.{number >> 8}.{number & 255}.0/24"), ip_address("10.0.0.2"))
            for number in range(10_000)
        ]
        for route in routes:
            interface.add_route(route)
        with pytest.raises(DeviceError) as caught:
            interface.add_route(Route(ip_network("10.250.0.0/24")))
        assert caught.value.errno == errno.ENOBUFS
        assert interface.routes == tuple(routes)
        for route in routes:
            interface.remove_route(route)
        assert interface.routes == ()
    await interfaces.aclose()
