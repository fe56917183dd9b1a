"""What the statements of an ``.ovpn`` file come to while it is read, and values that many of them have."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ginnel.errors import ConfigError
from ginnel.openvpn.config import HttpProxy, Remote, SocksProxy
from ginnel.openvpn.ovpn_lexer import Statement
from ginnel.openvpn.ovpn_pem import Source
from ginnel.openvpn.tls_crypt_v2 import ClientKey
from ginnel.openvpn.words import escape
from ginnel.openvpn.wrap import StaticKey


@dataclass(frozen=True)
class Target:
    """A remote as the file has it: port and protocol may be left to the file's own."""

    line: int
    host: str
    port: int | None = None
    proto: str | None = None


@dataclass
class Entry:
    """How to connect, as far as a <connection> may have its own way. ``bind`` is what the file says of it:
    True for ``bind``, False for ``nobind``."""

    port: int = 1194
    proto: str = "udp"
    bind: bool | None = None
    local: str | None = None
    lport: int | None = None
    http_proxy: HttpProxy | None = None
    http_login: tuple[str, str] | None = None
    agent: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    socks_proxy: SocksProxy | None = None


@dataclass
class Draft:
    """What the statements so far come to. ``values`` are arguments of `ClientConfig`.

    ``entry`` is what may be said in a <connection> too, and isn't simply a value. ``connections`` are the
    finished <connection> blocks. ``source`` reads the block or file of a statement, ``binary`` what is no
    text, ``revoked`` a folder's path and the serial numbers that its files are named by; ``warn`` remembers a warning
    for the current one.
    """

    source: Callable[[Statement], Source]
    binary: Callable[[Statement], bytes]
    revoked: Callable[[Statement], tuple[str, frozenset[int]]]
    warn: Callable[[str], None]
    values: dict[str, Any] = field(default_factory=dict)
    entry: Entry = field(default_factory=Entry)
    targets: list[Target] = field(default_factory=list)
    connections: list[Remote] = field(default_factory=list)
    pull: bool = False
    tls_client: bool = False
    dev: str | None = None
    dev_type: str | None = None
    static_keys: dict[str, StaticKey] = field(default_factory=dict)
    client_key: ClientKey | None = None
    direction: int | None = None
    local: list[str] = field(default_factory=list)
    setenv: dict[str, str] = field(default_factory=dict)
    forgiven: set[str] = field(default_factory=set)
    forgive_all: bool = False

    def append(self, name: str, *items: object) -> None:
        self.values[name] = (*self.values.get(name, ()), *items)


Taker = Callable[[Draft, Statement], None]


def number(text: str, least: int, most: int, what: str = "a number") -> int:
    if not re.fullmatch(r"\+?[0-9]{1,10}", text) or not least <= int(text) <= most:
        limits = f"of at least {least}" if most == MAX_INT else f"from {least} to {most}"
        raise ConfigError(f"{escape(text)!r} is not {what} {limits}")
    return int(text)


def one_of(word: str, *choices: str) -> str:
    if word not in choices:
        raise ConfigError(f"{escape(word)!r} is not one of: {', '.join(choices)}")
    return word


MAX_INT = 0x7FFFFFFF
