"""Names under ``ginnel connect --tun``: whom the machine asks, and how a server's own name is found past the tunnel."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import network as places
from tests.harness.client import wait_until
from tests.harness.names import NameServer
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.server import Office, StockServer
from tests.harness.tun_client import RESOLV_CONF, Machine, way
from tests.harness.wire import Wire

PROFILE = Profile(
    keepalive=(1, 4),
    server_options=('push "redirect-gateway def1 ipv6"', f'push "route {places.SERVER} 255.255.255.255"'),
)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as network, Office(network.server):
        network.client.ip(f"route add default via {places.SERVER}", f"route add default via {places.SERVER6}")
        yield network


@pytest.fixture(scope="module")
def server(network: Network) -> Iterator[StockServer]:
    with StockServer(network, PROFILE) as server:
        yield server


RESOLVCONF = """#!/bin/sh
{ echo "resolvconf $*"; [ "$1" != -a ] || cat; } >> "$(dirname "$0")/said"
"""
# What systemd-resolved has in the file.
STUB = "nameserver 127.0.0.53\noptions edns0 trust-ad\n"
RESOLVECTL = """#!/bin/sh
echo "resolvectl $*" >> "$(dirname "$0")/said"
"""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("who", ["resolvconf", "resolvectl"])
def test_who_keeps_the_name_servers_is_asked(
    machine: Machine, server: StockServer, tmp_path: Path, who: str, end: signal.Signals
) -> None:
    """The programs' own words, which were tried with openresolv 3.12, resolvconf 1.91 and systemd-resolved 252."""
    install(tmp_path, who)
    asked = STUB if who == "resolvectl" else RESOLV_CONF
    with machine.asking(asked), machine.start(server.profile, "--dev", "office0", programs=tmp_path) as client:
        client.wait_next("up")
        said = (tmp_path / "said").read_text().splitlines()
        if who == "resolvconf":
            assert said[0] == "resolvconf -a tun.office0 -m 0 -x"
            assert [line for line in said[1:] if not line.startswith("#")] == ["nameserver 10.77.0.1", "search office"]
        else:
            assert said == ["resolvectl dns office0 10.77.0.1", "resolvectl domain office0 ~. office"]
        assert machine.resolv_conf.read_text() == asked
        if end is signal.SIGTERM:
            client.stop()
        else:
            helper = client.helper
            os.kill(client.pid, end)
            wait_until(lambda: not Path(f"/proc/{helper}").exists(), 10, lambda: "the helper stays")
    last = (tmp_path / "said").read_text().splitlines()[-1]
    assert last == ("resolvconf -d tun.office0" if who == "resolvconf" else "resolvectl revert office0")


def test_systemd_resolved_that_nobody_asks_is_not_told(machine: Machine, server: StockServer, tmp_path: Path) -> None:
    """It runs, and /etc/resolv.conf names another: what it knew no program would learn."""
    install(tmp_path, "resolvectl")
    with machine.start(server.profile, programs=tmp_path) as client:
        client.wait_next("up")
        assert "nameserver 10.77.0.1" in machine.resolv_conf.read_text()
        client.stop()
    assert not (tmp_path / "said").exists()
    assert machine.resolv_conf.read_text() == RESOLV_CONF


NO_OTHERS = 'pull-filter ignore "dhcp-option DNS"'


@pytest.mark.parametrize(
    ("who", "options", "said", "told"),
    [
        (
            "resolvectl",
            ("dns server 1 address 10.77.0.1:5353 [fd77::1]:5353", "dns server 1 resolve-domains corp.example .office"),
            [
                "resolvectl dns office0 10.77.0.1:5353 [fd77::1]:5353",
                "resolvectl domain office0 ~corp.example ~office office",
            ],
            "",
        ),
        (
            "resolvectl",
            (
                "dns server 1 address 10.77.0.1",
                "dns server 2 address 10.77.0.2",
                "dns server 2 resolve-domains corp.example",
            ),
            ["resolvectl dns office0 10.77.0.1", "resolvectl domain office0 ~. office"],
            "the name servers for corp.example are not asked",
        ),
        (
            "resolvconf",
            ("dns server 1 address 10.77.0.1 10.77.0.2:5353",),
            ["resolvconf -a tun.office0 -m 0 -x", "nameserver 10.77.0.1", "search office"],
            "other ports than 53 are not asked",
        ),
        (
            "resolvconf",
            ("dns server 1 address 10.77.0.1", "dns server 1 resolve-domains corp.example"),
            [],
            "the name servers for corp.example are not asked: that takes systemd-resolved",
        ),
        (
            "resolvectl",
            (
                "dns server 1 address 10.77.0.1 [fd77::1]:8853",
                "dns server 1 transport DoT",
                "dns server 1 sni ns.office",
            ),
            [
                "resolvectl dnsovertls office0 yes",
                "resolvectl dns office0 10.77.0.1#ns.office [fd77::1]:8853#ns.office",
                "resolvectl domain office0 ~. office",
            ],
            "",
        ),
        (
            "resolvectl",
            ("dns server 1 address 10.77.0.1", "dns server 1 dnssec yes"),
            [
                "resolvectl dnssec office0 yes",
                "resolvectl dns office0 10.77.0.1",
                "resolvectl domain office0 ~. office",
            ],
            "",
        ),
        (
            "resolvectl",
            ("dns server 1 address 10.77.0.1", "dns server 1 transport DoH"),
            [],
            "are not asked: they are to be asked with DoH, and systemd-resolved does not",
        ),
        (
            "resolvconf",
            ("dns server 1 address 10.77.0.1", "dns server 1 transport DoT"),
            [],
            "are not asked: they are to be asked with DoT, and that takes systemd-resolved",
        ),
    ],
    ids=[
        *("for-some-domains", "for-all-and-some", "other-ports", "for-some-domains-resolvconf"),
        *("tls", "validated", "https", "tls-resolvconf"),
    ],
)
def test_name_servers_for_some_names(
    machine: Machine,
    server: StockServer,
    tmp_path: Path,
    who: str,
    options: tuple[str, ...],
    said: list[str],
    told: str,
) -> None:
    """Each is asked where it can be; where not a line says so."""
    install(tmp_path, who)
    text = server.profile.client_file() + "\n".join((NO_OTHERS, *options, ""))
    asked = STUB if who == "resolvectl" else RESOLV_CONF
    with machine.asking(asked), machine.start(text, "--dev", "office0", programs=tmp_path) as client:
        client.wait_next("up")
        file = tmp_path / "said"
        lines = file.read_text().splitlines() if file.exists() else []
        assert [line for line in lines if not line.startswith("#")] == said
        client.stop()
        warnings = "\n".join(client.process.err.all())
        assert told in warnings
        assert ("name servers" in warnings) == bool(told)


def install(folder: Path, who: str) -> None:
    """A program that notes how it was called."""
    program = folder / who
    program.write_text(RESOLVCONF if who == "resolvconf" else RESOLVECTL)
    program.chmod(0o755)
    if who == "resolvectl":
        (folder / "run/resolve").mkdir(parents=True)


def test_who_writes_resolv_conf_meanwhile_gets_it_back(machine: Machine, server: StockServer) -> None:
    """A DHCP client does when the machine comes into another network: names must not go there while it is up."""
    theirs = "nameserver 192.0.2.54\n"
    try:
        before = {**machine.state(), "resolv.conf": theirs}
        with machine.start(server.profile) as client:
            client.wait_next("up")
            machine.resolv_conf.write_text(theirs)
            machine.namespace.ip(f"route add 203.0.113.0/24 via {places.SERVER}")
            wait_until(lambda: "nameserver 10.77.0.1" in machine.resolv_conf.read_text(), 10, lambda: client.process)
            machine.namespace.ip(f"route delete 203.0.113.0/24 via {places.SERVER}")
            client.stop()
        assert machine.state() == before
    finally:
        machine.resolv_conf.write_text(RESOLV_CONF)


@pytest.mark.parametrize("options", [(), ("--kill-switch",)], ids=["open", "kill-switch"])
def test_a_server_that_moves_is_found_past_the_tunnel(
    network: Network, machine: Machine, server: StockServer, options: tuple[str, ...]
) -> None:
    """Its name has to be asked for while everything, the name servers too, is led into a tunnel that is down."""
    by_name = replace(server.profile, address="vpn.example").client_file()
    other = replace(server.profile, address="192.0.2.9")
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(NameServer(network.server, {"vpn.example": places.SERVER}))
        stack.enter_context(machine.asking(names.resolv_conf))
        before = machine.state()
        client = stack.enter_context(machine.start(by_name, *options))
        assert client.wait_next("up")["server"] == f"{places.SERVER}:1194"
        assert way(client, names.address) == "tun0"
        network.server.ip(f"address add {other.address}/24 dev eth0")
        stack.callback(network.server.ip, f"address delete {other.address}/24 dev eth0")
        stack.callback(server.start)
        server.kill()
        wire = stack.enter_context(Wire(network))
        with StockServer(network, other):
            names.known["vpn.example"] = other.address
            assert client.wait_next("up")["server"] == f"{other.address}:1194"
            assert way(client, other.address) == "eth0"
            # It is nobody's now, and what the server pushes counts.
            assert way(client, places.SERVER) == "tun0"
            client.stop()
        if options:
            assert {kind for kind in wire.take() if kind[0] not in (places.SERVER, other.address)} == {
                (names.address, socket.IPPROTO_UDP)
            }
        assert names.askers == {places.CLIENT}
        assert machine.state() == before


def test_a_name_server_of_the_machine_itself_is_asked_too(
    network: Network, machine: Machine, server: StockServer
) -> None:
    """As a container has it, and with a kill switch, which loopback is open in."""
    by_name = replace(server.profile, address="vpn.example").client_file()
    with (
        NameServer(machine.namespace, {"vpn.example": places.SERVER}, address="127.0.0.11") as names,
        machine.asking(names.resolv_conf),
        machine.start(by_name, "--kill-switch") as client,
    ):
        client.wait_next("up")
        names.asked.clear()
        server.kill()
        client.wait_next("reconnecting")
        assert names.asked.wait(10), str(client.process)
        server.start()
        client.wait_next("up")
        client.stop()


def test_a_name_server_that_does_not_answer_is_named(network: Network, machine: Machine, server: StockServer) -> None:
    before = machine.state()
    text = replace(server.profile, address="vpn.example").client_file()
    with (
        NameServer(network.server) as names,
        machine.asking(names.resolv_conf),
        machine.start(text, "--timeout", "1") as client,
    ):
        assert client.process.wait(10) == 3, str(client.process)
        assert "cannot resolve vpn.example: no answer" in client.process.err.all()[-1]
    assert machine.state() == before


def test_a_name_that_nobody_knows_any_more_is_where_it_was(
    network: Network, machine: Machine, server: StockServer
) -> None:
    by_name = replace(server.profile, address="vpn.example").client_file()
    with (
        NameServer(network.server, {"vpn.example": places.SERVER}) as names,
        machine.asking(names.resolv_conf),
        machine.start(by_name, "--kill-switch") as client,
    ):
        client.wait_next("up")
        names.known.clear()
        names.asked.clear()
        # As who reloads all of the machine's rules does.
        machine.namespace.run(["nft", "flush", "ruleset"])
        server.kill()
        assert names.asked.wait(30), str(client.process)
        server.start()
        client.wait_next("up")
        assert "table inet ginnel" in machine.state()["nft"]
        client.stop()
