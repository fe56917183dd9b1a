"""Reading the ``pki`` folder of an easy-rsa: its authority, its server's certificate, its users."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ginnel.errors import ConfigError
from ginnel.openvpn.wrap import StaticKey


@dataclass(frozen=True)
class ImportedUser:
    name: str
    serial: int
    expires: datetime


@dataclass(frozen=True)
class Imported:
    """Texts in PEM. Without ``ca_key`` (it is encrypted, or elsewhere) nobody can be added or renewed; without
    ``server``, its name, certificate and key, there will be a new one. ``wrap`` is ``tls-crypt`` or ``tls-auth``
    and its key. ``left_out`` says what could not be taken over, and why."""

    ca: str
    ca_key: str = field(repr=False)
    server: tuple[str, str, str] | None = field(repr=False)
    users: tuple[ImportedUser, ...]
    revoked: frozenset[int]
    wrap: tuple[str, str] | None = field(repr=False)
    left_out: tuple[str, ...]


def read_pki(folder: Path) -> Imported:
    """``folder`` is easy-rsa's ``pki``, or what that lies in. Raises ConfigError."""
    pki = folder / "pki" if (folder / "pki/ca.crt").exists() else folder
    left_out: list[str] = []
    try:
        ca = _pem(pki / "ca.crt")
        ca_key = _secret(pki / "private/ca.key")
        if not ca_key:
            left_out.append("the authority's key, which is encrypted or elsewhere: no user can be added or renewed")
        issued = _issued(pki, left_out)
        server = _server(pki, issued)
        revoked = _revoked(pki)
        wrap = next((found for found in map(_wrap, (pki, pki.parent)) if found is not None), None)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder} is no PKI of easy-rsa: {error}", instead="name its pki folder") from None
    if server is None and not ca_key:
        raise ConfigError(f"{folder} has neither a server's certificate with its key, nor the authority's key")
    users: dict[str, ImportedUser] = {}
    for certificate in sorted(issued, key=lambda certificate: certificate.not_valid_after_utc):
        user = ImportedUser(_name(certificate), certificate.serial_number, certificate.not_valid_after_utc)
        # Of several certificates the last that is good counts.
        if _purpose(certificate) == "client" and (user.name not in users or user.serial not in revoked):
            users[user.name] = user
    return Imported(ca, ca_key, server, tuple(users.values()), revoked, wrap, tuple(left_out))


def _issued(pki: Path, left_out: list[str]) -> list[x509.Certificate]:
    """Those of ``issued/``, and of ``certs_by_serial/`` for users who were revoked."""
    found: dict[int, x509.Certificate] = {}
    for path in [*(pki / "issued").glob("*.crt"), *(pki / "revoked/certs_by_serial").glob("*.crt")]:
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except ValueError:
            left_out.append(f"{path}, which is no certificate")
        else:
            found[certificate.serial_number] = certificate
    return list(found.values())


def _server(pki: Path, issued: list[x509.Certificate]) -> tuple[str, str, str] | None:
    for certificate in issued:
        name = _name(certificate)
        if _purpose(certificate) == "server" and "/" not in name and (key := _secret(pki / f"private/{name}.key")):
            return name, certificate.public_bytes(Encoding.PEM).decode(), key
    return None


def _revoked(pki: Path) -> frozenset[int]:
    """From ``index.txt``, whose lines are status, end, revocation, serial, file and subject (OpenSSL's ca(1))."""
    path = pki / "index.txt"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    rows = [line.split("\t") for line in lines]
    try:
        return frozenset(int(row[3], 16) for row in rows if len(row) > 3 and row[0] == "R")
    except ValueError:
        raise ConfigError(f"{path} has a serial number that is none") from None


def _wrap(folder: Path) -> tuple[str, str] | None:
    """The static key under the names that OpenVPN's guides give it."""
    for name, kind in (("tc.key", "tls-crypt"), ("ta.key", "tls-auth")):
        if (folder / name).exists():
            text = (folder / name).read_text()
            StaticKey.parse(text)
            return kind, text
    return None


def _pem(path: Path) -> str:
    text = path.read_text()
    try:
        return x509.load_pem_x509_certificate(text.encode()).public_bytes(Encoding.PEM).decode()
    except ValueError:
        raise ConfigError(f"{path} is no certificate") from None


def _secret(path: Path) -> str:
    """A private key, "" where there is none that opens without a password."""
    text = path.read_text() if path.exists() else ""
    return "" if "ENCRYPTED" in text else text


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[-1].value) if names else ""


def _purpose(certificate: x509.Certificate) -> str | None:
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None
    if ExtendedKeyUsageOID.SERVER_AUTH in purposes:
        return "server"
    return "client" if ExtendedKeyUsageOID.CLIENT_AUTH in purposes else None
