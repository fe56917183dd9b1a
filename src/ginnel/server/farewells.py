"""The hook for clients that are gone: each has its call, a few run at a time, and none is forgotten at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from ginnel.server.clients import Client
from ginnel.server.journal import Rarely

log = logging.getLogger(__name__)


class Farewells:
    """In the order in which they left. Past `MOST_WAITING` those who leave are not told of, and counted."""

    def __init__(self, hook: Callable[[Client, str], Awaitable[None]]) -> None:
        self._hook = hook
        self._waiting: deque[tuple[Client, str]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._lost = Rarely("hook_crowded")
        self.lost = 0

    def add(self, client: Client, reason: str) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self.lost += 1
            self._lost.tell(name=client.name, reason=CROWDED)
            return
        self._waiting.append((client, reason))
        if len(self._running) < MOST_RUNNING:
            task = asyncio.get_running_loop().create_task(self._run())
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def aclose(self, timeout: float) -> None:
        """Waits so many seconds at most until all have run; the rest is given up, and told."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._running:
                    await asyncio.wait(self._running)
        unfinished = len(self._waiting) + len(self._running)
        if unfinished:
            self.lost += unfinished
            self._waiting.clear()
            log.warning("the hook for clients that are gone has not ended for %d of them in %g s", unfinished, timeout)
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self) -> None:
        while self._waiting:
            client, reason = self._waiting.popleft()
            try:
                await self._hook(client, reason)
            except Exception:
                log.exception("the hook for clients that are gone failed")


MOST_RUNNING = 8
MOST_WAITING = 1000
CROWDED = "more clients leave than the hook 'disconnected' has time for; it is not run for all"
