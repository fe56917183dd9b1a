"""Certificates and static keys for the tests: made anew in milliseconds, worth nothing."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.harness.process import run

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Identity:
    """A certificate and its private key, as PEM; ``fingerprint`` is SHA-256 in hex with colons."""

    certificate: str
    key: str = field(repr=False)
    fingerprint: str


class Authority:
    """A certificate authority; ``certificate`` and ``key`` are its own as PEM."""

    def __init__(self, name: str = "Office CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        certificate = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = _pem(certificate)

    @property
    def key(self) -> str:
        return _private_pem(self._key)

    def issue(
        self, name: str, *, server: bool = False, days: int = 30, bare: bool = False, hosts: Sequence[str] = ()
    ) -> Identity:
        """``bare``: it doesn't say what it is for, as those of many self-made authorities. ``hosts`` are names and
        addresses that it is for."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name), self._name, key, days)
        if not bare:
            builder = _for_use(builder, server)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), False)
        return _identity(builder.sign(self._key, hashes.SHA256()), key)

    def revocation_list(self, *revoked: Identity) -> str:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(now - datetime.timedelta(days=1))
            .next_update(now + datetime.timedelta(days=30))
        )
        for identity in revoked:
            number = x509.load_pem_x509_certificate(identity.certificate.encode()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(number).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def self_signed(name: str, *, server: bool = False) -> Identity:
    """For peer-fingerprint, which needs no authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _for_use(_builder(_name(name), _name(name), key), server)
    return _identity(builder.sign(key, hashes.SHA256()), key)


def old_authority(bits: int = 2048, digest: str = "sha256") -> tuple[str, Identity, Identity]:
    """An authority's certificate, a server and a client, each with an RSA key of so many bits. By OpenSSL's program:
    `cryptography` signs with nothing that is weak."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "all.cnf").write_text(_OLD)

        def issue(name: str, *words: str) -> Identity:
            about = ["-subj", f"/CN={name}", "-extensions", name, "-config", "all.cnf", "-days", "30"]
            files = ["-newkey", f"rsa:{bits}", "-noenc", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
            run(["openssl", "req", "-x509", f"-{digest}", *about, *files, *words], cwd=folder)
            certificate, key = (Path(folder, f"{name}.{kind}").read_text() for kind in ("pem", "key"))
            return Identity(certificate, key, "")

        root = issue("ca")
        by_root = ("-CA", "ca.pem", "-CAkey", "ca.key")
        return root.certificate, issue("server", *by_root), issue("client", *by_root)


def static_key() -> str:
    """A key for tls-auth or tls-crypt, in the form of ``openvpn --genkey secret``."""
    digits = os.urandom(256).hex()
    lines = [digits[start : start + 32] for start in range(0, 512, 32)]
    return "\n".join(["-----BEGIN OpenVPN Static key V1-----", *lines, "-----END OpenVPN Static key V1-----", ""])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _builder(subject: x509.Name, issuer: x509.Name, key: PrivateKey, days: int = 30) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _for_use(builder: x509.CertificateBuilder, server: bool) -> x509.CertificateBuilder:
    role = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    # remote-cert-tls asks for a key usage as well.
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    return builder.add_extension(x509.ExtendedKeyUsage([role]), False).add_extension(usage, True)


def _identity(certificate: x509.Certificate, key: PrivateKey) -> Identity:
    return Identity(_pem(certificate), _private_pem(key), certificate.fingerprint(hashes.SHA256()).hex(":").upper())


def _private_pem(key: PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


_OLD = """
[req]
distinguished_name = req
[ca]
basicConstraints = critical, CA:TRUE
[server]
keyUsage = digitalSignature
extendedKeyUsage = serverAuth
[client]
keyUsage = digitalSignature
extendedKeyUsage = clientAuth
"""
