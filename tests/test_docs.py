"""The examples of docs/testing.md do what they say. (Those of docs/api.md need a server: see interop.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[1] / "docs" / "testing.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int) -> None:
    exec(compile(EXAMPLES[number], f"{DOCUMENT.name} example {number}", "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3
