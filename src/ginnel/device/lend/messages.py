"""rtnetlink messages: taken apart, and made."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ginnel.device.address import Address
from ginnel.device.interface import Interface
from ginnel.device.ioctls import has_carrier, interface_flags, link_type
from ginnel.errors import DeviceError

IPAddress = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Message:
    """A netlink message. ``body`` is what follows its header."""

    kind: int
    flags: int
    sequence: int
    body: bytes

    def pack(self, port: int) -> bytes:
        return _HEADER.pack(_HEADER.size + len(self.body), self.kind, self.flags, self.sequence, port) + self.body

    @property
    def is_dump(self) -> bool:
        return self.flags & NLM_F_DUMP == NLM_F_DUMP

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The fixed part of the body. DeviceError (EINVAL) where it is shorter."""
        if len(self.body) < layout.size:
            raise DeviceError(errno.EINVAL, "a netlink message is too short")
        return layout.unpack_from(self.body)

    def attributes(self, layout: struct.Struct) -> Attributes:
        """What follows the fixed part. DeviceError (EINVAL) where it is malformed."""
        return Attributes.parse(self.body[_align(layout.size) :])


@dataclass(frozen=True, slots=True)
class Attributes:
    """Attributes by their number; of several with one number, the last. Raises DeviceError (EINVAL)."""

    values: dict[int, bytes]

    @classmethod
    def parse(cls, data: bytes) -> Attributes:
        values = {}
        while len(data) >= 4:
            length, number = struct.unpack_from("=HH", data)
            if not 4 <= length <= len(data):
                raise DeviceError(errno.EINVAL, "a netlink attribute is longer than its message")
            values[number & _NUMBER] = data[4:length]
            data = data[_align(length) :]
        return cls(values)

    def number(self, number: int) -> int | None:
        value = self.values.get(number)
        if value is None:
            return None
        if len(value) < 4:
            raise DeviceError(errno.EINVAL, "a netlink attribute is too short")
        return int(struct.unpack_from("=I", value)[0])

    def text(self, number: int) -> str | None:
        value = self.values.get(number)
        return None if value is None else value.partition(b"\0")[0].decode("ascii", "replace")

    def address(self, number: int, family: int) -> IPAddress | None:
        value = self.values.get(number)
        if value is None:
            return None
        if len(value) != ADDRESS_BYTES[family]:
            raise DeviceError(errno.EINVAL, "a netlink address has the wrong length")
        return ipaddress.ip_address(value)


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """A route of any interface. ``interface`` is an index, ``kind`` RTN_UNICAST or its like, ``source`` the
    preferred one; metric 0 stands for the usual one."""

    destination: Network
    gateway: IPAddress | None = None
    interface: int | None = None
    metric: int = 0
    table: int = 254
    kind: int = 1
    protocol: int = 3
    source: IPAddress | None = None

    @classmethod
    def parse(cls, message: Message) -> RouteEntry:
        """DeviceError: EINVAL, EOPNOTSUPP for a family that is neither IPv4 nor IPv6."""
        family, length, _, _, table, protocol, _, kind, _ = message.unpack(ROUTE)
        attributes = message.attributes(ROUTE)
        if family not in ADDRESS_BYTES:
            raise DeviceError(errno.EOPNOTSUPP, "routes are IPv4 or IPv6")
        gateway = attributes.address(RTA_GATEWAY, family)
        metric = attributes.number(RTA_PRIORITY) or 0
        return cls(
            network(attributes.address(RTA_DST, family), length, family),
            # OpenVPN writes "no gateway" as zeros.
            None if gateway is None or gateway.is_unspecified else gateway,
            attributes.number(RTA_OIF) or None,
            0 if family == socket.AF_INET6 and metric == IPV6_METRIC else metric,
            attributes.number(RTA_TABLE) or table or 254,
            kind,
            protocol,
            attributes.address(RTA_PREFSRC, family),
        )


def parse_messages(data: bytes) -> Iterator[Message]:
    """The messages of a datagram, as far as they are whole. iproute2 fills up with zeros."""
    while len(data) >= _HEADER.size:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        yield Message(kind, flags, sequence, data[_HEADER.size : length])
        data = data[_align(length) :]


def acknowledge(request: Message, port: int, code: int = 0) -> Message:
    """An acknowledgement, or with an errno an error."""
    original = request.pack(port)
    flags = 0 if code else NLM_F_CAPPED
    body = struct.pack("=i", -code) + (original if code else original[: _HEADER.size])
    return Message(NLMSG_ERROR, flags, request.sequence, body)


def network(address: IPAddress | None, length: int, family: int) -> Network:
    """EINVAL where the length does not fit, or bits are set behind it."""
    packed = bytes(ADDRESS_BYTES[family]) if address is None else address.packed
    try:
        return ipaddress.ip_network((packed, length))
    except ValueError:
        raise DeviceError(errno.EINVAL, "no network with this prefix length") from None


def namespace_message() -> Message:
    """The number of a network namespace: it has none here."""
    body = GENERIC.pack(socket.AF_UNSPEC).ljust(_align(GENERIC.size), b"\0")
    return Message(RTM_NEWNSID, 0, 0, body + struct.pack("=HHi", 8, NETNSA_NSID, -1))


def link_message(interface: Interface, *, deleted: bool = False) -> Message:
    statistics = interface.statistics()
    attributes: list[list[Any]] = [
        ["IFLA_IFNAME", interface.name],
        ["IFLA_TXQLEN", interface.queue_length],
        ["IFLA_OPERSTATE", ("UNKNOWN" if has_carrier(interface) else "DOWN") if interface.up else "DOWN"],
        ["IFLA_LINKMODE", 0],
        ["IFLA_MTU", interface.mtu],
        ["IFLA_MIN_MTU", 68],
        ["IFLA_MAX_MTU", 65535 if interface.kind == "tun" else 65521],
        ["IFLA_GROUP", 0],
        ["IFLA_PROMISCUITY", 0],
        ["IFLA_NUM_TX_QUEUES", 1],
        ["IFLA_NUM_RX_QUEUES", 1],
        ["IFLA_CARRIER", int(has_carrier(interface))],
        ["IFLA_QDISC", "pfifo_fast"],
        ["IFLA_STATS64", {name: statistics[name] for name in _STATISTICS}],
        ["IFLA_LINKINFO", {"attrs": [["IFLA_INFO_KIND", "tun"]]}],
    ]
    if interface.mac:
        attributes += [["IFLA_ADDRESS", interface.mac.hex(":")], ["IFLA_BROADCAST", "ff:ff:ff:ff:ff:ff"]]
    message = ifinfmsg()
    message["ifi_type"] = link_type(interface)
    message["index"] = interface.index
    message["flags"] = interface_flags(interface)
    return _finish(message, RTM_DELLINK if deleted else RTM_NEWLINK, attributes)


def address_message(interface: Interface, address: Address, *, deleted: bool = False) -> Message:
    own = address.interface
    message = ifaddrmsg()
    message["family"] = socket.AF_INET if own.version == 4 else socket.AF_INET6
    message["prefixlen"] = own.network.prefixlen
    message["flags"] = _IFA_F_PERMANENT
    message["scope"] = _SCOPE_LINK if own.is_link_local else 0
    message["index"] = interface.index
    attributes: list[list[Any]] = [["IFA_ADDRESS", str(address.peer or own.ip)]]
    if own.version == 4 or address.peer is not None:
        attributes.append(["IFA_LOCAL", str(own.ip)])
    if own.version == 4:
        attributes.append(["IFA_LABEL", interface.name])
    attributes.append(["IFA_FLAGS", _IFA_F_PERMANENT])
    attributes.append(["IFA_CACHEINFO", {"ifa_preferred": _FOR_EVER, "ifa_valid": _FOR_EVER}])
    return _finish(message, RTM_DELADDR if deleted else RTM_NEWADDR, attributes)


def route_message(entry: RouteEntry, *, deleted: bool = False) -> Message:
    destination = entry.destination
    message = rtmsg()
    message["family"] = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    message["dst_len"] = destination.prefixlen
    message["table"] = min(entry.table, 252) if entry.table > 255 else entry.table
    message["proto"] = entry.protocol
    message["scope"] = _SCOPE_LINK if entry.gateway is None and destination.version == 4 else 0
    message["type"] = entry.kind
    attributes: list[list[Any]] = [["RTA_TABLE", entry.table]]
    if destination.prefixlen:
        attributes.append(["RTA_DST", str(destination.network_address)])
    if entry.metric or destination.version == 6:
        attributes.append(["RTA_PRIORITY", entry.metric or IPV6_METRIC])
    if entry.gateway is not None:
        attributes.append(["RTA_GATEWAY", str(entry.gateway)])
    if entry.interface is not None:
        attributes.append(["RTA_OIF", entry.interface])
    if entry.source is not None:
        attributes.append(["RTA_PREFSRC", str(entry.source)])
    return _finish(message, RTM_DELROUTE if deleted else RTM_NEWROUTE, attributes)


def _finish(message: Any, kind: int, attributes: list[list[Any]]) -> Message:
    message["attrs"] = attributes
    message.encode()
    return Message(kind, 0, 0, bytes(message.data)[_HEADER.size :])


def _align(length: int) -> int:
    return (length + 3) & ~3


NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_MIN_TYPE = 1, 2, 3, 16
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP, NLM_F_CAPPED = 0x1, 0x2, 0x4, 0x300, 0x100
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNSID, RTM_GETNSID = 88, 90
NETNSA_NSID, NETNSA_FD = 1, 3
GENERIC = struct.Struct("=B")
LINK, ADDRESS, ROUTE = struct.Struct("=BxHiII"), struct.Struct("=BBBBi"), struct.Struct("=8BI")
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_TXQLEN = 1, 3, 4, 10, 13
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 6, 7, 15
RTM_F_FIB_MATCH = 0x2000
IPV6_METRIC = 1024
"""The metric of an IPv6 route that was given none."""
ADDRESS_BYTES = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}

_HEADER = struct.Struct("=IHHII")
_NUMBER = 0x3FFF
_IFA_F_PERMANENT = 0x80
_SCOPE_LINK = 253
_FOR_EVER = 0xFFFFFFFF
_STATISTICS = tuple(f"{way}_{what}" for way in ("rx", "tx") for what in ("packets", "bytes", "dropped", "errors"))
