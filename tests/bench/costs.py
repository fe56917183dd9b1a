"""``python -m tests.bench.costs``: what a packet costs, counted and not timed, into ``docs/costs.md``.

Instructions come from callgrind, system calls from strace, for a fixed amount of work (``rust/io/examples/costs.rs``).
What the start takes falls out: each is counted for two amounts, and the difference divided. Exits with 1 when a
figure is worse than the page's by more than `TOLERANCE`, and leaves the page as it is: who means it deletes it first.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

Row = tuple[str, str, float, float, float, str]
"""Workload, end, instructions a packet outside the cipher and in it, system calls a packet, which they are."""


def main() -> int:
    build = ["cargo", "build", "--release", "--locked", "--quiet", "-p", "ginnel-io", "--example", "costs"]
    subprocess.run(build, cwd=ROOT, check=True)
    rows = [row for workload in WORKLOADS for row in _measure(workload)]
    before = _figures(PAGE.read_text()) if PAGE.exists() else {}
    page = _page(rows)
    worse = [
        f"{workload}, {end}: {name} {old:g} before, {new:g} now"
        for (workload, end), figures in _figures(page).items()
        for name, old, new in zip(NAMES, before.get((workload, end), figures), figures, strict=True)
        if new > old * (1 + TOLERANCE)
    ]
    print(page)
    print("\n".join(worse), file=sys.stderr)
    if not worse:
        PAGE.write_text(page)
    return 1 if worse else 0


def _measure(workload: str) -> list[Row]:
    rows: list[Row] = []
    for end, spent, calls in zip(ENDS, _instructions(workload), _calls(workload), strict=True):
        named = ", ".join(f"{name} {each:.2g}" for name, each in sorted(calls.items()) if each > 0.01)
        rows.append((workload, end, spent[False], spent[True], sum(calls.values()), named))
    return rows


def _instructions(workload: str) -> list[dict[bool, float]]:
    """A packet's at each end: in the cipher, and elsewhere."""
    counts = []
    for units in (200, 600):
        with tempfile.TemporaryDirectory(prefix="ginnel-costs-") as folder:
            out = f"{folder}/callgrind"
            count = ["valgrind", "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={out}"]
            work = [*count, *_work(workload, units)]
            packets = int(subprocess.run(work, check=True, capture_output=True, text=True).stdout)
            # The threads in the order in which they were started, after the main one.
            counts.append((packets, [_annotated(f"{out}-{number:02}") for number in (2, 3)]))
    (few, less), (many, more) = counts
    return [
        {kind: (more[end][kind] - less[end][kind]) / (many - few) for kind in (True, False)} for end in range(len(ENDS))
    ]


def _annotated(file: str) -> dict[bool, int]:
    words = ["callgrind_annotate", "--threshold=100", "--auto=no", file]
    annotated = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    spent = {True: 0, False: 0}
    for count, where in re.findall(r"^ *([\d,]+) \([ \d.]+%\)  (\S+:.*)$", annotated, re.MULTILINE):
        spent[bool(CIPHER.search(where))] += int(count.replace(",", ""))
    return spent


def _calls(workload: str) -> list[dict[str, float]]:
    """A packet's at each end, by name."""
    counts = []
    for units in (500, 5_500):
        with tempfile.TemporaryDirectory(prefix="ginnel-costs-") as folder:
            words = ["strace", "-ff", "-o", f"{folder}/trace", *_work(workload, units)]
            packets = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            files = sorted(Path(folder).glob("trace.*"), key=lambda file: int(file.suffix[1:]))
            calls = [Counter(re.findall(r"^(\w+)\(", file.read_text(), re.MULTILINE)) for file in files[1:]]
            counts.append((packets, calls))
    (few, less), (many, more) = counts
    return [
        {name: (count - less[end][name]) / (many - few) for name, count in more[end].items()}
        for end in range(len(ENDS))
    ]


def _work(workload: str, units: int) -> list[str]:
    return [str(ROOT / "target/release/examples/costs"), workload, str(units)]


def _page(rows: list[Row]) -> str:
    lines = "\n".join(
        f"| {WORKLOADS[workload]} | {end} | {other:,.0f} | {cipher:,.0f} | {calls:.3f} | {named} |"
        for workload, end, other, cipher, calls, named in rows
    )
    return TEXT.format(lines)


def _figures(page: str) -> dict[tuple[str, str], tuple[float, ...]]:
    """By workload and end: instructions outside the cipher and in it, and system calls."""
    found: dict[tuple[str, str], tuple[float, ...]] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[1] in ENDS:
            found[cells[0], cells[1]] = tuple(float(cell.replace(",", "")) for cell in cells[2:5])
    return found


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/costs.md"
WORKLOADS = {
    "bulk": "46 segments of 1,356 bytes at once",
    "single": "one datagram of 64 bytes at a time",
    "bulk-crowd": "the segments, with 1,000 peers, all but one idle",
    "single-crowd": "the datagram, with 1,000 peers, all but one idle",
}
ENDS = ("out", "in")
NAMES = ("instructions outside the cipher", "instructions in the cipher", "system calls")
CIPHER = re.compile(r"aws-lc|aws_lc|ring_core|/ring-\d|ghash|aesni|aes_hw|gcm128")
TOLERANCE = 0.05
TEXT = """# What a packet costs

Counted, not timed, so that a change shows without a clock: `make costs` writes this page, and fails where a figure
is worse than it was by more than a twentieth. Two data planes, each with a device as the kernel's (vnet header),
joined by UDP on loopback, AES-256-GCM; `out` seals, `in` opens. Instructions are callgrind's and in user space; it
has neither VAES nor AVX-512, so that the cipher takes another path there than in the field. System calls are
strace's, of the plane's own thread.

| work | end | instructions a packet outside the cipher | in it | system calls a packet | which |
|---|---|---|---|---|---|
{}
"""

if __name__ == "__main__":
    sys.exit(main())
