"""What OpenSSL is told: ciphers, groups, keys with passwords, PKCS #12."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

from ginnel.errors import ConfigError
from ginnel.openvpn.tls import KeyPasswordError, TlsConnection, TlsContext, TlsError, TlsSettings
from ginnel.openvpn.tls_settings import openssl_ciphers
from ginnel.testing import Authority

AUTHORITY = Authority()
SERVER = AUTHORITY.issue("server", "server")
CLIENT = AUTHORITY.issue("bob", "client")
CLIENT_SETTINGS = TlsSettings(ca=AUTHORITY.pem, cert=CLIENT[0], key=CLIENT[1])
SERVER_SETTINGS = TlsSettings(ca=AUTHORITY.pem, cert=SERVER[0], key=SERVER[1])
BOB = x509.load_pem_x509_certificate(CLIENT[0].encode())
BOBS_KEY = serialization.load_pem_private_key(CLIENT[1].encode(), None)
CA = x509.load_pem_x509_certificate(AUTHORITY.pem.encode())


def shake_hands(client: TlsSettings, server: TlsSettings = SERVER_SETTINGS) -> tuple[TlsConnection, TlsConnection]:
    ends = TlsContext(client, server=False).connect(), TlsContext(server, server=True).connect()
    for _ in range(6):
        for end, other in (ends, ends[::-1]):
            end.step()
            other.feed(end.take_output(100_000))
        for end in ends:
            end.read()
    assert all(end.established for end in ends)
    return ends


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("TLS-ECDHE-RSA-WITH-AES-256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
        ("TLS-DHE-RSA-WITH-AES-128-CBC-SHA:AES128-SHA", "DHE-RSA-AES128-SHA:AES128-SHA"),
        ("TLS-RSA-WITH-AES-256-GCM-SHA384", "AES256-GCM-SHA384"),
        ("TLS-ECDHE-ECDSA-WITH-CHACHA20-POLY1305-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        ("DEFAULT:@SECLEVEL=0", "DEFAULT:@SECLEVEL=0"),
    ],
)
def test_openvpns_cipher_names(names: str, expected: str) -> None:
    assert openssl_ciphers(names) == expected


@pytest.mark.parametrize(
    ("changes", "cipher"),
    [
        (
            {"cipher_list": "TLS-ECDHE-ECDSA-WITH-AES-128-GCM-SHA256", "version_max": "1.2"},
            "ECDHE-ECDSA-AES128-GCM-SHA256",
        ),
        ({"cipher_suites": "TLS-CHACHA20-POLY1305-SHA256"}, "TLS_CHACHA20_POLY1305_SHA256"),
        ({"cipher_suites": "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"}, "TLS_AES_128_GCM_SHA256"),
    ],
)
def test_the_cipher_is_the_one_that_is_asked_for(changes: dict[str, Any], cipher: str) -> None:
    strict = replace(SERVER_SETTINGS, **changes)
    client, _ = shake_hands(replace(CLIENT_SETTINGS, **changes), strict)
    assert client.cipher == cipher


def test_groups_restrict_what_the_sides_can_agree_on() -> None:
    shake_hands(replace(CLIENT_SETTINGS, groups="secp384r1:X25519"), replace(SERVER_SETTINGS, groups="secp384r1"))
    with pytest.raises(TlsError, match="the two sides share no group"):
        shake_hands(replace(CLIENT_SETTINGS, groups="X25519"), replace(SERVER_SETTINGS, groups="secp384r1"))


def weak_server(bits: int) -> tuple[str, TlsSettings]:
    """An authority and a server with RSA keys of so many bits."""
    key = rsa.generate_private_key(65537, bits)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weak")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    server = TlsSettings(ca=pem, cert=pem, key=secret, client_certificate=False, cipher_list="DEFAULT:@SECLEVEL=0")
    return pem, server


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"cert_profile": "insecure"}, True),
        ({"cert_profile": "legacy"}, True),
        ({"cert_profile": "preferred"}, False),
        ({"cert_profile": "suiteb"}, False),
        ({"cipher_list": "DEFAULT:@SECLEVEL=0", "cert_profile": "preferred"}, True),
        ({"cipher_list": "DEFAULT:@SECLEVEL=2"}, False),
    ],
)
def test_the_certificate_profile_decides_about_small_keys_as_in_stock(changes: dict[str, Any], fits: bool) -> None:
    ca, server = weak_server(1024)
    client = TlsSettings(ca=ca, **changes)
    if fits:
        shake_hands(client, server)
    else:
        with pytest.raises(TlsError, match="too small|share"):
            shake_hands(client, server)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"groups": "nonsense"}, "OpenSSL refuses 'nonsense'"),
        ({"cert_profile": "best"}, "'best' is no certificate profile"),
        ({"pkcs12": b"x"}, "pkcs12 excludes cert and key"),
        ({"pkcs12": b"x", "cert": None, "key": None}, "not a PKCS #12 file"),
        ({"issuer_fingerprints": ("aa",)}, "not a SHA256 fingerprint"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        TlsContext(replace(CLIENT_SETTINGS, **changes), server=False)


# Passwords.


def encrypted(form: serialization.PrivateFormat, password: bytes) -> str:
    encryption = serialization.BestAvailableEncryption(password)
    return BOBS_KEY.private_bytes(serialization.Encoding.PEM, form, encryption).decode()


@pytest.mark.parametrize("password", [b"open sesame \xc3\xa9", b"open sesame \xe9"], ids=["UTF-8", "Latin-1"])
def test_an_encrypted_key_needs_its_password(password: bytes) -> None:
    typed = password.decode(errors="surrogateescape")
    settings = replace(CLIENT_SETTINGS, key=encrypted(serialization.PrivateFormat.PKCS8, password))
    with pytest.raises(KeyPasswordError) as caught:
        TlsContext(settings, server=False)
    assert (caught.value.wrong, caught.value.option) == (False, "key")
    with pytest.raises(KeyPasswordError, match="password is wrong") as caught:
        TlsContext(replace(settings, key_password="open"), server=False)
    assert caught.value.wrong
    shake_hands(replace(settings, key_password=typed))
    assert "sesame" not in repr(replace(settings, key_password=typed))


def test_a_key_of_openssls_old_kind() -> None:
    key = rsa.generate_private_key(65537, 2048)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"x")).decode()
    assert "Proc-Type: 4,ENCRYPTED" in pem
    with pytest.raises(KeyPasswordError):
        TlsContext(replace(CLIENT_SETTINGS, key=pem), server=False)
    # It opens, and turns out to be another certificate's.
    with pytest.raises(ConfigError, match="refuses the certificate with its key"):
        TlsContext(replace(CLIENT_SETTINGS, key=pem, key_password="x"), server=False)


def test_a_password_for_a_key_without_one_is_not_looked_at() -> None:
    shake_hands(replace(CLIENT_SETTINGS, key_password="x"))


def bundle(password: bytes | None, *, authorities: bool = True) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    more = [CA] if authorities else None
    return pkcs12.serialize_key_and_certificates(b"bob", BOBS_KEY, BOB, more, encryption)  # type: ignore[arg-type]


@pytest.mark.parametrize("password", [None, b"sesame"])
def test_pkcs12_brings_certificate_key_and_trust(password: bytes | None) -> None:
    settings = TlsSettings(pkcs12=bundle(password), key_password=password and password.decode())
    _, server = shake_hands(settings)
    assert server.peer_common_name == "bob"
    if password is not None:
        with pytest.raises(KeyPasswordError) as caught:
            TlsContext(replace(settings, key_password=None), server=False)
        assert (caught.value.wrong, caught.value.option) == (False, "pkcs12")
        # The second is typed in Latin-1, and PKCS #12 has UTF-8 alone.
        for wrong in ("x", b"gr\xfc\xdf".decode(errors="surrogateescape")):
            with pytest.raises(KeyPasswordError, match="wrong"):
                TlsContext(replace(settings, key_password=wrong), server=False)


def test_a_ca_beside_pkcs12_is_the_only_one_trusted() -> None:
    other = Authority("Other CA", seed=1)
    with pytest.raises(TlsError, match="not signed by the given CA"):
        shake_hands(TlsSettings(pkcs12=bundle(None), ca=other.pem))
    shake_hands(TlsSettings(pkcs12=bundle(None, authorities=False), ca=AUTHORITY.pem))
    with pytest.raises(ConfigError, match="the peer could be anyone"):
        TlsContext(TlsSettings(pkcs12=bundle(None, authorities=False)), server=False)
