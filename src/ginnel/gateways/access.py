"""Where clients of a server may go: the public internet, and what is allowed by name."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Sequence

from ginnel.errors import ConfigError, DeviceError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class AccessList:
    """Says which destinations are open. Public addresses are; closed unless allowed are private, shared and link-local
    ranges, loopback, metadata services, groups and broadcast, the IPv6 forms of all of these, and whatever this host
    has itself at the moment that it is asked for."""

    def __init__(self, allow: Sequence[str] = ()) -> None:
        """``allow``: networks in CIDR notation, or addresses. Raises ConfigError."""
        self._allowed = [_network(text) for text in allow]
        self._routes = _Routes()

    def is_open(self, host: str) -> bool:
        """Whether a client may reach an IP address."""
        address = ipaddress.ip_address(host)
        if any(address in network for network in self._allowed):
            return True
        # Whoever allows 10.0.0.0/8 has not allowed what a translator elsewhere makes of 64:ff9b::10.0.0.1.
        return all(not self._is_closed(form) for form in (address, _embedded(address)) if form is not None)

    def close(self) -> None:
        """Idempotent."""
        self._routes.close()

    def _is_closed(self, address: IpAddress) -> bool:
        return any(address in network for network in CLOSED) or self._routes.is_own(address)


class _Routes:
    """Asks the kernel what it would do with packets to an address (rtnetlink, RTM_GETROUTE; needs no rights).

    Lists of the interfaces' addresses go out of date, and do not know of whole ranges that are routed to this host.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(ANSWER_SECONDS)
        self._sequence = 0

    def is_own(self, address: IpAddress) -> bool:
        """Whether the kernel takes packets to it for this host's own, or for a broadcast on one of its links.

        Raises DeviceError where the kernel does not say.
        """
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        route = ROUTE.pack(family, len(address.packed) * 8, 0, 0, 0, 0, 0, 0, 0)
        body = route + ATTRIBUTE.pack(ATTRIBUTE.size + len(address.packed), RTA_DST) + address.packed
        header = HEADER.pack(HEADER.size + len(body), RTM_GETROUTE, NLM_F_REQUEST, self._sequence, 0)
        try:
            self._socket.sendto(header + body, (0, 0))
            while True:
                answer = self._socket.recv(8192)
                _, kind, _, sequence, _ = HEADER.unpack_from(answer)
                if sequence == self._sequence:
                    break
        except OSError as error:
            raise DeviceError(error.errno or errno.EIO, f"cannot ask for the route to {address}") from error
        # An error is an address without a route, to which nobody gets.
        return kind == RTM_NEWROUTE and ROUTE.unpack_from(answer, HEADER.size)[7] not in ELSEWHERE

    def close(self) -> None:
        self._socket.close()


def _network(text: str) -> IpNetwork:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f"'{text}' is no network to allow", instead="write ADDRESS or ADDRESS/BITS") from None


def _embedded(address: IpAddress) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to an IPv6 address may come out at."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in NAT64 or address in COMPATIBLE:
        return ipaddress.IPv4Address(address.packed[12:])
    return address.sixtofour


CLOSED: tuple[IpNetwork, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        # Azure's metadata, names and agents, at a public address.
        "168.63.129.16/32",
        # Link-local, with the metadata service of nearly every cloud, 169.254.169.254.
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/128",
        "::1/128",
        "::ffff:0:0/96",
        # Translators' local prefix, and tunnels whose far end nobody can tell from the address (RFC 8215, RFC 4380).
        "64:ff9b:1::/48",
        "2001::/32",
        "100::/64",
        # Private, with the metadata service fd00:ec2::254.
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
COMPATIBLE = ipaddress.IPv6Network("::/96")
ANSWER_SECONDS = 1.0
# linux/netlink.h: length, type, flags, sequence, port. linux/rtnetlink.h: family, length of destination and source,
# type of service, table, protocol, scope, type, flags; length and type of an attribute.
HEADER = struct.Struct("=IHHII")
ROUTE = struct.Struct("=8BI")
ATTRIBUTE = struct.Struct("=HH")
RTM_NEWROUTE, RTM_GETROUTE, NLM_F_REQUEST, RTA_DST = 24, 26, 1, 1
# RTN_UNICAST, and RTN_BLACKHOLE, _UNREACHABLE, _PROHIBIT, where connecting fails by itself.
ELSEWHERE = frozenset((1, 6, 7, 8))
