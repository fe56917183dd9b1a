"""A port of this host that leads to a client of the server."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Callable

from ginnel.gateways.clients import Slots
from ginnel.gateways.relay import Acceptor, Listener, reset
from ginnel.openvpn.strangers import origin
from ginnel.stack import Stack
from ginnel.stack.sockets import Flow

log = logging.getLogger(__name__)


class Publisher:
    """Joins each connection to a listener with a stream to a client, which may come and go and change its address.

    A connection that the client does not take is reset, and so is one of too many.
    """

    def __init__(
        self,
        stack: Stack,
        listener: Listener,
        find: Callable[[], str | None],
        port: int,
        *,
        limit: int = 2048,
        on_crowded: Callable[[str], None] = lambda place: None,
    ) -> None:
        """``find`` gives the client's inner address, None while there is none. ``limit``: connections at a time; one
        place (an IPv4 address, an IPv6 network of 64 bits) has a quarter of them at most. ``on_crowded`` is told of a
        place whose connection was one too many."""
        self._stack = stack
        self._find = find
        self._port = port
        self._slots = Slots(limit, limit)
        self._on_crowded = on_crowded
        self._acceptor = Acceptor(listener, self._serve, limit=limit)
        #: The streams that are open, with the client's inner address.
        self.flows: dict[Flow, str] = {}
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))

    async def aclose(self) -> None:
        """Stops listening. Streams that are joined already go on."""
        await self._acceptor.aclose()

    async def _serve(self, connection: socket.socket) -> None:
        host, place = self._find(), _place(connection)
        if host is None:
            reset(connection)
            return
        if not self._slots.take(place):
            self.counts["published_crowded"] += 1
            self._on_crowded(place)
            reset(connection)
            return
        flow = await self._join(host, connection)
        if flow is None:
            self._slots.free(place)
            return
        self.counts["published_connections"] += 1
        self.flows[flow] = host
        flow.ended.add_done_callback(lambda _: self._ended(flow, place))

    async def _join(self, host: str, connection: socket.socket) -> Flow | None:
        try:
            flow = await self._stack.connect_flow(host, self._port, timeout=CONNECT_SECONDS)
            if self._find() != host:
                self._stack.abort(flow)
                raise ConnectionAbortedError("the client is gone")
        except OSError as error:
            log.debug("published: cannot reach %s port %d: %s", host, self._port, error)
            reset(connection)
            return None
        self._stack.attach(flow, connection)
        return flow

    def _ended(self, flow: Flow, place: str) -> None:
        del self.flows[flow]
        self._slots.free(place)


def _place(connection: socket.socket) -> str:
    """OSError where the connection is gone already."""
    address = ipaddress.ip_address(connection.getpeername()[0].partition("%")[0])
    return origin(str(getattr(address, "ipv4_mapped", None) or address))


COUNTERS = ("published_connections", "published_crowded")
CONNECT_SECONDS = 15.0
