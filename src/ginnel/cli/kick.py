"""``ginnel kick``: ends a user's sessions."""

from __future__ import annotations

from pathlib import Path

import click

from ginnel.errors import ConfigError
from ginnel.server.control import ask
from ginnel.server.directory import state_directory


@click.command(name="kick")
@click.argument("name", metavar="NAME")
@click.option("--dir", "directory", metavar="DIR", type=click.Path(path_type=Path), help="The server's state.")
def command(name: str, directory: Path | None) -> int:
    """End the sessions of the user NAME. Who is not revoked may come back: `ginnel user revoke` keeps out."""
    kicked = ask(state_directory(directory), {"command": "kick", "name": name}).get("kicked")
    if not kicked:
        raise ConfigError(f"{name} is not connected", instead="ginnel status shows who is")
    click.echo(f"{name}: {kicked} {'session' if kicked == 1 else 'sessions'} ended")
    return 0
