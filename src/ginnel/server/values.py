"""The values of a server's configuration, as a program gives them or `server.toml` has them.

Each function takes one, converts it and checks it. What is wrong raises ValueError with words that follow the key's
name, or ConfigError.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from ginnel.errors import ConfigError
from ginnel.openvpn.data_format import DATA_CIPHERS, MAC_SIZES
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.tls_crypt_v2 import TlsCryptV2Server
from ginnel.openvpn.wrap import NoWrap, TlsAuth, TlsCrypt

Network = IPv4Network | IPv6Network


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is true or false")
    return value


def count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
        raise ValueError(f"is a whole number from 1 to {MAX_COUNT}")
    return value


def seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise ValueError("is a number of seconds")
    return float(value)


def window(value: Any) -> float:
    if not seconds(value):
        raise ValueError("is a number of seconds above 0")
    return float(value)


def lifetime(value: Any) -> int | None:
    return None if value is False or value is None else int(seconds(value))


def frequency(value: Any) -> tuple[int, float]:
    first, second = _pair(value, "is a number and the seconds for it: [100, 10]")
    return count(first), seconds(second)


def keepalive(value: Any) -> tuple[int, int]:
    ping, restart = map(count, _pair(value, "is two numbers of seconds: [10, 60]"))
    if restart < 2 * ping:
        raise ValueError("needs a second number that is at least twice the first: [10, 60]")
    return ping, restart


def mtu(value: Any) -> int:
    if not MIN_MTU <= count(value) <= MAX_MTU:
        raise ValueError(f"is a number of bytes from {MIN_MTU} to {MAX_MTU}")
    return int(value)


def topology(value: Any) -> str:
    if value not in ("subnet", "net30"):
        raise ValueError('is "subnet" or "net30"')
    return str(value)


def texts(value: Any) -> tuple[str, ...]:
    return _all(str, value, "texts")


def network(value: Any) -> IPv4Network:
    found = _network(value, 'is an IPv4 network: "10.8.0.0/24"')
    if not isinstance(found, IPv4Network):
        raise ValueError('is an IPv4 network: "10.8.0.0/24"')
    _check_hosts(found)
    return found


def network6(value: Any) -> IPv6Network | None:
    if value is False or value is None:
        return None
    found = _network(value, 'is an IPv6 network, or false: "fd00:8::/64"')
    if not isinstance(found, IPv6Network):
        raise ValueError('is an IPv6 network, or false: "fd00:8::/64"')
    _check_hosts(found)
    return found


def networks(value: Any) -> tuple[Network, ...]:
    wanted = 'is a list of networks: ["192.0.2.0/24"]'
    return tuple(_network(each, wanted) for each in _list(value, wanted))


def addresses(value: Any) -> tuple[IPv4Address | IPv6Address, ...]:
    wanted = 'is a list of addresses: ["192.0.2.1"]'
    found = []
    for each in _list(value, wanted):
        if not isinstance(each, (str, IPv4Address, IPv6Address)):
            raise ValueError(wanted)
        try:
            found.append(ip_address(each))
        except ValueError as error:
            raise ValueError(f"is no address: {error}") from None
    return tuple(found)


def flags(value: Any) -> tuple[str, ...] | None:
    if value is False or value is None:
        return None
    if value is True:
        return ("def1",)
    found = _all(str, value, 'texts, or false: ["def1"]')
    options([" ".join(("redirect-gateway", *found))])
    return found


def options(value: Any) -> tuple[str, ...]:
    found = texts(value)
    parse_push(found)
    return found


def program(value: Any) -> tuple[str, ...]:
    """Nothing for none."""
    command = (value,) if isinstance(value, str) else texts(value)
    if not command:
        return ()
    if not command[0].startswith("/"):
        raise ValueError('is a program with its arguments: ["/path/to/it", "argument"]')
    if not Path(command[0]).is_file():
        raise ValueError(f"names {command[0]}, where no program is")
    if not os.access(command[0], os.X_OK):
        raise ValueError(f"names {command[0]}, which can't be run; chmod +x it")
    return command


def public(value: Any) -> str | None:
    """``HOST[:PORT]``."""
    from ginnel.server.client_file import split_host

    try:
        if value is not None:
            split_host(value)
    except (ConfigError, TypeError):
        raise ValueError("is a host, or HOST:PORT") from None
    return None if value is None else str(value)


def ciphers(value: Any) -> tuple[str, ...]:
    found = texts(value)
    known = ", ".join(cipher for cipher in DATA_CIPHERS if cipher != "none")
    if not found or not set(found) <= set(DATA_CIPHERS):
        raise ValueError(f"is a list of some of {known}")
    return found


def digest(value: Any) -> str:
    if value not in MAC_SIZES:
        raise ValueError(f"is one of {', '.join(MAC_SIZES)}")
    return str(value)


def hook(value: Any) -> Any:
    # Of an object that is called nobody can tell what it returns.
    waits = not inspect.isfunction(value) or inspect.iscoroutinefunction(value)
    if value is not None and not (callable(value) and waits):
        raise ValueError("is an asynchronous function, or None")
    return value


def wrap(value: Any) -> Any:
    if value is not None and not isinstance(value, NoWrap | TlsAuth | TlsCrypt | TlsCryptV2Server):
        raise ValueError("is a NoWrap, TlsAuth, TlsCrypt or TlsCryptV2Server, or None")
    return value


def parse_push(pushed: Sequence[str]) -> PushReply:
    """What a server pushes. Raises ConfigError for an option that a client would ignore."""
    reply = PushReply.parse(pushed)
    for option, reason in reply.ignored:
        raise ConfigError(f"'{option}' can't be pushed: {reason}", option="push")
    return reply


def optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same, and None."""
    return lambda value: None if value is None else parse(value)


def listed(kind: type, parse: Callable[[str], Sequence[Any]], example: str) -> Callable[[Any], tuple[Any, ...]]:
    """A list of values of a type, each of which may be a text."""

    def convert(value: Any) -> tuple[Any, ...]:
        found: list[Any] = []
        for each in _list(value, f'is a list: ["{example}"]'):
            if isinstance(each, str):
                found += parse(each)
            elif isinstance(each, kind):
                found.append(each)
            else:
                raise ValueError(f'is a list: ["{example}"]')
        return tuple(found)

    return convert


def _network(value: Any, wanted: str) -> Network:
    # A number would be an address, too.
    if not isinstance(value, (str, IPv4Network, IPv6Network)):
        raise ValueError(wanted)
    try:
        return ip_network(value)
    except ValueError as error:
        raise ValueError(f"is no network: {error}") from None


def _check_hosts(network: Network) -> None:
    for special in NO_HOSTS:
        if special.version == network.version and network.overlaps(special):
            raise ValueError(f"has addresses that no client can have, those in {special}: {network}")


def _list(value: Any, wanted: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(wanted)
    return value


def _all(kind: type, value: Any, what: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, kind) for each in value):
        raise ValueError(f"is a list of {what}")
    return tuple(value)


def _pair(value: Any, wanted: str) -> tuple[Any, Any]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(wanted)
    return value[0], value[1]


# What the stack takes for nobody's own address (``is_host`` in `netstack/address.rs`), and what is good on one link.
NO_HOSTS: tuple[Network, ...] = (
    *map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")),
    *map(IPv6Network, ("::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8")),
)
# What clients take.
MIN_MTU, MAX_MTU = 100, 65_535
MAX_COUNT = 2**31 - 1
