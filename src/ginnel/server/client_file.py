"""The file that a user opens in any OpenVPN client."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket

from ginnel.errors import ConfigError
from ginnel.openvpn.words import quote
from ginnel.server.authority import Issued
from ginnel.server.store import Identity


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
    found = []
    for protocol, address, port in places:
        host = address
        if ipaddress.ip_address(address).is_unspecified:
            host = default_address(ipaddress.ip_address(address).version)
            warning = f"client files name {host}, this machine's address; if it is reached by another, give --public"
        elif ipaddress.ip_address(address).is_loopback:
            warning = f"client files name {host}, which no other machine reaches; give --public for one that does"
        found.append((protocol, host, port))
    return list(dict.fromkeys(found)), warning


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


def default_address(version: int) -> str:
    """The IPv4 or IPv6 address from which this machine reaches others. Raises ConfigError without a default route."""
    family, far = _FAR[version]
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        # Sends nothing: only the route is looked up.
        probe.connect((far, 9))
        return str(probe.getsockname()[0])
    what = f"this machine has no default route for IPv{version} to take its address from"
    raise ConfigError(what, instead="give --public HOST")


# Addresses set aside for documentation (RFC 5737, RFC 3849): the way to them is the default route.
_FAR = {4: (socket.AF_INET, "192.0.2.1"), 6: (socket.AF_INET6, "2001:db8::1")}
_PUBLIC = re.compile(
    r"\[(?P<bracketed>[^\[\]]+)\](:(?P<bracketed_port>[0-9]{1,5}))?"
    r"|(?P<host>[^:\[\]]+)(:(?P<port>[0-9]{1,5}))?"
    r"|(?P<address>[^\[\]]+)"
)
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
