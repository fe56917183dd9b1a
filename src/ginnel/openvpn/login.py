"""Who we say we are, over as many attempts as it takes: user and password, the server's token in their
place, and its questions (OpenVPN ``ssl.c``, ``misc.c``).

A token replaces the password until the server refuses it; then the password counts again. An answer
to a challenge holds for one login: it mostly is a code that works once.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Literal

from ginnel.openvpn.events import Prompt


@dataclass(frozen=True)
class Credentials:
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class StaticChallenge:
    """``static-challenge``: a question that comes with the first login. The answer is sent encoded
    beside the password ("scrv1") or straight after it ("concat")."""

    text: str
    echo: bool
    form: Literal["scrv1", "concat"] = "scrv1"


@dataclass(frozen=True)
class DynamicChallenge:
    """A question that the server answers a login with (CRV1)."""

    state: str = field(repr=False)
    username: str
    text: str
    echo: bool
    needs_answer: bool

    @classmethod
    def parse(cls, reason: str) -> DynamicChallenge:
        """Takes "CRV1:FLAGS:STATE:USER:TEXT" with USER in base64. Raises ValueError."""
        match = re.fullmatch(r"CRV1:([^:]*):([^:]*):([^:]*):(.*)", reason)
        if match is None:
            raise ValueError("a challenge without its five parts")
        try:
            username = base64.b64decode(match[3], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError("a challenge whose user is not base64") from None
        flags = match[1].split(",")
        return cls(match[2], username, match[4], "E" in flags, "R" in flags)


class Login:
    """What we have to say for ourselves. It outlives sessions; a session asks for `credentials`."""

    def __init__(
        self,
        username: str | None = None,
        password: str | None = None,
        *,
        wanted: bool = True,
        static_challenge: StaticChallenge | None = None,
        retry: Literal["none", "nointeract", "interact"] = "none",
        nocache: bool = False,
    ) -> None:
        """``wanted``: the server asks for a user and a password; the file says so by ``auth-user-pass``.
        ``retry`` and ``nocache`` are ``auth-retry`` and ``auth-nocache``: what was typed is forgotten when the
        tunnel is up, what a file or a program gave has its place there anyway."""
        self._username = username
        self._password = password
        self._given = (username, password)
        self._wanted = wanted
        self._static = static_challenge
        self._retry = retry
        self._nocache = nocache
        self._token: Credentials | None = None
        self._challenge: DynamicChallenge | None = None
        self._response: str | None = None

    @property
    def prompt(self) -> Prompt | None:
        """What has to be asked before the next attempt makes sense."""
        if not self._wanted or self._token is not None:
            return None
        if self._challenge is not None:
            if self._response is not None:
                return None
            return Prompt("challenge", self._challenge.text, self._challenge.echo, self._challenge.needs_answer)
        if self._username is None:
            return Prompt("username", "User", echo=True)
        if self._password is None:
            return Prompt("password", f"Password for {self._username}", echo=False)
        if self._static is not None and self._response is None:
            return Prompt("challenge", self._static.text, self._static.echo)
        return None

    def answer(self, prompt: Prompt, text: str) -> None:
        match prompt.kind:
            case "username":
                self._username = text
            case "password":
                self._password = text
            case _:
                self._response = text

    def renew(self, username: str, password: str | None) -> None:
        """What gave user and password was read anew. What the server refused (``auth-retry interact``) was given up."""
        if self._given == NOTHING:
            return
        self._given = (username, self._given[1] if password is None else password)
        self._username = username
        self._password = self._password if password is None else password

    @property
    def forgetful(self) -> bool:
        """Nobody may keep `credentials` longer than they are needed."""
        return self._nocache

    @property
    def credentials(self) -> Credentials | None:
        """What the next key message says; None for nothing."""
        if self._token is not None:
            return self._token
        if not self._wanted:
            return None
        username, password, response = self._username or "", self._password or "", self._response or ""
        if self._challenge is not None:
            return Credentials(self._challenge.username, f"CRV1::{self._challenge.state}::{response}")
        match self._static:
            case StaticChallenge(form="scrv1"):
                return Credentials(username, f"SCRV1:{base64_text(password)}:{base64_text(response)}")
            case StaticChallenge(form="concat"):
                return Credentials(username, password + response)
            case _:
                return Credentials(username, password)

    def take_token(self, token: str, user: str | None) -> None:
        """``auth-token``, and ``auth-token-user`` in base64. Raises ValueError for a user that isn't."""
        username = self._username or ""
        if self._token is not None:
            username = self._token.username
        try:
            if user is not None:
                username = base64.b64decode(user, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError("is not base64") from None
        finally:
            self._token = Credentials(username, token)

    def accepted(self) -> None:
        """The tunnel is up: what was good for one login is used up."""
        self._response = self._challenge = None
        if self._nocache:
            self._password = self._given[1]

    def refused(self, reason: str) -> bool:
        """The server said AUTH_FAILED: whether another attempt makes sense, when `prompt` is answered."""
        self._response = self._challenge = None
        if self._token is not None:
            self._token = None
            return True
        if self._wanted and reason.startswith("CRV1:"):
            try:
                self._challenge = DynamicChallenge.parse(reason)
            except ValueError:
                return False
            return True
        if self._wanted and self._retry == "interact":
            self._username, self._password = self._given = NOTHING
            return True
        return self._retry != "none"

    def forget(self) -> None:
        """The server ended the session and wants a new login."""
        self._token = self._challenge = self._response = None


def base64_text(text: str) -> str:
    """What was typed, in base64: a terminal need not speak UTF-8, and its bytes count as they came."""
    return base64.b64encode(text.encode(errors="surrogateescape")).decode()


NOTHING: tuple[str | None, str | None] = (None, None)
