"""``make demo``: a VPN's first minute, as a user without any right sees it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.harness.environment import Environment
from tests.harness.process import run


def test_the_first_minute_of_an_ordinary_user(ordinary_env: Environment) -> None:
    """The programs drop every right themselves where this test has some; all else they check, and say."""
    told = run([sys.executable, "-m", "tools.demo"], cwd=Path(__file__).parents[1], timeout=100)
    assert told.splitlines()[-1] == "demo: ok"
    assert "no capability" in told
