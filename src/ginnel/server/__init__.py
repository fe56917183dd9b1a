"""A VPN server that stock OpenVPN clients connect to, without root."""

from __future__ import annotations

from pathlib import Path

from ginnel.server.clients import Client
from ginnel.server.config import Listen, Publish, ServerConfig
from ginnel.server.directory import state_directory
from ginnel.server.service import Server
from ginnel.server.store import open_store

__all__ = ["Client", "Listen", "Publish", "Server", "ServerConfig", "serve"]


def serve(directory: str | Path | None = None, config: ServerConfig | None = None) -> Server:
    """A server with the users and keys in ``directory``, the user's own state directory without one.

    >>> async with ginnel.serve("/var/lib/vpn") as server:
    ...     await server.stack.start_server(greet, port=80)

    Raises ConfigError and DeviceError, as entering it does.
    """
    path = state_directory(None if directory is None else Path(directory))
    return Server(open_store(path), config)
