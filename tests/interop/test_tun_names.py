"""Names under ``ginnel connect --tun``: whom the machine asks, and how a server's own name is found past the tunnel."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness import network as places
from tests.harness.client import wait_until
from tests.harness.names import NameServer
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.resolver import PACKAGES, Resolver
from tests.harness.server import Office, StockServer
from tests.harness.tun_client import RESOLV_CONF, Machine, way
from tests.harness.wire import Wire

PROFILE = Profile(
    keepalive=(1, 4),
    server_options=(
        "duplicate-cn",
        'push "redirect-gateway def1 ipv6"',
        f'push "route {places.SERVER} 255.255.255.255"',
    ),
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


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("package", PACKAGES)
def test_who_keeps_the_name_servers_is_asked(
    machine: Machine, server: StockServer, package: str, end: signal.Signals
) -> None:
    """Names of the office are known while the tunnel is there, and then the keeper is as it was."""
    with Resolver(machine.namespace, package, "192.0.2.53") as resolver:
        before = known(resolver)
        with machine.start(server.profile, "--dev", "office0", resolver=resolver) as client:
            client.wait_next("up")
            assert client.run("getent", "ahostsv4", "wiki.office").split()[0] == "10.77.0.1"
            # By the domain that is searched.
            assert client.run("getent", "ahostsv4", "files").split()[0] == "10.77.0.1"
            if package == "systemd-resolved":
                assert known(resolver) == {**before, "dns": "10.77.0.1", "domain": "~. office"}
            else:
                asked = ["10.77.0.1"] if package == "openresolv" else ["10.77.0.1", "192.0.2.53"]
                assert known(resolver) == {"asked": asked, "search": [["office"]]}
            if end is signal.SIGTERM:
                client.stop()
            else:
                helper = client.helper
                os.kill(client.pid, end)
                wait_until(lambda: not Path(f"/proc/{helper}").exists(), 10, lambda: "the helper stays")
        assert known(resolver) == before


def test_systemd_resolved_that_nobody_asks_is_not_told(machine: Machine, server: StockServer) -> None:
    """It runs, and /etc/resolv.conf names another: what it knew no program would learn."""
    with Resolver(machine.namespace, "systemd-resolved", "192.0.2.53") as resolver:
        resolver.run("sh", "-c", "rm /etc/resolv.conf; echo nameserver 192.0.2.54 >/etc/resolv.conf")
        before = known(resolver)
        with machine.start(server.profile, "--dev", "office0", resolver=resolver) as client:
            client.wait_next("up")
            assert known(resolver) == {**before, "asked": ["10.77.0.1"]}
            client.stop()
        assert known(resolver) == before


def known(resolver: Resolver) -> dict[str, Any]:
    """What the file that programs read says, and what systemd-resolved says of the tunnel's device."""
    lines = [line.split() for line in resolver.run("cat", "/etc/resolv.conf").splitlines()]
    asked = {"asked": [line[1] for line in lines if line[:1] == ["nameserver"]]}
    if resolver.package != "systemd-resolved":
        return {**asked, "search": [line[1:] for line in lines if line[:1] == ["search"]]}
    say = "for each in dns domain dnsovertls dnssec; do resolvectl $each office0 2>/dev/null || echo; done"
    # A device that it is told nothing of has "no" where one that is not there has nothing.
    words = [line.partition(": ")[2].removeprefix("no") for line in resolver.run("sh", "-c", say).splitlines()]
    return {**asked, **dict(zip(("dns", "domain", "dnsovertls", "dnssec"), words, strict=True))}


NO_OTHERS = 'pull-filter ignore "dhcp-option DNS"'


@pytest.mark.parametrize(
    ("package", "options", "changed", "told"),
    [
        (
            "systemd-resolved",
            ("dns server 1 address 10.77.0.1:5353 [fd77::1]:5353", "dns server 1 resolve-domains corp.example .office"),
            {"dns": "10.77.0.1:5353 [fd77::1]:5353", "domain": "~corp.example office"},
            "",
        ),
        (
            "systemd-resolved",
            (
                "dns server 1 address 10.77.0.1",
                "dns server 2 address 10.77.0.2",
                "dns server 2 resolve-domains corp.example",
            ),
            {"dns": "10.77.0.1", "domain": "~. office"},
            "the name servers for corp.example are not asked",
        ),
        (
            "openresolv",
            ("dns server 1 address 10.77.0.1 10.77.0.2:5353",),
            {"asked": ["10.77.0.1"], "search": [["office"]]},
            "other ports than 53 are not asked",
        ),
        (
            "openresolv",
            ("dns server 1 address 10.77.0.1", "dns server 1 resolve-domains corp.example"),
            {},
            "the name servers for corp.example are not asked: that takes systemd-resolved",
        ),
        (
            "systemd-resolved",
            (
                "dns server 1 address 10.77.0.1 [fd77::1]:8853",
                "dns server 1 transport DoT",
                "dns server 1 sni ns.office",
            ),
            {"dnsovertls": "yes", "dns": "10.77.0.1#ns.office [fd77::1]:8853#ns.office", "domain": "~. office"},
            "",
        ),
        (
            "systemd-resolved",
            ("dns server 1 address 10.77.0.1", "dns server 1 dnssec yes"),
            {"dnssec": "yes", "dns": "10.77.0.1", "domain": "~. office"},
            "",
        ),
        (
            "systemd-resolved",
            ("dns server 1 address 10.77.0.1", "dns server 1 transport DoH"),
            {},
            "are not asked: they are to be asked with DoH, and systemd-resolved does not",
        ),
        (
            "openresolv",
            ("dns server 1 address 10.77.0.1", "dns server 1 transport DoT"),
            {},
            "are not asked: they are to be asked with DoT, and that takes systemd-resolved",
        ),
    ],
    ids=[
        *("for-some-domains", "for-all-and-some", "other-ports", "for-some-domains-openresolv"),
        *("tls", "validated", "https", "tls-openresolv"),
    ],
)
def test_name_servers_for_some_names(
    machine: Machine, server: StockServer, package: str, options: tuple[str, ...], changed: dict[str, Any], told: str
) -> None:
    """Each is asked where it can be; where not a line says so."""
    text = server.profile.client_file() + "\n".join((NO_OTHERS, *options, ""))
    with Resolver(machine.namespace, package, "192.0.2.53") as resolver:
        before = known(resolver)
        with machine.start(text, "--dev", "office0", resolver=resolver) as client:
            client.wait_next("up")
            assert known(resolver) == {**before, **changed}
            client.stop()
            warnings = "\n".join(client.process.err.all())
            assert told in warnings
            assert ("name servers" in warnings) == bool(told)
        assert known(resolver) == before


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


@pytest.mark.parametrize("earlier", [0, 1], ids=["the first ends first", "the second ends first"])
def test_of_two_tunnels_the_later_is_asked_and_none_stays_in_resolv_conf(
    machine: Machine, server: StockServer, earlier: int
) -> None:
    own = ('pull-filter ignore "dhcp-option DNS"', "dhcp-option DNS 10.77.0.2")
    asked = ["nameserver 10.77.0.1\n", "nameserver 10.77.0.2\n"]
    before = machine.state()
    with machine.start(server.profile) as one:
        one.wait_next("up")
        with machine.start(replace(server.profile, client_options=own)) as two:
            two.wait_next("up")
            noise = f"203.0.113.0/24 via {places.SERVER}"
            machine.namespace.ip(f"route add {noise}", f"route delete {noise}")
            assert asked[1] in machine.resolv_conf.read_text()
            ends = [one, two]
            ends.pop(earlier).stop()
            wait_until(lambda: asked[1 - earlier] in machine.resolv_conf.read_text(), 10, machine.state)
            ends.pop().stop()
    assert machine.state() == before


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
