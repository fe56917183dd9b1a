"""``ginnel bench``: how fast the tunnels of this machine are, beside one another."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import click

from ginnel.errors import ConfigError


@click.command(name="bench")
@click.option("--quick", is_flag=True, help="One round of two seconds a measurement: a first look.")
@click.option("--rounds", type=click.IntRange(min=1), help="Of how many the medians are taken.  [default: 5]")
@click.option("--seconds", type=click.IntRange(min=1), help="How long each transfer takes.  [default: 8]")
@click.option("--clients", type=click.IntRange(1, 250), default=50, show_default=True, help="Of the crowds.")
@click.option("--only", metavar="NAME", multiple=True, help="Of the tunnels, this; may be given again.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="All figures, to a file.")
@click.option("--chart", type=click.Path(dir_okay=False, path_type=Path), help="A chart in SVG, to a file.")
def command(
    quick: bool,
    rounds: int | None,
    seconds: int | None,
    clients: int,
    only: tuple[str, ...],
    json_file: Path | None,
    chart: Path | None,
) -> None:
    """Compare tunnels between two namespaces of this machine: ginnel's, stock OpenVPN's and wireguard-go's.

    They take turns, and medians are shown. Needs root and iperf3. Only ratios from one run count.
    """
    if os.geteuid() != 0:
        raise ConfigError("ginnel bench makes network namespaces", instead="run it as root")
    for program in ("iperf3", "ip", "nsenter", "unshare", "setpriv"):
        if not shutil.which(program):
            raise ConfigError(f"there is no {program} here", instead=f"install {program}")
    for file in filter(None, (json_file, chart)):
        _check_writable(file)
    # What it needs takes a while to import.
    from ginnel.bench import report, run
    from ginnel.bench.tunnels import available

    kinds = available(clients)
    if unknown := set(only) - kinds.keys():
        raise ConfigError(f"no tunnel {', '.join(sorted(unknown))} here", instead=f"of {', '.join(kinds)}")
    kinds = {name: what for name, what in kinds.items() if not only or name in only}
    result = run.run(
        kinds,
        rounds or (1 if quick else 5),
        seconds or (2 if quick else 8),
        clients,
        lambda line: click.echo(line, err=True),
    )
    click.echo(report.table(result))
    if json_file:
        json_file.write_text(json.dumps(result.as_json(), indent=1) + "\n")
    if chart:
        chart.write_text(report.chart(result))


def _check_writable(file: Path) -> None:
    """Before all is measured, not after."""
    try:
        file.touch()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
