"""The parts of a push reply that are more than a word or a number."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

Topology = Literal["net30", "p2p", "subnet"]
Special = Literal["vpn_gateway", "net_gateway", "remote_host"]
"""An address that depends on where we are: the tunnel's other end, our own router, the server's."""
Gateway = IPv4Address | Special
Transport = Literal["plain", "DoT", "DoH"]


@dataclass(frozen=True)
class Ifconfig:
    """``remote`` is the peer's address or, with topology subnet and for TAP, the netmask."""

    local: IPv4Address
    remote: IPv4Address


@dataclass(frozen=True)
class IfconfigIpv6:
    """``bits`` of ``local`` are the same for all on the link."""

    local: IPv6Address
    bits: int
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
    transport: Transport | None = None
    sni: str | None = None

    @property
    def name_servers(self) -> NameServers:
        transport = self.transport or "plain"
        addresses = tuple((address, port or PORTS[transport]) for address, port in self.addresses)
        return NameServers(addresses, self.resolve_domains, transport, self.sni, self.dnssec == "yes")


@dataclass(frozen=True)
class NameServers:
    """Servers, with their ports, that know the same names: those in ``domains`` and below, without any all.

    They are asked by ``transport`` alone, with TLS as ``sni`` or by their address; ``validated``: their answers are to
    be validated by DNSSEC.
    """

    addresses: tuple[tuple[IPv4Address | IPv6Address, int], ...]
    domains: tuple[str, ...] = ()
    transport: Transport = "plain"
    sni: str | None = None
    validated: bool = False


def left_out(groups: Iterable[NameServers], *, transports: Container[str], validates: bool) -> Iterator[NameServers]:
    """Those that can't be asked as they are to be. They are not asked in a weaker way."""
    for group in groups:
        if group.transport not in transports or (group.validated and not validates):
            yield group


def why_left_out(group: NameServers, *, who: str) -> str:
    """The sentence on it. ``who`` can't do it."""
    servers = " ".join(str(address) for address, _ in group.addresses)
    names = f" for {' '.join(group.domains)}" if group.domains else ""
    wish = "answers validated by DNSSEC" if group.transport == "plain" else group.transport
    return f"the name servers{names} ({servers}) are not asked: they are to be asked with {wish}, and {who}"


@dataclass(frozen=True)
class Inactive:
    """``inactive``: the tunnel ends when fewer than ``size`` bytes of data passed within ``seconds``."""

    seconds: int
    size: int = 0


PLAIN_DNS = 53
PORTS: dict[Transport, int] = {"plain": PLAIN_DNS, "DoT": 853, "DoH": 443}
