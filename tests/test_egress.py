"""The way out of a server: two stacks on a device in memory, and servers in a network namespace behind the second."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial

import dns.message
import dns.rcode
import pytest

from ginnel._core import Device
from ginnel.errors import ConfigError
from ginnel.gateways.access import CLOSED, AccessList
from ginnel.gateways.egress import Egress, may_ping
from ginnel.gateways.relay import Address, Listener
from ginnel.stack import Stack
from tests.harness.network import CLIENT, SERVER, Namespace, Network
from tests.harness.process import no_descriptors

HOST, HOST6 = "192.0.2.7", "2001:db8::7"
OWN = (HOST, HOST6)

Stacks = tuple[Stack, Stack]


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """This thread is in it. Its addresses are the host's own."""
    with Namespace() as namespace, namespace.entered():
        namespace.ip("link set lo up", f"address add {HOST}/32 dev lo", f"address add {HOST6}/128 dev lo nodad")
        namespace.settle(HOST6)
        yield namespace


@pytest.fixture
async def stacks(namespace: Namespace) -> AsyncIterator[Stacks]:
    device = Device("tun", 1500, 4096)
    async with Stack(device.attach("interface")) as client, Stack(device.attach("application")) as server:
        device.set_up(True)
        client.set_addresses(["10.8.0.2/24", "10.8.0.3/24", "fd00::2/64"])
        server.set_addresses(["10.8.0.1/24", "fd00::1/64"])
        yield client, server


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data.upper())
        writer.close()


class Shouter:
    """A UDP server that answers in capitals."""

    def __init__(self, host: str = HOST) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind((host, 0))
        self.port = self.sock.getsockname()[1]
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            data, sender = await loop.sock_recvfrom(self.sock, 65536)
            await loop.sock_sendto(self.sock, data.upper(), sender)

    async def __aenter__(self) -> Shouter:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.sock.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nothing tells of a counter
            await asyncio.sleep(0.005)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("host", [HOST, HOST6])
async def test_connections_leave_through_sockets_of_the_host(stacks: Stacks, host: str) -> None:
    client, server = stacks
    async with AsyncExitStack() as exits:
        outside = await exits.enter_async_context(await asyncio.start_server(shout, host, 0))
        egress = await exits.enter_async_context(Egress(server, allow=OWN))
        before = descriptors()
        reader, writer = await client.open_connection(host, outside.sockets[0].getsockname()[1])
        writer.write(b"x" * 500_000)
        writer.write_eof()
        assert await reader.read() == b"X" * 500_000
        writer.close()
        await until(lambda: egress.statistics()["open"] == 0)
        assert egress.statistics()["connections"] == 1
        await until(lambda: descriptors() <= before)


@pytest.mark.parametrize("host", [HOST, HOST6])
async def test_datagrams_leave_through_sockets_of_the_host(stacks: Stacks, host: str) -> None:
    client, server = stacks
    async with (
        Shouter(host) as outside,
        Egress(server, allow=OWN, datagram_idle=0.5) as egress,
        await client.open_datagram() as sock,
    ):
        await sock.sendto(b"hello", (host, outside.port))
        assert await asyncio.wait_for(sock.recvfrom(), 20) == (b"HELLO", (host, outside.port))
        assert egress.statistics()["datagram_flows"] == 1
        await until(lambda: egress.statistics()["open"] == 0)


async def test_echo_requests_leave_where_the_system_has_sockets_for_them(stacks: Stacks, namespace: Namespace) -> None:
    client, server = stacks
    async with Egress(server, allow=OWN) as egress:
        with pytest.raises(TimeoutError):
            await client.ping(HOST, timeout=0.3)
        assert egress.statistics()["echoes_failed"] == 1
        assert not may_ping()
        namespace.run(["sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"])
        assert may_ping()
        for host in OWN:
            await client.ping(host, timeout=20)
        assert egress.statistics()["echoes"] == 2


async def test_what_is_public_is_open(stacks: Stacks) -> None:
    client, server = stacks
    with Network() as network, network.client.entered():
        listener = network.server.socket()
        listener.bind((SERVER, 0))
        async with await asyncio.start_server(shout, sock=listener), Egress(server) as egress:
            reader, writer = await client.open_connection(*listener.getsockname())
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"HELLO"
            writer.close()
            await until(lambda: egress.statistics()["open"] == 0)
            # The same host's own end of that link.
            with pytest.raises(ConnectionRefusedError):
                await client.open_connection(CLIENT, 80)
            with pytest.raises(OSError, match="through the tunnel") as caught:
                await client.open_connection("203.0.113.9", 80)
            assert caught.value.errno == errno.ENETUNREACH
            assert egress.statistics()["refused_closed"] == 1


async def test_a_client_sees_what_became_of_the_connection_outside(stacks: Stacks) -> None:
    client, server = stacks
    with socket.socket() as unused:
        unused.bind((HOST, 0))
        refused = unused.getsockname()[1]
    with socket.socket() as full, contextlib.ExitStack() as fillers:
        full.bind((HOST, 0))
        full.listen(0)
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        async with Egress(server, allow=OWN, connect_timeout=0.5) as egress:
            for (host, port), code in (
                ((HOST, refused), errno.ECONNREFUSED),
                (full.getsockname(), errno.EHOSTUNREACH),
                (("203.0.113.9", 80), errno.ENETUNREACH),
            ):
                with pytest.raises(OSError, match="through the tunnel") as caught:
                    await client.open_connection(host, port)
                assert caught.value.errno == code
            assert egress.statistics()["connections_failed"] == 3
            assert egress.statistics()["open"] == 0
            assert server.statistics()["flows"] == 0


PRIVATE = [str(network[min(1, network.num_addresses - 1)]) for network in CLOSED]
DISGUISED = ["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "2002:a9fe:a9fe::", "::127.0.0.1"]
METADATA = [
    "169.254.169.254",
    "168.63.129.16",
    "fd00:ec2::254",
    "::ffff:169.254.169.254",
    "255.255.255.255",
    "0.0.0.0",
    "::",
]


@pytest.mark.parametrize("host", dict.fromkeys([*PRIVATE, *DISGUISED, *METADATA]))
def test_what_is_not_public_is_closed_until_it_is_allowed(host: str) -> None:
    with contextlib.closing(AccessList()) as access:
        assert not access.is_open(host)
    with contextlib.closing(AccessList(["198.51.100.0/24", host])) as access:
        assert access.is_open(host)


@pytest.mark.parametrize("host", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "2002:808:808::1"])
def test_public_addresses_are_open(host: str) -> None:
    with contextlib.closing(AccessList()) as access:
        assert access.is_open(host)


def test_to_allow_a_range_does_not_allow_its_disguises() -> None:
    with contextlib.closing(AccessList(["127.0.0.0/8", "10.1.2.3/8"])) as access:
        assert access.is_open("127.0.0.1")
        assert access.is_open("10.255.0.1")
        assert not access.is_open("64:ff9b::7f00:1")
        assert not access.is_open("::ffff:127.0.0.1")


@pytest.mark.parametrize("text", ["", "alice", "10.0.0.0/33", "1.2.3"])
def test_what_is_no_network_cannot_be_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match="no network to allow"):
        AccessList([text])


async def test_what_is_closed_is_answered_and_counted(stacks: Stacks) -> None:
    client, server = stacks
    told: list[tuple[str, str]] = []
    egress = Egress(server, on_closed=lambda *closed: told.append(closed))
    async with await asyncio.start_server(shout, HOST, 0) as outside, egress:
        port = outside.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            await client.open_connection(HOST, port)
        async with await client.open_datagram() as sock:
            await sock.sendto(b"hello", ("169.254.169.254", 80))
            await until(lambda: egress.statistics()["refused_closed"] == 2)
        with pytest.raises(TimeoutError):
            await client.ping(HOST, timeout=0.2)
        assert egress.statistics()["refused_closed"] == 3
        assert {host for _, host in told} == {HOST, "169.254.169.254"}
        assert {client for client, _ in told} <= {"10.8.0.2", "10.8.0.3"}
        assert egress.statistics()["open"] == 0


async def test_500_connections_at_a_time_and_nothing_left_after(stacks: Stacks) -> None:
    client, server = stacks

    async def one(port: int) -> None:
        reader, writer = await client.open_connection(HOST, port)
        content = secrets.token_hex(2000).encode()
        writer.write(content)
        assert await reader.readexactly(len(content)) == content.upper()
        opened.release()
        await go_on.wait()
        writer.close()

    before = descriptors()
    opened, go_on = asyncio.Semaphore(0), asyncio.Event()
    async with (
        await asyncio.start_server(shout, HOST, 0, backlog=1024) as outside,
        Egress(server, allow=OWN) as egress,
    ):
        work = [asyncio.create_task(one(outside.sockets[0].getsockname()[1])) for _ in range(500)]
        # A source has 128 at a time that are not open; the rest of the SYNs are sent again.
        for _ in work:
            await asyncio.wait_for(opened.acquire(), 60)
        assert egress.statistics()["open"] == egress.statistics()["connections"] == 500
        go_on.set()
        await asyncio.gather(*work)
        await until(lambda: egress.statistics()["open"] == 0)
    await until(lambda: server.statistics()["flows"] == 0)
    await until(lambda: descriptors() <= before)


@pytest.mark.parametrize("limits", [{"client_limit": 3}, {"limit": 12}])
async def test_a_client_has_only_so_many_and_others_still_get_theirs(stacks: Stacks, limits: dict[str, int]) -> None:
    client, server = stacks
    async with Shouter() as outside, Egress(server, allow=OWN, **limits) as egress:  # type: ignore[arg-type]
        for turn, host in enumerate(("10.8.0.2", "10.8.0.3"), 1):
            async with AsyncExitStack() as exits:
                for number in range(5):
                    sock = await exits.enter_async_context(await client.open_datagram(host))
                    await sock.sendto(b"hello", (HOST, outside.port))
                    if number < 3:
                        assert (await asyncio.wait_for(sock.recvfrom(), 20))[0] == b"HELLO"
            await until(partial(crowded, egress, 2 * turn))
        assert egress.statistics()["open"] == 6
        assert egress.statistics()["refused_crowded"] == 4


async def test_a_clients_addresses_and_networks_are_one_and_end_with_it(stacks: Stacks) -> None:
    client, server = stacks
    told: list[str] = []
    async with (
        await asyncio.start_server(idle, HOST, 0) as outside,
        Shouter() as shouter,
        Egress(server, allow=OWN, client_limit=3, on_crowded=lambda source, what: told.append(source)) as egress,
        AsyncExitStack() as exits,
    ):
        client.set_addresses(["192.168.5.9/24", "10.8.0.2/24", "10.8.0.3/24"])
        egress.set_client(1, ["10.8.0.2/32", "192.168.5.0/24"])
        egress.set_client(2, ["10.8.0.3/32"])
        reader, writer = await client.open_connection(HOST, outside.sockets[0].getsockname()[1])
        for host, count in (("10.8.0.2", 3), ("10.8.0.3", 1)):
            for _ in range(count):
                sock = await exits.enter_async_context(await client.open_datagram(host))
                await sock.sendto(b"hello", (HOST, shouter.port))
        # The connection came from behind the first client, which may have two flows beside it.
        await until(lambda: egress.statistics()["datagram_flows"] == 3 and bool(told))
        assert told == ["10.8.0.2"]
        egress.forget(1)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await until(lambda: egress.statistics()["open"] == 1)


async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await reader.read()
    writer.close()


async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while True:
            writer.write(bytes(65536))
            await writer.drain()


async def test_downloads_that_nobody_reads_take_their_clients_share_of_the_memory_alone(namespace: Namespace) -> None:
    device, told = Device("tun", 1500, 4096), set()
    async with (
        Stack(device.attach("interface")) as client,
        Stack(device.attach("application"), budget=8 << 20) as server,
        await asyncio.start_server(pour, (HOST, HOST6), 0) as outside,
        Egress(server, allow=OWN, on_crowded=lambda source, what: told.add(source)) as egress,
    ):
        device.set_up(True)
        client.set_addresses(["10.8.0.2/24", "fd00::2/64"])
        server.set_addresses(["10.8.0.1/24", "fd00::1/64"])
        egress.set_client(1, ["10.8.0.2/32"])
        egress.set_client(2, ["fd00::2/128"])
        port = {sock.getsockname()[0]: sock.getsockname()[1] for sock in outside.sockets}
        refused: OSError | None = None
        for _ in range(300):
            try:
                await client.connect_flow(HOST, port[HOST], timeout=20)
            except OSError as error:
                refused = error
                break
        # At once, and not after a time in which nobody answers.
        assert refused is not None
        assert refused.errno == errno.EHOSTUNREACH
        assert (told, egress.statistics()["refused_crowded"]) == ({"10.8.0.2"}, 1)
        assert egress.statistics()["connections_failed"] == 0
        assert server.statistics()["buffer_bytes"] <= (8 << 20) * 5 // 16
        for _ in range(20):
            reader, writer = await client.open_connection(HOST6, port[HOST6], timeout=20)
            await asyncio.wait_for(reader.readexactly(1 << 20), 20)
            writer.close()


def crowded(egress: Egress, count: int) -> bool:
    return egress.statistics()["refused_crowded"] == count


async def test_a_host_without_descriptors_is_said_once_and_serves_again(
    stacks: Stacks, caplog: pytest.LogCaptureFixture
) -> None:
    client, server = stacks
    async with Shouter() as outside, Egress(server, allow=OWN) as egress, AsyncExitStack() as exits:
        socks = [await exits.enter_async_context(await client.open_datagram()) for _ in range(5)]
        with no_descriptors():
            for sock in socks:
                await sock.sendto(b"hello", (HOST, outside.port))
            await until(lambda: egress.statistics()["datagram_flows_failed"] == len(socks))
        assert sum(record.levelno == logging.WARNING for record in caplog.records) == 1
        assert egress.statistics()["open"] == 0
        # What was refused stays so for a while.
        later = await exits.enter_async_context(await client.open_datagram())
        await later.sendto(b"hello", (HOST, outside.port))
        assert (await asyncio.wait_for(later.recvfrom(), 20))[0] == b"HELLO"


async def test_a_port_of_names_that_is_taken_is_said_and_nothing_stays(stacks: Stacks) -> None:
    client, server = stacks
    async with await server.open_datagram(port=53):
        with pytest.raises(OSError, match="port 53: Address already in use") as caught:
            await Egress(server).__aenter__()
        assert caught.value.errno == errno.EADDRINUSE
    async with await asyncio.start_server(shout, HOST, 0) as outside, Egress(server, allow=OWN):
        _, writer = await client.open_connection(HOST, outside.sockets[0].getsockname()[1])
        writer.close()


async def test_the_limit_of_all(stacks: Stacks) -> None:
    client, server = stacks
    async with (
        await asyncio.start_server(shout, HOST, 0) as outside,
        Egress(server, allow=OWN, limit=1) as egress,
    ):
        port = outside.sockets[0].getsockname()[1]
        _, writer = await client.open_connection(HOST, port)
        with pytest.raises(OSError, match="through the tunnel"):
            await client.open_connection(HOST, port)
        assert egress.statistics()["refused_crowded"] == 1
        writer.close()
        await until(lambda: egress.statistics()["open"] == 0)
        _, writer = await client.open_connection(HOST, port)
        writer.close()


async def test_what_a_client_had_open_ends_when_it_is_forgotten_and_all_with_the_egress(
    stacks: Stacks,
) -> None:
    client, server = stacks
    before = descriptors()
    async with await asyncio.start_server(shout, HOST, 0) as outside:
        port = outside.sockets[0].getsockname()[1]
        async with Egress(server, allow=OWN) as egress:
            egress.set_client(2, ["10.8.0.2/32"])
            first, _ = await client.open_connection(HOST, port)
            egress.forget(3)
            assert egress.statistics()["open"] == 1
            egress.forget(2)
            with pytest.raises(ConnectionResetError):
                await first.read()
            await until(lambda: egress.statistics()["open"] == 0)
            second, _ = await client.open_connection(HOST, port)
        with pytest.raises(ConnectionResetError):
            await second.read()
        with pytest.raises(OSError, match="through the tunnel"):
            await client.open_connection(HOST, port)
    await until(lambda: descriptors() <= before)


class Resolver(Shouter):
    """A DNS server that answers as it is told: SERVFAIL to nothing, an address, or another question's answer first."""

    def __init__(self) -> None:
        self.asked: list[dns.message.Message] = []
        self.lies = False
        super().__init__()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            data, sender = await loop.sock_recvfrom(self.sock, 65536)
            if self.lies:
                other = dns.message.make_query("other.example", "A", id=int.from_bytes(data[:2], "big"))
                await loop.sock_sendto(self.sock, dns.message.make_response(other).to_wire(), sender)
                await loop.sock_sendto(self.sock, bytes([data[0] ^ 1]) + self.answer(data)[1:], sender)
            await loop.sock_sendto(self.sock, self.answer(data), sender)

    def answer(self, data: bytes) -> bytes:
        query = dns.message.from_wire(data)
        self.asked.append(query)
        response = dns.message.make_response(query)
        response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "192.0.2.7"))
        return response.to_wire()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        answer = self.answer(data)
        writer.write(len(answer).to_bytes(2, "big") + answer)
        writer.close()


@pytest.mark.parametrize("lies", [False, True])
async def test_names_are_answered_by_the_hosts_resolvers(stacks: Stacks, lies: bool) -> None:
    client, server = stacks
    async with Resolver() as resolver, Egress(server, resolvers=[(HOST, resolver.port)]) as egress:
        resolver.lies = lies
        client.set_dns(["10.8.0.1"])
        names = [f"host{number}.example" for number in range(8)]
        for name in names:
            assert await client.resolve(name, socket.AF_INET) == ["192.0.2.7"]
        assert egress.statistics()["dns_questions"] == 8
        assert {str(query.question[0].name).rstrip(".") for query in resolver.asked} == set(names)


async def test_identifiers_outside_are_not_the_clients(stacks: Stacks) -> None:
    client, server = stacks
    async with Resolver() as resolver, Egress(server, resolvers=[(HOST, resolver.port)]):
        async with await client.open_datagram() as sock:
            for _ in range(4):
                question = dns.message.make_query("a.example", "A", id=7)
                await sock.sendto(question.to_wire(), ("10.8.0.1", 53))
                answer, sender = await asyncio.wait_for(sock.recvfrom(), 20)
                assert sender == ("10.8.0.1", 53)
                assert dns.message.from_wire(answer).id == 7
        assert {query.id for query in resolver.asked} != {7}
        assert len({query.id for query in resolver.asked}) > 1


async def test_names_over_tcp(stacks: Stacks) -> None:
    client, server = stacks
    async with Resolver() as resolver:
        listener = await asyncio.start_server(resolver.converse, HOST, resolver.port)
        async with listener, Egress(server, resolvers=[(HOST, resolver.port)]):
            reader, writer = await client.open_connection("fd00::1", 53)
            for number in range(3):
                question = dns.message.make_query("a.example", "A", id=number).to_wire()
                writer.write(len(question).to_bytes(2, "big") + question)
                answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                assert dns.message.from_wire(answer).id == number
            writer.close()


async def test_connections_for_names_that_are_only_held_cost_nobody_an_answer(stacks: Stacks) -> None:
    client, server = stacks
    async with Resolver() as resolver, Egress(server, resolvers=[(HOST, resolver.port)]) as egress:
        egress.set_client(1, ["10.8.0.2/32", "10.8.0.3/32", "fd00::2/128"])
        hosts = ["10.8.0.1", "fd00::1"] * 33
        held = [await client.open_connection(host, 53, timeout=20) for host in hosts]
        await until(lambda: egress.statistics()["dns_crowded"] == 2)
        client.set_dns(["10.8.0.1"])
        assert await client.resolve("a.example", socket.AF_INET) == ["192.0.2.7"]
        for _, writer in held:
            writer.close()


async def test_without_a_resolver_that_answers_it_is_servfail_and_what_is_no_question_is_dropped(
    stacks: Stacks,
) -> None:
    client, server = stacks
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    told: list[str] = []
    egress = Egress(server, resolvers=[("127.0.0.1", port)], on_dns_failure=told.append)
    async with egress, await client.open_datagram() as sock:
        question = dns.message.make_query("a.example", "A", id=7)
        malformed = [b"", b"x" * 11, bytes(12), question.to_wire()[:-1], dns.message.make_response(question).to_wire()]
        for message in malformed:
            await sock.sendto(message, ("10.8.0.1", 53))
        await sock.sendto(question.to_wire(), ("10.8.0.1", 53))
        answer = dns.message.from_wire((await asyncio.wait_for(sock.recvfrom(), 20))[0])
        assert (answer.id, answer.rcode()) == (7, dns.rcode.SERVFAIL)
        assert answer.question == question.question
        assert egress.statistics()["dns_failed"] == 1
        assert told == ["no answer from 127.0.0.1"]
        assert egress.statistics()["dns_malformed"] == len(malformed)


async def test_a_published_port_leads_to_the_client_while_it_is_there(stacks: Stacks) -> None:
    client, server = stacks
    inner: str | None = None
    listener = Listener(Address())
    place = (listener.address.host, listener.address.port)
    async with await client.start_server(shout, "10.8.0.2", 80), Egress(server) as egress:
        egress.publish(listener, lambda: inner, 80)
        with pytest.raises(ConnectionError):
            await talk(place)
        inner = "10.8.0.2"
        assert await talk(place) == b"HELLO"
        inner = "10.8.0.3"  # where nobody listens
        with pytest.raises(ConnectionError):
            await talk(place)
        assert egress.statistics()["published_connections"] == 1
    with pytest.raises(ConnectionRefusedError):
        await talk(place)


async def test_who_fills_a_published_port_leaves_others_their_part_and_all_ends_with_the_client(stacks: Stacks) -> None:
    client, server = stacks
    listener, told = Listener(Address("0.0.0.0")), []
    async with (
        await client.start_server(shout, "10.8.0.2", 80),
        # Of eight connections a place has three while no other has any.
        Egress(server, limit=32, on_crowded=lambda source, what: told.append(source)) as egress,
    ):
        egress.set_client(1, ["10.8.0.2/32"])
        egress.publish(listener, lambda: "10.8.0.2", 80)
        held = [await asyncio.open_connection("127.0.0.1", listener.address.port) for _ in range(3)]
        await until(lambda: egress.statistics()["published_connections"] == 3)
        with pytest.raises(ConnectionError):
            await talk(("127.0.0.1", listener.address.port))
        assert (told, egress.statistics()["published_crowded"]) == (["127.0.0.1"], 1)
        assert await talk(("127.0.0.1", listener.address.port), "127.0.0.2") == b"HELLO"
        egress.forget(1)
        for reader, writer in held:
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 20)
            writer.close()


async def talk(place: tuple[str, int], own: str | None = None) -> bytes:
    reader, writer = await asyncio.open_connection(*place, local_addr=None if own is None else (own, 0))
    try:
        writer.write(b"hello")
        writer.write_eof()
        data = await asyncio.wait_for(reader.read(), 20)
        if not data:
            raise ConnectionError("nothing came")
        return data
    finally:
        writer.close()
