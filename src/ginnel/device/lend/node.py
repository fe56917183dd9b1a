"""Which opens are of the device that is lent."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from ginnel.device.interface import Interfaces
from ginnel.device.ioctls import IFF_NO_PI, Descriptor
from ginnel.device.lend.memory import Caller

TUN = Path("/dev/net/tun")


@dataclass(frozen=True, slots=True)
class Node:
    """The path that stands for the device. It need not exist.

    /dev/net/tun is attached by ioctl. Any other path is an interface's own, as on the BSDs: it is attached when it
    is opened, carries bare packets, and its last part is the interface's name (``/dev/tap3``; ``/dev/tun`` stands
    for the next free).
    """

    path: Path = TUN

    @property
    def attaches(self) -> bool:
        return self.path != TUN

    def attach(self, descriptor: Descriptor, interfaces: Interfaces) -> None:
        """Raises DeviceError, as TUNSETIFF does."""
        name = self.path.name
        pattern = name if re.search(r"\d$", name) else f"{name}%d"
        interface = interfaces.get(name)
        if interface is not None:
            interface.notice_gone()
            interface = interfaces.get(name)
        if interface is None:
            descriptor.create(pattern, "tap" if name.startswith("tap") else "tun", IFF_NO_PI)
        else:
            descriptor.attach(interface, IFF_NO_PI)

    def is_meant(self, path: bytes) -> bool:
        """Whether a path, as `find` gives it, leads here."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return os.path.realpath(path) == os.path.realpath(os.fsencode(self.path))
        return self.is_real_device(status) or self._is_node(status) or os.path.normpath(path) == os.fsencode(self.path)

    def is_real_device(self, status: os.stat_result) -> bool:
        """Whether this is the kernel's own TUN device, by whatever name."""
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == _REAL_DEVICE

    def _is_node(self, status: os.stat_result) -> bool:
        try:
            own = os.stat(self.path)
        except OSError:
            return False
        return (own.st_dev, own.st_ino) == (status.st_dev, status.st_ino)


def find(caller: Caller, folder: int, path: bytes) -> bytes:
    """Where a path that a program opens, relative to a descriptor of its, leads for us."""
    return _as_seen_by(caller, path if path.startswith(b"/") else os.path.join(caller.folder(folder), path))


def _as_seen_by(caller: Caller, path: bytes) -> bytes:
    """An absolute path in which nothing leads to /proc/self: that would be our own. /dev/fd, for one, does."""
    own = {b"/proc/self": b"/proc/%d" % caller.thread, b"/proc/thread-self": b"/proc/%d" % caller.thread}
    done, left = b"/", path.split(b"/")[::-1]
    links = 0
    while left:
        part = left.pop()
        if part in (b"", b"."):
            continue
        here = os.path.dirname(done) if part == b".." else os.path.join(done, part)
        if here in own:
            # What follows is the kernel's to follow: its links are more than they say.
            return os.path.join(own[here], *reversed(left))
        try:
            target = os.readlink(here)
        except (OSError, ValueError):
            done = here
            continue
        links += 1
        if links > MOST_LINKS or here.startswith(b"/proc/"):
            return os.path.join(here, *reversed(left))
        left += target.split(b"/")[::-1]
        done = b"/" if target.startswith(b"/") else done
    return done


MOST_LINKS = 40
_REAL_DEVICE = os.makedev(10, 200)
