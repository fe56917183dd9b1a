"""A forward: a local port that leads to one host and port inside the tunnel."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Self

from ginnel.errors import ConfigError, GinnelError
from ginnel.gateways.relay import Acceptor, Address, Failures, Listener, reset
from ginnel.stack import Stack


@dataclass(frozen=True, slots=True)
class Target:
    """Where a forward listens, and the host and port inside the tunnel that it leads to."""

    address: Address
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``[ADDR:]PORT:HOST:PORT``; IPv6 addresses stand in brackets. Raises ConfigError."""
        parts = _split(text)
        if len(parts) not in (3, 4) or not all(parts):
            raise ConfigError(f"'{text}' is no forward", instead="write [ADDR:]PORT:HOST:PORT")
        *listen, host, port = parts
        if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ConfigError(f"'{port}' in '{text}' is no port", instead="write [ADDR:]PORT:HOST:PORT")
        return cls(Address.parse(":".join(listen)), host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"{self.address} -> {self.host}:{self.port}"


class Forward:
    """Joins each connection to a local port with a stream to its target.

    A connection whose target cannot be reached is reset.
    """

    def __init__(self, stack: Stack, listener: Listener, target: Target) -> None:
        self._stack = stack
        self._target = target
        self._failures = Failures("forward")
        self._acceptor = Acceptor(listener, self._serve)

    async def aclose(self) -> None:
        """Stops listening. Streams that are joined already go on."""
        await self._acceptor.aclose()

    async def _serve(self, client: socket.socket) -> None:
        try:
            flow = await self._stack.connect_flow(self._target.host, self._target.port)
        except (OSError, TimeoutError, GinnelError) as error:
            self._failures.tell(self._target.host, self._target.port, error)
            reset(client)
            return
        self._stack.attach(flow, client)


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == ":" and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]
