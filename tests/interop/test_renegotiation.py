"""New keys every five seconds under traffic, asked for by either side: no byte of a stream is lost."""

from __future__ import annotations

import asyncio

import pytest

from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.server import StockServer
from tests.harness.traffic import EchoStream

SECONDS = 60


@pytest.mark.timeout(180)
@pytest.mark.parametrize("side", ["client", "server"])
async def test_every_five_seconds(network: Network, ordinary_env: Environment, side: str) -> None:
    if side == "client":
        profile = Profile(client_options=("reneg-sec 5 5",), server_options=("reneg-sec 0",))
    else:
        profile = Profile(server_options=("reneg-sec 5 5",), client_options=("reneg-sec 0",))
    with StockServer(network, profile) as server, GinnelClient(network, ordinary_env, profile) as client:
        streams = [EchoStream() for _ in range(4)]
        async with asyncio.TaskGroup() as tasks:
            for stream in streams:
                tasks.create_task(stream.run(network.client, client.socks, SECONDS))
        handshakes = sum("Control Channel: TLS" in line for line in server.log)
        assert handshakes >= SECONDS // 5 - 1
        assert min(stream.received for stream in streams) > SECONDS * 1_000_000
        assert [event["event"] for event in client.events] == ["up"]
        client.stop()
