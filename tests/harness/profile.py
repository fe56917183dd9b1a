"""What a stock server and its client agree on, and the two files that say it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tests.harness import network, office
from tests.harness.pki import Authority, Identity, self_signed, static_key

PORT = 1194
LOGIN = ("alice", "correct horse ‘battery’")


@dataclass(frozen=True)
class Keys:
    """The certificates and keys of both sides. Each value can be replaced by a wrong one."""

    ca: str
    server: Identity
    client: Identity
    static: str = field(repr=False)

    @classmethod
    def make(cls, *, bare: bool = False) -> Keys:
        """``bare``: the server's certificate doesn't say what it is for."""
        authority = Authority()
        server = authority.issue("server", server=True, bare=bare)
        return cls(authority.certificate, server, authority.issue("client"), static_key())

    @classmethod
    def make_self_signed(cls) -> Keys:
        return cls("", self_signed("server", server=True), self_signed("client"), static_key())


class _CommonKeys:
    """Made when they are first asked for, and then shared: most tests don't care."""

    @cached_property
    def ca_signed(self) -> Keys:
        return Keys.make()

    @cached_property
    def bare(self) -> Keys:
        return Keys.make(bare=True)

    @cached_property
    def self_signed(self) -> Keys:
        return Keys.make_self_signed()


COMMON_KEYS = _CommonKeys()


@dataclass(frozen=True)
class Profile:
    """A way of running OpenVPN.

    ``digest`` and ``direction`` matter to tls-auth; ``tls`` is the only TLS version allowed, None
    for any. ``password`` asks for the user and password in ``LOGIN``. ``fingerprint`` puts
    peer-fingerprint in the place of the authority. ``names`` is pushed to say where names are resolved.
    """

    wrap: Literal["none", "tls-auth", "tls-crypt"] = "tls-crypt"
    digest: str = "SHA256"
    direction: bool = True
    cipher: str = "AES-256-GCM"
    tls: Literal["1.2", "1.3"] | None = None
    password: bool = False
    fingerprint: bool = False
    keepalive: tuple[int, int] = (10, 60)
    transport: Literal["udp", "tcp"] = "udp"
    address: str = network.SERVER
    names: str = f"dhcp-option DNS {office.ADDRESS}"
    server_options: tuple[str, ...] = ()
    client_options: tuple[str, ...] = ()
    keys: Keys = field(default_factory=lambda: COMMON_KEYS.ca_signed)

    def with_keys(self, **changes: Any) -> Profile:
        """The same with other values of `Keys`."""
        return replace(self, keys=replace(self.keys, **changes))

    def server_file(self, check_password: Path) -> str:
        return "\n".join(
            [
                *_SERVER,
                f"local {self.address}",
                f"port {PORT}",
                f'push "{self.names}"',
                f"proto {self._proto}{'-server' if self.transport == 'tcp' else ''}",
                "keepalive {} {}".format(*self.keepalive),
                *self._common(server=True),
                *([f"auth-user-pass-verify {check_password} via-file"] if self.password else []),
                *self.server_options,
                "",
            ]
        )

    def client_file(self, port: int = PORT) -> str:
        return "\n".join(
            [
                *_CLIENT,
                f"proto {self._proto}{'-client' if self.transport == 'tcp' else ''}",
                f"remote {self.address} {port}",
                *([] if self.fingerprint else ["remote-cert-tls server"]),
                *self._common(server=False),
                *(["auth-user-pass"] if self.password else []),
                *self.client_options,
                "",
            ]
        )

    @property
    def _proto(self) -> str:
        return f"{self.transport}6" if ":" in self.address else self.transport

    def _common(self, *, server: bool) -> list[str]:
        own, other = self.keys.server, self.keys.client
        if not server:
            own, other = other, own
        lines = [f"data-ciphers {self.cipher}", *_block("cert", own.certificate), *_block("key", own.key)]
        if self.fingerprint:
            lines += _block("peer-fingerprint", other.fingerprint)
        else:
            lines += _block("ca", self.keys.ca)
        if self.tls is not None:
            lines += [f"tls-version-min {self.tls}", f"tls-version-max {self.tls}"]
        if self.wrap == "tls-auth":
            lines.append(f"auth {self.digest}")
            if self.direction:
                lines.append(f"key-direction {0 if server else 1}")
        if self.wrap != "none":
            lines += _block(self.wrap, self.keys.static)
        return lines


def _block(name: str, text: str) -> list[str]:
    return [f"<{name}>", text.rstrip("\n"), f"</{name}>"]


_SERVER = [
    "server 10.8.0.0 255.255.255.0",
    "server-ipv6 fd08::/64",
    "topology subnet",
    "dev tun0",
    "dh none",
    "disable-dco",
    "script-security 2",
    "verb 3",
    'push "route 10.77.0.0 255.255.255.0"',
    'push "route-ipv6 fd77::/64"',
    'push "dhcp-option DOMAIN office"',
]
_CLIENT = ["client", "dev tun", "nobind", "connect-retry 1 2", "explicit-exit-notify 1", "verb 3"]
