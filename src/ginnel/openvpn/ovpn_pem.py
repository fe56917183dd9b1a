"""Certificates and keys from blocks and files: they parse, they fit, or the error says where they don't."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from ginnel.errors import ConfigError
from ginnel.openvpn.words import escape
from ginnel.openvpn.wrap import StaticKey


@dataclass(frozen=True)
class Source:
    """A text and where it is from. ``name`` is like "the <ca> block" or "the file x.crt"; ``file`` is
    None for a block, ``line`` that of the text's first line."""

    text: str = field(repr=False)
    name: str
    file: str | None
    line: int

    def error(self, message: str, *, at: int = 0, instead: str | None = None) -> ConfigError:
        """``at`` counts lines from the text's first, which is 0."""
        return ConfigError(message, file=self.file, line=self.line + at, instead=instead)


def certificates(source: Source) -> str:
    """The certificates as PEM, whatever is written between them left out."""
    found: list[str] = []
    for block in _pem_blocks(source):
        if block.label in CERTIFICATE:
            _load(source, block, f"certificate {len(found) + 1} in {source.name}")
            found.append(block.text)
    if not found:
        raise source.error(f"{source.name} has no certificate", instead=_expected("CERTIFICATE"))
    return "".join(found)


def private_key(source: Source) -> str:
    """The private key as PEM."""
    blocks = [block for block in _pem_blocks(source) if block.label.endswith("PRIVATE KEY")]
    if not blocks:
        raise source.error(f"{source.name} has no private key", instead=_expected("PRIVATE KEY"))
    if len(blocks) > 1:
        raise source.error(f"{source.name} has {len(blocks)} private keys", at=blocks[1].at, instead="keep one")
    block = blocks[0]
    if not is_encrypted(block.text):
        try:
            load_pem_private_key(block.text.encode(), None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            text = f"the private key in {source.name} is damaged or of an unknown kind"
            raise source.error(text, at=block.at) from None
    return block.text


def is_encrypted(key: str) -> bool:
    """Whether a private key in PEM needs a password."""
    return "BEGIN ENCRYPTED PRIVATE KEY" in key or "Proc-Type: 4,ENCRYPTED" in key


def revocation_lists(source: Source) -> str:
    """The revocation lists as PEM."""
    found = [block for block in _pem_blocks(source) if block.label == "X509 CRL"]
    if not found:
        raise source.error(f"{source.name} has no revocation list", instead=_expected("X509 CRL"))
    for block in found:
        try:
            x509.load_pem_x509_crl(block.text.encode())
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise source.error(f"a revocation list in {source.name} is damaged", at=block.at) from None
    return "".join(block.text for block in found)


def static_key(source: Source) -> StaticKey:
    if "OpenVPN tls-crypt-v2 client key" in source.text:
        raise source.error(f"{source.name} has a tls-crypt-v2 key", instead="write it as tls-crypt-v2")
    try:
        return StaticKey.parse(source.text)
    except ConfigError as error:
        raise source.error(f"{source.name}: {error.message}", instead=error.instead) from None


def check_pair(cert: str, key: str) -> None:
    """Raises ConfigError if the first certificate isn't the key's."""
    try:
        public = x509.load_pem_x509_certificate(cert.encode()).public_key()
        own = load_pem_private_key(key.encode(), None).public_key()
        fits = public.public_bytes(*PUBLIC) == own.public_bytes(*PUBLIC)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("cert has a public key of an unknown kind", option="cert") from None
    if not fits:
        raise ConfigError(
            "key does not belong to cert",
            option="key",
            instead="take both from the same file that you were given",
        )


@dataclass(frozen=True)
class _Block:
    """``at`` is the line of its BEGIN, from 0; ``text`` is the whole block, normalised."""

    label: str
    at: int
    text: str = field(repr=False)


def _pem_blocks(source: Source) -> Iterator[_Block]:
    label, begin = "", 0
    content: list[str] = []
    for at, line in enumerate(source.text.split("\n")):
        line = line.strip()
        if line.startswith("-----BEGIN ") and line.endswith("-----"):
            if label:
                break
            label, begin, content = line[11:-5], at, [line]
        elif label:
            content.append(line)
            if line == f"-----END {label}-----":
                yield _Block(label, begin, "\n".join([*content, ""]))
                label = ""
    if label:
        shown = escape(label[:40])
        raise source.error(
            f"{source.name} has a {shown} without its end",
            at=begin,
            instead=f"write -----END {shown}----- after it",
        )


def _load(source: Source, block: _Block, what: str) -> None:
    try:
        x509.load_pem_x509_certificate(block.text.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise source.error(f"{what} is damaged", at=block.at, instead="copy it anew, whole") from None


def _expected(label: str) -> str:
    return f"it must have the lines from -----BEGIN {label}----- to -----END {label}-----"


CERTIFICATE = ("CERTIFICATE", "X509 CERTIFICATE")
PUBLIC = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
