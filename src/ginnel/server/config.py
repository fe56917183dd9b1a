"""What a server is like, as values."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, Literal, Self

from ginnel.errors import ConfigError
from ginnel.openvpn.data_format import MssFix
from ginnel.openvpn.server import ClientLogin
from ginnel.openvpn.wrap import Wrap
from ginnel.server import values
from ginnel.server.pool import Pool

if TYPE_CHECKING:
    from ginnel.server.clients import Client

Authenticate = Callable[[ClientLogin], Awaitable[bool | None]]
"""Looks at a login; raises AuthError to refuse it, with the reason that the client is told, or returns False."""
Connected = Callable[["Client"], Awaitable[Sequence[str] | None]]
"""A client is about to be let in: gives further options to push, or raises AuthError."""
Disconnected = Callable[["Client", str], Awaitable[None]]
"""A client is gone, and why."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where clients are awaited. An IPv6 socket takes IPv6 alone."""

    proto: Literal["udp", "tcp"]
    address: str
    port: int

    @classmethod
    def parse(cls, text: str) -> tuple[Self, ...]:
        """Reads ``[udp:|tcp:]ADDR:PORT``, an IPv6 address in brackets; without a protocol both. Raises ConfigError."""
        match = re.fullmatch(r"(?:(udp|tcp):)?(\[[^\]]*\]|[^:\[\]]+):([0-9]{1,5})", text)
        if match is None or int(match[3]) > 65535:
            raise ConfigError(f"'{text}' is no place to listen", option="listen", instead="write ADDR:PORT")
        try:
            address = str(ipaddress.ip_address(match[2].strip("[]")))
        except ValueError:
            instead = "write ADDR:PORT, with 0.0.0.0 or [::] for every address"
            raise ConfigError(f"'{match[2]}' is no address to listen on", option="listen", instead=instead) from None
        only: Literal["udp", "tcp"] | None = "udp" if match[1] == "udp" else "tcp" if match[1] == "tcp" else None
        port = int(match[3])
        return (cls(only, address, port),) if only else (cls("udp", address, port), cls("tcp", address, port))

    def __str__(self) -> str:
        shown = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.proto} {shown}:{self.port}"


@dataclass(frozen=True, slots=True)
class Publish:
    """A port of this machine that leads to a client's."""

    port: int
    user: str
    target: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``PORT:USER:PORT``. Raises ConfigError."""
        match = re.fullmatch(r"([0-9]{1,5}):([^:]+):([0-9]{1,5})", text)
        if match is None or not (1 <= int(match[1]) <= 65535 and 1 <= int(match[3]) <= 65535):
            raise ConfigError(f"'{text}' publishes nothing", option="publish", instead="write PORT:USER:PORT")
        return cls(int(match[1]), match[2], int(match[3]))

    def __str__(self) -> str:
        return f"{self.port}:{self.user}:{self.target}"


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Times are in seconds. What is given is converted as `server.toml` is: networks and addresses may be texts, lists
    may be lists, False is None. Raises ConfigError.

    - ``listen``: () is port 1194, UDP and TCP, on every address. ``public``: what client files name.
    - ``network``, ``network6``: the inner addresses, of which the first is the server's.
    - ``routes``: pushed; ``redirect_gateway``: flags, None for not at all; ``dns``: pushed name
      servers, None for the server's own, which asks this machine's, where all traffic is redirected.
    - ``wrap``: None for tls-crypt-v2 with the store's key.
    - ``client_certificate``: whether one is needed; without it the user name says who it is, and a password is.
    - ``token_lifetime``: with a password, seconds for which a token stands in for it (``auth-gen-token``),
      0 for ever, None for no token: then the client needs the password at each renegotiation.
    - ``duplicate_cn``: several sessions of one user. Without it a login ends the user's older session, but is
      refused while that is alive elsewhere, unless ``takeover`` is set.
    - ``client_to_client``: clients reach each other, and the networks behind each other.
    - ``authenticate``, ``auth_program`` (as ``auth-user-pass-verify PROGRAM via-file``) stand beside the store's
      own check, and all must accept.
    - ``push``: further options, as in a configuration file.
    """

    listen: tuple[Listen, ...] = ()
    public: str | None = None
    network: IPv4Network = field(default=IPv4Network("10.8.0.0/24"))
    network6: IPv6Network | None = field(default=IPv6Network("fd67:696e:6e65:6c::/64"))
    topology: Literal["subnet", "net30"] = "subnet"
    routes: tuple[IPv4Network | IPv6Network, ...] = ()
    redirect_gateway: tuple[str, ...] | None = ("def1",)
    dns: tuple[IPv4Address | IPv6Address, ...] | None = None
    push: tuple[str, ...] = ()
    allow: tuple[IPv4Network | IPv6Network, ...] = ()
    publish: tuple[Publish, ...] = ()
    wrap: Wrap | None = None
    data_ciphers: tuple[str, ...] = ("AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305")
    auth: str = "SHA1"
    tun_mtu: int = 1500
    mssfix: MssFix = field(default=MssFix(1492, "mtu"))
    keepalive: tuple[int, int] = (10, 60)
    reneg_sec: float = 3600.0
    hand_window: float = 60.0
    client_certificate: bool = True
    token_lifetime: int | None = 24 * 3600
    duplicate_cn: bool = False
    takeover: bool = False
    client_to_client: bool = False
    max_clients: int = 1024
    connect_freq: tuple[int, float] | None = None
    connect_freq_initial: tuple[int, float] = (100, 10.0)
    auth_program: tuple[str, ...] = ()
    authenticate: Authenticate | None = field(default=None, repr=False)
    connected: Connected | None = field(default=None, repr=False)
    disconnected: Disconnected | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, convert in CONVERTERS.items():
            try:
                object.__setattr__(self, name, convert(getattr(self, name)))
            except (ValueError, ConfigError) as error:
                raise ConfigError(f"{name} {error}", option=name) from None
        Pool(self.network, self.network6, self.topology)


CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "listen": values.listed(Listen, Listen.parse, "127.0.0.1:1194"),
    "public": values.public,
    "network": values.network,
    "network6": values.network6,
    "topology": values.topology,
    "routes": values.networks,
    "redirect_gateway": values.flags,
    "dns": values.optional(values.addresses),
    "push": values.options,
    "allow": values.networks,
    "publish": values.listed(Publish, lambda text: [Publish.parse(text)], "8080:alice:80"),
    "data_ciphers": values.ciphers,
    "auth": values.digest,
    "tun_mtu": values.mtu,
    "keepalive": values.keepalive,
    "reneg_sec": values.seconds,
    "hand_window": values.window,
    "client_certificate": values.boolean,
    "token_lifetime": values.lifetime,
    "duplicate_cn": values.boolean,
    "takeover": values.boolean,
    "client_to_client": values.boolean,
    "max_clients": values.count,
    "connect_freq": values.optional(values.frequency),
    "connect_freq_initial": values.frequency,
    "auth_program": values.program,
    "wrap": values.wrap,
    "authenticate": values.hook,
    "connected": values.hook,
    "disconnected": values.hook,
}
DEFAULT_PORT = 1194
