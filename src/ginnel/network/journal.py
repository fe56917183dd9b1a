"""What has to be put back, on disk before it is changed: so that it is put back after any end.

A journal is one file of JSON, replaced as a whole. Beside it lies a lock that its writer holds while it
lives. Both are named for the network namespace's number, which the kernel gives anew once that one is gone; so the lock
says which network it is, and which PID namespace its writer is of. Where nobody holds the lock, the changes are
orphans.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ginnel.errors import DeviceError

SO_NETNS_COOKIE = 71

Entry = dict[str, Any]


class Journal:
    """The journal of this process. Raises DeviceError where it cannot be written."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_folder()
        self._stem = f"{_number()}-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _open_locked(self._folder / f"{self._stem}.lock")
            os.write(self._lock, f"{_pid_namespace()} {_network()}".encode())
        except OSError as error:
            raise _unwritable(self._folder, error) from None

    def write(self, entries: list[Entry]) -> None:
        """Replaces what is to be undone, oldest first. It is on disk when this returns."""
        path = self._folder / f"{self._stem}.json"
        fresh = path.with_suffix(".new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(entries, file)
                file.flush()
                os.fsync(descriptor)
            fresh.replace(path)
            _sync(self._folder)
        except OSError as error:
            raise _unwritable(path, error) from None

    def of_others(self) -> list[Entry]:
        """What other processes have changed in this namespace."""
        entries: list[Entry] = []
        for lock in _locks(self._folder):
            if lock.stem != self._stem:
                with contextlib.suppress(OSError, ValueError):
                    entries += _of_this_network(lock)
        return entries

    def close(self, *, keep: bool = False) -> None:
        """Lets go of it. ``keep``: what is in it is left to the next one who looks."""
        if not keep:
            for end in ("json", "lock"):
                (self._folder / f"{self._stem}.{end}").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._folder.rmdir()
        os.close(self._lock)


def recover(undo: Callable[[list[Entry]], list[Entry]], folder: Path | None = None) -> int:
    """Has what dead processes left in this namespace undone, latest first, and returns how many journals that was.
    ``undo`` returns what it could not.

    Raises DeviceError for that, and for a journal that cannot be understood; it stays, and with it the knowledge of
    what to undo.
    """
    found = 0
    for lock in _locks(folder):
        try:
            held = _open_locked(lock)
        except OSError:
            continue
        path = lock.with_suffix(".json")
        try:
            failed = undo(_of_this_network(lock)[::-1])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DeviceError(
                errno.EIO,
                f"{path}: what an earlier run changed cannot be read ({error}); put it back by hand, then delete it",
            ) from None
        else:
            if failed:
                what = ", ".join(sorted({str(entry["undo"]).replace("_", " ") for entry in failed}))
                raise DeviceError(errno.EIO, f"{path}: what an earlier run changed cannot be put back: {what}")
            for end in (".json", ".new", ".lock"):
                lock.with_suffix(end).unlink(missing_ok=True)
            found += 1
        finally:
            os.close(held)
    _forget_vanished(folder or default_folder(), undo)
    return found


def _forget_vanished(folder: Path, undo: Callable[[list[Entry]], list[Entry]]) -> None:
    """Journals of dead processes whose network has gone after them. Only those of our own PID namespace: it shows every
    process that could hold the network.
    """
    living = _living_namespaces()
    for lock in folder.glob("*-*-*.lock"):
        if lock.stem.partition("-")[0] in living:
            continue
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            held = _open_locked(lock)
            try:
                if lock.read_text().partition(" ")[0] == _pid_namespace():
                    undo(_outliving(_read(lock.with_suffix(".json"))))
                    for end in (".json", ".new", ".lock"):
                        lock.with_suffix(end).unlink(missing_ok=True)
            finally:
                os.close(held)


def _of_this_network(lock: Path) -> list[Entry]:
    """What is in its journal; of a network that is gone, whose number is now ours, what outlives it."""
    entries = _read(lock.with_suffix(".json"))
    return entries if lock.read_text().partition(" ")[2] in (_network(), "") else _outliving(entries)


def _outliving(entries: list[Entry]) -> list[Entry]:
    """What was changed that did not go with its network."""
    return [entry for entry in entries if entry["undo"] == "resolv.conf"]


def _living_namespaces() -> set[str]:
    """The numbers of those that a process is in, or that are mounted somewhere (``ip netns add``)."""
    found = set(re.findall(r"\bnet:\[([0-9]+)\]", Path("/proc/self/mountinfo").read_text(errors="replace")))
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            found.add(str(entry.stat().st_ino))
    return found


def default_folder() -> Path:
    """``/run/ginnel`` for root, else in the user's own runtime folder."""
    if os.geteuid() == 0:
        return Path("/run/ginnel")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "ginnel"


def _number() -> int:
    return Path("/proc/self/ns/net").stat().st_ino


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _network() -> str:
    """What no other network is called: the kernel gives each a cookie, new at every boot. Empty before Linux 5.14."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        try:
            cookie = any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""
    return f"{boot}/{int.from_bytes(cookie, sys.byteorder)}"


def _locks(folder: Path | None) -> list[Path]:
    return sorted((folder or default_folder()).glob(f"{_number()}-*.lock"))


def _read(path: Path) -> list[Entry]:
    """The entries; none when their writer died before it wrote any."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("no list of changes")
    return entries


def _open_locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> DeviceError:
    hint = "" if os.geteuid() == 0 else " (XDG_RUNTIME_DIR is to name a folder of yours)"
    return DeviceError(
        error.errno or errno.EIO, f"{path}: the journal of changes cannot be written, so nothing is changed{hint}"
    )
