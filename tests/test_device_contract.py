"""Every line of the contract, on every kind of device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ginnel.device.base import Kind
from ginnel.testing import check_device
from ginnel.testing.devices import KERNEL, LENT, Case, device_cases
from ginnel.testing.lender import Lender
from ginnel.testing.subjects import SUBJECTS, Factory, MemorySubject
from tests.harness.network import Namespace

EVERY = [
    pytest.param(subject, case, kind, id=f"{subject}-{kind}: {case.name}")
    for subject, column in {**{column: column for column in SUBJECTS}, "lender": "lent"}.items()
    for case in device_cases(column)  # type: ignore[arg-type]
    for kind in case.kinds
]


@pytest.fixture(scope="module")
def namespace() -> Iterator[None]:
    """The tests' own network: nothing of the machine's is touched, and nothing else disturbs."""
    with Namespace() as own, own.entered():
        yield


@pytest.fixture(scope="module")
def lender(namespace: None) -> Iterator[Lender]:
    """A program under `ginnel lend`, whose descriptors are tried."""
    with Lender() as made:
        yield made


@pytest.mark.usefixtures("namespace")
@pytest.mark.parametrize(("subject", "case", "kind"), EVERY)
def test_contract(request: pytest.FixtureRequest, subject: str, case: Case, kind: Kind) -> None:
    factories: dict[str, Factory] = {**SUBJECTS}
    if subject == "lender":
        factories[subject] = request.getfixturevalue("lender")
    case.run(factories[subject], kind)


def test_these_lines_are_kept_otherwise_and_no_others() -> None:
    """As docs/lend.md and docs/device.md say."""
    assert [case.name[:42] for case in device_cases("lent") if case in LENT.values()] == [
        "writing while the other end was not there ",
        "ctrl-C in a read, and deleting the interfa",
        "Operation on an unattached descriptor: EBA",
        "Read: Short buffer: truncated, the rest lo",
        "Read: Buffer smaller than the header it ne",
        "Read: Device deleted under a blocked read:",
        "Write: Interface down: EIO, counted.",
        "Write: Empty packet, a TUN packet whose ve",
        "Poll: OUT when up and a write would be tak",
        "Queue: 500 packets for TUN, 1,000 for TAP,",
    ]
    assert [case.name[:42] for case in device_cases("kernel") if case in KERNEL.values()] == [
        "a packet that the system sends when the in",
        "when one side crashed, the other hung for ",
        "ioctl did nothing",
        "Write: Empty packet, a TUN packet whose ve",
        "Poll: OUT when up and a write would be tak",
        "TAP: a locally administered MAC, settable ",
    ]


class Cutting(MemorySubject):
    """A device that loses the last byte of a frame."""

    def inject(self, packet: bytes) -> None:
        super().inject(packet[:-1] if self.kind == "tap" else packet)


def test_a_whole_device_is_checked_and_the_promise_named_that_it_breaks() -> None:
    check_device(MemorySubject)
    with pytest.raises(AssertionError, match=r"^tap: the first read after an open returned garbage"):
        check_device(Cutting)
