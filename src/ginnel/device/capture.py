"""Captures: every packet of a device in a pcapng file, for Wireshark and its kin.

The packets never enter Python: the device leaves copies, a thread writes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import stat
from typing import TYPE_CHECKING

from ginnel._core import Capture as CoreCapture
from ginnel._core import DataPlane
from ginnel.device.base import DeviceEnd, Kind
from ginnel.device.memory import MemoryDevice
from ginnel.errors import ConfigError, DeviceError, GinnelError, LocalProtocolError, is_shortage

if TYPE_CHECKING:
    from typing import Self

log = logging.getLogger(__name__)


class File:
    """A file for a `Capture` to come: for who may open it now, and not later. It is closed if it is never used."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ConfigError, and DeviceError on a full disk."""
        self.path = os.fspath(path)
        self._descriptor: int | None = _open(self.path)

    def take(self) -> int:
        """Its descriptor, once."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            raise LocalProtocolError(f"{self.path} belongs to another capture")
        return descriptor

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self.take())


class Capture:
    """A pcapng file that is being written. A context manager that ends it.

    Each packet has its direction (as the interface sees it), its time in nanoseconds, and the number of those
    that the device did not take before it. What it took and dropped later is in the file, and among the dropped.
    What the disk does not keep up with, or has no room for, is counted, noted in the file, and, inside a running
    event loop, said once in the log; the device is never held up.
    """

    def __init__(self, file: str | os.PathLike[str] | File, kind: Kind, name: str) -> None:
        """Writes the file anew, readable for its owner alone. ``name`` is the interface's. Raises ConfigError, and
        DeviceError on a full disk."""
        opened = file if isinstance(file, File) else File(file)
        self.path = opened.path
        try:
            self._core = CoreCapture(opened.take(), kind, name)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._core.fileno(), self._warn)

    def observe(self, device: MemoryDevice, name: str | None = None) -> None:
        """Notes every packet of a device in memory, both ways. ``name``: as another interface in the file, where
        none is called so yet.

        Raises DeviceError (EOPNOTSUPP) for a device whose packets don't pass this process.
        """
        if not isinstance(device, MemoryDevice):
            raise DeviceError(
                errno.EOPNOTSUPP,
                "the packets of this device don't pass here; capture it where it is made (--capture), "
                "or note() what is read and written",
            )
        self._core.observe(device.core, name)

    def observe_plane(self, plane: DataPlane) -> None:
        """The same for the device of the kernel's that a data plane is on."""
        self._core.observe_plane(plane)

    def note(self, packet: bytes, *, outbound: bool) -> None:
        """Notes one packet, of a device that is not in memory. ``outbound``: the interface has sent it."""
        self._core.note(packet, outbound)

    def statistics(self) -> dict[str, int]:
        """packets: that passed; dropped: by the device; lost: that passed and are not in the file."""
        return self._core.statistics()

    def close(self) -> None:
        """Writes what is left. Idempotent."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._core.fileno())
        self._core.close()
        self._warn()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _warn(self) -> None:
        number = self._core.failure()
        if number is not None and self._failure is None:
            self._failure = number
            log.warning("cannot write %s: %s; what is lost is counted", self.path, os.strerror(number))

    _failure: int | None = None


class CapturedEnd:
    """An application end whose packets are noted as they are read and written here, whatever device it is of."""

    def __init__(self, end: DeviceEnd, capture: Capture) -> None:
        self._end = end
        self._capture = capture

    def read(self, timeout: float | None = None) -> bytes:
        packet = self._end.read(timeout)
        if packet:
            self._capture.note(packet, outbound=True)
        return packet

    def write(self, packet: bytes) -> int:
        written = self._end.write(packet)
        self._capture.note(packet, outbound=False)
        return written


def _open(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                _refuse_other(path)
                _claim(descriptor, path)
                # It may have been there before, for everybody to read.
                os.fchmod(descriptor, 0o600)
                os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise _unwritable(path, error) from None
    return descriptor


def _refuse_other(path: str) -> None:
    """A key, or the client's file, is easily named by mistake, and never comes back."""
    with open(path, "rb") as file:
        begin = file.read(len(PCAPNG))
    if begin not in (b"", PCAPNG):
        raise ConfigError(
            f"{path} is there, and no capture: it is not overwritten", option="capture", instead="take another name"
        )


def _claim(descriptor: int, path: str) -> None:
    """For as long as the descriptor is open. Where the file system knows no locks everybody may write."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"another capture is being written to {path}", option="capture", instead="take another name"
        ) from None
    except OSError:
        pass


def _unwritable(path: str, error: OSError) -> GinnelError:
    if is_shortage(error):
        return DeviceError(error.errno or errno.EIO, f"cannot write {path}")
    return ConfigError(f"cannot write {path}: {os.strerror(error.errno or errno.EIO)}", option="capture")


PCAPNG = b"\x0a\x0d\x0d\x0a"
"""How such a file begins."""
