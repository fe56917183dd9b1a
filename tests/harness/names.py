"""A name server of the outside, whose answers a test decides on."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.harness.network import Namespace


class NameServer:
    """Listens on an address, which it adds to a namespace's loopback. It knows the IPv4 addresses in ``known``, and
    is silent on other names. ``asked`` is set when a question has come; ``askers`` are their senders' addresses."""

    def __init__(
        self, namespace: Namespace, known: dict[str, str] | None = None, *, address: str = "203.0.113.53"
    ) -> None:
        self.address = address
        self.known = dict(known or {})
        self.asked = threading.Event()
        self.askers: set[str] = set()
        self._namespace = namespace
        namespace.ip(f"address add {self.address}/32 dev lo")
        self._socket = namespace.socket(kind=socket.SOCK_DGRAM)
        self._socket.bind((self.address, 53))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # It wakes the thread, which a close would not, and then finds that there was no connection.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        self._namespace.ip(f"address delete {self.address}/32 dev lo")

    @property
    def resolv_conf(self) -> str:
        return f"nameserver {self.address}\n"

    def _serve(self) -> None:
        while True:
            data, asker = self._socket.recvfrom(4096)
            if not data:
                return
            query = dns.message.from_wire(data)
            self.askers.add(asker[0])
            self.asked.set()
            question = query.question[0]
            address = self.known.get(question.name.to_text(omit_final_dot=True))
            if address is None:
                continue
            response = dns.message.make_response(query)
            if question.rdtype == dns.rdatatype.A:
                response.answer.append(dns.rrset.from_text(question.name, 1, "IN", "A", address))
            self._socket.sendto(response.to_wire(), asker)
