"""What each pushed option comes to. ``OPTIONS`` has those that stock lets a server push."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any

from ginnel.openvpn.push_values import (
    DnsServer,
    Gateway,
    Ifconfig,
    IfconfigIpv6,
    Inactive,
    Route,
    RouteIpv6,
    Topology,
)
from ginnel.openvpn.words import SPACE, escape, split_words


def parse_options(options: Iterable[str], topology: Topology | None, tap: bool) -> dict[str, Any]:
    """The arguments of a `PushReply`, which has the same parameters."""
    builder = _Builder()
    for text in options:
        builder.add(text)
    if tap or "topology" not in builder.values:
        builder.values["topology"] = "subnet" if tap else topology
    builder.check_netmask()
    builder.check_dns_servers()
    return {**builder.values, "ignored": tuple(builder.ignored)}


def complaint(text: str) -> str | None:
    """Why an option by itself has no effect, or not all of it; None where it has."""
    builder = _Builder()
    builder.add(text)
    return builder.ignored[0][1] if builder.ignored else None


def show(text: str) -> str:
    """An option as a log may have it: a token is as good as a password."""
    bare = text.lstrip(SPACE + "\"'\\")
    return "auth-token …" if bare.startswith("auth-token") else escape(text)


class _Builder:
    """Collects values. A method of `OPTIONS` takes the words after the name and raises ValueError."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.ignored: list[tuple[str, str]] = []
        # Servers of which a line said so, whether it was right or not.
        self.narrow_dns: set[int] = set()
        self.hidden_dns: set[int] = set()

    def add(self, text: str) -> None:
        shown = show(text)
        name = text.split(maxsplit=1)[0] if text.strip() else ""
        try:
            words = split_words(text)
            if not words or words[0] in MOOT:
                return
            take = OPTIONS.get(words[0])
            if take is None:
                raise ValueError(NOT_OURS.get(words[0], "is not known"))
            take(self, words[1:])
        except ValueError as error:
            if name in DECISIVE:
                self.values.setdefault("wrong", (shown, escape(str(error))))
            self._ignore(shown, escape(str(error)))

    def _ignore(self, shown: str, reason: str) -> None:
        if len(self.ignored) < MAX_IGNORED:
            self.ignored.append((shown, reason))

    def each(self, what: str, words: list[str], convert: Callable[[str], Any]) -> list[Any]:
        """The values that can be had; the others are ignored singly. Raises ValueError when none is left."""
        found = []
        for word in words:
            try:
                found.append(convert(word))
            except ValueError as error:
                if len(words) == 1:
                    raise
                self._ignore(escape(f"{what} {word}"), escape(str(error)))
        if not found:
            raise ValueError("has no value that is right")
        return found

    def append(self, name: str, *items: object) -> None:
        self.values[name] = self.values.get(name, ()) + items

    def ifconfig(self, words: list[str]) -> None:
        local, remote = _exactly(words, 2)
        self.values["ifconfig"] = Ifconfig(_own(local), _ipv4(remote))

    def check_netmask(self) -> None:
        """What ifconfig's second word is depends on the topology, which may be said after it."""
        ifconfig = self.values.get("ifconfig")
        if ifconfig is None or self.values["topology"] != "subnet":
            return
        try:
            _netmask(str(ifconfig.remote))
        except ValueError as error:
            del self.values["ifconfig"]
            self._ignore(f"ifconfig {ifconfig.local} {ifconfig.remote}", str(error))

    def ifconfig_ipv6(self, words: list[str]) -> None:
        local, remote = _exactly(words, 2)
        interface = IPv6Interface(_with_colon(local))
        _check_host(interface.ip)
        self.values["ifconfig_ipv6"] = IfconfigIpv6(interface.ip, interface.network.prefixlen, _ipv6(remote))

    def route(self, words: list[str]) -> None:
        network, netmask, gateway, metric = _at_most(words, 1, 4)
        mask = _netmask("255.255.255.255" if netmask in (None, "default") else netmask)
        where = network if network in SPECIAL else IPv4Network((_network(network), str(mask)), strict=False)
        self.append("routes", Route(where, _gateway(gateway), _optional_number(metric, 0, 0xFFFFFFFF)))

    def route_ipv6(self, words: list[str]) -> None:
        network, gateway, metric = _at_most(words, 1, 3)
        via = None if gateway in (None, "default") else _ipv6(gateway)
        prefix = IPv6Network(_with_colon(network), strict=False)
        self.append("routes_ipv6", RouteIpv6(prefix, via, _optional_number(metric, 0, 0xFFFFFFFF)))

    def route_gateway(self, words: list[str]) -> None:
        (gateway,) = _exactly(words, 1)
        self.values["route_gateway"] = "dhcp" if gateway == "dhcp" else _ipv4(gateway)

    def redirect(self, name: str, words: list[str]) -> None:
        """Several add up. Without a flag that is not known the others still count: nothing leaks for its sake."""
        flags = dict.fromkeys(self.values.get(name, ()))
        for word in words:
            try:
                flags[_choice(word, *REDIRECT_FLAGS)] = None
            except ValueError as error:
                self._ignore(escape(f"{name.replace('_', '-')} {word}"), escape(str(error)))
        self.values[name] = tuple(flags)

    def dhcp_option(self, words: list[str]) -> None:
        match words:
            case ["DNS", value]:
                self.append("dhcp_dns", _ip(value))
            case ["DNS6", value]:
                self.append("dhcp_dns", _ipv6(value))
            case ["DOMAIN" | "ADAPTER_DOMAIN_SUFFIX" | "DOMAIN-SEARCH", value]:
                self.append("search_domains", _domain(value))
            case ["WINS" | "NTP" | "NBDD" as kind, value]:
                self.append("dhcp_options", (kind, str(_ipv4(value))))
            case ["NBT", value]:
                self.append("dhcp_options", ("NBT", _choice(value, "1", "2", "4", "8")))
            case ["NBS" | "PROXY_AUTO_CONFIG_URL" as kind, value]:
                self.append("dhcp_options", (kind, value))
            case ["DISABLE-NBT"]:
                self.append("dhcp_options", ("DISABLE-NBT",))
            case ["PROXY_HTTP" | "PROXY_HTTPS" as kind, host, port]:
                self.append("dhcp_options", (kind, _host(host), str(_number(port, 1, 65535))))
            case ["PROXY_BYPASS", *hosts] if hosts:
                self.append("dhcp_options", ("PROXY_BYPASS", *self.each("dhcp-option PROXY_BYPASS", hosts, _domain)))
            case [kind, *_] if kind in DHCP_OPTIONS:
                raise ValueError(f"dhcp-option {kind} has {len(words) - 1} values")
            case _:
                raise ValueError(f"dhcp-option {' '.join(words[:1])} is not known")

    def dns_option(self, words: list[str]) -> None:
        match words:
            case ["search-domains", *domains] if domains:
                self.append("search_domains", *self.each("dns search-domains", domains, _domain))
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
        said = f"dns server {priority} {what}"
        match what:
            case "address":
                known["addresses"] += tuple(self.each(said, values, _address_and_port))
                if len(known["addresses"]) > MAX_DNS_ADDRESSES:
                    raise ValueError(f"is more than {MAX_DNS_ADDRESSES} addresses of one DNS server")
            case "resolve-domains":
                # Without one that it is for, it would be for all.
                self.narrow_dns.add(priority)
                known["resolve_domains"] += tuple(self.each(said, values, _domain))
            case "dnssec":
                known["dnssec"] = _choice(*_exactly(values, 1), "yes", "no", "optional")
            case "transport":
                # Without what it asks for, it would be asked in plain.
                self.hidden_dns.add(priority)
                known["transport"] = _choice(*_exactly(values, 1), "plain", "DoT", "DoH")
            case "sni":
                known["sni"] = _domain(*_exactly(values, 1))
            case _:
                raise ValueError(f"dns server … {what} is not known")
        servers[priority] = DnsServer(**known)
        self.values["dns_profiles"] = tuple(servers[key] for key in sorted(servers))

    def check_dns_servers(self) -> None:
        """What a server can't be without is known at the end."""
        kept = []
        for server in self.values.pop("dns_profiles", ()):
            if not server.addresses:
                self._ignore(f"dns server {server.priority}", "has no address")
            elif server.priority in self.narrow_dns and not server.resolve_domains:
                self._ignore(f"dns server {server.priority}", "is for domains of which none is right")
            elif server.priority in self.hidden_dns and server.transport is None:
                self._ignore(f"dns server {server.priority}", "is asked in a way that is not known")
            else:
                kept.append(server)
        if kept:
            self.values["dns_profiles"] = tuple(kept)

    def cipher(self, words: list[str]) -> None:
        (name,) = _exactly(words, 1)
        self.values["cipher"] = name.upper() if name != "none" else name

    def protocol_flags(self, words: list[str]) -> None:
        """Whoever asks for one that is not known relies on it: the policy has to say no."""
        self.values["protocol_flags"] = tuple(dict.fromkeys(words))

    def compression(self, name: str, words: list[str]) -> None:
        self.values["compression"] = " ".join([name, *_at_most_words(words, 1)])

    def inactive(self, words: list[str]) -> None:
        seconds, size = _at_most(words, 1, 2)
        limit = 0 if size is None else _number(size, 0, 0x7FFFFFFFFFFFFFFF)
        self.values["inactive"] = Inactive(_number(seconds, 0, MAX_INT), limit)

    def setenv_safe(self, words: list[str]) -> None:
        name, value = _at_most(words, 1, 2)
        if not re.fullmatch("[A-Za-z0-9_]{1,64}", name):
            raise ValueError(f"{name} is no name of a variable")
        kept = tuple(pair for pair in self.values.get("setenv_safe", ()) if pair[0] != name)
        self.values["setenv_safe"] = (*kept, (name, value or ""))

    def echo(self, words: list[str]) -> None:
        self.append("echo", " ".join(words))

    def exit_notify(self, words: list[str]) -> None:
        (times,) = _at_most(words, 0, 1)
        self.values["explicit_exit_notify"] = 1 if times is None else _number(times, 0, MAX_INT)


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
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or not least <= int(text) <= most:
        raise ValueError(f"{text} is no number from {least} to {most}")
    return int(text)


def _netmask(text: str) -> IPv4Address:
    mask = _ipv4(text)
    free = int(mask) ^ 0xFFFFFFFF
    if free & (free + 1):
        raise ValueError(f"{text} is no netmask")
    return mask


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
            return _ipv4(text)


def _network(text: str) -> IPv4Address:
    if re.search("[A-Za-z]", text) and ":" not in text:
        raise ValueError(f"{text} {NO_NAMES}")
    return _ipv4(text)


def _own(text: str) -> IPv4Address:
    address = _ipv4(text)
    _check_host(address)
    return address


def _check_host(address: IPv4Address | IPv6Address) -> None:
    """What can't be anybody's own address is refused, as the stack does (``is_host`` in `netstack/address.rs`)."""
    if isinstance(address, IPv4Address):
        first = address.packed[0]
        fits = first not in (0, 127) and first < MULTICAST
    else:
        special = address.is_unspecified or address.is_loopback or address.is_multicast
        fits = not special and address.ipv4_mapped is None
    if not fits:
        raise ValueError(f"{address} is no host's address")


def _ip(text: str) -> IPv4Address | IPv6Address:
    return _ipv6(text) if ":" in text else _ipv4(text)


def _ipv4(text: str) -> IPv4Address:
    if ":" in text:
        raise ValueError(f"{text} is an IPv6 address where IPv4 belongs")
    return IPv4Address(text)


def _ipv6(text: str) -> IPv6Address:
    return IPv6Address(_with_colon(text))


def _with_colon(text: str) -> str:
    """A zone of this machine's means nothing to a server."""
    if ":" not in text or "%" in text:
        raise ValueError(f"{text} is no IPv6 address")
    return text


def _domain(text: str) -> str:
    """Without the dot that some write before it. No character that a shell or a resolver's file would take for more
    than a name's, and labels that can be asked for."""
    name = text.removeprefix(".")
    if len(name) > MAX_NAME or not re.fullmatch(rf"(?!-){LABEL}(\.{LABEL})*\.?", name):
        raise ValueError(f"{text} is no domain name")
    return name


def _host(text: str) -> str:
    return str(_ipv6(text)) if ":" in text else _domain(text)


def _address_and_port(text: str) -> tuple[IPv4Address | IPv6Address, int]:
    match = re.fullmatch(r"\[(.+)\]:([0-9]+)|([0-9.]+):([0-9]+)", text)
    if match is None:
        return _ip(text.removeprefix("[").removesuffix("]")), 0
    address, port = match[1] or match[3], match[2] or match[4]
    return _ip(address), _number(port, 1, 65535)


def _set(name: str, convert: Callable[[str], object]) -> Callable[[_Builder, list[str]], None]:
    def take(builder: _Builder, words: list[str]) -> None:
        (word,) = _exactly(words, 1)
        builder.values[name] = convert(word)

    return take


def _flag(name: str) -> Callable[[_Builder, list[str]], None]:
    def take(builder: _Builder, words: list[str]) -> None:
        _exactly(words, 0)
        builder.values[name] = True

    return take


def _set_number(name: str, least: int, most: int) -> Callable[[_Builder, list[str]], None]:
    return _set(name, lambda word: _number(word, least, most))


NO_NAMES = "is a name, and routes are for addresses alone"
MAX_IGNORED = 100
MAX_DNS_SERVERS = 16
MAX_DNS_ADDRESSES = 8
REDIRECT_FLAGS = ("local", "autolocal", "def1", "bypass-dhcp", "bypass-dns", "block-local", "ipv6", "!ipv4")
LABEL = "[A-Za-z0-9_-]{1,63}"
MAX_NAME = 253
MULTICAST = 224
# Without these as the server means them, no packet of its would be understood.
DECISIVE = frozenset(("peer-id", "cipher", "key-derivation", "protocol-flags", "comp-lzo", "compress"))
SPECIAL = ("vpn_gateway", "net_gateway", "remote_host")
DHCP_OPTIONS = (
    *("DNS", "DNS6", "DOMAIN", "ADAPTER_DOMAIN_SUFFIX", "DOMAIN-SEARCH", "WINS", "NTP", "NBDD", "NBT", "NBS"),
    *("DISABLE-NBT", "PROXY_HTTP", "PROXY_HTTPS", "PROXY_BYPASS", "PROXY_AUTO_CONFIG_URL"),
)
MAX_INT = 0x7FFFFFFF
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
    "block-ipv6": _flag("block_ipv6"),
    "block-outside-dns": _flag("block_outside_dns"),
    "register-dns": _flag("register_dns"),
    "dhcp-option": _Builder.dhcp_option,
    "dns": _Builder.dns_option,
    "tun-mtu": _set_number("tun_mtu", 100, 65535),
    "ping": _set_number("ping", 0, MAX_INT),
    "ping-restart": _set_number("ping_restart", 0, MAX_INT),
    "ping-exit": _set_number("ping_exit", 0, MAX_INT),
    "inactive": _Builder.inactive,
    "session-timeout": _set_number("session_timeout", 0, MAX_INT),
    "explicit-exit-notify": _Builder.exit_notify,
    "sndbuf": _set_number("sndbuf", 0, MAX_INT),
    "rcvbuf": _set_number("rcvbuf", 0, MAX_INT),
    "peer-id": _set_number("peer_id", 0, 0xFFFFFF),
    "cipher": _Builder.cipher,
    "protocol-flags": _Builder.protocol_flags,
    "key-derivation": _set("key_derivation", lambda word: _choice(word, "tls-ekm")),
    "comp-lzo": lambda builder, words: builder.compression("comp-lzo", words),
    "compress": lambda builder, words: builder.compression("compress", words),
    "setenv-safe": _Builder.setenv_safe,
    "echo": _Builder.echo,
    "parameter": _Builder.echo,
    "auth-token": _set("auth_token", str),
    "auth-token-user": _set("auth_token_user", str),
}
# What stock still pushes to please old clients: it says nothing that isn't so anyway.
MOOT = {"tun-ipv6", "persist-key", "persist-tun", "ping-timer-rem", "ifconfig-nowarn", "errors-to-stderr"}
NOT_OURS = dict.fromkeys(
    (
        *("socket-flags", "route-delay", "route-method", "ip-win32", "tap-sleep", "dhcp-renew", "dhcp-pre-release"),
        *("show-net-up", "lladdr", "shaper", "verb", "mute", "bind-dev", "ifconfig-noexec"),
    ),
    "has no effect here",
) | {"client-nat": "addresses inside the tunnel are not translated"}
