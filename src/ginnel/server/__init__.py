"""A VPN server that stock OpenVPN clients connect to, without root."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from ginnel.server.client_file import add_user
from ginnel.server.clients import Client
from ginnel.server.config import Listen, Publish, ServerConfig
from ginnel.server.directory import state_directory
from ginnel.server.running import opened, running
from ginnel.server.service import Server

__all__ = ["Client", "Listen", "Publish", "Server", "ServerConfig", "add_user", "serve"]


@contextlib.asynccontextmanager
async def serve(directory: str | Path | None = None, config: ServerConfig | None = None) -> AsyncIterator[Server]:
    """A server with the users and keys in ``directory``, the user's own state directory without one, as
    ``ginnel serve`` runs it: for itself there, and with an ear for ``ginnel status`` and ``kick``.

    >>> async with ginnel.serve("/var/lib/vpn") as server:
    ...     await server.stack.start_server(greet, port=80)

    Entering it raises ConfigError and DeviceError.
    """
    path = state_directory(None if directory is None else Path(directory))
    async with opened(path) as store, running(store, path, config or ServerConfig()) as server:
        yield server
