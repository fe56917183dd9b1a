"""The ioctls of an open /dev/net/tun, and those of a socket about an interface, as Linux answers them.

Sources: ``drivers/net/tun.c``, ``include/uapi/linux/if_tun.h``, ``net/core/dev_ioctl.c``, ``net/ipv4/devinet.c``.
The interfaces are those of an `Interfaces`, which stands for a network namespace of the caller's own: whoever
has it may make interfaces in it.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from ginnel.device.address import Address
from ginnel.device.base import Kind
from ginnel.device.interface import SEND_BUFFER, Interface, Interfaces
from ginnel.errors import DeviceError


class Descriptor:
    """What an open /dev/net/tun is to the kernel: attached to no interface at first, then to one queue of one.

    ``uid`` and ``gids`` are the caller's, for interfaces that have an owner or a group, see `set_caller`;
    ``privileged`` takes no account of those. ``connect`` gives our half of the pair that the program holds, when it
    is attached; None: a pair is made then, and the program's half is `socket`.
    """

    def __init__(
        self,
        interfaces: Interfaces,
        uid: int,
        gids: frozenset[int] = frozenset(),
        privileged: bool = False,
        *,
        connect: Callable[[], socket.socket] | None = None,
    ) -> None:
        self.socket: socket.socket | None = None
        self._interfaces = interfaces
        self.set_caller(uid, gids, privileged)
        self._connect = connect or self._make_pair
        self._interface: Interface | None = None
        self._queue = -1
        self._detached = False
        self._packet_info = False
        self._next_index: int | None = None
        self._closed = False

    @property
    def interface(self) -> Interface | None:
        """What it is attached to; None before, and once that is deleted."""
        if self._interface is None or self._interface.device.closed:
            return None
        return self._interface

    @property
    def closed(self) -> bool:
        """Whether the program has let go of it."""
        return self._closed

    def set_caller(self, uid: int, gids: frozenset[int], privileged: bool) -> None:
        """Who asks from now on: one may have given rights up since it opened the device."""
        self._uid = uid
        self._gids = gids
        self._privileged = privileged

    def ioctl(self, request: int, argument: bytes = b"") -> bytes:
        """Answers a request; returns what is to be written to where the argument points.

        ``argument`` is what is there, `argument_size` bytes of it; of a request whose argument is a plain
        number, that number in 8 bytes of this machine's order. Raises DeviceError with the kernel's errno;
        EFAULT where ``argument`` is shorter than that.
        """
        if self._closed:
            raise DeviceError(errno.EBADF, "this descriptor is closed")
        if request == TUNGETFEATURES:
            return struct.pack("=I", FEATURES)
        if request == TUNSETQUEUE:
            self._set_queue(*_unpack_ifreq(argument))
            return b""
        if request == TUNSETIFF:
            return self._set_interface(argument)
        if request == TUNSETIFINDEX:
            return self._set_index(argument)
        interface = self.interface
        if interface is None:
            raise DeviceError(errno.EBADFD, "this descriptor is attached to no interface")
        answer = _ANSWERS.get(request)
        if answer is None:
            raise DeviceError(errno.EINVAL, f"the device knows no request {request:#x}")
        return answer(self, interface, argument)

    def attach(self, interface: Interface, flags: int = 0) -> None:
        """Takes a queue of an interface, as TUNSETIFF does. DeviceError: EBUSY, EINVAL, EPERM, E2BIG."""
        settings = _settings(interface)
        if bool(flags & IFF_MULTI_QUEUE) != settings.multi_queue:
            raise DeviceError(errno.EINVAL, f"{interface.name} is {'' if settings.multi_queue else 'not '}multi-queue")
        if not self._may_use(settings):
            raise DeviceError(errno.EPERM, f"{interface.name} belongs to somebody else")
        interface.notice_gone()
        if settings.holders and not settings.multi_queue:
            raise DeviceError(errno.EBUSY, f"{interface.name} is in use")
        if len(settings.holders) >= MAX_QUEUES:
            raise DeviceError(errno.E2BIG, f"{interface.name} has {MAX_QUEUES} queues already")
        # Of one that was deleted.
        self._let_go()
        self._packet_info = not flags & IFF_NO_PI
        self._queue = interface.join(self._connect(), self._packet_info)
        self._interface = interface
        settings.holders.append(self)
        settings.features = flags & FEATURES & ~(IFF_TUN | IFF_TAP)
        settings.carrier = not flags & IFF_NO_CARRIER
        interface.on_detach.append(self._on_detach)

    def create(self, pattern: str | None, kind: Kind, flags: int = 0) -> Interface:
        """Makes an interface and takes a queue of it; it goes with its last holder.

        DeviceError: EINVAL, ENFILE, EBUSY.
        """
        for interface in self._interfaces:
            interface.notice_gone()
        interface = self._interfaces.create(pattern, kind, index=self._next_index or None)
        _SETTINGS[interface] = Settings(multi_queue=bool(flags & IFF_MULTI_QUEUE), persistent=False)
        try:
            self.attach(interface, flags)
        except BaseException:
            self._interfaces.discard(interface)
            raise
        return interface

    def close(self) -> None:
        """The program has let go of it. An interface that nobody holds any more goes, unless it is persistent.

        Idempotent.
        """
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        interface, self._interface = self._interface, None
        if interface is None:
            return
        settings = _settings(interface)
        settings.holders.remove(self)
        if interface.device.closed:
            return
        interface.on_detach.remove(self._on_detach)
        interface.detach(self._queue)
        if not settings.holders and not settings.persistent:
            self._interfaces.discard(interface)

    def _on_detach(self, number: int) -> None:
        if number == self._queue:
            self.close()

    def _set_interface(self, argument: bytes) -> bytes:
        name, flags = _unpack_ifreq(argument)
        if self.interface is not None:
            raise DeviceError(errno.EEXIST, "this descriptor is attached already")
        interface = self._interfaces.get(name)
        if interface is not None:
            if flags & IFF_TUN_EXCL:
                raise DeviceError(errno.EBUSY, f"there is a device {name} already")
            if not flags & {"tun": IFF_TUN, "tap": IFF_TAP}[interface.kind]:
                raise DeviceError(errno.EINVAL, f"{name} is a {interface.kind.upper()} device")
            # One that its last program has left may be about to go.
            interface.notice_gone()
            interface = self._interfaces.get(name)
        if interface is not None:
            self.attach(interface, flags)
        elif flags & (IFF_TUN | IFF_TAP):
            interface = self.create(name or None, "tun" if flags & IFF_TUN else "tap", flags)
        else:
            raise DeviceError(errno.EINVAL, "neither IFF_TUN nor IFF_TAP is asked for")
        return interface.name.encode().ljust(IFNAMSIZ, b"\0") + argument[IFNAMSIZ:]

    def _set_index(self, argument: bytes) -> bytes:
        if self.interface is not None:
            raise DeviceError(errno.EPERM, "the index is chosen before the device is made")
        index = _unpack_int(argument)
        if index < 0:
            raise DeviceError(errno.EINVAL, "an index is not negative")
        self._next_index = index
        return b""

    def _set_queue(self, name: str, flags: int) -> None:
        interface = self.interface
        wanted = {IFF_ATTACH_QUEUE: True, IFF_DETACH_QUEUE: False}.get(flags & (IFF_ATTACH_QUEUE | IFF_DETACH_QUEUE))
        usable = interface is not None and _settings(interface).multi_queue and wanted is self._detached
        if interface is None or wanted is None or not usable:
            raise DeviceError(errno.EINVAL, "this queue can not be changed so")
        if wanted and not self._may_use(_settings(interface)):
            raise DeviceError(errno.EPERM, f"{interface.name} belongs to somebody else")
        interface.set_queue(self._queue, wanted)
        self._detached = not wanted

    def _may_use(self, settings: Settings) -> bool:
        if self._privileged:
            return True
        return settings.owner in (None, self._uid) and (settings.group is None or settings.group in self._gids)

    def _get_interface(self, interface: Interface, argument: bytes) -> bytes:
        flags = _settings(interface).features | {"tun": IFF_TUN, "tap": IFF_TAP}[interface.kind] | IFF_NOFILTER
        flags |= IFF_PERSIST if _settings(interface).persistent else 0
        flags |= IFF_DETACH_QUEUE if self._detached else 0
        return struct.pack(f"={IFNAMSIZ}sH22x", interface.name.encode(), flags)

    def _set_persistent(self, interface: Interface, argument: bytes) -> bytes:
        _settings(interface).persistent = bool(_unpack_number(argument))
        return b""

    def _set_owner(self, interface: Interface, argument: bytes) -> bytes:
        _settings(interface).owner = _unpack_id(argument)
        return b""

    def _set_group(self, interface: Interface, argument: bytes) -> bytes:
        _settings(interface).group = _unpack_id(argument)
        return b""

    def _set_link_type(self, interface: Interface, argument: bytes) -> bytes:
        if interface.up:
            raise DeviceError(errno.EBUSY, f"{interface.name} is up")
        _settings(interface).link_type = _unpack_number(argument) & 0xFFFF
        return b""

    def _set_offload(self, interface: Interface, argument: bytes) -> bytes:
        if _unpack_number(argument):
            raise DeviceError(errno.EINVAL, "the device offers no offloads")
        return b""

    def _set_filter(self, interface: Interface, argument: bytes) -> bytes:
        _only_tap(interface)
        if len(argument) < 4:
            raise DeviceError(errno.EFAULT, "no filter there")
        return b""

    def _get_send_buffer(self, interface: Interface, argument: bytes) -> bytes:
        return struct.pack("=i", _settings(interface).send_buffer)

    def _set_send_buffer(self, interface: Interface, argument: bytes) -> bytes:
        size = _unpack_int(argument)
        if size <= 0:
            raise DeviceError(errno.EINVAL, "a buffer has at least one byte")
        _settings(interface).send_buffer = size
        return b""

    def _set_carrier(self, interface: Interface, argument: bytes) -> bytes:
        _settings(interface).carrier = bool(_unpack_int(argument))
        for call in list(interface.on_change):
            call()
        return b""

    def _get_mac(self, interface: Interface, argument: bytes) -> bytes:
        return interface.name.encode().ljust(IFNAMSIZ, b"\0") + _pack_mac(interface).ljust(24, b"\0")

    def _set_mac(self, interface: Interface, argument: bytes) -> bytes:
        _set_mac(interface, argument)
        return b""

    def _ignore(self, interface: Interface, argument: bytes) -> bytes:
        return b""

    def _make_pair(self) -> socket.socket:
        if self.socket is not None:
            self.socket.close()
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return ours


@dataclass(slots=True)
class Settings:
    """What ioctls have set on an interface. Interfaces that no ioctl made stay when nobody holds them."""

    multi_queue: bool = False
    persistent: bool = True
    owner: int | None = None
    group: int | None = None
    features: int = 0
    link_type: int | None = None
    send_buffer: int = 0x7FFFFFFF
    carrier: bool = True
    holders: list[Descriptor] = field(default_factory=list)


def argument_size(request: int) -> int:
    """The bytes at the place that a request's argument points to and that the device reads; 0: none."""
    if request in (TUNSETIFF, TUNSETQUEUE, SIOCSIFHWADDR, SIOCGIFHWADDR):
        return IFREQ_SIZE
    return 4 if request in _INT_ARGUMENTS else 0


def takes_number(request: int) -> bool:
    """Whether a request's argument is a plain number and no pointer."""
    return request in _NUMBER_ARGUMENTS


def is_running(interface: Interface) -> bool:
    """Whether packets can pass: up, held by a program, and with a carrier."""
    return interface.up and bool(interface.queues) and _settings(interface).carrier


def has_carrier(interface: Interface) -> bool:
    return bool(interface.queues) and _settings(interface).carrier


def link_type(interface: Interface) -> int:
    """The ARPHRD number of an interface (``if_arp.h``)."""
    chosen = _settings(interface).link_type
    return chosen if chosen is not None else {"tun": ARPHRD_NONE, "tap": ARPHRD_ETHER}[interface.kind]


def interface_flags(interface: Interface) -> int:
    """An interface's flags (``linux/if.h``)."""
    flags = _KIND_FLAGS[interface.kind]
    if interface.up:
        flags |= IFF_UP
    if is_running(interface):
        flags |= IFF_RUNNING | IFF_LOWER_UP
    return flags


def socket_ioctl(interfaces: Interfaces, request: int, argument: bytes) -> bytes | None:
    """Answers a SIOC{G,S}IF* request on an inet socket; returns what is to be written where the argument points.

    ``argument`` is a struct ifreq. None: it is about an interface that is not one of these. Raises DeviceError
    with the kernel's errno.
    """
    if len(argument) < IFREQ_SIZE:
        raise DeviceError(errno.EFAULT, "no struct ifreq there")
    if request == SIOCGIFNAME:
        found = interfaces.by_index(_unpack_int(argument[IFNAMSIZ:]))
        return None if found is None else found.name.encode().ljust(IFNAMSIZ, b"\0") + argument[IFNAMSIZ:]
    name, _ = _unpack_ifreq(argument)
    interface = interfaces.get(name.partition(":")[0])
    if interface is None:
        return None
    value = argument[IFNAMSIZ:]
    if request in _SOCKET_GET:
        return argument[:IFNAMSIZ] + _SOCKET_GET[request](interface).ljust(IFREQ_SIZE - IFNAMSIZ, b"\0")
    if request in _SOCKET_SET:
        _SOCKET_SET[request](interface, value)
        return b""
    raise DeviceError(errno.ENOTTY, f"no request {request:#x} about {name}")


def _settings(interface: Interface) -> Settings:
    return _SETTINGS.setdefault(interface, Settings())


def _only_tap(interface: Interface) -> None:
    if interface.kind != "tap":
        raise DeviceError(errno.EINVAL, f"{interface.name} is no TAP device")


def _unpack_ifreq(argument: bytes) -> tuple[str, int]:
    """The name and the flags of a struct ifreq. A name that is no ASCII is none that anybody has."""
    if len(argument) < IFREQ_SIZE:
        raise DeviceError(errno.EFAULT, "no struct ifreq there")
    name = argument[: IFNAMSIZ - 1].partition(b"\0")[0]
    (flags,) = struct.unpack_from("=H", argument, IFNAMSIZ)
    return name.decode("ascii", "replace"), flags


def _unpack_int(argument: bytes) -> int:
    if len(argument) < 4:
        raise DeviceError(errno.EFAULT, "no int there")
    (value,) = struct.unpack_from("=i", argument)
    return int(value)


def _unpack_number(argument: bytes) -> int:
    return int.from_bytes(argument, sys.byteorder)


def _unpack_id(argument: bytes) -> int:
    number = _unpack_number(argument) & 0xFFFFFFFF
    if number == 0xFFFFFFFF:
        raise DeviceError(errno.EINVAL, "no user or group has this number")
    return number


def _pack_mac(interface: Interface) -> bytes:
    return struct.pack("=H", link_type(interface)) + interface.mac.ljust(14, b"\0")


def _set_mac(interface: Interface, argument: bytes) -> None:
    """``argument``: a struct ifreq."""
    if len(argument) < IFREQ_SIZE:
        raise DeviceError(errno.EFAULT, "no struct ifreq there")
    family, mac = struct.unpack_from("=H6s", argument, IFNAMSIZ)
    if interface.kind == "tap" and family != link_type(interface):
        raise DeviceError(errno.EINVAL, "an address of another kind of link")
    interface.set_mac(mac)


def _set_flags(interface: Interface, value: bytes) -> None:
    (flags,) = struct.unpack_from("=H", value)
    interface.set_up(bool(flags & IFF_UP))


def _set_queue_length(interface: Interface, value: bytes) -> None:
    length = _unpack_int(value)
    if length < 0:
        raise DeviceError(errno.EINVAL, "a queue's length is not negative")
    interface.set_queue_length(length)


def _first_address(interface: Interface) -> Address:
    address = next((own for own in interface.addresses if own.interface.version == 4), None)
    if address is None:
        raise DeviceError(errno.EADDRNOTAVAIL, f"{interface.name} has no IPv4 address")
    return address


def _set_address(interface: Interface, value: bytes) -> None:
    local = _unpack_sockaddr(value)
    old = next((own for own in interface.addresses if own.interface.version == 4), None)
    if old is not None:
        if old.interface.ip == local:
            return
        interface.remove_address(old.interface)
    if local == _ANY:
        return
    prefix = 32 if interface.kind == "tun" else _class_prefix(local)
    interface.add_address(Address(ipaddress.IPv4Interface(f"{local}/{prefix}")))


def _class_prefix(address: ipaddress.IPv4Address) -> int:
    # Classes A, B and C, as devinet_ioctl still has them.
    first = address.packed[0]
    return 8 if first < 128 else 16 if first < 192 else 24


def _set_mask(interface: Interface, value: bytes) -> None:
    mask = _unpack_sockaddr(value)
    own = _first_address(interface)
    try:
        changed = ipaddress.IPv4Interface(f"{own.interface.ip}/{mask}" if int(mask) else f"{own.interface.ip}/0")
    except ValueError:
        raise DeviceError(errno.EINVAL, f"{mask} is no netmask") from None
    # "0.0.0.255" would pass as a host mask.
    if changed.netmask != mask:
        raise DeviceError(errno.EINVAL, f"{mask} is no netmask")
    _replace(interface, own, Address(changed, own.peer))


def _set_peer(interface: Interface, value: bytes) -> None:
    own = _first_address(interface)
    _replace(interface, own, Address(own.interface, _unpack_sockaddr(value)))


def _replace(interface: Interface, old: Address, new: Address) -> None:
    interface.remove_address(old.interface)
    interface.add_address(new)


def _get_peer(interface: Interface) -> bytes:
    own = _first_address(interface)
    return _pack_sockaddr(own.peer or own.interface.ip)


def _unpack_sockaddr(value: bytes) -> ipaddress.IPv4Address:
    family, raw = struct.unpack_from("=H2x4s", value)
    if family != socket.AF_INET:
        raise DeviceError(errno.EINVAL, "not an IPv4 address")
    return ipaddress.IPv4Address(raw)


def _pack_sockaddr(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    return struct.pack("=H2x4s8x", socket.AF_INET, address.packed)


def _pack_int(value: int) -> bytes:
    return struct.pack("=i", value)


IFNAMSIZ = 16
IFREQ_SIZE = 40 if sys.maxsize > 1 << 32 else 32
MAX_QUEUES = 256

TUNSETNOCSUM, TUNSETDEBUG, TUNSETIFF, TUNSETPERSIST = 0x400454C8, 0x400454C9, 0x400454CA, 0x400454CB
TUNSETOWNER, TUNSETLINK, TUNSETGROUP, TUNGETFEATURES = 0x400454CC, 0x400454CD, 0x400454CE, 0x800454CF
TUNSETOFFLOAD, TUNSETTXFILTER, TUNGETIFF, TUNGETSNDBUF = 0x400454D0, 0x400454D1, 0x800454D2, 0x800454D3
TUNSETSNDBUF, TUNSETVNETHDRSZ, TUNSETQUEUE = 0x400454D4, 0x400454D8, 0x400454D9
TUNSETIFINDEX, TUNSETCARRIER = 0x400454DA, 0x400454E2

IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_ONE_QUEUE, IFF_VNET_HDR = 0x0001, 0x0002, 0x1000, 0x2000, 0x4000
IFF_TUN_EXCL, IFF_MULTI_QUEUE, IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE = 0x8000, 0x0100, 0x0200, 0x0400
IFF_PERSIST, IFF_NOFILTER, IFF_NO_CARRIER = 0x0800, 0x1000, 0x0040
#: What TUNSETIFF grants. What is not here (IFF_VNET_HDR) is not in TUNGETIFF's answer either.
FEATURES = IFF_TUN | IFF_TAP | IFF_NO_PI | IFF_ONE_QUEUE | IFF_MULTI_QUEUE | IFF_NO_CARRIER

SIOCGIFNAME, SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCGIFADDR, SIOCSIFADDR = 0x8910, 0x8913, 0x8914, 0x8915, 0x8916
SIOCGIFDSTADDR, SIOCSIFDSTADDR, SIOCGIFNETMASK, SIOCSIFNETMASK = 0x8917, 0x8918, 0x891B, 0x891C
SIOCGIFMTU, SIOCSIFMTU, SIOCSIFHWADDR, SIOCGIFHWADDR, SIOCGIFINDEX = 0x8921, 0x8922, 0x8924, 0x8927, 0x8933
SIOCGIFTXQLEN, SIOCSIFTXQLEN = 0x8942, 0x8943

IFF_UP, IFF_BROADCAST, IFF_POINTOPOINT, IFF_RUNNING, IFF_NOARP = 0x1, 0x2, 0x10, 0x40, 0x80
IFF_MULTICAST, IFF_LOWER_UP = 0x1000, 0x10000
ARPHRD_ETHER, ARPHRD_NONE = 1, 0xFFFE

_ANY = ipaddress.IPv4Address(0)
_KIND_FLAGS = {"tun": IFF_POINTOPOINT | IFF_NOARP | IFF_MULTICAST, "tap": IFF_BROADCAST | IFF_MULTICAST}
_INT_ARGUMENTS = frozenset({TUNSETIFINDEX, TUNSETSNDBUF, TUNSETCARRIER, TUNSETVNETHDRSZ, TUNSETTXFILTER})
_NUMBER_ARGUMENTS = frozenset(
    {TUNSETNOCSUM, TUNSETDEBUG, TUNSETPERSIST, TUNSETOWNER, TUNSETGROUP, TUNSETLINK, TUNSETOFFLOAD}
)
_Answer = Callable[[Descriptor, Interface, bytes], bytes]
_ANSWERS: dict[int, _Answer] = {
    TUNGETIFF: Descriptor._get_interface,
    TUNSETNOCSUM: Descriptor._ignore,
    TUNSETDEBUG: Descriptor._ignore,
    TUNSETPERSIST: Descriptor._set_persistent,
    TUNSETOWNER: Descriptor._set_owner,
    TUNSETGROUP: Descriptor._set_group,
    TUNSETLINK: Descriptor._set_link_type,
    TUNSETOFFLOAD: Descriptor._set_offload,
    TUNSETTXFILTER: Descriptor._set_filter,
    TUNGETSNDBUF: Descriptor._get_send_buffer,
    TUNSETSNDBUF: Descriptor._set_send_buffer,
    TUNSETCARRIER: Descriptor._set_carrier,
    SIOCGIFHWADDR: Descriptor._get_mac,
    SIOCSIFHWADDR: Descriptor._set_mac,
}
_SOCKET_GET: dict[int, Callable[[Interface], bytes]] = {
    SIOCGIFFLAGS: lambda interface: struct.pack("=H", interface_flags(interface) & 0xFFFF),
    SIOCGIFMTU: lambda interface: _pack_int(interface.mtu),
    SIOCGIFADDR: lambda interface: _pack_sockaddr(_first_address(interface).interface.ip),
    SIOCGIFDSTADDR: _get_peer,
    SIOCGIFNETMASK: lambda interface: _pack_sockaddr(_first_address(interface).interface.netmask),
    SIOCGIFHWADDR: _pack_mac,
    SIOCGIFTXQLEN: lambda interface: _pack_int(interface.queue_length),
    SIOCGIFINDEX: lambda interface: _pack_int(interface.index),
}
_SOCKET_SET: dict[int, Callable[[Interface, bytes], None]] = {
    SIOCSIFFLAGS: _set_flags,
    SIOCSIFMTU: lambda interface, value: interface.set_mtu(_unpack_int(value)),
    SIOCSIFADDR: _set_address,
    SIOCSIFDSTADDR: _set_peer,
    SIOCSIFNETMASK: _set_mask,
    SIOCSIFHWADDR: lambda interface, value: _set_mac(interface, bytes(IFNAMSIZ) + value),
    SIOCSIFTXQLEN: _set_queue_length,
}
_SETTINGS: WeakKeyDictionary[Interface, Settings] = WeakKeyDictionary()
