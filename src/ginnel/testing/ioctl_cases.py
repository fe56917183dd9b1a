"""The ioctl table of the contract, as cases that run on a real /dev/net/tun and on what answers like it.

A `System` is what a program sees: `open` gives a `Node`, as opening /dev/net/tun does, and `about` is
an ioctl on an inet socket. On `RealSystem` a program under ``ginnel lend`` runs them unchanged.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ginnel.device.interface import Interfaces
from ginnel.device.ioctls import Descriptor, socket_ioctl
from ginnel.device.kernel import NODE
from ginnel.testing.probes import refuses, until


class Node(Protocol):
    """An open /dev/net/tun."""

    def ioctl(self, request: int, argument: bytes | int = 0) -> bytes:
        """Bytes are what the argument points to, a number is the argument itself. Raises OSError."""

    def close(self) -> None: ...


class System(Protocol):
    def open(self) -> Node: ...

    def about(self, request: int, ifreq: bytes) -> bytes:
        """An ioctl on an inet socket, with a struct ifreq; what came back of it."""

    @property
    def stranger(self) -> int:
        """The number of a user without privileges."""

    def attach_as_stranger(self, ifreq: bytes) -> None:
        """TUNSETIFF by that user, who lets go of it at once. Raises OSError."""


class RealNode:
    def __init__(self) -> None:
        self._descriptor = os.open(NODE, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, request: int, argument: bytes | int = 0) -> bytes:
        answer = fcntl.ioctl(self._descriptor, request, argument)
        return answer if isinstance(answer, bytes) else b""

    def close(self) -> None:
        os.close(self._descriptor)


class RealSystem:
    def open(self) -> Node:
        return RealNode()

    def about(self, request: int, ifreq: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inet:
            return fcntl.ioctl(inet, request, ifreq)

    @property
    def stranger(self) -> int:
        return os.geteuid() or STRANGER

    def attach_as_stranger(self, ifreq: bytes) -> None:
        words = [sys.executable, "-I", "-S", "-c", ATTACH, NODE, str(self.stranger), ifreq.hex()]
        status = subprocess.run(words).returncode
        if status:
            raise OSError(status, os.strerror(status))


class MemoryNode:
    """A descriptor of a device in user space; closed, as the program's half of its pair would be."""

    def __init__(self, interfaces: Interfaces, uid: int = 0) -> None:
        self._descriptor = Descriptor(interfaces, uid, privileged=uid == 0)

    def ioctl(self, request: int, argument: bytes | int = 0) -> bytes:
        words = struct.pack("=q", argument) if isinstance(argument, int) else argument
        return self._descriptor.ioctl(request, words)

    def close(self) -> None:
        if self._descriptor.socket is not None:
            self._descriptor.socket.close()
        self._descriptor.close()


class MemorySystem:
    """Interfaces of this process, within a running event loop."""

    stranger = 2000

    def __init__(self, interfaces: Interfaces) -> None:
        self._interfaces = interfaces

    def open(self) -> Node:
        return MemoryNode(self._interfaces)

    def about(self, request: int, ifreq: bytes) -> bytes:
        answer = socket_ioctl(self._interfaces, request, ifreq)
        assert answer is not None
        return answer

    def attach_as_stranger(self, ifreq: bytes) -> None:
        node = MemoryNode(self._interfaces, self.stranger)
        try:
            node.ioctl(TUNSETIFF, ifreq)
        finally:
            node.close()


@dataclass(frozen=True)
class IoctlCase:
    name: str
    check: Callable[[System], None]


IOCTL_CASES: list[IoctlCase] = []

Check = Callable[[System], None]


def line(name: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        IOCTL_CASES.append(IoctlCase(name, check))
        return check

    return add


@line("TUNSETIFF: TUN, TAP, NO_PI; name written back; %d")
def set_interface(system: System) -> None:
    for kind, name, wanted in ((IFF_TUN, "given0", "given0"), (IFF_TAP, "any%d", "any0"), (IFF_TUN, "any%d", "any0")):
        for flags in (kind, kind | IFF_NO_PI):
            with attached(system, name, flags) as (node, got):
                assert got == wanted
                assert flags_of(node) & (IFF_TUN | IFF_TAP) == kind
    with attached(system, "any%d") as (_, first), attached(system, "any%d") as (_, second):
        assert (first, second) == ("any0", "any1")
    with attached(system, "") as (_, name):
        assert name == "tun0"


@line("TUNSETIFF: VNET_HDR refused where not offered")
def vnet_header(system: System) -> None:
    with opened(system) as node:
        offered = features(node) & IFF_VNET_HDR
    # As the kernel treats a flag that it does not know: programs ask by TUNGETIFF what they were granted.
    with attached(system, "vnet0", IFF_TUN | IFF_VNET_HDR) as (node, _):
        assert flags_of(node) & IFF_VNET_HDR == offered


@line("TUNSETIFF: TUN_EXCL")
def exclusive(system: System) -> None:
    with attached(system, "kept0") as (node, _):
        node.ioctl(TUNSETPERSIST, 1)
    with opened(system) as node:
        refuses(errno.EBUSY, node.ioctl, TUNSETIFF, setting("kept0", IFF_TUN | IFF_NO_PI | IFF_TUN_EXCL))
        node.ioctl(TUNSETIFF, setting("kept0"))
        node.ioctl(TUNSETPERSIST, 0)


@line("TUNSETIFF: EEXIST when attached")
def attached_already(system: System) -> None:
    with attached(system, "tun0") as (node, _):
        refuses(errno.EEXIST, node.ioctl, TUNSETIFF, setting("tun1"))


@line("TUNSETIFF: EBUSY when taken")
def taken(system: System) -> None:
    with attached(system, "tun0"), opened(system) as node:
        refuses(errno.EBUSY, node.ioctl, TUNSETIFF, setting("tun0"))


@line("TUNSETIFF: EINVAL for a wrong kind")
def wrong_kind(system: System) -> None:
    with attached(system, "tun0"), opened(system) as node:
        refuses(errno.EINVAL, node.ioctl, TUNSETIFF, setting("tun0", IFF_TAP | IFF_NO_PI))
        refuses(errno.EINVAL, node.ioctl, TUNSETIFF, setting("tun9", IFF_NO_PI))
        refuses(errno.EINVAL, node.ioctl, TUNSETIFF, setting("tun/9"))


@line("TUNSETIFF: EPERM for a wrong owner")
def wrong_owner(system: System) -> None:
    with attached(system, "kept2") as (node, _):
        node.ioctl(TUNSETPERSIST, 1)
        node.ioctl(TUNSETOWNER, system.stranger + 1)
    refuses(errno.EPERM, system.attach_as_stranger, setting("kept2"))
    with attached(system, "kept2") as (node, _):
        node.ioctl(TUNSETOWNER, system.stranger)
    system.attach_as_stranger(setting("kept2"))
    with attached(system, "kept2") as (node, _):
        node.ioctl(TUNSETPERSIST, 0)


@line("TUNSETIFF: E2BIG past 256 queues")
def too_many_queues(system: System) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(256):
            stack.enter_context(attached(system, "many0", IFF_TUN | IFF_NO_PI | IFF_MULTI_QUEUE))
        node = stack.enter_context(opened(system))
        refuses(errno.E2BIG, node.ioctl, TUNSETIFF, setting("many0", IFF_TUN | IFF_NO_PI | IFF_MULTI_QUEUE))


@line("TUNGETIFF")
def get_interface(system: System) -> None:
    with attached(system, "tap7", IFF_TAP | IFF_NO_PI) as (node, _):
        answer = node.ioctl(TUNGETIFF, bytes(IFREQ))
        assert answer[:16].rstrip(b"\0") == b"tap7"
        assert flags_of(node) & (IFF_TUN | IFF_TAP | IFF_NO_PI) == IFF_TAP | IFF_NO_PI


@line("TUNGETFEATURES")
def get_features(system: System) -> None:
    with opened(system) as node:
        assert features(node) & (IFF_TUN | IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE) == (
            IFF_TUN | IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE
        )


@line("TUNSETIFINDEX")
def set_index(system: System) -> None:
    with opened(system) as node:
        node.ioctl(TUNSETIFINDEX, number(4321))
        node.ioctl(TUNSETIFF, setting("tun0"))
        assert about(system, SIOCGIFINDEX, "tun0") == 4321
        refuses(errno.EPERM, node.ioctl, TUNSETIFINDEX, number(4322))


@line("TUNSETPERSIST")
def set_persistent(system: System) -> None:
    with attached(system, "kept1") as (node, _):
        node.ioctl(TUNSETPERSIST, 1)
        assert flags_of(node) & IFF_PERSIST
    with attached(system, "kept1") as (node, _):
        index = about(system, SIOCGIFINDEX, "kept1")
        node.ioctl(TUNSETPERSIST, 0)
    with attached(system, "kept1"):
        assert about(system, SIOCGIFINDEX, "kept1") != index


@line("TUNSETOWNER, TUNSETGROUP")
def set_owner(system: System) -> None:
    with attached(system, "tun0") as (node, _):
        node.ioctl(TUNSETOWNER, 1000)
        node.ioctl(TUNSETGROUP, 1000)


@line("TUNSETLINK (EBUSY while up)")
def set_link(system: System) -> None:
    with attached(system, "tun0") as (node, name):
        node.ioctl(TUNSETLINK, ARPHRD_ETHER)
        set_up(system, name, True)
        refuses(errno.EBUSY, node.ioctl, TUNSETLINK, ARPHRD_NONE)
        set_up(system, name, False)
        node.ioctl(TUNSETLINK, ARPHRD_NONE)


@line("TUNSETOFFLOAD")
def set_offload(system: System) -> None:
    with attached(system, "tun0") as (node, _):
        node.ioctl(TUNSETOFFLOAD, 0)
        refuses(errno.EINVAL, node.ioctl, TUNSETOFFLOAD, 1 << 20)


@line("TUNSETQUEUE")
def set_queue(system: System) -> None:
    multi = IFF_TUN | IFF_NO_PI | IFF_MULTI_QUEUE
    with attached(system, "many0", multi), attached(system, "many0", multi) as (node, _):
        node.ioctl(TUNSETQUEUE, setting("", IFF_DETACH_QUEUE))
        refuses(errno.EINVAL, node.ioctl, TUNSETQUEUE, setting("", IFF_DETACH_QUEUE))
        node.ioctl(TUNSETQUEUE, setting("", IFF_ATTACH_QUEUE))
        refuses(errno.EINVAL, node.ioctl, TUNSETQUEUE, setting("", 0))
    with attached(system, "tun0") as (node, _):
        refuses(errno.EINVAL, node.ioctl, TUNSETQUEUE, setting("", IFF_DETACH_QUEUE))


@line("TUNSETSNDBUF/GETSNDBUF")
def send_buffer(system: System) -> None:
    with attached(system, "tun0") as (node, _):
        node.ioctl(TUNSETSNDBUF, number(100_000))
        assert struct.unpack("=i", node.ioctl(TUNGETSNDBUF, number(0))) == (100_000,)
        refuses(errno.EINVAL, node.ioctl, TUNSETSNDBUF, number(0))
        refuses(errno.EINVAL, node.ioctl, TUNSETSNDBUF, number(-1))


@line("TUNSETCARRIER")
def set_carrier(system: System) -> None:
    with attached(system, "tun0") as (node, name):
        set_up(system, name, True)
        node.ioctl(TUNSETCARRIER, number(0))
        # The kernel follows within a second.
        until(lambda: not about(system, SIOCGIFFLAGS, name) & IFF_RUNNING)
        node.ioctl(TUNSETCARRIER, number(1))
        until(lambda: about(system, SIOCGIFFLAGS, name) & IFF_RUNNING)


@line("TUNSETVNETHDRSZ")
def set_vnet_header_size(system: System) -> None:
    with opened(system) as node:
        offered = features(node) & IFF_VNET_HDR
    with attached(system, "tun0") as (node, _):
        if offered:
            node.ioctl(TUNSETVNETHDRSZ, number(12))
        refuses(errno.EINVAL, node.ioctl, TUNSETVNETHDRSZ, number(3))


@line("TUNSETTXFILTER (TAP)")
def set_filter(system: System) -> None:
    none = struct.pack("=HH", 0, 0)
    with attached(system, "tap0", IFF_TAP | IFF_NO_PI) as (node, _):
        node.ioctl(TUNSETTXFILTER, none)
    with attached(system, "tun0") as (node, _):
        refuses(errno.EINVAL, node.ioctl, TUNSETTXFILTER, none)


@line("TUNSETNOCSUM (ignored)")
def ignored(system: System) -> None:
    with attached(system, "tun0") as (node, _):
        node.ioctl(TUNSETNOCSUM, 1)


@line("TUN: POINTOPOINT, NOARP, MULTICAST")
def kinds(system: System) -> None:
    with attached(system, "tun0") as (_, name):
        assert about(system, SIOCGIFFLAGS, name) & IFF_KIND == IFF_POINTOPOINT | IFF_NOARP | IFF_MULTICAST
    with attached(system, "tap0", IFF_TAP | IFF_NO_PI) as (_, name):
        assert about(system, SIOCGIFFLAGS, name) & IFF_KIND == IFF_BROADCAST | IFF_MULTICAST


@line("On an inet socket: SIOC{G,S}IF{FLAGS,MTU,TXQLEN}, SIOCGIFINDEX, SIOCGIFNAME")
def settings(system: System) -> None:
    with attached(system, "tun0") as (_, name):
        assert not about(system, SIOCGIFFLAGS, name) & IFF_UP
        set_up(system, name, True)
        assert about(system, SIOCGIFFLAGS, name) & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING
        for get, change, value, wrong in ((SIOCGIFMTU, SIOCSIFMTU, 1400, 67), (SIOCGIFTXQLEN, SIOCSIFTXQLEN, 77, -1)):
            system.about(change, ifreq(name, number(value)))
            assert about(system, get, name) == value
            refuses((errno.EINVAL, errno.ERANGE), system.about, change, ifreq(name, number(wrong)))
        for length in (0, LONGEST_QUEUE):
            system.about(SIOCSIFTXQLEN, ifreq(name, number(length)))
            assert about(system, SIOCGIFTXQLEN, name) == length
        # The kernel says EPERM, as of everything that a device of its does not agree to.
        refuses((errno.EPERM, errno.ERANGE), system.about, SIOCSIFTXQLEN, ifreq(name, number(LONGEST_QUEUE + 1)))
        index = about(system, SIOCGIFINDEX, name)
        assert system.about(SIOCGIFNAME, ifreq("", number(index)))[:16].rstrip(b"\0") == name.encode()


@line("On an inet socket: SIOC{G,S}IF{ADDR,DSTADDR,NETMASK}")
def addresses(system: System) -> None:
    with attached(system, "tun0") as (_, name):
        refuses(errno.EADDRNOTAVAIL, system.about, SIOCGIFADDR, ifreq(name))
        values = {SIOCSIFADDR: "10.9.0.1", SIOCSIFDSTADDR: "10.9.0.2", SIOCSIFNETMASK: "255.255.255.0"}
        for request, value in values.items():
            system.about(request, ifreq(name, sockaddr(value)))
        got = [system.about(request, ifreq(name)) for request in (SIOCGIFADDR, SIOCGIFDSTADDR, SIOCGIFNETMASK)]
        assert [each[16:24] for each in got] == [sockaddr(value) for value in values.values()]


@line("On an inet socket: SIOC{G,S}IFHWADDR")
def mac(system: System) -> None:
    with attached(system, "tap0", IFF_TAP | IFF_NO_PI) as (_, name):
        own = system.about(SIOCGIFHWADDR, ifreq(name))
        assert struct.unpack_from("=H", own, 16) == (ARPHRD_ETHER,)
        assert own[18] & 3 == 2
        wanted = struct.pack("=H6s", ARPHRD_ETHER, bytes.fromhex("020000000009"))
        system.about(SIOCSIFHWADDR, ifreq(name, wanted))
        assert system.about(SIOCGIFHWADDR, ifreq(name))[16:24] == wanted


@line("Unknown ones, FIONREAD and SIOCGIFFLAGS on the device's own descriptor: EINVAL")
def unknown(system: System) -> None:
    with attached(system, "tun0") as (node, name):
        for request in (UNKNOWN, FIONREAD, SIOCGIFFLAGS):
            refuses(errno.EINVAL, node.ioctl, request, ifreq(name))


@line("anything while unattached: EBADFD")
def unattached(system: System) -> None:
    with opened(system) as node:
        for request in (TUNGETIFF, TUNSETPERSIST, TUNSETSNDBUF, TUNSETCARRIER, UNKNOWN, FIONREAD, SIOCGIFFLAGS):
            refuses(errno.EBADFD, node.ioctl, request, bytes(IFREQ))


@contextlib.contextmanager
def opened(system: System) -> Iterator[Node]:
    node = system.open()
    try:
        yield node
    finally:
        node.close()


@contextlib.contextmanager
def attached(system: System, name: str, flags: int | None = None) -> Iterator[tuple[Node, str]]:
    with opened(system) as node:
        answer = node.ioctl(TUNSETIFF, setting(name, flags))
        yield node, answer[:16].rstrip(b"\0").decode()


def setting(name: str, flags: int | None = None) -> bytes:
    return ifreq(name, struct.pack("=H", IFF_TUN | IFF_NO_PI if flags is None else flags))


def ifreq(name: str, value: bytes = b"") -> bytes:
    return name.encode().ljust(16, b"\0") + value.ljust(IFREQ - 16, b"\0")


def number(value: int) -> bytes:
    return struct.pack("=i", value)


def sockaddr(address: str) -> bytes:
    return struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(address))


def flags_of(node: Node) -> int:
    (flags,) = struct.unpack_from("=H", node.ioctl(TUNGETIFF, bytes(IFREQ)), 16)
    return int(flags)


def features(node: Node) -> int:
    (found,) = struct.unpack("=I", node.ioctl(TUNGETFEATURES, bytes(4)))
    return int(found)


def about(system: System, request: int, name: str) -> int:
    (value,) = struct.unpack_from("=i", system.about(request, ifreq(name)), 16)
    return int(value)


def set_up(system: System, name: str, up: bool) -> None:
    flags = about(system, SIOCGIFFLAGS, name) & 0xFFFF
    flags = flags | IFF_UP if up else flags & ~IFF_UP
    system.about(SIOCSIFFLAGS, ifreq(name, struct.pack("=H", flags)))


IFREQ = 40
TUNSETNOCSUM, TUNSETIFF, TUNSETPERSIST, TUNSETOWNER = 0x400454C8, 0x400454CA, 0x400454CB, 0x400454CC
TUNSETLINK, TUNSETGROUP, TUNGETFEATURES, TUNSETOFFLOAD = 0x400454CD, 0x400454CE, 0x800454CF, 0x400454D0
TUNSETTXFILTER, TUNGETIFF, TUNGETSNDBUF, TUNSETSNDBUF = 0x400454D1, 0x800454D2, 0x800454D3, 0x400454D4
TUNSETVNETHDRSZ, TUNSETQUEUE, TUNSETIFINDEX, TUNSETCARRIER = 0x400454D8, 0x400454D9, 0x400454DA, 0x400454E2
IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL = 0x1, 0x2, 0x1000, 0x4000, 0x8000
IFF_MULTI_QUEUE, IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, IFF_PERSIST = 0x100, 0x200, 0x400, 0x800
SIOCGIFNAME, SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCGIFADDR, SIOCSIFADDR = 0x8910, 0x8913, 0x8914, 0x8915, 0x8916
SIOCGIFDSTADDR, SIOCSIFDSTADDR, SIOCGIFNETMASK, SIOCSIFNETMASK = 0x8917, 0x8918, 0x891B, 0x891C
SIOCGIFMTU, SIOCSIFMTU, SIOCSIFHWADDR, SIOCGIFHWADDR, SIOCGIFINDEX = 0x8921, 0x8922, 0x8924, 0x8927, 0x8933
SIOCGIFTXQLEN, SIOCSIFTXQLEN = 0x8942, 0x8943
IFF_UP, IFF_BROADCAST, IFF_POINTOPOINT, IFF_RUNNING, IFF_NOARP, IFF_MULTICAST = 0x1, 0x2, 0x10, 0x40, 0x80, 0x1000
IFF_KIND = IFF_BROADCAST | IFF_POINTOPOINT | IFF_NOARP | IFF_MULTICAST
ARPHRD_ETHER, ARPHRD_NONE = 1, 0xFFFE
LONGEST_QUEUE = 524_288
STRANGER = 2000
ATTACH = """
import fcntl, os, sys
device = os.open(sys.argv[1], os.O_RDWR)
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(*[int(sys.argv[2])] * 3)
    os.setresuid(*[int(sys.argv[2])] * 3)
try:
    fcntl.ioctl(device, 0x400454CA, bytes.fromhex(sys.argv[3]))
except OSError as error:
    sys.exit(error.errno)
"""
UNKNOWN, FIONREAD = 0x400454FF, 0x541B
