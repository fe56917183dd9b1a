"""Which inner addresses the clients get: fixed ones, the one of the last time, or the next that is free."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from ginnel.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Lease:
    """``text`` and ``text6`` are the addresses as text, which is asked for again and again."""

    address: IPv4Address
    address6: IPv6Address | None
    text: str = field(init=False, compare=False)
    text6: str | None = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", str(self.address))
        object.__setattr__(self, "text6", None if self.address6 is None else str(self.address6))


class Pool:
    """``network`` of at most /30; its first address is the server's, ``address``. With topology net30 each client
    has four addresses, of which the second is the other end of its link and the third is its own."""

    def __init__(
        self, network: IPv4Network, network6: IPv6Network | None, topology: Literal["subnet", "net30"]
    ) -> None:
        step = 4 if topology == "net30" else 1
        if network.num_addresses < 4 + step:
            raise ConfigError(f"{network} has no room for clients", option="network", instead=LARGER)
        if network6 is not None and network6.num_addresses < 4:
            raise ConfigError(f"{network6} has no room for clients", option="network6", instead=LARGER)
        self.network = network
        self.network6 = network6
        self.topology = topology
        self.address = network[1]
        self.address6 = None if network6 is None else network6[1]
        self._step = step
        self._held: dict[IPv4Address, int] = {}
        self._held6: dict[IPv6Address, int] = {}
        first, end = (6, network.num_addresses) if step == 4 else (2, network.num_addresses - 1)
        self._size = len(range(first, end, step))
        self._next = 0

    def take(
        self,
        holder: int,
        fixed: IPv4Address | None = None,
        fixed6: IPv6Address | None = None,
        last: IPv4Address | None = None,
        reserved: Collection[IPv4Address | IPv6Address] = (),
        over: Collection[int] = (),
    ) -> Lease | None:
        """Addresses for a holder, which is a number of the caller's; None where all are taken, or a fixed one is,
        or is none of a client's. ``reserved`` ones are nobody's who has no fixed one. Those of the holders in ``over``
        may be taken from them."""
        heirs = {holder, *over}
        if last is not None and self._held.get(last) in over:
            fixed = fixed or last
        address = fixed or self._free(last, reserved)
        if address is None or not self.is_clients(address) or self._held.get(address, holder) not in heirs:
            return None
        address6 = fixed6 or self._beside(address)
        if address6 is not None and (not self.is_clients(address6) or self._held6.get(address6, holder) not in heirs):
            return None
        lease = Lease(address, address6)
        self.hold(holder, lease)
        return lease

    def hold(self, holder: int, lease: Lease) -> None:
        """They are this holder's, whose ever they were."""
        self._held[lease.address] = holder
        if lease.address6 is not None:
            self._held6[lease.address6] = holder

    def give_back(self, holder: int, lease: Lease) -> None:
        """Harmless where somebody else holds them by now."""
        if self._held.get(lease.address) == holder:
            del self._held[lease.address]
        if lease.address6 is not None and self._held6.get(lease.address6) == holder:
            del self._held6[lease.address6]

    def is_clients(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether a client can have it: it is in the network, and neither the server's nor the network's own."""
        if isinstance(address, IPv6Address):
            network6 = self.network6
            return network6 is not None and address in network6 and int(address) - int(network6.network_address) >= 2
        offset = int(address) - int(self.network.network_address)
        if self._step == 1:
            return 2 <= offset < self.network.num_addresses - 1
        return 4 <= offset < self.network.num_addresses and offset % 4 == 2

    def check(
        self,
        addresses: Iterable[IPv4Address | IPv6Address],
        networks: Iterable[IPv4Network | IPv6Network],
    ) -> None:
        """Raises ConfigError for what no client can have as a fixed address, or behind it."""
        for address in addresses:
            if not self.is_clients(address):
                own = self.network if address.version == 4 else self.network6
                what = f"{address} is none of the inner addresses that clients have"
                instead = "set network6 in server.toml" if own is None else f"take one of {own}, which has others, too"
                raise ConfigError(what, instead=instead)
        for network in networks:
            if self.overlaps(network):
                what = f"{network} overlaps the inner addresses, {self.network} and {self.network6}"
                raise ConfigError(what, instead="name the networks behind the user alone")

    def overlaps(self, network: IPv4Network | IPv6Network) -> bool:
        """Whether it has addresses of the server's and its clients'."""
        if isinstance(network, IPv6Network):
            return self.network6 is not None and network.overlaps(self.network6)
        return network.overlaps(self.network)

    def _free(self, last: IPv4Address | None, reserved: Collection[IPv4Address | IPv6Address]) -> IPv4Address | None:
        if last is not None and self.is_clients(last) and self._is_free(last, reserved):
            return last
        # Where the last search ended: so each is short, and an address rests before somebody else gets it.
        for _ in range(self._size):
            address = self._nth(self._next)
            self._next = (self._next + 1) % self._size
            if self._is_free(address, reserved):
                return address
        return None

    def _is_free(self, address: IPv4Address, reserved: Collection[IPv4Address | IPv6Address]) -> bool:
        if address in self._held:
            return False
        return not reserved or (address not in reserved and self._beside(address) not in reserved)

    def _nth(self, number: int) -> IPv4Address:
        """A client's address by its number, from 0."""
        return self.network[(6 if self._step == 4 else 2) + number * self._step]

    def _beside(self, address: IPv4Address) -> IPv6Address | None:
        offset = int(address) - int(self.network.network_address)
        if self.network6 is None or address not in self.network or offset >= self.network6.num_addresses:
            return None
        return self.network6[offset]


LARGER = "give a larger one, 10.8.0.0/24 or fd00:8::/64 say"
