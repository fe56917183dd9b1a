"""The contract's ioctl table on every kind of device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from ginnel.device.interface import Interfaces
from ginnel.testing.ioctl_cases import IOCTL_CASES, IoctlCase, MemorySystem, RealSystem
from tests.harness.network import Namespace


@pytest.fixture(scope="module")
def namespace() -> Iterator[None]:
    with Namespace() as own, own.entered():
        yield


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("case", IOCTL_CASES, ids=lambda case: case.name)
def test_on_the_kernel(case: IoctlCase) -> None:
    case.check(RealSystem())


@pytest.mark.parametrize("case", IOCTL_CASES, ids=lambda case: case.name)
async def test_in_memory(case: IoctlCase) -> None:
    interfaces = Interfaces()
    try:
        case.check(MemorySystem(interfaces))
    finally:
        await interfaces.aclose()


@pytest.fixture(scope="module")
def lent() -> dict[str, str]:
    """What became of each case in a program under ``ginnel lend``, where it opens /dev/net/tun as ever."""
    done = subprocess.run(
        [sys.executable, "-m", "ginnel", "lend", "--", sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split("\t") for line in done.stdout.splitlines())


@pytest.mark.parametrize("case", IOCTL_CASES, ids=lambda case: case.name)
def test_lent(case: IoctlCase, lent: dict[str, str]) -> None:
    assert lent[case.name] == "kept"


PROGRAM = """
from ginnel.testing.ioctl_cases import IOCTL_CASES, RealSystem

for case in IOCTL_CASES:
    try:
        case.check(RealSystem())
        outcome = "kept"
    except Exception as error:
        outcome = repr(error)
    print(case.name, outcome, sep="\\t")
"""
