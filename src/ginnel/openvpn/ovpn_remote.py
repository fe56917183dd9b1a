"""The options of an ``.ovpn`` file about where to connect and how: remotes, ports, proxies."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address
from typing import cast

from ginnel.errors import ConfigError
from ginnel.openvpn.config import HttpProxy, Proto, Remote, SocksProxy
from ginnel.openvpn.directives import names
from ginnel.openvpn.ovpn_draft import Draft, Entry, Taker, Target, number, one_of
from ginnel.openvpn.ovpn_lexer import Statement
from ginnel.openvpn.ovpn_login import read_login
from ginnel.openvpn.words import escape


def finish_remote(target: Target, entry: Entry) -> Remote:
    """Raises ConfigError for what can't be at once; its option is the one to change."""
    proto = (target.proto or entry.proto).replace("-client", "")
    proxy = _proxy(entry, proto)
    if entry.bind is False and (entry.lport is not None or entry.local is not None):
        option = "lport" if entry.lport is not None else "local"
        raise ConfigError(f"nobind and {option} exclude each other", option=option, instead="keep one of them")
    own = entry.local if entry.local is not None and _is_address(entry.local) else None
    if proxy is None and own is not None and proto[3:] and (":" in own) != (proto[3:] == "6"):
        raise ConfigError(
            f"from {entry.local} no {proto} goes out", option="local", instead=f"write: proto {proto[:3]}"
        )
    port = entry.lport if entry.lport is not None else entry.port if entry.bind else 0
    if not target.port and not entry.port:
        raise ConfigError("0 is no port of a server's", option="port", instead=f"write: remote {target.host} PORT")
    return Remote(target.host, target.port or entry.port, cast(Proto, proto), proxy, entry.local, port)


def _proxy(entry: Entry, proto: str) -> HttpProxy | SocksProxy | None:
    if entry.http_proxy is not None and entry.socks_proxy is not None:
        raise ConfigError("http-proxy and socks-proxy exclude each other", option="socks-proxy", instead="keep one")
    proxy = entry.http_proxy or entry.socks_proxy
    if proxy is None:
        return None
    if isinstance(proxy, HttpProxy):
        if not proto.startswith("tcp"):
            raise ConfigError(
                f"http-proxy leads to TCP only, and this remote is {proto}",
                option="http-proxy",
                instead="write: proto tcp",
            )
        if entry.http_login is not None:
            proxy = replace(proxy, username=entry.http_login[0], password=entry.http_login[1], ask=False)
        proxy = replace(proxy, agent=entry.agent, headers=entry.headers)
    return proxy


def _remote(draft: Draft, statement: Statement) -> None:
    host, port, proto = (*statement.words, None, None)[:3]
    assert host is not None
    if host.startswith("["):
        raise ConfigError("an address in brackets", instead="write an IPv6 address without brackets")
    target = Target(
        statement.line,
        _host(host),
        None if port is None else _parse_port(port),
        None if proto is None else _parse_proto(proto),
    )
    draft.targets.append(target)


def _port(draft: Draft, statement: Statement) -> None:
    draft.entry.port = number(statement.words[0], 0, 65535, "a port")


def _lport(draft: Draft, statement: Statement) -> None:
    draft.entry.lport = number(statement.words[0], 0, 65535, "a port")


def _proto(draft: Draft, statement: Statement) -> None:
    draft.entry.proto = _parse_proto(statement.words[0])


def _bind(draft: Draft, statement: Statement) -> None:
    for word in statement.words:
        one_of(word, "ipv6only")
    draft.entry.bind = statement.name == "bind"


def _local(draft: Draft, statement: Statement) -> None:
    word = statement.words[0]
    draft.entry.local = str(ip_address(word)) if _is_address(word) else _host(word)


def _http_proxy(draft: Draft, statement: Statement) -> None:
    host, port, login, method = (*statement.words, None, None)[:4]
    assert host is not None
    assert port is not None
    proxy = HttpProxy(_host(host), _parse_port(port))
    if method is not None and method in ("ntlm", "ntlm2"):
        raise ConfigError(f"{method} is not supported", instead="use basic, or auto for the best the proxy takes")
    if method is not None:
        one_of(method, "none", "basic", "auto", "auto-nct")
    match login:
        case None | "none":
            pass
        case "auto" | "auto-nct" | "stdin":
            proxy = replace(proxy, ask=True, cleartext=login != "auto-nct")
        case _:
            source = draft.source(replace(statement, words=(login,)))
            username, password = read_login(source)
            proxy = replace(
                proxy, username=username, password=password, ask=password is None, cleartext=method != "auto-nct"
            )
    draft.entry.http_proxy = proxy


def _http_proxy_option(draft: Draft, statement: Statement) -> None:
    match statement.words:
        case ("VERSION", _):
            draft.warn("HTTP/1.1 is always spoken")
        case ("AGENT", agent):
            draft.entry.agent = _header_value("User-Agent", agent)
        case ("CUSTOM-HEADER" | "EXT1" | "EXT2", name):
            head, colon, value = name.partition(":")
            _add_header(draft, head, value if colon else "")
        case ("CUSTOM-HEADER" | "EXT1" | "EXT2", name, value):
            _add_header(draft, name.removesuffix(":"), value)
        case (other, *_):
            one_of(other, "VERSION", "AGENT", "CUSTOM-HEADER")
            raise ConfigError(f"http-proxy-option {other} needs a value")


def _add_header(draft: Draft, name: str, value: str) -> None:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise ConfigError(f"{escape(name)!r} is no header of HTTP")
    if name.lower() in ("content-length", "transfer-encoding"):
        raise ConfigError(f"{name} is of a request with content, and CONNECT has none")
    if name.lower() == "host" and any(known.lower() == "host" for known, _ in draft.entry.headers):
        raise ConfigError("a request has one Host")
    draft.entry.headers = (*draft.entry.headers, (name, _header_value(name, value)))


def _header_value(name: str, value: str) -> str:
    if not value.isascii():
        raise ConfigError(f"{name} takes plain ASCII, and {escape(value)!r} is more")
    return value.strip()


def _http_login(draft: Draft, statement: Statement) -> None:
    source = draft.source(statement)
    username, password = read_login(source)
    if password is None:
        raise source.error(f"{source.name} has no password in its second line")
    draft.entry.http_login = username, password


def _socks_proxy(draft: Draft, statement: Statement) -> None:
    host, port, login = (*statement.words, None, None)[:3]
    assert host is not None
    proxy = SocksProxy(_host(host), _parse_port(port or "1080"))
    if login is not None:
        source = draft.source(replace(statement, words=(login,)))
        username, password = read_login(source)
        if password is None:
            raise source.error(f"{source.name} has no password in its second line")
        proxy = replace(proxy, username=username, password=password)
    draft.entry.socks_proxy = proxy


def _host(text: str) -> str:
    if not re.fullmatch(r"[^\s/\\\"'<>@]{1,255}", text):
        raise ConfigError(f"{escape(text)!r} is no host name or address")
    if not _is_address(text):
        try:
            encoded = text.encode("idna")
        except UnicodeError:
            encoded = b""
        if not 0 < len(encoded) < 255:
            raise ConfigError(f"{escape(text)!r} is no host name")
    return text


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _parse_port(text: str) -> int:
    return number(text, 1, 65535, "a port")


def _parse_proto(text: str) -> str:
    if text in PROTOS:
        return text
    if text.endswith("-server"):
        raise ConfigError(f"{text} is for a server", instead="write udp or tcp")
    raise ConfigError(f"{escape(text)!r} is no protocol", instead="write udp, udp4, udp6, tcp, tcp4 or tcp6")


PROTOS = names("udp udp4 udp6 tcp tcp4 tcp6 tcp-client tcp4-client tcp6-client")
TAKERS: dict[str, Taker] = {
    "remote": _remote,
    "port": _port,
    "rport": _port,
    "lport": _lport,
    "proto": _proto,
    "bind": _bind,
    "nobind": _bind,
    "local": _local,
    "http-proxy": _http_proxy,
    "http-proxy-option": _http_proxy_option,
    "http-proxy-user-pass": _http_login,
    "socks-proxy": _socks_proxy,
}
