"""Puts what ``ginnel bench`` measured into `docs/benchmarks.md`: python -m tests.bench.page FIGURES.json"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ginnel.bench.report import table
from ginnel.bench.run import Result

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
FROM, TO = "<!-- what follows is written by `make bench` -->\n", "<!-- up to here -->\n"


def renewed(page: str, figures: str) -> str:
    """The page with the table of a run in the place of the one before."""
    before, _, rest = page.partition(FROM)
    _, _, after = rest.partition(TO)
    return f"{before}{FROM}\n{table(Result(**json.loads(figures)))}\n\n{TO}{after}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(), Path(sys.argv[1]).read_text()))
