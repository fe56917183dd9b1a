"""``auth-gen-token``: what a server hands out so that a password is asked for once.

A token is ``SESS_ID_AT_`` and the base64 of 60 bytes (OpenVPN ``auth_token.c``): a session id (12), the times of
the first token and of this one (8 each, seconds since 1970, big-endian), and HMAC-SHA256 over the user name and
all that. Nothing is kept for it but the key.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class AuthTokens:
    """``secret`` has 32 bytes. ``lifetime``: seconds for which the first token's login counts, 0 for ever.
    ``renewal``: seconds after which a new token is due; one counts for twice as long. One that seems to come from the
    next `SKEW` seconds counts: a server's clock may have been set back since."""

    secret: bytes = field(repr=False)
    random: Callable[[int], bytes] = field(repr=False)
    lifetime: int = 0
    renewal: int = 3600

    def first(self, username: str, unix_time: float) -> str:
        return self._emit(username, self.random(SESSION_SIZE), int(unix_time), int(unix_time))

    def renew(self, token: str, username: str, unix_time: float) -> str | None:
        """The next token of the same session; None where ``token`` is not valid, or counts no more."""
        try:
            data = base64.b64decode(token.removeprefix(PREFIX), validate=True)
        except (binascii.Error, ValueError):
            return None
        if not is_token(token) or len(data) != SIZE:
            return None
        body, tag = data[:-TAG_SIZE], data[-TAG_SIZE:]
        if not hmac.compare_digest(tag, self._tag(username, body)):
            return None
        session, began, made = struct.unpack(LAYOUT, body)
        fresh = began <= made <= unix_time + SKEW and unix_time < made + 2 * self.renewal
        if not fresh or (self.lifetime and unix_time > began + self.lifetime):
            return None
        # Later than the one before in any case: by that the two are told apart.
        return self._emit(username, session, began, max(int(unix_time), made + 1))

    def _emit(self, username: str, session: bytes, began: int, made: int) -> str:
        body = struct.pack(LAYOUT, session, began, made)
        return PREFIX + base64.b64encode(body + self._tag(username, body)).decode()

    def _tag(self, username: str, body: bytes) -> bytes:
        return hmac.digest(self.secret, username.encode(errors="surrogateescape") + body, "sha256")


def session_of(token: str) -> tuple[bytes, int, int]:
    """The session id of a valid token, and when its first token and it itself were made."""
    session, began, made = struct.unpack_from(LAYOUT, base64.b64decode(token.removeprefix(PREFIX)))
    return session, began, made


def is_token(password: str) -> bool:
    """Whether it has a token's form: it is never a password then."""
    return password.startswith(PREFIX) and len(password) == len(PREFIX) + SIZE * 4 // 3


SKEW = 300
PREFIX = "SESS_ID_AT_"
LAYOUT = ">12sqq"
SESSION_SIZE = 12
TAG_SIZE = 32
SIZE = struct.calcsize(LAYOUT) + TAG_SIZE
# What stock tells a client whose token counts no more: it asks its user for the password then.
EXPIRED = "SESSION: token expired"
