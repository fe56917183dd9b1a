"""What changes of this machine's network mean for a connection that they don't touch: nothing."""

from __future__ import annotations

import asyncio

from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.server import StockServer
from tests.harness.traffic import EchoStream


async def test_an_interface_that_comes_and_goes_costs_nobody_the_connection(
    network: Network, ordinary_env: Environment
) -> None:
    """The way to the server begins elsewhere than the way to anywhere."""
    network.client.ip(
        "link add away type veth peer name beyond",
        "address add 198.51.100.5/24 dev away",
        "link set away up",
        "link set beyond up",
        "route add default via 198.51.100.1",
    )
    profile = Profile()
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as client:
        client.wait_up()
        changed = asyncio.Event()
        stream = EchoStream()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stream.run(network.client, client.socks, changed.is_set))
            for number in range(3):
                network.client.ip(
                    f"link add other{number} type veth peer name another{number}", f"link set other{number} up"
                )
                # Longer than a change is given to settle in.
                await asyncio.sleep(0.7)
                network.client.ip(f"link delete other{number}")
            changed.set()
        assert [event["event"] for event in client.events] == ["up"]
        client.stop()
