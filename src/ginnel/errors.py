"""Every exception of ginnel. The type says whose fault it is."""

from __future__ import annotations

import errno
import os


class GinnelError(Exception):
    """What all of ginnel's own exceptions have in common.

    ``str()`` of one is a single line that says what happened, where, and what to do.
    ``exit_status`` is what a ginnel command ends with because of it.
    """

    exit_status = 1


class ConfigError(GinnelError):
    """The configuration asks for something that is wrong or not supported.

    ``file`` and ``line`` (from 1) say where, ``option`` which directive, ``instead`` what to write.
    Each is None where it is not known or does not apply.
    """

    exit_status = 2

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        option: str | None = None,
        instead: str | None = None,
    ) -> None:
        self.message = message
        self.file = file
        self.line = line
        self.option = option
        self.instead = instead
        where = ":".join(str(part) for part in (file, line) if part is not None)
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text}; {instead}" if instead else text)


class LocalProtocolError(GinnelError):
    """Our own caller used the protocol wrongly: a bug in the program that uses ginnel."""


class RemoteProtocolError(GinnelError):
    """The peer sent what the protocol does not allow, or TLS with it failed."""

    exit_status = 5


class UnreachableError(GinnelError):
    """The peer could not be reached, or stopped answering."""

    exit_status = 3


class AuthError(GinnelError):
    """The peer refused who we are. ``reason`` is what it said, or an empty string."""

    exit_status = 4

    def __init__(self, message: str, reason: str = "") -> None:
        self.reason = reason
        super().__init__(message)


class DeviceError(GinnelError, OSError):
    """A device operation was refused. ``errno`` is the one the kernel's device would give."""

    exit_status = 6

    def __init__(self, errno: int, what: str) -> None:
        OSError.__init__(self, errno, f"{what}: {os.strerror(errno)}")

    def __str__(self) -> str:
        return str(self.strerror)


def is_shortage(error: OSError) -> bool:
    """Whether this machine has none left of something: descriptors, memory, threads, room on a disk."""
    return error.errno in _SHORTAGES


_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
