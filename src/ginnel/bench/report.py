"""A run's figures as a table, its ratios beside their goals, and a chart."""

from __future__ import annotations

from html import escape

from ginnel.bench.measure import UNITS
from ginnel.bench.run import Result


def table(result: Result) -> str:
    """Medians with the least and the most of all rounds, in Markdown."""
    names = [name for name in result.kinds if name in result.figures]
    lines = [
        f"{result.machine}; {result.date}; {result.rounds} rounds of {result.seconds:g} s; medians (least to most)"
    ]
    lines.append("")
    lines += [f"- {name}: {what}" for name, what in result.kinds.items()]
    lines += ["", f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for unit, what in UNITS.items():
        if any(result.values(name, unit) for name in names):
            lines.append(f"| {what} | {' | '.join(_cell(result.values(name, unit)) for name in names)} |")
    lines += ["", *_goals(result)]
    lines += [f"Failed: {failure}" for failure in result.failures]
    return "\n".join(lines)


def _goals(result: Result) -> list[str]:
    lines = ["| ratio | measured | goal | |", "|---|---|---|---|"]
    for what, over, under, sign, goal in GOALS:
        ratio = result.ratio(over, under)
        if ratio is None:
            continue
        met = ratio >= goal if sign == ">=" else ratio <= goal
        missed = f"missed by {abs(goal - ratio) / goal:.0%}"
        lines.append(f"| {what} | {ratio:.2f} | {sign} {goal:g} | {'met' if met else missed} |")
    memory = result.median("ginnel", "memory_mb")
    if memory is not None:
        lines.append(f"| resident memory, the larger end of ginnel's, MB | {memory:.1f} | < 80 | {_met(memory < 80)} |")
    return lines


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    ordered = sorted(values)
    middle = (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2
    spread = f" ({_number(ordered[0])} to {_number(ordered[-1])})" if len(values) > 1 else ""
    return _number(middle) + spread


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.3g}"


def chart(result: Result) -> str:
    """Bars of four figures, each beside the longest of its own."""
    parts, y = [], 20
    for unit in ("up_mbit", "small_pps", "up_cpu", "loaded_ping_p99_ms"):
        bars = [(name, middle) for name in result.kinds if (middle := result.median(name, unit)) is not None]
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{escape(UNITS[unit])}</text>')
        most = max((value for _, value in bars), default=1) or 1
        for name, value in bars:
            y += 22
            colour = "#2a6f97" if name in ("ginnel", "mixed", "mixed-server") else "#a9a9a9"
            parts.append(f'<text x="10" y="{y}">{escape(name)}</text>')
            parts.append(f'<rect x="100" y="{y - 12}" width="{400 * value / most:.0f}" height="15" fill="{colour}"/>')
            parts.append(f'<text x="{106 + 400 * value / most:.0f}" y="{y}">{_number(value)}</text>')
        y += 36
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="600" height="{y}" font-family="sans-serif" font-size="13">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])


Figure = tuple[str, str]
GOALS: list[tuple[str, Figure, Figure, str, float]] = [
    ("TCP, ginnel : stock", ("ginnel", "up_mbit"), ("stock", "up_mbit"), ">=", 6),
    ("TCP back, ginnel : stock", ("ginnel", "down_mbit"), ("stock", "down_mbit"), ">=", 6),
    ("CPU a Gbit, ginnel : stock", ("ginnel", "up_cpu"), ("stock", "up_cpu"), "<=", 0.2),
    ("TCP, ginnel as the client : stock", ("mixed", "up_mbit"), ("stock", "up_mbit"), ">=", 1.3),
    ("TCP back, ginnel as the client : stock", ("mixed", "down_mbit"), ("stock", "down_mbit"), ">=", 1.3),
    ("TCP, ginnel as the server : stock", ("mixed-server", "up_mbit"), ("stock", "up_mbit"), ">=", 1.3),
    ("TCP back, ginnel as the server : stock", ("mixed-server", "down_mbit"), ("stock", "down_mbit"), ">=", 1.3),
    # Stock's two ends do the same work, so that one of them is half.
    ("CPU a Gbit, ginnel's client : stock's two", ("mixed", "up_ours_cpu"), ("stock", "up_cpu"), "<=", 1 / 6),
    ("CPU a Gbit back, the same", ("mixed", "down_ours_cpu"), ("stock", "down_cpu"), "<=", 1 / 6),
    ("CPU a Gbit, ginnel's server : stock's two", ("mixed-server", "up_ours_cpu"), ("stock", "up_cpu"), "<=", 1 / 6),
    ("CPU a Gbit back, the same", ("mixed-server", "down_ours_cpu"), ("stock", "down_cpu"), "<=", 1 / 6),
    ("datagrams of 1,400 bytes, ginnel : stock", ("ginnel", "long_pps"), ("stock", "long_pps"), ">=", 1),
    ("small packets, ginnel : stock", ("ginnel", "small_pps"), ("stock", "small_pps"), ">=", 3),
    ("ping, ginnel : stock", ("ginnel", "ping_ms"), ("stock", "ping_ms"), "<=", 0.8),
    (
        "ping p99 under a stream, ginnel : stock",
        ("ginnel", "loaded_ping_p99_ms"),
        ("stock", "loaded_ping_p99_ms"),
        "<=",
        0.5,
    ),
    ("TCP, the same without UDP segmentation : stock", ("unsegmented", "up_mbit"), ("stock", "up_mbit"), ">=", 2),
    ("TCP back, the same", ("unsegmented", "down_mbit"), ("stock", "down_mbit"), ">=", 2),
    ("TCP, user space at both ends : stock", ("user-space", "up_mbit"), ("stock", "up_mbit"), ">=", 3),
    ("TCP back, the same", ("user-space", "down_mbit"), ("stock", "down_mbit"), ">=", 3),
    ("TCP with loss, user space : kernel", ("lossy", "up_mbit"), ("lossy-kernel", "up_mbit"), ">=", 0.8),
    ("TCP back, the same", ("lossy", "down_mbit"), ("lossy-kernel", "down_mbit"), ">=", 0.8),
    ("TCP of all clients at once, ginnel : stock", ("crowd", "crowd_mbit"), ("stock-crowd", "crowd_mbit"), ">=", 1),
    ("8 streams : 1, ginnel", ("ginnel", "up8_mbit"), ("ginnel", "up_mbit"), ">=", 0.9),
]
