"""New keys again and again under traffic, asked for by either side: no byte of a stream is lost."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Literal

import pytest

from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.server import StockServer
from tests.harness.traffic import EchoStream
from tests.interop.cells import listed, revoked

REKEYS = int(os.environ.get("GINNEL_REKEYS", "7"))


@pytest.mark.parametrize(
    ("side", "transport", "threads"),
    [("client", "udp", 1), ("server", "udp", 4), ("client", "tcp", 4), ("server", "tcp", 1)],
)
async def test_under_traffic(
    network: Network, ordinary_env: Environment, side: str, transport: Literal["udp", "tcp"], threads: int
) -> None:
    often, never = ("reneg-sec 2 2",), ("reneg-sec 0",)
    theirs, ours = (never, often) if side == "client" else (often, never)
    profile = Profile(transport=transport, server_options=theirs, client_options=ours)
    with (
        StockServer(network, profile) as server,
        GinnelClient(network, ordinary_env, profile, threads=threads) as client,
    ):
        streams = [EchoStream() for _ in range(4)]

        def has_rekeyed() -> bool:
            return sum("Control Channel: TLS" in line for line in server.log) > REKEYS

        # Two seconds each, and more on a busy machine.
        async with asyncio.timeout(60 + 10 * REKEYS), asyncio.TaskGroup() as tasks:
            for stream in streams:
                tasks.create_task(stream.run(network.client, client.socks, has_rekeyed))
        assert min(stream.received for stream in streams) > REKEYS * 1_000_000
        assert [event["event"] for event in client.events] == ["up"]
        client.stop()


def test_a_server_that_is_revoked_meanwhile_is_left_at_the_next_keys(
    network: Network, ordinary_env: Environment
) -> None:
    """The file of the revoked is read again when it has changed, without a new connection."""
    profile = replace(
        listed(), server_options=("reneg-sec 0",), client_options=("reneg-sec 4", "crl-verify revoked.pem")
    )
    with (
        StockServer(network, profile),
        GinnelClient(network, ordinary_env, profile, files=revoked(server=False)) as client,
    ):
        client.wait_up()
        fresh = client.folder / "fresh.pem"
        fresh.write_text(str(revoked(server=True)["revoked.pem"]))
        fresh.chmod(0o644)
        fresh.rename(client.folder / "revoked.pem")
        status, line = client.fail(40)
    assert status == 5
    assert "revoked" in line
