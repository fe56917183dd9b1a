"""The machine's name servers: systemd-resolved, resolvconf, or /etc/resolv.conf, whichever is in charge.

`begin` gives the journal's entry for the change before it is made, `make` makes it, `undo` takes it back.
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
from pathlib import Path

from ginnel.errors import DeviceError
from ginnel.network.journal import Entry
from ginnel.network.plan import IpAddress


def begin(device: str, servers: Sequence[IpAddress], domains: Sequence[str]) -> Entry:
    """What `undo` needs to know. Nothing is changed yet."""
    if shutil.which("resolvectl") and RESOLVED.is_dir():
        return {"undo": "resolvectl", "device": device}
    program = shutil.which("resolvconf")
    if program is not None:
        return {"undo": "resolvconf", "device": device}
    before = RESOLV_CONF.read_bytes() if RESOLV_CONF.exists() else None
    return {
        "undo": "resolv.conf",
        "before": None if before is None else base64.b64encode(before).decode(),
        "ours": hashlib.sha256(_text(servers, domains)).hexdigest(),
    }


def make(entry: Entry, device: str, servers: Sequence[IpAddress], domains: Sequence[str]) -> None:
    """Raises DeviceError."""
    match entry["undo"]:
        case "resolvectl":
            _run(["resolvectl", "dns", device, *map(str, servers)])
            # "~." draws every name to this link; without it names would be asked for on both.
            _run(["resolvectl", "domain", device, "~.", *domains])
        case "resolvconf":
            # -x: these alone count. The older resolvconf, which knows no -x, asks who is called tun.… first.
            _run(["resolvconf", "-a", f"tun.{device}", "-m", "0", "-x"], _text(servers, domains))
        case _:
            try:
                _replace(RESOLV_CONF, _text(servers, domains))
            except OSError as error:
                raise DeviceError(error.errno or errno.EIO, f"{RESOLV_CONF} cannot be written") from None


def undo(entry: Entry) -> None:
    """Takes the change back. What somebody else has written since is left as it is."""
    with contextlib.suppress(DeviceError):
        if entry["undo"] == "resolvectl":
            _run(["resolvectl", "revert", entry["device"]])
        elif entry["undo"] == "resolvconf":
            _run(["resolvconf", "-d", f"tun.{entry['device']}"])
    if entry["undo"] == "resolv.conf":
        with contextlib.suppress(OSError):
            if hashlib.sha256(RESOLV_CONF.read_bytes()).hexdigest() != entry["ours"]:
                return
            if entry["before"] is None:
                RESOLV_CONF.unlink()
            else:
                _replace(RESOLV_CONF, base64.b64decode(entry["before"]))


def name_servers() -> list[str]:
    """Whom this machine asks now, tunnels' servers among them; at most `MAX_SERVERS`."""
    file = RESOLVED / "resolv.conf" if shutil.which("resolvectl") and RESOLVED.is_dir() else RESOLV_CONF
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    return [line[1] for line in words if line[:1] == ["nameserver"] and len(line) > 1][:MAX_SERVERS]


def _text(servers: Sequence[IpAddress], domains: Sequence[str]) -> bytes:
    lines = [
        "# Written by ginnel; what was here comes back when the tunnel ends.",
        *(f"nameserver {s}" for s in servers),
    ]
    if domains:
        lines.append(f"search {' '.join(domains)}")
    return ("\n".join(lines) + "\n").encode()


def _replace(path: Path, content: bytes) -> None:
    """Atomically, behind symbolic links, with the mode and owner there were."""
    target = path.resolve()
    status = target.stat() if target.exists() else None
    fresh = target.with_name(f".{target.name}.ginnel")
    fresh.unlink(missing_ok=True)
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
PATIENCE = 5.0
MAX_SERVERS = 8
