"""The file that a user opens in any OpenVPN client from 2.6 on."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket

from ginnel.errors import ConfigError, LocalProtocolError
from ginnel.openvpn.words import quote
from ginnel.server.authority import Issued
from ginnel.server.service import Server
from ginnel.server.store import Identity, Store


def add_user(server: Server, name: str, *, password: str | None = None) -> str:
    """Adds a user to a running server of `ginnel.serve`: the text of the client's file, as ``ginnel user add`` makes
    it. It holds the user's key. Takes a moment, with a password a tenth of a second.

    Raises ConfigError for who is a user already, and for what is no name.
    """
    store = server.store
    if not isinstance(store, Store):
        raise LocalProtocolError("the server's users are kept by a program of its own; ask that")
    places, _ = remotes(*store.listeners())
    wrap_key = store.make_wrap_key(name)
    issued = store.add_user(name, password=password)
    return client_file(store.identity, issued, wrap_key, places, password=password is not None)


def client_file(
    identity: Identity, issued: Issued, wrap_key: str, remotes: list[tuple[str, str, int]], *, password: bool
) -> str:
    """``remotes`` are protocol (``udp``, ``tcp``), host and port, in the order in which they are tried."""
    lines = [
        "client",
        "dev tun",
        "nobind",
        "remote-cert-tls server",
        f"verify-x509-name {quote(identity.name)} name",
        "data-ciphers AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305",
        *(f"remote {host} {port} {protocol}" for protocol, host, port in remotes),
    ]
    if password:
        lines.append("auth-user-pass")
    blocks = {"ca": identity.ca, "cert": issued.certificate, "key": issued.key, "tls-crypt-v2": wrap_key}
    return "\n".join([*lines, *(f"<{tag}>\n{text.strip()}\n</{tag}>" for tag, text in blocks.items())]) + "\n"


def remotes(listeners: list[str], public: str | None) -> tuple[list[tuple[str, str, int]], str | None]:
    """What a client file names, from where the server listens and how it is reached; and a warning, where
    something had to be guessed. Raises ConfigError for a ``public`` that cannot be.
    """
    warning = None
    places = [_place(line) for line in listeners]
    if not places:
        places = [("udp", "0.0.0.0", 1194)]
        warning = "no server has run here yet; the file names UDP port 1194, where one listens unless told otherwise"
    if public is not None:
        name, given = split_host(public)
        named = [(protocol, name, given or port) for protocol, _, port in places]
        return list(dict.fromkeys(named)), None if given else warning
    # By how likely others reach them: clients try one after the other, and wait long for one that does not answer.
    ranked: list[tuple[int, tuple[str, str, int]]] = []
    guessed: list[str] = []
    for protocol, address, port in places:
        own = ipaddress.ip_address(address)
        if own.is_unspecified:
            host = default_address(own.version)
            if host is not None:
                guessed.append(host)
                ranked.append((_rank(host), (protocol, host, port)))
            continue
        if own.is_loopback:
            warning = f"client files name {address}, which no other machine reaches; give --public for one that does"
        ranked.append((0, (protocol, address, port)))
    if not ranked:
        what = "this machine has no default route to take its address from"
        raise ConfigError(what, instead="give --public HOST")
    ranked.sort(key=lambda each: each[0])
    worst = max(ranked[0][0], LAST_USEFUL)
    found = list(dict.fromkeys(place for rank, place in ranked if rank <= worst))
    hosts = [host for host in dict.fromkeys(guessed) if any(host == place[1] for place in found)]
    if hosts:
        what = "this machine's address" if len(hosts) == 1 else "this machine's addresses"
        text = f"client files name {' and '.join(hosts)}, {what}"
        warning = f"{text}; if it is reached by another, give --public"
    return found, warning


def _place(line: str) -> tuple[str, str, int]:
    protocol, place = line.split()
    host, _, port = place.rpartition(":")
    return protocol, host.strip("[]"), int(port)


def split_host(public: str) -> tuple[str, int | None]:
    """``HOST[:PORT]``, an IPv6 address in brackets where a port follows. Raises ConfigError."""
    match = _PUBLIC.fullmatch(public)
    host = match and (match["bracketed"] or match["host"] or match["address"])
    port = match and (match["bracketed_port"] or match["port"])
    if not host or not _is_host(host) or (port and not 0 < int(port) < 65536):
        instead = "write HOST[:PORT], an IPv6 address with a port in brackets"
        raise ConfigError(f"--public {public}: not a host, or a host and a port", instead=instead)
    return host, int(port) if port else None


def _is_host(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(text).is_unspecified
    return len(text) < 254 and all(_LABEL.fullmatch(label) for label in text.removesuffix(".").split("."))


def default_address(version: int) -> str | None:
    """The IPv4 or IPv6 address from which this machine reaches others; None without a default route."""
    family, far = _FAR[version]
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        # Sends nothing: only the route is looked up.
        probe.connect((far, 9))
        return str(probe.getsockname()[0])
    return None


def _rank(host: str) -> int:
    """How likely others are to reach an address of this machine: the smaller, the likelier."""
    address = ipaddress.ip_address(host)
    if address.is_link_local or address in _UNIQUE_LOCAL:
        return LAST_USEFUL + 1
    return (0 if address.is_global else 2) + (address.version == 6)


# Addresses set aside for documentation (RFC 5737, RFC 3849): the way to them is the default route.
_FAR = {4: (socket.AF_INET, "192.0.2.1"), 6: (socket.AF_INET6, "2001:db8::1")}
# Reached from its own site alone (RFC 4193).
_UNIQUE_LOCAL = ipaddress.IPv6Network("fc00::/7")
LAST_USEFUL = 3
_PUBLIC = re.compile(
    r"\[(?P<bracketed>[^\[\]]+)\](:(?P<bracketed_port>[0-9]{1,5}))?"
    r"|(?P<host>[^:\[\]]+)(:(?P<port>[0-9]{1,5}))?"
    r"|(?P<address>[^\[\]]+)"
)
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
