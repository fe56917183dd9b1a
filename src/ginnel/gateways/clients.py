"""Whose traffic it is, and how many of something each may have at a time."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Source = int | str
"""A client's number, or an address that is no client's."""


class Clients:
    """Clients by their inner addresses and the networks behind them."""

    def __init__(self) -> None:
        self._hosts: dict[Address | Network, int] = {}
        self._networks: dict[Address | Network, int] = {}
        self._of: dict[int, list[Address | Network]] = {}

    def set(self, client: int, networks: Sequence[str]) -> None:
        """Addresses, and networks in CIDR notation; without any the client is forgotten. Of two that claim one the
        later has it."""
        for place in self._of.pop(client, ()):
            table = self._table(place)
            if table.get(place) == client:
                del table[place]
        if networks:
            self._of[client] = list(map(_parse, networks))
            for place in self._of[client]:
                self._table(place)[place] = client

    def of(self, address: str) -> Source:
        """Of networks the longest that has it counts."""
        parsed = ipaddress.ip_address(address)
        if (client := self._hosts.get(parsed)) is not None:
            return client
        fitting = [network for network in self._networks if isinstance(network, Network) and parsed in network]
        return self._networks[max(fitting, key=lambda network: network.prefixlen)] if fitting else address

    def _table(self, place: Address | Network) -> dict[Address | Network, int]:
        return self._hosts if isinstance(place, Address) else self._networks


def _parse(text: str) -> Address | Network:
    """A network of one is that address: most clients have no other, and it takes a fraction of the time."""
    if "/" not in text:
        return ipaddress.ip_address(text)
    network = ipaddress.ip_network(text)
    return network.network_address if network.prefixlen == network.max_prefixlen else network


class Slots:
    """How many of something there may be at a time, of all and of each.

    Half is there for whoever comes, and half in equal parts, so that each has some for certain. Beyond its part one may
    take as long as it holds less than is left: alone it has half of what is for all, the second half of the rest.
    """

    def __init__(self, limit: int, each_limit: int) -> None:
        self._limit = limit
        self._each_limit = each_limit
        self._part = max(1, limit // 2 // PARTS)
        self._counts: dict[Hashable, int] = {}
        self._beyond = 0
        self.taken = 0

    def take(self, who: Hashable) -> bool:
        count = self._counts.get(who, 0)
        beyond = count - self._part
        if self.taken >= self._limit or count >= self._each_limit:
            return False
        if beyond >= 0:
            if beyond >= self._limit // 2 - self._beyond:
                return False
            self._beyond += 1
        self._counts[who] = count + 1
        self.taken += 1
        return True

    def free(self, who: Hashable) -> None:
        self.taken -= 1
        self._beyond -= self._counts[who] > self._part
        self._counts[who] -= 1
        if not self._counts[who]:
            del self._counts[who]


PARTS = 256
