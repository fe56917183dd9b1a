"""What is unsafe about a configuration that works, and what to change."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from ginnel.openvpn.config import ClientConfig
from ginnel.openvpn.ovpn_login import NO_PASSWORD
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.wrap import NoWrap, TlsAuth


@dataclass(frozen=True)
class Advice:
    """``option`` is what it is about; ``instead`` what to write or to do."""

    option: str
    text: str
    instead: str


def advise(config: ClientConfig, now: datetime) -> tuple[Advice, ...]:
    """``now`` is aware of its time zone."""
    return (
        *_about_the_server(config),
        *_about_tls(config),
        *_about_data(config),
        *_about_the_login(config),
        *_about_routes(config.local),
        *_about_dates(config, now),
    )


def _about_the_server(config: ClientConfig) -> Iterator[Advice]:
    checked = (
        config.remote_cert_tls == "server"
        or config.verify_x509_name
        or config.remote_cert_eku
        or config.peer_fingerprints
        or config.issuer_fingerprints
    )
    if config.ca is not None and not checked:
        text = "whoever has any certificate of this ca can pose as the server"
        yield Advice("remote-cert-tls", text, "add: remote-cert-tls server")
    name = config.verify_x509_name
    if name is not None and name.kind == "name-prefix" and len(name.name) < SHORT_PREFIX:
        yield Advice("verify-x509-name", "so short a prefix fits many names", "write the whole name, and: name")


def _about_tls(config: ClientConfig) -> Iterator[Advice]:
    if config.tls_version_min < "1.2":
        yield Advice("tls-version-min", "TLS before 1.2 is broken in several ways", "write: tls-version-min 1.2")
    if config.cert_profile == "insecure" or re.search("@SECLEVEL=0(?![0-9])", config.cipher_list or ""):
        option = "tls-cert-profile" if config.cert_profile == "insecure" else "tls-cipher"
        text = "keys and digests that can be broken by now are taken"
        yield Advice(option, text, "ask for certificates of today, and remove it")
    wraps = [config.for_remote(remote).wrap for remote in config.remotes]
    if any(isinstance(wrap, TlsAuth) and wrap.digest == "MD5" for wrap in wraps):
        yield Advice(
            "auth", "MD5 is broken as a digest, and old in any use", "write: auth SHA256, on the server as well"
        )
    if any(isinstance(wrap, NoWrap) for wrap in wraps):
        text = "anybody can begin a TLS handshake with the server"
        yield Advice("tls-crypt", text, "if you run the server, give it tls-crypt-v2 or tls-crypt")


def _about_data(config: ClientConfig) -> Iterator[Advice]:
    weak = [name for name in (*config.data_ciphers, config.cipher or "") if not name.endswith(SOUND) and name]
    if any(name.upper() == "NONE" for name in weak):
        yield Advice("data-ciphers", "without a cipher everybody on the way reads along", "remove none")
    elif weak:
        names = ", ".join(dict.fromkeys(weak))
        yield Advice(
            "data-ciphers", f"{names} is slower, and weaker, than AES-256-GCM", "remove it, if the server allows"
        )
    if config.auth == "none" and any(name.endswith("-CBC") for name in weak):
        text = "nobody would notice data that was changed on the way"
        yield Advice("auth", text, "write: auth SHA256, on the server as well, or remove the ciphers in CBC")


def _about_the_login(config: ClientConfig) -> Iterator[Advice]:
    login = config.auth_user_pass
    if login is None:
        return
    if login.password is not None and login.password != NO_PASSWORD:
        if login.file is not None:
            return
        text = "the file has a password in it: whoever reads the file can log in"
        yield Advice("auth-user-pass", text, "keep the file to yourself (mode 0600), or let the password be asked for")
    elif config.auth_nocache:
        text = "the password is asked for at each reconnection: without a terminal ginnel ends there"
        yield Advice("auth-nocache", text, "remove it, or name a file: auth-user-pass FILE")


def _about_routes(local: PushReply) -> Iterator[Advice]:
    flags = local.redirect_gateway
    if flags is not None and not {"ipv6", "!ipv4"} & {*flags, *(local.redirect_private or ())} and not local.block_ipv6:
        text = "with --tun IPv6 leaves past the tunnel, unless the server draws it in"
        yield Advice("redirect-gateway", text, "add: block-ipv6; or, if the server gives IPv6 addresses: ipv6")


def _about_dates(config: ClientConfig, now: datetime) -> Iterator[Advice]:
    for option, certificate in _certificates(config):
        since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if until < now:
            yield Advice(option, f"a certificate expired on {until:%Y-%m-%d}", "ask for a new one")
        elif until < now + SOON:
            yield Advice(option, f"a certificate expires on {until:%Y-%m-%d}", "ask for a new one")
        elif since > now:
            text = f"a certificate is not valid before {since:%Y-%m-%d}"
            yield Advice(option, text, "is this machine's clock right?")
    for found in re.findall(PEM_CRL, config.crl if isinstance(config.crl, str) else "", re.S):
        until_next = x509.load_pem_x509_crl(found.encode()).next_update_utc
        if until_next is not None and until_next < now:
            text = f"a revocation list was good until {until_next:%Y-%m-%d}: no server is taken any more"
            yield Advice("crl-verify", text, "get the list that is in force")


def _certificates(config: ClientConfig) -> Iterator[tuple[str, x509.Certificate]]:
    """With the option that each is of; none of a container whose password is not at hand."""
    for option, pem in (("cert", config.cert), ("ca", config.ca)):
        for certificate in x509.load_pem_x509_certificates(pem.encode()) if pem else ():
            yield option, certificate
    if config.pkcs12 is None:
        return
    password = None if config.key_password is None else config.key_password.encode(errors="replace")
    with contextlib.suppress(ValueError):
        found = pkcs12.load_pkcs12(config.pkcs12, password)
        for entry in (found.cert, *found.additional_certs):
            if entry is not None:
                yield "pkcs12", entry.certificate


PEM_CRL = "-----BEGIN X509 CRL-----.*?-----END X509 CRL-----"
SHORT_PREFIX = 4
SOUND = ("-GCM", "-POLY1305")
SOON = timedelta(days=30)
