"""TLS on memory buffers: certificates, verification, the exporter.

OpenSSL brings its own randomness and reads the clock for certificates; nothing else in this package
does. `TlsContext` is the parsed configuration, made once; ``connect()`` makes one negotiation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto

from ginnel.errors import ConfigError, LocalProtocolError, RemoteProtocolError


class TlsError(RemoteProtocolError):
    """TLS with the peer failed. ``retry`` is False where the next attempt would fail the same way."""

    def __init__(self, message: str, *, retry: bool) -> None:
        self.retry = retry
        super().__init__(message)


@dataclass(frozen=True)
class VerifyName:
    """``verify-x509-name NAME TYPE``. A subject is written as OpenVPN does: ``C=KG, O=Test, CN=x``."""

    name: str
    kind: Literal["subject", "name", "name-prefix"] = "subject"


@dataclass(frozen=True)
class TlsSettings:
    """Certificates as PEM text. Each value is what the option of a similar name has.

    - ``ca``, ``cert``, ``key``, ``extra_certs`` (intermediates to send along).
    - ``pkcs12``: a PKCS #12 file's bytes, instead of ``cert`` and ``key``; its CA certificates are trusted
      when ``ca`` is None, and sent along otherwise.
    - ``key_password``: opens ``key`` or ``pkcs12`` (``askpass``). Not needed for what isn't encrypted.
    - ``crl``: one or more revocation lists (``crl-verify``). An expired list refuses all of its issuer's
      certificates, a missing one none, as in stock.
    - ``peer_fingerprints``: SHA-256, 64 hexadecimal digits, colons allowed. Without ``ca`` they name the only
      certificates that are accepted, whatever else is wrong with these; with it they are an extra check.
    - ``issuer_fingerprints``: ``verify-hash``, SHA-256 or (40 digits) SHA-1 of the certificate that signed the peer's.
    - ``remote_cert_tls``, ``remote_cert_ku`` (numbers, one of which must be met), ``remote_cert_eku`` (an OID or
      OpenSSL's name). ``remote_cert_tls`` stands beside the others.
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
    crl: str | None = None
    peer_fingerprints: tuple[str, ...] = ()
    issuer_fingerprints: tuple[str, ...] = ()
    remote_cert_tls: Literal["server", "client"] | None = None
    remote_cert_ku: tuple[int, ...] = ()
    remote_cert_eku: str | None = None
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
        super().__init__(message, option=option, instead="give it with askpass")


class TlsContext:
    """One role's parsed certificates and rules. Raises ConfigError for what OpenSSL doesn't take."""

    def __init__(self, settings: TlsSettings, *, server: bool) -> None:
        self.server = server
        self._settings = settings
        self._fingerprints = frozenset(map(_fingerprint, settings.peer_fingerprints))
        verified = not server or settings.client_certificate
        if verified and settings.ca is None and not self._fingerprints:
            raise ConfigError("neither ca nor peer-fingerprint is given: the peer could be anyone")
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_min_proto_version(_version(settings.version_min, "tls-version-min"))
        if settings.version_max is not None:
            context.set_max_proto_version(_version(settings.version_max, "tls-version-max"))
        mode = SSL.VERIFY_PEER
        if verified:
            mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        context.set_verify(mode, self._verify)
        _load_ciphers(context, settings)
        _load_own(context, settings)
        _load_trust(context, settings)
        self._context = context

    def connect(self) -> TlsConnection:
        connection = SSL.Connection(self._context, None)
        return TlsConnection(connection, server=self.server)

    def _verify(self, connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
        """OpenSSL's callback, once or more a certificate: its own verdict first, then our rules."""
        complaint = None
        if not ok and not (self._settings.ca is None and error in TRUST_ERRORS):
            complaint = _describe(error, certificate)
        elif depth == 0:
            complaint = self._refuse(certificate)
        if complaint is not None and connection.get_app_data() is None:
            connection.set_app_data(complaint)
        return complaint is None

    def _refuse(self, certificate: crypto.X509) -> str | None:
        """Why our own rules refuse this leaf certificate, None when they don't."""
        settings = self._settings
        parsed = certificate.to_cryptography()
        fingerprint = parsed.fingerprint(hashes.SHA256())
        if self._fingerprints and fingerprint not in self._fingerprints:
            return f"has a fingerprint that isn't in the list (SHA256 {fingerprint.hex(':')})"
        if settings.remote_cert_tls is not None:
            complaint = _check_usage(parsed, settings.remote_cert_tls)
            if complaint is not None:
                return complaint
        if settings.verify_name is not None:
            return _check_name(parsed, settings.verify_name)
        return None


class TlsConnection:
    """One TLS connection. Bytes go in by `feed` and come out by `take_output`; `step` moves it on."""

    def __init__(self, connection: SSL.Connection, *, server: bool) -> None:
        self._connection = connection
        self._peer = "client" if server else "server"
        self._output = b""
        self._unsent: list[bytes] = []
        self.established = False
        if server:
            connection.set_accept_state()
        else:
            connection.set_connect_state()

    def feed(self, data: bytes) -> None:
        if data:
            self._connection.bio_write(data)

    def write(self, data: bytes) -> None:
        """Sends plain text as one record, after the handshake if that isn't over."""
        self._unsent.append(data)

    def step(self) -> None:
        """Goes on with the handshake, and writes what waits for its end. Raises `TlsError`."""
        try:
            if not self.established:
                self._connection.do_handshake()
                self.established = True
            while self._unsent:
                self._connection.send(self._unsent[0])
                del self._unsent[0]
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            raise self._explain(error) from None

    def read(self) -> bytes | None:
        """The plain text of the next record, None while there is none. Raises `TlsError`."""
        if not self.established:
            return None
        try:
            return self._connection.recv(MAX_RECORD)
        except SSL.WantReadError:
            return None
        except SSL.Error as error:
            raise self._explain(error) from None

    @property
    def has_output(self) -> bool:
        if not self._output:
            try:
                self._output = self._connection.bio_read(MAX_OUTPUT)
            except SSL.WantReadError:
                return False
        return True

    def take_output(self, size: int) -> bytes:
        """Up to so many bytes for the peer; fewer only when there are no more."""
        parts, missing = [], size
        while missing and self.has_output:
            part, self._output = self._output[:missing], self._output[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def export(self, label: bytes, size: int) -> bytes:
        """Keying material as in RFC 5705, without a context."""
        return self._connection.export_keying_material(label, size)

    @property
    def version(self) -> str:
        return self._connection.get_protocol_version_name()

    @property
    def cipher(self) -> str:
        return self._connection.get_cipher_name() or ""

    @property
    def peer_common_name(self) -> str:
        """The last CN in the peer's certificate, "" without one."""
        certificate = self._connection.get_peer_certificate(as_cryptography=True)
        return "" if certificate is None else _common_name(certificate)

    def _explain(self, error: SSL.Error) -> TlsError:
        complaint = self._connection.get_app_data()
        if complaint is not None:
            return TlsError(f"the {self._peer}'s certificate {complaint}", retry=False)
        if isinstance(error, SSL.ZeroReturnError | SSL.SysCallError):
            return TlsError(f"the {self._peer} closed the TLS connection", retry=True)
        entries: Sequence[tuple[str, str, str]] = error.args[0] if error.args else []
        reason = entries[-1][2] if entries else "unknown reason"
        for word, meaning in ALERTS.items():
            if word in reason:
                return TlsError(f"TLS with the {self._peer} failed: {meaning} ({reason})", retry=False)
        return TlsError(f"TLS with the {self._peer} failed: {reason}", retry=True)


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
    try:
        context.set_cipher_list(ciphers.encode())
    except SSL.Error:
        raise ConfigError(f"OpenSSL knows none of {ciphers!r}", option="tls-cipher") from None
    if settings.cipher_suites is not None:
        try:
            context.set_tls13_ciphersuites(settings.cipher_suites.encode())
        except SSL.Error:
            raise ConfigError(f"OpenSSL refuses {settings.cipher_suites!r}", option="tls-ciphersuites") from None


def _load_own(context: SSL.Context, settings: TlsSettings) -> None:
    if settings.cert is None and settings.key is None:
        return
    if settings.cert is None or settings.key is None:
        raise ConfigError("cert and key must be given together")
    leaf, *more = _certificates(settings.cert, "cert")
    try:
        context.use_certificate(leaf)
        for certificate in more:
            context.add_extra_chain_cert(certificate)
        if settings.extra_certs is not None:
            for certificate in _certificates(settings.extra_certs, "extra-certs"):
                context.add_extra_chain_cert(certificate)
        context.use_privatekey(_private_key(settings))  # type: ignore[arg-type]
        context.check_privatekey()
    except SSL.Error as error:
        reason = error.args[0][-1][2] if error.args and error.args[0] else "unknown reason"
        raise ConfigError(f"OpenSSL refuses the certificate with its key: {reason}", option="cert") from None


def _load_trust(context: SSL.Context, settings: TlsSettings) -> None:
    store = context.get_cert_store()
    if store is None:
        raise LocalProtocolError("OpenSSL's context has no certificate store")
    if settings.ca is not None:
        for certificate in _certificates(settings.ca, "ca"):
            store.add_cert(crypto.X509.from_cryptography(certificate))
    if settings.crl is not None:
        try:
            crl = x509.load_pem_x509_crl(settings.crl.encode())
        except ValueError:
            raise ConfigError("not a revocation list in PEM", option="crl-verify") from None
        store.add_crl(crl)
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK)


def _certificates(pem: str, option: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise ConfigError("not a certificate in PEM", option=option) from None


def _private_key(settings: TlsSettings) -> PrivateKeyTypes:
    password = None if settings.key_password is None else settings.key_password.encode()
    try:
        return serialization.load_pem_private_key((settings.key or "").encode(), password)
    except TypeError:
        needs = "needs a password" if password is None else "isn't encrypted, but a password is given"
        raise ConfigError(f"the private key {needs}", option="key") from None
    except ValueError:
        what = "not a private key in PEM" if password is None else "the private key's password is wrong"
        raise ConfigError(what, option="key") from None


def _version(text: str, option: str) -> int:
    try:
        return TLS_VERSIONS[text]
    except KeyError:
        raise ConfigError(f"{text!r} is no TLS version", option=option, instead="use 1.2 or 1.3") from None


def _fingerprint(text: str) -> bytes:
    try:
        fingerprint = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        fingerprint = b""
    if len(fingerprint) != 32:
        raise ConfigError(f"{text!r} is not a SHA256 fingerprint", option="peer-fingerprint")
    return fingerprint


def _describe(error: int, certificate: crypto.X509) -> str:
    parsed = certificate.to_cryptography()
    name = f"CN={_common_name(parsed)}"
    if error in TRUST_ERRORS:
        return f"is not signed by the given CA ({TRUST_ERRORS[error]}, {name})"
    if error == 9:
        return f"is not valid before {parsed.not_valid_before_utc:%Y-%m-%d %H:%M} UTC ({name})"
    if error == 10:
        return f"expired on {parsed.not_valid_after_utc:%Y-%m-%d %H:%M} UTC ({name})"
    return f"is refused: {VERIFY_ERRORS.get(error, f'OpenSSL verify error {error}')} ({name})"


def _check_usage(certificate: x509.Certificate, role: Literal["server", "client"]) -> str | None:
    """``remote-cert-tls``: a key usage must be there, and the role's extended key usage in it."""
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if role == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    try:
        certificate.extensions.get_extension_for_class(x509.KeyUsage)
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return f"doesn't say what it is for, and remote-cert-tls asks for a {role}'s"
    return None if wanted in usages else f"is not a {role}'s, as remote-cert-tls asks for"


def _check_name(certificate: x509.Certificate, wanted: VerifyName) -> str | None:
    """``verify-x509-name``."""
    common_name = _common_name(certificate)
    if wanted.kind == "name":
        ok, seen = common_name == wanted.name, f"CN={common_name}"
    elif wanted.kind == "name-prefix":
        ok, seen = common_name.startswith(wanted.name), f"CN={common_name}"
    else:
        seen = ", ".join(
            f"{SHORT_NAMES.get(item.oid, item.rfc4514_attribute_name)}={item.value!s}" for item in certificate.subject
        )
        ok = seen == wanted.name
    return None if ok else f"has another name than verify-x509-name asks for ({_printable(seen)})"


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return _printable(str(names[-1].value)) if names else ""


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


MAX_RECORD = 16 * 1024
MAX_OUTPUT = 64 * 1024
TLS_VERSIONS = {
    "1.0": SSL.TLS1_VERSION,
    "1.1": SSL.TLS1_1_VERSION,
    "1.2": SSL.TLS1_2_VERSION,
    "1.3": SSL.TLS1_3_VERSION,
}
# As OpenVPN's own default: without what has no authentication, no encryption or a small block.
DEFAULT_CIPHERS = "DEFAULT:!EXP:!LOW:!MEDIUM:!kDH:!kECDH:!DSS:!PSK:!SRP:!kRSA"
# OpenSSL's short names where they aren't those of RFC 4514.
SHORT_NAMES = {
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.GIVEN_NAME: "GN",
    NameOID.SURNAME: "SN",
    NameOID.TITLE: "title",
    NameOID.STREET_ADDRESS: "street",
}
TRUST_ERRORS = {
    2: "its issuer's certificate is not at hand",
    18: "self-signed certificate",
    19: "self-signed certificate in chain",
    20: "its issuer's certificate is not at hand",
    21: "nothing but the certificate itself was sent",
    27: "not trusted",
}
VERIFY_ERRORS = {
    3: "no revocation list for its issuer",
    7: "its signature is wrong",
    12: "the revocation list expired",
    22: "the chain is too long",
    23: "it is revoked",
    24: "its issuer is no CA",
    26: "it is made for another purpose",
    66: "its key is too small for the security level",
    67: "its issuer's key is too small for the security level",
    68: "its signature uses a digest that is too weak for the security level",
}
ALERTS = {
    "unknown ca": "the peer doesn't trust our certificate's CA",
    "bad certificate": "the peer refused our certificate",
    "unsupported certificate": "the peer refused our certificate",
    "certificate revoked": "our certificate is revoked",
    "certificate expired": "our certificate expired",
    "certificate unknown": "the peer refused our certificate",
    "certificate required": "the peer asks for a certificate, and we have none",
    "peer did not return a certificate": "the peer sent no certificate",
    "handshake failure": "the two sides share no TLS cipher, curve or certificate type",
    "no shared cipher": "the two sides share no TLS cipher",
    "no suitable signature algorithm": "the two sides share no signature algorithm",
    "protocol version": "the two sides share no TLS version",
    "unsupported protocol": "the two sides share no TLS version",
    "insufficient security": "the peer asks for a higher security level",
}
