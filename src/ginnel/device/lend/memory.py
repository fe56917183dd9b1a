"""What can be read of another process: its memory, its descriptors, whose it is."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from ginnel.device.lend.numbers import this_machine

Inode = tuple[int, int]
"""A device number and an inode: what tells an open socket from all others."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A thread of another process, by its id. Everything raises OSError: EFAULT for an address that is none,
    EACCES for a process that hides itself, ENOENT or ESRCH for one that is gone."""

    thread: int

    def require_access(self) -> None:
        """Does nothing where its memory may be read and written."""
        with self._memory(os.O_RDWR):
            pass

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes of its memory."""
        with self._memory(os.O_RDONLY) as memory:
            data = os.pread(memory, size, address)
        if len(data) != size:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return data

    def write(self, address: int, data: bytes) -> None:
        with self._memory(os.O_RDWR) as memory:
            written = os.pwrite(memory, data, address)
        if written != len(data):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    def read_path(self, address: int) -> bytes:
        """The string at an address, without its NUL; ENAMETOOLONG past 4,095 bytes."""
        found = b""
        while len(found) < PATH_MAX:
            # What follows the string's page may not be there.
            here = address + len(found)
            page = self.read(here, min(PATH_MAX - len(found), PAGE - here % PAGE))
            text, end, _ = page.partition(b"\0")
            found += text
            if end:
                return found
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    def stat(self, descriptor: int) -> os.stat_result:
        """Of an open descriptor. EBADF where it has none of this number."""
        try:
            return os.stat(f"/proc/{self.thread}/fd/{descriptor}")
        except FileNotFoundError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def folder(self, descriptor: int) -> bytes:
        """Where a relative path begins that is given with a directory's descriptor (or AT_FDCWD)."""
        name = "cwd" if descriptor == AT_FDCWD else f"fd/{descriptor}"
        return os.readlink(os.fsencode(f"/proc/{self.thread}/{name}"))

    def copy_socket(self, descriptor: int) -> socket.socket:
        """Another descriptor of the same open socket."""
        pidfd = os.pidfd_open(self.process())
        try:
            copy = _libc.syscall(this_machine().calls["pidfd_getfd"], pidfd, descriptor, 0)
            if copy < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(pidfd)
        return socket.socket(fileno=copy)

    def process(self) -> int:
        """The process that the thread belongs to."""
        return int(self._status()["Tgid"])

    def identity(self) -> tuple[int, frozenset[int]]:
        """Its effective user, and its groups."""
        status = self._status()
        groups = [status["Gid"].split()[1], *status["Groups"].split()]
        return int(status["Uid"].split()[1]), frozenset(map(int, groups))

    def _status(self) -> dict[str, str]:
        with open(f"/proc/{self.thread}/status") as file:
            return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}

    @contextlib.contextmanager
    def _memory(self, mode: int) -> Iterator[int]:
        memory = os.open(f"/proc/{self.thread}/mem", mode | os.O_CLOEXEC)
        try:
            yield memory
        except (OverflowError, OSError):
            # The kernel says EIO where nothing is mapped.
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from None
        finally:
            os.close(memory)


PATH_MAX = 4096
PAGE = 4096
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)
