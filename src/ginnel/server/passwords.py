"""Users' passwords, as they are kept: argon2id, so that a stolen database does not give them away."""

from __future__ import annotations

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

_HASHER = PasswordHasher()
# Verified against where there is no password, so that the time taken does not tell who exists.
_NOBODY = _HASHER.hash("nobody's password")


def hash_password(password: str) -> str:
    """Takes some tens of milliseconds and 64 MiB, as it is meant to."""
    return _HASHER.hash(password)


def verify_password(hashed: str | None, password: str) -> bool:
    """False for a wrong password, and for a user without one (``hashed`` None)."""
    try:
        return _HASHER.verify(hashed or _NOBODY, password) and hashed is not None
    except (Argon2Error, InvalidHashError):
        return False
