"""What is seen on the link between the two sides."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

from tests.harness.network import Network


class Wire:
    """What arrives at the server's side of the link: destinations and protocols of IP packets."""

    def __init__(self, network: Network) -> None:
        self._socket = network.server.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind(("eth0", 3))
        self._socket.setblocking(False)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def take(self) -> set[tuple[str, int]]:
        seen = set()
        for kind, frame in self._frames():
            if kind == 0x0800:
                seen.add((socket.inet_ntoa(frame[30:34]), frame[23]))
            elif not (frame[20] == 58 and frame[54] in range(133, 138)) and frame[20] != 0:
                seen.add((socket.inet_ntop(socket.AF_INET6, frame[38:54]), frame[20]))
        return seen

    def from_port(self, port: int) -> set[str]:
        """Where UDP datagrams over IPv4 from a port go."""
        return {
            socket.inet_ntoa(frame[30:34])
            for kind, frame in self._frames()
            if kind == 0x0800 and frame[23] == socket.IPPROTO_UDP and frame[34:36] == port.to_bytes(2)
        }

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """With the type of each."""
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (_, _, direction, *_) = self._socket.recvfrom(2048)
                (kind,) = struct.unpack_from("!H", frame, 12)
                # Our own answers are not the client's; neighbours look for each other.
                if direction != 4 and kind in (0x0800, 0x86DD):
                    yield kind, frame
