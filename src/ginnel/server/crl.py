"""``crl.pem`` beside a server's state: the certificates that were taken back, for others that trust its authority."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from ginnel.errors import ConfigError
from ginnel.server.journal import tell
from ginnel.server.monitor import replace_file
from ginnel.server.store import CRL, Store

log = logging.getLogger(__name__)


class RevocationList:
    """Keeps the file current from now on: signed anew when users have changed, and each day. It stays when the server
    ends, as it is still true. Without the authority's key there is none."""

    def __init__(self, store: Store, directory: Path) -> None:
        self._store = store
        self._path = directory / CRL
        self._failed = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        written, until = -1, 0.0
        while True:
            try:
                version = await asyncio.to_thread(self._store.version)
                if version != written or loop.time() >= until:
                    text = await asyncio.to_thread(self._store.revocation_list)
                    await asyncio.to_thread(replace_file, self._path, text)
                    written, until = version, loop.time() + DAY
                    self._failed = False
            except (OSError, ConfigError) as error:
                if not self._failed:
                    tell("crl_failed", level=logging.WARNING, reason=f"{self._path}: {error}")
                self._failed = True
            except Exception:
                log.exception("the list of the revoked is not written; it is tried again")
            await asyncio.sleep(INTERVAL)


INTERVAL = 1.0
DAY = 86400.0
