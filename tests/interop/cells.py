"""What is tried with stock OpenVPN, as data: `test_cells` runs it, and `docs/interop.md` is made of it (`page`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ginnel.errors import ConfigError, RemoteProtocolError, UnreachableError
from tests.harness import office
from tests.harness.pki import Authority, old_authority
from tests.harness.profile import COMMON_KEYS, Keys, Profile
from tests.harness.shapes import KEY_PASSWORD, bundle, encrypt


@dataclass(frozen=True)
class Cell:
    """Both sides' options beside the ordinary ones, and what becomes of it.

    ``why`` says what can break. ``up`` are fields of the ``up`` event and how they begin, ``server`` is
    what its log then says. ``fails`` is the error that ginnel must end with, and words of its line;
    without it a page must come through the tunnel. ``profile`` is made when the cell runs: keys take time.
    """

    subject: str
    name: str
    why: str
    theirs: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    up: dict[str, str] = field(default_factory=dict)
    server: str = ""
    fails: tuple[type[Exception], str] | None = None
    profile: Callable[[], Profile] = Profile
    files: Callable[[], dict[str, str | bytes]] = dict
    login: bool = False
    without: str = ""
    """A line of the client's file that the cell is without."""
    page: str = "http://wiki.office/"
    """Where the page is that must come through."""
    machine: tuple[tuple[str, str], ...] = ()
    """With --tun: commands, and what each says on the machine then, as a regular expression."""

    def make_profile(self) -> Profile:
        profile = self.profile()
        return replace(
            profile,
            server_options=(*profile.server_options, *self.theirs),
            client_options=(*profile.client_options, *self.ours),
        )

    @property
    def result(self) -> str:
        if self.fails is None:
            return "connects (`--tun`); the machine has it" if self.machine else "connects"
        kind, words = self.fails
        status = kind.exit_status  # type: ignore[attr-defined]
        return f"ends with status {status}" + (f": “… {words} …”" if words else "")


def wrapped(**values: Any) -> Callable[[], Profile]:
    return partial(Profile, **values)


def revoked(*, server: bool) -> dict[str, str | bytes]:
    """A list of the server's own authority, with the server's certificate or without."""
    authority, keys = _known_authority()
    return {"revoked.pem": authority.revocation_list(*([keys.server] if server else []))}


def listed() -> Profile:
    return replace(Profile(), keys=_known_authority()[1])


def expired() -> Profile:
    return listed().with_keys(client=_known_authority()[0].issue("client", days=-1))


def small() -> Profile:
    """The server has an RSA key of 1,024 bits. (That level 1 takes; level 2 does not.)"""
    authority, server, _ = old_authority(1024)
    # Ours is as good as any, and never looked at.
    return Profile(tls="1.2").with_keys(ca=authority, server=server, client=COMMON_KEYS.ca_signed.client)


def signed_with_sha1() -> Profile:
    authority, server, client = old_authority(digest="sha1")
    return Profile(tls="1.2").with_keys(ca=authority, server=server, client=client)


def bare() -> Profile:
    """The server's certificate says nothing of what it is for."""
    return Profile(keys=COMMON_KEYS.bare)


def hashed(keys: Keys, *, of: Keys | None = None) -> Profile:
    """With the fingerprint of its authority, or of another one."""
    digest = x509.load_pem_x509_certificate((of or keys).ca.encode()).fingerprint(hashes.SHA256()).hex(":")
    return Profile(keys=keys, client_options=(f"verify-hash {digest} SHA256",))


def encrypted_bundle() -> dict[str, str | bytes]:
    return {"own.p12": bundle(COMMON_KEYS.ca_signed, KEY_PASSWORD), "key-password": KEY_PASSWORD + "\n"}


def encrypted_key() -> dict[str, str | bytes]:
    return {"own.key": encrypt(COMMON_KEYS.ca_signed.client.key), "key-password": KEY_PASSWORD + "\n"}


def _known_authority() -> Any:
    if not _KNOWN:
        authority = Authority()
        keys = replace(
            COMMON_KEYS.ca_signed,
            ca=authority.certificate,
            server=authority.issue("server", server=True),
            client=authority.issue("client"),
        )
        _KNOWN.append((authority, keys))
    return _KNOWN[0]


_KNOWN: list[tuple[Authority, Any]] = []

TLS12 = wrapped(tls="1.2")
CELLS = [
    # TLS.
    Cell(
        "TLS",
        "tls-cipher in OpenVPN's name",
        "the name is not OpenSSL's: translated wrongly, nothing is left",
        ours=("tls-cipher TLS-ECDHE-ECDSA-WITH-CHACHA20-POLY1305-SHA256",),
        profile=TLS12,
        up={"tls": "TLSv1.2 ECDHE-ECDSA-CHACHA20-POLY1305"},
    ),
    Cell(
        "TLS",
        "tls-cipher at the server alone",
        "our list must hold what the other side insists on",
        theirs=("tls-cipher TLS-ECDHE-ECDSA-WITH-AES-128-GCM-SHA256",),
        profile=TLS12,
        up={"tls": "TLSv1.2 ECDHE-ECDSA-AES128-GCM-SHA256"},
    ),
    Cell(
        "TLS",
        "tls-ciphersuites",
        "TLS 1.3 has a list of its own",
        ours=("tls-ciphersuites TLS-CHACHA20-POLY1305-SHA256",),
        up={"tls": "TLSv1.3 TLS_CHACHA20_POLY1305_SHA256"},
    ),
    Cell(
        "TLS",
        "tls-groups, other than our first",
        "the server asks again (HelloRetryRequest): one more flight",
        theirs=("tls-groups secp521r1",),
        ours=("tls-groups X25519:secp521r1",),
        server="521",
    ),
    Cell(
        "TLS",
        "tls-version-max below the server's",
        "which side decides",
        ours=("tls-version-max 1.2",),
        up={"tls": "TLSv1.2"},
    ),
    Cell(
        "TLS",
        "tls-version-min above the server's least",
        "which side decides",
        ours=("tls-version-min 1.3",),
        theirs=("tls-version-min 1.2",),
        up={"tls": "TLSv1.3"},
    ),
    Cell(
        "TLS",
        "certificates signed with SHA-1, SECLEVEL=0 in the file",
        "OpenSSL refuses such a certificate by itself",
        theirs=("tls-cipher DEFAULT:@SECLEVEL=0",),
        ours=("tls-cipher DEFAULT:@SECLEVEL=0",),
        profile=signed_with_sha1,
        up={"tls": "TLSv1.2"},
    ),
    Cell(
        "TLS",
        "RSA of 1,024 bits, tls-cert-profile preferred",
        "a level that is not set lets it in",
        theirs=("tls-cipher DEFAULT:@SECLEVEL=0",),
        ours=("tls-cert-profile preferred",),
        profile=small,
        fails=(RemoteProtocolError, ""),
    ),
    Cell(
        "TLS",
        "no TLS version in common",
        "must not fall back; stock sends no alert",
        theirs=("tls-version-max 1.2",),
        ours=("tls-version-min 1.3",),
        fails=(UnreachableError, "the handshake did not end"),
    ),
    Cell(
        "TLS",
        "no group in common",
        "must not fall back; stock sends no alert",
        theirs=("tls-groups secp521r1",),
        ours=("tls-groups X25519",),
        fails=(UnreachableError, "the handshake did not end"),
    ),
    # Certificates.
    Cell(
        "certificates",
        "crl-verify without the server in it",
        "a list switches checks on that fail without reason",
        ours=("crl-verify revoked.pem",),
        profile=listed,
        files=partial(revoked, server=False),
    ),
    Cell(
        "certificates",
        "crl-verify with the server in it",
        "a revoked server must not be taken",
        ours=("crl-verify revoked.pem",),
        profile=listed,
        files=partial(revoked, server=True),
        fails=(RemoteProtocolError, "revoked"),
    ),
    Cell(
        "certificates",
        "our own expired",
        "stock drops such a client without a word",
        profile=expired,
        fails=(UnreachableError, "the handshake did not end (our certificate expired on"),
    ),
    Cell(
        "certificates",
        "pkcs12 with askpass",
        "the password is the container's, not a key's",
        ours=("pkcs12 own.p12", "askpass key-password"),
        files=encrypted_bundle,
        without="cert key",
    ),
    Cell(
        "certificates",
        "an encrypted key with askpass",
        "what is no key without its password must not be taken for a damaged one",
        ours=("key own.key", "askpass key-password"),
        files=encrypted_key,
        without="key",
    ),
    Cell(
        "certificates",
        "an encrypted key with a wrong password",
        "must say so, before it connects",
        ours=("key own.key", "askpass own.key"),
        files=encrypted_key,
        without="key",
        fails=(ConfigError, "password"),
    ),
    Cell(
        "certificates", "verify-x509-name, name", "what is compared with what", ours=("verify-x509-name server name",)
    ),
    Cell(
        "certificates",
        "verify-x509-name, name-prefix",
        "what is compared with what",
        ours=("verify-x509-name ser name-prefix",),
    ),
    Cell(
        "certificates", "verify-x509-name, subject", "stock's form of a subject", ours=("verify-x509-name CN=server",)
    ),
    Cell(
        "certificates",
        "verify-x509-name, a prefix taken for a name",
        "must not be taken for a prefix",
        ours=("verify-x509-name serve name",),
        fails=(RemoteProtocolError, "name"),
    ),
    Cell(
        "certificates",
        "remote-cert-ku and remote-cert-eku",
        "numbers in hexadecimal, bits in DER's order",
        ours=("remote-cert-ku 80 a0", 'remote-cert-eku "TLS Web Server Authentication"'),
    ),
    Cell(
        "certificates",
        "a certificate without key usages, and a file that asks for none",
        "what nobody asked for must not be missed",
        profile=bare,
        without="remote-cert-tls",
    ),
    Cell(
        "certificates",
        "a certificate without key usages, remote-cert-ku",
        "without a number it asks for any",
        ours=("remote-cert-ku", "verify-x509-name server name"),
        profile=bare,
        without="remote-cert-tls",
        fails=(RemoteProtocolError, "remote-cert-ku"),
    ),
    Cell(
        "certificates",
        "verify-hash; ns-cert-type server, and a certificate that says nothing",
        "the issuer's fingerprint and not the server's; what says nothing may be a server's",
        ours=("ns-cert-type server",),
        profile=lambda: hashed(COMMON_KEYS.bare),
        without="remote-cert-tls",
    ),
    Cell(
        "certificates",
        "verify-hash of another authority",
        "must not be taken, though it is signed as it should be",
        profile=lambda: hashed(COMMON_KEYS.ca_signed, of=COMMON_KEYS.bare),
        fails=(RemoteProtocolError, "verify-hash"),
    ),
    Cell(
        "certificates",
        "x509-username-field that is not there",
        "must not be taken for the common name",
        ours=("x509-username-field OU", "verify-x509-name server name"),
        fails=(RemoteProtocolError, "x509-username-field"),
    ),
    Cell(
        "certificates",
        "remote-cert-eku that is not there",
        "must not be taken",
        ours=("remote-cert-eku 1.3.6.1.5.5.7.3.4",),
        fails=(RemoteProtocolError, ""),
    ),
    # Wrapping.
    Cell(
        "wrapping",
        "tls-auth, digests that differ",
        "looks as if nobody were there",
        theirs=("auth SHA1",),
        profile=wrapped(wrap="tls-auth"),
        fails=(UnreachableError, "no answer"),
    ),
    Cell(
        "wrapping",
        "tls-crypt at the server alone",
        "looks as if nobody were there",
        profile=wrapped(wrap="tls-crypt"),
        without="tls-crypt",
        fails=(UnreachableError, "no answer"),
    ),
    # Data.
    Cell(
        "data",
        "ciphers: the server's first that we have",
        "the order is the server's",
        theirs=("data-ciphers CHACHA20-POLY1305:AES-256-GCM",),
        ours=("data-ciphers AES-256-GCM:CHACHA20-POLY1305",),
        up={"cipher": "CHACHA20-POLY1305"},
        without="data-ciphers",
    ),
    Cell(
        "data",
        "no cipher in common",
        "must not fall back; stock says why",
        theirs=("data-ciphers CHACHA20-POLY1305",),
        fails=(RemoteProtocolError, "add one of its own to data-ciphers"),
    ),
    Cell(
        "data",
        "tun-mtu pushed",
        "packets of the old size are lost without a word",
        theirs=("tun-mtu 1400", 'push "tun-mtu 1400"'),
        machine=(("ip -o link show dev tun0", ".*mtu 1400 .*"),),
    ),
    Cell(
        "data",
        "fragment in the file",
        "both ends need it: nothing would pass",
        ours=("fragment 1400",),
        fails=(ConfigError, "fragment is not supported"),
    ),
    # What is pushed.
    Cell(
        "push",
        "an Ethernet tunnel (dev tap)",
        "frames in place of packets, neighbours have to be found",
        theirs=("dev tap0",),
        ours=("dev tap",),
        up={"address": "10.8.0.2/24"},
    ),
    Cell("push", "topology net30", "two addresses, no mask", theirs=("topology net30",), up={"address": "10.8.0.6"}),
    Cell(
        "push",
        "block-ipv6",
        "an address that leads nowhere makes every connection wait",
        theirs=('push "block-ipv6"',),
        up={"address": "10.8.0.2", "address6": "None"},
    ),
    Cell(
        "push",
        "redirect-gateway with a flag that is not known",
        "one word more must not leave everything outside",
        theirs=('push "redirect-gateway def1 bypass-dhcp of-2030"',),
        machine=(("ip route get 1.2.3.4", "1.2.3.4 .*dev tun0 .*"),),
    ),
    Cell(
        "push",
        "redirect-private; setenv-safe",
        "the one must draw nothing in, the other not end the session",
        theirs=('push "redirect-private def1"', 'push "setenv-safe office closed"'),
        machine=(("ip route show 0.0.0.0/1", ""), ("ip route show default", "")),
    ),
    Cell(
        "push",
        "dhcp-option DOMAIN-SEARCH",
        "a name without a dot",
        theirs=('push "dhcp-option DOMAIN-SEARCH office"',),
        ours=('pull-filter ignore "dhcp-option DOMAIN "',),
        page="http://wiki/",
    ),
    Cell(
        "push",
        "dns search-domains",
        "a name without a dot, in the newer language",
        theirs=('push "dns search-domains elsewhere office"',),
        ours=('pull-filter ignore "dhcp-option DOMAIN "',),
        page="http://wiki/",
    ),
    Cell(
        "push",
        "dns server with resolve-domains",
        "its domains are its own, the others another's",
        theirs=(
            'push "dns server 1 address 10.99.0.1"',
            f'push "dns server 2 address {office.ADDRESS}"',
            'push "dns server 2 resolve-domains office"',
        ),
    ),
    Cell("push", "topology p2p", "one address and a peer's", theirs=("topology p2p",), up={"address": "10.8.0."}),
    Cell(
        "push",
        "more than one message holds",
        "the last piece says that it is the last",
        theirs=tuple(f'push "route 10.{number}.0.0 255.255.0.0"' for number in range(90, 180)),
        server="push-continuation 1",
    ),
    Cell(
        "push",
        "pull-filter ignore, and the file's own",
        "order and prefix of filters",
        ours=(
            'pull-filter accept "dhcp-option DOMAIN"',
            'pull-filter ignore "dhcp-option"',
            "dhcp-option DNS 10.77.0.1",
        ),
        profile=wrapped(names="dhcp-option DNS 10.99.0.1"),
        machine=(("grep ^nameserver /etc/resolv.conf", "nameserver 10.77.0.1"),),
        page="http://wiki/",
    ),
    Cell(
        "push",
        "pull-filter reject",
        "must end the connection",
        ours=("pull-filter reject route",),
        fails=(RemoteProtocolError, "pull-filter"),
    ),
    Cell(
        "push",
        "route-nopull, and the file's own",
        "addresses are taken all the same",
        theirs=('push "route 10.66.0.0 255.255.0.0"',),
        ours=("route-nopull", "route 10.77.0.0 255.255.255.0", "dhcp-option DNS 10.77.0.1"),
        machine=(("ip route show 10.66.0.0/16", ""), ("ip route show 10.77.0.0/24", ".*dev tun0.*")),
    ),
    # Logging in.
    Cell(
        "login",
        "a user and a password, no certificate",
        "the client sends no certificate at all",
        theirs=("verify-client-cert none",),
        profile=wrapped(password=True),
        login=True,
        without="cert key",
    ),
    Cell(
        "login",
        "a password, of which the file says nothing",
        "stock drops such a client without a word",
        profile=wrapped(password=True),
        without="auth-user-pass",
        fails=(UnreachableError, "the handshake did not end (nor does it where the server wants a password"),
    ),
]
