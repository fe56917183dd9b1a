"""The ioctls of a device and of sockets about it: what `ginnel.device.ioctls` answers.

``tests/interop/test_ioctls_kernel.py`` holds the same answers against the kernel's own.
"""

from __future__ import annotations

import errno
import os
import random
import struct

import pytest

from ginnel.device import ioctls
from ginnel.device.interface import Interfaces
from ginnel.device.ioctls import Descriptor, socket_ioctl
from ginnel.errors import DeviceError
from tests.harness.ifreq import ifreq, number, sockaddr


@pytest.fixture
async def interfaces():
    made = Interfaces(first_index=10)
    yield made
    await made.aclose()


@pytest.fixture
async def opened(interfaces):
    """Opens the device, by default as a user of the number 1000."""
    descriptors = []

    def open_device(uid=1000, gids=frozenset({1000}), privileged=False):
        descriptors.append(Descriptor(interfaces, uid, gids, privileged))
        return descriptors[-1]

    yield open_device
    for descriptor in descriptors:
        descriptor.close()
        if descriptor.socket is not None:
            descriptor.socket.close()


def attach(descriptor, name="", flags=ioctls.IFF_TUN | ioctls.IFF_NO_PI):
    answer = descriptor.ioctl(ioctls.TUNSETIFF, ifreq(name, flags))
    return answer[:16].rstrip(b"\0").decode()


def refused(code, call, *arguments):
    with pytest.raises(DeviceError) as caught:
        call(*arguments)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[code]


async def test_a_name_is_chosen_and_written_back(opened):
    assert attach(opened()) == "tun0"
    assert attach(opened()) == "tun1"
    assert attach(opened(), "vpn%d") == "vpn0"
    assert attach(opened(), flags=ioctls.IFF_TAP) == "tap0"
    assert attach(opened(), "office") == "office"


async def test_what_tunsetiff_refuses(opened):
    first = opened()
    attach(first, "tun0")
    refused(errno.EEXIST, attach, first)
    refused(errno.EBUSY, attach, opened(), "tun0")
    refused(errno.EBUSY, attach, opened(), "tun0", ioctls.IFF_TUN | ioctls.IFF_TUN_EXCL)
    refused(errno.EINVAL, attach, opened(), "tun0", ioctls.IFF_TAP)
    refused(errno.EINVAL, attach, opened(), "tun0", ioctls.IFF_TUN | ioctls.IFF_MULTI_QUEUE)
    refused(errno.EINVAL, attach, opened(), "new", ioctls.IFF_NO_PI)
    refused(errno.EINVAL, attach, opened(), "a/b")
    refused(errno.EFAULT, opened().ioctl, ioctls.TUNSETIFF, b"short")


async def test_everything_else_needs_an_interface(opened):
    known = [value for name, value in vars(ioctls).items() if name.startswith("TUN") and name != "TUNSETIFF"]
    for request in {*known, 0x541B, 0x400454FF, ioctls.SIOCGIFFLAGS} - ANSWERED_UNATTACHED:
        refused(errno.EBADFD, opened().ioctl, request, bytes(40))


async def test_unknown_requests(opened):
    descriptor = opened()
    attach(descriptor)
    for request in (0x541B, 0x400454FF, ioctls.SIOCGIFFLAGS, 0x5401, 0):
        refused(errno.EINVAL, descriptor.ioctl, request, bytes(40))


async def test_packets_pass_with_and_without_packet_information(opened, interfaces):
    bare, framed = opened(), opened()
    attach(bare, "tun0")
    attach(framed, "tun1", ioctls.IFF_TUN)
    for interface in interfaces:
        interface.set_up(True)
        await_up = ioctls.interface_flags(interface)
        assert await_up & ioctls.IFF_UP
        assert await_up & ioctls.IFF_RUNNING
    packet = b"\x45" + bytes(19)
    bare.socket.send(packet)
    framed.socket.send(b"\0\0\x08\0" + packet)
    for interface in interfaces:
        while not interface.statistics()["rx_packets"]:
            interface.notice_gone()
        assert interface.statistics()["rx_bytes"] == 20


async def test_features_are_what_is_granted(opened):
    (features,) = struct.unpack("=I", opened().ioctl(ioctls.TUNGETFEATURES))
    assert features & ioctls.IFF_MULTI_QUEUE
    assert not features & ioctls.IFF_VNET_HDR
    descriptor = opened()
    attach(descriptor, "tun0", ioctls.IFF_TUN | ioctls.IFF_VNET_HDR)
    name, flags = struct.unpack_from("=16sH", descriptor.ioctl(ioctls.TUNGETIFF, bytes(40)))
    assert name.rstrip(b"\0") == b"tun0"
    assert flags & ioctls.IFF_TUN
    assert not flags & ioctls.IFF_VNET_HDR
    refused(errno.EINVAL, descriptor.ioctl, ioctls.TUNSETOFFLOAD, number(1))
    refused(errno.EINVAL, descriptor.ioctl, ioctls.TUNSETVNETHDRSZ, struct.pack("=i", 12))
    assert descriptor.ioctl(ioctls.TUNSETOFFLOAD, number(0)) == b""


async def test_an_interface_goes_with_its_last_program_unless_persistent(opened, interfaces):
    descriptor = opened()
    attach(descriptor, "tun0")
    descriptor.socket.close()
    assert attach(opened(), "tun0") == "tun0"
    keeping = opened()
    attach(keeping, "tun1")
    keeping.ioctl(ioctls.TUNSETPERSIST, number(1))
    keeping.socket.close()
    interfaces.get("tun1").notice_gone()
    assert interfaces.get("tun1") is not None
    again = opened()
    attach(again, "tun1")
    again.ioctl(ioctls.TUNSETPERSIST, number(0))
    again.socket.close()
    interfaces.get("tun1").notice_gone()
    assert interfaces.get("tun1") is None


async def test_owner_and_group(opened):
    first = opened()
    attach(first, "tun0", MULTI)
    first.ioctl(ioctls.TUNSETOWNER, number(1000))
    attach(opened(), "tun0", MULTI)
    refused(errno.EPERM, attach, opened(uid=1001), "tun0", MULTI)
    attach(opened(uid=1001, privileged=True), "tun0", MULTI)
    first.ioctl(ioctls.TUNSETGROUP, number(5))
    refused(errno.EPERM, attach, opened(), "tun0", MULTI)
    attach(opened(gids=frozenset({5})), "tun0", MULTI)
    refused(errno.EINVAL, first.ioctl, ioctls.TUNSETOWNER, number(0xFFFFFFFF))


async def test_queues(opened, interfaces):
    queues = [opened() for _ in range(ioctls.MAX_QUEUES)]
    for queue in queues:
        attach(queue, "tun0", MULTI)
    refused(errno.E2BIG, attach, opened(), "tun0", MULTI)
    first = queues[0]
    refused(errno.EINVAL, first.ioctl, ioctls.TUNSETQUEUE, ifreq("", ioctls.IFF_ATTACH_QUEUE))
    first.ioctl(ioctls.TUNSETQUEUE, ifreq("", ioctls.IFF_DETACH_QUEUE))
    flags = struct.unpack_from("=16xH", first.ioctl(ioctls.TUNGETIFF, bytes(40)))[0]
    assert flags & ioctls.IFF_DETACH_QUEUE
    refused(errno.EINVAL, first.ioctl, ioctls.TUNSETQUEUE, ifreq("", ioctls.IFF_DETACH_QUEUE))
    first.ioctl(ioctls.TUNSETQUEUE, ifreq("", ioctls.IFF_ATTACH_QUEUE))
    refused(errno.EINVAL, first.ioctl, ioctls.TUNSETQUEUE, ifreq("", 0))
    single = opened()
    attach(single, "tun1")
    refused(errno.EINVAL, single.ioctl, ioctls.TUNSETQUEUE, ifreq("", ioctls.IFF_DETACH_QUEUE))


async def test_the_index_may_be_chosen(opened, interfaces):
    descriptor = opened()
    refused(errno.EINVAL, descriptor.ioctl, ioctls.TUNSETIFINDEX, struct.pack("=i", -1))
    descriptor.ioctl(ioctls.TUNSETIFINDEX, struct.pack("=i", 77))
    attach(descriptor, "tun0")
    assert interfaces.get("tun0").index == 77
    refused(errno.EPERM, descriptor.ioctl, ioctls.TUNSETIFINDEX, struct.pack("=i", 78))
    second = opened()
    second.ioctl(ioctls.TUNSETIFINDEX, struct.pack("=i", 77))
    refused(errno.EBUSY, attach, second, "tun1")


async def test_settings(opened, interfaces):
    descriptor = opened()
    attach(descriptor, "tun0")
    interface = interfaces.get("tun0")
    descriptor.ioctl(ioctls.TUNSETLINK, number(1))
    assert ioctls.link_type(interface) == 1
    interface.set_up(True)
    refused(errno.EBUSY, descriptor.ioctl, ioctls.TUNSETLINK, number(2))
    assert descriptor.ioctl(ioctls.TUNGETSNDBUF, bytes(4)) == struct.pack("=i", 0x7FFFFFFF)
    refused(errno.EINVAL, descriptor.ioctl, ioctls.TUNSETSNDBUF, struct.pack("=i", 0))
    descriptor.ioctl(ioctls.TUNSETSNDBUF, struct.pack("=i", 4096))
    assert descriptor.ioctl(ioctls.TUNGETSNDBUF, bytes(4)) == struct.pack("=i", 4096)
    assert ioctls.is_running(interface)
    descriptor.ioctl(ioctls.TUNSETCARRIER, struct.pack("=i", 0))
    assert not ioctls.is_running(interface)
    assert descriptor.ioctl(ioctls.TUNSETNOCSUM, number(1)) == b""
    refused(errno.EINVAL, descriptor.ioctl, ioctls.TUNSETTXFILTER, bytes(4))
    tap = opened()
    attach(tap, "tap0", ioctls.IFF_TAP)
    assert tap.ioctl(ioctls.TUNSETTXFILTER, bytes(4)) == b""


async def test_sockets_ask_about_it(opened, interfaces):
    attach(opened(), "tun0")
    interface = interfaces.get("tun0")

    def ask(request, value=b""):
        return socket_ioctl(interfaces, request, ifreq("tun0", value))

    assert socket_ioctl(interfaces, ioctls.SIOCGIFMTU, ifreq("eth0", b"")) is None
    ask(ioctls.SIOCSIFMTU, struct.pack("=i", 1400))
    assert ask(ioctls.SIOCGIFMTU)[16:20] == struct.pack("=i", 1400)
    refused(errno.EINVAL, ask, ioctls.SIOCSIFMTU, struct.pack("=i", 60))
    refused(errno.EADDRNOTAVAIL, ask, ioctls.SIOCGIFADDR)
    ask(ioctls.SIOCSIFADDR, sockaddr("10.1.0.1"))
    ask(ioctls.SIOCSIFDSTADDR, sockaddr("10.1.0.2"))
    assert ask(ioctls.SIOCGIFDSTADDR)[16:32] == sockaddr("10.1.0.2")
    ask(ioctls.SIOCSIFNETMASK, sockaddr("255.255.255.0"))
    refused(errno.EINVAL, ask, ioctls.SIOCSIFNETMASK, sockaddr("0.0.0.255"))
    assert [str(own.interface) for own in interface.addresses] == ["10.1.0.1/24"]
    ask(ioctls.SIOCSIFFLAGS, struct.pack("=H", ioctls.IFF_UP))
    assert interface.up
    flags = struct.unpack_from("=16xH", ask(ioctls.SIOCGIFFLAGS))[0]
    assert flags & (ioctls.IFF_UP | ioctls.IFF_POINTOPOINT | ioctls.IFF_NOARP) == 0x91
    assert struct.unpack_from("=16xi", ask(ioctls.SIOCGIFINDEX))[0] == interface.index
    by_index = struct.pack("=16xi20x", interface.index)
    assert socket_ioctl(interfaces, ioctls.SIOCGIFNAME, by_index)[:5] == b"tun0\0"
    ask(ioctls.SIOCSIFTXQLEN, struct.pack("=i", 77))
    assert ask(ioctls.SIOCGIFTXQLEN)[16:20] == struct.pack("=i", 77)
    refused(errno.EOPNOTSUPP, ask, ioctls.SIOCSIFHWADDR, struct.pack("=H6s", 0xFFFE, b"\2\0\0\0\0\1"))
    refused(errno.ENOTTY, ask, 0x8999)


async def test_anything_may_come(opened, interfaces):
    """Every request with random arguments of every length: an answer or an errno."""
    seed = int(os.environ.get("GINNEL_SEED", random.randrange(1 << 32)))
    print(f"GINNEL_SEED={seed}")
    chance = random.Random(seed)
    requests = [value for name, value in vars(ioctls).items() if name.startswith(("TUN", "SIOC"))]
    for _ in range(4000):
        descriptor = chance.choice([None, *KEPT]) or opened()
        KEPT[:] = [*KEPT[-7:], descriptor]
        request = chance.choice([*requests, chance.randrange(1 << 32)])
        argument = chance.choice([b"tun0", b"tap1", b"", b"%d", b"a%d%d"]).ljust(16, b"\0")
        argument = (argument + chance.randbytes(24))[: chance.randrange(41)]
        for call in (descriptor.ioctl, lambda request, argument: socket_ioctl(interfaces, request, argument)):
            try:
                answer = call(request, argument)
                assert answer is None or len(answer) in (0, 4, 40), request
            except DeviceError:
                pass
        if chance.random() < 0.2:
            descriptor.close()
    KEPT.clear()


KEPT: list[Descriptor] = []
MULTI = ioctls.IFF_TUN | ioctls.IFF_NO_PI | ioctls.IFF_MULTI_QUEUE
ANSWERED_UNATTACHED = {ioctls.TUNGETFEATURES, ioctls.TUNSETIFINDEX, ioctls.TUNSETQUEUE}
