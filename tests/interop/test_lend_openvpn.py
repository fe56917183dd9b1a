"""Stock OpenVPN on lent devices: both sides without any capability and without /dev/net/tun."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.harness.environment import Environment
from tests.harness.lent import Lent, openvpn_files
from tests.harness.network import Network
from tests.harness.profile import Profile

SERVER = ["openvpn", "--config", "server.conf"]
CLIENT = ["openvpn", "--config", "client.conf"]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """In the server's namespace /dev/net/tun is there and refuses; in the client's it is not there at all."""
    with Network() as network:
        yield network


def test_both_sides(network: Network, ordinary_env: Environment) -> None:
    server_file, client_file = openvpn_files(Profile())
    serving = [["up", "10.8.0.1", "fd08::1"], ["serve", 7]]
    using = [
        ["up", "10.8.0.2", "fd08::1000"],
        ["ping", "10.8.0.1", 200],
        ["ping", "fd08::1"],
        ["send", "10.8.0.1", 7, 64 << 20],
        ["show"],
    ]
    with (
        Lent(network.server, ordinary_env, SERVER, actions=serving, files={"server.conf": server_file}) as server,
        Lent(network.client, ordinary_env, CLIENT, actions=using, files={"client.conf": client_file}) as client,
    ):
        server.wait_done("serve", 30)
        up = client.wait_done("up")
        assert up["name"] == "tun0"
        assert up["routes"] == ["10.77.0.0/24", "fd77::/64"]
        client.wait_done("ping")
        sent = client.wait_done("send", 120)
        assert sent["same"]
        assert sent["calls"] == 0, "a call was trapped while data flowed"
        client.wait_done("show")
        assert client.process.stop(signal.SIGTERM) == 0
        assert client.wait_done("end") == {"done": "end", "left": [], "left_behind": 0}
        assert server.process.stop(signal.SIGTERM) == 0
        assert server.wait_done("end")["left"] == []
