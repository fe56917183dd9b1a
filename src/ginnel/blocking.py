"""A connection for programs without asyncio: it runs on a thread of its own.

>>> with ginnel.blocking.connect("office.ovpn") as vpn:
...     page = requests.get("https://wiki.office/", proxies={"https": vpn.start_http()})
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import ginnel.vpn
from ginnel.openvpn.aio import Ask
from ginnel.openvpn.config import ClientConfig
from ginnel.openvpn.events import Prompt
from ginnel.vpn import Info, State

T = TypeVar("T")


def connect(
    config: str | os.PathLike[str] | ClientConfig,
    *,
    auth_user_pass: tuple[str, str] | None = None,
    ask: Callable[[Prompt], str | None] | None = None,
    timeout: float | None = 30.0,
    budget: int = 64 << 20,
    capture: str | os.PathLike[str] | None = None,
) -> Vpn:
    """A connection that is up, until it is closed; as a context manager until the block ends.

    All is as with `ginnel.connect`, but that ``ask`` is an ordinary function, which is called on another thread.
    Raises ConfigError, UnreachableError, AuthError or RemoteProtocolError.
    """
    asked = None if ask is None else _elsewhere(ask)
    return Vpn(
        ginnel.vpn.connect(
            config, auth_user_pass=auth_user_pass, ask=asked, timeout=timeout, budget=budget, capture=capture
        )
    )


class Vpn:
    """A connection: see `connect`. Its methods may be called from any thread."""

    def __init__(self, vpn: ginnel.vpn.Vpn) -> None:
        self._vpn = vpn
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        # Who forgets to close it can end the program nevertheless.
        self._thread = threading.Thread(target=self._run, name="ginnel", daemon=True)
        self._thread.start()
        try:
            self._wait(vpn.__aenter__())
        except BaseException:
            self.close()
            raise

    @property
    def state(self) -> State:
        return self._vpn.state

    @property
    def info(self) -> Info:
        """What is known of the tunnel since it was last up."""
        return self._vpn.info

    def start_http(self, host: str = "127.0.0.1", port: int = 0, *, login: tuple[str, str] | None = None) -> str:
        """Opens an HTTP proxy into the tunnel, until the end. Returns its URL, with the login in it that it asks for.

        See `ginnel.vpn.Vpn.start_http`.
        """
        return self._wait(self._vpn.start_http(host, port, login=login)).url

    def start_socks(self, host: str = "127.0.0.1", port: int = 0, *, login: tuple[str, str] | None = None) -> str:
        """The same as a SOCKS5 proxy."""
        return self._wait(self._vpn.start_socks(host, port, login=login)).url

    def create_connection(self, address: tuple[str, int], timeout: float | None = None) -> socket.socket:
        """A TCP connection through the tunnel, as `socket.create_connection` would give: for what takes a socket.

        ``timeout`` is in seconds, for the connection and, as there, for each operation later. The socket is one of a
        pair in this machine: it does not know the addresses inside, and a connection that was reset just ends.
        Raises what `ginnel.vpn.Vpn.open_connection` does.
        """
        return self._wait(self._connected(address, timeout))

    def close(self) -> None:
        """Ends the connection, as `ginnel.vpn.Vpn.aclose` does, and its thread. Idempotent."""
        if self._thread.is_alive():
            self._wait(self._vpn.aclose())
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._vpn)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._ended.wait())

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What the other thread makes of it; SIGINT ends it there as well."""
        if not self._thread.is_alive():
            coroutine.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "this connection is closed")
        done = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return done.result()
        except BaseException:
            done.cancel()
            raise

    async def _connected(self, address: tuple[str, int], timeout: float | None) -> socket.socket:
        host, port = address
        stack = self._vpn.stack
        flow = await stack.connect_flow(host, port, timeout=timeout)
        ours, theirs = socket.socketpair()
        try:
            stack.attach(flow, theirs)
        except BaseException:
            ours.close()
            raise
        ours.settimeout(timeout)
        return ours


def _elsewhere(ask: Callable[[Prompt], str | None]) -> Ask:
    async def asked(prompt: Prompt) -> str | None:
        return await asyncio.to_thread(ask, prompt)

    return asked
