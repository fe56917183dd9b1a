"""``ginnel echo``: datagrams that come back, through a network stack or forged."""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
from collections.abc import Iterator
from pathlib import Path

import click

from ginnel.cli import target
from ginnel.cli.target import Side, open_target, reporting_answered, reporting_asked
from ginnel.cli.values import Seconds
from ginnel.device import named
from ginnel.device.echo import (
    Answered,
    Asked,
    DatagramProbe,
    KernelMessages,
    MessageProbe,
    Messages,
    Pace,
    Packets,
    answer_datagram,
    answer_message,
    ask,
    respond,
)
from ginnel.errors import ConfigError, DeviceError

ECHO_PORT = 7

port_option = click.option("--port", type=click.IntRange(1, 65_535), default=ECHO_PORT, show_default=True)


@click.group(name="echo")
def command() -> None:
    """UDP through a device, and back."""


@command.command(name="server")
@target.device_option
@target.tap_option
@target.end_option
@port_option
@target.capture_option
@target.json_option
def server_command(
    name: str | None, tap: bool, side: Side | None, port: int, capture: Path | None, as_json: bool
) -> int:
    """Send every datagram back to where it came from.

    By the stack on the interface end of the device NAME; with --end application, or without NAME, as a program at its
    application end that answers for every address. Runs until SIGINT, SIGTERM or SIGHUP, or until the device is
    deleted, and says then whom it has answered.
    """
    seen = Answered()
    reporting = reporting_answered(seen, "datagrams", as_json)
    if (side or ("interface" if name else "application")) == "interface":
        target.refuse_capture(capture)
        with _messages(name, port) as messages, reporting:
            respond(messages, answer_message, seen)
    else:
        with open_target(name, tap, capture) as opened, reporting:
            respond(opened.packets, functools.partial(answer_datagram, port=port), seen)
    return 0


@command.command(name="client")
@click.argument("address")
@target.device_option
@target.tap_option
@target.end_option
@port_option
@click.option("-c", "--count", type=click.IntRange(min=1), help="Rounds; without it until SIGINT or SIGTERM.")
@click.option("-i", "--interval", type=Seconds(min=0), default=1.0, show_default=True, help="Seconds.")
@click.option("-W", "--timeout", type=Seconds(min=0.001), default=1.0, show_default=True, help="Seconds.")
@click.option("-s", "--size", type=click.IntRange(12, 65_000), default=56, show_default=True, help="Bytes of payload.")
@click.option("-S", "--source", metavar="ADDR", help="Who sends, where it is forged; the next address without.")
@click.option("--sources", type=click.IntRange(1, 1000), default=1, help="As many send at once, from --source on.")
@target.capture_option
@target.json_option
def client_command(
    address: str,
    name: str | None,
    tap: bool,
    side: Side | None,
    port: int,
    count: int | None,
    interval: float,
    timeout: float,
    size: int,
    source: str | None,
    sources: int,
    capture: Path | None,
    as_json: bool,
) -> int:
    """Send datagrams to ADDRESS and count what comes back.

    They are forged at the application end of the device NAME; with --end interface the stack sends them. The status
    is 1 if nothing came back.
    """
    address = str(target.parse_address(address))
    pace = Pace(count, interval, timeout)
    on_reply = target.reply_printer(address, as_json)
    if side == "interface":
        target.refuse_capture(capture)
        if source is not None or sources > 1:
            raise ConfigError("--source and --sources are for forged datagrams", instead="add --end application")
        by_stack = MessageProbe("the device", address, port, size)
        seen = Asked(by_stack.sources)
        with _messages(name, 0, parse_version=address) as messages, reporting_asked(seen, as_json):
            ask(messages, by_stack, pace, seen, on_reply)
    else:
        if name is not None and target.is_named(name):
            target.own_addresses(name)
            target.check_size(name, address, size)
        forged = DatagramProbe(target.choose_sources(address, source, sources), address, port, size)
        seen = Asked(forged.sources)
        with open_target(name, tap, capture) as opened, reporting_asked(seen, as_json):
            ask(opened.packets, forged, pace, seen, on_reply)
    return 0 if sum(seen.received) else 1


@contextlib.contextmanager
def _messages(name: str | None, port: int, *, parse_version: str = "::") -> Iterator[Packets]:
    """A UDP port of the stack on the interface end: of a named device its own, else the kernel's."""
    if name is None:
        raise ConfigError("--end interface without --device", instead="add --device NAME")
    if target.is_named(name):
        sock, _ = named.open_datagrams(name, port)
        with sock:
            yield Messages(sock)
        return
    family = socket.AF_INET6 if ":" in parse_version else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode() + b"\0")
            sock.bind(("", port))
        except OSError as error:
            what = f"there is no device {name}" if error.errno == errno.ENODEV else f"UDP port {port} on {name}"
            raise DeviceError(error.errno or errno.EIO, what) from None
        yield KernelMessages(sock)
