"""What a server pushes: options between commas, quoted as in a configuration file, in messages of at
most 1024 bytes (OpenVPN ``push.c``, ``options.c``), and what it changes later by PUSH_UPDATE.

`PushCollector` joins the messages and filters the options, `PushReply` is what they come to.
An option that is unknown or wrong is refused singly, with a reason, and the others count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Literal

from ginnel.errors import RemoteProtocolError
from ginnel.openvpn.push_emit import emit_messages, emit_options
from ginnel.openvpn.push_options import parse_options, show
from ginnel.openvpn.push_values import (
    PLAIN_DNS,
    DnsServer,
    Ifconfig,
    IfconfigIpv6,
    Inactive,
    NameServers,
    Route,
    RouteIpv6,
    Topology,
)
from ginnel.openvpn.words import escape


@dataclass(frozen=True)
class PushReply:
    """A server's options. Numbers are as pushed, seconds where they are times; None: not pushed.

    ``dhcp_dns`` are the servers from ``dhcp-option``, ``dns_profiles`` those from ``dns server``;
    ``dhcp_options`` are those of other kinds, with their values. ``redirect_gateway`` and
    ``redirect_private`` hold the flags. ``compression`` is the framing asked for, as pushed.
    ``setenv_safe`` and ``echo`` are a server's words to programs. ``ignored`` has each option that
    has no effect, escaped, with the reason; ``wrong`` is the first of them without which data can't pass.
    """

    ifconfig: Ifconfig | None = None
    ifconfig_ipv6: IfconfigIpv6 | None = None
    topology: Topology | None = None
    route_gateway: IPv4Address | Literal["dhcp"] | None = None
    route_metric: int | None = None
    routes: tuple[Route, ...] = ()
    routes_ipv6: tuple[RouteIpv6, ...] = ()
    redirect_gateway: tuple[str, ...] | None = None
    redirect_private: tuple[str, ...] | None = None
    block_ipv6: bool = False
    block_outside_dns: bool = False
    register_dns: bool = False
    dhcp_dns: tuple[IPv4Address | IPv6Address, ...] = ()
    dhcp_options: tuple[tuple[str, ...], ...] = ()
    dns_profiles: tuple[DnsServer, ...] = ()
    search_domains: tuple[str, ...] = ()
    tun_mtu: int | None = None
    ping: int | None = None
    ping_restart: int | None = None
    ping_exit: int | None = None
    inactive: Inactive | None = None
    session_timeout: int | None = None
    explicit_exit_notify: int | None = None
    sndbuf: int | None = None
    rcvbuf: int | None = None
    peer_id: int | None = None
    cipher: str | None = None
    protocol_flags: tuple[str, ...] = ()
    key_derivation: Literal["tls-ekm"] | None = None
    compression: str | None = None
    auth_token: str | None = field(default=None, repr=False)
    auth_token_user: str | None = None
    setenv_safe: tuple[tuple[str, str], ...] = ()
    echo: tuple[str, ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    wrong: tuple[str, str] | None = None

    @classmethod
    def parse(cls, options: Iterable[str], *, topology: Topology | None = None, tap: bool = False) -> PushReply:
        """Takes options without their commas. Later ones replace earlier ones or add to them.

        ``topology`` is ours, where they name none; a TAP device has a subnet whatever they name.
        """
        return cls(**parse_options(options, topology, tap))

    @property
    def exported_keys(self) -> bool:
        """Data keys come from TLS's exporter."""
        return self.key_derivation == "tls-ekm" or "tls-ekm" in self.protocol_flags

    @property
    def address(self) -> IPv4Interface | None:
        """Our IPv4 address with the prefix of what is on the link; /32 in a point-to-point topology."""
        if self.ifconfig is None:
            return None
        on_link = self.topology == "subnet"
        return IPv4Interface(f"{self.ifconfig.local}/{self.ifconfig.remote if on_link else 32}")

    @property
    def address6(self) -> IPv6Interface | None:
        own = self.ifconfig_ipv6
        return None if own is None else IPv6Interface((own.local, own.bits))

    @property
    def name_servers(self) -> tuple[NameServers, ...]:
        """Who is to be asked for which names: each ``dns server`` that is for domains of its own, then those that are
        for all names, in whose place may be those of ``dhcp-option``. The first that can be asked counts."""
        found = sorted((profile.name_servers for profile in self.dns_profiles), key=lambda group: not group.domains)
        if self.dhcp_dns and all(group.domains for group in found):
            found.append(NameServers(tuple((address, PLAIN_DNS) for address in self.dhcp_dns)))
        return tuple(found)

    def options(self) -> list[str]:
        """The options again, without the ignored ones. Raises ConfigError for a comma in a value."""
        return list(emit_options(self))

    def emit(self) -> list[str]:
        """The messages to send. Raises ConfigError for a value that can't be pushed."""
        return emit_messages(self.options())


@dataclass(frozen=True)
class PullFilter:
    """``pull-filter ACTION PREFIX``; the first that an option starts with decides."""

    action: Literal["accept", "ignore", "reject"]
    prefix: str


class PushCollector:
    """Joins the messages of a reply or an update. At most `MAX_REPLY` bytes are kept."""

    def __init__(
        self, filters: Iterable[PullFilter] = (), *, topology: Topology | None = None, tap: bool = False
    ) -> None:
        """``topology`` and ``tap`` are as `PushReply.parse` has them."""
        self._filters = tuple(filters)
        self._topology = topology
        self._tap = tap
        self._options: list[str] = []
        self._arriving: list[str] = []
        self._size = 0

    def add(self, message: str) -> PushReply | None:
        """Takes "PUSH_REPLY[,OPTION]…": the whole reply, or None while more is announced.

        Raises RemoteProtocolError for an option that a filter rejects, and for too many bytes.
        """
        if not self._collect(message):
            return None
        self._options = [text for text in self._take() if self._accepts(text)]
        return PushReply.parse(self._options, topology=self._topology, tap=self._tap)

    def update(self, message: str) -> PushReply | None:
        """Takes "PUSH_UPDATE[,OPTION]…": the reply as it is now, or None while more is announced.

        ``-NAME`` removes an option; one with values replaces all of its name that were there before the
        update. What can't change while the tunnel is up is left out where it says so itself (``?NAME``),
        else RemoteProtocolError is raised: the server relies on it.
        """
        if not self._collect(message):
            return None
        options, renewed = list(self._options), set[str]()
        for text in self._take():
            removes = text.startswith("-")
            bare = text.removeprefix("-")
            optional = bare.startswith("?")
            bare = bare.removeprefix("?")
            name = bare.split(maxsplit=1)[0] if bare.strip() else ""
            if name not in UPDATABLE:
                if optional:
                    continue
                raise RemoteProtocolError(f"the server changes {escape(name[:40])!r}, which needs a new connection")
            if not removes and not self._accepts(bare):
                continue
            if removes or name not in renewed:
                options = [known for known in options if known.split(maxsplit=1)[0] != name]
            if not removes:
                renewed.add(name)
                options.append(bare)
        if len(options) > MAX_OPTIONS:
            raise RemoteProtocolError(f"the server pushed more than {MAX_OPTIONS} options")
        self._options = options
        return PushReply.parse(options, topology=self._topology, tap=self._tap)

    def _collect(self, message: str) -> bool:
        """Whether that was the last message."""
        self._size += len(message)
        if self._size > MAX_REPLY:
            raise RemoteProtocolError(f"the push reply is longer than {MAX_REPLY} bytes")
        more = False
        for text in map(str.strip, message.split(",")[1:]):
            words = text.split()
            if words[:1] == ["push-continuation"]:
                more = words[1:] == ["2"]
            elif words:
                self._arriving.append(text)
        return not more

    def _take(self) -> list[str]:
        options, self._arriving, self._size = self._arriving, [], 0
        return options

    def _accepts(self, text: str) -> bool:
        for rule in self._filters:
            if text.startswith(rule.prefix):
                if rule.action == "reject":
                    raise RemoteProtocolError(
                        f"the server pushed {show(text)!r}, which pull-filter {rule.prefix!r} rejects"
                    )
                return rule.action == "accept"
        return True


MAX_REPLY = 256 * 1024
MAX_OPTIONS = 20_000
# options_util.c, updatable_options; keepalive among them is a server's own.
UPDATABLE = frozenset(
    (
        *("block-ipv6", "block-outside-dns", "dhcp-option", "dns", "ifconfig", "ifconfig-ipv6", "redirect-gateway"),
        *("redirect-private", "route", "route-gateway", "route-ipv6", "route-metric", "topology", "tun-mtu"),
    )
)
