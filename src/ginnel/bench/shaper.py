"""``python -m ginnel.bench.shaper FROM TO``: a slow, long and lossy way to a UDP server, for one client.

FROM and TO are ADDRESS:PORT. Each way takes `DELAY`, loses `LOSS` of the datagrams at random (always the same
ones), and carries `RATE`; what would wait longer than `PATIENCE` is dropped. For kernels without netem.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import sys
import time
from collections import deque


class Way:
    """One direction: what comes from a socket leaves through another later."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._free_at = 0.0
        self.waiting: deque[tuple[float, bytes]] = deque()

    def take(self, datagram: bytes, now: float) -> None:
        leaves = max(now, self._free_at) + len(datagram) * 8 / RATE
        if self._random.random() >= LOSS and leaves - now <= PATIENCE:
            self._free_at = leaves
            self.waiting.append((leaves + DELAY, datagram))

    def due(self, now: float) -> list[bytes]:
        datagrams = []
        while self.waiting and self.waiting[0][0] <= now:
            datagrams.append(self.waiting.popleft()[1])
        return datagrams


def main(near: tuple[str, int], far: tuple[str, int]) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outer,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inner,
    ):
        outer.bind(near)
        inner.connect(far)
        for each in (outer, inner):
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        print("ready", flush=True)
        client = near
        there, back = Way(1), Way(2)
        while True:
            heads = [way.waiting[0][0] for way in (there, back) if way.waiting]
            timeout = max(0.0, min(heads) - time.monotonic()) if heads else None
            select.select([outer, inner], [], [], timeout)
            now = time.monotonic()
            for _ in range(BATCH):
                try:
                    datagram, client = outer.recvfrom(1 << 16)
                except BlockingIOError:
                    break
                there.take(datagram, now)
            for _ in range(BATCH):
                try:
                    back.take(inner.recv(1 << 16), now)
                except (BlockingIOError, ConnectionRefusedError):
                    break
            # What the system has no room for is lost, as on any way.
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                for datagram in there.due(now):
                    inner.send(datagram)
            with contextlib.suppress(BlockingIOError):
                for datagram in back.due(now):
                    outer.sendto(datagram, client)


DELAY = 0.025
LOSS = 0.01
RATE = 100e6
PATIENCE = 0.1
BATCH = 64

if __name__ == "__main__":
    places = [place.rpartition(":") for place in sys.argv[1:3]]
    main(*((address, int(port)) for address, _, port in places))
