"""The way to a server past the tunnel: its name, a route, and a hole in the kill switch, before it is dialed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator

from ginnel.errors import UnreachableError
from ginnel.network.kill_switch import Port
from ginnel.network.plan import MAX_SERVERS
from ginnel.network.rights import Rights
from ginnel.openvpn.config import ClientConfig, Remote
from ginnel.transports import ways
from ginnel.transports.dial import Address, by_turns, source_address


class Outside(ways.Outside):
    """What `aio.Client` asks before it dials, for a tunnel on the kernel's device.

    Names are looked up as every program does it, until the machine is changed. From then on its own resolver may lead
    into the tunnel, which is down, or nowhere: so its name servers are asked past both, over sockets that the helper
    lends; what they don't know now is what it was before. The kill switch is put up when the first server has an
    address, and lets through the addresses that are dialed next, and no others. Where datagrams go is known later with
    `float`, and with a proxy that relays them elsewhere: then the helper marks the one socket that they leave by, and
    the kill switch lets that through. So it is nobody's word that opens anything, neither a server's nor a stranger's,
    and no program can send by that socket.
    """

    def __init__(
        self,
        rights: Rights,
        config: ClientConfig,
        *,
        kill_switch: bool,
        guarded: bool,
        set_up: Callable[[], Awaitable[None]],
    ) -> None:
        """``guarded``: a kill switch is up already. ``set_up`` has the machine's routes follow `servers`."""
        self.servers: tuple[str, ...] = ()
        """The addresses that packets of the tunnel go to."""
        self.is_changed = guarded
        """Whether names, or the way to their servers, may be the tunnel's by now."""
        self.inside: set[str] = set()
        """The tunnel's own addresses."""
        self._rights = rights
        self._config = config
        self._kill_switch = kill_switch
        self._set_up = set_up
        self._known: dict[tuple[str, int], list[str]] = {}

    async def resolve(self, host: str, port: int, family: socket.AddressFamily) -> list[Address]:
        if ways.is_address(host):
            return await super().resolve(host, port, family)
        if not self.is_changed:
            found = await self._look_up(host, port, family)
            if self._kill_switch:
                await self._look_up_others()
            return found
        with contextlib.suppress(OSError):
            self._known[host, family] = await self._ask(host, family)
        if (host, family) in self._known:
            return [(address, port) for address in self._known[host, family]]
        return await self._look_up(host, port, family)

    def source(self, address: str) -> str | None:
        """None where the tunnel itself leads there."""
        found = source_address(address)
        return None if found in self.inside else found

    async def open(self, way: ways.Way) -> None:
        """Raises DeviceError, and UnreachableError where only the tunnel itself leads there."""
        self.servers = tuple(address for address, _ in way.addresses)
        if self._kill_switch:
            # Each time: who reloads the machine's rules takes it down.
            through = [(address, *port) for address in self.servers for port in ports([way.remote])]
            await asyncio.to_thread(self._rights.guard, through)
            self.is_changed = True
        await self._set_up()
        if self.servers and all(source_address(server) in self.inside for server in self.servers):
            raise UnreachableError(f"no way to {self.servers[0]} but through the tunnel itself")

    async def relayed(self, relay: str) -> None:
        if relay not in self.servers:
            self.follow(relay)
            await self._set_up()

    async def let_out(self, sock: socket.socket) -> None:
        if self._kill_switch:
            await asyncio.to_thread(self._rights.let_through, sock)

    def follow(self, address: str) -> None:
        """A server answers from here as well. ``set_up`` is still to be called."""
        self.servers = tuple(dict.fromkeys((*self.servers, address)))[-MAX_SERVERS:]

    async def _look_up(self, host: str, port: int, family: socket.AddressFamily) -> list[Address]:
        found = await super().resolve(host, port, family)
        self._known[host, family] = [address for address, _ in found]
        return found

    async def _look_up_others(self) -> None:
        """While this machine's resolver can be asked still: it may know more than name servers do."""
        others = {ways.where(remote) for remote in self._config.remotes}
        missing = [
            asyncio.ensure_future(self._look_up(host, port, family))
            for host, port, family in others
            if (host, family) not in self._known and not ways.is_address(host)
        ]
        if missing:
            await asyncio.wait(missing, timeout=FOR_OTHERS)
            for task in missing:
                task.cancel()
            await asyncio.gather(*missing, return_exceptions=True)

    async def _ask(self, host: str, family: socket.AddressFamily) -> list[str]:
        from ginnel.network.names import ask  # dnspython takes 4 MB, and most servers have an address

        families = [socket.AF_INET, socket.AF_INET6] if family == socket.AF_UNSPEC else [family]
        with contextlib.ExitStack() as stack:
            servers = await asyncio.to_thread(self._rights.name_servers)
            for server in servers:
                stack.enter_context(server)
            return by_turns(await ask(servers, host, families))


def ports(remotes: Iterable[Remote]) -> Iterator[Port]:
    """Where packets of the tunnel go first: to the servers, or to the proxies before them."""
    for remote in remotes:
        if remote.proxy is None:
            yield remote.port, remote.proto[:3]
        else:
            yield remote.proxy.port, "tcp"


def goes_elsewhere(config: ClientConfig) -> bool:
    """Whether datagrams of the tunnel may go to addresses, or ports, that no remote names."""
    return any(
        not remote.tcp and (remote.proxy is not None or config.for_remote(remote).floats) for remote in config.remotes
    )


def has_names(config: ClientConfig) -> bool:
    """Whether a server, or the proxy before it, is named and not addressed."""
    return not all(ways.is_address(ways.where(remote)[0]) for remote in config.remotes)


# Seconds for the names of the other servers.
FOR_OTHERS = 3.0
