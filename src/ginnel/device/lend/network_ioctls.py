"""The ioctls about the machine's network: which may reach the kernel, and what older programs ask for by them.

Before netlink a route was set by SIOCADDRT, an IPv6 address by SIOCSIFADDR on a socket of its family; net-tools does
so to this day. What a `struct ifreq` says is `ginnel.device.ioctls`'s.

Sources: ``linux/sockios.h``, ``linux/wireless.h``, ``linux/route.h``, ``linux/ipv6_route.h``, ``linux/ipv6.h``,
``net/ipv4/fib_frontend.c``, ``net/core/dev_ioctl.c``.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable

from ginnel.device.lend.messages import IPV6_METRIC, RouteEntry, network
from ginnel.errors import DeviceError


def is_about_the_network(request: int) -> bool:
    return request & 0xFF00 in (SIOC_TYPE, WIRELESS_TYPE) and request not in _OF_THE_SOCKET


def only_reads(request: int) -> bool:
    """Whether the kernel changes nothing of the machine's network for it. Of the unknown nobody can say so."""
    if request & 0xFF00 == WIRELESS_TYPE:
        # An odd number gets, an even one sets; the private ones do as they like.
        return bool(request & 1) and request < _WIRELESS_PRIVATE
    return request in _READING


def unpack_route(data: bytes, text_at: Callable[[int], bytes], index_of: Callable[[str], int]) -> RouteEntry:
    """A route of IPv4 (struct rtentry). ``text_at`` reads a string of the caller's, ``index_of`` knows interfaces.

    Raises DeviceError: EAFNOSUPPORT, EINVAL; and what the two raise.
    """
    _, destination, gateway, mask, flags, _, _, _, metric, name, *_ = RTENTRY.unpack(data)
    family, address = _SOCKADDR.unpack(destination)
    if family != socket.AF_INET:
        raise DeviceError(errno.EAFNOSUPPORT, "the route's destination is not of IPv4")
    length = 32 if flags & _RTF_HOST else _prefix_length(mask)
    family, way = _SOCKADDR.unpack(gateway)
    has_gateway = family == socket.AF_INET and any(way)
    if flags & _RTF_GATEWAY and not has_gateway:
        raise DeviceError(errno.EINVAL, "a route by a gateway that has none")
    # "tun0:1" is tun0 by another of its addresses.
    device = text_at(name).decode("ascii", "replace").partition(":")[0] if name else None
    return RouteEntry(
        network(ipaddress.ip_address(address), length, socket.AF_INET),
        ipaddress.ip_address(way) if has_gateway else None,
        index_of(device) if device is not None else None,
        max(metric - 1, 0),
        kind=_UNREACHABLE if flags & _RTF_REJECT else _UNICAST,
    )


def unpack_route6(data: bytes) -> RouteEntry:
    """A route of IPv6 (struct in6_rtmsg). DeviceError (EINVAL) for what is none."""
    destination, gateway, length, metric, _, flags, index = IN6_RTMSG.unpack(data)
    return RouteEntry(
        network(ipaddress.ip_address(destination), length, socket.AF_INET6),
        ipaddress.ip_address(gateway) if flags & _RTF_GATEWAY else None,
        index or None,
        0 if metric == IPV6_METRIC else metric,
        kind=_UNREACHABLE if flags & _RTF_REJECT else _UNICAST,
    )


def unpack_address6(data: bytes) -> tuple[int, ipaddress.IPv6Interface]:
    """An interface's index, and the address it is to have (struct in6_ifreq). DeviceError (EINVAL)."""
    address, length, index = IN6_IFREQ.unpack(data)
    try:
        return index, ipaddress.IPv6Interface((address, length))
    except ValueError:
        raise DeviceError(errno.EINVAL, f"no address has a prefix of {length} bits") from None


def _prefix_length(mask: bytes) -> int:
    family, address = _SOCKADDR.unpack(mask)
    bits = int.from_bytes(address)
    if family != socket.AF_INET and (bits or family):
        raise DeviceError(errno.EAFNOSUPPORT, "the route's mask is not of IPv4")
    length = bits.bit_count()
    if bits != (1 << 32) - (1 << 32 - length):
        raise DeviceError(errno.EINVAL, f"{ipaddress.ip_address(address)} is no netmask")
    return length


SIOC_TYPE, WIRELESS_TYPE = 0x8900, 0x8B00
SIOCADDRT, SIOCDELRT, SIOCDIFADDR = 0x890B, 0x890C, 0x8936
# In this machine's own layout, which those of C are in.
RTENTRY = struct.Struct("@L16s16s16sHhLPhPLLH0L")
IN6_RTMSG = struct.Struct("@16s16x16s4xH2xILIi0L")
IN6_IFREQ = struct.Struct("=16sIi")

# A socket's own: owner, mark, time stamps (in two layouts), queue, namespace.
_OF_THE_SOCKET = frozenset({*range(0x8901, 0x8908), 0x80108906, 0x80108907, 0x894B, 0x894C})
# Not SIOCGIFBR, SIOCGIFVLAN, SIOCETHTOOL and SIOCWANDEV, which set as well, nor any that is a driver's own.
_READING = frozenset(
    {
        # SIOCGIF*: NAME, CONF, FLAGS, ADDR, DSTADDR, BRDADDR, NETMASK, METRIC, MEM, MTU, ENCAP, HWADDR, SLAVE, INDEX,
        # PFLAGS, COUNT, TXQLEN, MAP.
        *(0x8910, 0x8912, 0x8913, 0x8915, 0x8917, 0x8919, 0x891B, 0x891D, 0x891F, 0x8921, 0x8925, 0x8927, 0x8929),
        *(0x8933, 0x8935, 0x8938, 0x8942, 0x8970),
        # SIOCGMIIPHY, SIOCGMIIREG, SIOCGARP, SIOCGRARP, SIOCBONDSLAVEINFOQUERY, SIOCBONDINFOQUERY, SIOCGHWTSTAMP.
        *(0x8947, 0x8948, 0x8954, 0x8961, 0x8993, 0x8994, 0x89B1),
    }
)
_SOCKADDR = struct.Struct("=H2x4s8x")
_RTF_GATEWAY, _RTF_HOST, _RTF_REJECT = 0x2, 0x4, 0x200
_UNICAST, _UNREACHABLE = 1, 7
_WIRELESS_PRIVATE = 0x8BE0
