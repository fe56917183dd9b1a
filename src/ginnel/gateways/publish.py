"""A port of this host that leads to a client of the server."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from ginnel.gateways.relay import Acceptor, Listener, reset
from ginnel.stack import Stack

log = logging.getLogger(__name__)


class Publisher:
    """Joins each connection to a listener with a stream to a client, which may come and go and change its address.

    A connection that the client does not take is reset.
    """

    def __init__(self, stack: Stack, listener: Listener, find: Callable[[], str | None], port: int) -> None:
        """``find`` gives the client's inner address, None while there is none."""
        self._stack = stack
        self._find = find
        self._port = port
        self._acceptor = Acceptor(listener, self._serve, limit=LIMIT)
        self.connections = 0

    async def aclose(self) -> None:
        """Stops listening. Streams that are joined already go on."""
        await self._acceptor.aclose()

    async def _serve(self, connection: socket.socket) -> None:
        host = self._find()
        if host is None:
            reset(connection)
            return
        try:
            flow = await self._stack.connect_flow(host, self._port, timeout=CONNECT_SECONDS)
        except OSError as error:
            log.debug("published: cannot reach %s port %d: %s", host, self._port, error)
            reset(connection)
            return
        self.connections += 1
        self._stack.attach(flow, connection)


LIMIT = 256
"""Connections that wait for the client to answer."""
CONNECT_SECONDS = 15.0
