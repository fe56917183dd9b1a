"""Files beside the server's state that monitors read: OpenVPN's status file, and metrics for Prometheus' node
exporter (its textfile collector). They are replaced as a whole every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ginnel.release import VERSION
from ginnel.server.journal import tell
from ginnel.server.metrics import metrics
from ginnel.server.service import Server
from ginnel.server.status import describe, status_file

log = logging.getLogger(__name__)


class Monitor:
    """Writes the files from now on; ``aclose`` removes them, as nothing in them is true any longer."""

    def __init__(self, server: Server, directory: Path) -> None:
        self._server = server
        self._directory = directory
        self._failed = False
        self._writing: asyncio.Future[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._writing is not None:
            # A thread can't be cancelled, and would write what is removed here.
            await asyncio.gather(self._writing, return_exceptions=True)
        for name in (STATUS, METRICS):
            with contextlib.suppress(OSError):
                (self._directory / name).unlink()

    async def _run(self) -> None:
        while True:
            try:
                # In a thread: a disk that is slow holds nobody up.
                self._writing = asyncio.ensure_future(asyncio.to_thread(self._write, describe(self._server)))
                await asyncio.shield(self._writing)
            except Exception:
                log.exception("the files for monitors are not written; it is tried again")
            await asyncio.sleep(INTERVAL)

    def _write(self, description: Mapping[str, Any]) -> None:
        """A disk that is full is said once, and once more when it is not."""
        try:
            replace_file(self._directory / STATUS, status_file(description, VERSION))
            replace_file(self._directory / METRICS, metrics(description))
        except OSError as error:
            if not self._failed:
                tell("status_failed", level=logging.ERROR, reason=f"{self._directory}: {error.strerror}")
            self._failed = True
        else:
            if self._failed:
                tell("status_written", reason=f"{self._directory} can be written to again")
            self._failed = False


def replace_file(path: Path, text: str) -> None:
    """The file is there with all of the text, or as it was before. Raises OSError."""
    part = path.with_suffix(".part")
    try:
        part.write_text(text)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


STATUS = "openvpn-status.log"
METRICS = "metrics.prom"
INTERVAL = 5.0
