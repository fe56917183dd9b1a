"""Datagrams over SOCKS5: the relay of one UDP ASSOCIATE (RFC 1928, 7)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket

from ginnel.socks5 import datagram_header, parse_datagram
from ginnel.stack.sockets import Address, DatagramSocket

log = logging.getLogger(__name__)


class Relay:
    """A UDP socket of this host beside the client's connection, and a UDP port in the tunnel.

    Datagrams are taken from the client's own address alone: from the port that it has named, or else the one that its
    first datagram comes from. Fragments are dropped, as RFC 1928 allows.
    """

    def __init__(self, client: socket.socket, port: int, tunnel: DatagramSocket) -> None:
        """``client``: the TCP connection of the client; ``port``: that it will send from, 0 when it did not say.

        OSError where this host refuses the socket.
        """
        self._host = client.getpeername()[0]
        self._port = port
        self._tunnel = tunnel
        self._socket = socket.socket(client.family, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.bind((client.getsockname()[0], 0))
        except BaseException:
            self._socket.close()
            raise
        self._peer: tuple[str, int] | None = None

    @property
    def address(self) -> Address:
        """Where the client is to send to."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    async def run(self) -> None:
        """Carries datagrams both ways, until it is cancelled. OSError when either side ends."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._outwards()), loop.create_task(self._inwards())]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        self._socket.close()
        self._tunnel.close()

    async def _outwards(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                message, sender = await loop.sock_recvfrom(self._socket, LONGEST)
            except ConnectionRefusedError:
                continue  # about an earlier answer, from a client that was not there
            if sender[0] != self._host or self._port not in (0, sender[1]):
                continue
            request = parse_datagram(message)
            if request is None:
                continue
            self._port, self._peer = sender[1], sender
            try:
                await self._tunnel.sendto(request.payload, (request.host, request.port))
            except OSError as error:
                if not isinstance(error, socket.gaierror) and error.errno != errno.ENETUNREACH:
                    raise
                log.debug("SOCKS: datagram dropped: %s", error)

    async def _inwards(self) -> None:
        while True:
            payload, (host, port) = await self._tunnel.recvfrom()
            if self._peer is not None:
                # What the host has no room for is lost, as datagrams are.
                with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                    self._socket.sendto(datagram_header(host, port) + payload, self._peer)


LONGEST = 65_535
