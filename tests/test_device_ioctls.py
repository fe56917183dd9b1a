"""The contract's ioctl table on every kind of device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ginnel.testing.ioctl_cases import IOCTL_CASES, IoctlCase, RealSystem
from tests.harness.network import Namespace


@pytest.fixture(scope="module")
def namespace() -> Iterator[None]:
    with Namespace() as own, own.entered():
        yield


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize("case", IOCTL_CASES, ids=lambda case: case.name)
def test_on_the_kernel(case: IoctlCase) -> None:
    case.check(RealSystem())
