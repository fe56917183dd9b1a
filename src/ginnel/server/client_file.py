"""The file that a user opens in any OpenVPN client."""

from __future__ import annotations

import ipaddress
import socket

from ginnel.errors import ConfigError
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
        f"verify-x509-name {identity.name} name",
        "data-ciphers AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305",
        *(f"remote {host} {port} {protocol}" for protocol, host, port in remotes),
    ]
    if password:
        lines.append("auth-user-pass")
    blocks = {"ca": identity.ca, "cert": issued.certificate, "key": issued.key, "tls-crypt-v2": wrap_key}
    return "\n".join([*lines, *(f"<{tag}>\n{text.strip()}\n</{tag}>" for tag, text in blocks.items())]) + "\n"


def remotes(listeners: list[str], public: str | None) -> tuple[list[tuple[str, str, int]], str | None]:
    """What a client file names, from where the server listens and how it is reached; and a warning.

    Raises ConfigError when no server has said yet where it listens, and nobody says it now.
    """
    places = [_place(line) for line in listeners] or [("udp", "0.0.0.0", 1194)]
    if public is not None:
        name, given = split_host(public)
        return [(protocol, name, given or port) for protocol, _, port in places], None
    found, warning = [], None
    for protocol, address, port in places:
        host = address
        if ipaddress.ip_address(address).is_unspecified:
            host = default_address()
            warning = f"client files name {host}, this machine's address; if it is reached by another, give --public"
        found.append((protocol, host, port))
    return list(dict.fromkeys(found)), warning


def _place(line: str) -> tuple[str, str, int]:
    protocol, place = line.split()
    host, _, port = place.rpartition(":")
    return protocol, host.strip("[]"), int(port)


def split_host(public: str) -> tuple[str, int | None]:
    """``HOST[:PORT]``, an IPv6 address in brackets where a port follows. Raises ConfigError."""
    host, port = public, ""
    if public.startswith("["):
        host, _, port = public[1:].partition("]")
        port = port.removeprefix(":")
    elif public.count(":") == 1:
        host, _, port = public.partition(":")
    if not host or any(letter.isspace() for letter in host) or (port and not port.isdecimal()):
        raise ConfigError(f"--public {public}: not a host, or a host and a port", instead="write HOST[:PORT]")
    return host, int(port) if port else None


def default_address() -> str:
    """The address from which this machine reaches others. Raises ConfigError without a default route."""
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                # Sends nothing: only the route is looked up.
                probe.connect((far, 9))
            except OSError:
                continue
            return str(probe.getsockname()[0])
    raise ConfigError("this machine has no default route to take its address from", instead="give --public HOST")
