"""Where a server keeps its state."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ginnel.errors import ConfigError


def state_directory(given: Path | None) -> Path:
    """The one that was given, else the user's own (XDG Base Directory Specification)."""
    if given is not None:
        return given
    base = os.environ.get("XDG_STATE_HOME", "")
    # A relative path there is to be ignored, says the specification.
    return (Path(base) if base.startswith("/") else Path.home() / ".local/state") / "ginnel"


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """No other server has the directory inside the block. Raises ConfigError where one has."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError(
            f"a server runs in {directory} already", instead="end it, or take another directory"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """Where the programs that a server asks find their files, the password of a login among them. What a server that
    was killed has left there goes before another begins. Absolute: a program may go elsewhere first."""
    folder = (directory / SCRATCH).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


LOCK = "server.lock"
SCRATCH = "asked"
