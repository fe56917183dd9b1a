"""The options of an ``.ovpn`` file about whom to trust, who we are, and how the control channel is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ginnel.errors import ConfigError
from ginnel.openvpn import ovpn_pem
from ginnel.openvpn.ovpn_draft import Draft, Taker, one_of
from ginnel.openvpn.ovpn_lexer import Statement
from ginnel.openvpn.tls import VerifyName
from ginnel.openvpn.tls_crypt_v2 import ClientKey
from ginnel.openvpn.words import escape


def _certificates(name: str) -> Taker:
    def take(draft: Draft, statement: Statement) -> None:
        draft.values[name] = ovpn_pem.certificates(draft.source(statement))

    return take


def _key(draft: Draft, statement: Statement) -> None:
    draft.values["key"] = ovpn_pem.private_key(draft.source(statement))


def _pkcs12(draft: Draft, statement: Statement) -> None:
    draft.values["pkcs12"] = draft.binary(statement)


def _askpass(draft: Draft, statement: Statement) -> None:
    if statement.words in ((), ("stdin",)):
        return
    source = draft.source(statement)
    password = source.text.split("\n")[0].rstrip("\r")
    if not password:
        raise source.error(f"{source.name} has no password in its first line")
    draft.values["key_password"] = password


def _crl(draft: Draft, statement: Statement) -> None:
    for word in statement.words[1:]:
        one_of(word, "dir")
    if len(statement.words) > 1:
        draft.values["crl_file"], draft.values["crl"] = draft.revoked(statement)
        return
    source = draft.source(statement)
    draft.values["crl"] = ovpn_pem.revocation_lists(source)
    draft.values["crl_file"] = source.file


def _static_key(draft: Draft, statement: Statement) -> None:
    draft.static_keys[statement.name] = ovpn_pem.static_key(draft.source(statement))
    if len(statement.words) > 1:
        draft.direction = int(one_of(statement.words[1], "0", "1"))


def _client_key(draft: Draft, statement: Statement) -> None:
    source = draft.source(statement)
    try:
        draft.client_key = ClientKey.parse(source.text)
    except ConfigError as error:
        raise source.error(f"{source.name}: {error.message}", instead=error.instead) from None


def _key_direction(draft: Draft, statement: Statement) -> None:
    draft.direction = int(one_of(statement.words[0], "0", "1"))


def _fingerprint(draft: Draft, statement: Statement) -> None:
    for at, line in _lines(statement):
        if not re.fullmatch("[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){31}", line):
            raise ConfigError(
                "not a SHA-256 fingerprint, which is 32 pairs of hexadecimal digits with colons between them",
                line=at,
                instead="take it from: openssl x509 -noout -fingerprint -sha256 -in CERTIFICATE",
            )
        draft.append("peer_fingerprints", line.lower())


def _issuer_fingerprint(draft: Draft, statement: Statement) -> None:
    """``verify-hash HASH [ALGORITHM]``; SHA-1 is its default, as in stock."""
    given = statement.words[1:] if statement.block is None else statement.words
    size = 20 if one_of((*given, "SHA1")[0].upper(), "SHA1", "SHA256") == "SHA1" else 32
    for at, line in _lines(statement):
        if not re.fullmatch(f"[0-9A-Fa-f]{{2}}(:[0-9A-Fa-f]{{2}}){{{size - 1}}}", line):
            raise ConfigError(
                f"not {size} pairs of hexadecimal digits with colons between them",
                line=at,
                instead="take it from: openssl x509 -noout -fingerprint -sha256, and write SHA256 after it",
            )
        draft.append("issuer_fingerprints", line.lower())


def _lines(statement: Statement) -> Iterator[tuple[int, str]]:
    """The value of a line, or the lines of a block that aren't comments, with their numbers."""
    if statement.block is None:
        yield statement.line, statement.words[0]
        return
    for at, line in enumerate(statement.block.split("\n"), statement.line + 1):
        line = line.strip()
        if line and line[0] not in "#;":
            yield at, line


def _key_usages(draft: Draft, statement: Statement) -> None:
    for word in statement.words:
        if not re.fullmatch("(0x)?[0-9A-Fa-f]{1,4}", word):
            raise ConfigError(f"{escape(word)!r} is no key usage", instead="write hexadecimal numbers, as in: a0 88")
    draft.values["remote_cert_ku"] = tuple(int(word, 16) for word in statement.words)


def _remote_cert_tls(draft: Draft, statement: Statement) -> None:
    draft.values["remote_cert_tls"] = one_of(statement.words[0], "server", "client")


def _ns_cert_type(draft: Draft, statement: Statement) -> None:
    one_of(statement.words[0], "server")
    draft.values["ns_cert_type"] = True


def _text(name: str) -> Taker:
    def take(draft: Draft, statement: Statement) -> None:
        draft.values[name] = statement.words[0]

    return take


def _cert_profile(draft: Draft, statement: Statement) -> None:
    draft.values["cert_profile"] = one_of(statement.words[0], "insecure", "legacy", "preferred", "suiteb")


def _username_fields(draft: Draft, statement: Statement) -> None:
    draft.values["username_fields"] = statement.words


def _verify_name(draft: Draft, statement: Statement) -> None:
    name, kind = (*statement.words, "subject")[:2]
    if not name:
        raise ConfigError("an empty name would match anything or nothing")
    match kind:
        case "subject" | "name" | "name-prefix":
            draft.values["verify_x509_name"] = VerifyName(name, kind)
        case _:
            one_of(kind, "subject", "name", "name-prefix")


def _tls_version(name: str) -> Taker:
    def take(draft: Draft, statement: Statement) -> None:
        for word in statement.words[1:]:
            one_of(word, "or-highest")
        # So a file may ask for what comes after its time.
        known = statement.words[0] in VERSIONS or len(statement.words) == 1
        draft.values[name] = one_of(statement.words[0], *VERSIONS) if known else VERSIONS[-1]

    return take


VERSIONS = ("1.0", "1.1", "1.2", "1.3")
TAKERS: dict[str, Taker] = {
    "ca": _certificates("ca"),
    "cert": _certificates("cert"),
    "extra-certs": _certificates("extra_certs"),
    "key": _key,
    "pkcs12": _pkcs12,
    "askpass": _askpass,
    "crl-verify": _crl,
    "peer-fingerprint": _fingerprint,
    "verify-hash": _issuer_fingerprint,
    "remote-cert-tls": _remote_cert_tls,
    "remote-cert-ku": _key_usages,
    "remote-cert-eku": _text("remote_cert_eku"),
    "ns-cert-type": _ns_cert_type,
    "verify-x509-name": _verify_name,
    "x509-username-field": _username_fields,
    "tls-auth": _static_key,
    "tls-crypt": _static_key,
    "tls-crypt-v2": _client_key,
    "key-direction": _key_direction,
    "tls-version-min": _tls_version("tls_version_min"),
    "tls-version-max": _tls_version("tls_version_max"),
    "tls-cipher": _text("cipher_list"),
    "tls-ciphersuites": _text("cipher_suites"),
    "tls-groups": _text("groups"),
    "ecdh-curve": _text("groups"),
    "tls-cert-profile": _cert_profile,
}
