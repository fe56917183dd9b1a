"""From values to the options and messages of a push reply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from ginnel.errors import ConfigError
from ginnel.openvpn.words import escape, quote

if TYPE_CHECKING:
    from ginnel.openvpn.push import PushReply


def emit_update(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """The messages of a PUSH_UPDATE that makes one list of options of another: all options of every name that
    has changed, and "-NAME" where none of a name are left. None where nothing has changed."""
    old, new = _by_name(before), _by_name(after)
    changes = [f"-{name}" for name in old if name not in new]
    changes += [text for name, texts in new.items() if old.get(name) != texts for text in texts]
    return emit_messages(changes, "PUSH_UPDATE") if changes else []


def emit_messages(options: Iterable[str], command: str = "PUSH_REPLY") -> list[str]:
    """Messages of at most `BUNDLE_SIZE` bytes each with its NUL, all but the last with
    "push-continuation 2", and the last with 1 if it isn't the only one."""
    messages, current = [], command
    for text in options:
        if len(text.encode()) > MAX_OPTION:
            raise ConfigError(f"{escape(text)!r} is too long to push")
        if len((current + text).encode()) + CONTINUATION_SIZE > BUNDLE_SIZE:
            messages.append(current + ",push-continuation 2")
            current = command
        current += "," + text
    if messages:
        current += ",push-continuation 1"
    return [*messages, current]


def _by_name(options: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in options:
        found.setdefault(text.split(" ", 1)[0], []).append(text)
    return found


def quote_pushed(word: str) -> str:
    """The word as `split_words` reads it. Raises ConfigError for a comma or a control character."""
    if "," in word or not word.isprintable():
        raise ConfigError(f"{escape(word)!r} can't be pushed: a comma or control character is in it")
    return quote(word)


def emit_options(reply: PushReply) -> Iterator[str]:
    if reply.topology is not None:
        yield f"topology {reply.topology}"
    if reply.route_gateway is not None:
        yield f"route-gateway {reply.route_gateway}"
    yield from _emit_numbers(reply)
    for route in reply.routes:
        network = route.network
        where = (network,) if isinstance(network, str) else (network.network_address, network.netmask)
        tail = _tail(route.gateway, route.metric)
        yield _words("route", *where, *(["default"] if isinstance(network, str) and tail else []), *tail)
    for route6 in reply.routes_ipv6:
        yield _words("route-ipv6", route6.network, *_tail(route6.gateway, route6.metric))
    for name, flags in (("gateway", reply.redirect_gateway), ("private", reply.redirect_private)):
        if flags is not None:
            yield _words(f"redirect-{name}", *flags)
    for name in FLAGS:
        if getattr(reply, name):
            yield name.replace("_", "-")
    yield from _emit_dns(reply)
    for name, value in reply.setenv_safe:
        yield _words("setenv-safe", name, value)
    for text in reply.echo:
        yield _words("echo", *text.split(" "))
    if reply.ifconfig_ipv6 is not None:
        own = reply.ifconfig_ipv6
        yield f"ifconfig-ipv6 {own.local}/{own.bits} {own.remote}"
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
    if reply.inactive is not None:
        yield f"inactive {reply.inactive.seconds} {reply.inactive.size}"


def _emit_dns(reply: PushReply) -> Iterator[str]:
    for address in reply.dhcp_dns:
        yield f"dhcp-option DNS {address}"
    for domain in reply.search_domains:
        yield f"dhcp-option DOMAIN-SEARCH {domain}"
    for kind, *values in reply.dhcp_options:
        yield _words("dhcp-option", kind, *values)
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
    return " ".join([first, *(quote_pushed(str(word)) for word in more)])


def _tail(gateway: object, metric: object) -> list[object]:
    if metric is not None:
        return ["default" if gateway is None else gateway, metric]
    return [] if gateway is None else [gateway]


BUNDLE_SIZE = 1024
# Room for ",push-continuation 2" and the closing NUL.
CONTINUATION_SIZE = 22
MAX_OPTION = 256
NUMBERS = (
    "route_metric",
    "tun_mtu",
    "ping",
    "ping_restart",
    "ping_exit",
    "session_timeout",
    "explicit_exit_notify",
    "sndbuf",
    "rcvbuf",
    "peer_id",
)
FLAGS = ("block_ipv6", "block_outside_dns", "register_dns")
