"""``ginnel ping``: echo requests through a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click

from ginnel.cli import target
from ginnel.cli.target import Side, open_target, reporting_asked
from ginnel.cli.values import Seconds
from ginnel.device import named
from ginnel.device.echo import Asked, EchoProbe, Pace, ask
from ginnel.errors import ConfigError


@click.command(name="ping")
@click.argument("address")
@target.device_option
@target.tap_option
@target.end_option
@click.option("-c", "--count", type=click.IntRange(min=1), help="Rounds; without it until SIGINT or SIGTERM.")
@click.option("-i", "--interval", type=Seconds(min=0), default=1.0, show_default=True, help="Seconds.")
@click.option("-W", "--timeout", type=Seconds(min=0.001), default=1.0, show_default=True, help="Seconds.")
@click.option("-s", "--size", type=click.IntRange(0, 65_000), default=56, show_default=True, help="Bytes of payload.")
@click.option("-S", "--source", metavar="ADDR", help="Who asks, where requests are forged; the next address without.")
@click.option("--sources", type=click.IntRange(1, 1000), default=1, help="As many ask at once, from --source on.")
@target.capture_option
@target.json_option
def command(
    address: str,
    name: str | None,
    tap: bool,
    side: Side | None,
    count: int | None,
    interval: float,
    timeout: float,
    size: int,
    source: str | None,
    sources: int,
    capture: Path | None,
    as_json: bool,
) -> int:
    """Send echo requests to ADDRESS through the device NAME.

    A device in user space sends them by its own stack, and who is at its application end answers. Where ADDRESS is
    the device's own, and on the kernel's devices, they are forged at the application end, and the stack answers.
    --end says which. The status is 1 if nothing was received.
    """
    address = str(target.parse_address(address))
    if side is None:
        is_foreign = name is not None and target.is_named(name) and _is_foreign(address, name)
        side = "interface" if is_foreign else "application"
    pace = Pace(count, interval, timeout)
    on_reply = target.reply_printer(address, as_json)
    if side == "interface":
        target.refuse_capture(capture)
        if source is not None or sources > 1:
            raise ConfigError("--source and --sources are for forged requests", instead="add --end application")
        if name is None or not target.is_named(name):
            raise ConfigError(
                "the interface end is the kernel's", instead="use the system's ping, or --end application"
            )
        seen = Asked(["the device"])
        with reporting_asked(seen, as_json):
            _ping_by_stack(name, address, pace, seen, on_reply)
    else:
        if name is not None and target.is_named(name):
            target.check_size(name, address, size)
        probe = EchoProbe(target.choose_sources(address, source, sources), address, size)
        seen = Asked(probe.sources)
        with open_target(name, tap, capture) as opened, reporting_asked(seen, as_json):
            ask(opened.packets, probe, pace, seen, on_reply)
    return 0 if sum(seen.received) else 1


def _is_foreign(address: str, name: str) -> bool:
    return target.parse_address(address) not in target.own_addresses(name)


def _ping_by_stack(
    name: str, address: str, pace: Pace, seen: Asked, on_reply: Callable[[str, int, float], None]
) -> None:
    following = time.monotonic()
    while pace.count is None or seen.sent[0] < pace.count:
        time.sleep(max(following - time.monotonic(), 0))
        following = max(following + pace.interval, time.monotonic())
        seen.sent[0] += 1
        seconds = named.ping(name, address, pace.timeout)
        if seconds is not None:
            seen.received[0] += 1
            seen.latencies.append(seconds)
            on_reply(name, seen.sent[0], seconds)
