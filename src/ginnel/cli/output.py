"""Where a command's text goes: to stdout, or into a file that is whole at its place, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self

from ginnel.errors import ConfigError, DeviceError, is_shortage


class Output:
    """Put at its place at the end of the block; whatever is raised in it leaves what was there before."""

    def __init__(self, path: Path | None, mode: int, *, replaces: Callable[[str], bool] = lambda text: False) -> None:
        """None for stdout. ``replaces`` says of the text of a file that is there already whether it may be lost; an
        empty one (mktemp's) may. Raises ConfigError for a place where no file can be: a folder, a device, another
        file."""
        if path is not None and path.is_dir():
            raise ConfigError(f"{path} is a directory", instead=f"write -o {path / 'FILE'}")
        if path is not None and path.exists() and not path.is_file():
            # It would be replaced: for root /dev/null, too.
            raise ConfigError(f"{path} is no file, and would be replaced by one", instead="leave -o out for stdout")
        if path is not None and path.exists():
            try:
                text = path.read_text(errors="replace")
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}; it is there already, and would be replaced") from None
            if text and not replaces(text):
                raise ConfigError(f"{path} is there already, and would be lost", instead="name another file")
        self._path = path
        self._mode = mode
        self._temporary: Path | None = None

    def write(self, text: str) -> None:
        """All of it, once. Raises ConfigError, and DeviceError on a full disk."""
        try:
            if self._path is None and sys.stdout is None:
                # As a shell's >&- leaves it: print() would say nothing.
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            if self._path is None:
                # A file is UTF-8 whatever the locale's letters are.
                sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
                sys.stdout.flush()
                return
            # Whoever had the file before gets no look at the new one.
            descriptor, made = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
            self._temporary = Path(made)
            with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
                os.fchmod(file.fileno(), self._mode)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            where = self._path or "stdout"
            if is_shortage(error):
                raise DeviceError(error.errno or errno.EIO, f"nothing was changed; {where}") from None
            raise ConfigError(f"{where}: {error.strerror}; nothing was changed") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._path is None or self._temporary is None:
            return
        try:
            if kind is None:
                self._temporary.replace(self._path)
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}; it is not written, ask for it again") from None
        finally:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
