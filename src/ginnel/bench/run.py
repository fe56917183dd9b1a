"""Rounds in which the tunnels take turns."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ginnel.bench.measure import measure
from ginnel.bench.spaces import BenchError, joined
from ginnel.bench.tunnels import open_tunnel


@dataclass
class Result:
    """The figures of each round by tunnel and name, and how they came about."""

    kinds: Mapping[str, str]
    rounds: int
    seconds: float
    machine: str
    date: str
    figures: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def values(self, tunnel: str, name: str) -> list[float]:
        return [each[name] for each in self.figures.get(tunnel, []) if name in each]

    def median(self, tunnel: str, name: str) -> float | None:
        values = self.values(tunnel, name)
        return statistics.median(values) if values else None

    def ratio(self, over: tuple[str, str], under: tuple[str, str]) -> float | None:
        top, bottom = self.median(*over), self.median(*under)
        return top / bottom if top is not None and bottom else None

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def run(kinds: Mapping[str, str], rounds: int, seconds: float, crowd: int, say: Callable[[str], None]) -> Result:
    """A tunnel that fails in one round is named among the failures; its other rounds count."""
    result = Result(dict(kinds), rounds, seconds, machine(), datetime.now(UTC).date().isoformat())
    for number in range(1, rounds + 1):
        for name in kinds:
            say(f"round {number} of {rounds}: {name}")
            try:
                with joined() as (left, right), open_tunnel(name, left, right, crowd) as tunnel:
                    result.figures.setdefault(name, []).append(measure(tunnel, seconds))
            except BenchError as error:
                say(str(error))
                result.failures.append(f"round {number}: {error}")
    return result


def machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    cores = len([line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")])
    load = Path("/proc/loadavg").read_text().split()[0]
    control = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return f"{cores} cores, {model}, Linux {platform.release()} (TCP: {control}), load {load} at the start"
