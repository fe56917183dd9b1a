"""Names, asked over sockets that are connected to name servers already."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import cast

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from ginnel.network.names import ask
from ginnel.transports.dial import by_turns

Answer = Callable[[dns.message.Message], list[bytes]]
BOTH = (socket.AF_INET, socket.AF_INET6)


class Server(asyncio.DatagramProtocol):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        for wire in self._answer(dns.message.from_wire(data)):
            self._transport.sendto(wire, address)


@contextlib.asynccontextmanager
async def servers(*answers: Answer) -> AsyncIterator[list[socket.socket]]:
    """Sockets that are connected to servers, each with its way to answer."""
    loop = asyncio.get_running_loop()
    sockets, transports = [], []
    for answer in answers:
        transport, _ = await loop.create_datagram_endpoint(lambda made=answer: Server(made), ("127.0.0.1", 0))
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(transport.get_extra_info("sockname"))
        sockets.append(sock)
        transports.append(transport)
    try:
        yield sockets
    finally:
        for end in (*sockets, *transports):
            end.close()


def respond(query: dns.message.Message, *records: str, code: dns.rcode.Rcode = dns.rcode.NOERROR) -> bytes:
    response = dns.message.make_response(query)
    response.set_rcode(code)
    for record in records:
        name, kind, value = record.split()
        response.answer.append(dns.rrset.from_text(name, 60, "IN", kind, value))
    return response.to_wire()


def known(query: dns.message.Message) -> list[bytes]:
    kind = dns.rdatatype.to_text(query.question[0].rdtype)
    value = {"A": "192.0.2.7", "AAAA": "2001:db8::7"}[kind]
    return [respond(query, "vpn.example. CNAME host.example.", f"host.example. {kind} {value}")]


def forged(query: dns.message.Message) -> list[bytes]:
    other = dns.message.make_query("other.example", query.question[0].rdtype, id=query.id)
    wrong_id = dns.message.make_query("vpn.example", query.question[0].rdtype, id=query.id ^ 1)
    return [
        b"",
        b"\0" * 12,
        query.to_wire(),
        respond(other, "other.example. A 203.0.113.66"),
        respond(wrong_id, "vpn.example. A 203.0.113.66"),
        *known(query),
    ]


def failing(query: dns.message.Message) -> list[bytes]:
    return [respond(query, code=dns.rcode.SERVFAIL), respond(query, code=dns.rcode.REFUSED)]


def unknown(query: dns.message.Message) -> list[bytes]:
    return [respond(query, code=dns.rcode.NXDOMAIN)]


def silent(query: dns.message.Message) -> list[bytes]:
    return []


class Forgetful:
    """The first questions get lost."""

    def __init__(self) -> None:
        self._left = 2

    def __call__(self, query: dns.message.Message) -> list[bytes]:
        self._left -= 1
        return known(query) if self._left < 0 else []


@pytest.mark.parametrize(
    "answers",
    [(known,), (silent, known), (failing, known), (forged,), (Forgetful(),)],
    ids=["one", "silent", "failing", "forged", "lost"],
)
async def test_a_name_is_asked_until_one_server_knows(answers: tuple[Answer, ...]) -> None:
    async with servers(*answers) as sockets:
        assert await ask(sockets, "vpn.example", BOTH) == ["192.0.2.7", "2001:db8::7"]


async def test_one_family_alone() -> None:
    async with servers(known) as sockets:
        assert await ask(sockets, "vpn.example", [socket.AF_INET6]) == ["2001:db8::7"]


@pytest.mark.parametrize(
    ("answers", "name", "words"),
    [
        ((unknown,), "vpn.example", "know no address"),
        ((), "vpn.example", "do not answer"),
        ((known,), "x" * 64 + ".example", "no name"),
        ((known,), "vpn..example", "no name"),
    ],
)
async def test_a_name_without_an_address_is_an_error(answers: tuple[Answer, ...], name: str, words: str) -> None:
    async with servers(*answers) as sockets:
        with pytest.raises(socket.gaierror, match=words):
            await ask(sockets, name, BOTH)


def test_addresses_take_turns() -> None:
    assert by_turns(["::1", "::2", "192.0.2.1", "::1"]) == ["::1", "192.0.2.1", "::2"]
    assert by_turns(["192.0.2.1", "192.0.2.2", "::1"]) == ["192.0.2.1", "::1", "192.0.2.2"]
