"""The inner end of a server, where its clients' packets come out: in user space, or on a device of the kernel's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import select
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_network
from typing import Any, Protocol

from ginnel._core import DataPlane
from ginnel.device.memory import MemoryDevice
from ginnel.errors import ConfigError, DeviceError, LocalProtocolError
from ginnel.gateways.egress import Egress
from ginnel.gateways.relay import listen_everywhere
from ginnel.network.masquerade import Forward, Gate
from ginnel.network.plan import Settings, Wish
from ginnel.network.rights import Rights
from ginnel.network.routes import Table
from ginnel.server.clients import Client
from ginnel.server.config import ServerConfig
from ginnel.server.journal import Rarely, tell
from ginnel.server.pool import Pool
from ginnel.stack import Stack
from ginnel.threads import for_many_peers


class Inner(Protocol):
    plane: DataPlane

    @property
    def stack(self) -> Stack:
        """At the server's inner address. LocalProtocolError where the kernel has that."""

    async def open(self, pool: Pool, address_of: Callable[[str], str | None], listening: Sequence[int]) -> None:
        """Takes its addresses, and opens the way out. ``address_of`` a user: the inner one, None while away;
        ``listening``: the ports where clients are awaited."""

    def lead_to(self, client: Client) -> None:
        """Networks behind a client are reached through it from now on."""

    def forget(self, client: Client) -> None: ...

    def statistics(self) -> dict[str, int]: ...

    async def aclose(self) -> None:
        """Idempotent."""


class UserSpace:
    """A stack of our own; clients' flows leave through this host's sockets, and published ports lead to them."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._device = MemoryDevice("tun", config.tun_mtu)
        self._device.set_up(True)
        self.plane = DataPlane(self._device.application, **for_many_peers(queues=False))
        self._stack: Stack | None = None
        self._egress: Egress | None = None
        self._exit = contextlib.AsyncExitStack()
        self._exit.callback(self.plane.close)

    @property
    def stack(self) -> Stack:
        if self._stack is None:
            raise LocalProtocolError("the server was not started; enter it with 'async with' first")
        return self._stack

    async def open(self, pool: Pool, address_of: Callable[[str], str | None], listening: Sequence[int]) -> None:
        self._stack = await self._exit.enter_async_context(Stack(self._device.interface, budget=BUDGET))
        self._stack.set_addresses([str(address) for address in _addresses(pool) if address is not None])
        allow = [str(network) for network in self._config.allow]
        closed, unanswered = Rarely("closed", level=logging.INFO, most=3), Rarely("names_unanswered")
        crowded = Rarely("crowded", most=3)
        self._egress = await self._exit.enter_async_context(
            Egress(
                self._stack,
                allow=allow,
                on_closed=lambda client, host: closed.tell(client=client, destination=host, reason=CLOSED),
                on_dns_failure=lambda reason: unanswered.tell(reason=reason),
                on_crowded=lambda source, what: crowded.tell(source=source, reason=f"too much at a time: {what}"),
            )
        )
        for published in self._config.publish:
            listener = listen_everywhere(published.port)
            self._egress.publish(listener, partial(address_of, published.user), published.target)

    def lead_to(self, client: Client) -> None:
        """The data plane knows the way, and all of the stack's packets go there."""
        if self._egress is not None:
            own = filter(None, (client.lease.text, client.lease.text6))
            self._egress.set_client(client.peer, [*own, *client.routes])

    def forget(self, client: Client) -> None:
        if self._egress is not None:
            self._egress.forget(client.peer)

    def statistics(self) -> dict[str, int]:
        return {} if self._egress is None else self._egress.statistics()

    async def aclose(self) -> None:
        await self._exit.aclose()


class Routed:
    """A device of the kernel's, which forwards what clients send. All that takes rights is asked of ``rights``."""

    def __init__(self, config: ServerConfig, rights: Rights, device: tuple[list[int], str, bool]) -> None:
        self._config = config
        self._rights = rights
        queues, self.device, udp_offload = device
        self.plane = DataPlane.on_kernel_device(
            queues, "tun", True, udp_offload, apart=for_many_peers(queues=True)["apart"]
        )
        self._settings = Settings(mtu=config.tun_mtu)
        self._behind: dict[int, tuple[str, ...]] = {}
        self._gate = Gate(())
        self._there: dict[int, Client] = {}
        self._left: list[str] = []
        # So that nobody else takes what is published: who comes while the client is away is refused by the kernel.
        self._held: list[socket.socket] = []
        # One at a time, and in their order.
        self._asking = ThreadPoolExecutor(1)

    @property
    def helper_descriptor(self) -> int:
        """Readable when the helper has ended."""
        return self._rights.fileno()

    @property
    def helper_ended(self) -> bool:
        return bool(select.select([self._rights.fileno()], [], [], 0)[0])

    @property
    def stack(self) -> Stack:
        raise LocalProtocolError(f"the server's inner address is the kernel's, on {self.device}; use ordinary sockets")

    async def open(self, pool: Pool, address_of: Callable[[str], str | None], listening: Sequence[int]) -> None:
        """Raises DeviceError, and ConfigError for inner addresses that this machine has elsewhere."""
        address, address6 = _addresses(pool)
        self._settings = Settings(address=address, address6=address6, mtu=self._config.tun_mtu)
        inside: tuple[IPv4Network | IPv6Network, ...] = (pool.network,)
        if pool.network6 is not None:
            inside += (pool.network6,)
        _check_free(inside, self.device)
        self._gate = Gate(
            inside, self._config.allow, self._config.client_to_client, listening=tuple(dict.fromkeys(listening))
        )
        for published in self._config.publish:
            self._held.append(_hold(published.port))
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._asking, self._configure, self._settings)
        await loop.run_in_executor(self._asking, self._rights.open_way_out, self._gate)

    def lead_to(self, client: Client) -> None:
        if client.routes:
            self._behind[client.peer] = client.routes
            self._route()
        if any(published.user == client.name for published in self._config.publish):
            self._there[client.peer] = client
            self._forward()

    def forget(self, client: Client) -> None:
        if self._behind.pop(client.peer, None):
            self._route()
        if self._there.pop(client.peer, None):
            self._forward()

    def statistics(self) -> dict[str, int]:
        return {}

    async def aclose(self) -> None:
        await asyncio.to_thread(self._asking.shutdown)
        for held in self._held:
            held.close()
        self.plane.close()

    def _route(self) -> None:
        wishes = tuple(Wish(ip_network(network)) for networks in self._behind.values() for network in networks)
        settings = Settings(
            address=self._settings.address,
            address6=self._settings.address6,
            mtu=self._settings.mtu,
            routes=tuple(dict.fromkeys(wishes)),
        )
        self._asking.submit(self._configure, settings).add_done_callback(_tell_failure)

    def _configure(self, settings: Settings) -> None:
        """What stays elsewhere is said once, until it is another."""
        left = self._rights.configure(settings)
        for sentence in left:
            if sentence not in self._left:
                tell("routed_in_part", level=logging.WARNING, reason=sentence)
        self._left = left

    def _forward(self) -> None:
        # Of several sessions of one user the latest counts.
        forwards = {
            (published.port, address.version): Forward(published.port, address, published.target)
            for client in self._there.values()
            for published in self._config.publish
            if client.name == published.user
            for address in (client.address, client.address6)
            if address is not None
        }
        gate = replace(self._gate, forwards=tuple(forwards.values()))
        self._asking.submit(self._rights.open_way_out, gate).add_done_callback(_tell_failure)


def _hold(port: int) -> socket.socket:
    """At every address: of both families, or of IPv4 where there is no IPv6."""
    try:
        return _bound(socket.AF_INET6, "::", port)
    except DeviceError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
    return _bound(socket.AF_INET, "0.0.0.0", port)


def _bound(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    try:
        held = socket.socket(family)
        try:
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            held.bind((host, port))
        except BaseException:
            held.close()
            raise
    except OSError as error:
        raise DeviceError(error.errno or errno.EIO, f"cannot listen on port {port} of every address") from error
    return held


def _check_free(inside: Sequence[IPv4Network | IPv6Network], device: str) -> None:
    """Of two links with one network the kernel takes one, and the other's packets are lost."""
    with Table() as table:
        links = [route for route in table.read() if route.gateway is None and route.device not in (device, None)]
    for network in inside:
        for route in links:
            # A wider one is there for what is none of ours.
            if route.destination.version == network.version and route.destination.subnet_of(network):  # type: ignore[arg-type]
                raise ConfigError(
                    f"{network}, the clients' network, is on {route.device} already",
                    instead="set another network (or network6) in server.toml",
                )


def _tell_failure(asked: Future[Any]) -> None:
    if (error := asked.exception()) is not None:
        tell("not_routed", level=logging.ERROR, reason=str(error))


def _addresses(pool: Pool) -> tuple[IPv4Interface, IPv6Interface | None]:
    own = IPv4Interface((pool.address, pool.network.prefixlen))
    if pool.address6 is None or pool.network6 is None:
        return own, None
    return own, IPv6Interface((pool.address6, pool.network6.prefixlen))


# Bytes of buffers for all clients' connections: a quarter for one alone.
BUDGET = 256 * 1024 * 1024
CLOSED = "clients may not go there; ginnel serve --allow opens a private network"
