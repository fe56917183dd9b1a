"""HTTP's Basic and Digest authentication, a client's side (RFC 7617, RFC 7616). Texts are UTF-8 with
``surrogateescape``: what is something else goes back as it came."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Challenge:
    """What a proxy asks for: ``scheme`` is "basic" or "digest", ``values`` the rest by lower-case name."""

    scheme: str
    values: dict[str, str]


def parse_challenges(fields: Iterable[str]) -> list[Challenge]:
    """The challenges in the values of Proxy-Authenticate that we can answer, the stronger first."""
    found: list[Challenge] = []
    for field in fields:
        for name, quoted, bare, scheme in re.findall(PART, field):
            if scheme:
                found.append(Challenge(scheme.lower(), {}))
            elif found:
                found[-1].values[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted else bare
    return sorted(filter(_answerable, found), key=_weakness)


def schemes(fields: Iterable[str]) -> list[str]:
    """The kinds of login that these values ask for, each by its first, as they are written."""
    return [found[0][:20] for field in fields if (found := re.match(TOKEN, field))]


def answer(challenge: Challenge, username: str, password: str, method: str, uri: str, cnonce: str) -> str:
    """The value of Proxy-Authorization; ``cnonce`` is random, and new each time.
    Raises ValueError for a user that can't be said."""
    if challenge.scheme == "basic":
        if ":" in username:
            raise ValueError("a user with a colon in it can't log in to this proxy")
        return "Basic " + base64.b64encode(_bytes(f"{username}:{password}")).decode()
    return _digest(challenge.values, username, password, method, uri, cnonce)


def _digest(values: dict[str, str], username: str, password: str, method: str, uri: str, cnonce: str) -> str:
    name = values.get("algorithm", "MD5").upper()
    digest = ALGORITHMS[name]
    realm, nonce = values.get("realm", ""), values.get("nonce", "")
    secret = digest(f"{username}:{realm}:{password}")
    if name.endswith("-SESS"):
        secret = digest(f"{secret}:{nonce}:{cnonce}")
    asked = digest(f"{method}:{uri}")
    said = {"username": username, "realm": realm, "nonce": nonce, "uri": uri}
    bare = {"algorithm": values["algorithm"]} if "algorithm" in values else {}
    if "auth" in re.split(r"[\s,]+", values.get("qop", "")):
        bare |= {"qop": "auth", "nc": COUNT}
        said["cnonce"] = cnonce
        said["response"] = digest(f"{secret}:{nonce}:{COUNT}:{cnonce}:auth:{asked}")
    else:
        said["response"] = digest(f"{secret}:{nonce}:{asked}")
    if "opaque" in values:
        said["opaque"] = values["opaque"]
    quoted = [f'{key}="{_escape(value)}"' for key, value in said.items()]
    return "Digest " + ", ".join([*quoted, *(f"{key}={value}" for key, value in bare.items())])


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _answerable(challenge: Challenge) -> bool:
    if challenge.scheme == "digest":
        return challenge.values.get("algorithm", "MD5").upper() in ALGORITHMS
    return challenge.scheme == "basic"


def _weakness(challenge: Challenge) -> int:
    if challenge.scheme == "basic":
        return 2
    return 0 if challenge.values.get("algorithm", "").upper().startswith("SHA-256") else 1


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _hex(name: str) -> Callable[[str], str]:
    return lambda text: hashlib.new(name, _bytes(text), usedforsecurity=False).hexdigest()


TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# name="quoted" or name=bare, or a scheme; commas and white space lie between.
PART = rf'({TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))|({TOKEN})'
ALGORITHMS = {"MD5": _hex("md5"), "MD5-SESS": _hex("md5"), "SHA-256": _hex("sha256"), "SHA-256-SESS": _hex("sha256")}
# Each nonce is used once: a CONNECT is the only request.
COUNT = "00000001"
