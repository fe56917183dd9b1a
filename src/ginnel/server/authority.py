"""A server's own certificate authority: its certificates, and the list of those it takes back.

Keys are P-256, which every OpenVPN client knows, the phones' too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ginnel.errors import ConfigError

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, in PEM."""

    certificate: str
    key: str
    serial: int
    expires: datetime

    def __repr__(self) -> str:
        return f"Issued(serial={self.serial}, expires={self.expires})"


class Authority:
    """Signs certificates and revocation lists."""

    def __init__(self, certificate: str, key: str) -> None:
        """Both in PEM; without a key ("") it signs nothing. Raises ConfigError when they are no authority's or do
        not belong together."""
        self.certificate = certificate
        self._key: Key | None = None
        try:
            self._certificate = x509.load_pem_x509_certificate(certificate.encode())
            if not key:
                return
            loaded = serialization.load_pem_private_key(key.encode(), None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"the server's authority cannot be read: {error}") from None
        if not isinstance(loaded, Key):
            raise ConfigError("the key of the server's authority is neither EC nor RSA nor Ed25519")
        if loaded.public_key() != self._certificate.public_key():
            raise ConfigError("certificate and key of the server's authority do not belong together")
        self._key = loaded

    @property
    def can_sign(self) -> bool:
        return self._key is not None

    @property
    def expires(self) -> datetime:
        return self._certificate.not_valid_after_utc

    @classmethod
    def create(cls, name: str, now: datetime) -> tuple[Authority, str]:
        """A new one, and its key in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        certificate = (
            _builder(subject, subject, key.public_key(), now, now + timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(_pem(certificate), _key_pem(key)), _key_pem(key)

    def issue(self, name: str, usage: Literal["server", "client"], now: datetime, days: int) -> Issued:
        """A certificate for a key of its own. It ends with the authority's at the latest. Raises ConfigError when that
        has ended, and where its key is elsewhere."""
        key = ec.generate_private_key(ec.SECP256R1())
        expires = min(now + timedelta(days=days), self._certificate.not_valid_after_utc)
        if expires <= now:
            what = f"the server's authority ended on {expires:%Y-%m-%d}, and signs nothing any longer"
            raise ConfigError(what, instead="begin a new server in another directory")
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if usage == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
        signer = self._signer()
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        certificate = (
            _builder(_name(name), self._certificate.subject, key.public_key(), now, expires)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(issuer, critical=False)
            .sign(signer, _digest(signer))
        )
        return Issued(_pem(certificate), _key_pem(key), certificate.serial_number, expires)

    def revocation_list(self, revoked: Iterable[tuple[int, datetime]], now: datetime) -> str:
        """The list of serial numbers, each with the time of its revocation, in PEM; good for `LIST_DAYS`."""
        signer = self._signer()
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - SKEW)
            .next_update(now + timedelta(days=LIST_DAYS))
            .add_extension(issuer, critical=False)
            # A later list has a larger number (RFC 5280, 5.2.3).
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
        )
        for serial, at in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(signer, _digest(signer)).public_bytes(serialization.Encoding.PEM).decode()

    def _signer(self) -> Key:
        if self._key is None:
            instead = "sign where it is, with easy-rsa"
            raise ConfigError("the key of the server's authority is not here", instead=instead)
        return self._key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    # A client whose clock is a little slow is not turned away on the first day.
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    serial = x509.random_serial_number()
    return builder.serial_number(serial).not_valid_before(now - SKEW).not_valid_after(until)


def _digest(signer: Key) -> hashes.SHA256 | None:
    """Ed25519 has its own."""
    return None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def now() -> datetime:
    """The wall clock's time; certificates know no other."""
    return datetime.now(UTC)


AUTHORITY_DAYS = 3650
LIST_DAYS = 180
SKEW = timedelta(hours=1)
