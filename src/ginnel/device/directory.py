"""Where devices are found by name: a directory of the user's own, with a lock and a socket for each.

Whoever holds the lock owns the name. The system lets go of a lock when its holder dies, however
that happens, and the next one takes the name over with what was left behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from ginnel.device.address import check_name
from ginnel.device.interface import MAX_INTERFACES
from ginnel.errors import DeviceError

if TYPE_CHECKING:
    from typing import Self

PATIENCE = 10.0
"""Seconds for an owner's answer."""
MAX_ANSWER = 1 << 18
"""Bytes."""


class Directory:
    """The devices of this user on this machine. A context manager."""

    def __init__(self) -> None:
        """Opens it, and makes it where there is none. Raises DeviceError (EPERM) when it is not ours alone."""
        self.path = _place()
        try:
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(0o700)
            self._descriptor = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise self._unusable(error) from None
        found = os.fstat(self._descriptor)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            self.close()
            raise DeviceError(
                errno.EPERM, f"{self.path} is not yours alone; remove it, or set XDG_RUNTIME_DIR to a folder of yours"
            )

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def names(self) -> list[str]:
        """The names that sockets were left under; whether somebody still listens is another question."""
        try:
            names = os.listdir(f"/proc/self/fd/{self._descriptor}")
        except OSError as error:
            raise self._unusable(error) from None
        return sorted(name.removesuffix(SOCKET) for name in names if name.endswith(SOCKET))

    def connect(self, name: str, patience: float = PATIENCE) -> socket.socket:
        """A connection to the owner of a device, who has ``patience`` seconds for each answer (EAGAIN after).

        Raises DeviceError: ENODEV when there is none, ETIMEDOUT.
        """
        check_name(name)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # Not by settimeout, with which a queue of others that connect is an error and not a wait.
            limit = struct.pack("ll", int(patience), int(patience % 1 * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            sock.connect(self._address(name))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            raise DeviceError(errno.ENODEV, f"there is no device {name}; see `ginnel device list`") from None
        except BlockingIOError:
            sock.close()
            raise DeviceError(errno.ETIMEDOUT, f"the owner of {name} does not answer") from None
        except OSError as error:
            sock.close()
            raise DeviceError(error.errno or errno.EIO, f"the socket of {name}") from None
        return sock

    def claim(self, pattern: str) -> Claim:
        """The right to a name. One ``%d`` in it stands for the next free number.

        Raises DeviceError: EEXIST when somebody has it, EINVAL for a name that cannot be, ENFILE.
        """
        check_name(pattern)
        if "%d" not in pattern:
            claim = self._try(pattern)
            if claim is None:
                raise DeviceError(
                    errno.EEXIST, f"there is a device {pattern} already; see `ginnel device show {pattern}`"
                )
            return claim
        for number in range(MAX_INTERFACES):
            name = pattern.replace("%d", str(number))
            check_name(name)
            if (claim := self._try(name)) is not None:
                return claim
        raise DeviceError(errno.ENFILE, f"every name from {pattern.replace('%d', '0')} on is taken; delete one first")

    def listen(self, name: str) -> socket.socket:
        """For a claim: a socket in place of the one that a dead owner may have left."""
        self.remove(name + SOCKET)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # The file takes the socket's own mode.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(self._address(name))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise self._unusable(error) from None
        return sock

    def remove(self, file: str) -> None:
        try:
            os.unlink(file, dir_fd=self._descriptor)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._unusable(error) from None

    def _try(self, name: str) -> Claim | None:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                lock = os.open(name + LOCK, flags, 0o600, dir_fd=self._descriptor)
            except OSError as error:
                raise self._unusable(error) from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_in_place(name, lock):
                    return Claim(name, lock)
            except BlockingIOError:
                os.close(lock)
                return None
            # Its owner removed the file while we were opening it.
            os.close(lock)

    def _is_in_place(self, name: str, lock: int) -> bool:
        try:
            return os.path.samestat(os.stat(name + LOCK, dir_fd=self._descriptor), os.fstat(lock))
        except FileNotFoundError:
            return False

    def _unusable(self, error: OSError) -> DeviceError:
        what = f"devices cannot be kept in {self.path}; set XDG_RUNTIME_DIR to a folder of yours"
        return DeviceError(error.errno or errno.EIO, what)

    def _address(self, name: str) -> str:
        # Short, whatever the directory's name is: a socket's address has 108 bytes.
        return f"/proc/self/fd/{self._descriptor}/{name}{SOCKET}"


class Claim:
    """The right to a name, until it is released or this process ends. A context manager."""

    def __init__(self, name: str, lock: int) -> None:
        self.name = name
        self._lock = lock

    def listen(self) -> socket.socket:
        """A socket on which the device is asked for."""
        with Directory() as directory:
            return directory.listen(self.name)

    def release(self) -> None:
        """Idempotent."""
        if self._lock < 0:
            return
        with contextlib.suppress(DeviceError), Directory() as directory:
            directory.remove(self.name + SOCKET)
            directory.remove(self.name + LOCK)
        os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def claim_name(pattern: str) -> Claim:
    """See `Directory.claim`."""
    with Directory() as directory:
        return directory.claim(pattern)


def _place() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # Another user's is in the environment after su and sudo.
    with contextlib.suppress(OSError):
        if runtime.startswith("/") and Path(runtime).stat().st_uid == os.geteuid():
            return Path(runtime) / "ginnel"
    return Path(f"/tmp/ginnel-{os.geteuid()}")


LOCK = ".lock"
SOCKET = ".socket"
BACKLOG = 16
