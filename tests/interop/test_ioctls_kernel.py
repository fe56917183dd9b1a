"""What our devices answer to ioctls is what this machine's kernel answers."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable

import pytest

from ginnel.device import ioctls
from ginnel.device.interface import Interfaces
from ginnel.device.ioctls import Descriptor, socket_ioctl, takes_number
from ginnel.errors import DeviceError
from tests.harness.ifreq import ifreq, number, sockaddr
from tests.harness.network import Namespace

TUN, TAP = ioctls.IFF_TUN | ioctls.IFF_NO_PI, ioctls.IFF_TAP | ioctls.IFF_NO_PI
MULTI = TUN | ioctls.IFF_MULTI_QUEUE
Step = tuple[int | str, int, bytes]
"""Which descriptor (``"socket"``: the inet socket), the request and its argument."""


def set_interface(descriptor: int, name: str, flags: int) -> Step:
    return descriptor, ioctls.TUNSETIFF, ifreq(name, flags)


def integer(value: int) -> bytes:
    return struct.pack("=i", value).ljust(40, b"\0")


def about(name: str, request: int, value: bytes = b"") -> Step:
    return "socket", request, ifreq(name, value)


CASES: dict[str, list[Step]] = {
    "unattached": [
        (0, request, bytes(40))
        for request in (
            ioctls.TUNGETIFF,
            ioctls.TUNSETPERSIST,
            ioctls.TUNSETOWNER,
            ioctls.TUNSETGROUP,
            ioctls.TUNSETLINK,
            ioctls.TUNSETOFFLOAD,
            ioctls.TUNSETTXFILTER,
            ioctls.TUNGETSNDBUF,
            ioctls.TUNSETSNDBUF,
            ioctls.TUNSETQUEUE,
            ioctls.TUNSETCARRIER,
            ioctls.TUNSETNOCSUM,
            ioctls.SIOCGIFHWADDR,
            0x541B,
            0x400454FF,
        )
    ],
    "unknown": [set_interface(0, "tun0", TUN)]
    + [(0, request, bytes(40)) for request in (0x541B, 0x400454FF, ioctls.SIOCGIFFLAGS, ioctls.SIOCGIFMTU, 0x5401)],
    "attached": [set_interface(0, "tun%d", TUN), set_interface(0, "tun9", TUN), (0, ioctls.TUNGETIFF, bytes(40))],
    "in use": [
        set_interface(0, "tun0", TUN),
        set_interface(1, "tun0", TUN),
        set_interface(1, "tun0", TUN | ioctls.IFF_TUN_EXCL),
        set_interface(1, "tun0", TAP),
        set_interface(1, "tun0", MULTI),
        set_interface(1, "tun1", 0),
    ],
    "names": [
        set_interface(number, name, TUN)
        for number, name in enumerate(("a/b", "a b", ".", "..", "%d%d", "vpn%d", "a123456789012345", "x:1", "%s"))
    ],
    "queues": [
        set_interface(0, "tun0", MULTI),
        set_interface(1, "tun0", MULTI),
        (1, ioctls.TUNSETQUEUE, ifreq("", ioctls.IFF_ATTACH_QUEUE)),
        (1, ioctls.TUNSETQUEUE, ifreq("", ioctls.IFF_DETACH_QUEUE)),
        (1, ioctls.TUNGETIFF, bytes(40)),
        (1, ioctls.TUNSETQUEUE, ifreq("", ioctls.IFF_DETACH_QUEUE)),
        (1, ioctls.TUNSETQUEUE, ifreq("", ioctls.IFF_ATTACH_QUEUE)),
        (1, ioctls.TUNSETQUEUE, ifreq("", 0)),
        (1, ioctls.TUNGETIFF, bytes(40)),
    ],
    "one queue": [set_interface(0, "tun0", TUN), (0, ioctls.TUNSETQUEUE, ifreq("", ioctls.IFF_DETACH_QUEUE))],
    "settings": [
        set_interface(0, "tun0", TUN),
        (0, ioctls.TUNSETPERSIST, number(1)),
        (0, ioctls.TUNGETIFF, bytes(40)),
        (0, ioctls.TUNSETPERSIST, number(0)),
        (0, ioctls.TUNSETOWNER, number(0xFFFFFFFF)),
        (0, ioctls.TUNSETGROUP, number(0xFFFFFFFF)),
        (0, ioctls.TUNSETOFFLOAD, number(0)),
        (0, ioctls.TUNSETOFFLOAD, number(1 << 20)),
        (0, ioctls.TUNSETSNDBUF, integer(0)),
        (0, ioctls.TUNGETSNDBUF, bytes(40)),
        (0, ioctls.TUNSETSNDBUF, integer(7000)),
        (0, ioctls.TUNGETSNDBUF, bytes(40)),
        (0, ioctls.TUNSETCARRIER, integer(0)),
        (0, ioctls.TUNSETNOCSUM, number(1)),
        (0, ioctls.TUNSETTXFILTER, bytes(40)),
        (0, ioctls.TUNSETLINK, number(1)),
        about("tun0", ioctls.SIOCGIFHWADDR),
        about("tun0", ioctls.SIOCSIFFLAGS, struct.pack("=H", ioctls.IFF_UP)),
        (0, ioctls.TUNSETLINK, number(2)),
    ],
    "index": [
        (0, ioctls.TUNSETIFINDEX, integer(-1)),
        (0, ioctls.TUNSETIFINDEX, integer(77)),
        set_interface(0, "tun0", TUN),
        (0, ioctls.TUNSETIFINDEX, integer(78)),
        about("tun0", ioctls.SIOCGIFINDEX),
        (1, ioctls.TUNSETIFINDEX, integer(77)),
        set_interface(1, "tun1", TUN),
    ],
    "sockets": [
        set_interface(0, "tun0", TUN),
        about("tun0", ioctls.SIOCGIFFLAGS),
        about("tun0", ioctls.SIOCGIFADDR),
        about("tun0", ioctls.SIOCSIFADDR, sockaddr("10.1.0.1")),
        about("tun0", ioctls.SIOCGIFADDR),
        about("tun0", ioctls.SIOCGIFNETMASK),
        about("tun0", ioctls.SIOCGIFDSTADDR),
        about("tun0", ioctls.SIOCSIFDSTADDR, sockaddr("10.1.0.2")),
        about("tun0", ioctls.SIOCGIFDSTADDR),
        about("tun0", ioctls.SIOCSIFNETMASK, sockaddr("255.255.0.0")),
        about("tun0", ioctls.SIOCSIFNETMASK, sockaddr("0.0.0.255")),
        about("tun0", ioctls.SIOCGIFNETMASK),
        about("tun0", ioctls.SIOCSIFMTU, integer(67)),
        about("tun0", ioctls.SIOCSIFMTU, integer(65536)),
        about("tun0", ioctls.SIOCSIFMTU, integer(1400)),
        about("tun0", ioctls.SIOCGIFMTU),
        about("tun0", ioctls.SIOCGIFTXQLEN),
        about("tun0", ioctls.SIOCSIFTXQLEN, integer(-1)),
        about("tun0", ioctls.SIOCGIFHWADDR),
        about("tun0", ioctls.SIOCSIFHWADDR, struct.pack("=H6s", 0xFFFE, b"\2\0\0\0\0\1")),
        about("tun0", ioctls.SIOCSIFADDR, sockaddr("0.0.0.0")),
        about("tun0", ioctls.SIOCGIFADDR),
    ],
}


@pytest.mark.parametrize("case", CASES)
async def test_the_same_answers(case: str) -> None:
    steps = CASES[case]
    with Namespace() as namespace:
        expected = on_the_kernel(namespace, steps)
    interfaces = Interfaces()
    try:
        assert await on_ours(interfaces, steps) == expected
    finally:
        await interfaces.aclose()


def on_the_kernel(namespace: Namespace, steps: list[Step]) -> list[str]:
    opened: dict[int | str, int] = {}

    def ask(which: int | str, request: int, argument: bytes) -> bytes:
        if which not in opened:
            opened[which] = os.open("/dev/net/tun", os.O_RDWR)
        if which != "socket" and takes_number(request):
            fcntl.ioctl(opened[which], request, int.from_bytes(argument[:4], "little", signed=True))
            return argument
        buffer = bytearray(argument)
        fcntl.ioctl(opened[which], request, buffer)
        return bytes(buffer)

    with namespace.entered(), namespace.socket() as asking:
        opened["socket"] = asking.fileno()
        try:
            return [outcome(ask, step) for step in steps]
        finally:
            for which, descriptor in opened.items():
                if which != "socket":
                    os.close(descriptor)


async def on_ours(interfaces: Interfaces, steps: list[Step]) -> list[str]:
    opened: dict[int | str, Descriptor] = {}

    def ask(which: int | str, request: int, argument: bytes) -> bytes:
        if which == "socket":
            answer = socket_ioctl(interfaces, request, argument)
            assert answer is not None
        else:
            if which not in opened:
                opened[which] = Descriptor(interfaces, 0, privileged=True)
            answer = opened[which].ioctl(request, argument)
        return answer + argument[len(answer) :]

    outcomes = [outcome(ask, step) for step in steps]
    for descriptor in opened.values():
        descriptor.close()
        if descriptor.socket is not None:
            descriptor.socket.close()
    return outcomes


def outcome(ask: Callable[[int | str, int, bytes], bytes], step: Step) -> str:
    try:
        return f"{step[1]:#x} {ask(*step).hex()}"
    except (DeviceError, OSError) as error:
        return f"{step[1]:#x} {errno.errorcode[error.errno or 0]}"
