"""Network interfaces in user space: a device, a stack on its interface end, and what is configured.

An `Interfaces` is what a network namespace is to the kernel: a set of interfaces with names and
indices. Each `Interface` is a memory device whose application end programs hold by descriptors.
What is configured here is what the stack lives by.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Interface, IPv6Interface

from ginnel._core import Link
from ginnel.device.address import MAIN_TABLE, MAX_NAME, Address, Network, Route, check_name
from ginnel.device.base import DEFAULT_MTU, Kind
from ginnel.device.memory import MemoryDevice
from ginnel.errors import DeviceError
from ginnel.stack import Stack


class Interfaces:
    """The interfaces of one process, by name and by index. At most `MAX_INTERFACES`."""

    def __init__(self, *, first_index: int = 1) -> None:
        """``first_index``: of the first interface; each later one has the next."""
        self._interfaces: dict[str, Interface] = {}
        self._index = first_index
        self._ending: set[asyncio.Task[None]] = set()
        self.on_create: list[Callable[[Interface], None]] = []
        """Called with each new interface."""
        self.on_delete: list[Callable[[Interface], None]] = []
        """Called with each that is about to end."""

    def create(
        self, pattern: str | None = None, kind: Kind = "tun", mtu: int = DEFAULT_MTU, *, index: int | None = None
    ) -> Interface:
        """A new interface, down. ``pattern`` is its name; one ``%d`` in it (None: ``tun%d``, ``tap%d``)
        stands for the next free number. ``index``: its own, instead of the next.

        Needs a running event loop. Raises DeviceError: EEXIST, EINVAL for a name that cannot be, ENFILE, EBUSY for
        an index that is taken. Where one of ``on_create`` raises, there is no new interface.
        """
        name = self._choose(pattern or f"{kind}%d")
        if index is not None and self.by_index(index) is not None:
            raise DeviceError(errno.EBUSY, f"there is an interface with the index {index} already")
        if len(self._interfaces) >= MAX_INTERFACES:
            raise DeviceError(errno.ENFILE, f"there are {MAX_INTERFACES} interfaces already; delete one first")
        if index is None:
            while self.by_index(self._index) is not None:
                self._index += 1
            index = self._index
            self._index += 1
        interface = Interface(name, index, kind, mtu)
        self._interfaces[name] = interface
        try:
            for call in list(self.on_create):
                call(interface)
        except BaseException:
            self.discard(interface)
            raise
        return interface

    def get(self, name: str) -> Interface | None:
        return self._interfaces.get(name)

    def by_index(self, index: int) -> Interface | None:
        return next((interface for interface in self if interface.index == index), None)

    def __iter__(self) -> Iterator[Interface]:
        return iter(list(self._interfaces.values()))

    async def delete(self, interface: Interface) -> None:
        """Removes an interface: whoever holds its application end sees that end."""
        self._forget(interface)
        await interface.aclose()

    def discard(self, interface: Interface) -> None:
        """As `delete`, but does not wait: its name is free at once, and its stack ends by itself."""
        self._forget(interface)
        task = asyncio.get_running_loop().create_task(interface.aclose())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def aclose(self) -> None:
        for interface in self:
            await self.delete(interface)
        if self._ending:
            await asyncio.wait(self._ending)

    def _forget(self, interface: Interface) -> None:
        if self._interfaces.get(interface.name) is interface:
            del self._interfaces[interface.name]
            for call in list(self.on_delete):
                call(interface)

    def _choose(self, pattern: str) -> str:
        check_name(pattern)
        if "%d" not in pattern:
            if pattern in self._interfaces:
                raise DeviceError(errno.EEXIST, f"there is a device {pattern} already")
            return pattern
        names = (pattern.replace("%d", str(number)) for number in range(MAX_INTERFACES + 1))
        name = next(name for name in names if name not in self._interfaces)
        if len(name) > MAX_NAME:
            raise DeviceError(errno.EINVAL, f"{name!r} is longer than {MAX_NAME} characters")
        return name


class Interface:
    """A device in user space with a network stack on its interface end.

    Programs hold its application end by descriptors, see `attach`. Refusals are DeviceError, with the
    errno that the kernel would give.
    """

    def __init__(self, name: str, index: int, kind: Kind, mtu: int = DEFAULT_MTU) -> None:
        self.name = name
        self.index = index
        self.device = MemoryDevice(kind, mtu)
        self.device.application.close()
        self._loop = asyncio.get_running_loop()
        self.stack = Stack(self.device.interface)
        self.on_change: list[Callable[[], None]] = []
        """Called when a setting has changed."""
        self.on_detach: list[Callable[[int], None]] = []
        """Called with a queue's number when the program that held it has gone."""
        try:
            self._link = Link(self.device.core, "application", self.stack.core)
            self._loop.add_reader(self._link.fileno(), self.notice_gone)
        except OSError:
            # The stack has a thread and descriptors, which nobody else knows of.
            self.stack.discard()
            self.device.close()
            raise
        self._queues: set[int] = set()
        self._addresses: list[Address] = []
        # Those whose network the interface leads to no more.
        self._bare: set[Address] = set()
        # In their order, each once.
        self._routes: dict[Route, None] = {}
        self._to: dict[Network, list[Route]] = {}

    @property
    def kind(self) -> Kind:
        return self.device.kind

    @property
    def up(self) -> bool:
        return self.device.up

    def set_up(self, up: bool) -> None:
        if up and not self.up and self._bare:
            self._bare.clear()
            self._follow_addresses()
        self.device.set_up(up)
        self._changed()

    @property
    def mtu(self) -> int:
        return self.device.mtu

    def set_mtu(self, mtu: int) -> None:
        """EINVAL below 68, above 65,535 (TAP: 65,521)."""
        self.device.set_mtu(mtu)
        self._changed()

    @property
    def mac(self) -> bytes:
        """The 6 bytes of a TAP interface's address; of a TUN interface, none."""
        return bytes.fromhex((self.stack.mac or "").replace(":", ""))

    def set_mac(self, mac: bytes) -> None:
        """EBUSY while up; EADDRNOTAVAIL for a group address; EOPNOTSUPP on a TUN interface."""
        if self.kind != "tap":
            raise DeviceError(errno.EOPNOTSUPP, f"{self.name} is a TUN device and has no MAC address")
        if len(mac) != 6 or mac[0] & 1 or not any(mac):
            raise DeviceError(errno.EADDRNOTAVAIL, "not the MAC address of one station")
        if self.up:
            raise DeviceError(errno.EBUSY, f"{self.name} is up; set it down to change its MAC address")
        self.stack.set_mac(mac.hex(":"))
        self._changed()

    @property
    def queue_length(self) -> int:
        """Packets that wait for a program at most."""
        return self.device.queue_length

    def set_queue_length(self, length: int) -> None:
        self.device.set_queue_length(length)
        self._changed()

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(self._addresses)

    def add_address(self, address: Address) -> None:
        """EEXIST when the interface has it already; EADDRNOTAVAIL for one that no host can have; ENOBUFS past
        `MAX_ADDRESSES`."""
        if len(self._addresses) >= MAX_ADDRESSES:
            raise DeviceError(errno.ENOBUFS, f"{self.name} has {MAX_ADDRESSES} addresses already; remove one first")
        if any(address.interface == own.interface for own in self._addresses):
            raise DeviceError(errno.EEXIST, f"{self.name} has the address {address.interface} already")
        self._addresses.append(address)
        try:
            self._follow_addresses()
        except ValueError:
            self._addresses.remove(address)
            raise DeviceError(errno.EADDRNOTAVAIL, f"{address.interface} is no address of a host") from None
        self._changed()

    def remove_address(self, interface: IPv4Interface | IPv6Interface) -> None:
        """EADDRNOTAVAIL when the interface does not have it."""
        kept = [own for own in self._addresses if own.interface != interface]
        if len(kept) == len(self._addresses):
            raise DeviceError(errno.EADDRNOTAVAIL, f"{self.name} does not have the address {interface}")
        self._addresses = kept
        # An address that comes again has its network again.
        self._bare.intersection_update(kept)
        self._follow_addresses()
        self._changed()

    @property
    def connected(self) -> tuple[tuple[Address, Network], ...]:
        """The networks that come with the addresses while the interface is up."""
        pairs = ((own, _network_of(own)) for own in self._addresses if self.up and own not in self._bare)
        return tuple((own, network) for own, network in pairs if network is not None)

    def disconnect(self, address: Address) -> None:
        """Takes the network away that comes with an address, until the interface is set up again. ESRCH when it has
        none. A TUN interface, which sends everything to its other end otherwise, goes by its routes meanwhile."""
        if all(own != address for own, _ in self.connected):
            raise DeviceError(errno.ESRCH, f"{self.name} has no network of {address.interface}")
        self._bare.add(address)
        self._follow_addresses()
        self._changed()

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes that were added; the addresses' own networks are not among them."""
        return tuple(self._routes)

    def routes_to(self, destination: Network) -> tuple[Route, ...]:
        """Those to exactly this network."""
        return tuple(self._to.get(destination, ()))

    def add_route(self, route: Route) -> None:
        """EEXIST when there is one to this destination with this metric in its table; ENOBUFS past `MAX_ROUTES`."""
        if len(self._routes) >= MAX_ROUTES:
            raise DeviceError(errno.ENOBUFS, f"{self.name} has {MAX_ROUTES} routes already; remove one first")
        if route.gateway is not None and route.gateway.version != route.destination.version:
            raise DeviceError(errno.EINVAL, f"the gateway to {route.destination} is not of its family")
        known = self._to.setdefault(route.destination, [])
        if any((own.metric, own.table) == (route.metric, route.table) for own in known):
            raise DeviceError(errno.EEXIST, f"{self.name} has a route to {route.destination} already")
        known.append(route)
        self._routes[route] = None
        self._follow_routes(route.destination)
        self._changed()

    def remove_route(self, route: Route) -> None:
        """ESRCH when there is none such."""
        if route not in self._routes:
            raise DeviceError(errno.ESRCH, f"{self.name} has no such route to {route.destination}")
        del self._routes[route]
        self._to[route.destination].remove(route)
        if not self._to[route.destination]:
            del self._to[route.destination]
        self._follow_routes(route.destination)
        self._changed()

    def statistics(self) -> dict[str, int]:
        return self.device.statistics()

    @property
    def queues(self) -> tuple[int, ...]:
        """The numbers of the queues that programs hold."""
        return tuple(sorted(self._queues))

    def attach(self, packet_info: bool = False) -> tuple[socket.socket, int]:
        """A new queue on the application end: the descriptor for the program, and the queue's number.

        The descriptor is one half of a SOCK_SEQPACKET pair, a packet a message; with ``packet_info`` each
        begins with 4 bytes, as on /dev/net/tun without IFF_NO_PI. Raises DeviceError: E2BIG past 256.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            number = self.join(ours, packet_info)
        except BaseException:
            theirs.close()
            raise
        return theirs, number

    def join(self, ours: socket.socket, packet_info: bool = False) -> int:
        """As `attach`, for a pair that is there already: takes over our half and returns the queue's number."""
        number = self._link.add(ours.detach(), packet_info)
        self._queues.add(number)
        return number

    def set_packet_info(self, number: int, packet_info: bool) -> None:
        self._link.set_packet_info(number, packet_info)

    def set_queue(self, number: int, enabled: bool) -> None:
        """A queue that is not enabled gives no packets, and what is written to it is an error."""
        self._link.set_enabled(number, enabled)

    def detach(self, number: int) -> None:
        """Ends a queue from our side. Harmless for one that is gone."""
        self._link.remove(number)
        self._queues.discard(number)

    async def aclose(self) -> None:
        """Deletes the device; idempotent."""
        if self.device.closed:
            return
        self._loop.remove_reader(self._link.fileno())
        self.device.close()
        self._link.close()
        self._queues.clear()
        self.on_change.clear()
        self.on_detach.clear()
        await self.stack.aclose()

    def __repr__(self) -> str:
        return f"<Interface {self.name} {self.kind} {'up' if self.up else 'down'}>"

    def notice_gone(self) -> None:
        """Looks for programs that have gone. It happens by itself; to be called where it matters that it has."""
        for _, number in self._link.events():
            if number in self._queues:
                self._queues.discard(number)
                for call in list(self.on_detach):
                    call(number)

    def _follow_addresses(self) -> None:
        """Has the stack have the same addresses. One whose network is gone stands in no other than itself."""
        interfaces = (
            ipaddress.ip_interface(own.interface.ip) if own in self._bare else own.interface for own in self._addresses
        )
        self.stack.set_addresses([str(interface) for interface in interfaces])
        if self.kind == "tun":
            self.stack.set_routes(self._ways() if self._bare else None)

    def _ways(self) -> list[tuple[str, str | None]]:
        """All that the kernel would know of a TUN interface."""
        networks = (_network_of(own) for own in self._addresses if own not in self._bare)
        routes = (str(own.destination) for own in self._routes if own.table == MAIN_TABLE)
        return [(destination, None) for destination in (*map(str, filter(None, networks)), *routes)]

    def _follow_routes(self, destination: Network) -> None:
        """Has the stack take the best way to a network."""
        # What is sent into a TUN device goes through it, whichever routes a program wanted, until it takes one away.
        if self.kind == "tun" and not self._bare:
            return
        ways = [own for own in self.routes_to(destination) if own.table == MAIN_TABLE]
        if ways:
            best = min(ways, key=lambda own: own.metric)
            self.stack.add_route(str(destination), str(best.gateway) if best.gateway else None)
        else:
            self.stack.remove_route(str(destination))

    def _changed(self) -> None:
        for call in list(self.on_change):
            call()


def _network_of(address: Address) -> Network | None:
    """The network that comes with an address: around the other side, where there is one. None: it stands alone."""
    own, peer = address.interface, address.peer
    if peer is not None:
        return ipaddress.ip_interface((peer.packed, own.network.prefixlen)).network
    return own.network if own.network.prefixlen < own.max_prefixlen else None


MAX_INTERFACES = 4096
MAX_ADDRESSES = 1024
MAX_ROUTES = 10_000
SEND_BUFFER = 4 << 20
"""Bytes that a program's half of a pair asks for, so that it hardly ever waits for us."""
