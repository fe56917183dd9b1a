"""``ginnel status``: who is connected to a running server."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ginnel.server.control import ask
from ginnel.server.directory import state_directory
from ginnel.server.status import table


@click.command(name="status")
@click.option("--dir", "directory", metavar="DIR", type=click.Path(path_type=Path), help="The server's state.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with all counters.")
def command(directory: Path | None, as_json: bool) -> int:
    """Show the clients of the server that runs on this machine."""
    description = ask(state_directory(directory), {"command": "status"})
    click.echo(json.dumps(description) if as_json else table(description), nl=as_json)
    return 0
