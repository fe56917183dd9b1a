"""A server's users in memory, for tests of the server that are not about the store."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509

from ginnel.openvpn.tls_crypt_v2 import Metadata, ServerKey
from tests.harness.pki import Authority, Identity


@dataclass(frozen=True)
class House:
    """A server's own keys."""

    name: str
    ca: str
    cert: str
    key: str
    tls_crypt_v2: str
    token_key: bytes


@dataclass
class Person:
    name: str
    serial: int
    identity: Identity
    password: str | None = None
    revoked: bool = False
    expires: float = 2e9
    address: IPv4Address | None = None
    address6: IPv6Address | None = None
    routes: tuple[str, ...] = ()
    password_since: float = 0.0

    @property
    def has_password(self) -> bool:
        return self.password is not None


@dataclass
class People:
    """A `ginnel.server.records.Store`. ``sessions`` holds (name, remote, rx, tx, reason of the end)."""

    authority: Authority = field(default_factory=Authority)
    users: dict[str, Person] = field(default_factory=dict)
    leases: dict[str, tuple[IPv4Address | None, IPv6Address | None]] = field(default_factory=dict)
    sessions: list[list[object]] = field(default_factory=list)
    listeners: list[str] = field(default_factory=list)
    tokens: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        server = self.authority.issue("server", server=True)
        self._key = ServerKey(os.urandom(128))
        self._version = 0
        self.identity = House(
            "server", self.authority.certificate, server.certificate, server.key, self._key.emit(), os.urandom(32)
        )

    def __getstate__(self) -> dict[str, object]:
        """For another process, which has no use for the authority's private key."""
        return {key: value for key, value in vars(self).items() if key != "authority"}

    def add(self, name: str, password: str | None = None, *, days: int = 30, **fields: object) -> Person:
        identity = self.authority.issue(name, days=days)
        serial = x509.load_pem_x509_certificate(identity.certificate.encode()).serial_number
        person = Person(name, serial, identity, password, **fields)  # type: ignore[arg-type]
        self.users[name] = person
        self._version += 1
        return person

    def revoke(self, name: str) -> None:
        self.users[name].revoked = True
        self._version += 1

    def client_file(self, name: str, *lines: str, wrap: str | None = None) -> str:
        """``lines`` name the server at least; ``wrap`` is a block in the place of tls-crypt-v2."""
        person = self.users[name]
        if wrap is None:
            key = self._key.make_client_key(Metadata.made_at(1_700_000_000), os.urandom)
            wrap = f"<tls-crypt-v2>\n{key.emit()}</tls-crypt-v2>\n"
        blocks = {"ca": self.identity.ca, "cert": person.identity.certificate, "key": person.identity.key}
        start = ["client", "dev tun", "nobind", "remote-cert-tls server", "connect-retry 1 2", "verb 3", *lines]
        return "\n".join([*start, *(f"<{tag}>\n{text}</{tag}>" for tag, text in blocks.items()), wrap])

    # The store's side.

    def user(self, name: str) -> Person | None:
        return self.users.get(name)

    def check_password(self, name: str, password: str) -> bool:
        user = self.users.get(name)
        return user is not None and user.password == password

    def is_revoked(self, serial: int) -> bool:
        return any(person.serial == serial and person.revoked for person in self.users.values())

    def version(self) -> int:
        return self._version

    def fixed_addresses(self) -> set[IPv4Address | IPv6Address]:
        users = self.users.values()
        return {each for user in users for each in (user.address, user.address6) if each is not None}

    def lease(self, name: str) -> tuple[IPv4Address | None, IPv6Address | None]:
        return self.leases.get(name, (None, None))

    def set_lease(self, name: str, address: IPv4Address | None, address6: IPv6Address | None) -> None:
        self.leases[name] = address, address6

    def shown_tokens(self) -> dict[bytes, int]:
        return self.tokens

    def show_token(self, session: bytes, made: int) -> None:
        self.tokens[session] = made

    def begin_session(self, name: str, remote: str) -> int:
        self.sessions.append([name, remote, 0, 0, None])
        return len(self.sessions) - 1

    def account(self, session: int, rx: int, tx: int) -> None:
        self.sessions[session][2:4] = rx, tx

    def end_session(self, session: int, reason: str) -> None:
        self.sessions[session][4] = reason

    def settle(self, timeout: float = 2.0) -> bool:
        return True

    def set_listeners(self, listeners: object, public: str | None) -> None:
        self.listeners = list(listeners)  # type: ignore[call-overload]

    def set_inner(self, pool: object) -> None: ...
