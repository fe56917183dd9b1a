"""What TLS is to be like, and how OpenSSL is told: certificates, keys, ciphers, trust.

pyOpenSSL has no way to set the groups; the function it would call is in the binding that it is built
on, under the older name (OpenSSL has one implementation for both). Where a later binding lacks it,
``tls-groups`` is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs12
from OpenSSL import SSL, crypto

from ginnel.errors import ConfigError, LocalProtocolError


@dataclass(frozen=True)
class VerifyName:
    """``verify-x509-name NAME TYPE``. A subject is written as OpenVPN does: ``C=KG, O=Test, CN=x``."""

    name: str
    kind: Literal["subject", "name", "name-prefix"] = "subject"


@dataclass(frozen=True)
class TlsSettings:
    """Certificates as PEM text. Each value is what the option of a similar name has.

    - ``ca``, ``cert``, ``key``, ``extra_certs`` (intermediates to send along).
    - ``pkcs12``: a PKCS #12 file's bytes, instead of ``cert`` and ``key``; its other certificates are
      sent along, and trusted when ``ca`` is None.
    - ``key_password``: opens ``key`` or ``pkcs12`` (``askpass``). Not needed for what isn't encrypted.
    - ``crl``: one or more revocation lists (``crl-verify``). An expired list refuses all of its issuer's
      certificates, a missing one none, as in stock. Or the serial numbers that are revoked, whoever the issuer.
    - ``peer_fingerprints``: SHA-256, 64 hexadecimal digits, colons allowed. Without ``ca`` they name the only
      certificates that are accepted, whatever else is wrong with these; with it they are an extra check.
    - ``issuer_fingerprints``: ``verify-hash``, SHA-256 or (40 digits) SHA-1 of the certificate that signed the peer's.
    - ``remote_cert_tls``, ``remote_cert_ku`` (numbers, one of which must be met; () for any) and
      ``remote_cert_eku`` (an OID or OpenSSL's name) stand beside each other.
    - ``ns_cert_type``: the peer's certificate must be good for a server, as ``ns-cert-type server`` asks.
    - ``verify_name`` is compared with what ``username_fields`` (``x509-username-field``: "CN", "emailAddress",
      "serialNumber", "ext:subjectAltName", an OID ...; several are joined by "_") yield.
    - ``version_min``, ``version_max``: "1.0" to "1.3". ``cipher_list``: ``tls-cipher``, OpenSSL's names and
      ``TLS-...-WITH-...``, with ``@SECLEVEL=N``. ``cipher_suites``: ``tls-ciphersuites``, both ways of writing.
      ``groups``: ``tls-groups``, a colon between two. ``cert_profile``: ``tls-cert-profile``.
    - ``client_certificate`` concerns servers only: whether a client must have one.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = field(default=None, repr=False)
    key_password: str | None = field(default=None, repr=False)
    pkcs12: bytes | None = field(default=None, repr=False)
    extra_certs: str | None = None
    crl: str | frozenset[int] | None = None
    peer_fingerprints: tuple[str, ...] = ()
    issuer_fingerprints: tuple[str, ...] = ()
    remote_cert_tls: Literal["server", "client"] | None = None
    remote_cert_ku: tuple[int, ...] | None = None
    remote_cert_eku: str | None = None
    ns_cert_type: bool = False
    verify_name: VerifyName | None = None
    username_fields: tuple[str, ...] = ("CN",)
    version_min: str = "1.2"
    version_max: str | None = None
    cipher_list: str | None = None
    cipher_suites: str | None = None
    groups: str | None = None
    cert_profile: Literal["insecure", "legacy", "preferred", "suiteb"] | None = None
    client_certificate: bool = True


class KeyPasswordError(ConfigError):
    """The private key is encrypted: ``wrong`` says whether a password was given. Ask for one and try again."""

    def __init__(self, option: str, *, wrong: bool) -> None:
        self.wrong = wrong
        message = "the private key's password is wrong" if wrong else "the private key needs a password"
        super().__init__(message, option=option, instead="give it with askpass FILE, or set GINNEL_KEY_PASSWORD")


def configure(context: SSL.Context, settings: TlsSettings) -> bool:
    """Applies the settings. True if there is an authority to trust. Raises ConfigError."""
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # Half of what a connection would hold: a server's clients are silent here for an hour at a time.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_min_proto_version(_version(settings.version_min, "tls-version-min"))
    if settings.version_max is not None:
        context.set_max_proto_version(_version(settings.version_max, "tls-version-max"))
    # Ciphers first: the security level among them decides which certificates OpenSSL takes.
    _load_ciphers(context, settings)
    _load_groups(context, settings)
    own = _own(settings)
    _load_own(context, settings, own)
    return _load_trust(context, settings, own)


def openssl_ciphers(names: str) -> str:
    """A ``tls-cipher`` list in OpenSSL's names: ``TLS-ECDHE-RSA-WITH-AES-256-GCM-SHA384`` becomes
    ``ECDHE-RSA-AES256-GCM-SHA384``; what isn't of that form stays as it is."""
    return ":".join(_openssl_cipher(name) for name in names.split(":"))


def _openssl_cipher(name: str) -> str:
    match = re.fullmatch(r"TLS-(.+)-WITH-(.+)", name)
    if match is None:
        return name
    exchange, cipher = match.groups()
    cipher = re.sub(r"(AES|CAMELLIA)-(\d+)", r"\1\2", cipher).replace("-CBC-", "-")
    cipher = cipher.replace("CHACHA20-POLY1305-SHA256", "CHACHA20-POLY1305")
    return cipher if exchange == "RSA" else f"{exchange}-{cipher}"


def _load_ciphers(context: SSL.Context, settings: TlsSettings) -> None:
    ciphers = DEFAULT_CIPHERS if settings.cipher_list is None else openssl_ciphers(settings.cipher_list)
    profile = settings.cert_profile or "legacy"
    if profile not in SECURITY_LEVELS:
        known = ", ".join(SECURITY_LEVELS)
        raise ConfigError(f"{profile!r} is no certificate profile", option="tls-cert-profile", instead=f"use {known}")
    if "@SECLEVEL" not in ciphers:
        ciphers += f":@SECLEVEL={SECURITY_LEVELS[profile]}"
    try:
        if profile == "suiteb":
            context.set_cipher_list(b"SUITEB128")
        context.set_cipher_list(ciphers.encode())
    except (SSL.Error, UnicodeEncodeError):
        raise ConfigError(f"OpenSSL knows none of {ciphers!r}", option="tls-cipher") from None
    if settings.cipher_suites is not None:
        try:
            context.set_tls13_ciphersuites(settings.cipher_suites.replace("-", "_").encode())
        except SSL.Error:
            raise ConfigError(f"OpenSSL refuses {settings.cipher_suites!r}", option="tls-ciphersuites") from None


def _load_groups(context: SSL.Context, settings: TlsSettings) -> None:
    if settings.groups is None:
        return
    library, inner = getattr(SSL, "_lib", None), getattr(context, "_context", None)
    set_list = getattr(library, "SSL_CTX_set1_curves_list", None)
    if library is None or inner is None or set_list is None:
        instead = "remove it: OpenSSL's own choice is a sound one"
        raise ConfigError("this installation's pyOpenSSL can't restrict groups", option="tls-groups", instead=instead)
    if set_list(inner, settings.groups.encode(errors="replace")) != 1:
        library.ERR_clear_error()
        instead = "use names like X25519:secp256r1:secp384r1"
        raise ConfigError(f"OpenSSL refuses {settings.groups!r}", option="tls-groups", instead=instead)


@dataclass(frozen=True)
class _Own:
    """Our certificate and key, and the certificates that came with it."""

    certificate: x509.Certificate
    key: PrivateKeyTypes
    more: list[x509.Certificate]


def _own(settings: TlsSettings) -> _Own | None:
    if settings.pkcs12 is not None:
        if settings.cert is not None or settings.key is not None:
            raise ConfigError("pkcs12 excludes cert and key", option="pkcs12", instead="keep one of them")
        return _read_pkcs12(settings.pkcs12, settings.key_password)
    if settings.cert is None and settings.key is None:
        return None
    if settings.cert is None or settings.key is None:
        raise ConfigError("cert and key must be given together")
    leaf, *more = _certificates(settings.cert, "cert")
    return _Own(leaf, _private_key(settings.key, settings.key_password), more)


def _read_pkcs12(data: bytes, password: str | None) -> _Own:
    """Without a password first, as many have none, whatever ``askpass`` says."""
    tried: list[bytes | None] = [None, b""]
    if password is not None:
        # What is no UTF-8 is no password there.
        tried.append(password.encode(errors="replace"))
    for attempt in tried:
        try:
            key, certificate, more = pkcs12.load_key_and_certificates(data, attempt)
        except UnsupportedAlgorithm:
            instead = "write it anew: openssl pkcs12 -legacy -in OLD -nodes | openssl pkcs12 -export -out NEW"
            raise ConfigError("the PKCS #12 file's encryption is outdated", option="pkcs12", instead=instead) from None
        except ValueError as error:
            if "password" not in str(error).lower():
                raise ConfigError("not a PKCS #12 file", option="pkcs12") from None
            continue
        if key is None or certificate is None:
            raise ConfigError("the PKCS #12 file lacks a certificate or its key", option="pkcs12")
        return _Own(certificate, key, more)
    raise KeyPasswordError("pkcs12", wrong=password is not None)


def _private_key(pem: str, password: str | None) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem.encode(), None)
    except TypeError:
        pass
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("not a private key in PEM", option="key") from None
    if password is None:
        raise KeyPasswordError("key", wrong=False)
    try:
        return serialization.load_pem_private_key(pem.encode(), password.encode(errors="surrogateescape"))
    except (ValueError, UnsupportedAlgorithm):
        raise KeyPasswordError("key", wrong=True) from None


def _load_own(context: SSL.Context, settings: TlsSettings, own: _Own | None) -> None:
    if own is None:
        return
    extra = [] if settings.extra_certs is None else _certificates(settings.extra_certs, "extra-certs")
    try:
        context.use_certificate(own.certificate)
        for certificate in own.more + extra:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(own.key)  # type: ignore[arg-type]
        context.check_privatekey()
    except (SSL.Error, TypeError) as error:
        entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
        reason = entries[-1][2] if entries else "its kind is not supported"
        raise ConfigError(f"OpenSSL refuses the certificate with its key: {reason}", option="cert") from None


def _load_trust(context: SSL.Context, settings: TlsSettings, own: _Own | None) -> bool:
    store = context.get_cert_store()
    if store is None:
        raise LocalProtocolError("OpenSSL's context has no certificate store")
    trusted: list[x509.Certificate] = []
    if settings.ca is not None:
        trusted = _certificates(settings.ca, "ca")
    elif settings.pkcs12 is not None and own is not None:
        trusted = own.more
    for certificate in trusted:
        store.add_cert(crypto.X509.from_cryptography(certificate))
    if isinstance(settings.crl, str):
        for crl in _revocation_lists(settings.crl):
            store.add_crl(crl)
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)
    return bool(trusted)


def _revocation_lists(pem: str) -> list[x509.CertificateRevocationList]:
    blocks = re.findall("-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", pem, re.DOTALL)
    try:
        lists = [x509.load_pem_x509_crl(block.encode()) for block in blocks]
    except ValueError:
        lists = []
    if not lists:
        raise ConfigError("not a revocation list in PEM", option="crl-verify")
    return lists


def _certificates(pem: str, option: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise ConfigError("not a certificate in PEM", option=option) from None


def _version(text: str, option: str) -> int:
    try:
        return TLS_VERSIONS[text]
    except KeyError:
        raise ConfigError(f"{text!r} is no TLS version", option=option, instead="use 1.2 or 1.3") from None


TLS_VERSIONS = {
    "1.0": SSL.TLS1_VERSION,
    "1.1": SSL.TLS1_1_VERSION,
    "1.2": SSL.TLS1_2_VERSION,
    "1.3": SSL.TLS1_3_VERSION,
}
# As OpenVPN's own default: without what has no authentication, no encryption or a small block.
DEFAULT_CIPHERS = "DEFAULT:!EXP:!LOW:!MEDIUM:!kDH:!kECDH:!DSS:!PSK:!SRP:!kRSA"
# ssl_openssl.c, tls_ctx_set_cert_profile; "legacy" is the default.
SECURITY_LEVELS = {"insecure": 0, "legacy": 1, "preferred": 2, "suiteb": 3}
