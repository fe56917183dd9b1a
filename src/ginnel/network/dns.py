"""The machine's name servers: systemd-resolved, resolvconf, or /etc/resolv.conf, whichever is in charge.

`choose` says which of the servers wanted can be asked at all, `begin` gives the journal's entry for the change before
it is made, `make` makes it, `undo` takes it back.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ginnel.errors import DeviceError
from ginnel.network.journal import Entry
from ginnel.network.plan import IpAddress
from ginnel.openvpn.push_values import PLAIN_DNS, PORTS, NameServers, left_out, why_left_out


@dataclass(frozen=True, slots=True)
class Names:
    """Whom this machine is to ask, and for what: ``routed`` are domains, the root for all names."""

    group: NameServers = field(default=NameServers(()))
    search: tuple[str, ...] = ()
    routed: tuple[str, ...] = (".",)

    @property
    def servers(self) -> tuple[tuple[IpAddress, int], ...]:
        """With the port of each."""
        return self.group.addresses


def choose(groups: Sequence[NameServers], search: Sequence[str]) -> tuple[Names, list[str]]:
    """Of the servers wanted those that whoever is in charge here can be told of, and sentences on the others.

    systemd-resolved has one set of servers for a device, which may be for some domains alone; a resolv.conf knows
    neither domains nor ports, and no other way to ask than plain DNS.
    """
    transports: tuple[str, ...] = ("plain",)
    who = "that takes systemd-resolved"
    if _is_resolved():
        transports, who = ("plain", "DoT"), "systemd-resolved does not"
    unable = list(left_out(groups, transports=transports, validates=_is_resolved()))
    told = [why_left_out(group, who=who) for group in unable]
    groups = [group for group in groups if group not in unable]
    if not groups:
        return Names(), told
    general = next((group for group in groups if not group.domains), None)
    chosen = general or groups[0]
    names = Names(replace(chosen, domains=()), tuple(search), (".",) if general else _domains(groups, chosen))
    others = [
        f"the name servers for {' '.join(group.domains)} are not asked: others are for all names"
        for group in groups
        if group.domains and replace(group, domains=()) != names.group
    ]
    if not _is_resolved():
        plain = tuple(server for server in names.servers if server[1] == PLAIN_DNS)
        names = replace(names, group=replace(names.group, addresses=plain))
        if general is None:
            names = Names()
            others = [f"the name servers for {' '.join(_domains(groups))} are not asked: that takes systemd-resolved"]
        elif len(names.servers) < len(chosen.addresses):
            others.append(f"name servers on other ports than {PLAIN_DNS} are not asked: that takes systemd-resolved")
    return names, told + others


def begin(device: str, names: Names, others: Sequence[Entry]) -> Entry:
    """What `undo` needs to know; ``others`` are entries of other tunnels. Nothing is changed yet."""
    if _is_resolved():
        return {"undo": "resolvectl", "device": device}
    if _is_resolvconf():
        return {"undo": "resolvconf", "device": device}
    content = RESOLV_CONF.read_bytes() if RESOLV_CONF.exists() else None
    before = None if content is None else base64.b64encode(content).decode()
    if (last := holder(others)) is not None:
        # What another tunnel has written never comes back: it may be gone by then.
        before = last["before"]
    return {
        "undo": "resolv.conf",
        "before": before,
        "ours": hashlib.sha256(_text(names)).hexdigest(),
    }


def make(entry: Entry, device: str, names: Names) -> None:
    """Raises DeviceError."""
    match entry["undo"]:
        case "resolvectl":
            # How they are asked comes before them: no name is asked for in the clear meanwhile.
            if names.group.transport == "DoT":
                _run(["resolvectl", "dnsovertls", device, "yes"])
            if names.group.validated:
                _run(["resolvectl", "dnssec", device, "yes"])
            _run(["resolvectl", "dns", device, *(_server(names.group, *server) for server in names.servers)])
            # "~." draws every name to this link; without it names would be asked for on both.
            _run(
                [
                    "resolvectl",
                    "domain",
                    device,
                    *(f"~{domain.lstrip('.') or '.'}" for domain in names.routed),
                    *names.search,
                ]
            )
        case "resolvconf":
            # -x: these alone count. The older resolvconf, which knows no -x, asks who is called tun.… first.
            _run(["resolvconf", "-a", f"tun.{device}", "-m", "0", "-x"], _text(names))
        case _:
            try:
                _replace(RESOLV_CONF, _text(names))
            except OSError as error:
                raise DeviceError(
                    error.errno or errno.EIO,
                    f"{RESOLV_CONF} cannot be written for the tunnel's name servers; "
                    'make it writable, or add: pull-filter ignore "dhcp-option DNS"',
                ) from None


def stands(entry: Entry) -> bool:
    """Whether the change is still there. A file may be written by whoever brings the machine into another network."""
    if entry["undo"] != "resolv.conf":
        return True
    try:
        return hashlib.sha256(RESOLV_CONF.read_bytes()).hexdigest() == str(entry["ours"])
    except OSError:
        return False


def holder(entries: Sequence[Entry]) -> Entry | None:
    """Of several tunnels' that which wrote /etc/resolv.conf last; None where somebody else has."""
    return next((entry for entry in entries if entry.get("undo") == "resolv.conf" and stands(entry)), None)


def undo(entry: Entry) -> None:
    """Takes the change back. What somebody else has written since is left as it is. Raises OSError."""
    with contextlib.suppress(DeviceError):
        if entry["undo"] == "resolvectl":
            _run(["resolvectl", "revert", entry["device"]])
        elif entry["undo"] == "resolvconf":
            _run(["resolvconf", "-d", f"tun.{entry['device']}"])
    if entry["undo"] == "resolv.conf":
        if not stands(entry):
            return
        if entry["before"] is None:
            RESOLV_CONF.unlink()
        else:
            _replace(RESOLV_CONF, base64.b64decode(entry["before"]))


def name_servers() -> list[str]:
    """Whom this machine asks now, tunnels' servers among them; at most `MAX_SERVERS`."""
    file = RESOLVED / "resolv.conf" if _is_resolved() else RESOLV_CONF
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    return [line[1] for line in words if line[:1] == ["nameserver"] and len(line) > 1][:MAX_SERVERS]


def _is_resolved() -> bool:
    """It may be there without being asked: programs ask whom /etc/resolv.conf names."""
    if not (shutil.which("resolvectl") and RESOLVED.is_dir()):
        return False
    if RESOLV_CONF.resolve().is_relative_to(RESOLVED):
        return True
    try:
        return any(line.split()[1:] == [STUB] for line in RESOLV_CONF.read_text(errors="replace").splitlines())
    except OSError:
        return False


def _is_resolvconf() -> bool:
    """systemd-resolved comes with one that is itself by another name, and of no use where nobody asks it."""
    program = shutil.which("resolvconf")
    return program is not None and Path(program).resolve().name != "resolvectl"


def _domains(groups: Sequence[NameServers], chosen: NameServers | None = None) -> tuple[str, ...]:
    """Of all groups, or of those with the same servers."""
    found = (group for group in groups if chosen is None or replace(group, domains=chosen.domains) == chosen)
    return tuple(dict.fromkeys(domain for group in found for domain in group.domains))


def _server(group: NameServers, address: IpAddress, port: int) -> str:
    """As resolvectl(1) takes it."""
    text = str(address)
    if port != PORTS[group.transport]:
        text = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    return f"{text}#{group.sni}" if group.sni is not None else text


def _text(names: Names) -> bytes:
    lines = [
        "# Written by ginnel; what was here comes back when the tunnel ends.",
        *(f"nameserver {address}" for address, _ in names.servers),
    ]
    if names.search:
        lines.append(f"search {' '.join(names.search)}")
    return ("\n".join(lines) + "\n").encode()


def _replace(path: Path, content: bytes) -> None:
    """Atomically, behind symbolic links, with the mode and owner there were."""
    target = path.resolve()
    status = target.stat() if target.exists() else None
    # Another ginnel may be at it, and one that was killed may have left its own.
    fresh = target.with_name(f".{target.name}.ginnel-{os.getpid()}")
    for left in target.parent.glob(f".{target.name}.ginnel-*"):
        if left == fresh or not Path("/proc", left.name.rpartition("-")[2]).exists():
            left.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with open(descriptor, "wb") as file:
            if status is not None:
                os.fchmod(descriptor, status.st_mode & 0o7777)
                os.fchown(descriptor, status.st_uid, status.st_gid)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(target)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        # A file that is mounted by itself, as containers have it, can only be written in place.
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        target.write_bytes(content)


def _run(command: list[str], text: bytes = b"") -> None:
    try:
        done = subprocess.run(command, input=text, capture_output=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        raise DeviceError(errno.EIO, f"{command[0]} did not answer") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[:1]
        raise DeviceError(errno.EIO, f"{' '.join(command[:2])}: {''.join(reason)}")


RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVED = Path("/run/systemd/resolve")
# Where systemd-resolved listens.
STUB = "127.0.0.53"
PATIENCE = 5.0
MAX_SERVERS = 8
