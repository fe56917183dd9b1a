"""Many streams at once and one after the other; after them the process holds what it held before."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator

import pytest

from tests.harness.client import GinnelClient, Usage, wait_until
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.office import body_hash
from tests.harness.profile import Profile
from tests.harness.server import StockServer
from tests.harness.socks import close, get, open_connection, reset

SIZE = 1 << 20
# The pool keeps up to 16 MiB of packet buffers once a load has used them, and an allocator keeps some more;
# the streams' own buffers would be at least twice as much.
SLACK = 24 << 20


@pytest.fixture
def client(network: Network, ordinary_env: Environment) -> Iterator[GinnelClient]:
    profile = Profile()
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as client:
        client.wait_up()
        yield client


async def test_100_downloads_at_once(client: GinnelClient) -> None:
    fresh = client.usage()
    # The first round is where buffers and pools grow to what such a load takes.
    await download_at_once(client, 100)
    before = settle(client, fresh)
    await download_at_once(client, 100)
    assert settle(client, fresh).memory <= before.memory + SLACK
    client.stop()


async def test_1000_connections(client: GinnelClient) -> None:
    fresh = client.usage()
    await open_and_close(client, 200)
    before = settle(client, fresh)
    await open_and_close(client, 1000)
    assert settle(client, fresh).memory <= before.memory + SLACK
    client.stop()


async def download_at_once(client: GinnelClient, count: int) -> None:
    async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
        downloads = [tasks.create_task(get(client.network.client, client.socks, f"/body/{SIZE}")) for _ in range(count)]
    for download in downloads:
        assert hashlib.sha256(download.result()).hexdigest() == body_hash(SIZE)


async def open_and_close(client: GinnelClient, count: int) -> None:
    """Twenty at a time; they end in turn by us, by the far side, and by a reset."""
    places = asyncio.Semaphore(20)

    async def once(number: int) -> None:
        async with places:
            reader, writer = await open_connection(client.network.client, client.socks, "echo.office", 7)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            if number % 3 == 0:
                reset(writer)
                return
            if number % 3 == 1:
                writer.write_eof()
                assert await reader.read() == b""
            await close(writer)

    async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(once(number))


def settle(client: GinnelClient, fresh: Usage) -> Usage:
    """What it holds once the streams are gone: no descriptor, socket or thread more than in the beginning."""

    def held(usage: Usage) -> tuple[int, int]:
        return usage.descriptors, usage.sockets

    wait_until(lambda: held(client.usage()) <= held(fresh), 15, lambda: f"{fresh} at first, now {client.usage()}")
    usage = client.usage()
    assert usage.threads <= fresh.threads
    return usage
