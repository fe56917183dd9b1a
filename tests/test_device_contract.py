"""Every line of the contract, on every kind of device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ginnel.device.base import Kind
from ginnel.testing.devices import LENT, Case, device_cases
from ginnel.testing.subjects import SUBJECTS, Column
from tests.harness.network import Namespace

EVERY = [
    pytest.param(column, case, kind, id=f"{column}-{kind}: {case.name}")
    for column in SUBJECTS
    for case in device_cases(column)
    for kind in case.kinds
]


@pytest.fixture(scope="module")
def namespace() -> Iterator[None]:
    """The tests' own network: nothing of the machine's is touched, and nothing else disturbs."""
    with Namespace() as own, own.entered():
        yield


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize(("column", "case", "kind"), EVERY)
def test_contract(column: Column, case: Case, kind: Kind) -> None:
    case.run(SUBJECTS[column], kind)


def test_a_lent_descriptor_differs_in_these_lines_and_no_others() -> None:
    """EIO and EINVAL on a write, drop-newest at 500, POLLOUT only when up."""
    assert [case.name.partition(":")[0] for case in device_cases("lent") if case in LENT.values()] == [
        "writing while the other end was not there deadlocked",
        "Write",
        "Write",
        "Poll",
        "Queue",
    ]
