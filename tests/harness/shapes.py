"""Client files of every shape that providers and companies hand out (`tests/profiles`), filled with keys of ours."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from ginnel.openvpn.tls_crypt_v2 import Metadata, ServerKey
from tests.harness.profile import COMMON_KEYS, LOGIN, Keys

FOLDER = Path(__file__).parents[1] / "profiles"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ovpn"))
KEY_PASSWORD = "open sesame"
SERVER_KEY = ServerKey(bytes(range(128)))


@dataclass(frozen=True)
class Shape:
    """A client's file, and the files that it names, by their names."""

    text: str
    files: dict[str, str | bytes]


def fill(name: str, server: str) -> Shape:
    """The file of this name, for a server at this address."""
    keys = {"fingerprint": COMMON_KEYS.self_signed, "old-router": COMMON_KEYS.bare}.get(name, COMMON_KEYS.ca_signed)
    values = {
        "SERVER": server,
        "CA": keys.ca,
        "CERT": keys.client.certificate,
        "KEY": keys.client.key,
        "STATIC": keys.static,
        "FINGERPRINT": keys.server.fingerprint,
        "CLIENT_KEY": SERVER_KEY.make_client_key(Metadata.made_at(1.7e9), lambda size: bytes(size)).emit(),
        "ENCRYPTED_KEY": encrypt(keys.client.key),
        "BUNDLE": base64.encodebytes(bundle(COMMON_KEYS.ca_signed)).decode(),
    }
    text = re.sub("@([A-Z_]+)@", lambda match: values[match[1]].rstrip("\n"), (FOLDER / f"{name}.ovpn").read_text())
    if name == "windows":
        text = "\ufeff" + text.replace("\n", "\r\n")
    return Shape(text, files(name, keys))


def files(name: str, keys: Keys) -> dict[str, str | bytes]:
    match name:
        case "firewall":
            return {"firewall-udp4-bob.p12": bundle(keys), "firewall-udp4-bob-tls.key": keys.static}
        case "linux":
            names = ("ca.crt", "client.crt", "client key.pem", "ta.key")
            return dict(zip(names, (keys.ca, keys.client.certificate, keys.client.key, keys.static), strict=True))
        case "appliance":
            return {"login.conf": "\n".join(LOGIN) + "\n"}
        case "windows":
            return {"login file.txt": "\r\n".join(LOGIN) + "\r\n"}
        case "encrypted-key":
            return {"key-password": KEY_PASSWORD + "\n"}
        case _:
            return {}


def encrypt(key: str) -> str:
    private = serialization.load_pem_private_key(key.encode(), None)
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(KEY_PASSWORD.encode()),
    ).decode()


def bundle(keys: Keys, password: str | None = None) -> bytes:
    """PKCS #12 with certificate, key and authority."""
    key = serialization.load_pem_private_key(keys.client.key.encode(), None)
    certificate = x509.load_pem_x509_certificate(keys.client.certificate.encode())
    authority = x509.load_pem_x509_certificate(keys.ca.encode())
    return pkcs12.serialize_key_and_certificates(
        b"bob",
        key,  # type: ignore[arg-type]
        certificate,
        [authority],
        serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption(),
    )
