"""``server.toml`` in a server's directory: what ``ginnel serve`` has no options for.

Each key is a field of `ServerConfig`, except ``connected`` and ``disconnected``, which are programs here, and the
tables ``[user.NAME]``: what this user alone is pushed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from ginnel.errors import ConfigError
from ginnel.server.clients import Client
from ginnel.server.config import ServerConfig, parse_push
from ginnel.server.directory import SCRATCH
from ginnel.server.program import run_connected, run_disconnected


def read_server_file(path: Path, config: ServerConfig) -> ServerConfig:
    """The configuration with what the file says, or as it is where there is none. Raises ConfigError with its line."""
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text)
    except FileNotFoundError:
        return config
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("not UTF-8 text", file=str(path)) from None
    except tomllib.TOMLDecodeError as error:
        at = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        message = str(error)[: at.start()] if at else str(error)
        raise ConfigError(message, file=str(path), line=int(at[1]) if at else None) from None
    users = found.pop("user", {})
    fields = _parsed(found, FIELDS, partial(_fail, path, text, None))
    connected, disconnected = fields.pop("connected", ()), fields.pop("disconnected", ())
    pushed = {
        name: _parsed(table, USER_FIELDS, partial(_fail, path, text, f"user.{name}"))
        for name, table in _tables(users, partial(_fail, path, text, None))
    }
    config = replace(config, **fields)
    if connected or pushed:
        config = replace(config, connected=_Connected(connected, pushed, path.parent / SCRATCH, config.hand_window))
    if disconnected:
        config = replace(config, disconnected=partial(run_disconnected, disconnected))
    return config


class _Connected:
    """What a user is pushed by the file, and what the program adds."""

    def __init__(
        self, command: Sequence[str], pushed: dict[str, dict[str, Any]], scratch: Path, timeout: float
    ) -> None:
        self._scratch = scratch
        self._command = command
        self._pushed = pushed
        self._timeout = timeout

    async def __call__(self, client: Client) -> list[str]:
        own = self._pushed.get(client.name, {})
        options = [*map(_route, own.get("routes", ())), *own.get("push", ())]
        if self._command:
            options += await run_connected(self._command, client, scratch=self._scratch, timeout=self._timeout)
        return options


Fail = Callable[[str, str, str | None], ConfigError]
"""From a key, what is wrong, and what to write instead."""


def _parsed(table: dict[str, Any], fields: dict[str, Callable[[Any], Any]], fail: Fail) -> dict[str, Any]:
    values = {}
    for key, value in table.items():
        if key in ON_THE_COMMAND_LINE:
            raise fail(key, "is no key of this file", f"give --{key} to ginnel serve")
        if key not in fields:
            raise fail(key, "is not known", "write one of " + ", ".join(sorted(fields)))
        try:
            values[key] = fields[key](value)
        except (ValueError, ConfigError) as error:
            raise fail(key, str(error), None) from None
    return values


def _tables(users: Any, fail: Fail) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(users, dict) or not all(isinstance(table, dict) for table in users.values()):
        raise fail("user", "is no table", "write [user.NAME] above what a user is pushed")
    return list(users.items())


def _fail(path: Path, text: str, table: str | None, key: str, what: str, instead: str | None) -> ConfigError:
    return ConfigError(f"{key} {what}", file=str(path), line=_line(text, table, key), option=key, instead=instead)


def _line(text: str, table: str | None, key: str) -> int | None:
    """Where a key is; None where it is written in a way that nobody would."""
    current: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if (head := re.match(r"\s*\[([^\[\]]+)\]", line)) is not None:
            current = re.sub(r"[\"'\s]", "", head[1])
        elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return number
    return None


# Values. Each raises ValueError with words that follow the key's name.


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is true or false")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("is a whole number from 1 on")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise ValueError("is a number of seconds")
    return float(value)


def _lifetime(value: Any) -> int | None:
    return None if value is False else int(_seconds(value))


def _frequency(value: Any) -> tuple[int, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("is a number and the seconds for it: [100, 10]")
    return _count(value[0]), _seconds(value[1])


def _keepalive(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("is two numbers of seconds: [10, 60]")
    return _count(value[0]), _count(value[1])


def _topology(value: Any) -> str:
    if value not in ("subnet", "net30"):
        raise ValueError('is "subnet" or "net30"')
    return str(value)


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("is a list of texts")
    return value


def _network(value: Any) -> IPv4Network:
    network = _networks([value])[0]
    if not isinstance(network, IPv4Network):
        raise ValueError('is an IPv4 network: "10.8.0.0/24"')
    return network


def _network6(value: Any) -> IPv6Network | None:
    if value is False:
        return None
    network = _networks([value])[0]
    if not isinstance(network, IPv6Network):
        raise ValueError('is an IPv6 network, or false: "fd00:8::/64"')
    return network


def _networks(value: Any) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(map(ip_network, _texts(value)))
    except ValueError as error:
        raise ValueError(f"is no network: {error}") from None


def _addresses(value: Any) -> tuple[Any, ...]:
    try:
        return tuple(map(ip_address, _texts(value)))
    except ValueError as error:
        raise ValueError(f"is no address: {error}") from None


def _flags(value: Any) -> tuple[str, ...] | None:
    if value is False:
        return None
    flags = tuple(_texts(value))
    _options([" ".join(("redirect-gateway", *flags))])
    return flags


def _options(value: Any) -> tuple[str, ...]:
    options = tuple(_texts(value))
    parse_push(options)
    return options


def _program(value: Any) -> tuple[str, ...]:
    command = tuple([value] if isinstance(value, str) else _texts(value))
    if not command or not command[0].startswith("/"):
        raise ValueError('is a program with its arguments: ["/path/to/it", "argument"]')
    return command


def _route(network: IPv4Network | IPv6Network) -> str:
    if isinstance(network, IPv6Network):
        return f"route-ipv6 {network}"
    return f"route {network.network_address} {network.netmask}"


FIELDS: dict[str, Callable[[Any], Any]] = {
    "network": _network,
    "network6": _network6,
    "topology": _topology,
    "routes": _networks,
    "redirect_gateway": _flags,
    "dns": _addresses,
    "push": _options,
    "client_to_client": _bool,
    "duplicate_cn": _bool,
    "takeover": _bool,
    "max_clients": _count,
    "connect_freq": _frequency,
    "connect_freq_initial": _frequency,
    "keepalive": _keepalive,
    "reneg_sec": _seconds,
    "hand_window": _seconds,
    "token_lifetime": _lifetime,
    "tun_mtu": _count,
    "auth_program": _program,
    "connected": _program,
    "disconnected": _program,
}
USER_FIELDS: dict[str, Callable[[Any], Any]] = {"routes": _networks, "push": _options}
ON_THE_COMMAND_LINE = ("listen", "public", "allow", "publish")
SERVER_FILE = "server.toml"
