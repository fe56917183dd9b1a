"""``make demo``: a VPN's first minute, as a user without any right sees it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.harness.environment import Environment
from tests.harness.process import run

# ``make soak``, where nothing runs beside it, has what a user is promised.
SECONDS = float(os.environ.get("GINNEL_DEMO_SECONDS", "100"))


def test_the_first_minute_of_an_ordinary_user(ordinary_env: Environment) -> None:
    """The programs drop every right themselves where this test has some; all else they check, and say."""
    told = run([sys.executable, "-m", "tools.demo"], cwd=Path(__file__).parents[1], timeout=SECONDS)
    assert told.splitlines()[-1] == "demo: ok"
    assert "no capability" in told
