"""A router on the way forgets us, and gives us another port: the server finds us all the same."""

from __future__ import annotations

import asyncio

from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.relay import Relay
from tests.harness.server import StockServer
from tests.harness.socks import close, open_connection


async def test_a_router_forgets_us(network: Network, ordinary_env: Environment) -> None:
    profile = Profile()
    with (
        StockServer(network, profile),
        Relay(network, 1 << 30) as relay,
        GinnelClient(network, ordinary_env, profile, port=Relay.PORT) as client,
    ):
        reader, writer = await open_connection(network.client, client.socks, "echo.office", 7)
        for _ in range(3):
            writer.write(b"hello")
            async with asyncio.timeout(20):
                assert await reader.readexactly(5) == b"hello"
            relay.forget()
        writer.write(b"hello")
        async with asyncio.timeout(20):
            assert await reader.readexactly(5) == b"hello"
        await close(writer)
        assert [event["event"] for event in client.events] == ["up"]
        client.stop()
