"""A `Vpn` on a device of the kernel's: every program of this machine goes through it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ginnel._core import DataPlane
from ginnel.errors import DeviceError, UnreachableError
from ginnel.network.kill_switch import ANY_PORT, Server
from ginnel.network.plan import MAX_SERVERS, Settings, settings
from ginnel.network.rights import ENDED, RefusedError, Rights
from ginnel.openvpn import aio
from ginnel.openvpn.config import ClientConfig, Remote
from ginnel.openvpn.events import OpenUrl, Reconfigured
from ginnel.openvpn.push import PushReply
from ginnel.threads import for_one_peer
from ginnel.vpn import Vpn

log = logging.getLogger("ginnel")


class KernelVpn(Vpn):
    """A connection whose packets come from and go to a device of the kernel's.

    ``config`` names servers by address alone (`with_addresses`): when the tunnel is down, no name can be resolved
    past it. The device, its addresses and routes belong to ``rights``, which outlive this. It is up when the
    machine is set up; if that fails it ends, with a DeviceError.
    """

    def __init__(
        self, config: ClientConfig, rights: Rights, device: tuple[list[int], str, bool], **options: Any
    ) -> None:
        super().__init__(config, **options)
        self._rights = rights
        self._descriptors, self.device_name, self._udp_offload = device
        self._push: PushReply | None = None
        self._news: deque[aio.Change] = deque()
        self._has_news = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._told: set[str] = set()

    @property
    def was_up(self) -> bool:
        return self._info is not None

    def statistics(self) -> dict[str, dict[str, int]]:
        """Counters of the parts: ``plane``, ``device``, ``session``."""
        if self._client is None:
            return {}
        plane = self._client.plane_statistics()
        device = {name: plane[name] for name in ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes")}
        return {"plane": plane, "device": device, "session": self._client.session_statistics()}

    def _open_device(self) -> DataPlane:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._rights.fileno(), self._helper_ended)
        self._follower = loop.create_task(self._follow())
        kind, apart = self._config.dev_type, for_one_peer()["apart"]
        plane = DataPlane.on_kernel_device(self._descriptors, kind, True, self._udp_offload, apart=apart)
        if (capture := self._open_capture(self.device_name)) is not None:
            capture.observe_plane(plane)
        return plane

    async def _close_device(self) -> None:
        if self._follower is not None:
            asyncio.get_running_loop().remove_reader(self._rights.fileno())
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower

    def _on_change(self, change: aio.Change) -> None:
        if isinstance(change, OpenUrl):
            super()._on_change(change)
            return
        # A server may change its mind faster than a machine follows: the last word counts.
        if self._news and isinstance(change, Reconfigured) and isinstance(self._news[-1], Reconfigured):
            self._news.pop()
        self._news.append(change)
        self._has_news.set()

    async def _follow(self) -> None:
        """Sets the machine up as each change wants it, and tells of the change when that is done."""
        while True:
            await self._has_news.wait()
            change = self._news.popleft()
            if not self._news:
                self._has_news.clear()
            match change:
                case aio.Rose():
                    self._push = change.established.push
                case Reconfigured(push):
                    self._push = push
            try:
                # After a loss, too: the way to the server may be another one by now.
                if self._push is not None:
                    self._tell(await asyncio.to_thread(self._rights.configure, self._wanted(self._push)))
            except DeviceError as error:
                self._fail(error)
                return
            super()._on_change(change)

    def _tell(self, sentences: list[str]) -> None:
        """Once each, however often the machine is set up."""
        for sentence in sentences:
            if sentence not in self._told and len(self._told) < MAX_TOLD:
                self._told.add(sentence)
                log.warning("%s", sentence)

    def _wanted(self, push: PushReply) -> Settings:
        wanted = settings(push, self._config.local, (remote.host for remote in carriers(self._config)))
        return wanted if wanted.mtu is not None else replace(wanted, mtu=self._config.tun_mtu)

    def _configure(self, push: PushReply) -> None:
        """Nothing: the machine is set up by then."""

    def _helper_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._rights.fileno())
        self._fail(RefusedError(errno.EIO, ENDED))


def with_addresses(config: ClientConfig) -> ClientConfig:
    """The same with each server's, or its proxy's, name replaced by its addresses.

    Raises UnreachableError when none of the names has one.
    """
    remotes: list[Remote] = []
    failed: UnreachableError | None = None
    for remote in config.remotes:
        host, port = (remote.proxy.host, remote.proxy.port) if remote.proxy else (remote.host, remote.port)
        kind = "" if remote.proxy else remote.proto[3:]
        family = {"4": socket.AF_INET, "6": socket.AF_INET6}.get(kind, socket.AF_UNSPEC)
        try:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        except OSError as error:
            failed = UnreachableError(f"cannot resolve {host}: {error.strerror or error}")
            continue
        for address in dict.fromkeys(str(entry[4][0]) for entry in found):
            if remote.proxy is None:
                remotes.append(replace(remote, host=address))
            else:
                remotes.append(replace(remote, proxy=replace(remote.proxy, host=address)))
    if not remotes and failed is not None:
        raise failed
    return replace(config, remotes=tuple(remotes[:MAX_SERVERS]))


def carriers(config: ClientConfig) -> Iterable[Remote]:
    """Where packets of the tunnel go first: the servers, or the proxies in the form of remotes."""
    for remote in config.remotes:
        if remote.proxy is None:
            yield remote
        else:
            yield Remote(remote.proxy.host, remote.proxy.port, "tcp")
            if not remote.tcp:
                # Which port of its own relays datagrams, the proxy says later.
                yield Remote(remote.proxy.host, ANY_PORT, "udp")


def allowed(config: ClientConfig) -> list[Server]:
    """What a kill switch lets through."""
    return [(remote.host, remote.port, remote.proto[:3]) for remote in carriers(config)]


MAX_TOLD = 100
