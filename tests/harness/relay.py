"""A relay on the way to the server: it holds a handshake at any point, or forgets as routers do."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Self

from tests.harness.network import SERVER, Network


class Relay:
    """Listens on ``PORT`` of the server's address. It lets ``count`` datagrams of the client pass to the
    server, with what the server answers; the next one sets ``held``, and from there on nothing passes."""

    PORT = 1300

    def __init__(self, network: Network, count: int) -> None:
        self.held = threading.Event()
        self._left = count
        self._front = network.server.socket(kind=socket.SOCK_DGRAM)
        self._network = network
        self._back = self._connected()
        self._front.bind((SERVER, self.PORT))
        self._answers = self._front
        self._others: list[socket.socket] = []
        self._forgetting = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        for sock in (self._front, self._back, *self._others):
            sock.close()

    def forget(self) -> None:
        """From the next packet on the server sees the client at another port, and the old one leads nowhere."""
        self._forgetting.set()

    def answer_from(self, address: str) -> None:
        """From now on the client is answered from here, and heard here, too, on the same port."""
        other = self._network.server.socket(kind=socket.SOCK_DGRAM)
        other.bind((address, self.PORT))
        self._others.append(other)
        self._answers = other

    def _connected(self) -> socket.socket:
        back = self._network.server.socket(kind=socket.SOCK_DGRAM)
        back.connect((SERVER, 1194))
        return back

    def _run(self) -> None:
        client = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._front, selectors.EVENT_READ)
            selector.register(self._back, selectors.EVENT_READ)
            while not self._ending.is_set():
                if self._forgetting.is_set():
                    self._forgetting.clear()
                    selector.unregister(self._back)
                    self._back.close()
                    self._back = self._connected()
                    selector.register(self._back, selectors.EVENT_READ)
                for other in self._others:
                    if other not in selector.get_map():
                        selector.register(other, selectors.EVENT_READ)
                for key, _ in selector.select(0.1):
                    # A server that is gone answers with a refusal, which is none of our business.
                    with contextlib.suppress(ConnectionRefusedError):
                        if key.fileobj is self._back:
                            data = self._back.recv(1 << 16)
                            if client is not None and not self.held.is_set():
                                self._answers.sendto(data, client)
                        else:
                            assert isinstance(key.fileobj, socket.socket)
                            data, client = key.fileobj.recvfrom(1 << 16)
                            self._forward(data)

    def _forward(self, data: bytes) -> None:
        if self._left:
            self._left -= 1
            self._back.send(data)
        else:
            self.held.set()
