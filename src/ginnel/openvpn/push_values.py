"""The parts of a push reply that are more than a word or a number."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Literal

Topology = Literal["net30", "p2p", "subnet"]
Special = Literal["vpn_gateway", "net_gateway", "remote_host"]
"""An address that depends on where we are: the tunnel's other end, our own router, the server's."""
Gateway = IPv4Address | Special


@dataclass(frozen=True)
class Ifconfig:
    """``remote`` is the peer's address or, with topology subnet and for TAP, the netmask."""

    local: IPv4Address
    remote: IPv4Address


@dataclass(frozen=True)
class IfconfigIpv6:
    local: IPv6Interface
    remote: IPv6Address


@dataclass(frozen=True)
class Route:
    network: IPv4Network | Special
    gateway: Gateway | None = None
    metric: int | None = None


@dataclass(frozen=True)
class RouteIpv6:
    network: IPv6Network
    gateway: IPv6Address | None = None
    metric: int | None = None


@dataclass(frozen=True)
class DnsServer:
    """``dns server PRIORITY …``. ``addresses`` come with a port, 0 for the transport's own;
    with ``resolve_domains`` the server is for names in these domains only."""

    priority: int
    addresses: tuple[tuple[IPv4Address | IPv6Address, int], ...] = ()
    resolve_domains: tuple[str, ...] = ()
    dnssec: Literal["yes", "no", "optional"] | None = None
    transport: Literal["plain", "DoT", "DoH"] | None = None
    sni: str | None = None

    @property
    def plain_addresses(self) -> tuple[tuple[IPv4Address | IPv6Address, int], ...]:
        """With the port of DNS itself where none is named."""
        return tuple((address, port or PLAIN_DNS) for address, port in self.addresses)


@dataclass(frozen=True)
class NameServers:
    """Servers, with their ports, that know the same names: those in ``domains`` and below, without any all."""

    addresses: tuple[tuple[IPv4Address | IPv6Address, int], ...]
    domains: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inactive:
    """``inactive``: the tunnel ends when fewer than ``size`` bytes of data passed within ``seconds``."""

    seconds: int
    size: int = 0


PLAIN_DNS = 53
NO_TRANSPORT = "it is not asked, as {} is not supported"
NO_DNSSEC = "answers are not validated"
