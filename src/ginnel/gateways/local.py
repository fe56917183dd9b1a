"""A proxy that a program opens into its own tunnel, for libraries and other programs that take one."""

from __future__ import annotations

import secrets
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from ginnel.gateways.http_proxy import HttpProxy
from ginnel.gateways.relay import Address, Listener
from ginnel.gateways.socks5 import Login, Socks5Gateway
from ginnel.stack import Stack


class Proxy:
    """Leads into the tunnel from a port of this machine's. An asynchronous context manager that closes it.

    ``host`` and ``port`` are where it listens, ``username`` and ``password`` what it asks for, and ``url`` is all of
    that as ``http_proxy`` and its kin take it: ``http://…`` or ``socks5h://…``, so that names are resolved inside.
    """

    def __init__(
        self,
        scheme: Literal["http", "socks5h"],
        stack: Stack,
        host: str,
        port: int,
        login: tuple[str, str] | None,
    ) -> None:
        """Without a ``login`` one is made up: every user of the machine could come in without.

        Raises ConfigError for what is no address, DeviceError (EADDRINUSE, …) where the system lets nobody listen.
        """
        listener = Listener(Address.parse(f"[{host}]:{port}"))
        self.host, self.port = listener.address.host, listener.address.port
        self.username, self.password = login or ("ginnel", secrets.token_urlsafe(16))
        self._scheme = scheme
        self._address = listener.address
        gateway = HttpProxy if scheme == "http" else Socks5Gateway
        self._gateway = gateway(stack, listener, Login(self.username, self.password))
        self.is_open = True

    @property
    def url(self) -> str:
        return f"{self._scheme}://{quote(self.username, '')}:{quote(self.password, '')}@{self._address}"

    async def aclose(self) -> None:
        """Stops listening. Connections that were made go on. Idempotent."""
        self.is_open = False
        await self._gateway.aclose()

    def __repr__(self) -> str:
        return f"<{self._scheme} proxy on {self._address}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
