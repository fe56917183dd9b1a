"""The kernel's main table of routes: read, and changed in batches, for a server may push thousands.

The messages are those of rtnetlink(7). pyroute2's cost up to a quarter of a millisecond each.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from types import TracebackType
from typing import Self

from ginnel.device.kernel import MAIN_TABLE
from ginnel.network.plan import RouteChange


class Table:
    """The main table. `add` and `delete` give an error number for each route in its order, 0 for done."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(PATIENCE)
        self._sequence = 0
        self._indices: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def read(self) -> list[RouteChange]:
        """All of them, each of several ways by its first."""
        names = dict(socket.if_nameindex())
        return [
            route
            for family in (socket.AF_INET, socket.AF_INET6)
            for body in self._dump(family)
            if (route := _read(body, names)) is not None
        ]

    def add(self, routes: Sequence[RouteChange]) -> list[int]:
        """EEXIST for one whose destination and metric another has."""
        return self._exchange(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, 0, routes)

    def delete(self, routes: Sequence[RouteChange]) -> list[int]:
        """ESRCH for one that is not there."""
        return self._exchange(RTM_DELROUTE, 0, RT_SCOPE_NOWHERE, routes)

    def _dump(self, family: int) -> Iterator[bytes]:
        self._sequence += 1
        body = RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        self._socket.send(
            NLMSGHDR.pack(NLMSGHDR.size + len(body), RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0) + body
        )
        while True:
            for kind, answer in _messages(self._socket.recv(1 << 16)):
                if kind == RTM_NEWROUTE:
                    yield answer
                else:
                    # NLMSG_DONE, or an error where the kernel has no such family.
                    return

    def _exchange(self, kind: int, flags: int, scope: int, routes: Sequence[RouteChange]) -> list[int]:
        """The kernel takes a batch in its order, and answers each message; raises OSError where it does not."""
        results = []
        for start in range(0, len(routes), BATCH):
            waiting = dict[int, int]()
            found = [0] * len(routes[start : start + BATCH])
            messages = bytearray()
            for number, route in enumerate(routes[start : start + BATCH]):
                try:
                    body = self._body(route, scope)
                except OSError:
                    found[number] = errno.ENODEV
                    continue
                self._sequence += 1
                waiting[self._sequence] = number
                head = NLMSGHDR.pack(
                    NLMSGHDR.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, self._sequence, 0
                )
                messages += head + body
            if messages:
                self._socket.send(messages)
            while waiting:
                data = self._socket.recv(1 << 16)
                _, answer, _, sequence, _ = NLMSGHDR.unpack_from(data)
                if answer == NLMSG_ERROR and sequence in waiting:
                    (code,) = struct.unpack_from("=i", data, NLMSGHDR.size)
                    found[waiting.pop(sequence)] = -code
            results += found
        return results

    def _body(self, route: RouteChange, scope: int) -> bytes:
        """``struct rtmsg`` and its attributes. Raises OSError for a device that is not there."""
        network = route.destination
        family = socket.AF_INET6 if network.version == 6 else socket.AF_INET
        kind = RTN_UNICAST if route.device is not None else RTN_UNREACHABLE
        parts = [
            RTMSG.pack(family, network.prefixlen, 0, 0, MAIN_TABLE, RTPROT_STATIC, scope, kind, 0),
            _attribute(RTA_DST, network.network_address.packed),
        ]
        if route.device is not None:
            parts.append(_attribute(RTA_OIF, struct.pack("=I", self._index(route.device))))
        if route.gateway is not None:
            parts.append(_attribute(RTA_GATEWAY, route.gateway.packed))
        if route.metric:
            parts.append(_attribute(RTA_PRIORITY, struct.pack("=I", route.metric)))
        return b"".join(parts)

    def _index(self, device: str) -> int:
        index = self._indices.get(device)
        if index is None:
            index = self._indices[device] = socket.if_nametoindex(device)
        return index


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kinds and bodies."""
    at = 0
    while at + NLMSGHDR.size <= len(data):
        length, kind, *_ = NLMSGHDR.unpack_from(data, at)
        yield kind, data[at + NLMSGHDR.size : at + length]
        at += max(NLMSGHDR.size, _aligned(length))


def _read(body: bytes, names: dict[int, str]) -> RouteChange | None:
    """None for one of another table, and for what is no route but a note on one."""
    family, length, _, _, table, _, _, kind, flags = RTMSG.unpack_from(body)
    attributes = _attributes(body[RTMSG.size :])
    if _number(attributes.get(RTA_TABLE), table) != MAIN_TABLE or flags & RTM_F_CLONED:
        return None
    device, gateway = _number(attributes.get(RTA_OIF), 0), attributes.get(RTA_GATEWAY)
    if not device and (hops := attributes.get(RTA_MULTIPATH)):
        # struct rtnexthop: length, flags, hops, device; then its own attributes.
        size, _, _, device = RTNEXTHOP.unpack_from(hops)
        gateway = _attributes(hops[RTNEXTHOP.size : size]).get(RTA_GATEWAY)
    number = int.from_bytes(attributes.get(RTA_DST, b""))
    return RouteChange(
        IPv4Network((number, length)) if family == socket.AF_INET else IPv6Network((number, length)),
        None if kind in NOWHERE else names.get(device),
        ip_address(gateway) if gateway else None,
        _number(attributes.get(RTA_PRIORITY), 0),
    )


def _attributes(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + RTATTR.size <= len(data):
        length, kind = RTATTR.unpack_from(data, at)
        found[kind] = data[at + RTATTR.size : at + length]
        at += max(RTATTR.size, _aligned(length))
    return found


def _number(value: bytes | None, otherwise: int) -> int:
    return otherwise if value is None else int.from_bytes(value, sys.byteorder)


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    """A ``struct rtattr``; all values here are multiples of four bytes long."""
    return RTATTR.pack(RTATTR.size + len(value), kind) + value


# linux/netlink.h: length, type, flags, sequence, port.
NLMSGHDR = struct.Struct("=IHHII")
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
# linux/rtnetlink.h: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
RTMSG = struct.Struct("=BBBBBBBBI")
RTATTR = struct.Struct("=HH")
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_F_CLONED = 0x200
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH, RTA_TABLE = 1, 4, 5, 6, 9, 15
RTNEXTHOP = struct.Struct("=HBBi")
RTN_UNICAST, RTN_UNREACHABLE = 1, 7
RTPROT_STATIC = 4
RT_SCOPE_NOWHERE = 255
# RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT.
NOWHERE = (6, 7, 8)
# So many answers fit into what the kernel keeps for a socket.
BATCH = 64
PATIENCE = 10.0
