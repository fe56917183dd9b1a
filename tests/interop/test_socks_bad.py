"""SOCKS clients that stall, send nonsense, or vanish: theirs is lost, everyone else's goes on."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from tests.harness import office
from tests.harness.client import GinnelClient, wait_until
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.server import StockServer
from tests.harness.socks import GREETING, close, open_connection, open_gateway, request, reset
from tests.harness.traffic import EchoStream

SEED = 20231


@pytest_asyncio.fixture
async def client(network: Network, ordinary_env: Environment) -> AsyncIterator[GinnelClient]:
    profile = Profile()
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as client:
        client.wait_up()
        yield client


async def send_and_wait(client: GinnelClient, data: bytes) -> None:
    """Sends, and expects to be sent away: by a reply that refuses, or without any."""
    reader, writer = await open_gateway(client.network.client, client.socks)
    writer.write(data)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(10):
            while await reader.read(1 << 16):
                pass
    await close(writer)


async def garbage(client: GinnelClient) -> None:
    source = random.Random(SEED)
    for _ in range(100):
        first = source.choice([b"", b"\5", b"\4", b"GET / HTTP/1.1\r\n", GREETING, GREETING + b"\5\1\0"])
        # An end to each, since a beginning that could go on is rightly waited for.
        reader, writer = await open_gateway(client.network.client, client.socks)
        writer.write(first + source.randbytes(source.randrange(1, 600)))
        # The gateway may be gone at any point of this, which is all right.
        with contextlib.suppress(OSError):
            writer.write_eof()
            async with asyncio.timeout(10):
                while await reader.read(1 << 16):
                    pass
        await close(writer)


async def wrong_versions_and_commands(client: GinnelClient) -> None:
    for data in (
        b"\4\1\0\x50\x0a\x4d\0\1user\0",
        b"\5\1\2",
        GREETING + b"\5\2\0\1\x0a\x4d\0\1\0\x50",
        GREETING + b"\5\1\0\x09\x0a\x4d\0\1\0\x50",
        GREETING + b"\5\1\0\3\0\0\x50",
        GREETING + request("\xff" * 80, 80),
        GREETING + request("a" * 200, 80),
        GREETING + request("wiki.office", 0),
    ):
        await send_and_wait(client, data)


async def stalled(client: GinnelClient) -> None:
    """Fifty that say nothing or half a sentence, and then wait with the others for the end."""
    writers = []
    for number in range(50):
        _, writer = await open_gateway(client.network.client, client.socks)
        writer.write((GREETING + request("wiki.office", 80))[: number % 12])
        writers.append(writer)
    assert await asyncio.to_thread(client.curl, "http://wiki.office/") == office.PAGE.decode()
    for writer in writers:
        await close(writer)


async def reads_nothing(client: GinnelClient) -> None:
    """Ten that ask for everything and read none of it: they hold their own buffers full, and no more."""
    writers = []
    for _ in range(10):
        reader, writer = await open_connection(client.network.client, client.socks, "files.office", 80)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /endless HTTP/1.0\r\n\r\n")
        writers.append((reader, writer))
    assert await asyncio.to_thread(client.curl, "http://wiki.office/") == office.PAGE.decode()
    for _, writer in writers:
        reset(writer)


async def vanishes(client: GinnelClient) -> None:
    for _ in range(20):
        reader, writer = await open_connection(client.network.client, client.socks, "files.office", 80)
        writer.write(b"GET /endless HTTP/1.0\r\n\r\n")
        assert await reader.readexactly(1 << 16)
        reset(writer)


@pytest.mark.parametrize("misbehave", [garbage, wrong_versions_and_commands, stalled, reads_nothing, vanishes])
async def test_others_go_on(client: GinnelClient, misbehave: Callable[[GinnelClient], Awaitable[None]]) -> None:
    fresh = client.usage()
    stream = EchoStream()
    async with asyncio.TaskGroup() as tasks:
        others = tasks.create_task(misbehave(client))  # type: ignore[arg-type]

        def is_enough() -> bool:
            return others.done() and stream.received > 4_000_000

        tasks.create_task(stream.run(client.network.client, client.socks, is_enough))
    assert client.curl("http://wiki.office/") == office.PAGE.decode()
    wait_until(
        lambda: client.usage().descriptors <= fresh.descriptors, 15, lambda: f"{fresh} before, {client.usage()} now"
    )
    assert client.process.running
    # What cannot be reached is said, and what is no SOCKS, and nothing else.
    said = client.process.err.all()
    known = ("WARNING: SOCKS: cannot reach ", "WARNING: SOCKS: a client speaks HTTP")
    assert all(line.startswith(known) for line in said), said
    client.stop()
