"""A `Vpn` on a device of the kernel's: every program of this machine goes through it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections import deque
from dataclasses import replace
from typing import Any

from ginnel._core import DataPlane
from ginnel.errors import DeviceError
from ginnel.network.outside import Outside
from ginnel.network.plan import Settings, settings, without_addresses, without_routes
from ginnel.network.rights import ENDED, RefusedError, Rights
from ginnel.openvpn import aio
from ginnel.openvpn.config import ClientConfig
from ginnel.openvpn.events import OpenUrl, PeerFloat, Reconfigured
from ginnel.openvpn.push import PushReply
from ginnel.threads import for_one_peer
from ginnel.transports import watch
from ginnel.vpn import Vpn

log = logging.getLogger("ginnel")


class KernelVpn(Vpn):
    """A connection whose packets come from and go to a device of the kernel's.

    The device, its addresses and routes belong to ``rights``, which outlive this. It is up when the machine is set
    up; if that fails it ends, with a DeviceError. ``kill_switch``: one is put up, ``guarded``: one is up already.
    """

    def __init__(
        self,
        config: ClientConfig,
        rights: Rights,
        device: tuple[list[int], str, bool],
        *,
        kill_switch: bool,
        guarded: bool,
        **options: Any,
    ) -> None:
        super().__init__(config, **options)
        self._outside: Outside = Outside(rights, config, kill_switch=kill_switch, guarded=guarded, set_up=self._set_up)
        self._rights = rights
        self._descriptors, self.device_name, self._udp_offload = device
        self._push: PushReply | None = None
        # None: only the machine's own network has changed.
        self._news: deque[aio.Change | None] = deque()
        self._has_news = asyncio.Event()
        self._followers: list[asyncio.Task[None]] = []

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
        self._followers = [loop.create_task(self._follow()), loop.create_task(self._watch())]
        kind, apart = self._config.dev_type, for_one_peer()["apart"]
        plane = DataPlane.on_kernel_device(self._descriptors, kind, True, self._udp_offload, apart=apart)
        if (capture := self._open_capture(self.device_name)) is not None:
            capture.observe_plane(plane)
        return plane

    async def _close_device(self) -> None:
        if self._followers:
            asyncio.get_running_loop().remove_reader(self._rights.fileno())
        for follower in self._followers:
            follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await follower

    def _on_change(self, change: aio.Change) -> None:
        if isinstance(change, OpenUrl):
            super()._on_change(change)
            return
        # A server may change its mind faster than a machine follows: the last word counts.
        if self._news and isinstance(change, Reconfigured) and isinstance(self._news[-1], Reconfigured):
            self._news.pop()
        self._add(change)

    def _add(self, change: aio.Change | None) -> None:
        self._news.append(change)
        self._has_news.set()

    async def _watch(self) -> None:
        """The way to the server is another one when the machine has another router."""
        async for _ in watch.network_changes():
            if None not in self._news:
                self._add(None)

    async def _follow(self) -> None:
        """Sets the machine up as each change wants it, and tells of the change when that is done."""
        while True:
            await self._has_news.wait()
            change = self._news.popleft()
            if not self._news:
                self._has_news.clear()
            match change:
                case aio.Rose():
                    # Which may be a proxy's relay, or where a server with several addresses has answered from.
                    self._outside.follow(change.path[1])
                    self._tun_mtu = self._config.for_remote(change.remote).tun_mtu
                    self._push = change.established.push
                case Reconfigured(push):
                    self._push = push
                case PeerFloat(path=path):
                    self._outside.follow(path[1])
            try:
                # After a loss, too: the way to the server may be another one by now.
                await self._set_up()
            except DeviceError as error:
                self._fail(error)
                return
            if change is not None:
                super()._on_change(change)

    async def _set_up(self) -> None:
        """Has the machine follow what was pushed, and where the servers are."""
        if self._push is None:
            return
        wanted = self._wanted(self._push)
        self._outside.is_changed = True
        self._outside.inside = {str(own.ip) for own in (wanted.address, wanted.address6) if own is not None}
        if self._config.route_noexec:
            wanted = without_routes(wanted)
        if self._config.ifconfig_noexec:
            wanted = without_addresses(wanted)
        self._tell(await asyncio.to_thread(self._rights.configure, wanted))

    def _wanted(self, push: PushReply) -> Settings:
        wanted = settings(push, self._config.local, self._outside.servers)
        return wanted if wanted.mtu is not None else replace(wanted, mtu=self._tun_mtu)

    def _configure(self, push: PushReply) -> None:
        """Nothing: the machine is set up by then."""

    def _helper_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._rights.fileno())
        self._fail(RefusedError(errno.EIO, ENDED))
