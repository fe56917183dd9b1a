"""ginnel as an ordinary user has it: its wheel in an environment of the system's Python.

The environment belongs to root and is readable by everyone, which a checkout or a Python in
root's home is not. It is kept for the next run, by the hash of the wheel.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness.process import run


@dataclass(frozen=True)
class Environment:
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    @property
    def ginnel(self) -> Path:
        return self.folder / "bin/ginnel"


def ordinary_environment() -> Environment:
    """Builds the wheel and the environment where they are not up to date. Safe to call from several
    processes at once."""
    with _locked(_BASE / "ginnel-environment.lock"):
        run(["make", "--silent", "wheel"], cwd=_ROOT, timeout=1800)
        (wheel,) = (_ROOT / "target/wheels").glob("ginnel-*.whl")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]
        environment = Environment(_BASE / f"ginnel-environment-{digest}")
        if not (environment.folder / _COMPLETE).exists():
            _remove_old()
            _install(wheel, environment)
        return environment


def _install(wheel: Path, environment: Environment) -> None:
    mask = os.umask(0o022)
    try:
        run(["/usr/bin/python3", "-m", "venv", environment.folder])
        run([environment.python, "-m", "pip", "install", "--quiet", wheel], timeout=600)
        (environment.folder / _COMPLETE).touch()
    except BaseException:
        shutil.rmtree(environment.folder, ignore_errors=True)
        raise
    finally:
        os.umask(mask)


def _remove_old() -> None:
    # A younger one may be in use by another checkout's run.
    for folder in _BASE.glob("ginnel-environment-*/"):
        if time.time() - folder.stat().st_mtime > 24 * 3600:
            shutil.rmtree(folder)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # Others may have made the file first where everybody may write: root does not follow a link there.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


_ROOT = Path(__file__).parents[2]
_BASE = Path("/var/tmp")
_COMPLETE = "complete"
