"""A server's way out through the kernel: forwarding, and a table of nftables that hides clients behind this machine.

What clients may reach is what they may in user space (`ginnel.gateways.access`): public addresses, and networks that
are allowed by name; neither private ranges nor this machine itself.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal

from ginnel.errors import DeviceError
from ginnel.gateways.access import CLOSED, COMPATIBLE, NAT64
from ginnel.network.journal import Entry
from ginnel.network.kill_switch import load
from ginnel.network.plan import IpNetwork


@dataclass(frozen=True, slots=True)
class Forward:
    """A TCP port of this machine that leads to a client's."""

    port: int
    address: IPv4Address | IPv6Address
    target: int


@dataclass(frozen=True, slots=True)
class Gate:
    """``inside``: the networks of the clients; ``allow``: what is open beside public addresses; ``relaying``: clients
    reach each other; ``forwards``: what is published of clients that are there; ``listening``: the ports of this
    machine at which the server awaits clients."""

    inside: tuple[IpNetwork, ...]
    allow: tuple[IpNetwork, ...] = ()
    relaying: bool = False
    forwards: tuple[Forward, ...] = ()
    listening: tuple[int, ...] = ()

    def emit(self) -> dict[str, Any]:
        return {
            "inside": [str(network) for network in self.inside],
            "allow": [str(network) for network in self.allow],
            "relaying": self.relaying,
            "forwards": [[each.port, str(each.address), each.target] for each in self.forwards],
            "listening": list(self.listening),
        }

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Gate:
        """The reverse. Raises ValueError, TypeError or KeyError."""
        inside, allow = (tuple(map(ipaddress.ip_network, fields[name])) for name in ("inside", "allow"))
        forwards = tuple(_forward(*each) for each in fields["forwards"])
        listening = tuple(map(int, fields["listening"]))
        if len(inside) + len(allow) + len(forwards) + len(listening) > MAX_NETWORKS:
            raise ValueError("too many networks")
        return cls(inside, allow, bool(fields["relaying"]), forwards, listening)


def table(device: str) -> str:
    """The name of a device's table."""
    return f"ginnel_serve_{re.sub(r'[^A-Za-z0-9]', '_', device)}"


def rules(device: str, gate: Gate, before: Sequence[Entry] = ()) -> str:
    """The table, as nft(8) reads it; it replaces an earlier one in one transaction. ``before`` is what `begin` found: a
    machine that forwarded nothing forwards nothing but what comes from its servers' devices, or goes there."""
    name = table(device)
    others = _others(before)
    translated = [NAT64, COMPATIBLE, TUNNELLED]
    allowed = [f"{_matches('daddr', [network])} accept" for network in gate.allow]
    closed = [f"{_matches('daddr', [network])} goto refuse" for network in (*CLOSED, *translated)]
    own = [f"{_matches('daddr', [network])} meta l4proto {{ icmp, ipv6-icmp }} accept" for network in gate.inside]
    # Never the client's own source port: a flow of its with that of a listener would take what is sent to that from
    # there (port shadow).
    first, last = free_ports(gate.listening)
    ported = f"meta l4proto {{ tcp, udp }} masquerade to :{first}-{last} fully-random"
    leaving = [f'{_matches("saddr", [network])} oifname != "{device}"' for network in gate.inside]
    hidden = [f"{each} {action}" for each in leaving for action in (ported, "masquerade")]
    led = [_lead(each) for each in gate.forwards]
    # Of what other tables lead to a client nothing is let in here.
    let_in = [f'oifname "{device}" {_target(each, "d")} ct status dnat accept' for each in gate.forwards]
    let_out = [f"{_target(each, 's')} ct direction reply ct status dnat accept" for each in gate.forwards]
    # As one of the server's own: the client may know no way to who asks.
    seen = [f'oifname "{device}" {_target(each, "d")} ct status dnat masquerade' for each in gate.forwards]
    among = "accept" if gate.relaying else "goto refuse"
    return f"""table inet {name}
delete table inet {name}
table inet {name} {{
    chain forward {{
        type filter hook forward priority filter; policy accept;
        {_lines(others)}
        iifname "{device}" jump out
        oifname "{device}" ct state established,related accept
        {_lines(let_in)}
        oifname "{device}" iifname != "{device}" goto refuse
    }}
    chain refuse {{
        # At once, however often: the kernel sends few of the other kind a second.
        meta l4proto tcp reject with tcp reset
        reject with icmpx admin-prohibited
    }}
    chain out {{
        {_lines(let_out)}
        oifname "{device}" {among}
        {_lines(allowed)}
        {_lines(closed)}
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname != "{device}" return
        ct state established,related accept
        {_lines(own)}
        {_lines(allowed)}
        goto refuse
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname "{device}" return
        {_lines(led)}
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        oifname "lo" ip daddr 127.0.0.0/8 return
        oifname "lo" ip6 daddr ::1 return
        {_lines(led)}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        {_lines(seen)}
        {_lines(hidden)}
    }}
}}
"""


def free_ports(taken: Sequence[int]) -> tuple[int, int]:
    """The longest run of `PORTS` without any of these, from its first to its last."""
    edges = [PORTS.start - 1, *sorted({port for port in taken if port in PORTS}), PORTS.stop]
    before, after = max(itertools.pairwise(edges), key=lambda run: run[1] - run[0])
    return before + 1, after - 1


def begin(device: str, gate: Gate) -> list[Entry]:
    """What `undo` needs to know, in the order in which it is to be made. Nothing is changed yet."""
    entries = [entry for network in gate.inside for entry in _forwarding(network.version)]
    return [*{entry["path"]: entry for entry in entries}.values(), {"undo": "masquerade", "table": table(device)}]


def make(entries: Sequence[Entry]) -> None:
    """Lets this machine forward. Raises DeviceError."""
    for entry in entries:
        if entry["undo"] == "sysctl" and entry["ours"] is not None:
            try:
                (SYSCTL / entry["path"]).write_text(entry["ours"])
            except OSError as error:
                what = entry["path"].replace("/", ".")
                raise DeviceError(error.errno or errno.EIO, f"cannot set {what} = {entry['ours']}") from None


def put_up(device: str, gate: Gate, before: Sequence[Entry]) -> None:
    """The table, or another in its place without a gap. Raises DeviceError."""
    load(rules(device, gate, before), "the way out")


def undo(entry: Entry) -> None:
    """Takes one back; what somebody else has set since is left as it is. Raises DeviceError."""
    if entry["undo"] == "masquerade":
        name = re.sub(r"[^A-Za-z0-9_]", "_", entry["table"])
        load(f"table inet {name}\ndelete table inet {name}\n", "the end of the way out")
        return
    path = SYSCTL / entry["path"]
    if path.exists() and entry["ours"] in (None, path.read_text().strip()):
        path.write_text(entry["before"])


def _forward(port: int, address: str, target: int) -> Forward:
    if not (0 < int(port) < 65536 and 0 < int(target) < 65536):
        raise ValueError("no port")
    return Forward(int(port), ipaddress.ip_address(address), int(target))


def _forwarding(version: int) -> Iterator[Entry]:
    """Forwarding is off until somebody needs it. For IPv6 it makes a host a router, which takes no more addresses and
    routes from others: unless it is told to (accept_ra 2)."""
    family = f"ipv{version}"
    switch = Path("net", family, "ip_forward" if version == 4 else "conf/all/forwarding")
    if _value(switch) != "0":
        return
    for interface in sorted((SYSCTL / "net" / family / "conf").iterdir()):
        each = Path("net", family, "conf", interface.name)
        if interface.name in ("all", "default"):
            continue
        if _value(each / "forwarding") == "1":
            # The switch below sets all of them, on and off.
            yield {"undo": "sysctl", "path": str(each / "forwarding"), "before": "1", "ours": None}
        if version == 6 and _value(each / "accept_ra") == "1":
            yield {"undo": "sysctl", "path": str(each / "accept_ra"), "before": "1", "ours": "2"}
    yield {"undo": "sysctl", "path": str(switch), "before": "0", "ours": "1"}


def _others(before: Sequence[Entry]) -> list[str]:
    """What drops the flows of others, of each family whose switch was off. Links of IPv4's may have had it on, each for
    what comes in there; IPv6's count nothing without the switch."""
    paths = [Path(entry["path"]).parts for entry in before if entry["undo"] == "sysctl"]
    lines = []
    for family, switch in (("ipv4", ("ip_forward",)), ("ipv6", ("conf", "all", "forwarding"))):
        if ("net", family, *switch) in paths:
            were_on = [path[3] for path in paths if path[:3] == ("net", "ipv4", "conf")] if family == "ipv4" else []
            links = "".join(f' iifname != "{link}"' for link in were_on)
            lines.append(f"meta nfproto {family} iifgroup != {GROUP} oifgroup != {GROUP}{links} drop")
    return lines


def _value(path: Path) -> str:
    try:
        return (SYSCTL / path).read_text().strip()
    except OSError:
        return ""


def _matches(field: str, networks: Sequence[IpNetwork]) -> str:
    family = "ip6" if networks[0].version == 6 else "ip"
    return f"{family} {field} {{ {', '.join(map(str, networks))} }}"


def _target(forward: Forward, end: Literal["s", "d"]) -> str:
    family = "ip" if forward.address.version == 4 else "ip6"
    return f"{family} {end}addr {forward.address} tcp {end}port {forward.target}"


def _lead(forward: Forward) -> str:
    if forward.address.version == 4:
        family, to = "ipv4", f"ip to {forward.address}:{forward.target}"
    else:
        family, to = "ipv6", f"ip6 to [{forward.address}]:{forward.target}"
    return f"meta nfproto {family} fib daddr type local tcp dport {forward.port} dnat {to}"


def _lines(lines: Sequence[str]) -> str:
    return "\n        ".join(lines)


SYSCTL = Path("/proc/sys")
# Those that Linux gives to who asks for none (net.ipv4.ip_local_port_range): no service has a fixed one there.
PORTS = range(32768, 61000)
MAX_NETWORKS = 1024
# Of links: the devices of this machine's servers, so that none of them is among another's others.
GROUP = 0x67696E6E
# 6to4 (RFC 3056): whoever routes it leads to the IPv4 address within.
TUNNELLED = ipaddress.IPv6Network("2002::/16")
