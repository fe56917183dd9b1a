"""What goes past a tunnel that was asked to carry it: sentences about a plan, for whoever connects. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ginnel.network.plan import HALVES, Change, RouteChange, Settings


def unmade(changes: Sequence[Change], present: Sequence[RouteChange]) -> Iterator[str]:
    """Routes into the tunnel that others have already, and that count more: they lead elsewhere.

    ``present`` are the routes of others in the main table.
    """
    theirs: dict[object, RouteChange] = {}
    for route in present:
        known = theirs.get(route.destination)
        if route.device is not None and (known is None or route.metric < known.metric):
            theirs[route.destination] = route
    stay = [
        theirs[change.destination]
        for change in changes
        if isinstance(change, RouteChange)
        and (known := theirs.get(change.destination))
        and known.metric <= change.metric
        if known.device != change.device
    ]
    if stay:
        yield f"a route that was here already is left as it is, and leads past the tunnel: {_list(stay)}"


def leaks(wanted: Settings, device: str, changes: Sequence[Change], present: Sequence[RouteChange]) -> Iterator[str]:
    """What of the traffic that is drawn into the tunnel leaves past it all the same, where nothing stops it."""
    routes = [change for change in changes if isinstance(change, RouteChange)]
    inward = [route.destination for route in routes if route.device in (device, None)]
    drawn = wanted.flags is not None and "!ipv4" not in wanted.flags and set(HALVES) <= set(inward)
    has_way6 = any(route.destination.version == 6 and route.destination.prefixlen == 0 for route in present)
    if drawn and has_way6 and not any(network.version == 6 and network.prefixlen <= WIDE for network in inward):
        yield (
            "IPv6 leaves past the tunnel, which carries IPv4 alone: add `block-ipv6` to the file, "
            "or `redirect-gateway ipv6` if the server gives IPv6 addresses"
        )
    meant = {(route.destination, route.metric) for route in routes}
    wide = [network for network in inward if network.prefixlen <= WIDE]
    past = [
        route
        for route in present
        if _is_suspect(route) and (route.destination, route.metric) not in meant
        if any(
            network.version == route.destination.version
            and network.prefixlen < route.destination.prefixlen
            and route.destination.subnet_of(network)  # type: ignore[arg-type]
            for network in wide
        )
    ]
    if past:
        yield (
            f"narrower routes of this machine lead past the tunnel: {_list(past)}; "
            "if they are not yours, the network that gave them reads along: --kill-switch stops that"
        )


def _is_suspect(route: RouteChange) -> bool:
    """By another router, or to neighbours that claim public addresses. A home's own network is neither; where it has
    IPv6 its addresses are public, in networks of 64 bits."""
    network = route.destination
    if route.device is None or network.is_link_local or network.is_multicast:
        return False
    return route.gateway is not None or (network.is_global and (network.version == 4 or network.prefixlen < HOME6))


def _list(routes: Sequence[RouteChange]) -> str:
    named = [f"{route.destination} by {route.gateway or 'the link'} on {route.device}" for route in routes[:NAMED]]
    more = len(routes) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


# The prefix length of routes that are for everything, and not for a network.
WIDE = 7
HOME6 = 64
NAMED = 3
