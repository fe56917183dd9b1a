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
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from ginnel.errors import ConfigError
from ginnel.server import values
from ginnel.server.clients import Client
from ginnel.server.config import CONVERTERS, ServerConfig
from ginnel.server.directory import SCRATCH
from ginnel.server.program import run_connected, run_disconnected


def read_server_file(path: Path, config: ServerConfig) -> ServerConfig:
    """The configuration with what the file says, or as it is where there is none. Raises ConfigError with its line."""
    try:
        # Some editors begin a file with a mark of its encoding.
        text = path.read_text(encoding="utf-8-sig")
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
    try:
        config = replace(config, **fields)
    except ConfigError as error:
        line = None if error.option is None else _line(text, None, error.option)
        raise ConfigError(error.message, file=str(path), line=line, instead=error.instead) from None
    if connected or pushed:
        config = replace(
            config, connected=PushedToUsers(connected, pushed, path.parent.absolute() / SCRATCH, config.hand_window)
        )
    if disconnected:
        config = replace(config, disconnected=partial(run_disconnected, disconnected))
    return config


class PushedToUsers:
    """What a user is pushed by the file, and what the program adds."""

    def __init__(
        self, command: Sequence[str], pushed: dict[str, dict[str, Any]], scratch: Path, timeout: float
    ) -> None:
        self._scratch = scratch
        self._command = command
        self._pushed = pushed
        self._timeout = timeout

    @property
    def users(self) -> list[str]:
        """Whom the file names."""
        return list(self._pushed)

    async def __call__(self, client: Client) -> list[str]:
        own = self._pushed.get(client.name, {})
        options = [*map(_route, own.get("routes", ())), *own.get("push", ())]
        if self._command:
            options += await run_connected(self._command, client, scratch=self._scratch, timeout=self._timeout)
        return options


Fail = Callable[[str, str, str | None], ConfigError]
"""From a key, what is wrong, and what to write instead."""


def _parsed(table: dict[str, Any], fields: dict[str, Callable[[Any], Any]], fail: Fail) -> dict[str, Any]:
    found = {}
    for key, value in table.items():
        if key in ON_THE_COMMAND_LINE:
            raise fail(key, "is no key of this file", f"give --{key} to ginnel serve")
        if key not in fields:
            more = " or [user.NAME]" if fields is FIELDS else ""
            raise fail(key, "is not known", f"write one of {', '.join(sorted(fields))}{more}")
        try:
            found[key] = fields[key](value)
        except (ValueError, ConfigError) as error:
            raise fail(key, str(error), None) from None
    return found


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
            if table is None and current.partition(".")[0] == key:
                return number
        elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return number
    return None


def _route(network: IPv4Network | IPv6Network) -> str:
    if isinstance(network, IPv6Network):
        return f"route-ipv6 {network}"
    return f"route {network.network_address} {network.netmask}"


NAMES = (
    *("network", "network6", "topology", "routes", "redirect_gateway", "dns", "push"),
    *("client_to_client", "duplicate_cn", "takeover", "max_clients", "connect_freq", "connect_freq_initial"),
    *("keepalive", "reneg_sec", "hand_window", "token_lifetime", "tun_mtu", "auth_program"),
)
FIELDS = {**{name: CONVERTERS[name] for name in NAMES}, "connected": values.program, "disconnected": values.program}
USER_FIELDS: dict[str, Callable[[Any], Any]] = {"routes": values.networks, "push": values.options}
ON_THE_COMMAND_LINE = ("listen", "public", "allow", "publish")
SERVER_FILE = "server.toml"
