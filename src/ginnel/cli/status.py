"""``ginnel status``: who is connected to a running server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import click

from ginnel.server.control import ask
from ginnel.server.directory import state_directory
from ginnel.server.status import table


@click.command(name="status")
@click.option("--dir", "directory", metavar="DIR", type=click.Path(path_type=Path), help="The server's state.")
@click.option("--once", is_flag=True, help="On a terminal, too, show it once and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with all counters.")
def command(directory: Path | None, once: bool, as_json: bool) -> int:
    """Show the clients of the server that runs on this machine.

    On a terminal it stays and is shown anew each second, until Ctrl-C or until the server ends. Columns that
    have no room there are left out; --json has everything.
    """
    folder = state_directory(directory)
    description = ask(folder, {"command": "status"})
    if as_json or once or not os.isatty(1):
        click.echo(json.dumps(description) if as_json else _table(description), nl=as_json)
    else:
        _watch(folder)
    return 0


def _table(description: dict[str, Any]) -> str:
    """As wide as the terminal, whole for a program."""
    return table(description, shutil.get_terminal_size().columns if os.isatty(1) else None)


def _watch(folder: Path) -> None:
    from rich.live import Live
    from rich.text import Text

    # A signal is how this ends as it was asked to.
    with contextlib.suppress(SystemExit), Live(auto_refresh=False, screen=False) as live:
        while True:
            shown = _table(ask(folder, {"command": "status"})).rstrip()
            live.update(Text(shown, no_wrap=True, overflow="ellipsis"), refresh=True)
            time.sleep(1)
