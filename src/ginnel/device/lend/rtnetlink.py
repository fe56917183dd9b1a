"""The kernel's answers on NETLINK_ROUTE, for programs whose interfaces are ours.

What a program asks about is answered from the kernel and from our interfaces together; what it changes is changed on
our interfaces. Routes through the kernel's interfaces (OpenVPN's way to its server around the tunnel) and the removal
of the kernel's routes are remembered here and shown again, and never reach the kernel.

Sources: rtnetlink(7), ``linux/rtnetlink.h``, ``net/core/rtnetlink.c``. Requests are taken apart byte by byte, since
anything may be in them; answers are written by pyroute2.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface
from typing import Protocol

from ginnel.device.address import Address, Route
from ginnel.device.interface import Interface, Interfaces
from ginnel.device.lend import messages as nl
from ginnel.device.lend.kernel_routes import KernelRoutes
from ginnel.device.lend.messages import IPAddress, Message, RouteEntry
from ginnel.errors import DeviceError

log = logging.getLogger(__name__)


class Listener(Protocol):
    """A socket that hears of changes."""

    groups: int
    """Of what it hears: a bit a group."""

    def tell(self, message: bytes) -> None: ...


class RouteNetlink:
    """What all NETLINK_ROUTE sockets of a lent program talk to."""

    def __init__(self, interfaces: Interfaces) -> None:
        self.listeners: set[Listener] = set()
        self._interfaces = interfaces
        self._kernel = KernelRoutes()
        self._remembered: dict[nl.Network, list[RouteEntry]] = {}
        self._remembered_count = 0
        self._hidden: list[RouteEntry] = []
        interfaces.on_create.append(self._watch)
        interfaces.on_delete.append(self._deleted)
        for interface in interfaces:
            self._watch(interface)

    def close(self) -> None:
        self._interfaces.on_create.remove(self._watch)
        self._interfaces.on_delete.remove(self._deleted)
        self._kernel.close()

    def answer(self, data: bytes, port: int) -> list[bytes]:
        """The datagrams that answer one of a program, whose netlink port is given. Malformed ones are answered
        with an error, or as the kernel does not at all."""
        answers: list[bytes] = []
        for request in nl.parse_messages(data):
            code = 0
            try:
                if request.flags & nl.NLM_F_REQUEST and request.kind >= nl.NLMSG_MIN_TYPE:
                    found = self._handle(request)
                    if found is not None:
                        datagrams = list(_datagrams(request, found, port))
                        if len(answers) + len(datagrams) <= _MOST_ANSWERS:
                            answers += datagrams
                            continue
                        # Half of a dump would be waited for, for ever.
                        code = errno.ENOBUFS
            except OSError as error:
                code = error.errno or errno.EIO
                log.debug("netlink request %d: %s", request.kind, error)
            except Exception:
                # The program must not wait for an answer, nor lose its socket.
                log.exception("netlink request %d could not be answered", request.kind)
                code = errno.EIO
            if code or request.flags & nl.NLM_F_ACK:
                answers.append(nl.acknowledge(request, port, code).pack(port))
        return answers

    def add_address(self, index: int, address: Address, *, replace: bool = False) -> None:
        """DeviceError: as `Interface.add_address`; EPERM for an interface of the kernel's, ENODEV for none."""
        interface, own = self._own(index), address.interface
        if replace and any(known.interface == own for known in interface.addresses):
            interface.remove_address(own)
        interface.add_address(address)
        self._announce(_groups(own.ip, "address"), lambda: nl.address_message(interface, address))

    def remove_address(self, index: int, own: IPv4Interface | IPv6Interface) -> None:
        """As `add_address`."""
        interface = self._own(index)
        known = next((entry for entry in interface.addresses if entry.interface == own), None)
        interface.remove_address(own)
        gone = known or Address(own)
        self._announce(_groups(own.ip, "address"), lambda: nl.address_message(interface, gone, deleted=True))

    def add_route(self, entry: RouteEntry, *, replace: bool = False) -> None:
        """Through one of our interfaces it is set, through one of the kernel's remembered.

        DeviceError: ENODEV, ENETUNREACH, EEXIST, EINVAL, ENOBUFS.
        """
        interface = self._interface_for(entry)
        if interface is None:
            self._remember(entry, replace)
            return
        route = Route(entry.destination, entry.gateway, entry.metric, entry.table)
        if replace:
            for known in interface.routes_to(route.destination):
                if (known.metric, known.table) == (route.metric, route.table):
                    interface.remove_route(known)
        interface.add_route(route)
        self._announce(_groups(entry.destination.network_address, "route"), lambda: nl.route_message(entry))

    def remove_route(self, entry: RouteEntry) -> None:
        """The first that is meant: ours, remembered, or the kernel's, which is hidden. DeviceError: ESRCH."""
        for interface in self._interfaces:
            for route in interface.routes_to(entry.destination):
                known = _entry(interface, route)
                if _matches(known, entry):
                    interface.remove_route(route)
                    self._announce_removed(known)
                    return
            for address, known in self._connected(interface):
                if _matches(known, entry):
                    interface.disconnect(address)
                    self._announce_removed(known)
                    return
        remembered = self._remembered.get(entry.destination, [])
        for known in remembered:
            if _matches(known, entry):
                self._set_remembered(entry.destination, [each for each in remembered if each is not known])
                return
        known_by_kernel = self._kernel_has(entry)
        if known_by_kernel is None or len(self._hidden) >= _MOST_REMEMBERED:
            raise DeviceError(errno.ESRCH, f"no route to {entry.destination}")
        self._hidden.append(known_by_kernel)

    def _handle(self, request: Message) -> list[Message] | None:
        """What was asked for; None where something was changed."""
        match request.kind:
            case nl.RTM_GETLINK:
                return self._get_links(request)
            case nl.RTM_GETADDR if request.is_dump:
                return [*self._from_kernel(request), *self._addresses(_family(request))]
            case nl.RTM_GETROUTE:
                return self._dump_routes(request) if request.is_dump else self._look_up(request)
            case nl.RTM_NEWLINK | nl.RTM_SETLINK:
                self._set_link(request)
            case nl.RTM_DELLINK:
                self._interfaces.discard(self._find_link(request))
            case nl.RTM_NEWADDR | nl.RTM_DELADDR:
                self._change_address(request)
            case nl.RTM_NEWROUTE:
                self.add_route(RouteEntry.parse(request), replace=bool(request.flags & nl.NLM_F_REPLACE))
            case nl.RTM_DELROUTE:
                self.remove_route(RouteEntry.parse(request))
            case nl.RTM_GETNSID if nl.NETNSA_FD in request.attributes(nl.GENERIC).values:
                # The descriptor is the program's, and none of ours.
                return [nl.namespace_message()]
            case kind if kind & 3 == _GET:
                return self._from_kernel(request)
            case kind:
                raise DeviceError(errno.EOPNOTSUPP, f"netlink request {kind} is not lent")
        return None

    def _from_kernel(self, request: Message) -> list[Message]:
        if request.is_dump:
            return self._kernel.dump(request.kind, request.body)
        return self._kernel.get(request.kind, request.flags, request.body)

    def _get_links(self, request: Message) -> list[Message]:
        if request.is_dump:
            ours = _family(request) in (socket.AF_UNSPEC, socket.AF_PACKET)
            return [*self._from_kernel(request), *(nl.link_message(own) for own in self._interfaces if ours)]
        try:
            return [nl.link_message(self._find_link(request))]
        except DeviceError as error:
            if error.errno not in (errno.EPERM, errno.ENODEV):
                raise
        return self._from_kernel(request)

    def _addresses(self, family: int) -> Iterator[Message]:
        for interface in self._interfaces:
            for address in interface.addresses:
                if family in (socket.AF_UNSPEC, _family_of(address.interface.ip)):
                    yield nl.address_message(interface, address)

    def _find_link(self, request: Message) -> Interface:
        """EPERM for one of the kernel's, ENODEV for none."""
        _, _, index, _, _ = request.unpack(nl.LINK)
        name = request.attributes(nl.LINK).text(nl.IFLA_IFNAME)
        found = self._interfaces.by_index(index) if index else self._interfaces.get(name or "")
        if found is None:
            raise self._not_ours(index if index else name or "")
        return found

    def _not_ours(self, which: int | str) -> DeviceError:
        try:
            known = socket.if_indextoname(which) if isinstance(which, int) else socket.if_nametoindex(which)
        except (OSError, OverflowError, ValueError):
            known = None
        if known is None:
            return DeviceError(errno.ENODEV, f"no interface {which}")
        return DeviceError(errno.EPERM, f"interface {which} is the system's own")

    def _set_link(self, request: Message) -> None:
        interface = self._find_link(request)
        attributes = request.attributes(nl.LINK)
        _, _, _, flags, change = request.unpack(nl.LINK)
        if request.flags & nl.NLM_F_EXCL and request.kind == nl.RTM_NEWLINK:
            raise DeviceError(errno.EEXIST, f"there is {interface.name} already")
        if attributes.text(nl.IFLA_IFNAME) not in (None, interface.name) or attributes.number(nl.IFLA_MASTER):
            raise DeviceError(errno.EOPNOTSUPP, "a lent interface keeps its name and has no master")
        mac = attributes.values.get(nl.IFLA_ADDRESS)
        if mac is not None:
            interface.set_mac(mac)
        mtu = attributes.number(nl.IFLA_MTU)
        if mtu is not None:
            interface.set_mtu(mtu)
        length = attributes.number(nl.IFLA_TXQLEN)
        if length is not None:
            interface.set_queue_length(length)
        if change & _IFF_UP or (flags and not change):
            interface.set_up(bool(flags & _IFF_UP))

    def _change_address(self, request: Message) -> None:
        family, length, _, _, index = request.unpack(nl.ADDRESS)
        if family not in nl.ADDRESS_BYTES:
            raise DeviceError(errno.EOPNOTSUPP, "addresses are IPv4 or IPv6")
        attributes = request.attributes(nl.ADDRESS)
        peer = attributes.address(nl.IFA_ADDRESS, family)
        local = attributes.address(nl.IFA_LOCAL, family) or peer
        if local is None:
            raise DeviceError(errno.EINVAL, "no address given")
        try:
            own = ipaddress.ip_interface((local.packed, length))
        except ValueError:
            raise DeviceError(errno.EINVAL, f"no address has a prefix of {length} bits") from None
        if request.kind == nl.RTM_DELADDR:
            self.remove_address(index, own)
            return
        replace = bool(request.flags & nl.NLM_F_REPLACE and not request.flags & nl.NLM_F_EXCL)
        self.add_address(index, Address(own, peer if peer != local else None), replace=replace)

    def _own(self, index: int) -> Interface:
        """EPERM for one of the kernel's, ENODEV for none."""
        interface = self._interfaces.by_index(index)
        if interface is None:
            raise self._not_ours(index)
        return interface

    def _dump_routes(self, request: Message) -> list[Message]:
        family = _family(request)
        kernel = [message for message in self._from_kernel(request) if not self._is_hidden(message)]
        ours = [
            nl.route_message(entry)
            for entry in self._routes()
            if family in (socket.AF_UNSPEC, _family_of(entry.destination.network_address))
        ]
        return kernel + ours

    def _routes(self) -> Iterator[RouteEntry]:
        for entries in self._remembered.values():
            yield from entries
        for interface in self._interfaces:
            yield from (entry for _, entry in self._connected(interface))
            yield from (_entry(interface, route) for route in interface.routes)

    def _connected(self, interface: Interface) -> Iterator[tuple[Address, RouteEntry]]:
        """The routes that come with an interface's addresses."""
        for address, network in interface.connected:
            own = address.interface
            source = own.ip if own.version == 4 else None
            yield address, RouteEntry(network, None, interface.index, protocol=_BY_KERNEL, source=source)

    def _look_up(self, request: Message) -> list[Message]:
        """The route to one address: the most specific, of the kernel's and ours."""
        family = _family(request)
        if family not in nl.ADDRESS_BYTES:
            return self._from_kernel(request)
        attributes = request.attributes(nl.ROUTE)
        wanted = attributes.address(nl.RTA_DST, family)
        destination = wanted or ipaddress.ip_address(bytes(nl.ADDRESS_BYTES[family]))
        ours = [entry for entry in self._routes() if entry.table == _MAIN and destination in entry.destination]
        kernel = self._kernel.find_route(destination)
        if kernel is not None and any(_is_same(kernel, hidden) for hidden in self._hidden):
            kernel = None
        best = min(ours, key=lambda entry: (-entry.destination.prefixlen, entry.metric), default=None)
        if best is None or (kernel is not None and kernel.destination.prefixlen > best.destination.prefixlen):
            if kernel is None and self._hidden:
                raise DeviceError(errno.ENETUNREACH, f"no route to {destination}")
            return self._from_kernel(request)
        network = best.destination if wanted is None else _around(destination, destination.max_prefixlen)
        return [nl.route_message(replace(best, destination=network, source=best.source or self._source(best)))]

    def _source(self, entry: RouteEntry) -> IPAddress | None:
        interface = self._interfaces.by_index(entry.interface or 0)
        addresses = interface.addresses if interface is not None else ()
        version = entry.destination.version
        return next((own.interface.ip for own in addresses if own.interface.version == version), None)

    def _interface_for(self, entry: RouteEntry) -> Interface | None:
        """The interface of ours that a route leads through; None: it is one of the kernel's."""
        if entry.kind != _UNICAST:
            return None
        if entry.interface is not None:
            interface = self._interfaces.by_index(entry.interface)
            if interface is None and self._not_ours(entry.interface).errno == errno.ENODEV:
                raise self._not_ours(entry.interface)
            return interface
        if entry.gateway is None:
            raise DeviceError(errno.ENODEV, "a route needs a gateway or an interface")
        for own in self._routes():
            if own.gateway is None and entry.gateway in own.destination and own.interface is not None:
                found = self._interfaces.by_index(own.interface)
                if found is not None:
                    return found
        return None

    def _remember(self, entry: RouteEntry, replacing: bool) -> None:
        if entry.interface is None and entry.gateway is not None:
            way = self._kernel.find_route(entry.gateway)
            if way is None:
                raise DeviceError(errno.ENETUNREACH, f"no way to the gateway {entry.gateway}")
            entry = replace(entry, interface=way.interface)
        known = self._remembered.get(entry.destination, [])
        same = [each for each in known if _is_same(each, entry)]
        if same and not replacing:
            raise DeviceError(errno.EEXIST, f"there is a route to {entry.destination} already")
        if self._remembered_count >= _MOST_REMEMBERED:
            raise DeviceError(errno.ENOBUFS, f"{_MOST_REMEMBERED} routes are remembered already")
        self._hidden = [hidden for hidden in self._hidden if not _is_same(hidden, entry)]
        kept = [each for each in known if each not in same]
        if not self._kernel_has(entry):
            kept.append(entry)
        self._set_remembered(entry.destination, kept)
        log.info("route to %s through the system's interfaces: remembered, not set", entry.destination)

    def _set_remembered(self, destination: nl.Network, entries: list[RouteEntry]) -> None:
        self._remembered_count += len(entries) - len(self._remembered.pop(destination, []))
        if entries:
            self._remembered[destination] = entries

    def _kernel_has(self, entry: RouteEntry) -> RouteEntry | None:
        """The kernel's route that is meant, if the program may still see it."""
        family = _family_of(entry.destination.network_address)
        for message in self._kernel.dump(nl.RTM_GETROUTE, nl.ROUTE.pack(family, *[0] * 8)):
            known = _parsed(message)
            if known is not None and _matches(known, entry) and not self._is_hidden(message):
                return known
        return None

    def _is_hidden(self, message: Message) -> bool:
        known = _parsed(message) if self._hidden else None
        return known is not None and any(_is_same(known, hidden) for hidden in self._hidden)

    def _watch(self, interface: Interface) -> None:
        interface.on_change.append(lambda: self._changed(interface))
        self._announce(_GROUP_LINK, lambda: nl.link_message(interface))

    def _changed(self, interface: Interface) -> None:
        self._announce(_GROUP_LINK, lambda: nl.link_message(interface))

    def _announce_removed(self, entry: RouteEntry) -> None:
        self._announce(
            _groups(entry.destination.network_address, "route"), lambda: nl.route_message(entry, deleted=True)
        )

    def _deleted(self, interface: Interface) -> None:
        self._announce(_GROUP_LINK, lambda: nl.link_message(interface, deleted=True))

    def _announce(self, groups: int, message: Callable[[], Message]) -> None:
        listeners = [listener for listener in self.listeners if listener.groups & groups]
        # Made only where somebody listens: a program may set thousands of routes.
        packed = message().pack(0) if listeners else b""
        for listener in listeners:
            listener.tell(packed)


def _datagrams(request: Message, found: list[Message], port: int) -> Iterator[bytes]:
    """The messages in datagrams that fit the smallest buffers in use, with the end mark of a dump."""
    flags = nl.NLM_F_MULTI if request.is_dump else 0
    if request.is_dump:
        found = [*found, Message(nl.NLMSG_DONE, 0, 0, bytes(4))]
    datagram = b""
    for message in found:
        packed = replace(message, flags=message.flags | flags, sequence=request.sequence).pack(port)
        packed += bytes(-len(packed) % 4)
        if datagram and len(datagram) + len(packed) > _DATAGRAM:
            yield datagram
            datagram = b""
        datagram += packed
    if datagram:
        yield datagram
    if not request.is_dump and request.flags & nl.NLM_F_ACK:
        yield nl.acknowledge(request, port).pack(port)


def _family(request: Message) -> int:
    if not request.body:
        raise DeviceError(errno.EINVAL, "a netlink message is too short")
    return request.body[0]


def _family_of(address: IPAddress) -> int:
    return int(socket.AF_INET if address.version == 4 else socket.AF_INET6)


def _entry(interface: Interface, route: Route) -> RouteEntry:
    return RouteEntry(route.destination, route.gateway, interface.index, route.metric, route.table)


def _around(address: IPAddress, length: int) -> nl.Network:
    return ipaddress.ip_interface((address.packed, length)).network


def _groups(address: IPAddress, what: str) -> int:
    return _GROUPS[what, address.version]


def _parsed(message: Message) -> RouteEntry | None:
    with contextlib.suppress(DeviceError, ValueError):
        return RouteEntry.parse(message)
    return None


def _is_same(known: RouteEntry, other: RouteEntry) -> bool:
    return (known.destination, known.metric, known.table, known.gateway) == (
        other.destination,
        other.metric,
        other.table,
        other.gateway,
    )


def _matches(known: RouteEntry, wanted: RouteEntry) -> bool:
    """Whether a request to remove a route means this one: what it leaves open may be anything."""
    return (
        known.destination == wanted.destination
        and wanted.table in (known.table, _MAIN)
        and known.table == wanted.table
        and wanted.gateway in (None, known.gateway)
        and wanted.interface in (None, known.interface)
        and (not wanted.metric or wanted.metric == known.metric)
    )


_GET = 2
_MAIN, _BY_KERNEL, _UNICAST = 254, 2, 1
_IFF_UP = 1
_GROUP_LINK = 0x1
_GROUPS = {("address", 4): 0x10, ("route", 4): 0x40, ("address", 6): 0x100, ("route", 6): 0x400}
_MOST_REMEMBERED = 10000
#: Datagrams that answer one.
_MOST_ANSWERS = 8192
_DATAGRAM = 3584
