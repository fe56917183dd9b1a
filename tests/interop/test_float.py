"""Addresses that change on the way: a router forgets us and gives us another port, or the server moves."""

from __future__ import annotations

import asyncio

from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.relay import Relay
from tests.harness.server import StockServer
from tests.harness.socks import close, open_connection

ALSO = ("192.0.2.201", "192.0.2.202")


async def test_a_server_that_answers_from_elsewhere_and_moves(network: Network, ordinary_env: Environment) -> None:
    """As one with several addresses may. `float` takes it, in the handshake and later; what does not prove itself
    moves nothing."""
    network.server.ip(*(f"address add {address}/24 dev eth0" for address in ALSO))
    profile = Profile(client_options=("float",))
    try:
        with StockServer(network, profile), Relay(network, 1 << 30) as relay:
            relay.answer_from(ALSO[0])
            with GinnelClient(network, ordinary_env, profile, port=Relay.PORT) as client:
                assert client.wait_up()["server"] == f"{ALSO[0]}:{Relay.PORT}"
                reader, writer = await open_connection(network.client, client.socks, "echo.office", 7)
                for moves in (True, False):
                    writer.write(b"hello")
                    async with asyncio.timeout(20):
                        assert await reader.readexactly(5) == b"hello"
                    if moves:
                        relay.answer_from(ALSO[1])
                await close(writer)
                assert [event["event"] for event in client.events] == ["up"]
                client.stop()
            with GinnelClient(network, ordinary_env, Profile(), "--timeout", "4", port=Relay.PORT) as strict:
                status, line = strict.fail()
            assert status == 3
            assert "no answer" in line
    finally:
        network.server.ip(*(f"address del {address}/24 dev eth0" for address in ALSO))


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
