"""What a server pushes: options between commas, quoted as in a configuration file, in messages of at
most 1024 bytes (OpenVPN ``push.c``, ``options.c``).

`PushCollector` joins the messages and filters the options, `PushReply.parse` makes values of them.
An option that is unknown or wrong is refused singly, with a reason, and the others count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)
from typing import Any, Literal

from ginnel.errors import ConfigError, RemoteProtocolError

Gateway = IPv4Address | Literal["vpn_gateway", "net_gateway", "remote_host"]


@dataclass(frozen=True)
class Ifconfig:
    """``remote`` is the peer's address or, with topology subnet and for TAP, the netmask."""

    local: IPv4Address
    remote: IPv4Address


@dataclass(frozen=True)
class IfconfigIpv6:
    local: IPv6Interface
    remote: IPv6Address


@dataclass(frozen=True)
class Route:
    network: IPv4Network
    gateway: Gateway | None = None
    metric: int | None = None


@dataclass(frozen=True)
class RouteIpv6:
    network: IPv6Network
    gateway: IPv6Address | None = None
    metric: int | None = None


@dataclass(frozen=True)
class DnsServer:
    """``dns server PRIORITY …``. ``addresses`` come with a port, 0 for the transport's own;
    with ``resolve_domains`` the server is for names in these domains only."""

    priority: int
    addresses: tuple[tuple[IPv4Address | IPv6Address, int], ...] = ()
    resolve_domains: tuple[str, ...] = ()
    dnssec: Literal["yes", "no", "optional"] | None = None
    transport: Literal["plain", "DoT", "DoH"] | None = None
    sni: str | None = None


@dataclass(frozen=True)
class PushReply:
    """A server's options. Numbers are as pushed, seconds where they are times; None: not pushed.

    ``dhcp_dns`` are the servers from ``dhcp-option``, ``dns_profiles`` those from ``dns server``.
    ``redirect_gateway`` and ``redirect_private`` hold the flags. ``compression`` is the framing asked
    for, as pushed. ``ignored`` has each option that has no effect, escaped, with the reason.
    """

    ifconfig: Ifconfig | None = None
    ifconfig_ipv6: IfconfigIpv6 | None = None
    topology: Literal["net30", "p2p", "subnet"] | None = None
    route_gateway: IPv4Address | Literal["dhcp"] | None = None
    route_metric: int | None = None
    routes: tuple[Route, ...] = ()
    routes_ipv6: tuple[RouteIpv6, ...] = ()
    redirect_gateway: tuple[str, ...] | None = None
    redirect_private: tuple[str, ...] | None = None
    block_ipv6: bool = False
    dhcp_dns: tuple[IPv4Address | IPv6Address, ...] = ()
    dns_profiles: tuple[DnsServer, ...] = ()
    search_domains: tuple[str, ...] = ()
    tun_mtu: int | None = None
    ping: int | None = None
    ping_restart: int | None = None
    ping_exit: int | None = None
    explicit_exit_notify: int | None = None
    peer_id: int | None = None
    cipher: str | None = None
    protocol_flags: tuple[str, ...] = ()
    key_derivation: Literal["tls-ekm"] | None = None
    compression: str | None = None
    auth_token: str | None = field(default=None, repr=False)
    auth_token_user: str | None = None
    ignored: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, options: Iterable[str]) -> PushReply:
        """Takes options without their commas. Later ones replace earlier ones or add to them."""
        builder = _Builder()
        for text in options:
            builder.add(text)
        return cls(**builder.values, ignored=tuple(builder.ignored))

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
        return None if self.ifconfig_ipv6 is None else self.ifconfig_ipv6.local

    @property
    def dns_servers(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """The name servers to ask over port 53: those of the first ``dns server`` that can do that,
        without any those of ``dhcp-option``."""
        for profile in self.dns_profiles:
            plain = tuple(address for address, port in profile.addresses if port in (0, 53))
            if plain and profile.transport in (None, "plain") and not profile.resolve_domains:
                return plain
        return self.dhcp_dns

    def options(self) -> list[str]:
        """The options again, without the ignored ones. Raises ConfigError for a comma in a value."""
        return list(_emit_options(self))

    def emit(self) -> list[str]:
        """The messages to send. Raises ConfigError for a value that can't be pushed."""
        return emit_messages(self.options())


@dataclass(frozen=True)
class PullFilter:
    """``pull-filter ACTION PREFIX``; the first that an option starts with decides."""

    action: Literal["accept", "ignore", "reject"]
    prefix: str


class PushCollector:
    """Joins the messages of one reply. At most `MAX_REPLY` bytes are kept."""

    def __init__(self, filters: Iterable[PullFilter] = ()) -> None:
        self._filters = tuple(filters)
        self._options: list[str] = []
        self._size = 0
        self._dropped: list[tuple[str, str]] = []

    def add(self, message: str) -> PushReply | None:
        """Takes "PUSH_REPLY[,OPTION]…": the whole reply, or None while more is announced.

        Raises RemoteProtocolError for an option that a filter rejects, and for too many bytes.
        """
        self._size += len(message)
        if self._size > MAX_REPLY:
            raise RemoteProtocolError(f"the push reply is longer than {MAX_REPLY} bytes")
        more = False
        for text in message.split(",")[1:]:
            text = text.strip()
            if not text:
                continue
            words = text.split()
            if words[0] == "push-continuation":
                more = words[1:] == ["2"]
            elif self._accepts(text):
                self._options.append(text)
        if more:
            return None
        options, self._options, self._size = self._options, [], 0
        return PushReply.parse(options)

    def _accepts(self, text: str) -> bool:
        for rule in self._filters:
            if text.startswith(rule.prefix):
                if rule.action == "reject":
                    raise RemoteProtocolError(
                        f"the server pushed {escape(text)!r}, which pull-filter {rule.prefix!r} rejects"
                    )
                return rule.action == "accept"
        return True


def emit_messages(options: Iterable[str]) -> list[str]:
    """Messages of at most `BUNDLE_SIZE` bytes each with its NUL, all but the last with
    "push-continuation 2", and the last with 1 if it isn't the only one."""
    messages, current = [], "PUSH_REPLY"
    for text in options:
        if len(text.encode()) > MAX_OPTION:
            raise ConfigError(f"{escape(text)!r} is too long to push")
        if len((current + text).encode()) + CONTINUATION_SIZE > BUNDLE_SIZE:
            messages.append(current + ",push-continuation 2")
            current = "PUSH_REPLY"
        current += "," + text
    if messages:
        current += ",push-continuation 1"
    return [*messages, current]


def split_words(text: str) -> list[str]:
    """Splits an option as stock does (``options.c``, parse_line): double quotes and backslashes,
    single quotes without, "#" or ";" at the start of a word for a comment. Raises ValueError."""
    words: list[str] = []
    at, end = 0, len(text)
    while at < end:
        if text[at].isspace():
            at += 1
        elif text[at] in "#;":
            break
        else:
            word, at = _read_word(text, at)
            words.append(word)
    return words


def quote(word: str) -> str:
    """The word as `split_words` reads it. Raises ConfigError for a comma or a control character."""
    if "," in word or not word.isprintable():
        raise ConfigError(f"{escape(word)!r} can't be pushed: a comma or control character is in it")
    if word and not re.search(r"[\s\"'\\]|^[#;]", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def escape(text: str) -> str:
    """Control characters and the like as backslash sequences, for logs."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _read_word(text: str, at: int) -> tuple[str, int]:
    quotation = text[at] if text[at] in "\"'" else None
    at += quotation is not None
    word = ""
    while at < len(text):
        char = text[at]
        at += 1
        if char == "\\" and quotation != "'":
            if at == len(text) or text[at] not in '\\" \t':
                raise ValueError("a backslash at the wrong place")
            word += text[at]
            at += 1
        elif char == quotation or (quotation is None and char.isspace()):
            return word, at
        else:
            word += char
    if quotation is not None:
        raise ValueError("a quotation mark is missing")
    return word, at


class _Builder:
    """Collects values. A method of `OPTIONS` takes the words after the name and raises ValueError."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.ignored: list[tuple[str, str]] = []

    def add(self, text: str) -> None:
        secret = text.lstrip().startswith("auth-token")
        try:
            words = split_words(text)
            if not words or words[0] in MOOT:
                return
            take = OPTIONS.get(words[0])
            if take is None:
                raise ValueError(NOT_OURS.get(words[0], "is not known"))
            take(self, words[1:])
        except ValueError as error:
            if len(self.ignored) < MAX_IGNORED:
                shown = "auth-token …" if secret else escape(text)
                self.ignored.append((shown, escape(str(error))))

    def append(self, name: str, *items: object) -> None:
        self.values[name] = self.values.get(name, ()) + items

    def ifconfig(self, words: list[str]) -> None:
        local, remote = _exactly(words, 2)
        self.values["ifconfig"] = Ifconfig(IPv4Address(local), IPv4Address(remote))

    def ifconfig_ipv6(self, words: list[str]) -> None:
        local, remote = _exactly(words, 2)
        self.values["ifconfig_ipv6"] = IfconfigIpv6(IPv6Interface(local), IPv6Address(remote))

    def route(self, words: list[str]) -> None:
        network, netmask, gateway, metric = _at_most(words, 1, 4)
        mask = "255.255.255.255" if netmask in (None, "default") else netmask
        prefix = IPv4Network((network, mask), strict=False)
        self.append("routes", Route(prefix, _gateway(gateway), _optional_number(metric, 0, 0xFFFFFFFF)))

    def route_ipv6(self, words: list[str]) -> None:
        network, gateway, metric = _at_most(words, 1, 3)
        via = None if gateway in (None, "default") else IPv6Address(gateway)
        prefix = IPv6Network(network, strict=False)
        self.append("routes_ipv6", RouteIpv6(prefix, via, _optional_number(metric, 0, 0xFFFFFFFF)))

    def route_gateway(self, words: list[str]) -> None:
        (gateway,) = _exactly(words, 1)
        self.values["route_gateway"] = "dhcp" if gateway == "dhcp" else IPv4Address(gateway)

    def redirect(self, name: str, words: list[str]) -> None:
        for word in words:
            _choice(word, *REDIRECT_FLAGS)
        self.values[name] = tuple(dict.fromkeys(words))

    def dhcp_option(self, words: list[str]) -> None:
        kind, value = _exactly(words, 2)
        match kind:
            case "DNS" | "DNS6":
                self.append("dhcp_dns", ip_address(value))
            case "DOMAIN" | "ADAPTER_DOMAIN_SUFFIX" | "DOMAIN-SEARCH":
                self.append("search_domains", _domain(value))
            case _:
                raise ValueError(f"dhcp-option {kind} has no effect here")

    def dns_option(self, words: list[str]) -> None:
        match words:
            case ["search-domains", *domains] if domains:
                self.append("search_domains", *map(_domain, domains))
            case ["server", priority, what, *values] if values:
                self.dns_server(_number(priority, -128, 127), what, values)
            case _:
                raise ValueError("is not a dns option")

    def dns_server(self, priority: int, what: str, values: list[str]) -> None:
        servers = {server.priority: server for server in self.values.get("dns_profiles", ())}
        if priority not in servers and len(servers) >= MAX_DNS_SERVERS:
            raise ValueError("is one DNS server too many")
        old = servers.get(priority, DnsServer(priority))
        known = {item.name: getattr(old, item.name) for item in fields(old)}
        match what:
            case "address":
                known["addresses"] += tuple(map(_address_and_port, values))
            case "resolve-domains":
                known["resolve_domains"] += tuple(map(_domain, values))
            case "dnssec":
                known["dnssec"] = _choice(*_exactly(values, 1), "yes", "no", "optional")
            case "transport":
                known["transport"] = _choice(*_exactly(values, 1), "plain", "DoT", "DoH")
            case "sni":
                known["sni"] = _domain(*_exactly(values, 1))
            case _:
                raise ValueError(f"dns server … {what} is not known")
        servers[priority] = DnsServer(**known)
        self.values["dns_profiles"] = tuple(servers[key] for key in sorted(servers))

    def cipher(self, words: list[str]) -> None:
        (name,) = _exactly(words, 1)
        self.values["cipher"] = name.upper() if name != "none" else name

    def protocol_flags(self, words: list[str]) -> None:
        for word in words:
            _choice(word, *PROTOCOL_FLAGS)
        self.values["protocol_flags"] = tuple(dict.fromkeys(words))

    def compression(self, name: str, words: list[str]) -> None:
        self.values["compression"] = " ".join([name, *_at_most_words(words, 1)])

    def block_ipv6(self, words: list[str]) -> None:
        _exactly(words, 0)
        self.values["block_ipv6"] = True

    def exit_notify(self, words: list[str]) -> None:
        (times,) = _at_most(words, 0, 1)
        self.values["explicit_exit_notify"] = 1 if times is None else _number(times, 0, 0x7FFFFFFF)


def _exactly(words: list[str], count: int) -> list[str]:
    if len(words) != count:
        raise ValueError(f"has {len(words)} values, not {count}")
    return words


def _at_most_words(words: list[str], most: int) -> list[str]:
    if len(words) > most:
        raise ValueError(f"has {len(words)} values, more than {most}")
    return words


def _at_most(words: list[str], least: int, most: int) -> list[Any]:
    if not least <= len(words) <= most:
        raise ValueError(f"has {len(words)} values, not {least} to {most}")
    return [*words, *[None] * (most - len(words))]


def _number(text: str, least: int, most: int) -> int:
    if not re.fullmatch(r"-?[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise ValueError(f"{text} is no number from {least} to {most}")
    return int(text)


def _optional_number(text: str | None, least: int, most: int) -> int | None:
    return None if text in (None, "default") else _number(text or "", least, most)


def _choice(word: str, *choices: str) -> str:
    if word not in choices:
        raise ValueError(f"{word} is not one of: {', '.join(choices)}")
    return word


def _gateway(text: str | None) -> Gateway | None:
    match text:
        case None | "default":
            return None
        case "vpn_gateway" | "net_gateway" | "remote_host":
            return text
        case _:
            return IPv4Address(text)


def _domain(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", text):
        raise ValueError(f"{text} is no domain name")
    return text


def _address_and_port(text: str) -> tuple[IPv4Address | IPv6Address, int]:
    match = re.fullmatch(r"\[(.+)\]:([0-9]+)|([0-9.]+):([0-9]+)", text)
    if match is None:
        return ip_address(text.removeprefix("[").removesuffix("]")), 0
    address, port = match[1] or match[3], match[2] or match[4]
    return ip_address(address), _number(port, 1, 65535)


def _set(name: str, convert: Callable[[str], object]) -> Callable[[_Builder, list[str]], None]:
    def take(builder: _Builder, words: list[str]) -> None:
        (word,) = _exactly(words, 1)
        builder.values[name] = convert(word)

    return take


def _set_number(name: str, least: int, most: int) -> Callable[[_Builder, list[str]], None]:
    return _set(name, lambda word: _number(word, least, most))


def _emit_options(reply: PushReply) -> Iterator[str]:
    if reply.topology is not None:
        yield f"topology {reply.topology}"
    if reply.route_gateway is not None:
        yield f"route-gateway {reply.route_gateway}"
    yield from _emit_numbers(reply)
    for route in reply.routes:
        network = route.network
        yield _words("route", network.network_address, network.netmask, *_tail(route.gateway, route.metric))
    for route6 in reply.routes_ipv6:
        yield _words("route-ipv6", route6.network, *_tail(route6.gateway, route6.metric))
    for name, flags in (("gateway", reply.redirect_gateway), ("private", reply.redirect_private)):
        if flags is not None:
            yield _words(f"redirect-{name}", *flags)
    if reply.block_ipv6:
        yield "block-ipv6"
    yield from _emit_dns(reply)
    if reply.ifconfig_ipv6 is not None:
        yield f"ifconfig-ipv6 {reply.ifconfig_ipv6.local} {reply.ifconfig_ipv6.remote}"
    if reply.ifconfig is not None:
        yield f"ifconfig {reply.ifconfig.local} {reply.ifconfig.remote}"
    if reply.cipher is not None:
        yield _words("cipher", reply.cipher)
    if reply.compression is not None:
        yield reply.compression
    if reply.key_derivation is not None:
        yield f"key-derivation {reply.key_derivation}"
    if reply.protocol_flags:
        yield _words("protocol-flags", *reply.protocol_flags)
    if reply.auth_token is not None:
        yield _words("auth-token", reply.auth_token)
    if reply.auth_token_user is not None:
        yield _words("auth-token-user", reply.auth_token_user)


def _emit_numbers(reply: PushReply) -> Iterator[str]:
    for name in NUMBERS:
        value = getattr(reply, name)
        if value is not None:
            yield f"{name.replace('_', '-')} {value}"


def _emit_dns(reply: PushReply) -> Iterator[str]:
    for address in reply.dhcp_dns:
        yield f"dhcp-option DNS {address}"
    for domain in reply.search_domains:
        yield f"dhcp-option DOMAIN-SEARCH {domain}"
    for server in reply.dns_profiles:
        start = f"dns server {server.priority}"
        for ip, port in server.addresses:
            shown = f"[{ip}]" if isinstance(ip, IPv6Address) else str(ip)
            yield f"{start} address {shown}:{port}" if port else f"{start} address {ip}"
        if server.resolve_domains:
            yield _words(start, "resolve-domains", *server.resolve_domains)
        for name in ("dnssec", "transport", "sni"):
            value = getattr(server, name)
            if value is not None:
                yield f"{start} {name} {value}"


def _words(first: str, *more: object) -> str:
    return " ".join([first, *(quote(str(word)) for word in more)])


def _tail(gateway: object, metric: object) -> list[object]:
    if metric is not None:
        return ["default" if gateway is None else gateway, metric]
    return [] if gateway is None else [gateway]


BUNDLE_SIZE = 1024
# Room for ",push-continuation 2" and the closing NUL.
CONTINUATION_SIZE = 22
MAX_OPTION = 256
MAX_REPLY = 256 * 1024
MAX_IGNORED = 100
MAX_DNS_SERVERS = 16
NUMBERS = (
    "route_metric",
    "tun_mtu",
    "ping",
    "ping_restart",
    "ping_exit",
    "explicit_exit_notify",
    "peer_id",
)
REDIRECT_FLAGS = ("local", "autolocal", "def1", "bypass-dhcp", "bypass-dns", "block-local", "ipv6", "!ipv4")
PROTOCOL_FLAGS = ("cc-exit", "tls-ekm", "dyn-tls-crypt", "aead-epoch")
OPTIONS: dict[str, Callable[[_Builder, list[str]], None]] = {
    "ifconfig": _Builder.ifconfig,
    "ifconfig-ipv6": _Builder.ifconfig_ipv6,
    "topology": _set("topology", lambda word: _choice(word, "net30", "p2p", "subnet")),
    "route": _Builder.route,
    "route-ipv6": _Builder.route_ipv6,
    "route-gateway": _Builder.route_gateway,
    "route-metric": _set_number("route_metric", 0, 0xFFFFFFFF),
    "redirect-gateway": lambda builder, words: builder.redirect("redirect_gateway", words),
    "redirect-private": lambda builder, words: builder.redirect("redirect_private", words),
    "block-ipv6": _Builder.block_ipv6,
    "dhcp-option": _Builder.dhcp_option,
    "dns": _Builder.dns_option,
    "tun-mtu": _set_number("tun_mtu", 100, 65535),
    "ping": _set_number("ping", 0, 0x7FFFFFFF),
    "ping-restart": _set_number("ping_restart", 0, 0x7FFFFFFF),
    "ping-exit": _set_number("ping_exit", 0, 0x7FFFFFFF),
    "explicit-exit-notify": _Builder.exit_notify,
    "peer-id": _set_number("peer_id", 0, 0xFFFFFF),
    "cipher": _Builder.cipher,
    "protocol-flags": _Builder.protocol_flags,
    "key-derivation": _set("key_derivation", lambda word: _choice(word, "tls-ekm")),
    "comp-lzo": lambda builder, words: builder.compression("comp-lzo", words),
    "compress": lambda builder, words: builder.compression("compress", words),
    "auth-token": _set("auth_token", str),
    "auth-token-user": _set("auth_token_user", str),
}
# What stock still pushes to please old clients: it says nothing that isn't so anyway.
MOOT = {"tun-ipv6"}
NOT_OURS = dict.fromkeys(
    ("sndbuf", "rcvbuf", "socket-flags", "route-delay", "persist-key", "persist-tun", "ping-timer-rem"),
    "has no meaning here",
) | dict.fromkeys(
    ("inactive", "session-timeout", "setenv-safe", "echo", "register-dns", "block-outside-dns"),
    "has no effect here",
)
