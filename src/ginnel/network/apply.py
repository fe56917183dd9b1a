"""Makes the changes of a plan, each in the journal before it is made, and takes them back."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ginnel.errors import DeviceError
from ginnel.network import dns, kill_switch, masquerade
from ginnel.network.journal import Entry, Journal, recover
from ginnel.network.leaks import leaks, unmade
from ginnel.network.plan import AddressChange, Change, IpAddress, RouteChange, Settings, plan, way_to, without_ipv6
from ginnel.network.routes import Table


class Applied:
    """What was changed for one device, and the journal of it."""

    def __init__(self, journal: Journal) -> None:
        self.device = ""
        self._journal = journal
        self._changes: dict[Change, None] = {}
        self._names: Entry | None = None
        self._named = dns.Names()
        # Whom the machine asked before there were servers of the tunnel.
        self._asked_before: list[str] = []
        self._written: list[Entry] = []
        self._guarded = False
        self._way_out: list[Entry] = []

    @property
    def guarded(self) -> bool:
        """Whether a kill switch is up."""
        return self._guarded

    def recover(self, *, keep_guard: bool) -> int:
        """Undoes what dead processes left, and returns how many there were. With ``keep_guard`` a kill switch of
        theirs stays up, and is this one's from then on. Raises DeviceError."""

        def take_back(entries: list[Entry]) -> list[Entry]:
            kept = [entry for entry in entries if keep_guard and entry.get("undo") == "kill_switch"]
            if kept:
                self._guarded = True
                self._write(self._entries(self._changes))
            return undo(entry for entry in entries if entry not in kept)

        return recover(take_back)

    def guard(self, servers: list[kill_switch.Server]) -> None:
        """Puts the kill switch up. Raises DeviceError, EBUSY where one of another process is."""
        if any(entry.get("undo") == "kill_switch" for entry in self._journal.of_others()):
            raise DeviceError(errno.EBUSY, "another ginnel has a kill switch up; end that one first")
        self._guarded = True
        self._write(self._entries(self._changes))
        kill_switch.close(self.device, servers)

    def name_servers(self) -> list[tuple[str, str]]:
        """The machine's own name servers beside the tunnel's, each with the device that leads there past the tunnel."""
        ours = {address for address, _ in self._named.servers}
        now = [text for text in dns.name_servers() if _host(text) not in ours]
        with Table() as table:
            outside = [route for route in table.read() if route.device not in (self.device, None)]
        found = []
        for text in now or self._asked_before:
            address = _host(text)
            if address is None:
                continue
            way = way_to(address, outside)
            scope = "lo" if address.is_loopback else getattr(address, "scope_id", None)
            if device := scope or (way and way.device):
                found.append((text, device))
        return found

    def configure(self, wanted: Settings) -> list[str]:
        """Makes it so: what was wanted before and is no longer goes, what is new comes. Returns sentences on what
        goes past the tunnel all the same. Raises DeviceError."""
        with IPRoute() as ip, Table() as table:
            if wanted.mtu is not None:
                _ask(lambda: ip.link("set", index=socket.if_nametoindex(self.device), mtu=wanted.mtu))
            _ask(lambda: ip.link("set", index=socket.if_nametoindex(self.device), state="up"))
            told = []
            if not IPV6.is_dir():
                # The kernel has none that would have to be blocked.
                wanted = replace(wanted, block_ipv6=False)
            if wanted.address6 is not None and not _has_ipv6(self.device):
                wanted = without_ipv6(wanted)
                told.append(f"{self.device} carries IPv4 alone: IPv6 is switched off here, or its MTU is below 1280")
            present = [route for route in table.read() if route not in self._changes]
            planned = plan(wanted, self.device, present)
            told += unmade(planned, present)
            if not self._guarded:
                told += leaks(wanted, self.device, planned, present)
            theirs = {(route.destination, route.metric) for route in present}
            changes = dict.fromkeys(
                change
                for change in planned
                if isinstance(change, AddressChange) or (change.destination, change.metric) not in theirs
            )
            self._write(self._entries([*self._changes, *changes]))
            gone = [change for change in reversed(self._changes) if change not in changes]
            _take_back(ip, table, gone)
            for change in gone:
                del self._changes[change]
            told += self._make(ip, table, [*changes], wanted)
        told += self._name(wanted)
        self._write(self._entries(self._changes))
        return told

    def _make(self, ip: IPRoute, table: Table, changes: list[Change], wanted: Settings) -> list[str]:
        """The kernel may have dropped what was made before with an address or a link, so all is made again; what
        others have made stays theirs. What the tunnel needs must be, a single network may fail."""
        for change in changes:
            if isinstance(change, AddressChange) and _add_address(ip, change):
                self._changes[change] = None
        routes = [change for change in changes if isinstance(change, RouteChange)]
        failed = []
        for route, code in zip(routes, table.add(routes), strict=True):
            if not code:
                self._changes[route] = None
            elif code != errno.EEXIST:
                failed.append((route, code))
        single = {wish.network for wish in wanted.routes}
        for route, code in failed:
            if route.destination not in single:
                raise DeviceError(code, f"{self.device}: a route to {route.destination}")
        if not failed:
            return []
        route, code = failed[0]
        others = f" and {len(failed) - 1} more" if failed[1:] else ""
        return [f"the system refuses a route to {route.destination} ({os.strerror(code)}){others}"]

    def open_way_out(self, gate: masquerade.Gate) -> None:
        """Forwards what comes from the device, and hides who sends it; the next gate takes the place of this one.
        Raises DeviceError."""
        if not self._way_out:
            self._way_out = masquerade.begin(self.device, gate)
            self._write(self._entries(self._changes))
            with IPRoute() as ip:
                index = socket.if_nametoindex(self.device)
                _ask(lambda: ip.link("set", index=index, group=masquerade.GROUP))
            # Before anything is forwarded.
            masquerade.put_up(self.device, gate, self._way_out)
            masquerade.make(self._way_out)
        else:
            masquerade.put_up(self.device, gate, self._way_out)

    def release(self, *, keep_guard: bool) -> bool:
        """Takes everything back, latest first; with ``keep_guard`` all but the kill switch. False where something could
        not be taken back, and is left to the next one who looks."""
        entries = self._entries(self._changes)
        kept = [entry for entry in entries if keep_guard and entry["undo"] == "kill_switch"]
        failed = undo(entry for entry in reversed(entries) if entry not in kept)
        self._changes, self._names, self._named, self._way_out = {}, None, dns.Names(), []
        left = [*kept, *reversed(failed)]
        if left:
            self._write(left)
        self._journal.close(keep=bool(left))
        return not failed

    def _name(self, wanted: Settings) -> list[str]:
        """Has the tunnel's name servers asked. Returns sentences on those that are not."""
        named, told = dns.choose(wanted.names, wanted.domains)
        others = self._journal.of_others()
        # Of several tunnels the last is asked; who was there before follows when it has gone.
        if named == self._named and (self._names is None or dns.stands(self._names) or dns.holder(others)):
            return told
        if self._names is not None:
            with contextlib.suppress(OSError):
                dns.undo(self._names)
            self._names = None
        self._named = dns.Names()
        if named.servers:
            self._asked_before = dns.name_servers()
            self._names = entry = dns.begin(self.device, named, others)
            self._write(self._entries(self._changes))
            dns.make(entry, self.device, named)
            self._named = named
        return told

    def _write(self, entries: list[Entry]) -> None:
        """To the journal, where it says something else."""
        if entries != self._written:
            self._journal.write(entries)
            self._written = entries

    def _entries(self, changes: Iterable[Change]) -> list[Entry]:
        entries: list[Entry] = [{"undo": "kill_switch"}] if self._guarded else []
        entries += [*self._way_out, *(_entry(change) for change in dict.fromkeys(changes))]
        return [*entries, self._names] if self._names is not None else entries


def undo(entries: Iterable[Entry]) -> list[Entry]:
    """Takes entries of a journal back, in their order. What is gone already is no error, and what can't be taken
    back keeps nothing else from it, and is returned.

    Raises ValueError, TypeError or KeyError for what is no entry.
    """
    failed = []
    with IPRoute() as ip, Table() as table:
        for kind, same in itertools.groupby(entries, lambda entry: entry.get("undo")):
            if kind in ("route", "address"):
                _take_back(ip, table, [_change(entry) for entry in same])
                continue
            for entry in same:
                try:
                    _undo(entry)
                except OSError:
                    failed.append(entry)
    return failed


def _undo(entry: Entry) -> None:
    match entry.get("undo"):
        case "kill_switch":
            kill_switch.open_again()
        case "resolvectl" | "resolvconf" | "resolv.conf":
            dns.undo(entry)
        case "sysctl" | "masquerade":
            masquerade.undo(entry)
        case other:
            raise ValueError(f"nothing is known of {other!r}")


def _add_address(ip: IPRoute, change: AddressChange) -> bool:
    """False when it is there already."""
    try:
        ip.addr("add", **_address_words(change))
    except NetlinkError as error:
        if error.code == errno.EEXIST:
            return False
        raise DeviceError(error.code, f"{change.device}: {change.interface}") from None
    return True


def _take_back(ip: IPRoute, table: Table, changes: Iterable[Change]) -> None:
    for kind, same in itertools.groupby(changes, type):
        if kind is RouteChange:
            with contextlib.suppress(OSError):
                table.delete([change for change in same if isinstance(change, RouteChange)])
            continue
        for change in same:
            if isinstance(change, AddressChange):
                with contextlib.suppress(NetlinkError, OSError):
                    ip.addr("del", **_address_words(change))


def _address_words(change: AddressChange) -> dict[str, Any]:
    own = change.interface
    words: dict[str, Any] = {"index": socket.if_nametoindex(change.device), "prefixlen": own.network.prefixlen}
    if change.peer is not None:
        return {**words, "local": str(own.ip), "address": str(change.peer)}
    # An address on a tunnel is nobody else's: there is no neighbour to detect it.
    return {**words, "address": str(own.ip), **({"flags": IFA_F_NODAD} if own.version == 6 else {})}


def _entry(change: Change) -> Entry:
    if isinstance(change, AddressChange):
        peer = None if change.peer is None else str(change.peer)
        return {"undo": "address", "device": change.device, "address": str(change.interface), "peer": peer}
    return {
        "undo": "route",
        "destination": str(change.destination),
        "device": change.device,
        "gateway": None if change.gateway is None else str(change.gateway),
        "metric": change.metric,
    }


def _change(entry: Entry) -> Change:
    if entry["undo"] == "address":
        peer = entry["peer"]
        return AddressChange(
            entry["device"], ip_interface(entry["address"]), None if peer is None else ip_interface(peer).ip
        )
    gateway = entry["gateway"]
    return RouteChange(
        ip_network(entry["destination"]),
        entry["device"],
        None if gateway is None else ip_interface(gateway).ip,
        entry["metric"],
    )


def _has_ipv6(device: str) -> bool:
    try:
        return (IPV6 / device / "disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False


def _host(text: str) -> IpAddress | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _ask(call: Callable[[], object]) -> None:
    try:
        call()
    except NetlinkError as error:
        raise DeviceError(error.code, "the tunnel's device") from None
    except OSError as error:
        raise DeviceError(error.errno or errno.ENODEV, "the tunnel's device") from None


IPV6 = Path("/proc/sys/net/ipv6/conf")
IFA_F_NODAD = 0x02
