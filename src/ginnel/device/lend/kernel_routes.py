"""What the kernel says of its own links, addresses and routes. Nothing is ever changed there."""

from __future__ import annotations

import errno
import os
import socket
import struct

from ginnel.device.lend.messages import (
    ADDRESS_BYTES,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    ROUTE,
    RTA_DST,
    RTM_F_FIB_MATCH,
    RTM_GETROUTE,
    IPAddress,
    Message,
    RouteEntry,
    parse_messages,
)
from ginnel.errors import DeviceError


class KernelRoutes:
    """A netlink socket of our own."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        # The kernel answers while the request is being sent: there is nothing to wait for.
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """All there is of a kind, without the end mark. DeviceError with the kernel's errno."""
        return self._ask(kind, NLM_F_DUMP, body)

    def get(self, kind: int, flags: int, body: bytes) -> list[Message]:
        """One thing. DeviceError with the kernel's errno."""
        return self._ask(kind, flags & ~NLM_F_DUMP, body)

    def find_route(self, destination: IPAddress) -> RouteEntry | None:
        """The entry of the routing table by which the kernel reaches an address."""
        family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
        fixed = ROUTE.pack(family, ADDRESS_BYTES[family] * 8, 0, 0, 0, 0, 0, 0, RTM_F_FIB_MATCH)
        attribute = struct.pack("=HH", 4 + len(destination.packed), RTA_DST) + destination.packed
        try:
            (message,) = self.get(RTM_GETROUTE, 0, fixed + attribute)
            return RouteEntry.parse(message)
        except (DeviceError, ValueError):
            return None

    def _ask(self, kind: int, flags: int, body: bytes) -> list[Message]:
        self._sequence += 1
        request = Message(kind, flags | NLM_F_REQUEST, self._sequence, body)
        try:
            self._socket.send(request.pack(0))
            return self._collect(is_dump=bool(flags & NLM_F_DUMP))
        except OSError as error:
            if isinstance(error, DeviceError):
                raise
            raise DeviceError(error.errno or errno.EIO, "the kernel's network state") from None

    def _collect(self, *, is_dump: bool) -> list[Message]:
        found: list[Message] = []
        while True:
            for message in parse_messages(self._socket.recv(1 << 17)):
                if message.sequence != self._sequence:
                    continue
                if message.kind == NLMSG_DONE:
                    return found
                if message.kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", message.body)[0]
                    if code:
                        raise DeviceError(code, f"the kernel: {os.strerror(code)}")
                    return found
                found.append(message)
            if found and not is_dump:
                return found
