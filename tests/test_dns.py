"""Names through the tunnel, against a small DNS server on the peer's stack."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from ginnel._core import Device
from ginnel.stack import DatagramSocket, Stack

RECORDS = {
    ("host.example.", "A"): ["10.8.0.2"],
    ("host.example.", "AAAA"): ["fd00::2"],
    ("only4.example.", "A"): ["192.0.2.4"],
    ("many.example.", "A"): [f"192.0.2.{number}" for number in range(1, 200)],
    ("inside.corp.example.", "A"): ["10.8.0.2"],
}


class DnsServer:
    """Answers from RECORDS; over UDP what is longer than 512 bytes is truncated."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def answer(self, wire: bytes, longest: int) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append(f"{name} {kind}")
        if name == "silent.example.":
            return None
        response = dns.message.make_response(query)
        found = RECORDS.get((name, kind))
        if name.endswith(".refused.example."):
            response.set_rcode(dns.rcode.REFUSED)
        elif found:
            response.answer.append(dns.rrset.from_text_list(question.name, 60, "IN", kind, found))
        elif not any(known == name for known, _ in RECORDS):
            response.set_rcode(dns.rcode.NXDOMAIN)
        answer = response.to_wire(max_size=65535)
        if len(answer) > longest:
            response.answer.clear()
            response.flags |= dns.flags.TC
            answer = response.to_wire()
        return answer

    async def serve_datagrams(self, sock: DatagramSocket) -> None:
        while True:
            wire, address = await sock.recvfrom()
            if (answer := self.answer(wire, 512)) is not None:
                await sock.sendto(answer, address)

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        answer = self.answer(await reader.readexactly(length), 65535) or b""
        writer.write(struct.pack("!H", len(answer)) + answer)
        writer.close()


@pytest.fixture
async def stacks() -> AsyncIterator[tuple[Stack, Stack, DnsServer]]:
    device = Device("tun", 1500, 1024)
    async with (
        Stack(device.attach("interface"), dns_timeout=0.5) as left,
        Stack(device.attach("application")) as right,
    ):
        device.set_up(True)
        left.set_addresses(["10.8.0.1/24", "fd00::1/64"])
        right.set_addresses(["10.8.0.2/24", "fd00::2/64"])
        left.set_dns(["10.8.0.2"], ["corp.example"])
        server = DnsServer()
        sock = await right.open_datagram(port=53)
        await right.start_server(server.serve_stream, port=53)
        task = asyncio.create_task(server.serve_datagrams(sock))
        yield left, right, server
        task.cancel()
        sock.close()


Stacks = tuple[Stack, Stack, DnsServer]


async def test_a_and_aaaa_as_the_stack_has_addresses(stacks: Stacks) -> None:
    left, _, _ = stacks
    assert await left.resolve("host.example") == ["10.8.0.2", "fd00::2"]
    assert await left.resolve("host.example", socket.AF_INET6) == ["fd00::2"]
    assert await left.resolve("only4.example") == ["192.0.2.4"]
    left.set_addresses(["fd00::1/64"])
    left.set_dns(["fd00::2"])
    assert await left.resolve("host.example") == ["fd00::2"]


async def test_a_zone_of_this_machine_means_nothing_inside(stacks: Stacks) -> None:
    left, _, server = stacks
    for use in (left.resolve, left.ping, lambda host: left.open_connection(host, 80)):
        with pytest.raises(socket.gaierror, match=r"fe80::1%eth0: no zones here"):
            await use("fe80::1%eth0")
    assert server.asked == []


async def test_answers_are_kept(stacks: Stacks) -> None:
    left, _, server = stacks
    await left.resolve("host.example")
    asked = list(server.asked)
    await left.resolve("host.example")
    assert server.asked == asked


async def test_search_domains(stacks: Stacks) -> None:
    left, _, _ = stacks
    assert await left.resolve("inside", socket.AF_INET) == ["10.8.0.2"]


async def test_a_search_domain_that_the_server_refuses_leaves_the_others(stacks: Stacks) -> None:
    left, _, server = stacks
    left.set_dns(["10.8.0.2"], ["refused.example", "corp.example"])
    assert await left.resolve("inside", socket.AF_INET) == ["10.8.0.2"]
    assert "inside.refused.example. A" in server.asked
    with pytest.raises(socket.gaierror, match=r"x\.refused\.example\.: refused or failed through the tunnel's"):
        await left.resolve("x.refused.example.")


async def test_names_in_a_domain_are_asked_of_its_own_servers_alone(stacks: Stacks) -> None:
    left, right, server = stacks
    other = DnsServer()
    async with await right.open_datagram(port=5353) as sock:
        task = asyncio.create_task(other.serve_datagrams(sock))
        left.set_dns(["10.8.0.2"], ["corp.example"], {"corp.example": ["10.8.0.2:5353"], "a.corp.example": ["fd00::9"]})
        assert await left.resolve("inside", socket.AF_INET) == ["10.8.0.2"]
        assert await left.resolve("Inside.CORP.example.", socket.AF_INET) == ["10.8.0.2"]
        assert await left.resolve("host.example", socket.AF_INET) == ["10.8.0.2"]
        assert (server.asked, set(other.asked)) == (["host.example. A"], {"inside.corp.example. A"})
        with pytest.raises(socket.gaierror, match=r"no answer through the tunnel's DNS server fd00::9"):
            await left.resolve("x.a.corp.example", socket.AF_INET)
        left.set_dns([], ["corp.example"], {"corp.example": ["[fd00::2]:5353"]})
        assert await left.resolve("inside", socket.AF_INET) == ["10.8.0.2"]
        with pytest.raises(
            socket.gaierror, match=r"host\.example: the tunnel's DNS servers are for corp\.example alone"
        ):
            await left.resolve("host.example")
        task.cancel()
    assert server.asked == ["host.example. A"]


@pytest.mark.parametrize("server", ["10.8.0.2:x", "example", "fd00::1:99999", "[10.8.0.2", ""])
async def test_what_is_no_server(stacks: Stacks, server: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        stacks[0].set_dns([server])


async def test_a_truncated_answer_is_asked_for_over_tcp(stacks: Stacks) -> None:
    left, _, server = stacks
    assert len(await left.resolve("many.example", socket.AF_INET)) == 199
    assert server.asked.count("many.example. A") == 2


async def test_a_name_that_does_not_exist(stacks: Stacks) -> None:
    left, _, _ = stacks
    expected = r"missing\.example: name not found through the tunnel's DNS server 10\.8\.0\.2"
    with pytest.raises(socket.gaierror, match=expected):
        await left.open_connection("missing.example", 80)


async def test_a_server_that_does_not_answer(stacks: Stacks) -> None:
    left, _, _ = stacks
    with pytest.raises(socket.gaierror, match=r"silent\.example: no answer through the tunnel's DNS server"):
        await left.resolve("silent.example")
    await asyncio.sleep(0)
    assert left.statistics()["datagrams"] == 0


async def test_without_a_server_nobody_is_asked(stacks: Stacks) -> None:
    left, _, _ = stacks
    left.set_dns([])
    with pytest.raises(socket.gaierror, match="gave no DNS server"):
        await left.resolve("host.example")
    with pytest.raises(socket.gaierror, match="localhost"):
        await left.resolve("localhost")


async def test_numbers_are_not_asked_for(stacks: Stacks) -> None:
    left, _, server = stacks
    left.set_dns([])
    assert await left.resolve("192.0.2.1") == ["192.0.2.1"]
    assert await left.resolve("FD00::0002") == ["fd00::2"]
    assert server.asked == []


async def test_connecting_by_name(stacks: Stacks) -> None:
    left, right, _ = stacks

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await right.start_server(greet)
    reader, writer = await left.open_connection("host.example", server.port)
    assert await reader.read() == b"hello"
    writer.close()
