"""Streams that run both ways for as long as they are wanted, and know when a byte is missing or wrong."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from tests.harness.network import Namespace
from tests.harness.office import body
from tests.harness.socks import close, open_connection


class EchoStream:
    """Sends without an end to the echo service, at most ``rate`` bytes a second, and compares what comes back.

    ``sent`` and ``received`` count bytes.
    """

    def __init__(self, rate: int = 2_000_000) -> None:
        self._rate = rate
        self.sent = 0
        self.received = 0

    async def run(self, namespace: Namespace, socks: str, is_enough: Callable[[], bool]) -> None:
        """AssertionError if anything is lost, changed, or stands still for ten seconds."""
        reader, writer = await open_connection(namespace, socks, "echo.office", 7)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(writer, is_enough))
                tasks.create_task(self._receive(reader))
        finally:
            await close(writer)
        assert self.received == self.sent

    async def _send(self, writer: asyncio.StreamWriter, is_enough: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while not is_enough():
            if self.sent > (loop.time() - begin) * self._rate:
                await asyncio.sleep(0.01)
                continue
            start = self.sent % _PERIOD
            piece = body(_PERIOD)[start : start + _PIECE]
            writer.write(piece)
            self.sent += len(piece)
            await asyncio.wait_for(writer.drain(), 10)
        writer.write_eof()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        while data := await asyncio.wait_for(reader.read(_PIECE), 10):
            start = self.received % _PERIOD
            wanted = _repeated()[start : start + len(data)]
            assert data == wanted, f"changed after byte {self.received}"
            self.received += len(data)


@functools.cache
def _repeated() -> bytes:
    return body(_PERIOD) + body(_PERIOD)[:_PIECE]


_PERIOD = 1 << 20
_PIECE = 1 << 14
