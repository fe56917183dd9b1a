"""Stock OpenVPN on lent devices: both sides without any capability and without /dev/net/tun."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from tests.harness.client import wait_until
from tests.harness.environment import Environment
from tests.harness.lent import Lent, openvpn_files
from tests.harness.network import Network
from tests.harness.profile import Profile

SERVER = ["openvpn", "--config", "server.conf"]
CLIENT = ["openvpn", "--config", "client.conf"]
KINDS = pytest.mark.parametrize("kind", ["tun", "tap"])
# Bytes over TCP; `make soak` sends 1 GiB.
SENT = int(os.environ.get("GINNEL_SENT", 64 << 20))


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """In the server's namespace /dev/net/tun is there and refuses; in the client's it is not there at all."""
    with Network() as network:
        yield network


@KINDS
def test_both_sides(network: Network, ordinary_env: Environment, kind: str) -> None:
    """On TAP the stacks find each other's stations themselves."""
    server_file, client_file = openvpn_files(Profile(), tap=kind == "tap")
    serving = [["up", "10.8.0.1", "fd08::1"], ["serve", 7]]
    using = [
        ["up", "10.8.0.2", "fd08::1000"],
        ["ping", "10.8.0.1", 200],
        ["ping6", "fd08::1"],
        ["send", "10.8.0.1", 7, SENT],
        ["show"],
    ]
    with (
        Lent(network.server, ordinary_env, SERVER, actions=serving, files={"server.conf": server_file}) as server,
        Lent(network.client, ordinary_env, CLIENT, actions=using, files={"client.conf": client_file}) as client,
    ):
        server.wait_done("serve", 30)
        up = client.wait_done("up")
        assert (up["name"], up["kind"]) == (f"{kind}0", kind)
        client.wait_done("ping")
        client.wait_done("ping6")
        sent = client.wait_done("send", 120 + SENT / 2e6)
        assert sent["same"]
        assert sent["calls"] == 0, "a call was trapped while data flowed"
        assert client.wait_done("show")["routes"] == ["10.77.0.0/24", "fd77::/64"]
        assert client.process.stop(signal.SIGTERM) == 0
        assert client.wait_done("end") == {"done": "end", "left": [], "left_behind": 0}
        assert server.process.stop(signal.SIGTERM) == 0
        assert server.wait_done("end")["left"] == []


@KINDS
def test_redirect_gateway(network: Network, ordinary_env: Environment, kind: str) -> None:
    """Its routes are the stack's, and what it runs sees them; the namespace's own are as they were."""
    redirect = ["redirect-gateway def1 ipv6", "script-security 2", 'route-up "/bin/sh show"']
    server_file, client_file = openvpn_files(Profile(), tap=kind == "tap", client=redirect)
    # To a file: the program's own lines could come in between.
    show = f"exec >seen; ip -br addr show dev {kind}0; ip route; ip -6 route; ip route get 198.18.0.1"
    before = routes(network)
    with (
        Lent(network.server, ordinary_env, SERVER, actions=[["up"]], files={"server.conf": server_file}) as server,
        Lent(
            network.client,
            ordinary_env,
            CLIENT,
            actions=[["up", "10.8.0.2"], ["ping", "10.8.0.1"], ["show"]],
            files={"client.conf": client_file, "show": show},
        ) as client,
    ):
        server.wait_done("up", 30)
        client.process.wait_line("Initialization Sequence Completed", 30)
        seen = (client.folder / "seen").read_text().splitlines()
        assert any(line.split() == [f"{kind}0", "UNKNOWN", "10.8.0.2/24", "fd08::1000/64"] for line in seen), seen
        for route in (
            f"0.0.0.0/1 via 10.8.0.1 dev {kind}0",
            f"128.0.0.0/1 via 10.8.0.1 dev {kind}0",
            f"10.8.0.0/24 dev {kind}0 proto kernel scope link src 10.8.0.2",
            "192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.2",
            f"2000::/4 {'via fd08::1 ' if kind == 'tap' else ''}dev {kind}0 metric 1024",
            f"198.18.0.1 via 10.8.0.1 dev {kind}0 src 10.8.0.2",
        ):
            assert any(line.startswith(route) for line in seen), (route, seen)
        up = client.wait_done("show")
        assert {"0.0.0.0/1", "128.0.0.0/1", "2000::/4", "3000::/4", "fc00::/7"} <= set(up["routes"])
        assert routes(network) == before
        assert client.process.stop(signal.SIGTERM) == 0


def test_the_way_around_the_tunnel(ordinary_env: Environment) -> None:
    """A host route to the server by the real gateway is remembered, and never reaches the kernel."""
    with Network(path_mtu=1500) as network:
        server_file, client_file = openvpn_files(
            Profile(), client=["redirect-gateway def1", "script-security 2", 'route-up "/bin/sh show"']
        )
        network.client.ip("route del 192.0.2.0/24", "route add default via 198.51.100.1")
        before = routes(network)
        show = "exec >seen; ip route; ip route get 192.0.2.1"
        with (
            Lent(network.server, ordinary_env, SERVER, actions=[["up"]], files={"server.conf": server_file}) as server,
            Lent(
                network.client,
                ordinary_env,
                CLIENT,
                actions=[["up", "10.8.0.2"], ["ping", "10.8.0.1"]],
                files={"client.conf": client_file, "show": show},
            ) as client,
        ):
            server.wait_done("up", 30)
            client.wait_done("ping")
            client.process.wait_line("Initialization Sequence Completed", 30)
            seen = (client.folder / "seen").read_text().splitlines()
            bypass = [line for line in seen if line.startswith("192.0.2.1 via 198.51.100.1 dev eth")]
            assert len(bypass) == 2, seen
            assert routes(network) == before
            assert client.process.stop(signal.SIGTERM) == 0
            assert_no_error(client)


@KINDS
def test_a_restart_opens_the_device_anew(network: Network, ordinary_env: Environment, kind: str) -> None:
    """SIGUSR1: closed and opened, under the same name, and the stack is reached again."""
    server_file, client_file = openvpn_files(Profile(), tap=kind == "tap")
    using = [["up", "10.8.0.2"], ["ping", "10.8.0.1"], ["up", "10.8.0.2"], ["ping", "10.8.0.1"], ["show"]]
    with (
        Lent(network.server, ordinary_env, SERVER, actions=[["up"]], files={"server.conf": server_file}) as server,
        Lent(network.client, ordinary_env, CLIENT, actions=using, files={"client.conf": client_file}) as client,
    ):
        server.wait_done("up", 30)
        client.wait_done("ping", 30)
        seen = len(client.process.out)
        client.process.send_signal(signal.SIGUSR1)
        assert client.wait_done("up", 30, seen)["name"] == f"{kind}0"
        client.wait_done("ping", 30, seen)
        client.wait_done("show", 30)
        assert client.process.stop(signal.SIGTERM) == 0
        assert client.wait_done("end")["left"] == []


def test_a_gateway_into_it(network: Network, ordinary_env: Environment) -> None:
    """``ginnel lend --socks``, a rootless stock OpenVPN with a gateway, and nothing left after it."""
    server_file, client_file = openvpn_files(Profile())
    with (
        Lent(
            network.server, ordinary_env, SERVER, actions=[["up"], ["page"]], files={"server.conf": server_file}
        ) as server,
        Lent(
            network.client, ordinary_env, CLIENT, "--socks", "unix:socks", files={"client.conf": client_file}
        ) as client,
    ):
        server.wait_done("page", 30)
        client.process.wait_line("Initialization Sequence Completed", 30)
        assert client.process.err.all() == [
            "ginnel: /dev/net/tun is lent to openvpn; SOCKS5 on unix:socks (for you alone); "
            "addresses only: --dns ADDR names a server on the other side that resolves names"
        ]
        proxy = client.folder / "socks"
        wanted = ["curl", "--silent", "--max-time", "20", "--proxy", f"socks5h://localhost{proxy}"]
        page = network.client.run([*wanted, "http://10.8.0.1/"], ordinary=True, timeout=30)
        assert page == "the other side"
        refused = network.client.run(
            [*wanted, "--write-out", "%{exitcode}", "http://wiki.office/"], ordinary=True, check=False
        )
        assert refused == "97", "a name went somewhere"
        assert client.process.stop(signal.SIGTERM) == 0
        wait_until(lambda: not network.client.ordinary_processes(), 10, network.client.ordinary_processes)


def test_a_device_with_a_name(network: Network, ordinary_env: Environment) -> None:
    """``ginnel lend --device``: it is shown, pinged through and deleted from elsewhere."""
    server_file, client_file = openvpn_files(Profile())
    with (
        Lent(network.server, ordinary_env, SERVER, actions=[["up"]], files={"server.conf": server_file}) as server,
        Lent(network.client, ordinary_env, CLIENT, "--device", "office0", files={"client.conf": client_file}) as client,
    ):
        server.wait_done("up", 30)
        client.process.wait_line("Initialization Sequence Completed", 30)

        def ginnel(*words: str) -> str:
            return network.client.run([ordinary_env.ginnel, *words], ordinary=True, timeout=60)

        shown = json.loads(ginnel("device", "show", "office0", "--json"))
        assert (shown["state"], shown["addresses"]) == ("up", ["10.8.0.2/24", "fd08::1000/64"])
        assert [holder["program"] for holder in shown["application"]] == ["openvpn"]
        seen = json.loads(ginnel("ping", "--device", "office0", "10.8.0.1", "-c", "5", "--json").splitlines()[-1])
        assert seen["received"] == 5
        ginnel("device", "delete", "office0")
        assert client.process.wait(30) == 0, str(client.process)
        assert "office0" not in ginnel("device", "list")


def routes(network: Network) -> str:
    return network.client.run(["ip", "route"]) + network.client.run(["ip", "-6", "route"])


def assert_no_error(client: Lent) -> None:
    log = client.process.out.all()
    assert not [line for line in log if " ERROR" in line], "\n".join(log)
