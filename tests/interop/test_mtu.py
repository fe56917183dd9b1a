"""Paths that are narrower than the tunnel's own packets: streams and datagrams pass all the same."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.harness import office
from tests.harness.client import GinnelClient, program_folder, start_program
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.server import Office, StockServer
from tests.harness.socks import get

SIZE = 1 << 20


@pytest.mark.parametrize(
    "narrow", [{"path_mtu": 1280}, {"path_mtu": 900}, {"link_mtu": 1280}], ids=["path-1280", "path-900", "link-1280"]
)
async def test_both_ways(ordinary_env: Environment, narrow: dict[str, Any]) -> None:
    profile = Profile()
    with Network(**narrow) as network, Office(network.server), StockServer(network, profile):
        await check_streams(network, ordinary_env, profile)
        assert datagrams(network, ordinary_env, profile) == "1400 1472"


async def check_streams(network: Network, env: Environment, profile: Profile) -> None:
    with GinnelClient(network, env, profile) as client:
        content = await get(network.client, client.socks, f"/body/{SIZE}")
        assert hashlib.sha256(content).hexdigest() == office.body_hash(SIZE)
        file = client.folder / "upload"
        file.write_bytes(office.body(SIZE))
        answer = client.curl("--upload-file", str(file), "http://files.office/upload")
        assert answer == office.body_hash(SIZE)
        client.stop()


def datagrams(network: Network, env: Environment, profile: Profile) -> str:
    """Sends datagrams through the tunnel to the echo service, the large ones until they came back once."""
    with program_folder(profile) as folder, start_program(network, env, folder, _DATAGRAMS) as process:
        assert process.wait(40) == 0, str(process)
        return " ".join(process.out.all())


_DATAGRAMS = """
import asyncio, ginnel

async def main():
    async with ginnel.connect("office.ovpn") as vpn, await vpn.open_datagram() as datagram:
        for size in (1400, 1472):
            for attempt in range(10):
                await datagram.sendto(bytes(size), ("echo.office", 7))
                try:
                    data, _ = await asyncio.wait_for(datagram.recvfrom(), 1)
                except TimeoutError:
                    continue
                assert len(data) == size
                print(size)
                break

asyncio.run(main())
"""
