"""The kernel's device beyond the contract's lines, which tests/test_device_contract.py runs."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import re
import select
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from ginnel.device import KernelDevice, MemoryDevice
from ginnel.device.address import Address, Route
from ginnel.device.base import DeviceEnd
from ginnel.device.bridge import Bridge
from ginnel.errors import DeviceError
from ginnel.stack import Stack
from ginnel.testing.probes import network_state, refuses
from ginnel.testing.subjects import set_ipv6
from tests.harness.network import Namespace

OWN = Address(ip_interface("10.9.0.1/24"))


@pytest.fixture(autouse=True)
def namespace() -> Iterator[Namespace]:
    with Namespace() as own, own.entered():
        yield own


@pytest.fixture
def device() -> Iterator[KernelDevice]:
    with KernelDevice() as made:
        set_ipv6(made.name, False)
        made.set_up(True)
        made.add_address(OWN)
        yield made


def datagram(port: int, payload: bytes) -> bytes:
    """From 10.9.0.2 to our 10.9.0.1, without a UDP checksum."""
    total = 28 + len(payload)
    header = struct.pack("!BBHIBBH4s4s", 0x45, 0, total, 0, 64, 17, 0, bytes([10, 9, 0, 2]), bytes([10, 9, 0, 1]))
    words = struct.unpack("!10H", header)
    checksum = 0xFFFF - (sum(words) % 0xFFFF or 0xFFFF)
    header = header[:10] + struct.pack("!H", checksum) + header[12:]
    return header + struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload


def test_the_kernel_s_stack_and_a_program_talk(device: KernelDevice) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("10.9.0.1", 0))
        own.settimeout(20)
        own.sendto(b"question", ("10.9.0.2", 4000))
        assert device.application.read(20)[28:] == b"question"
        device.application.write(datagram(own.getsockname()[1], b"answer"))
        assert own.recvfrom(100) == (b"answer", ("10.9.0.2", 4000))


def test_a_program_that_is_killed_leaves_a_persistent_device_to_the_next() -> None:
    with KernelDevice("tun3", persist=True) as device:
        set_ipv6(device.name, False)
        device.set_up(True)
        device.add_address(OWN)
        for turn in range(20):
            with subprocess.Popen(["cat"], stdin=device.application, stdout=device.application) as program:
                device.application.close()
                program.kill()
            refuses(errno.EAGAIN, device.application.read, 0)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
                # The kernel takes up to a second to see that there is somebody again.
                while not select.select([device.application], [], [], 0.1)[0]:
                    own.sendto(bytes([turn]), ("10.9.0.2", 4000))
            assert device.application.read(20)[28:] == bytes([turn])
            device.application.read_batch(1000)


def test_several_queues_share_the_flows() -> None:
    with KernelDevice(queues=4) as device:
        set_ipv6(device.name, False)
        device.set_up(True)
        device.add_address(OWN)
        assert len({queue.fileno() for queue in device.queues}) == 4
        for flow in range(64):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
                own.bind(("10.9.0.1", 5000 + flow))
                for _ in range(3):
                    own.sendto(b"", ("10.9.0.2", 4000))
        flows = [[each[20:22] for each in queue.read_batch(1000)] for queue in device.queues]
        assert sum(map(len, flows)) == 64 * 3
        assert sum(1 for flow in flows if flow) > 1
        every = Counter(source for flow in flows for source in set(flow))
        assert set(every.values()) == {1}, "a flow keeps to its queue"


def test_a_vnet_header_stands_in_front() -> None:
    with KernelDevice(vnet_header=True) as device:
        set_ipv6(device.name, False)
        device.set_up(True)
        device.add_address(OWN)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.sendto(b"payload", ("10.9.0.2", 4000))
        assert device.application.read(20)[10 + 28 :] == b"payload"


def test_addresses_and_routes_are_the_kernel_s(device: KernelDevice, namespace: Namespace) -> None:
    peer = Address(ip_interface("10.8.0.1/32"), ip_address("10.8.0.2"))
    device.add_address(peer)
    route = Route(ip_network("10.70.0.0/16"), ip_address("10.9.0.7"), 5)
    device.add_route(route)
    assert device.addresses == (OWN, peer)
    assert route in device.routes
    shown = namespace.run(["ip", "address", "show", device.name]) + namespace.run(["ip", "route"])
    assert "inet 10.8.0.1 peer 10.8.0.2/32" in shown
    assert "10.70.0.0/16 via 10.9.0.7" in shown
    device.remove_route(route)
    device.remove_address(peer.interface)
    assert (device.addresses, route in device.routes) == ((OWN,), False)


async def test_it_is_configured_from_within_a_running_loop(device: KernelDevice) -> None:
    device.set_mtu(1400)
    assert device.mtu == 1400


def test_nothing_is_left_behind() -> None:
    # What nobody refers to any more, of a test before, would close its descriptors at any time.
    gc.collect()
    before, descriptors = network_state(), len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with KernelDevice(persist=True) as device:
            device.set_up(True)
        device.close()
    with pytest.raises(DeviceError):
        KernelDevice("tun%d", mtu=67)
    assert network_state() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_device_that_was_there_stays(namespace: Namespace) -> None:
    namespace.ip("tuntap add tun4 mode tun")
    with KernelDevice("tun4") as device:
        device.set_up(True)
        with pytest.raises(DeviceError, match="held by another program"):
            KernelDevice("tun4")
    assert "link tun4" in network_state()
    refuses(errno.EINVAL, KernelDevice, "tun4", "tap")


@pytest.mark.parametrize(
    ("name", "number", "text"),
    [("lo", errno.EINVAL, "lo cannot be"), ("a" * 16, errno.EINVAL, "too long"), ("tun/1", errno.EINVAL, "tun/1")],
)
def test_a_refusal_says_what_and_what_to_do(name: str, number: int, text: str) -> None:
    with pytest.raises(DeviceError, match=text) as caught:
        KernelDevice(name)
    assert caught.value.errno == number
    assert "\n" not in str(caught.value)


def test_a_refusal_of_a_setting_says_what_and_what_to_do(device: KernelDevice) -> None:
    for text, number, refused in (
        ("cannot be set to mtu 10", errno.EINVAL, lambda: device.set_mtu(10)),
        ("cannot be given the address 10.9.0.1/24", errno.EEXIST, lambda: device.add_address(OWN)),
        (
            r"cannot be given the route to 10.71.0.0/16; give it an address that reaches the gateway first",
            errno.ENETUNREACH,
            lambda: device.add_route(Route(ip_network("10.71.0.0/16"), ip_address("192.0.2.77"))),
        ),
        (
            "has no such route to 10.71.0.0/16",
            errno.ESRCH,
            lambda: device.remove_route(Route(ip_network("10.71.0.0/16"))),
        ),
    ):
        with pytest.raises(DeviceError, match=rf"^{device.name} {text}: [^\n]+$") as caught:
            refused()
        assert caught.value.errno == number


def test_one_that_is_gone_is_not_made_again_by_asking_for_its_end() -> None:
    with KernelDevice() as device:
        device.application.close()
        with pytest.raises(DeviceError, match=r"^tun0 went with its last descriptor; make it with persist=True"):
            _ = device.application
        assert "link tun0" not in network_state()
    with KernelDevice(queues=2) as device:
        index = device.index
        device.application.close()
        device.application.fileno()
        assert socket.if_nametoindex(device.name) == index


def test_a_batch_for_a_kernels_interface_that_is_down_is_refused_and_counted_whole() -> None:
    with KernelDevice() as device:
        before = device.statistics()
        refuses(errno.EIO, device.application.write_batch, [b"\x45" + bytes(19)] * 5)
        after = device.statistics()
        assert sum(after[name] - before[name] for name in ("rx_dropped", "rx_errors")) == 5


def test_without_privileges_it_says_what_else_works() -> None:
    code = "from ginnel.device import KernelDevice; KernelDevice()"
    ordinary = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code]
    done = subprocess.run(ordinary, capture_output=True, text=True, timeout=60)
    assert "takes CAP_NET_ADMIN; without it use `ginnel connect` without --tun, or `ginnel lend`" in done.stderr


def test_the_interface_end_is_the_kernel_s(device: KernelDevice) -> None:
    refuses(errno.EBUSY, getattr, device, "interface")
    end: DeviceEnd = device.application
    device.close()
    refuses(errno.EBADFD, end.read, 0)
    refuses(errno.EBADFD, getattr, device, "application")
    assert device.closed


def test_the_example_of_the_documentation() -> None:
    page = (Path(__file__).parents[1] / "docs" / "device.md").read_text()
    (example,) = re.findall(r"^```python in a namespace\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, bytes] = {}
    exec(compile(example, "example", "exec"), names)
    # The kernel looks for routers as soon as the interface is up.
    assert names["packet"][0] >> 4 == 6


async def test_a_bridge_joins_the_kernels_device_to_others() -> None:
    """no way to bridge: a learning switch joins TAP devices"""
    with (
        Namespace() as own,
        own.entered(),
        Bridge() as bridge,
        KernelDevice("tap0", "tap") as kernel,
        MemoryDevice("tap") as memory,
    ):
        set_ipv6(kernel.name, False)
        kernel.add_address(OWN)
        memory.set_up(True)
        ports = bridge.add(kernel.application), bridge.add(memory.application)
        with KernelDevice("tun0") as tun, pytest.raises(DeviceError, match="cannot be a port"):
            bridge.add(tun.application)
        async with Stack(memory.interface) as stack:
            stack.set_addresses(["10.9.0.2/24"])
            # While it is down it takes nothing, and that is counted.
            with pytest.raises(TimeoutError):
                await stack.ping("10.9.0.1", timeout=0.2)
            counted = {port.number: port.counters for port in bridge.ports()}
            assert counted[ports[0]]["tx_dropped"] == counted[ports[1]]["flooded"] > 0
            kernel.set_up(True)
            while not await _answers(stack, "10.9.0.1"):
                pass
            server = await stack.start_server(_echo)
            reader, writer = await asyncio.open_connection("10.9.0.2", server.port)
            sent = os.urandom(2_000_000)
            writer.write(sent)
            writer.write_eof()
            assert await reader.read() == sent
            writer.close()
            macs = {row.mac: row.port for row in bridge.stations()}
            assert macs == {kernel.mac.hex(":"): ports[0], stack.mac: ports[1]}
            counted = {port.number: port.counters for port in bridge.ports()}
            for one, other in (ports, ports[::-1]):
                arrived = counted[one]["forwarded"] + counted[one]["flooded"]
                assert (
                    arrived == counted[other]["tx_frames"] + counted[other]["tx_dropped"] + counted[other]["tx_blocked"]
                )
        bridge.remove(ports[0])
        assert "tap0" not in (name for _, name in socket.if_nameindex())


async def _answers(stack: Stack, host: str) -> bool:
    try:
        return await stack.ping(host, timeout=1) > 0
    except TimeoutError:
        return False


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read())
    writer.close()
