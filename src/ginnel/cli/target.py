"""What ``pong``, ``ping`` and ``echo`` share: the device that they work on, and how they end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path
from typing import Any, Literal

import click

from ginnel._core import DescriptorEnd
from ginnel.device import named
from ginnel.device.base import DeviceEnd, Kind
from ginnel.device.capture import Capture, CapturedEnd
from ginnel.device.echo import Answered, Asked, Packets
from ginnel.device.ethernet import EthernetEnd
from ginnel.device.ioctls import IFF_UP, SIOCGIFFLAGS
from ginnel.device.kernel import FLAGS, IFF_NO_PI, NODE, attach
from ginnel.device.named import NamedEnd
from ginnel.errors import ConfigError, DeviceError

Side = Literal["application", "interface"]

device_option = click.option(
    "--device", "name", metavar="NAME", help="A named device, or the kernel's. Without it /dev/net/tun is opened."
)
tap_option = click.option("--tap", is_flag=True, help="A new device of the kernel's is a TAP device.")
end_option = click.option(
    "--end", "side", type=click.Choice(["application", "interface"]), help="Forge packets here, or use the stack there."
)
capture_option = click.option(
    "--capture", metavar="FILE.pcapng", type=click.Path(path_type=Path), help="Write all packets there."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line on stdout.")


@dataclass(frozen=True, slots=True)
class Target:
    """A device's application end, for IP packets."""

    name: str
    packets: Packets


@contextlib.contextmanager
def open_target(name: str | None, tap: bool, capture: Path | None = None) -> Iterator[Target]:
    """Opens the named device, or where there is none the kernel's, for the time of the block."""
    if name is not None and is_named(name):
        with named.open(name) as end, _packets(end, end.kind, name, capture) as packets:
            yield Target(name, packets)
        return
    kind: Kind = "tap" if tap else "tun"
    is_there = name in [known for _, known in socket.if_nameindex()]
    try:
        queue, found, kind = _attach(name or f"{kind}%d", kind, is_there)
    except DeviceError as error:
        if not is_there and error.errno in (errno.EPERM, errno.EACCES, errno.ENOENT):
            if name is None:
                line = f"a new device of {NODE} takes CAP_NET_ADMIN; `ginnel device create NAME` makes one without"
                raise DeviceError(error.errno, line) from None
            line = f"there is no device {name}, see `ginnel device list`; `ginnel device create {name}` makes one"
            raise DeviceError(errno.ENODEV, line) from None
        raise
    with queue:
        if not is_there:
            state = "up" if _is_up(found) else "down"
            print(f"{found} is a new device of {NODE}, and {state}", file=sys.stderr, flush=True)
        with _packets(queue, kind, found, capture) as packets:
            yield Target(found, packets)


def is_named(name: str) -> bool:
    """Whether there is a device of this name in user space."""
    try:
        named.show(name)
    except DeviceError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True


def own_addresses(name: str) -> list[IPv4Address | IPv6Address]:
    """Of a named device's stack. Raises DeviceError (ENETDOWN) while it is down: nothing comes through."""
    device = named.show(name)
    if device["state"] != "up":
        raise DeviceError(errno.ENETDOWN, f"{name} is down; `ginnel device set {name} up`")
    return [ip_interface(address.split()[0]).ip for address in device["addresses"]]


def choose_sources(address: str, first: str | None, count: int) -> list[str]:
    """Who asks, where packets are forged: ``first`` and those after it; None: those after the one that is asked."""
    start = parse_address(first) if first is not None else parse_address(address) + 1
    if start.version != parse_address(address).version:
        raise ConfigError(f"{first} and {address} are of two versions of IP")
    return [str(start + number) for number in range(count)]


def check_size(name: str, address: str, size: int) -> None:
    """Of a forged message to a named device. The stack answers to what is longer than the MTU in fragments, which
    are not put together here. Raises ConfigError."""
    room = named.show(name)["mtu"] - (28 if parse_address(address).version == 4 else 48)
    if size > room:
        raise ConfigError(
            f"--size {size} is more than a packet on {name} takes, and what is forged is not cut into fragments",
            option="size",
            instead=f"write {room} or less, or add --end interface",
        )


def refuse_capture(path: Path | None) -> None:
    """Of a program at the interface end, which has datagrams and no packets."""
    if path is not None:
        raise ConfigError(
            "--capture is for the application end",
            instead="capture it where it is made, or add --end application",
        )


def parse_address(text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no address", instead="write an IPv4 or IPv6 address") from None


@contextlib.contextmanager
def reporting(describe: Callable[[], dict[str, Any]], sentence: Callable[[], str], as_json: bool) -> Iterator[None]:
    """A signal ends the block, and however that ends, the last line is what the program saw."""
    try:
        with contextlib.suppress(SystemExit):
            yield
    finally:
        print(json.dumps({"event": "report", **describe()}) if as_json else sentence(), flush=True)


def reporting_asked(seen: Asked, as_json: bool) -> contextlib.AbstractContextManager[None]:
    """`reporting` of a program that asks."""
    return reporting(seen.describe, lambda: asked_sentence(seen), as_json)


def reporting_answered(seen: Answered, what: str, as_json: bool) -> contextlib.AbstractContextManager[None]:
    """`reporting` of a program that answers."""
    return reporting(seen.describe, lambda: answered_sentence(seen, what), as_json)


def answered_sentence(seen: Answered, what: str) -> str:
    """What a responder saw, for people."""
    sources = ", ".join(f"{source}: {count}" for source, count in seen.sources.most_common(10))
    refused = f", {seen.refused} answers refused by the device" if seen.refused else ""
    return f"{seen.answered} {what} answered ({sources or 'nobody asked'}), {seen.other} other packets{refused}"


def asked_sentence(seen: Asked) -> str:
    """What a prober saw, for people."""
    sent, received = sum(seen.sent), sum(seen.received)
    share = 100 * (sent - received) / sent if sent else 0
    text = f"{sent} sent, {received} received, {sent - received} lost ({share:.1f} %)"
    if seen.duplicates:
        text += f", {seen.duplicates} twice or late"
    if len(seen.sources) > 1:
        text += f", from {len(seen.sources)} sources"
    latency = seen.describe()["latency"]
    if latency:
        text += "; " + ", ".join(f"{what} {milliseconds(seconds)}" for what, seconds in latency.items())
    return text


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3f} ms"


def reply_printer(address: str, as_json: bool) -> Callable[[str, int, float], None]:
    """For `ginnel.device.echo.ask`: a line for each reply."""

    def print_reply(source: str, number: int, seconds: float) -> None:
        if as_json:
            fields = {"event": "reply", "from": address, "to": source, "sequence": number, "seconds": round(seconds, 7)}
            print(json.dumps(fields), flush=True)
        else:
            print(f"from {address} to {source}: sequence {number}, {milliseconds(seconds)}", flush=True)

    return print_reply


@contextlib.contextmanager
def _packets(end: NamedEnd | DescriptorEnd, kind: Kind, name: str, path: Path | None) -> Iterator[Packets]:
    with contextlib.ExitStack() as stack:
        seen: DeviceEnd | CapturedEnd = end
        if path is not None:
            seen = CapturedEnd(end, stack.enter_context(Capture(path, kind, name)))
        frames = EthernetEnd(seen) if kind == "tap" else None
        try:
            yield frames or seen
        finally:
            unasked = frames.dropped if frames is not None else 0
            if end.dropped + unasked:
                why = f"{end.dropped} found {name} full, {unasked} nobody answered for"
                print(f"packets dropped: {why}", file=sys.stderr, flush=True)


def _is_up(name: str) -> bool:
    """A device that `ginnel lend` lends may be, from the start."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        answer = fcntl.ioctl(asking, SIOCGIFFLAGS, struct.pack("16s24x", name.encode()))
    (flags,) = struct.unpack_from("=H", answer, 16)
    return bool(flags & IFF_UP)


def _attach(name: str, kind: Kind, is_there: bool) -> tuple[DescriptorEnd, str, Kind]:
    """A device that is there is taken of whichever kind it is."""
    try:
        return *attach(name, FLAGS[kind] | IFF_NO_PI), kind
    except DeviceError as error:
        if error.errno != errno.EINVAL or not is_there:
            raise
        kind = "tun" if kind == "tap" else "tap"
        return *attach(name, FLAGS[kind] | IFF_NO_PI), kind
