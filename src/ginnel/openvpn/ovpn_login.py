"""The options of an ``.ovpn`` file about the user and the password."""

from __future__ import annotations

from ginnel.openvpn.config import AuthUserPass
from ginnel.openvpn.login import StaticChallenge
from ginnel.openvpn.ovpn_draft import Draft, Taker, one_of
from ginnel.openvpn.ovpn_lexer import Statement
from ginnel.openvpn.ovpn_pem import Source


def read_login(source: Source) -> tuple[str, str | None]:
    """User and password, a line each; None for a password that is to be asked for."""
    username, password = [*(line.rstrip("\r") for line in source.text.split("\n")), "", ""][:2]
    if not username:
        raise source.error(f"{source.name} has no user in its first line")
    for at, word in enumerate((username, password)):
        if not word.isprintable() or len(word) > MAX_CREDENTIAL:
            raise source.error(f"{source.name} has something other than a user and a password", at=at)
    return username, password or None


def _auth_user_pass(draft: Draft, statement: Statement) -> None:
    if statement.block is None and statement.words in ((), ("stdin",)):
        draft.values["auth_user_pass"] = AuthUserPass()
    elif statement.words == ("username-only",):
        draft.values["auth_user_pass"] = AuthUserPass(None, NO_PASSWORD)
    else:
        source = draft.source(statement)
        draft.values["auth_user_pass"] = AuthUserPass(*read_login(source), source.file)


def _auth_retry(draft: Draft, statement: Statement) -> None:
    draft.values["auth_retry"] = one_of(statement.words[0], "none", "nointeract", "interact")


def _static_challenge(draft: Draft, statement: Statement) -> None:
    text, echo, form = (*statement.words, "scrv1")[:3]
    shown = one_of(echo, "0", "1") == "1"
    match one_of(form.lower(), "scrv1", "concat"):
        case "concat":
            draft.values["static_challenge"] = StaticChallenge(text, shown, "concat")
        case _:
            draft.values["static_challenge"] = StaticChallenge(text, shown)


MAX_CREDENTIAL = 4095
# What stock sends where a file says that there is no password (misc.c).
NO_PASSWORD = "[[BLANK]]"
TAKERS: dict[str, Taker] = {
    "auth-user-pass": _auth_user_pass,
    "auth-retry": _auth_retry,
    "static-challenge": _static_challenge,
}
