"""Inner addresses: all of a network's are given out, none twice, and a user gets the same again."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

import pytest

from ginnel.server.pool import Pool


def make(topology: Literal["subnet", "net30"] = "subnet", network: str = "10.8.0.0/24") -> Pool:
    return Pool(IPv4Network(network), IPv6Network("fd00::/64"), topology)


@pytest.mark.parametrize(("topology", "count", "last"), [("subnet", 253, 254), ("net30", 63, 254)])
def test_every_address_is_given_out_once(topology: Literal["subnet", "net30"], count: int, last: int) -> None:
    pool = make(topology)
    leases = [pool.take(holder) for holder in range(count)]
    assert pool.take(count) is None
    addresses = {lease.address for lease in leases if lease is not None}
    assert len(addresses) == count
    assert max(addresses) == IPv4Address(f"10.8.0.{last}")
    assert not addresses & {pool.address, pool.network.network_address, pool.network.broadcast_address}
    given = leases[7]
    assert given is not None
    pool.give_back(7, given)
    assert pool.take(count) == given


def test_an_address_rests_before_another_gets_it_and_its_user_has_it_again() -> None:
    pool = make()
    first = pool.take(1)
    assert first is not None
    pool.give_back(1, first)
    second = pool.take(2)
    assert second is not None
    assert second.address != first.address
    assert pool.take(3, last=first.address) == first


def test_what_another_holds_or_is_no_clients_is_not_had_again() -> None:
    pool = make()
    held = pool.take(1, fixed=IPv4Address("10.8.0.9"))
    assert held is not None
    assert pool.take(2, fixed=IPv4Address("10.8.0.9")) is None
    for last in ("10.8.0.9", "10.8.0.1", "10.8.0.255", "10.9.0.5"):
        lease = pool.take(2, last=IPv4Address(last))
        assert lease is not None
        assert str(lease.address) != last
        pool.give_back(2, lease)


def test_what_is_fixed_for_others_is_not_given_out() -> None:
    pool = make()
    reserved = {IPv4Address("10.8.0.2"), IPv6Address("fd00::3"), IPv4Address("10.8.0.9")}
    lease = pool.take(1, last=IPv4Address("10.8.0.9"), reserved=reserved)
    assert lease is not None
    assert (str(lease.address), str(lease.address6)) == ("10.8.0.4", "fd00::4")
    assert pool.take(2, fixed=IPv4Address("10.8.0.9"), reserved=reserved) is not None


@pytest.mark.parametrize("fixed", ["10.8.0.0", "10.8.0.1", "10.8.0.255", "10.9.0.7", "192.0.2.1"])
def test_a_fixed_address_is_one_of_a_clients(fixed: str) -> None:
    assert make().take(1, fixed=IPv4Address(fixed)) is None
    assert make().take(1, fixed=IPv4Address("10.8.0.77")) is not None
