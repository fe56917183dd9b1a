"""From what a server pushed, and the routes there are, to the changes of this machine: pure, no I/O.

A redirected default is never replaced but covered by halves of it, as ``def1`` does: nothing has to be put
back that was not ours. The server itself, and what the server says is outside, is reached through the
gateway there was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any, Literal

from ginnel.openvpn.push import PushReply
from ginnel.openvpn.push_values import PORTS, NameServers, Transport

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network
IpInterface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class RouteChange:
    """A route of the main table. ``device`` is its name, None for one that leads nowhere."""

    destination: IpNetwork
    device: str | None
    gateway: IpAddress | None = None
    metric: int = 0


@dataclass(frozen=True, slots=True)
class AddressChange:
    """An address of the tunnel's device; ``peer`` is the other end of a point-to-point link."""

    device: str
    interface: IpInterface
    peer: IpAddress | None = None


Change = AddressChange | RouteChange


@dataclass(frozen=True, slots=True)
class Wish:
    """A route that the tunnel is asked for. ``way``: ``tunnel``, or ``outside`` by the gateway there was.
    ``network`` None stands for the server."""

    network: IpNetwork | None
    way: Literal["tunnel", "outside"] = "tunnel"
    gateway: IpAddress | None = None
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a tunnel wants of the machine. ``servers``: every address that the tunnel itself may go to;
    ``flags``: those of redirect-gateway, None without it; ``mtu`` None leaves it."""

    servers: tuple[IpAddress, ...] = ()
    address: IpInterface | None = None
    peer: IpAddress | None = None
    address6: IpInterface | None = None
    gateway: IpAddress | None = None
    gateway6: IpAddress | None = None
    routes: tuple[Wish, ...] = ()
    flags: tuple[str, ...] | None = None
    block_ipv6: bool = False
    mtu: int | None = None
    names: tuple[NameServers, ...] = ()
    domains: tuple[str, ...] = ()

    def emit(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "servers": [str(each) for each in self.servers],
            **{name: _text(getattr(self, name)) for name in ("address", "peer", "address6", "gateway", "gateway6")},
            "routes": [[_text(w.network), w.way, _text(w.gateway), w.metric] for w in self.routes],
            "flags": None if self.flags is None else list(self.flags),
            "block_ipv6": self.block_ipv6,
            "mtu": self.mtu,
            "names": [
                {**asdict(each), "addresses": [[str(address), port] for address, port in each.addresses]}
                for each in self.names
            ],
            "domains": list(self.domains),
        }

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Settings:
        """The reverse, of fields from a process that is not trusted. Raises ValueError, TypeError or KeyError."""
        mtu, flags = fields["mtu"], fields["flags"]
        if mtu is not None and not 68 <= int(mtu) <= 65535:
            raise ValueError(f"an MTU of {mtu}")
        if len(fields["routes"]) > MAX_ROUTES or len(fields["servers"]) > MAX_SERVERS:
            raise ValueError("too many routes or servers")
        return cls(
            servers=tuple(ip_address(_word(each)) for each in fields["servers"]),
            address=_interface(fields["address"]),
            peer=_address(fields["peer"]),
            address6=_interface(fields["address6"]),
            gateway=_address(fields["gateway"]),
            gateway6=_address(fields["gateway6"]),
            routes=tuple(_wish(*entry) for entry in fields["routes"]),
            flags=None if flags is None else tuple(map(str, flags)),
            block_ipv6=bool(fields["block_ipv6"]),
            mtu=None if mtu is None else int(mtu),
            names=tuple(_name_servers(**each) for each in fields["names"])[:MAX_DNS],
            domains=_domains(fields["domains"]),
        )


def settings(push: PushReply, local: PushReply, servers: Iterable[str]) -> Settings:
    """What a server pushed and what the file itself says (``local``), for a tunnel to one of ``servers``."""
    ifconfig = push.ifconfig
    peer = ifconfig.remote if ifconfig is not None and push.topology != "subnet" else None
    gateway = next((g for g in (push.route_gateway, local.route_gateway) if isinstance(g, IPv4Address)), None)
    metric = push.route_metric if push.route_metric is not None else local.route_metric or 0
    wishes: list[Wish] = []
    for route in (*local.routes, *push.routes):
        way: Literal["tunnel", "outside"] = "outside" if route.gateway == "net_gateway" else "tunnel"
        via = route.gateway if isinstance(route.gateway, IPv4Address) else None
        if route.network == "remote_host":
            wishes.append(Wish(None, way, via, metric if route.metric is None else route.metric))
        elif isinstance(route.network, IPv4Network):
            wishes.append(Wish(route.network, way, via, metric if route.metric is None else route.metric))
        elif route.network == "vpn_gateway" and (gateway or peer):
            wishes.append(Wish(IPv4Network(str(gateway or peer)), way, via, metric))
    for route6 in (*local.routes_ipv6, *push.routes_ipv6):
        wishes.append(
            Wish(route6.network, "tunnel", route6.gateway, metric if route6.metric is None else route6.metric)
        )
    return Settings(
        servers=tuple(dict.fromkeys(map(ip_address, servers))),
        address=push.address or local.address,
        peer=peer,
        address6=push.address6 or local.address6,
        gateway=gateway,
        gateway6=push.ifconfig_ipv6.remote if push.ifconfig_ipv6 is not None else None,
        routes=tuple(dict.fromkeys(wishes))[:MAX_ROUTES],
        flags=_flags(local, push),
        block_ipv6=push.block_ipv6 or local.block_ipv6,
        mtu=push.tun_mtu,
        names=tuple(
            replace(
                group,
                addresses=group.addresses[:MAX_DNS],
                domains=tuple(filter(_is_domain, group.domains))[:MAX_DNS],
            )
            for group in push.name_servers or local.name_servers
        )[:MAX_DNS],
        domains=tuple(filter(_is_domain, push.search_domains or local.search_domains))[:MAX_DNS],
    )


def _flags(*sources: PushReply) -> tuple[str, ...] | None:
    """What redirect-gateway and redirect-private come to together: who asks for more does not take back what another
    has asked for. With ``!ipv4`` IPv4 stays outside, unless a later source draws it in (OpenVPN ``options.c``)."""
    flags = dict[str, None]()
    inside = is_said = False
    for source in sources:
        for asked, draws_in in ((source.redirect_private, False), (source.redirect_gateway, True)):
            if asked is not None:
                is_said = True
                inside = (inside or draws_in) and "!ipv4" not in asked
                flags |= dict.fromkeys(asked)
    flags.pop("!ipv4", None)
    if not is_said:
        return None
    return (*flags,) if inside else (*flags, "!ipv4")


def plan(wanted: Settings, device: str, present: Sequence[RouteChange]) -> list[Change]:
    """The changes in the order in which they can be made. ``present``: the routes of the main table, of
    which those through ``device`` don't count."""
    outside = [route for route in present if route.device not in (device, None)]
    changes: dict[tuple[object, ...], Change] = {}

    def add(change: Change) -> None:
        change = _settled(change) if isinstance(change, RouteChange) else change
        key: tuple[object, ...] = (
            ("route", change.destination, change.metric)
            if isinstance(change, RouteChange)
            else ("address", change.interface)
        )
        changes.setdefault(key, change)

    for own, peer in ((wanted.address, wanted.peer), (wanted.address6, None)):
        if own is not None:
            add(AddressChange(device, own, peer if own.version == 4 else None))
    inward = [RouteChange(network, device, _via(None, network, wanted)) for network in _covered(wanted, outside)]
    led = [change for wish in wanted.routes for change in _led(wish, wanted, device, outside)]
    blocked = [RouteChange(network, None, metric=BLOCKING) for network in EVERYWHERE6 if wanted.block_ipv6]
    taken = [_settled(change) for change in (*led, *inward, *blocked) if change.device in (device, None)]
    taken += _connected(wanted, device)
    # Before anything leads into the tunnel, what carries the tunnel must not.
    for change in (*_bypasses(wanted, taken, outside), *led, *inward, *blocked):
        add(change)
    return list(changes.values())


def without_routes(wanted: Settings) -> Settings:
    """``route-noexec``: who wrote it leads into the tunnel what he wants there."""
    return replace(wanted, routes=(), flags=None, block_ipv6=False)


def without_addresses(wanted: Settings) -> Settings:
    """``ifconfig-noexec``."""
    return replace(wanted, address=None, peer=None, address6=None)


def without_ipv6(wanted: Settings) -> Settings:
    """For a device that can't carry it."""
    routes = tuple(wish for wish in wanted.routes if wish.network is None or wish.network.version == 4)
    return replace(wanted, address6=None, gateway6=None, routes=routes)


def way_to(address: IpAddress, routes: Iterable[RouteChange]) -> RouteChange | None:
    """The route that a packet takes: the longest prefix, then the least metric."""
    fitting = [r for r in routes if r.destination.version == address.version and address in r.destination]
    return min(fitting, key=_rank, default=None)


def _rank(route: RouteChange) -> tuple[int, int]:
    """Less counts more."""
    return -route.destination.prefixlen, route.metric


def _settled(route: RouteChange) -> RouteChange:
    """With the metric that the kernel gives it."""
    return replace(route, metric=METRIC6) if route.destination.version == 6 and not route.metric else route


def _connected(wanted: Settings, device: str) -> Iterator[RouteChange]:
    """What the kernel adds by itself to the device's addresses."""
    if wanted.address is not None:
        yield RouteChange(wanted.address.network if wanted.peer is None else ip_network(str(wanted.peer)), device)
    if wanted.address6 is not None:
        yield RouteChange(wanted.address6.network, device, metric=CONNECTED6)


def _bypasses(wanted: Settings, taken: Sequence[RouteChange], outside: Sequence[RouteChange]) -> list[RouteChange]:
    """The ways to the servers that the tunnel would take, as they were."""
    flags = wanted.flags or ()
    found = []
    for server in wanted.servers:
        way, over = way_to(server, outside), way_to(server, taken)
        if server.is_loopback or "local" in flags or over is None:
            continue
        host, metric = ip_network(str(server)), 1 if server.version == 6 else 0
        if way is None:
            # For now: what carries the tunnel must not wait in it, either.
            found.append(RouteChange(host, None, metric=metric))
        elif _rank(over) <= _rank(way):
            found.append(RouteChange(host, way.device, way.gateway, metric))
    if "block-local" in flags:
        for way in _defaults(outside):
            if way.gateway is not None:
                found.append(RouteChange(ip_network(str(way.gateway)), way.device))
    return found


def _led(wish: Wish, wanted: Settings, device: str, outside: Sequence[RouteChange]) -> Iterator[RouteChange]:
    for network in [wish.network] if wish.network else [ip_network(str(server)) for server in wanted.servers]:
        beside = None if wish.gateway is None else _beside(wish.gateway, wanted, outside)
        if wish.way == "tunnel" and beside is not None:
            yield RouteChange(network, beside.device, wish.gateway, wish.metric)
        elif wish.way == "tunnel":
            for part in _parts(network, wish.metric, outside):
                yield RouteChange(part, device, _via(wish.gateway, network, wanted), wish.metric)
        elif (way := way_to(network.network_address, outside)) is not None:
            yield RouteChange(network, way.device, way.gateway, wish.metric)


def _beside(gateway: IpAddress, wanted: Settings, outside: Sequence[RouteChange]) -> RouteChange | None:
    """The link of a gateway that is named and is a neighbour outside, as stock has it for IPv4 alone."""
    way = way_to(gateway, outside)
    inside = wanted.address is not None and gateway in wanted.address.network
    return way if gateway.version == 4 and not inside and way is not None and way.gateway is None else None


def _parts(network: IpNetwork, metric: int, outside: Sequence[RouteChange]) -> list[IpNetwork]:
    """A default route beside another that counts as much would be none: parts of it count more."""
    own = metric or (METRIC6 if network.version == 6 else 0)
    if network.prefixlen == 0 and any(
        route.metric == own or (not metric and route.metric < own)
        for route in _defaults(outside)
        if route.destination == network
    ):
        return list(EVERYWHERE6 if network.version == 6 else HALVES)
    return [network]


def _via(gateway: IpAddress | None, network: IpNetwork, wanted: Settings) -> IpAddress | None:
    """A gateway that is not on the link can't be told to the kernel. A TUN device needs none, a TAP device does."""
    own, common = (wanted.address, wanted.gateway) if network.version == 4 else (wanted.address6, wanted.gateway6)
    for via in (gateway, common):
        if via is not None and own is not None and via in own.network and via != own.ip:
            return via
    return None


def _covered(wanted: Settings, outside: Sequence[RouteChange]) -> list[IpNetwork]:
    if wanted.flags is None:
        return []
    found: list[IpNetwork] = []
    if "block-local" in wanted.flags:
        ways = {way.device for way in _defaults(outside)}
        for route in outside:
            lan = route.destination
            if route.device in ways and route.gateway is None and 0 < lan.prefixlen < lan.max_prefixlen:
                found += list(lan.subnets(1))
    if "!ipv4" not in wanted.flags and wanted.address is not None:
        found += HALVES
    if "ipv6" in wanted.flags and wanted.address6 is not None and not wanted.block_ipv6:
        found += EVERYWHERE6
    return found


def _defaults(outside: Sequence[RouteChange]) -> list[RouteChange]:
    return [route for route in outside if route.destination.prefixlen == 0]


def _wish(network: str | None, way: str, gateway: str | None, metric: int) -> Wish:
    if way not in ("tunnel", "outside") or not 0 <= int(metric) < 1 << 32:
        raise ValueError(f"a route by {way!r} with the metric {metric}")
    place: Literal["tunnel", "outside"] = "outside" if way == "outside" else "tunnel"
    return Wish(None if network is None else ip_network(_word(network)), place, _address(gateway), int(metric))


def _name_servers(
    addresses: list[list[Any]], domains: list[str], transport: Transport, sni: str | None, validated: bool
) -> NameServers:
    found = tuple((ip_address(_word(address)), int(port)) for address, port in addresses)[:MAX_DNS]
    if any(not 0 < port < 65536 for _, port in found):
        raise ValueError("no port of a name server")
    if transport not in PORTS or not (sni is None or _is_domain(str(sni))):
        raise ValueError("no way to ask a name server")
    return NameServers(found, _domains(domains), transport, None if sni is None else str(sni), bool(validated))


def _domains(texts: list[str]) -> tuple[str, ...]:
    domains = tuple(map(str, texts))[:MAX_DNS]
    if not all(map(_is_domain, domains)):
        raise ValueError("a domain that is none")
    return domains


def _address(text: object) -> IpAddress | None:
    return None if text is None else ip_address(_word(text))


def _interface(text: object) -> IpInterface | None:
    return None if text is None else ip_interface(_word(text))


def _word(text: object) -> str:
    """`ipaddress` takes numbers, too, which nobody has asked for."""
    if not isinstance(text, str):
        raise TypeError(f"{text!r} in the place of an address")
    return text


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _is_domain(text: str) -> bool:
    return 0 < len(text) < 254 and all(c.isascii() and (c.isalnum() or c in "-_.") for c in text) and text[0] != "-"


HALVES: list[IpNetwork] = [IPv4Network("0.0.0.0/1"), IPv4Network("128.0.0.0/1")]
# All that is routed in the world, and all private addresses; link-local ones stay where they are.
EVERYWHERE6: list[IpNetwork] = [IPv6Network(text) for text in ("::/3", "2000::/4", "3000::/4", "fc00::/7")]
# What the kernel makes of an IPv6 route without a metric.
METRIC6 = 1024
# And of one to an address's own network.
CONNECTED6 = 256
# Less wanted than any route that a tunnel leads to.
BLOCKING = 4096
MAX_ROUTES = 20_000
MAX_SERVERS = 256
MAX_DNS = 16
