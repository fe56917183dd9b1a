"""What changes of this machine's network mean for a connection that they don't touch: nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.harness.network import Namespace

# A server and a client on loopback; the way to anywhere else begins at another address.
SCRIPT = """
import asyncio, subprocess
from ginnel.transports import watch
from tests.harness.people import People
from tests.test_server_service import connecting, serving

async def tell(changes):
    async for change in changes:
        print(change)

async def main():
    people = People()
    people.add("alice")
    async with serving(people) as server, connecting(server, people, "alice") as alice:
        told = asyncio.create_task(tell(alice.changes()))
        news = watch.network_changes()
        for number in range(3):
            # When we have heard of one change, the client, which listens since before us, has heard of the last.
            heard = asyncio.create_task(anext(news))
            await asyncio.sleep(0)
            subprocess.run(f"ip link add a{number} type veth peer name b{number}", shell=True, check=True)
            await asyncio.wait_for(heard, 30)
        told.cancel()
        print(alice.state)

asyncio.run(main())
"""


def test_an_interface_that_comes_costs_nobody_the_connection() -> None:
    with Namespace() as space:
        space.ip(
            "link add away type veth peer name beyond",
            "address add 198.51.100.5/24 dev away",
            "link set away up",
            "link set beyond up",
            "route add default via 198.51.100.1",
        )
        root = str(Path(__file__).parents[2])
        said = space.run([sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONPATH": root})
    assert said == "up\n"
