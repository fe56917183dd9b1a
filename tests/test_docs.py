"""The examples of the pages below do what they say. (Those of docs/api.md need a server: see interop.)"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = [
    pytest.param(example, id=f"{page} {number}")
    for page in ("testing.md", "device.md", "named-devices.md", "ethernet.md")
    for number, example in enumerate(
        re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    )
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    if "def test_" not in example:
        exec(compile(example, "example", "exec"), {})
        return
    file = tmp_path / "test_example.py"
    file.write_text(example)
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error", file]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 11
