"""Whether a peer's certificate is the one that was asked for: names, purposes, fingerprints."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from ginnel.errors import ConfigError
from ginnel.openvpn.words import escape

if TYPE_CHECKING:
    from ginnel.openvpn.tls_settings import TlsSettings


class Rules:
    """What the settings ask of certificates beyond OpenSSL's own checks. Raises ConfigError."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self._fingerprints = frozenset(_fingerprint(text, "peer-fingerprint") for text in settings.peer_fingerprints)
        self._issuers = frozenset(_fingerprint(text, "verify-hash") for text in settings.issuer_fingerprints)
        self._fields = tuple(map(_check_field, settings.username_fields))
        self._eku = None if settings.remote_cert_eku is None else _purpose(settings.remote_cert_eku)

    @property
    def look_at_issuers(self) -> bool:
        """Whether they say anything of certificates other than the peer's."""
        return bool(self._issuers) or isinstance(self._settings.crl, frozenset)

    def refuse_revoked(self, certificate: x509.Certificate) -> str | None:
        """Why any certificate of the chain is refused by its number, None when it isn't."""
        revoked = self._settings.crl
        if not isinstance(revoked, frozenset) or certificate.serial_number not in revoked:
            return None
        return describe(REVOKED, certificate)

    def refuse_issuer(self, certificate: x509.Certificate) -> str | None:
        """Why the certificate that signed the peer's is refused, None when it isn't."""
        if not self._issuers or self._issuers & _fingerprints_of(certificate):
            return None
        return "is signed by another certificate than verify-hash asks for"

    def refuse(self, certificate: x509.Certificate, name: str | None, *, issuer_seen: bool) -> str | None:
        """Why the peer's certificate, with its `name`, is refused, None when it isn't."""
        if self._fingerprints and not self._fingerprints & _fingerprints_of(certificate):
            seen = certificate.fingerprint(hashes.SHA256()).hex(":")
            return f"has a fingerprint that isn't in the list (SHA256 {seen})"
        if self._issuers and not issuer_seen:
            return "has no issuer that verify-hash could look at"
        return self._check_purpose(certificate) or self._check_name(certificate, name)

    def name(self, certificate: x509.Certificate) -> str | None:
        """The name by ``x509-username-field``, control characters escaped; None where a field is missing."""
        values = [_field(certificate, field) for field in self._fields]
        return None if None in values else escape("_".join(filter(None, values)))

    def _check_purpose(self, certificate: x509.Certificate) -> str | None:
        settings = self._settings
        usage, purposes = _key_usage(certificate), _purposes(certificate)
        if settings.remote_cert_tls is not None:
            if usage is None or purposes is None:
                return f"doesn't say what it is for, and remote-cert-tls asks for a {settings.remote_cert_tls}'s"
            if ROLES[settings.remote_cert_tls] not in purposes:
                return f"is not a {settings.remote_cert_tls}'s, as remote-cert-tls asks for"
        wanted = settings.remote_cert_ku
        if wanted is not None and (usage is None or not (wanted == () or any(usage & ku == ku for ku in wanted))):
            seen = "none" if usage is None else f"{usage:02x}"
            return f"has another key usage than remote-cert-ku asks for ({seen})"
        if settings.ns_cert_type and not _is_good_for_a_server(certificate, usage, purposes):
            return "is for something else than a server, and ns-cert-type asks for a server's"
        if self._eku is not None and self._eku not in (purposes or []):
            return "has another purpose than remote-cert-eku asks for"
        return None

    def _check_name(self, certificate: x509.Certificate, name: str | None) -> str | None:
        """``verify-x509-name``."""
        if name is None:
            fields = ", ".join(self._settings.username_fields)
            return f"lacks what x509-username-field asks for ({fields})"
        wanted = self._settings.verify_name
        if wanted is None:
            return None
        label = self._settings.username_fields[0] if len(self._settings.username_fields) == 1 else "name"
        seen = f"{label}={name}"
        if wanted.kind == "name":
            ok = name == wanted.name
        elif wanted.kind == "name-prefix":
            ok = name.startswith(wanted.name)
        else:
            subject = _subject(certificate)
            seen = escape(subject or "a subject in which a value looks like another attribute")
            ok = subject == wanted.name
        return None if ok else f"has another name than verify-x509-name asks for ({seen})"


def describe(error: int, certificate: x509.Certificate) -> str:
    """What OpenSSL's error number says of a certificate, as the rest of a sentence."""
    name = f"CN={escape(_attribute(certificate, NameOID.COMMON_NAME) or '')}"
    if error in TRUST_ERRORS:
        return f"is not signed by the given CA ({TRUST_ERRORS[error]}, {name})"
    if error == NOT_YET:
        return f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC ({name})"
    if error == EXPIRED:
        return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC ({name})"
    return f"is refused: {VERIFY_ERRORS.get(error, f'OpenSSL verify error {error}')} ({name})"


def out_of_date(certificate: x509.Certificate, unix_time: float) -> str | None:
    """What its dates say against it at a time, as the rest of a sentence; None where it is valid."""
    if unix_time < certificate.not_valid_before_utc.timestamp():
        return describe(NOT_YET, certificate)
    return describe(EXPIRED, certificate) if unix_time > certificate.not_valid_after_utc.timestamp() else None


def _fingerprint(text: str, option: str) -> bytes:
    sizes = {"peer-fingerprint": (32,), "verify-hash": (20, 32)}[option]
    try:
        fingerprint = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        fingerprint = b""
    if len(fingerprint) not in sizes:
        raise ConfigError(f"{text!r} is not a SHA256 fingerprint", option=option)
    return fingerprint


def _fingerprints_of(certificate: x509.Certificate) -> set[bytes]:
    return {certificate.fingerprint(hashes.SHA256()), certificate.fingerprint(hashes.SHA1())}


def _key_usage(certificate: x509.Certificate) -> int | None:
    """As OpenVPN counts it: the first of the eight bits is 0x80."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    bits = [
        usage.digital_signature,
        usage.content_commitment,
        usage.key_encipherment,
        usage.data_encipherment,
        usage.key_agreement,
        usage.key_cert_sign,
        usage.crl_sign,
        usage.key_agreement and usage.encipher_only,
    ]
    return sum(0x80 >> place for place, bit in enumerate(bits) if bit)


def _purposes(certificate: x509.Certificate) -> list[ObjectIdentifier] | None:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except (x509.ExtensionNotFound, ValueError):
        return None


def _is_good_for_a_server(
    certificate: x509.Certificate, usage: int | None, purposes: list[ObjectIdentifier] | None
) -> bool:
    """By what it says of itself, in any of three ways; as stock has it (``ssl_verify_openssl.c``), what says nothing is
    good for all, and Netscape's own extension alone is enough."""
    try:
        said = certificate.extensions.get_extension_for_oid(NETSCAPE_TYPE).value
    except x509.ExtensionNotFound:
        bits = None
    except ValueError:
        return False
    else:
        # A bit string of one byte: tag, length, unused bits, bits.
        bits = said.value[3] if isinstance(said, x509.UnrecognizedExtension) and len(said.value) == 4 else 0
    if bits is not None:
        return bool(bits & NETSCAPE_SERVER)
    fits = purposes is None or bool({*purposes} & SERVER_PURPOSES)
    return fits and (usage is None or bool(usage & TLS_USAGES))


def _purpose(text: str) -> ObjectIdentifier:
    if text in PURPOSES:
        return PURPOSES[text]
    try:
        return ObjectIdentifier(text)
    except ValueError:
        instead = "write its OID, like 1.3.6.1.5.5.7.3.1"
        raise ConfigError(f"{text!r} is no known purpose", option="remote-cert-eku", instead=instead) from None


def _check_field(field: str) -> str:
    known = field in (SERIAL_NUMBER, *EXTENSIONS) or field in ATTRIBUTES
    if not known:
        try:
            ObjectIdentifier(field)
        except ValueError:
            instead = "write CN, another attribute's name, its OID, or ext:subjectAltName"
            message = f"{field!r} is no field of a certificate that is known here"
            raise ConfigError(message, option="x509-username-field", instead=instead) from None
    return field


def _field(certificate: x509.Certificate, field: str) -> str | None:
    if field == SERIAL_NUMBER:
        digits = f"{certificate.serial_number:X}"
        return "0x" + "0" * (len(digits) % 2) + digits
    if field in EXTENSIONS:
        return _last_mail(certificate, field)
    oid = ATTRIBUTES.get(field)
    value = _attribute(certificate, oid or ObjectIdentifier(field))
    # A certificate without a CN is one without a name, as long as nobody asks for it.
    return "" if value is None and field == "CN" else value


def _last_mail(certificate: x509.Certificate, field: str) -> str | None:
    try:
        extension = certificate.extensions.get_extension_for_class(EXTENSIONS[field]).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    mails: list[str] = list(extension.get_values_for_type(x509.RFC822Name))
    return mails[-1] if mails else None


def _attribute(certificate: x509.Certificate, oid: ObjectIdentifier) -> str | None:
    """The last one of the subject's, as stock takes it."""
    found = certificate.subject.get_attributes_for_oid(oid)
    return str(found[-1].value) if found else None


def _subject(certificate: x509.Certificate) -> str | None:
    """The subject as OpenVPN writes it, ``C=KG, O=Test, CN=x``; None where a value is written such that the
    whole could be another subject's."""
    parts = []
    for rdn in certificate.subject.rdns:
        values = []
        for item in rdn:
            value = str(item.value)
            if LOOKS_LIKE_MORE.search(value):
                return None
            values.append(f"{SHORT_NAMES.get(item.oid, item.rfc4514_attribute_name)}={value}")
        parts.append(" + ".join(values))
    return ", ".join(parts)


NO_CRL, NOT_YET, EXPIRED, REVOKED = 3, 9, 10, 23
NETSCAPE_TYPE, NETSCAPE_SERVER = ObjectIdentifier("2.16.840.1.113730.1.1"), 0x40
# TLS's own, and those of the days of export ciphers.
SERVER_PURPOSES = {
    ExtendedKeyUsageOID.SERVER_AUTH,
    ObjectIdentifier("2.16.840.1.113730.4.1"),
    ObjectIdentifier("1.3.6.1.4.1.311.10.3.3"),
}
# Signature, key encipherment, key agreement.
TLS_USAGES = 0x80 | 0x20 | 0x08
SERIAL_NUMBER = "serialNumber"
EXTENSIONS: dict[str, type[x509.SubjectAlternativeName] | type[x509.IssuerAlternativeName]] = {
    "ext:subjectAltName": x509.SubjectAlternativeName,
    "ext:issuerAltName": x509.IssuerAlternativeName,
}
LOOKS_LIKE_MORE = re.compile(r"(, | \+ )[A-Za-z0-9.]+=")
ROLES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}
# OpenSSL's short and long names.
PURPOSES = {
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "TLS Web Server Authentication": ExtendedKeyUsageOID.SERVER_AUTH,
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "TLS Web Client Authentication": ExtendedKeyUsageOID.CLIENT_AUTH,
    "codeSigning": ExtendedKeyUsageOID.CODE_SIGNING,
    "Code Signing": ExtendedKeyUsageOID.CODE_SIGNING,
    "emailProtection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "E-mail Protection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "timeStamping": ExtendedKeyUsageOID.TIME_STAMPING,
    "Time Stamping": ExtendedKeyUsageOID.TIME_STAMPING,
    "anyExtendedKeyUsage": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    "Any Extended Key Usage": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
}
# OpenSSL's short names where they aren't those of RFC 4514.
SHORT_NAMES = {
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.GIVEN_NAME: "GN",
    NameOID.SURNAME: "SN",
    NameOID.INITIALS: "initials",
    NameOID.TITLE: "title",
    NameOID.STREET_ADDRESS: "street",
    NameOID.POSTAL_CODE: "postalCode",
    NameOID.PSEUDONYM: "pseudonym",
    NameOID.GENERATION_QUALIFIER: "generationQualifier",
    NameOID.DN_QUALIFIER: "dnQualifier",
    NameOID.BUSINESS_CATEGORY: "businessCategory",
    NameOID.ORGANIZATION_IDENTIFIER: "organizationIdentifier",
    NameOID.UNSTRUCTURED_NAME: "unstructuredName",
    NameOID.JURISDICTION_COUNTRY_NAME: "jurisdictionC",
    NameOID.JURISDICTION_STATE_OR_PROVINCE_NAME: "jurisdictionST",
    NameOID.JURISDICTION_LOCALITY_NAME: "jurisdictionL",
    ObjectIdentifier("2.5.4.41"): "name",
    ObjectIdentifier("2.5.4.13"): "description",
}
ATTRIBUTES = {
    **{name: oid for oid, name in SHORT_NAMES.items() if name != SERIAL_NUMBER},
    "CN": NameOID.COMMON_NAME,
    "commonName": NameOID.COMMON_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "organizationName": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "organizationalUnitName": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "C": NameOID.COUNTRY_NAME,
    "countryName": NameOID.COUNTRY_NAME,
    "L": NameOID.LOCALITY_NAME,
    "localityName": NameOID.LOCALITY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "stateOrProvinceName": NameOID.STATE_OR_PROVINCE_NAME,
    "UID": NameOID.USER_ID,
    "userId": NameOID.USER_ID,
    "DC": NameOID.DOMAIN_COMPONENT,
    "domainComponent": NameOID.DOMAIN_COMPONENT,
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
    11: "the revocation list is not valid yet",
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
