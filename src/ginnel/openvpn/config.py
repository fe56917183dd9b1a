"""A client's configuration with every value parsed: what an ``.ovpn`` file comes to.

`ovpn_file` makes it from a file; a program may as well make one itself. Times are in seconds,
sizes in bytes. The rules between the options are checked here, so that a `ClientConfig` that exists
makes sense as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ginnel.errors import ConfigError
from ginnel.openvpn.data_format import AEAD_CIPHERS, MAC_SIZES, MssFix
from ginnel.openvpn.login import StaticChallenge
from ginnel.openvpn.push import PullFilter, PushReply
from ginnel.openvpn.push_values import Inactive
from ginnel.openvpn.tls import VerifyName
from ginnel.openvpn.tls_crypt_v2 import TlsCryptV2
from ginnel.openvpn.wrap import NoWrap, TlsAuth, TlsCrypt

Proto = Literal["udp", "udp4", "udp6", "tcp", "tcp4", "tcp6"]
TlsVersion = Literal["1.0", "1.1", "1.2", "1.3"]
DEFAULT_DATA_CIPHERS = ("AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305")


@dataclass(frozen=True)
class HttpProxy:
    """``http-proxy`` and its options. ``ask``: a login that is missing is to be asked for when the proxy
    wants one. ``cleartext``: the password itself may be sent, if the proxy takes nothing better."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ask: bool = False
    cleartext: bool = True
    agent: str | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class SocksProxy:
    """``socks-proxy``."""

    host: str
    port: int = 1080
    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Remote:
    """One server to try. ``host`` is a name or an address without brackets.

    ``local`` (an address or a name of this machine's) and ``local_port`` are where our own socket is bound, None and 0
    for the system's choice.
    ``own`` are values of `ClientConfig` that hold for this remote alone, from its <connection>.
    """

    host: str
    port: int = 1194
    proto: Proto = "udp"
    proxy: HttpProxy | SocksProxy | None = None
    local: str | None = None
    local_port: int = 0
    own: tuple[tuple[str, Any], ...] = ()

    @property
    def tcp(self) -> bool:
        return self.proto.startswith("tcp")


@dataclass(frozen=True)
class AuthUserPass:
    """``auth-user-pass``: the login as far as the file has it. What is None is to be asked for.

    ``file`` is where it was read from, and is read anew for each connection; None where there is no such file.
    """

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    file: str | None = field(default=None, compare=False)

    @property
    def incomplete(self) -> bool:
        return self.username is None or self.password is None


@dataclass(frozen=True)
class Warning:
    """A line of the file that has less effect than its author may think."""

    line: int
    option: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """Each value is the option of the same name, with stock's default (2.6).

    - ``floats``: ``float``. ``dev``: the name of a device of the kernel's, None for the next free one.
    - ``ca``, ``cert``, ``key``, ``extra_certs``: PEM text without anything around it.
    - ``key_password``: ``askpass``, for an encrypted ``key`` or ``pkcs12``. ``crl``: ``crl-verify``, as PEM, or from a
      folder the serial numbers; ``crl_file`` is where it was read from, and is read again when it changes.
    - ``peer_fingerprints``: SHA-256, 64 hexadecimal digits with colons. ``issuer_fingerprints``: ``verify-hash``.
    - ``remote_cert_ku``: numbers of which the certificate must meet one, () for any; None asks for none.
    - ``ns_cert_type``: ``ns-cert-type server``.
    - ``username_fields``: ``x509-username-field``. ``cipher_list``, ``cipher_suites``, ``groups``, ``cert_profile``:
      ``tls-cipher``, ``tls-ciphersuites``, ``tls-groups``, ``tls-cert-profile``.
    - ``cipher``: ``data-ciphers-fallback``, for a server that negotiates none.
    - ``ping``, ``ping_restart``, ``ping_exit``: 0 is off; ``keepalive`` comes to the first two.
    - ``connect_retry``: the shortest and the longest wait between two attempts.
    - ``connect_retry_max``, ``resolv_retry``: None for no limit. ``connect_timeout``: 0 for none but ``hand_window``.
    - ``compression``: the line by which the file asks for a framing (a key of `data_format.FRAMINGS`); nothing is ever
      sent compressed.
    - ``export_keys``: offer the server to take data keys from TLS's exporter. No option of a file; without
      it they come from the older PRF, as with a server that knows no other way.
    - ``setenv``: names and values, each name once.
    - ``local``: routes, name servers and the like from the file itself, as if they were pushed.

    Raises ConfigError for options that contradict each other or lack each other.
    """

    remotes: tuple[Remote, ...]
    remote_random: bool = False
    floats: bool = False
    dev_type: Literal["tun", "tap"] = "tun"
    dev: str | None = None
    ca: str | None = field(default=None, repr=False)
    cert: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    key_password: str | None = field(default=None, repr=False)
    pkcs12: bytes | None = field(default=None, repr=False)
    extra_certs: str | None = field(default=None, repr=False)
    crl: str | frozenset[int] | None = field(default=None, repr=False)
    crl_file: str | None = None
    peer_fingerprints: tuple[str, ...] = ()
    issuer_fingerprints: tuple[str, ...] = ()
    remote_cert_tls: Literal["server", "client"] | None = None
    remote_cert_ku: tuple[int, ...] | None = None
    remote_cert_eku: str | None = None
    ns_cert_type: bool = False
    username_fields: tuple[str, ...] = ("CN",)
    verify_x509_name: VerifyName | None = None
    wrap: NoWrap | TlsAuth | TlsCrypt | TlsCryptV2 = field(default_factory=NoWrap)
    tls_version_min: TlsVersion = "1.2"
    tls_version_max: TlsVersion | None = None
    cipher_list: str | None = None
    cipher_suites: str | None = None
    groups: str | None = None
    cert_profile: Literal["insecure", "legacy", "preferred", "suiteb"] | None = None
    data_ciphers: tuple[str, ...] = DEFAULT_DATA_CIPHERS
    cipher: str | None = None
    auth: str = "SHA1"
    auth_user_pass: AuthUserPass | None = None
    auth_retry: Literal["none", "nointeract", "interact"] = "none"
    auth_nocache: bool = False
    static_challenge: StaticChallenge | None = None
    reneg_sec: int = 3600
    ping: int = 0
    ping_restart: int = 120
    ping_exit: int = 0
    hand_window: int = 60
    tran_window: int = 3600
    tls_timeout: int = 2
    tun_mtu: int = 1500
    tun_mtu_max: int = 1600
    max_packet_size: int = 1250
    mssfix: MssFix | None = None
    compression: str | None = None
    explicit_exit_notify: int = 0
    pull_filters: tuple[PullFilter, ...] = ()
    route_nopull: bool = False
    route_noexec: bool = False
    route_table: int | None = None
    ifconfig_noexec: bool = False
    local: PushReply = field(default_factory=PushReply)
    setenv: tuple[tuple[str, str], ...] = ()
    push_peer_info: bool = False
    connect_retry: tuple[int, int] = (1, 300)
    connect_retry_max: int | None = None
    connect_timeout: int = 120
    resolv_retry: int | None = None
    inactive: Inactive = field(default=Inactive(0))
    session_timeout: int = 0
    export_keys: bool = True
    verb: int = 1
    warnings: tuple[Warning, ...] = ()

    def __post_init__(self) -> None:
        if not self.remotes:
            raise _wrong("remote", "no remote: there is no server to connect to", "write: remote HOST PORT")
        if self.ca is None and self.pkcs12 is None and not self.peer_fingerprints:
            raise _wrong(
                "ca",
                "neither ca nor peer-fingerprint: the server could be anyone",
                "add the server's <ca> block",
            )
        if self.cert is not None and self.key is None:
            raise _wrong("cert", "cert without key", "add the private key that belongs to it: <key>…</key>")
        if self.key is not None and self.cert is None:
            raise _wrong("key", "key without cert", "add the certificate that belongs to it: <cert>…</cert>")
        if self.pkcs12 is not None and self.cert is not None:
            raise _wrong("pkcs12", "pkcs12 and cert exclude each other", "keep one of them")
        if self.cert is None and self.pkcs12 is None and self.auth_user_pass is None:
            raise _wrong(
                "auth-user-pass",
                "nothing says to the server who we are",
                "add cert and key, or auth-user-pass",
            )
        if self.tls_version_max is not None and self.tls_version_max < self.tls_version_min:
            raise _wrong(
                "tls-version-max",
                f"tls-version-max {self.tls_version_max} is less than tls-version-min {self.tls_version_min}",
                "make tls-version-max the greater one, or remove it",
            )
        if self.ping_restart and self.ping_exit:
            raise _wrong("ping-exit", "ping-exit and ping-restart exclude each other", "keep one of them")
        if self.auth not in MAC_SIZES and not {*self.data_ciphers, self.cipher or AEAD_CIPHERS[0]} <= {*AEAD_CIPHERS}:
            raise _wrong(
                "auth",
                f"auth {self.auth} is for tls-auth alone, and data-ciphers has ciphers that need it for data",
                f"write: data-ciphers {DEFAULT_DATA_CIPHERS[0]}; or use {', '.join(MAC_SIZES)}",
            )
        if not self.data_ciphers:
            raise _wrong("data-ciphers", "data-ciphers is empty", "write: data-ciphers AES-256-GCM")

    def for_remote(self, remote: Remote) -> ClientConfig:
        """With the values that hold for this remote alone. Over TCP no exit is announced: its end is."""
        own = dict(remote.own)
        if remote.tcp:
            own["explicit_exit_notify"] = 0
        return replace(self, **own) if own else self

    @property
    def peer_info(self) -> tuple[tuple[str, str], ...]:
        """What is added to the peer info (OpenVPN ``ssl.c``, push_peer_info): the ways to log in that we
        know, unless ``setenv IV_SSO`` names others; with ``push-peer-info`` what ``setenv`` calls UV\\_…."""
        told = {
            name: value
            for name, value in self.setenv
            if name == "IV_SSO" or (self.push_peer_info and name.startswith("UV_"))
        }
        return tuple({"IV_SSO": SSO, **told}.items())


SSO = "webauth,openurl,crtext"


def _wrong(option: str, message: str, instead: str) -> ConfigError:
    return ConfigError(message, option=option, instead=instead)
