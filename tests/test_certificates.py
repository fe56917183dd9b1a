"""Which certificates are accepted: names, purposes, fingerprints, revocation. What only looks right must fail."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from ginnel.errors import ConfigError
from ginnel.openvpn import settings
from ginnel.openvpn.certificates import Rules
from ginnel.openvpn.ovpn_file import parse_ovpn
from ginnel.openvpn.tls import TlsContext, TlsError, TlsSettings, VerifyName

NOW = datetime.now(UTC)
Attributes = Sequence[tuple[ObjectIdentifier, str]]


class Signer:
    """An authority that signs anything."""

    def __init__(self, name: str, issuer: "Signer | None" = None) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.issuer = issuer or self
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self.issuer.sign(self.name, self.key, [x509.BasicConstraints(ca=True, path_length=None)])

    @property
    def pem(self) -> str:
        return pem(self.certificate)

    def sign(
        self, name: x509.Name, key: Ed25519PrivateKey, extensions: Sequence[x509.ExtensionType]
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, None)

    def server(
        self, *attributes: tuple[ObjectIdentifier, str], extensions: Sequence[x509.ExtensionType] = ()
    ) -> TlsSettings:
        """Settings of a server with such a subject."""
        name = x509.Name([x509.NameAttribute(oid, value, _type(oid)) for oid, value in attributes])
        key = Ed25519PrivateKey.generate()
        certificate = self.sign(name, key, extensions)
        return TlsSettings(cert=pem(certificate), key=key_pem(key), client_certificate=False)

    def revoke(self, *certificates: x509.Certificate, since: int = -1, until: int = 1) -> str:
        """A revocation list, valid between these days from now."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(NOW + timedelta(days=since))
            .next_update(NOW + timedelta(days=until))
        )
        for certificate in certificates:
            revoked = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
            builder = builder.add_revoked_certificate(revoked.revocation_date(NOW).build())
        return builder.sign(self.key, None).public_bytes(serialization.Encoding.PEM).decode()


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem(key: Ed25519PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def leaf(settings: TlsSettings) -> x509.Certificate:
    assert settings.cert is not None
    return x509.load_pem_x509_certificates(settings.cert.encode())[0]


def _type(oid: ObjectIdentifier) -> _ASN1Type:
    if oid in (NameOID.COUNTRY_NAME, NameOID.SERIAL_NUMBER):
        return _ASN1Type.PrintableString
    return _ASN1Type.IA5String if oid == NameOID.EMAIL_ADDRESS else _ASN1Type.UTF8String


def complaint(client: TlsSettings | TlsContext, server: TlsSettings) -> str | None:
    """Why the client refuses the server, None when it doesn't."""
    context = TlsContext(client, server=False) if isinstance(client, TlsSettings) else client
    ends = context.connect(), TlsContext(server, server=True).connect()
    try:
        for _ in range(4):
            for end, other in (ends, ends[::-1]):
                end.step()
                other.feed(end.take_output(100_000))
    except TlsError as error:
        return str(error)
    assert ends[0].established
    return None


ROOT = Signer("Root")
TRUST = TlsSettings(ca=ROOT.pem)
CN, O, C, MAIL = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.COUNTRY_NAME, NameOID.EMAIL_ADDRESS  # noqa: E741
FULL: Attributes = [(C, "KG"), (O, "Test, Inc."), (CN, "vpn.example.org"), (MAIL, "a@b.c")]
SUBJECT = "C=KG, O=Test, Inc., CN=vpn.example.org, emailAddress=a@b.c"


@pytest.mark.parametrize(
    ("wanted", "attributes"),
    [
        (VerifyName("vpn", "name"), [(CN, "vpn")]),
        # The last one counts, as in stock.
        (VerifyName("vpn", "name"), [(CN, "other"), (CN, "vpn")]),
        (VerifyName("vpn-", "name-prefix"), [(CN, "vpn-7")]),
        (VerifyName(SUBJECT), FULL),
        (VerifyName("CN=жук"), [(CN, "жук")]),
        (VerifyName("name=x, CN=y"), [(ObjectIdentifier("2.5.4.41"), "x"), (CN, "y")]),
    ],
)
def test_a_name_that_is_right(wanted: VerifyName, attributes: Attributes) -> None:
    assert complaint(replace(TRUST, verify_name=wanted), ROOT.server(*attributes)) is None


@pytest.mark.parametrize(
    ("wanted", "attributes"),
    [
        (VerifyName("vpn", "name"), [(CN, "vpn\0")]),
        (VerifyName("vpn", "name"), [(CN, "vpn\0.evil.org")]),
        (VerifyName("vpn", "name"), [(CN, "vpn ")]),
        (VerifyName("vpn", "name"), [(CN, " vpn")]),
        (VerifyName("vpn", "name"), [(CN, "VPN")]),
        (VerifyName("vpn", "name"), [(CN, "vpn2")]),
        (VerifyName("vpn", "name"), [(CN, "vрn")]),
        (VerifyName("vpn", "name"), [(CN, "vpn"), (CN, "other")]),
        (VerifyName("vpn", "name"), [(O, "vpn")]),
        (VerifyName("vpn", "name"), [(CN, "*")]),
        (VerifyName("vpn", "name"), []),
        (VerifyName("vpn-", "name-prefix"), [(CN, "evpn-7")]),
        (VerifyName("vpn-", "name-prefix"), [(CN, "vpn")]),
        (VerifyName("CN=vpn"), [(CN, "vpn"), (O, "Test")]),
        (VerifyName("O=Test, CN=vpn"), [(CN, "vpn"), (O, "Test")]),
        # One value that looks like two attributes.
        (VerifyName("O=Test, CN=vpn"), [(O, "Test, CN=vpn")]),
        (VerifyName("O=Test + CN=vpn"), [(O, "Test + CN=vpn")]),
        (VerifyName("CN=vpn\\x00"), [(CN, "vpn\0")]),
        (VerifyName("C=KG, CN=x"), [(C, "KG"), (CN, "x\n")]),
    ],
)
def test_a_name_that_only_looks_right(wanted: VerifyName, attributes: Attributes) -> None:
    refusal = complaint(replace(TRUST, verify_name=wanted), ROOT.server(*attributes))
    assert refusal is not None
    assert "verify-x509-name" in refusal
    assert refusal.isprintable()


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (("CN",), "vpn.example.org"),
        (("emailAddress",), "a@b.c"),
        (("O", "CN"), "Test, Inc._vpn.example.org"),
        (("2.5.4.10",), "Test, Inc."),
        (("ext:subjectAltName",), "last@example.org"),
    ],
)
def test_the_name_is_taken_from_the_fields_that_are_asked_for(fields: tuple[str, ...], name: str) -> None:
    names = [x509.RFC822Name("first@example.org"), x509.RFC822Name("last@example.org"), x509.DNSName("vpn")]
    server = ROOT.server(*FULL, extensions=[x509.SubjectAlternativeName(names)])
    client = replace(TRUST, username_fields=fields, verify_name=VerifyName(name, "name"))
    assert complaint(client, server) is None
    refusal = complaint(replace(client, verify_name=VerifyName(name[1:], "name")), server)
    assert refusal is not None


def test_the_serial_number_is_a_field_too() -> None:
    server = ROOT.server((CN, "x"))
    digits = f"{leaf(server).serial_number:X}"
    name = "0x" + digits.rjust(len(digits) + len(digits) % 2, "0")
    client = replace(TRUST, username_fields=("serialNumber",), verify_name=VerifyName(name, "name"))
    assert complaint(client, server) is None


def test_a_certificate_without_the_field_is_refused() -> None:
    client = replace(TRUST, username_fields=("emailAddress",))
    assert "lacks what x509-username-field asks for (emailAddress)" in str(complaint(client, ROOT.server((CN, "x"))))
    with pytest.raises(ConfigError, match="no field of a certificate"):
        TlsContext(replace(TRUST, username_fields=("ext:keyUsage",)), server=False)


# Purposes. The key usage's bits: 0x80 signature, 0x20 key encipherment, 0x08 key agreement.


def usage(*, sign: bool = True, encipher: bool = False, agree: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(sign, False, encipher, False, agree, False, False, False, False)


@pytest.mark.parametrize(
    ("wanted", "there", "fits"),
    [
        ((), usage(), True),
        ((), None, False),
        ((0xA0, 0x88), usage(encipher=True), True),
        ((0xA0, 0x88), usage(agree=True), True),
        ((0xA0, 0x88), usage(encipher=True, agree=True), True),
        ((0xA0,), usage(), False),
        ((0xA0,), usage(agree=True), False),
        ((0xA0,), None, False),
    ],
)
def test_remote_cert_ku(wanted: tuple[int, ...], there: x509.KeyUsage | None, fits: bool) -> None:
    server = ROOT.server((CN, "x"), extensions=[] if there is None else [there])
    refusal = complaint(replace(TRUST, remote_cert_ku=wanted), server)
    assert (refusal is None) == fits
    assert fits or "remote-cert-ku" in str(refusal)


@pytest.mark.parametrize(
    ("line", "fits"), [("", True), ("remote-cert-ku\n", False), ("remote-cert-tls server\n", False)]
)
def test_what_a_file_asks_of_a_certificate_that_says_nothing(line: str, fits: bool) -> None:
    file = parse_ovpn(f"client\ndev tun\nremote x\nauth-user-pass\n<ca>\n{ROOT.pem}</ca>\n{line}")
    refusal = complaint(settings.tls_context(file), ROOT.server((CN, "x")))
    assert (refusal is None) == fits, refusal


@pytest.mark.parametrize("wanted", ["TLS Web Server Authentication", "serverAuth", "1.3.6.1.5.5.7.3.1"])
def test_remote_cert_eku(wanted: str) -> None:
    client = replace(TRUST, remote_cert_eku=wanted)
    both = [ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.SERVER_AUTH]
    assert complaint(client, ROOT.server((CN, "x"), extensions=[x509.ExtendedKeyUsage(both)])) is None
    assert "remote-cert-eku" in str(complaint(client, ROOT.server((CN, "x"))))


def test_any_purpose_is_not_the_servers() -> None:
    extensions = [usage(), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])]
    refusal = complaint(replace(TRUST, remote_cert_tls="server"), ROOT.server((CN, "x"), extensions=extensions))
    assert "made for another purpose" in str(refusal)


NETSCAPE = ObjectIdentifier("2.16.840.1.113730.1.1")


@pytest.mark.parametrize(
    ("extensions", "good"),
    [
        ([], True),
        ([usage(), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])], True),
        ([x509.UnrecognizedExtension(NETSCAPE, bytes.fromhex("03020640"))], True),
        ([x509.UnrecognizedExtension(NETSCAPE, bytes.fromhex("03020780"))], False),
        ([x509.UnrecognizedExtension(NETSCAPE, bytes.fromhex("0300"))], False),
        ([x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])], False),
        ([x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])], False),
        ([x509.KeyUsage(False, False, False, False, False, True, False, False, False)], False),
    ],
    ids=[
        "nothing",
        "eku",
        "netscape-server",
        "netscape-client",
        "netscape-empty",
        "eku-client",
        "eku-any",
        "ku-of-an-authority",
    ],
)
def test_ns_cert_type(extensions: list[x509.ExtensionType], good: bool) -> None:
    server = ROOT.server((CN, "x"), extensions=extensions)
    rules = Rules(TlsSettings(ns_cert_type=True))
    assert (rules.refuse(leaf(server), "x", issuer_seen=True) is None) == good
    if good:
        assert complaint(replace(TRUST, ns_cert_type=True), server) is None
    else:
        assert complaint(replace(TRUST, ns_cert_type=True), server) is not None


def test_an_unknown_purpose_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="no known purpose"):
        TlsContext(replace(TRUST, remote_cert_eku="cooking"), server=False)


# Fingerprints.


@pytest.mark.parametrize("digest", [hashes.SHA1(), hashes.SHA256()])
def test_verify_hash_is_that_of_the_issuer(digest: hashes.HashAlgorithm) -> None:
    middle = Signer("Middle", ROOT)
    other = Signer("Other", ROOT)

    def chain(signer: Signer) -> TlsSettings:
        server = signer.server((CN, "x"))
        assert server.cert is not None
        return replace(server, cert=server.cert + signer.pem)

    wanted = middle.certificate.fingerprint(digest).hex(":").upper()
    client = replace(TRUST, issuer_fingerprints=(wanted,))
    assert complaint(client, chain(middle)) is None
    assert "verify-hash" in str(complaint(client, chain(other)))
    assert "verify-hash" in str(complaint(client, ROOT.server((CN, "x"))))


def test_verify_hash_with_a_certificate_that_has_no_issuer() -> None:
    server = Signer("self")
    settings = TlsSettings(cert=server.pem, key=key_pem(server.key), client_certificate=False)
    wanted = ROOT.certificate.fingerprint(hashes.SHA256()).hex()
    client = TlsSettings(ca=server.pem, issuer_fingerprints=(wanted,))
    assert complaint(client, settings) is not None


# Revocation.


def test_a_revoked_certificate_is_refused_and_others_are_not() -> None:
    good, bad = ROOT.server((CN, "good")), ROOT.server((CN, "bad"))
    client = replace(TRUST, crl=ROOT.revoke(leaf(bad)))
    assert complaint(client, good) is None
    assert "it is revoked (CN=bad)" in str(complaint(client, bad))


def test_numbers_are_revoked_at_any_depth_whoever_the_issuer_and_may_change() -> None:
    middle = Signer("Middle", ROOT)
    server = middle.server((CN, "x"))
    assert server.cert is not None
    number = leaf(server).serial_number
    server = replace(server, cert=server.cert + middle.pem)
    for numbers, revoked in (
        ({number}, "x"),
        ({middle.certificate.serial_number}, "Middle"),
        ({ROOT.certificate.serial_number}, "Root"),
        ({number + 1}, None),
        (set(), None),
    ):
        said = complaint(replace(TRUST, crl=frozenset(numbers)), server)
        assert (said is None) if revoked is None else (f"it is revoked (CN={revoked})" in str(said))


@pytest.mark.parametrize(
    ("since", "until", "reason"), [(-9, -2, "the revocation list expired"), (2, 9, "not valid yet")]
)
def test_a_list_out_of_its_time_refuses_everybody_as_in_stock(since: int, until: int, reason: str) -> None:
    client = replace(TRUST, crl=ROOT.revoke(since=since, until=until))
    assert reason in str(complaint(client, ROOT.server((CN, "good"))))


def test_the_list_of_another_authority_says_nothing_as_in_stock() -> None:
    client = replace(TRUST, crl=Signer("Other").revoke())
    assert complaint(client, ROOT.server((CN, "good"))) is None


def test_several_lists_and_a_revoked_authority_in_the_middle() -> None:
    middle = Signer("Middle", ROOT)
    server = middle.server((CN, "x"))
    assert server.cert is not None
    server = replace(server, cert=server.cert + middle.pem)
    client = replace(TRUST, crl="text before\n" + ROOT.revoke() + middle.revoke(leaf(server)))
    assert "it is revoked (CN=x)" in str(complaint(client, server))
    client = replace(TRUST, crl=middle.revoke() + ROOT.revoke(middle.certificate))
    assert "it is revoked (CN=Middle)" in str(complaint(client, server))
    client = replace(TRUST, crl=middle.revoke() + ROOT.revoke())
    assert complaint(client, server) is None
