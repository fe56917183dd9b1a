"""Reading the ``pki`` folder of an easy-rsa: its authority, its server's certificate, its users."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ginnel.errors import ConfigError
from ginnel.openvpn.wrap import StaticKey


@dataclass(frozen=True)
class ImportedCertificate:
    """One that was ever made, and the name in it; when it was revoked."""

    serial: int
    name: str
    revoked: datetime | None


@dataclass(frozen=True)
class ImportedUser:
    """With the serial number and the end of the certificate that counts."""

    name: str
    serial: int
    expires: datetime
    revoked: bool


@dataclass(frozen=True)
class Imported:
    """Texts in PEM. Without ``ca_key`` (it is encrypted, or elsewhere) nobody can be added or renewed; without
    ``server``, its name, certificate and key, there will be a new one. ``certificates`` are all but good ones of
    servers. ``wrap`` is ``tls-crypt`` or ``tls-auth`` and its key. ``left_out`` says what could not be taken over,
    and why."""

    ca: str
    ca_key: str = field(repr=False)
    server: tuple[str, str, str] | None = field(repr=False)
    users: tuple[ImportedUser, ...]
    certificates: tuple[ImportedCertificate, ...]
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
        files = _files(pki, left_out)
        known = _index(pki / "index.txt")
        for serial, (certificate, at) in files.items():
            revoked = known[serial].revoked or at if serial in known else at
            known[serial] = ImportedCertificate(serial, _name(certificate), revoked)
            if _purpose(certificate) == "server" and revoked is None:
                del known[serial]
        server = _server(pki, [certificate for serial, (certificate, _) in files.items() if serial not in known])
        wrap = next((found for found in map(_wrap, (pki, pki.parent)) if found is not None), None)
        if wrap is None:
            left_out.append(f"a static key, as there is no tc.key or ta.key in {pki} or above: users need new files")
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
        raise ConfigError(f"{folder} is no PKI of easy-rsa: {reason}", instead="name its pki folder") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{folder} is no PKI of easy-rsa: {error}", instead="name its pki folder") from None
    if server is None and not ca_key:
        raise ConfigError(f"{folder} has neither a server's certificate with its key, nor the authority's key")
    users = _users([certificate for certificate, _ in files.values()], known)
    return Imported(ca, ca_key, server, users, tuple(known.values()), wrap, tuple(left_out))


def _users(issued: list[x509.Certificate], known: Mapping[int, ImportedCertificate]) -> tuple[ImportedUser, ...]:
    """Of several certificates the last that is good counts."""
    users: dict[str, ImportedUser] = {}
    for certificate in sorted(issued, key=lambda certificate: certificate.not_valid_after_utc):
        if _purpose(certificate) == "client":
            name, serial = _name(certificate), certificate.serial_number
            revoked = known[serial].revoked is not None
            if name not in users or not revoked:
                users[name] = ImportedUser(name, serial, certificate.not_valid_after_utc, revoked)
    return tuple(users.values())


def _files(pki: Path, left_out: list[str]) -> dict[int, tuple[x509.Certificate, datetime | None]]:
    """By serial number, wherever the versions of easy-rsa keep them; with the time for those among the revoked."""
    found: dict[int, tuple[x509.Certificate, datetime | None]] = {}
    for place in PLACES:
        for path in sorted(pki.glob(place)):
            try:
                certificate = x509.load_pem_x509_certificate(path.read_bytes())
                # Some of it is parsed when it is asked for.
                _purpose(certificate), _name(certificate)
            except (ValueError, x509.DuplicateExtension):
                left_out.append(f"{path}, which is no certificate")
            else:
                at = datetime.fromtimestamp(path.stat().st_mtime, UTC) if place.startswith("revoked") else None
                found[certificate.serial_number] = certificate, at
    return found


def _server(pki: Path, good: list[x509.Certificate]) -> tuple[str, str, str] | None:
    """The one that is good for longest, of those whose key is there."""
    for certificate in sorted(good, key=lambda certificate: certificate.not_valid_after_utc, reverse=True):
        name = _name(certificate)
        # The name is a file's, and stands in a line of each client's file.
        if _purpose(certificate) == "server" and "/" not in name and name.isprintable():
            key = _secret(pki / f"private/{name}.key")
            if key and _belongs(key, certificate):
                return name, certificate.public_bytes(Encoding.PEM).decode(), key
    return None


def _belongs(key: str, certificate: x509.Certificate) -> bool:
    try:
        return load_pem_private_key(key.encode(), None).public_key() == certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _index(path: Path) -> dict[int, ImportedCertificate]:
    """``index.txt`` by serial number: also certificates whose files are gone. Its lines are status, end, revocation,
    serial, file and subject between tabs (OpenSSL's ca(1)); a revocation may have a reason after a comma."""
    known: dict[int, ImportedCertificate] = {}
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            status, _, at, serial, _, subject = line.split("\t")
            revoked = _time(at.partition(",")[0]) if status == "R" else None
            names = re.findall(r"/CN=([^/]*)", subject)
            known[int(serial, 16)] = ImportedCertificate(int(serial, 16), names[-1] if names else "", revoked)
        except ValueError:
            raise ConfigError(f"{path}, line {number}: not as OpenSSL writes them") from None
    return known


def _time(text: str) -> datetime:
    """YYMMDDHHMMSSZ, with four digits of the year from 2050 on. Raises ValueError."""
    form = "%y%m%d%H%M%SZ" if len(text) == 13 else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text, form).replace(tzinfo=UTC)


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


#: The first three are easy-rsa 3's, of all its versions; those under renewed/ and expired/ came and went.
PLACES = (
    "certs_by_serial/*.pem",
    "issued/*.crt",
    "revoked/certs_by_serial/*.crt",
    "renewed/certs_by_serial/*.crt",
    "renewed/issued/*.crt",
    "expired/*.crt",
)
