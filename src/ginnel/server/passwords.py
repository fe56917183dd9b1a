"""Users' passwords, as they are kept: argon2id, so that a stolen database does not give them away."""

from __future__ import annotations

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from ginnel.errors import ConfigError
from ginnel.openvpn.ovpn_login import MAX_CREDENTIAL

_HASHER = PasswordHasher()
# Verified against where there is no password, so that the time taken does not tell who exists.
_NOBODY = _HASHER.hash("nobody's password")


def hash_password(password: str) -> str:
    """Takes some tens of milliseconds and 64 MiB, as it is meant to. ConfigError for what no client can send."""
    if not password.isprintable():
        raise ConfigError("a password of other than printable characters: nobody could log in with it")
    if len(password.encode()) > MAX_CREDENTIAL:
        raise ConfigError(f"a password of more than {MAX_CREDENTIAL} bytes: nobody could log in with it")
    return _HASHER.hash(password)


def verify_password(hashed: str | None, password: str) -> bool:
    """False for a wrong password, and for a user without one (``hashed`` None)."""
    try:
        return _HASHER.verify(hashed or _NOBODY, password) and hashed is not None
    except (Argon2Error, InvalidHashError):
        return False
