"""Whom a client tries next: the remotes in their order, a name's addresses, and what was resolved meanwhile."""

from __future__ import annotations

import random
import socket
from typing import Any

import pytest

from ginnel.openvpn.config import HttpProxy, Remote
from ginnel.transports.ways import Outside, Unresolved, Way, Ways

Names = dict[str, list[str]]
FAMILIES = (socket.AF_INET, socket.AF_INET6)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """What the machine's resolver knows, beside addresses."""
    known: Names = {}
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, family: int = 0, **options: Any) -> Any:
        if not str(host).endswith(".example"):
            return real(host, port, family, **options)
        fitting = [
            text for text in known.get(host, []) if family in (0, socket.AF_INET6 if ":" in text else socket.AF_INET)
        ]
        if not fitting:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [entry for text in fitting for entry in real(text, port, family, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def shown(way: Way | Unresolved) -> str:
    return way.host + "?" if isinstance(way, Unresolved) else " ".join(address for address, _ in way.addresses)


async def tried(ways: Ways, *steps: str) -> list[str]:
    return [shown(await ways.next(step)) for step in steps]  # type: ignore[arg-type]


async def test_remotes_come_by_turns_and_their_addresses_before_the_next(names: Names) -> None:
    names["a.example"] = ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    ways = Ways((Remote("a.example"), Remote("192.0.2.9")), Outside(), shuffled=False)
    expected = ["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.9"]
    assert await tried(ways, *["address"] * 6) == [*expected, *expected[:2]]


async def test_where_a_server_sends_us(names: Names) -> None:
    names["a.example"] = ["192.0.2.1", "192.0.2.2"]
    ways = Ways((Remote("a.example"), Remote("192.0.2.9")), Outside(), shuffled=False)
    steps = ["address", "stay", "address", "stay", "remote", "remote", "remote"]
    assert await tried(ways, *steps) == [
        *("192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2"),
        *("192.0.2.9", "192.0.2.1", "192.0.2.9"),
    ]


async def test_a_name_is_resolved_anew_each_time_round(names: Names) -> None:
    names["a.example"] = ["192.0.2.1"]
    ways = Ways((Remote("a.example"),), Outside(), shuffled=False)
    assert await tried(ways, "address") == ["192.0.2.1"]
    names["a.example"] = ["192.0.2.7"]
    assert await tried(ways, "stay", "address") == ["192.0.2.1", "192.0.2.7"]
    names.clear()
    assert await tried(ways, "address", "stay") == ["a.example?", "a.example?"]
    names["a.example"] = ["192.0.2.8"]
    assert await tried(ways, "stay") == ["192.0.2.8"]


async def test_remote_random_has_another_order_each_time_and_each_remote_once_a_round() -> None:
    remotes = tuple(Remote(f"192.0.2.{number}") for number in range(6))
    orders = set()
    for seed in range(10):
        random.seed(seed)
        ways = Ways(remotes, Outside(), shuffled=True)
        order = await tried(ways, *["address"] * 6)
        assert sorted(order) == sorted(remote.host for remote in remotes)
        assert await tried(ways, *["address"] * 6) == order
        orders.add(tuple(order))
    assert len(orders) > 5


@pytest.mark.parametrize(
    ("remote", "addresses"),
    [
        (Remote("a.example", proto="udp4"), ["192.0.2.1"]),
        (Remote("a.example", proto="udp6"), ["2001:db8::1"]),
        (Remote("a.example", local="192.0.2.200"), ["192.0.2.1"]),
        (Remote("a.example", local="2001:db8::200"), ["2001:db8::1"]),
        (Remote("a.example", proto="tcp"), ["192.0.2.1 2001:db8::1"]),
        (Remote("a.example", proto="tcp", local="2001:db8::200"), ["2001:db8::1"]),
        (Remote("x.invalid", proto="tcp4", proxy=HttpProxy("a.example", 3128)), ["192.0.2.1 2001:db8::1"]),
    ],
)
async def test_which_of_a_names_addresses_fit(names: Names, remote: Remote, addresses: list[str]) -> None:
    names["a.example"] = ["192.0.2.1", "2001:db8::1"]
    ways = Ways((remote,), Outside(), shuffled=False)
    first = await ways.next("address")
    assert isinstance(first, Way)
    assert first.alone == ((len(addresses) == 1 and remote.proto[:3] == "udp") or remote.tcp)
    assert [shown(first), *(await tried(ways, *["address"] * (len(addresses) - 1)))] == addresses


async def test_only_the_first_round_is_impatient() -> None:
    ways = Ways((Remote("192.0.2.1"), Remote("192.0.2.2")), Outside(), shuffled=False)
    found = [await ways.next("address") for _ in range(3)]
    assert [isinstance(way, Way) and way.first for way in found] == [True, True, False]
