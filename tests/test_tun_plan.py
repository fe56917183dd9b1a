"""From what is pushed, and the routes there are, to the changes of a machine; and what the helper refuses."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ginnel.errors import DeviceError
from ginnel.gateways.access import CLOSED
from ginnel.network.journal import Journal, recover
from ginnel.network.kill_switch import rules
from ginnel.network.leaks import leaks, unmade
from ginnel.network.masquerade import Forward, Gate, free_ports
from ginnel.network.masquerade import rules as masquerade_rules
from ginnel.network.plan import AddressChange, RouteChange, Settings, Wish, plan, settings, way_to
from ginnel.openvpn.push import PushReply

HOME = RouteChange(ip_network("0.0.0.0/0"), "wlan0", ip_address("192.168.1.1"), 600)
LAN = RouteChange(ip_network("192.168.1.0/24"), "wlan0", None, 600)
HOME6 = RouteChange(ip_network("::/0"), "wlan0", ip_address("fe80::1"), 1024)
PRESENT = [HOME, LAN, HOME6]
TUNNEL = (
    "ifconfig 10.8.0.2 255.255.255.0",
    "topology subnet",
    "route-gateway 10.8.0.1",
    "ifconfig-ipv6 fd08::2/64 fd08::1",
)


def wish(*options: str, file: tuple[str, ...] = (), servers: tuple[str, ...] = ("203.0.113.5",)) -> Settings:
    """What a push and a file come to, as it arrives at the helper."""
    wanted = settings(PushReply.parse([*TUNNEL, *options]), PushReply.parse(file), servers)
    return Settings.parse(json.loads(json.dumps(wanted.emit())))


def changes(
    *options: str,
    file: tuple[str, ...] = (),
    servers: tuple[str, ...] = ("203.0.113.5",),
    present: Sequence[RouteChange] = PRESENT,
) -> dict[str, tuple[str | None, str | None]]:
    """Destinations, each with its device and gateway."""
    made = plan(wish(*options, file=file, servers=servers), "tun0", present)
    assert [change.interface for change in made if isinstance(change, AddressChange)] == [
        ip_interface("10.8.0.2/24"),
        ip_interface("fd08::2/64"),
    ]
    routes = [change for change in made if isinstance(change, RouteChange)]
    return {str(route.destination): (route.device, route.gateway and str(route.gateway)) for route in routes}


def test_some_networks_leave_the_server_where_it_is() -> None:
    assert changes("route 10.77.0.0 255.255.0.0", "route-ipv6 fd77::/64") == {
        "10.77.0.0/16": ("tun0", "10.8.0.1"),
        "fd77::/64": ("tun0", "fd08::1"),
    }


@pytest.mark.parametrize(
    ("server", "bypass"),
    [("203.0.113.5", ("wlan0", "192.168.1.1")), ("2001:db8::5", ("wlan0", "fe80::1"))],
)
def test_a_server_stays_outside_of_everything(server: str, bypass: tuple[str, str]) -> None:
    made = changes("redirect-gateway def1 ipv6", servers=(server,))
    assert made[f"{server}/{32 if '.' in server else 128}"] == bypass
    assert {"0.0.0.0/1", "128.0.0.0/1", "::/3", "2000::/4", "3000::/4", "fc00::/7"} < set(made)


def test_without_a_router_the_server_is_not_looked_for_in_the_tunnel() -> None:
    assert changes("redirect-gateway def1", present=[LAN])["203.0.113.5/32"] == (None, None)
    assert "203.0.113.5/32" not in changes("route 10.77.0.0 255.255.0.0", present=[LAN])


def test_a_server_on_the_link_needs_no_way_of_its_own() -> None:
    assert "192.168.1.9/32" not in changes("redirect-gateway def1", servers=("192.168.1.9",))


@pytest.mark.parametrize("network", ["192.168.1.0 255.255.255.0", "192.168.1.8 255.255.255.252", "192.168.1.9"])
def test_unless_its_network_is_drawn_in(network: str) -> None:
    made = changes(f"route {network}", servers=("192.168.1.9",))
    assert made["192.168.1.9/32"] == ("wlan0", None)


def test_the_flags_of_redirect_gateway() -> None:
    assert "0.0.0.0/1" not in changes("redirect-gateway ipv6 !ipv4")
    assert "::/3" not in changes("redirect-gateway def1")
    assert "203.0.113.5/32" not in changes("redirect-gateway def1 local")
    blocked = changes("redirect-gateway def1 block-local", servers=("192.168.1.9",))
    assert blocked["192.168.1.0/25"] == blocked["192.168.1.128/25"] == ("tun0", "10.8.0.1")
    assert blocked["192.168.1.9/32"] == blocked["192.168.1.1/32"] == ("wlan0", None)


@pytest.mark.parametrize(
    ("file", "pushed", "drawn"),
    [
        ("redirect-gateway def1 ipv6", "redirect-gateway def1", "46"),
        ("redirect-gateway def1", "redirect-gateway ipv6", "46"),
        ("redirect-gateway def1 ipv6", "redirect-private block-local", "46b"),
        ("redirect-private block-local", "redirect-gateway def1", "4b"),
        ("redirect-gateway ipv6 !ipv4", "redirect-gateway def1", "46"),
        ("redirect-gateway def1", "redirect-gateway ipv6 !ipv4", "6"),
        ("redirect-private", "redirect-private ipv6", "6"),
    ],
)
def test_what_the_file_and_the_server_redirect_counts_together(file: str, pushed: str, drawn: str) -> None:
    """As stock has it (``options.c``), whose flags are a set to which each adds."""
    made = changes(pushed, file=(file,))
    found = {"4": "0.0.0.0/1", "6": "2000::/4", "b": "192.168.1.0/25"}
    assert "".join(kind for kind, network in found.items() if network in made) == drawn


@pytest.mark.parametrize(
    ("option", "metric", "parts"),
    [
        ("route 0.0.0.0 0.0.0.0", 0, {"0.0.0.0/1", "128.0.0.0/1"}),
        ("route 0.0.0.0 0.0.0.0", 600, {"0.0.0.0/0"}),
        ("route 0.0.0.0 0.0.0.0 default 600", 600, {"0.0.0.0/1", "128.0.0.0/1"}),
        ("route 0.0.0.0 0.0.0.0 default 700", 600, {"0.0.0.0/0"}),
        ("route-ipv6 ::/0", 600, {"::/3", "2000::/4", "3000::/4", "fc00::/7"}),
        ("route-ipv6 ::/0", 1024, {"::/3", "2000::/4", "3000::/4", "fc00::/7"}),
        ("route-ipv6 ::/0", 2000, {"::/0"}),
    ],
)
def test_a_default_route_counts_beside_the_one_that_is_there(option: str, metric: int, parts: set[str]) -> None:
    """The kernel has one route of a destination and metric; ours would be none."""
    present = [replace(route, metric=metric) if route.destination.prefixlen == 0 else route for route in PRESENT]
    made = changes(option, present=present)
    assert {network for network, (device, _) in made.items() if device == "tun0"} == parts
    server = "203.0.113.5/32"
    # One that counts less than the machine's takes nothing away.
    assert (made.get(server) == ("wlan0", "192.168.1.1")) == ("ipv6" not in option and "700" not in option)


def told(*options: str, present: Sequence[RouteChange], file: tuple[str, ...] = ()) -> list[str]:
    wanted = wish(*options, file=file)
    planned = plan(wanted, "tun0", present)
    return [*unmade(planned, present), *leaks(wanted, "tun0", planned, present)]


BY_DHCP = RouteChange(ip_network("198.51.100.0/24"), "wlan0", ip_address("192.168.1.66"))
HOME_LAN6 = RouteChange(ip_network("2a02:1234:5:6::/64"), "wlan0", None, 256)
BY_RA = RouteChange(ip_network("2606:4700::/32"), "wlan0", ip_address("fe80::66"), 512)
PUBLIC_LAN = RouteChange(ip_network("8.8.8.0/24"), "wlan0", None, 600)


@pytest.mark.parametrize(
    ("options", "more", "words"),
    [
        (("redirect-gateway def1",), (), "IPv6 leaves past the tunnel"),
        (("redirect-gateway def1 ipv6",), (), None),
        (("redirect-gateway def1", "block-ipv6"), (), None),
        (("redirect-gateway def1", "route-ipv6 2000::/3"), (), None),
        (("route 10.77.0.0 255.255.0.0",), (), None),
        (("redirect-gateway def1 ipv6",), (BY_DHCP,), "198.51.100.0/24 by 192.168.1.66 on wlan0"),
        (("redirect-gateway def1 ipv6",), (PUBLIC_LAN,), "8.8.8.0/24 by the link on wlan0"),
        (("redirect-gateway def1 ipv6",), (HOME_LAN6,), None),
        (("redirect-gateway def1 ipv6",), (BY_RA,), "2606:4700::/32 by fe80::66 on wlan0"),
        (("redirect-gateway def1 ipv6", "route 198.51.100.0 255.255.255.0 net_gateway"), (BY_DHCP,), None),
        (("route 10.77.0.0 255.255.0.0",), (BY_DHCP,), None),
        (
            ("route 198.51.100.0 255.255.255.0",),
            (BY_DHCP,),
            "already is left as it is, and leads past the tunnel: 198.51.100.0/24 by 192.168.1.66 on wlan0",
        ),
        (("route 198.51.100.0 255.255.255.0",), (replace(BY_DHCP, metric=50),), None),
    ],
)
def test_what_goes_past_the_tunnel_is_told(options: tuple[str, ...], more: tuple[RouteChange, ...], words: str) -> None:
    """TunnelVision and TunnelCrack's LocalNet, IPv6 beside an IPv4 tunnel, and routes that others have already."""
    sentences = told(*options, present=[*PRESENT, *more])
    assert len(sentences) == bool(words)
    assert words is None or words in sentences[0]


def test_a_machine_without_ipv6_has_nothing_to_leak() -> None:
    assert told("redirect-gateway def1", present=[HOME, LAN]) == []


def test_block_ipv6_leads_nowhere() -> None:
    made = changes("block-ipv6")
    assert {network for network, way in made.items() if way == (None, None)} == {
        "::/3",
        "2000::/4",
        "3000::/4",
        "fc00::/7",
    }
    assert changes("block-ipv6", servers=("2001:db8::5",))["2001:db8::5/128"] == ("wlan0", "fe80::1")


def test_a_gateway_of_the_network_there_was() -> None:
    made = changes("route 198.51.100.0 255.255.255.0 net_gateway", "route 10.1.0.0 255.255.0.0 vpn_gateway 7")
    assert made == {"198.51.100.0/24": ("wlan0", "192.168.1.1"), "10.1.0.0/16": ("tun0", "10.8.0.1")}


def test_a_gateway_that_is_named() -> None:
    """One on the tunnel's link, one that is a neighbour outside, and one that is neither."""
    assert changes(
        "route 10.1.0.0 255.255.0.0 10.8.0.9",
        "route 10.2.0.0 255.255.0.0 192.168.1.254",
        "route 10.3.0.0 255.255.0.0 172.16.0.1",
        "route-ipv6 fd01::/64 fd08::9",
        "route-ipv6 fd02::/64 fd99::1",
    ) == {
        "10.1.0.0/16": ("tun0", "10.8.0.9"),
        "10.2.0.0/16": ("wlan0", "192.168.1.254"),
        "10.3.0.0/16": ("tun0", "10.8.0.1"),
        "fd01::/64": ("tun0", "fd08::9"),
        "fd02::/64": ("tun0", "fd08::1"),
    }


def test_a_server_in_the_tunnels_own_network() -> None:
    """The kernel leads there by itself, what no route had to be pushed for."""
    assert changes(servers=("10.8.0.77",))["10.8.0.77/32"] == ("wlan0", "192.168.1.1")
    assert changes(servers=("fd08::77",))["fd08::77/128"] == ("wlan0", "fe80::1")
    assert changes(servers=("10.9.0.77",)) == {}


POOL = [
    *("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "203.0.113.0/24", "203.0.113.5/32", "10.8.0.0/24", "10.8.0.77/32"),
    *("::/0", "2000::/4", "2001:db8::/32", "2001:db8::5/128", "fd08::/64"),
]
METRICS = st.sampled_from([0, 1, 5, 256, 600, 1024, 4096])
ROUTES = st.builds(
    lambda network, device, metric: RouteChange(
        network,
        device,
        None if device is None else ip_address("fe80::1" if network.version == 6 else "192.168.1.1"),
        metric,
    ),
    st.sampled_from(POOL).map(ip_network),
    st.sampled_from(["wlan0", "eth0", None]),
    METRICS,
)
WISHES = st.builds(
    lambda network, way, metric: Wish(network, way, None, metric),
    st.none() | st.sampled_from(POOL).map(ip_network),
    st.sampled_from(["tunnel", "outside"]),
    METRICS,
)
FLAGS = st.none() | st.lists(st.sampled_from(["def1", "ipv6", "!ipv4", "block-local"]), max_size=3).map(tuple)


@given(
    present=st.lists(ROUTES, max_size=6),
    wishes=st.lists(WISHES, max_size=5).map(tuple),
    flags=FLAGS,
    blocks=st.booleans(),
    servers=st.lists(st.sampled_from(["203.0.113.5", "10.8.0.77", "2001:db8::5", "fd08::77"]), min_size=1, unique=True),
)
def test_no_packet_to_a_server_goes_into_the_tunnel(
    present: list[RouteChange],
    wishes: tuple[Wish, ...],
    flags: tuple[str, ...] | None,
    blocks: bool,
    servers: list[str],
) -> None:
    """Whatever the machine's routes are and whatever is pushed: it would go round for ever."""
    present = [replace(r, metric=1024) if r.destination.version == 6 and not r.metric else r for r in present]
    own, own6 = ip_interface("10.8.0.2/24"), ip_interface("fd08::2/64")
    wanted = Settings(
        servers=tuple(map(ip_address, servers)),
        address=own,
        address6=own6,
        routes=wishes,
        flags=flags,
        block_ipv6=blocks,
    )
    table = {(route.destination, route.metric): route for route in reversed(present)}
    for change in plan(wanted, "tun0", [*table.values()]):
        if isinstance(change, RouteChange):
            table.setdefault((change.destination, change.metric), change)
    routes = [*table.values(), RouteChange(own.network, "tun0"), RouteChange(own6.network, "tun0", metric=256)]
    for server in wanted.servers:
        way = way_to(server, routes)
        assert way is None or way.device != "tun0", (server, way)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["10.8.0.2/24", "::1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
FIELDS = list(Settings().emit())


@given(wrong=st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
def test_settings_of_anything_are_settings_or_refused(wrong: dict[str, Any]) -> None:
    fields = {**Settings().emit(), **wrong}
    try:
        wanted = Settings.parse(fields)
    except (ValueError, TypeError, KeyError, OverflowError):
        return
    assert Settings.parse(json.loads(json.dumps(wanted.emit()))) == wanted


@given(domain=st.text(max_size=20))
def test_a_domain_brings_no_line_into_resolv_conf(domain: str) -> None:
    fields = {**Settings().emit(), "domains": [domain]}
    try:
        wanted = Settings.parse(fields)
    except ValueError:
        return
    assert not set("".join(wanted.domains)) & set(" \n\t#;\0")


def test_a_helper_refuses_what_it_does_not_know() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "ginnel.network.helper"]
        with subprocess.Popen(command, stdin=theirs.fileno()) as helper:
            theirs.close()
            lines = ours.makefile("rb")
            for request in (
                {"do": "exec", "command": "id"},
                {"do": "device", "name": "../x", "kind": "tun", "queues": 1},
                {"do": "device", "name": None, "kind": "tun", "queues": 1000},
                {"do": "device", "name": None, "kind": "macvlan", "queues": 1},
                {"do": "configure", "settings": {}},
                {"do": "guard", "servers": [["203.0.113.5; accept", 1194, "udp"]]},
                {},
                [],
            ):
                ours.sendall(json.dumps(request).encode() + b"\n")
                answer = json.loads(lines.readline())
                assert "ok" not in answer, request
                assert answer["error"]
            ours.sendall(b"no json\n")
            assert lines.readline() == b""
            assert helper.wait(10) == 0


def test_a_kill_switch_names_every_server() -> None:
    text = rules("tun0", [("203.0.113.5", 1194, "udp"), ("2001:db8::5", 443, "tcp")])
    assert "ip daddr 203.0.113.5 udp dport 1194 accept" in text
    assert "ip6 daddr 2001:db8::5 tcp dport 443 accept" in text
    with pytest.raises(ValueError, match="does not appear"):
        rules("tun0", [("host; accept", 1194, "udp")])


def test_a_journal_that_cannot_be_read_or_put_back_is_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write([{"undo": "kill_switch"}])
    journal.close(keep=True)
    (path,) = tmp_path.glob("*.json")
    undone: list[dict[str, Any]] = []
    failing: list[dict[str, Any]] = []

    def note(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        undone.extend(entries)
        return [entry for entry in entries if entry in failing]

    for content in ("[{", "{}", '["x"]'):
        path.write_text(content)
        with pytest.raises(DeviceError, match="by hand"):
            recover(note, tmp_path)
        assert path.exists()
    path.write_text('[{"undo": "kill_switch"}, {"undo": "later"}]')
    failing.append({"undo": "kill_switch"})
    with pytest.raises(DeviceError, match="cannot be put back: kill switch"):
        recover(note, tmp_path)
    assert path.exists()
    undone.clear()
    failing.clear()
    assert recover(note, tmp_path) == 1
    assert undone == [{"undo": "later"}, {"undo": "kill_switch"}]
    assert list(tmp_path.iterdir()) == []
    assert recover(note, tmp_path) == 0


def test_nobody_undoes_what_a_living_process_has_changed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write([{"undo": "kill_switch"}])
    other = Journal(tmp_path)
    assert recover(lambda entries: pytest.fail(str(entries)), tmp_path) == 0
    assert other.of_others() == [{"undo": "kill_switch"}]
    assert journal.of_others() == []
    journal.close()
    other.close()


def test_a_gate_closes_what_user_space_closes() -> None:
    gate = Gate.parse(json.loads(json.dumps(Gate((ip_network("10.8.0.0/24"),), (ip_network("10.1.0.0/16"),)).emit())))
    text = masquerade_rules("tun0", gate)
    for network in CLOSED:
        assert f"daddr {{ {network} }} goto refuse" in text
    opened, closed = text.index("daddr { 10.1.0.0/16 } accept"), text.index("daddr { 10.0.0.0/8 } goto refuse")
    assert opened < closed
    assert "dnat" not in text
    forwards = (Forward(8080, IPv4Address("10.8.0.2"), 80),)
    assert "tcp dport 8080 dnat ip to 10.8.0.2:80" in masquerade_rules("tun0", replace(gate, forwards=forwards))
    assert "masquerade to :40001-60999 fully-random" in masquerade_rules("tun0", replace(gate, listening=(1194, 40000)))
    assert free_ports((33000, 51820, 60000)) == (33001, 51819)
    nothing: dict[str, Any] = {"inside": [], "allow": [], "relaying": False, "forwards": [], "listening": []}
    with pytest.raises(ValueError, match="network"):
        Gate.parse({**nothing, "inside": ["10.8.0.0/24 } accept"]})
    for forward in (
        [0, "10.8.0.2", 80],
        [80, "10.8.0.2", 65536],
        [80, "10.8.0.2 accept", 80],
        ["80 accept", "10.8.0.2", 80],
    ):
        with pytest.raises(ValueError, match="port|accept"):
            Gate.parse({**nothing, "forwards": [forward]})
