"""What client files name as their server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ginnel.errors import ConfigError
from ginnel.server.client_file import remotes
from tests.harness.network import Namespace
from tests.harness.process import run

GINNEL = [sys.executable, "-m", "ginnel"]


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


def give(namespace: Namespace, *addresses: str) -> None:
    """A link with these addresses, and a default route for the family of each."""
    namespace.ip("link add out type veth peer name far", "link set far up", "link set out up")
    for address in addresses:
        namespace.ip(f"address add {address} dev out {'nodad' if ':' in address else ''}")
        namespace.ip(f"route add {'::/0' if ':' in address else '0.0.0.0/0'} dev out")


@pytest.mark.parametrize(
    ("addresses", "hosts"),
    [
        (["192.168.7.2/24"], ["192.168.7.2"]),
        (["fd00:7::2/64"], ["fd00:7::2"]),
        (["fd00:7::2/64", "192.168.7.2/24"], ["192.168.7.2"]),
        (["2a01:4f8::2/64", "192.168.7.2/24"], ["2a01:4f8::2", "192.168.7.2"]),
        (["2a01:4f8::2/64", "8.8.4.2/24"], ["8.8.4.2", "2a01:4f8::2"]),
    ],
)
def test_client_files_name_the_addresses_that_others_reach(
    namespace: Namespace, addresses: list[str], hosts: list[str]
) -> None:
    give(namespace, *addresses)
    with namespace.entered():
        places, warning = remotes(["udp 0.0.0.0:1194", "udp [::]:1194"], None)
    assert places == [("udp", host, 1194) for host in hosts]
    assert warning is not None
    assert all(host in warning for host in hosts)
    assert "--public" in warning


def test_without_any_way_out_a_name_must_be_given(namespace: Namespace) -> None:
    with namespace.entered(), pytest.raises(ConfigError, match="no default route.*--public"):
        remotes(["udp 0.0.0.0:1194", "udp [::]:1194"], None)


def test_a_user_of_a_machine_without_ipv6_gets_a_file(namespace: Namespace, tmp_path: Path) -> None:
    give(namespace, "192.168.7.2/24")
    with namespace.start([*GINNEL, "serve", "--dir", tmp_path / "state", "--json"], env=dict(os.environ)) as server:
        server.wait_line('"event": "up"', 30)
        text = run(namespace.command([*GINNEL, "user", "add", "alice", "--dir", tmp_path / "state"]))
    assert [line for line in text.splitlines() if line.startswith("remote ")] == [
        *("remote 192.168.7.2 1194 udp", "remote 192.168.7.2 1194 tcp")
    ]
