"""The kernel's main table of routes, read and changed without pyroute2."""

from __future__ import annotations

import errno
from ipaddress import ip_address, ip_network

from ginnel.network.plan import RouteChange
from ginnel.network.routes import Table
from tests.harness.network import Namespace

LINK = (
    "link add eth0 type veth peer name eth1",
    "link set eth0 up",
    "link set eth1 up",
    "address add 192.168.7.2/24 dev eth0",
    "address add fd01::2/64 dev eth0 nodad",
)


def route(destination: str, device: str | None = "eth0", gateway: str | None = None, metric: int = 0) -> RouteChange:
    return RouteChange(ip_network(destination), device, None if gateway is None else ip_address(gateway), metric)


def test_the_table_is_read_as_it_is() -> None:
    with Namespace() as machine:
        machine.ip(
            *LINK,
            "route add default via 192.168.7.1 metric 600",
            "route add default via 192.168.7.3 metric 700",
            "route add 10.0.0.0/8 nexthop via 192.168.7.1 nexthop via 192.168.7.3",
            "route add unreachable 11.0.0.0/8",
            "route add 12.0.0.0/8 via 192.168.7.1 table 7",
            "route add default via fe80::1 dev eth0",
            "route add blackhole fd99::/64",
        )
        with machine.entered(), Table() as table:
            found = [each for each in table.read() if not each.destination.is_link_local]
    assert sorted(found, key=str) == sorted(
        [
            route("0.0.0.0/0", gateway="192.168.7.1", metric=600),
            route("0.0.0.0/0", gateway="192.168.7.3", metric=700),
            route("10.0.0.0/8", gateway="192.168.7.1"),
            route("11.0.0.0/8", None),
            route("192.168.7.0/24"),
            route("::/0", gateway="fe80::1", metric=1024),
            route("fd01::/64", metric=256),
            route("fd99::/64", None, metric=1024),
        ],
        key=str,
    )


def test_each_route_of_a_batch_has_its_own_answer() -> None:
    many = [route(f"10.{number >> 8}.{number & 255}.0/24", gateway="192.168.7.1") for number in range(1000)]
    wrong = route("10.200.0.0/16", gateway="203.0.113.1")
    with Namespace() as machine:
        machine.ip(*LINK)
        with machine.entered(), Table() as table:
            before = table.read()
            assert table.add([*many, wrong, many[7], route("10.9.0.0/16", "none0"), route("fd50::/64", None)]) == [
                *[0] * 1000,
                errno.ENETUNREACH,
                errno.EEXIST,
                errno.ENODEV,
                0,
            ]
            assert set(many) < set(table.read())
            assert table.delete([*many, wrong, route("fd50::/64", None)])[-3:] == [0, errno.ESRCH, 0]
            assert table.read() == before
