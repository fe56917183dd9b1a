"""``ginnel bench``: it runs to its end, says what it measured, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.environment import Environment
from tests.harness.network import ORDINARY

GINNEL = Path(sys.executable).with_name("ginnel")


def bench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([GINNEL, "bench", *words], capture_output=True, text=True, timeout=300, check=False)


def test_a_round_of_our_own_tunnel(tmp_path: Path) -> None:
    table, chart = tmp_path / "figures.json", tmp_path / "chart.svg"
    done = bench("--rounds", "1", "--seconds", "1", "--only", "ginnel", "--json", table, "--chart", chart)
    assert done.returncode == 0, done.stderr
    result = json.loads(table.read_text())
    assert result["failures"] == []
    (figures,) = result["figures"]["ginnel"]
    assert figures["up_mbit"] > 0
    assert figures["down_mbit"] > 0
    assert figures["small_pps"] > 0
    assert 0 < figures["ping_ms"] < 1000
    assert 0 < figures["loaded_ping_ms"] <= figures["loaded_ping_p99_ms"] < 1000
    assert 0 < figures["long_pps"] < figures["small_pps"] * 10
    assert 20 < figures["memory_mb"] < 200
    assert 0 < figures["up_cpu"] < 100
    assert "| TCP, Mbit/s |" in done.stdout
    assert chart.read_text().startswith("<svg")
    left = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    assert "tun" not in left


def test_ways_that_are_measured_by_streams_alone(tmp_path: Path) -> None:
    table = tmp_path / "figures.json"
    kinds = ("unsegmented", "user-space", "lossy", "lossy-kernel", "plumbing")
    done = bench("--rounds", "1", "--seconds", "1", *(f"--only={kind}" for kind in kinds), "--json", table)
    assert done.returncode == 0, done.stderr
    result = json.loads(table.read_text())
    assert result["failures"] == []
    for kind in kinds:
        (figures,) = result["figures"][kind]
        assert figures["up_mbit"] > 0
        assert figures["down_mbit"] > 0
        if kind.startswith("lossy"):
            assert figures["up_mbit"] < 100
            assert figures["down_mbit"] < 100


def test_stock_at_one_end(tmp_path: Path) -> None:
    table, kind = tmp_path / "figures.json", "mixed-server"
    done = bench("--rounds", "1", "--seconds", "1", f"--only={kind}", "--json", table)
    assert done.returncode == 0, done.stderr
    result = json.loads(table.read_text())
    assert result["failures"] == []
    (figures,) = result["figures"][kind]
    assert figures["up_cpu"] > figures["up_ours_cpu"] > 0
    assert figures["down_cpu"] > figures["down_ours_cpu"] > 0


def test_many_clients_at_once(tmp_path: Path) -> None:
    table = tmp_path / "figures.json"
    kinds = ("--only=crowd", "--only=stock-crowd")
    done = bench("--rounds", "1", "--seconds", "1", "--clients", "3", *kinds, "--json", table)
    assert done.returncode == 0, done.stderr
    result = json.loads(table.read_text())
    assert result["failures"] == []
    for kind in ("crowd", "stock-crowd"):
        (figures,) = result["figures"][kind]
        assert figures["crowd_mbit"] >= 3 * figures["crowd_least_mbit"] > 0
        assert figures["crowd_cpu"] > figures["crowd_server_cpu"] > 0
    assert "| TCP of all clients at once, ginnel : stock |" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--only", "carrier-pigeon"), "no tunnel carrier-pigeon"), (("--json", "/nowhere/x"), "No such file")],
)
def test_what_it_refuses(options: tuple[str, ...], words: str) -> None:
    done = bench(*options)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_it_takes_root(ordinary_env: Environment) -> None:
    command = [*ORDINARY, ordinary_env.ginnel, "bench"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.returncode == 2
    assert "run it as root" in done.stderr
