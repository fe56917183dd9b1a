"""``ginnel device``: devices with a name, made here and used from any other process."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from ginnel.cli import ended, endings
from ginnel.cli.reporter import Reporter
from ginnel.cli.values import of_the_command_line
from ginnel.device import named
from ginnel.device.base import DEFAULT_MTU
from ginnel.device.service import Holder, Service, create
from ginnel.errors import ConfigError, DeviceError


class _Devices(click.Group):
    """What the system would call an invalid argument stands on the command line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DeviceError as error:
            if error.errno != errno.EINVAL:
                raise
            raise of_the_command_line(error) from error


@click.group(name="device", cls=_Devices)
def command() -> None:
    """Devices with a name, between the processes of one user, without root."""


@command.command(name="create")
@click.argument("name")
@click.option("--address", "addresses", metavar="ADDR/LEN", multiple=True, help="Of the interface. May be given again.")
@click.option("--tap", is_flag=True, help="A TAP device: Ethernet frames instead of IP packets.")
@click.option("--mtu", type=int, default=DEFAULT_MTU, show_default=True)
@click.option("--up/--down", default=None, help="How it begins. Without either: up if it has an address.")
@click.option("--capture", metavar="FILE.pcapng", type=click.Path(path_type=Path), help="Write all packets there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line on stdout for each event.")
@click.pass_context
def create_command(
    ctx: click.Context,
    name: str,
    addresses: tuple[str, ...],
    tap: bool,
    mtu: int,
    up: bool | None,
    capture: Path | None,
    as_json: bool,
) -> int:
    """Make the device NAME, with a network stack in user space on its interface end.

    Programs open its other end by the name. A %d in NAME stands for the next free number. Runs until SIGINT,
    SIGTERM or SIGHUP, or until somebody deletes the device.
    """
    reporter = Reporter(as_json, verbose=bool(ctx.obj), live=True)
    logging.basicConfig(level=logging.DEBUG if ctx.obj else logging.WARNING, handlers=[reporter])
    making = create(name, kind="tap" if tap else "tun", addresses=addresses, mtu=mtu, up=up, capture=capture)

    async def run() -> None:
        stop = asyncio.Event()
        for number in endings():
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with making as service:
            _report(service, reporter)
            await _keep(service, stop)
        reporter.event("deleted", name=service.name)

    reporter.start()
    try:
        asyncio.run(run())
    finally:
        ended()
        reporter.flush_all()
    return 0


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def list_command(as_json: bool) -> None:
    """List the devices that are there, and who holds them."""
    devices = named.list_devices()
    if as_json:
        for device in devices:
            print(json.dumps(device))
        return
    for device in devices:
        if device["state"] == named.SILENT:
            print(f"{device['name']}  {device['state']}")
            continue
        addresses = " ".join(device["addresses"]) or "no address"
        print(f"{device['name']}  {device['kind']}  {device['state']}  {addresses}  {_holders(device)}")


@command.command(name="show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show_command(name: str, as_json: bool) -> None:
    """Show a device: state, addresses, routes, queues, counters, and who holds which end."""
    device = named.show(name)
    if as_json:
        print(json.dumps(device))
        return
    print(f"{device['name']}: {device['kind']}, {device['state']}, MTU {device['mtu']}, queue {device['queue_length']}")
    rows = [("mac", device["mac"])] if device["mac"] else []
    rows += [("address", address) for address in device["addresses"]]
    rows += _more("address", device["address_count"] - len(device["addresses"]))
    rows += [("route", route) for route in device["routes"]]
    rows += _more("route", device["route_count"] - len(device["routes"]))
    rows.append(("application", _holders(device)))
    rows.append(("interface", "ginnel's stack in {program} (pid {pid})".format(**device["interface"])))
    rows += [(way, _counters(device["statistics"], way)) for way in ("rx", "tx")]
    lost = {what: count for what, count in device["stack"].items() if what.startswith("dropped_") and count}
    if lost:
        rows.append(("stack", " ".join(f"{what} {count}" for what, count in lost.items())))
    for what, value in rows:
        print(f"  {what:<12} {value}")


@command.command(name="set")
@click.argument("name")
@click.argument("what", nargs=-1, required=True, metavar="up|down|mtu N|[no-]address ADDR/LEN ...")
def set_command(name: str, what: tuple[str, ...]) -> None:
    """Set a device up or down, or its MTU, or give it an address, or take one away. Several words are taken in turn."""
    words = list(what)
    while words:
        match words[:2]:
            case ["up" | "down" as state, *_]:
                named.set_up(name, state == "up")
                del words[0]
            case ["address", address]:
                named.add_address(name, address)
                del words[:2]
            case ["no-address", address]:
                named.remove_address(name, address)
                del words[:2]
            case ["mtu"] | ["address"] | ["no-address"]:
                raise ConfigError(f"{words[0]} is followed by nothing", instead="write mtu N, or address ADDR/LEN")
            case ["mtu", number] if number.isascii() and number.isdigit():
                named.set_mtu(name, int(number))
                del words[:2]
            case _:
                raise ConfigError(
                    f"cannot set {' '.join(words)!r}",
                    instead="write up, down, mtu N, address ADDR/LEN or no-address ADDR/LEN",
                )


@command.command(name="delete")
@click.argument("name")
def delete_command(name: str) -> None:
    """Delete a device: its owner ends, and whoever holds the application end sees that end."""
    named.delete(name)


async def _keep(service: Service, stop: asyncio.Event) -> None:
    from ginnel.cli.live import device_line  # rich takes long to import

    waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(service.wait_deleted())]
    shown = asyncio.ensure_future(device_line(service)) if sys.stderr.isatty() else None
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        others = [*waits, shown] if shown else waits
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def _report(service: Service, reporter: Reporter) -> None:
    device = service.describe()
    reporter.event("created", **device)
    addresses = " and ".join(device["addresses"]) or "no address"
    reporter.say(f"{service.name}: {device['kind']}, {device['state']}, {addresses}")


def _more(what: str, count: int) -> list[tuple[str, str]]:
    return [(what, f"and {count} more")] if count > 0 else []


def _holders(device: dict[str, Any]) -> str:
    holders = [str(Holder(holder["pid"] or 0, holder["program"])) for holder in device["application"]]
    return f"held by {', '.join(holders)}" if holders else "free"


def _counters(statistics: dict[str, int], way: str) -> str:
    return ", ".join(f"{statistics[f'{way}_{what}']} {what}" for what in ("packets", "bytes", "dropped", "errors"))
