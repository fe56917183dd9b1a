"""``connect --tun`` when datagrams go elsewhere than where a remote says: with `float`, and by a SOCKS proxy's relay.

What is sent there must not go into the tunnel, and a kill switch has to let it through, and nothing of other programs.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.harness import network as places
from tests.harness import office, proxy
from tests.harness.client import wait_until
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.proxy import Proxies
from tests.harness.relay import Relay
from tests.harness.server import Office, StockServer
from tests.harness.tun_client import Machine, TunClient, way
from tests.harness.wire import Wire

OTHER, THIRD = "192.0.2.9", "192.0.2.10"
EVERYTHING = ('push "redirect-gateway def1"',)
FETCH = ("curl", "--silent", "--show-error", "--max-time", "10", f"http://{office.ADDRESS}/")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as network, Office(network.server):
        network.client.ip(f"route add default via {places.SERVER}")
        network.server.ip(*(f"address add {address}/24 dev eth0" for address in (OTHER, THIRD)))
        yield network


@pytest.mark.parametrize("options", [(), ("--kill-switch",)], ids=["open", "kill-switch"])
@pytest.mark.parametrize("wrap", ["tls-crypt", "none"])
def test_a_server_that_moves_is_followed(
    network: Network, machine: Machine, wrap: str, options: tuple[str, ...]
) -> None:
    """While it is up, and in the handshake of a reconnection."""
    profile = Profile(wrap=wrap, keepalive=(1, 4), server_options=EVERYTHING)  # type: ignore[arg-type]
    # The addresses on the link would not go into the tunnel by themselves.
    lines = ("float", f"route {OTHER}", f"route {THIRD}")
    text = replace(profile, client_options=lines).client_file(Relay.PORT)
    before = machine.state()
    with StockServer(network, profile), Relay(network, 1 << 30) as relay, machine.start(text, *options) as client:
        if options:
            relay.answer_from(OTHER)
            assert client.wait_next("up")["server"] == f"{OTHER}:{Relay.PORT}"
        else:
            client.wait_next("up")
            assert way(client, OTHER) == "tun0"
            relay.answer_from(OTHER)
        assert client.run(*FETCH).encode() == office.PAGE
        wait_until(lambda: way(client, OTHER) == "eth0", 10, lambda: client.process)
        if wrap != "none":
            relay.answer_from(THIRD)
            # Stock does not push to one port twice within half a minute.
            relay.forget()
            client.process.send_signal(signal.SIGUSR1)
            client.wait_next("reconnecting")
            assert client.wait_next("up")["server"] == f"{THIRD}:{Relay.PORT}"
        assert client.run(*FETCH).encode() == office.PAGE
        followed = OTHER if wrap == "none" else THIRD
        assert leaks(client, network, Relay.PORT) == (set() if options else {followed})
        client.stop()
    assert machine.state() == before


@pytest.mark.parametrize("options", [(), ("--kill-switch",)], ids=["open", "kill-switch"])
def test_a_relay_elsewhere_than_its_proxy(network: Network, machine: Machine, options: tuple[str, ...]) -> None:
    profile = Profile(keepalive=(1, 4), server_options=EVERYTHING)
    lines = (f"socks-proxy {places.SERVER} {proxy.SOCKS_PORT} proxy-login", f"route {OTHER}", f"route {THIRD}")
    login = machine.folder / "proxy-login"
    login.write_text("\n".join(proxy.LOGIN) + "\n")
    before = machine.state()
    with (
        StockServer(network, profile),
        Proxies(network.server, places.SERVER, OTHER) as proxies,
        machine.start(replace(profile, client_options=lines), *options) as client,
    ):
        client.wait_next("up")
        assert proxies.process.wait_line(f"by {OTHER}", 5)
        client.process.send_signal(signal.SIGUSR1)
        # Everything is drawn in still, and the new relay is to be reached all the same.
        client.wait_next("reconnecting")
        up = client.wait_next("up")
        assert (up["server"], up["proxy"]) == (f"{places.SERVER}:1194", f"{places.SERVER}:{proxy.SOCKS_PORT}")
        assert client.run(*FETCH).encode() == office.PAGE
        assert leaks(client, network, 1194) == (set() if options else {OTHER})
        client.stop()
    assert machine.state() == before


def leaks(client: TunClient, network: Network, port: int) -> set[str]:
    """Where another program's datagrams leave the machine for the addresses of the tunnel's packets."""
    probe = 7000
    with Wire(network) as wire:
        for address in (OTHER, THIRD):
            for to in (port, 53):
                with client.machine.namespace.socket(kind=socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
                    sock.bind(("", probe))
                    sock.sendto(b"leak", (address, to))
        return wire.from_port(probe)
