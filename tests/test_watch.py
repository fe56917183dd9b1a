"""What a client notices of its machine."""

from __future__ import annotations

import asyncio
import time

import pytest

from ginnel.transports import watch


async def test_a_sleep_of_the_machine_is_noticed_when_it_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The boot clock goes on in a sleep. A moment of difference is none: the two are not read at once."""
    asleep = iter([0.0, 0.5, 1.0, 3601.0, 3601.0, 3611.0])
    seen = [0.0]
    clock = time.clock_gettime

    def read(which: int) -> float:
        if which != time.CLOCK_BOOTTIME:
            return clock(which)
        seen[0] = next(asleep, seen[0])
        return clock(time.CLOCK_MONOTONIC) + seen[0]

    monkeypatch.setattr(time, "clock_gettime", read)
    monkeypatch.setattr(watch, "TICK", 0)
    found = watch.sleeps()
    async with asyncio.timeout(20):
        assert await anext(found) == pytest.approx(3600, abs=1)
        assert await anext(found) == pytest.approx(10, abs=1)
    await found.aclose()  # type: ignore[attr-defined]
