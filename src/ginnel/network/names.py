"""Asks name servers, over sockets that are connected to them already, for the addresses of a name."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence

import dns.exception
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.OPT
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA


async def ask(servers: Sequence[socket.socket], name: str, families: Sequence[int]) -> list[str]:
    """The addresses, those of the first family first. The first server that knows counts, for each family.

    ``servers`` are UDP sockets that don't block. Raises socket.gaierror where nobody knows an address.
    """
    question = _Question(name, families)
    loop = asyncio.get_running_loop()
    listeners = [loop.create_task(question.listen(server)) for server in servers]
    try:
        for patience in PATIENCE if servers else ():
            for server in servers:
                for wire in question.unanswered():
                    # One that can't be reached leaves it to the others.
                    with contextlib.suppress(OSError):
                        server.send(wire)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await question.is_answered.wait()
                break
    finally:
        for listener in listeners:
            listener.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)
    found = question.addresses()
    if found:
        return found
    if question.is_answered.is_set():
        raise socket.gaierror(socket.EAI_NONAME, "this machine's name servers know no address of it")
    raise socket.gaierror(socket.EAI_AGAIN, "this machine's name servers do not answer")


class _Question:
    def __init__(self, name: str, families: Sequence[int]) -> None:
        kinds = [dns.rdatatype.AAAA if family == socket.AF_INET6 else dns.rdatatype.A for family in families]
        try:
            self._queries = [dns.message.make_query(name, kind) for kind in kinds]
        except (dns.exception.DNSException, UnicodeError):
            raise socket.gaierror(socket.EAI_NONAME, "it is no name that can be asked for") from None
        self._answers: dict[int, list[str]] = {}
        self.is_answered = asyncio.Event()

    def unanswered(self) -> list[bytes]:
        return [query.to_wire() for query in self._queries if query.id not in self._answers]

    def addresses(self) -> list[str]:
        return [address for query in self._queries for address in self._answers.get(query.id, ())]

    async def listen(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self._take(await loop.sock_recv(server, MAX_ANSWER))
            except dns.exception.DNSException:
                continue
            except OSError:
                # Nobody listens there.
                return

    def _take(self, data: bytes) -> None:
        response = dns.message.from_wire(data, ignore_trailing=True)
        if not isinstance(response, dns.message.QueryMessage):
            return
        for query in self._queries:
            # What fails here may be known elsewhere.
            if query.is_response(response) and response.rcode() in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                found = response.resolve_chaining().answer if response.rcode() == dns.rcode.NOERROR else None
                self._answers.setdefault(query.id, [record.address for record in found or ()])
        if len(self._answers) == len(self._queries):
            self.is_answered.set()


# Seconds until a question is asked again, and at last until nobody is waited for.
PATIENCE = (1.0, 2.0, 2.0)
MAX_ANSWER = 4096
