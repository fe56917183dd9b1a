"""Every way to a stock server: UDP and TCP, over IPv4 and IPv6, through proxies, to whichever server is there."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import replace
from typing import Literal

import pytest

from tests.harness import office, proxy
from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.network import CLIENT, SERVER, SERVER6, Network
from tests.harness.profile import Profile
from tests.harness.proxy import Proxies
from tests.harness.server import StockServer
from tests.interop.test_matrix import SIZE, fetch

TCP = Profile(transport="tcp")
PROXY_LOGIN = "<http-proxy-user-pass>\n{}\n{}\n</http-proxy-user-pass>".format(*proxy.LOGIN)


@pytest.mark.parametrize("wrap", ["none", "tls-auth", "tls-crypt"])
@pytest.mark.parametrize("address", [SERVER, SERVER6])
async def test_tcp(
    network: Network, ordinary_env: Environment, wrap: Literal["none", "tls-auth", "tls-crypt"], address: str
) -> None:
    profile = replace(TCP, wrap=wrap, address=address)
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as client:
        assert client.wait_up()["transport"] == "tcp"
        await fetch(client)
        client.stop()


async def test_tcp_comes_back_when_the_server_does(network: Network, ordinary_env: Environment) -> None:
    with StockServer(network, TCP) as server, GinnelClient(network, ordinary_env, TCP) as client:
        client.wait_next("up")
        server.kill()
        client.wait_next("reconnecting")
        server.start()
        client.wait_next("up", 30)
        await fetch(client)
        client.stop()


@pytest.mark.parametrize("scheme", ["basic", "digest"])
async def test_http_proxy(network: Network, ordinary_env: Environment, scheme: str) -> None:
    port = proxy.BASIC_PORT if scheme == "basic" else proxy.DIGEST_PORT
    profile = replace(TCP, client_options=(f"http-proxy {SERVER} {port}", PROXY_LOGIN))
    with (
        Proxies(network.server, SERVER) as proxies,
        StockServer(network, profile),
        GinnelClient(network, ordinary_env, profile) as client,
    ):
        await fetch(client)
        assert proxies.process.wait_line(f"{scheme} leads to {SERVER}:1194", 5)
        client.stop()


async def test_socks_proxy(network: Network, ordinary_env: Environment) -> None:
    profile = replace(TCP, client_options=(f"socks-proxy {SERVER} {proxy.SOCKS_PORT} proxy-login",))
    with Proxies(network.server, SERVER) as proxies, StockServer(network, profile):
        files = {"proxy-login": "\n".join(proxy.LOGIN) + "\n"}
        with GinnelClient(network, ordinary_env, profile, files=files) as client:
            await fetch(client)
            assert proxies.process.wait_line(f"socks leads to {SERVER}:1194", 5)
            client.stop()


async def test_socks_proxy_over_udp(network: Network, ordinary_env: Environment) -> None:
    """The relay lasts as long as the connection to the proxy: its end is noticed where no ping would."""
    options = (f"socks-proxy {SERVER} {proxy.SOCKS_PORT} proxy-login", "mssfix 1400 mtu")
    profile = Profile(keepalive=(60, 600), client_options=options)
    files = {"proxy-login": "\n".join(proxy.LOGIN) + "\n"}
    with StockServer(network, profile), contextlib.ExitStack() as running:
        with Proxies(network.server, SERVER) as proxies:
            client = running.enter_context(GinnelClient(network, ordinary_env, profile, files=files))
            assert client.wait_next("up")["transport"] == "udp"
            assert proxies.process.wait_line(f"datagrams go to {SERVER}:1194", 5)
            file = client.folder / "upload"
            file.write_bytes(office.body(SIZE))
            assert client.curl("--upload-file", str(file), "http://files.office/upload") == office.body_hash(SIZE)
            await fetch(client)
        longest = int([line for line in proxies.process.out.all() if line.startswith("longest")][-1].split()[2])
        # With the proxy's header and those of IP and UDP it is what mssfix says, or a little less.
        assert 1400 - 8 <= longest + 28 <= 1400
        client.wait_next("reconnecting", 10)
        with Proxies(network.server, SERVER):
            client.wait_next("up", 30)
            await fetch(client)
            client.stop()


def test_a_connection_that_is_reset_at_once_is_one_line(network: Network, ordinary_env: Environment) -> None:
    """Whether it ends before it is used, or after."""
    with network.server.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVER, 1194))
        listener.listen()
        listener.settimeout(0.1)
        ending = threading.Event()

        def reset() -> None:
            while not ending.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = listener.accept()
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.close()

        thread = threading.Thread(target=reset)
        thread.start()
        try:
            with GinnelClient(network, ordinary_env, TCP, "--timeout", "4") as client:
                status, line = client.fail()
        finally:
            ending.set()
            thread.join()
    assert status == 3, line
    assert f"{SERVER}:1194 closed the connection" in line or f"cannot reach {SERVER}" in line


def test_wrong_login_of_a_proxy(network: Network, ordinary_env: Environment) -> None:
    login = PROXY_LOGIN.replace(proxy.LOGIN[1], "a guess")
    profile = replace(TCP, client_options=(f"http-proxy {SERVER} {proxy.BASIC_PORT}", login))
    with Proxies(network.server, SERVER), GinnelClient(network, ordinary_env, profile) as client:
        status, line = client.fail()
    assert status == 4
    assert "guess" not in line


@pytest.mark.parametrize("first", ["tcp", "udp"])
async def test_the_second_remote_when_nothing_listens_at_the_first(
    network: Network, ordinary_env: Environment, first: Literal["tcp", "udp"]
) -> None:
    second: Literal["tcp", "udp"] = "udp" if first == "tcp" else "tcp"
    profile = Profile(transport=second, client_options=(f"remote {SERVER} 1194 {second}",))
    text = profile.client_file().replace(f"remote {SERVER} 1194\n", f"remote {SERVER} 1193 {first}\n", 1)
    with StockServer(network, profile), GinnelClient(network, ordinary_env, text) as client:
        up = client.wait_up()
        assert (up["transport"], up["server"]) == (second, f"{SERVER}:1194")
        assert client.curl("http://wiki.office/") == office.PAGE.decode()
        client.stop()


@pytest.mark.parametrize("local", [CLIENT, "own.example"])
def test_where_the_socket_is_bound(network: Network, ordinary_env: Environment, local: str) -> None:
    network.client.names(own=["2001:db8::77", CLIENT])
    profile = Profile(client_options=(f"local {local}", "lport 5151"))
    text = profile.client_file().replace("nobind\n", "")
    with StockServer(network, profile) as server, GinnelClient(network, ordinary_env, text) as client:
        client.wait_up()
        assert server.wait_log(f"{CLIENT}:5151")
        client.stop()


def test_another_address_of_our_own_is_noticed_at_once(network: Network, ordinary_env: Environment) -> None:
    """Without ping-restart nothing else would notice it for a long time."""
    profile = Profile(keepalive=(60, 600))
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as client:
        client.wait_next("up")
        network.client.ip("address add 192.0.2.99/24 dev eth0", f"address del {CLIENT}/24 dev eth0")
        # The kernel drops the other addresses of a network with its first one, unless told not to.
        network.client.ip("address replace 192.0.2.99/24 dev eth0")
        try:
            assert "192.0.2.99" in client.wait_next("reconnecting")["message"]
            client.wait_next("up")
            assert client.curl("http://wiki.office/") == office.PAGE.decode()
            client.stop()
        finally:
            network.client.ip("address del 192.0.2.99/24 dev eth0", f"address add {CLIENT}/24 dev eth0")
