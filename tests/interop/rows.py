"""What a line of `docs/interop.md` is, where it is a test of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A test in ``tests/interop``: module and function, and what it shows."""

    subject: str
    name: str
    why: str
    test: str
    result: str = "connects"
