"""The kernel's main table of routes: read, changed, and put back."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ginnel.device import KernelDevice
from ginnel.network.apply import Applied
from ginnel.network.journal import Journal, recover
from ginnel.network.plan import RouteChange, Settings
from ginnel.network.routes import Table
from ginnel.transports.dial import source_address
from tests.harness.network import Namespace
from tests.test_tun_plan import FLAGS, WISHES

LINK = (
    "link add eth0 type veth peer name eth1",
    "link set eth0 up",
    "link set eth1 up",
    "address add 192.168.7.2/24 dev eth0",
    "address add fd01::2/64 dev eth0 nodad",
)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as machine:
        machine.ip(*LINK)
        yield machine


def route(destination: str, device: str | None = "eth0", gateway: str | None = None, metric: int = 0) -> RouteChange:
    return RouteChange(ip_network(destination), device, None if gateway is None else ip_address(gateway), metric)


def test_the_table_is_read_as_it_is(namespace: Namespace) -> None:
    namespace.ip(
        "route add default via 192.168.7.1 metric 600",
        "route add default via 192.168.7.3 metric 700",
        "route add 10.0.0.0/8 nexthop via 192.168.7.1 nexthop via 192.168.7.3",
        "route add unreachable 11.0.0.0/8",
        "route add 12.0.0.0/8 via 192.168.7.1 table 7",
        "route add default via fe80::1 dev eth0",
        "route add blackhole fd99::/64",
    )
    with namespace.entered(), Table() as table:
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


def test_each_route_of_a_batch_has_its_own_answer(namespace: Namespace) -> None:
    many = [route(f"10.{number >> 8}.{number & 255}.0/24", gateway="192.168.7.1") for number in range(1000)]
    wrong = route("10.200.0.0/16", gateway="203.0.113.1")
    with namespace.entered(), Table() as table:
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


WANTED = st.builds(
    lambda wishes, flags, blocks, ends: Settings(
        servers=(ip_address("203.0.113.5"), ip_address("10.8.0.77"), ip_address("fd08::77")),
        address=ip_interface(f"10.8.0.{ends}/24"),
        address6=ip_interface(f"fd08::{ends}/64"),
        routes=wishes,
        flags=flags,
        block_ipv6=blocks,
    ),
    st.lists(WISHES, max_size=5).map(tuple),
    FLAGS,
    st.booleans(),
    st.integers(2, 4),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(WANTED, min_size=1, max_size=3))
def test_whatever_is_wanted_in_turn_all_of_it_comes_back(
    namespace: Namespace, tmp_path: Path, wanted: list[Settings]
) -> None:
    """And while it is there no server is behind the tunnel, as the kernel sees it."""
    folder = tmp_path / "journals"
    namespace.ip("route replace default via 192.168.7.1", "route replace default via fe80::1 dev eth0")
    with namespace.entered(), Table() as table:
        before = sorted(table.read(), key=str)
        device = KernelDevice("tun9", "tun", queues=1, vnet_header=True)
        applied = Applied(Journal(folder))
        applied.device = "tun9"
        try:
            for each in wanted:
                applied.configure(each)
                for server in each.servers:
                    assert source_address(str(server)) not in (str(each.address.ip), str(each.address6.ip)), server
        finally:
            assert applied.release(keep_guard=False)
        # Its own, which go with it.
        assert {r.destination for r in table.read() if r.device == "tun9"} <= {ip_network("fe80::/64")}
        device.close()
        assert sorted(table.read(), key=str) == before
        assert not folder.exists()


def test_journals_of_networks_that_are_gone_go(namespace: Namespace, tmp_path: Path) -> None:
    """But for those of a network that is there still, and of processes that could not be seen from here."""
    undone, note = noted()
    with Namespace() as other:
        leave_journal(other, tmp_path)
        assert recover(note, tmp_path) == 0
        (left,) = tmp_path.glob("*.lock")
        assert left.with_suffix(".json").exists()
    leave_journal(namespace, tmp_path)
    # As of a network whose number is nobody's; by now the other's could be that of a new one.
    lock = left.with_stem("1-2-3")
    left.rename(lock)
    left.with_suffix(".json").rename(lock.with_suffix(".json"))
    stays = set(tmp_path.iterdir()) - {lock, lock.with_suffix(".json")}
    whose = lock.read_text()
    lock.write_text("pid:[1]")
    assert recover(note, tmp_path) == 0
    assert undone == []
    assert lock.exists()
    lock.write_text(whose)
    assert recover(note, tmp_path) == 0
    # The network went with its kill switch; a file did not.
    assert undone == [OF_A_FILE]
    assert set(tmp_path.iterdir()) == stays


def test_a_journal_of_an_earlier_network_of_this_number_changes_nothing_of_this_one(
    namespace: Namespace, tmp_path: Path
) -> None:
    undone, note = noted()
    leave_journal(namespace, tmp_path)
    (lock,) = tmp_path.glob("*.lock")
    with namespace.entered():
        with contextlib.closing(Journal(tmp_path)) as journal:
            assert journal.of_others() == LEFT
            lock.write_text(lock.read_text() + "0")
            assert journal.of_others() == [OF_A_FILE]
        assert recover(note, tmp_path) == 1
    assert undone == [OF_A_FILE]
    assert not lock.exists()


OF_A_FILE = {"undo": "resolv.conf", "before": None, "ours": ""}
LEFT = [{"undo": "kill_switch"}, OF_A_FILE]


def leave_journal(network: Namespace, folder: Path) -> None:
    """As a process does that is killed."""
    write = (
        "import sys; from pathlib import Path; from ginnel.network.journal import Journal\n"
        f"journal = Journal(Path(sys.argv[1])); journal.write({LEFT}); journal.close(keep=True)"
    )
    network.run([sys.executable, "-c", write, folder])


def noted() -> tuple[list[dict[str, Any]], Callable[[list[dict[str, Any]]], list[dict[str, Any]]]]:
    """What is to be undone, and what writes it there and does it."""
    undone: list[dict[str, Any]] = []

    def note(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        undone.extend(entries)
        return []

    return undone, note
