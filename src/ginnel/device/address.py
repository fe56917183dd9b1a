"""What an interface is called, and the addresses and routes that it has."""

from __future__ import annotations

import errno
import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from ginnel.errors import DeviceError

Network = IPv4Network | IPv6Network

MAX_NAME = 15
"""Bytes of a name, as in the kernel (IFNAMSIZ - 1)."""
MAIN_TABLE = 254


@dataclass(frozen=True, slots=True)
class Address:
    """An interface's own address with its prefix length, and the other side's on a point-to-point link."""

    interface: IPv4Interface | IPv6Interface
    peer: IPv4Address | IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A destination that is reached through the interface, by a gateway or directly."""

    destination: Network
    gateway: IPv4Address | IPv6Address | None = None
    metric: int = 0
    table: int = MAIN_TABLE
    """The routing table it is in (``rtnetlink(7)``). The stack goes by the main one."""


def check_name(pattern: str) -> None:
    """Raises DeviceError (EINVAL) for what cannot be an interface's name, or its pattern with one ``%d``."""
    if not _NAME.fullmatch(pattern) or pattern in ("", ".", "..") or len(pattern) > MAX_NAME:
        raise DeviceError(errno.EINVAL, f"{pattern!r} is no name for a device: 1 to {MAX_NAME} letters, digits and -_.")


def parse_address(text: str) -> Address:
    """An address with its prefix length, ``10.0.0.1/24``. Raises ValueError, which says how to write one."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise ValueError(f"{text!r} is no address; write one as 10.0.0.1/24 or fd00::1/64") from None
    if interface.ip.is_multicast or interface.ip.is_unspecified or "%" in text:
        raise ValueError(f"{text} is no host's address; write one as 10.0.0.1/24 or fd00::1/64")
    return Address(interface)


_NAME = re.compile(r"[A-Za-z0-9_.\-]*(%d)?[A-Za-z0-9_.\-]*")
