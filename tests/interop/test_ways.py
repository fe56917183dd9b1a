"""Several ways to a stock server, of which some lead nowhere: who is tried, how often, and what comes after that."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from tests.harness import office
from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.management import Management
from tests.harness.network import SERVER, Network
from tests.harness.profile import LOGIN, Profile
from tests.harness.server import StockServer

# Nobody has these, though both are on the link.
NOBODY, NOBODY6 = "192.0.2.99", "2001:db8::99"
QUICK = "server-poll-timeout 1"


def file(profile: Profile, *remotes: str) -> str:
    """The client's with other remotes."""
    text = profile.client_file()
    ours = f"remote {SERVER} 1194\n"
    assert text.count(ours) == 1
    return text.replace(ours, "".join(f"remote {remote}\n" for remote in remotes))


def reaches_the_office(client: GinnelClient) -> None:
    assert client.wait_up()["server"] == f"{SERVER}:1194"
    assert client.curl("http://wiki.office/") == office.PAGE.decode()
    client.stop()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_name_with_a_dead_family(
    network: Network, ordinary_env: Environment, transport: Literal["udp", "tcp"]
) -> None:
    profile = Profile(transport=transport, client_options=(QUICK,))
    network.client.names(vpn=[NOBODY6, SERVER])
    text = file(profile, "vpn.example 1194")
    with StockServer(network, profile), GinnelClient(network, ordinary_env, text) as client:
        reaches_the_office(client)


def test_a_remote_of_several_wherever_it_comes(network: Network, ordinary_env: Environment) -> None:
    profile = Profile(client_options=("remote-random", QUICK))
    text = file(profile, f"{NOBODY} 1194", f"{SERVER} 1194", f"{SERVER} 1193 tcp")
    with StockServer(network, profile), GinnelClient(network, ordinary_env, text) as client:
        reaches_the_office(client)


@pytest.mark.parametrize("times", [1, 3])
def test_connect_retry_max(network: Network, ordinary_env: Environment, times: int) -> None:
    text = file(Profile(client_options=(QUICK, f"connect-retry-max {times}")), f"{NOBODY} 1194")
    with GinnelClient(network, ordinary_env, text) as client:
        status = client.process.wait(20)
        assert status == 3, str(client.process)
        assert [event["event"] for event in client.events] == [*["reconnecting"] * (times - 1), "error"]
        assert all(0.7 < event["delay"] < 1.3 for event in client.events[:-1]), client.events


def test_a_name_that_nobody_knows_yet(network: Network, ordinary_env: Environment) -> None:
    profile = Profile(client_options=("resolv-retry infinite",))
    network.client.names()
    with (
        StockServer(network, profile),
        GinnelClient(network, ordinary_env, file(profile, "vpn.example 1194")) as client,
    ):
        assert "cannot resolve vpn.example" in client.wait_next("reconnecting")["message"]
        network.client.names(vpn=[SERVER])
        reaches_the_office(client)


def test_a_name_for_which_nobody_waits(network: Network, ordinary_env: Environment) -> None:
    network.client.names()
    text = file(Profile(client_options=("resolv-retry 0",)), "vpn.example 1194")
    with GinnelClient(network, ordinary_env, text) as client:
        status, line = client.fail()
    assert status == 3
    assert "cannot resolve vpn.example" in line


@pytest.mark.parametrize(("advance", "moves"), [("remote", True), ("addr", True), ("no", False)])
def test_a_busy_server_sends_us_on(
    network: Network, ordinary_env: Environment, tmp_path: Path, advance: str, moves: bool
) -> None:
    manager = Management(tmp_path)
    profile = Profile(server_options=manager.options, client_options=("auth-user-pass",))
    text = file(profile, f"{SERVER} 1194", f"{SERVER} 1193 tcp")
    with (
        StockServer(network, profile),
        manager,
        GinnelClient(network, ordinary_env, text, login=LOGIN) as client,
    ):
        first, _ = manager.login()
        manager.deny(first, f"TEMP[advance {advance}]: full")
        assert "full" in client.wait_next("reconnecting")["message"]
        if moves:
            assert f"{SERVER} port 1193" in client.wait_next("reconnecting")["message"]
        again, _ = manager.login()
        manager.allow(again)
        reaches_the_office(client)
