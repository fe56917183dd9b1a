"""What is unsafe about a configuration that works, and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from ginnel.openvpn.config import ClientConfig
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.wrap import NoWrap


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
    if isinstance(config.wrap, NoWrap):
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
    login = config.auth_user_pass
    if login is not None and login.password is not None and not config.auth_nocache:
        text = "the file has a password in it: whoever reads the file can log in"
        yield Advice("auth-user-pass", text, "keep the file to yourself (mode 0600), or let the password be asked for")


def _about_routes(local: PushReply) -> Iterator[Advice]:
    flags = local.redirect_gateway
    if flags is not None and not {"ipv6", "!ipv4"} & {*flags, *(local.redirect_private or ())} and not local.block_ipv6:
        text = "with --tun IPv6 leaves past the tunnel, unless the server draws it in"
        yield Advice("redirect-gateway", text, "add: block-ipv6; or, if the server gives IPv6 addresses: ipv6")


def _about_dates(config: ClientConfig, now: datetime) -> Iterator[Advice]:
    for option, pem in (("cert", config.cert), ("ca", config.ca)):
        for certificate in x509.load_pem_x509_certificates(pem.encode()) if pem else ():
            until = certificate.not_valid_after_utc
            if until < now:
                yield Advice(option, f"a certificate expired on {until:%Y-%m-%d}", "ask for a new one")
            elif until < now + SOON:
                yield Advice(option, f"a certificate expires on {until:%Y-%m-%d}", "ask for a new one")
            elif certificate.not_valid_before_utc > now:
                since = certificate.not_valid_before_utc
                yield Advice(
                    option, f"a certificate is not valid before {since:%Y-%m-%d}", "is this machine's clock right?"
                )


SHORT_PREFIX = 4
SOUND = ("-GCM", "-POLY1305")
SOON = timedelta(days=30)
