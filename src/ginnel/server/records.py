"""What a server wants to know of its users, whoever keeps it (`ginnel.server.store` by default)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from ginnel.server.pool import Pool


class Identity(Protocol):
    """Texts in PEM. ``tls_crypt_v2`` is the server's key, ``token_key`` 32 bytes of its own."""

    @property
    def name(self) -> str: ...
    @property
    def ca(self) -> str: ...
    @property
    def cert(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def tls_crypt_v2(self) -> str: ...
    @property
    def token_key(self) -> bytes: ...


class User(Protocol):
    """``serial`` is that of the certificate which counts. ``address`` and ``address6`` are fixed ones; ``routes`` the
    networks behind the user, as CIDR (``iroute``). ``password_since`` is when the password was changed last, in
    seconds since 1970, 0 for never: tokens of before count no more."""

    @property
    def name(self) -> str: ...
    @property
    def serial(self) -> int: ...
    @property
    def revoked(self) -> bool: ...
    @property
    def address(self) -> IPv4Address | None: ...
    @property
    def address6(self) -> IPv6Address | None: ...
    @property
    def routes(self) -> Sequence[str]: ...
    @property
    def has_password(self) -> bool: ...
    @property
    def password_since(self) -> float: ...


class Store(Protocol):
    """Its methods return at once, but for ``check_password``, which is called on another thread."""

    @property
    def identity(self) -> Identity: ...
    def user(self, name: str) -> User | None: ...
    def check_password(self, name: str, password: str) -> bool: ...
    def is_revoked(self, serial: int) -> bool:
        """Whether the certificate with this serial number opens nothing any longer."""

    def version(self) -> int:
        """Another number whenever users or revocations have changed."""

    def fixed_addresses(self) -> Collection[IPv4Address | IPv6Address]:
        """Of all users: nobody else is given one."""

    def lease(self, name: str) -> tuple[IPv4Address | None, IPv6Address | None]: ...
    def set_lease(self, name: str, address: IPv4Address | None, address6: IPv6Address | None) -> None: ...
    def shown_tokens(self) -> Mapping[bytes, int]:
        """By the token's session, when the one was made that was shown last: those before it are used up."""

    def show_token(self, session: bytes, made: int) -> None: ...
    def begin_session(self, name: str, remote: str) -> int: ...
    def account(self, session: int, rx: int, tx: int) -> None:
        """The bytes of a session so far, from the client and to it."""

    def end_session(self, session: int, reason: str) -> None: ...
    def settle(self, timeout: float = 2.0) -> bool:
        """Waits until what was told is written; whether it is. Called on another thread."""

    def set_listeners(self, listeners: Sequence[str], public: str | None) -> None: ...
    def set_inner(self, pool: Pool) -> None:
        """Which addresses clients have, as of this start."""
