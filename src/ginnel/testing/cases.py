"""What a case of the contract is, and which there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ginnel.device.base import Kind
from ginnel.testing.subjects import Column, Factory, Subject


@dataclass(frozen=True)
class Case:
    """A promise, in the contract's words, and the check of it on a fresh subject."""

    name: str
    check: Callable[[Subject], None]
    kinds: tuple[Kind, ...] = ("tun", "tap")

    def run(self, factory: Factory, kind: Kind) -> None:
        with factory(kind) as subject:
            self.check(subject)


CASES: list[Case] = []
LENT: dict[str, Case] = {}
"""What a lent descriptor does in place of a line, because no data call is trapped."""
KERNEL: dict[str, Case] = {}
"""What the kernel's device does in place of a line."""

Check = Callable[[Subject], None]


def device_cases(column: Column) -> list[Case]:
    """The cases of a column, in the order of the contract."""
    instead = {"memory": {}, "lent": LENT, "kernel": KERNEL}[column]
    return [instead.get(case.name, case) for case in CASES]


def check_device(factory: Factory, column: Column = "memory") -> None:
    """Runs every case on devices that ``factory`` makes. Raises AssertionError, with the case's name."""
    for case in device_cases(column):
        for kind in case.kinds:
            try:
                case.run(factory, kind)
            except Exception as error:
                raise AssertionError(f"{kind}: {case.name}: {error!r}") from error


def line(name: str, *kinds: Kind) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        CASES.append(Case(name, check, kinds or ("tun", "tap")))
        return check

    return add


def lent(name: str, *kinds: Kind) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        LENT[name] = Case(name, check, kinds or ("tun", "tap"))
        return check

    return add


def kernel(name: str, *kinds: Kind) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        KERNEL[name] = Case(name, check, kinds or ("tun", "tap"))
        return check

    return add
