"""Makes the changes of a plan, each in the journal before it is made, and takes them back."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_interface, ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ginnel.device.kernel import MAIN_TABLE
from ginnel.errors import DeviceError
from ginnel.network import dns, kill_switch, masquerade
from ginnel.network.journal import Entry, Journal, recover
from ginnel.network.plan import AddressChange, Change, RouteChange, Settings, plan


class Applied:
    """What was changed for one device, and the journal of it."""

    def __init__(self, journal: Journal) -> None:
        self.device = ""
        self._journal = journal
        self._changes: list[Change] = []
        self._names: Entry | None = None
        self._named: object = None
        self._guarded = False
        self._way_out: list[Entry] = []

    @property
    def guarded(self) -> bool:
        """Whether a kill switch is up."""
        return self._guarded

    def recover(self, *, keep_guard: bool) -> int:
        """Undoes what dead processes left, and returns how many there were. With ``keep_guard`` a kill switch of
        theirs stays up, and is this one's from then on. Raises DeviceError."""

        def take_back(entry: Entry) -> None:
            if keep_guard and entry.get("undo") == "kill_switch":
                self._guarded = True
                self._journal.write(self._entries(self._changes))
            else:
                undo(entry)

        return recover(take_back)

    def guard(self, servers: list[kill_switch.Server]) -> None:
        """Puts the kill switch up. Raises DeviceError, EBUSY where one of another process is."""
        if any(entry.get("undo") == "kill_switch" for entry in self._journal.of_others()):
            raise DeviceError(errno.EBUSY, "another ginnel has a kill switch up; end that one first")
        self._guarded = True
        self._journal.write(self._entries(self._changes))
        kill_switch.close(self.device, servers)

    def configure(self, wanted: Settings) -> None:
        """Makes it so: what was wanted before and is no longer goes, what is new comes. Raises DeviceError."""
        with IPRoute() as ip:
            if wanted.mtu is not None:
                _ask(lambda: ip.link("set", index=socket.if_nametoindex(self.device), mtu=wanted.mtu))
            _ask(lambda: ip.link("set", index=socket.if_nametoindex(self.device), state="up"))
            ours = {change for change in self._changes if isinstance(change, RouteChange)}
            present = [route for route in present_routes(ip) if route not in ours]
            theirs = {(route.destination, route.metric) for route in present}
            changes = [
                change
                for change in plan(wanted, self.device, present)
                if isinstance(change, AddressChange) or (change.destination, change.metric) not in theirs
            ]
            self._journal.write(self._entries([*self._changes, *changes]))
            for change in [change for change in reversed(self._changes) if change not in changes]:
                _take_back(ip, change)
                self._changes.remove(change)
            for change in changes:
                # The kernel may have dropped one with an address or a link; one that others made stays theirs.
                if _make(ip, change) and change not in self._changes:
                    self._changes.append(change)
        self._name(wanted)
        self._journal.write(self._entries(self._changes))

    def open_way_out(self, gate: masquerade.Gate) -> None:
        """Forwards what comes from the device, and hides who sends it; the next gate takes the place of this one.
        Raises DeviceError."""
        if not self._way_out:
            self._way_out = masquerade.begin(self.device, gate)
            self._journal.write(self._entries(self._changes))
            masquerade.make(self._way_out)
        masquerade.put_up(self.device, gate)

    def release(self, *, keep_guard: bool) -> None:
        """Takes everything back, latest first; with ``keep_guard`` all but the kill switch."""
        entries = self._entries(self._changes)
        kept = [entry for entry in entries if keep_guard and entry["undo"] == "kill_switch"]
        for entry in reversed(entries):
            if entry not in kept:
                # What can't be taken back keeps nothing else from it.
                with contextlib.suppress(OSError):
                    undo(entry)
        self._changes, self._names, self._named, self._way_out = [], None, None, []
        if kept:
            self._journal.write(kept)
        self._journal.close(keep=bool(kept))

    def _name(self, wanted: Settings) -> None:
        named = (wanted.dns, wanted.domains)
        if named == self._named:
            return
        if self._names is not None:
            dns.undo(self._names)
            self._names = None
        if wanted.dns:
            entry = dns.begin(self.device, wanted.dns, wanted.domains)
            self._names = entry
            self._journal.write(self._entries(self._changes))
            dns.make(entry, self.device, wanted.dns, wanted.domains)
        self._named = named

    def _entries(self, changes: list[Change]) -> list[Entry]:
        entries: list[Entry] = [{"undo": "kill_switch"}] if self._guarded else []
        entries += [*self._way_out, *(_entry(change) for change in dict.fromkeys(changes))]
        return [*entries, self._names] if self._names is not None else entries


def undo(entry: Entry) -> None:
    """Takes one entry of a journal back. What is gone already is no error.

    Raises ValueError, TypeError or KeyError for what is no entry.
    """
    match entry.get("undo"):
        case "kill_switch":
            with contextlib.suppress(DeviceError):
                kill_switch.open_again()
        case "route" | "address":
            with IPRoute() as ip:
                _take_back(ip, _change(entry))
        case "resolvectl" | "resolvconf" | "resolv.conf":
            dns.undo(entry)
        case "sysctl" | "masquerade":
            with contextlib.suppress(DeviceError, OSError):
                masquerade.undo(entry)
        case other:
            raise ValueError(f"nothing is known of {other!r}")


def present_routes(ip: IPRoute) -> list[RouteChange]:
    """The routes of the main table."""
    return list(_read_routes(ip))


def _read_routes(ip: IPRoute) -> Iterator[RouteChange]:
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}
    for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        for message in ip.get_routes(family=family, table=MAIN_TABLE):
            destination = ip_network(f"{message.get_attr('RTA_DST') or everywhere}/{message['dst_len']}")
            gateway = message.get_attr("RTA_GATEWAY")
            hops = message.get_attr("RTA_MULTIPATH") or []
            device = message.get_attr("RTA_OIF") or (hops[0]["oif"] if hops else None)
            if not gateway and hops:
                gateway = hops[0].get_attr("RTA_GATEWAY")
            yield RouteChange(
                destination,
                None if message["type"] in NOWHERE else names.get(device),
                ip_interface(gateway).ip if gateway else None,
                message.get_attr("RTA_PRIORITY") or 0,
            )


def _make(ip: IPRoute, change: Change) -> bool:
    """False when it is there already."""
    try:
        if isinstance(change, AddressChange):
            ip.addr("add", **_address_words(change))
        else:
            ip.route("add", **_route_words(change))
    except NetlinkError as error:
        if error.code == errno.EEXIST:
            return False
        what = change.interface if isinstance(change, AddressChange) else f"a route to {change.destination}"
        raise DeviceError(error.code, f"{change.device}: {what}") from None
    return True


def _take_back(ip: IPRoute, change: Change) -> None:
    with contextlib.suppress(NetlinkError, OSError):
        if isinstance(change, AddressChange):
            ip.addr("del", **_address_words(change))
        else:
            ip.route("del", **_route_words(change))


def _address_words(change: AddressChange) -> dict[str, Any]:
    own = change.interface
    words: dict[str, Any] = {"index": socket.if_nametoindex(change.device), "prefixlen": own.network.prefixlen}
    if change.peer is not None:
        return {**words, "local": str(own.ip), "address": str(change.peer)}
    # An address on a tunnel is nobody else's: there is no neighbour to detect it.
    return {**words, "address": str(own.ip), **({"flags": IFA_F_NODAD} if own.version == 6 else {})}


def _route_words(change: RouteChange) -> dict[str, Any]:
    words: dict[str, Any] = {"dst": str(change.destination), "table": MAIN_TABLE}
    words["family"] = socket.AF_INET6 if change.destination.version == 6 else socket.AF_INET
    if change.device is None:
        words["type"] = "unreachable"
    else:
        words["oif"] = socket.if_nametoindex(change.device)
    if change.gateway is not None:
        words["gateway"] = str(change.gateway)
    if change.metric:
        words["priority"] = change.metric
    return words


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


def _ask(call: Callable[[], object]) -> None:
    try:
        call()
    except NetlinkError as error:
        raise DeviceError(error.code, "the tunnel's device") from None
    except OSError as error:
        raise DeviceError(error.errno or errno.ENODEV, "the tunnel's device") from None


IFA_F_NODAD = 0x02
# RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT.
NOWHERE = (6, 7, 8)
