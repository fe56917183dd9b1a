"""A server with its directory: the store is open while it runs, and no other server has the directory meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from ginnel.openvpn.tls_crypt_v2 import ServerKey, TlsCryptV2Server
from ginnel.openvpn.wrap import StaticKey, TlsAuth, TlsCrypt
from ginnel.server.config import ServerConfig
from ginnel.server.control import Control
from ginnel.server.directory import claimed, scratch
from ginnel.server.easyrsa import Imported
from ginnel.server.inner import Inner
from ginnel.server.service import Server
from ginnel.server.store import Store, open_store


@contextlib.asynccontextmanager
async def opened(directory: Path, imported: Imported | None = None) -> AsyncIterator[Store]:
    """For one server. Raises ConfigError as `open_store` does, and where another server has the directory."""
    with contextlib.closing(open_store(directory, imported)) as store, claimed(directory):
        store.prepare()
        try:
            yield store
        finally:
            # Before another server may have the directory; it waits for what is to be written.
            await asyncio.to_thread(store.close)


@contextlib.asynccontextmanager
async def running(
    store: Store, directory: Path, config: ServerConfig, inner: Inner | None = None
) -> AsyncIterator[Server]:
    """Users who were imported connect with the static key that they have. `ginnel.server.control` answers in
    ``directory``."""
    wrap = config.wrap or _imported_wrap(store)
    with scratch(directory) as folder:
        async with Server(store, replace(config, wrap=wrap), inner, scratch=folder) as server:
            control = await Control.open(server, directory)
            try:
                yield server
            finally:
                await control.aclose()


def _imported_wrap(store: Store) -> TlsCryptV2Server | None:
    found = store.imported_wrap()
    if found is None:
        return None
    static = StaticKey.parse(found[1])
    fallback = TlsCrypt(static) if found[0] == "tls-crypt" else TlsAuth(static, "SHA1", 0)
    return TlsCryptV2Server(ServerKey.parse(store.identity.tls_crypt_v2), fallback=fallback)
