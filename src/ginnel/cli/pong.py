"""``ginnel pong``: answers echo requests at a device's application end."""

from __future__ import annotations

from pathlib import Path

import click

from ginnel.cli.target import capture_option, json_option, open_target, reporting_answered, tap_option
from ginnel.device.echo import Answered, answer_echo, respond


@click.command(name="pong")
@click.argument("name", required=False)
@tap_option
@capture_option
@json_option
def command(name: str | None, tap: bool, capture: Path | None, as_json: bool) -> int:
    """Answer the echo requests that the interface of the device NAME sends, to whatever address, IPv4 and IPv6.

    NAME is a device in user space (see `ginnel device`) or the kernel's; without it a new one of /dev/net/tun.
    Runs until SIGINT, SIGTERM or SIGHUP, or until the device is deleted, and says then whom it has answered.
    """
    seen = Answered()
    with open_target(name, tap, capture) as target, reporting_answered(seen, "echo requests", as_json):
        respond(target.packets, answer_echo, seen)
    return 0
