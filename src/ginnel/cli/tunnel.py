"""``ginnel connect --tun``: rights, device and kill switch around a connection on the kernel's device."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ginnel.cli import endings
from ginnel.cli.values import check_device
from ginnel.errors import ConfigError
from ginnel.network import rights
from ginnel.network.outside import goes_elsewhere, has_names, ports
from ginnel.network.session import KernelVpn
from ginnel.openvpn.config import ClientConfig

log = logging.getLogger("ginnel")


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What the options ask for; ``name`` None for the file's, or the next free one."""

    name: str | None
    kill_switch: bool

    @classmethod
    def parse(cls, tun: bool, name: str | None, kill_switch: bool, gateways: bool) -> Tunnel | None:
        """Raises ConfigError for options that don't go together."""
        for option, given in (("--dev", name is not None), ("--kill-switch", kill_switch)):
            if given and not tun:
                raise ConfigError(f"{option} is for a kernel's device", instead="add --tun, or leave it out")
        if name is not None:
            check_device(name)
        if tun and gateways:
            raise ConfigError(
                "--socks, --http and -L lead into a tunnel in user space; with --tun every program is in it already",
                instead="leave them out, or --tun",
            )
        return cls(name, kill_switch) if tun else None


class Machine:
    """What of this machine is changed, while the block of `held` runs."""

    def __init__(
        self, config: ClientConfig, held: rights.Rights, device: tuple[list[int], str, bool], **options: bool
    ) -> None:
        self._config = config
        self._rights = held
        self._device = device
        self._options = options
        self._vpn: KernelVpn | None = None
        self._ended_as_asked = False

    @property
    def device(self) -> str:
        return self._device[1]

    def vpn(self, **options: Any) -> KernelVpn:
        self._vpn = KernelVpn(self._config, self._rights, self._device, **self._options, **options)
        return self._vpn

    def end_as_asked(self) -> None:
        """The user wants the end: the kill switch goes, too."""
        self._ended_as_asked = True

    def close(self, *, kill_switch: bool) -> None:
        # Who can't wait for the helper need not: it goes on by itself.
        for number in endings():
            signal.signal(number, _leave)
        if not self._rights.close(orderly=self._ended_as_asked):
            log.warning(
                "not all that was changed of this machine's network is put back; the next run with --tun does it"
            )
        if kill_switch and not self._ended_as_asked and self._vpn is not None and self._vpn.was_up:
            log.warning("the kill switch stays up; connect again, or open it with: nft delete table inet ginnel")


@contextlib.contextmanager
def held(tunnel: Tunnel, config: ClientConfig) -> Iterator[Machine]:
    """Makes the device, and gives up every right of this process; takes everything back after the block.

    Raises DeviceError where the system refuses, ConfigError for routes that it was told to set elsewhere.
    """
    if config.route_table is not None and not config.route_noexec:
        raise ConfigError(
            "route-table: with --tun routes are set in the main table alone",
            option="route-table",
            instead="add route-noexec and set them yourself, or leave route-table out",
        )
    rights.check()
    helper = rights.Rights()
    machine = None
    try:
        found, is_guarded = helper.recover(keep_guard=tunnel.kill_switch)
        if found:
            log.warning("an earlier run was killed: what it had changed of this machine's network is put back")
        helper.tell_ports(ports(config.remotes), sockets=goes_elsewhere(config))
        device = helper.device(tunnel.name or config.dev, config.dev_type)
        _import_all(config)
        rights.drop(low_ports=any(0 < remote.local_port < FREE_PORTS for remote in config.remotes))
        machine = Machine(config, helper, device, kill_switch=tunnel.kill_switch, guarded=is_guarded)
        with rights.unreadable():
            yield machine
    finally:
        if machine is not None:
            machine.close(kill_switch=tunnel.kill_switch)
        else:
            helper.close(orderly=False)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _import_all(config: ClientConfig) -> None:
    names = ["encodings.idna", "email.parser", "concurrent.futures.thread", "getpass"]
    # These take long, or much memory, and are not always used.
    if has_names(config):
        names.append("ginnel.network.names")
    if sys.stderr.isatty():
        names.append("ginnel.cli.live")
    rights.load(("ginnel.openvpn", "ginnel.transports"), names)


# From here on everybody may use them.
FREE_PORTS = 1024
