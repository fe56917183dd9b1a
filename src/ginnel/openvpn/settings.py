"""From a configuration to what a session and its login need."""

from __future__ import annotations

from ginnel.openvpn.client import ClientSettings
from ginnel.openvpn.config import AuthUserPass, ClientConfig, Remote, SocksProxy
from ginnel.openvpn.data_format import FRAMINGS
from ginnel.openvpn.login import Login
from ginnel.openvpn.tls import TlsContext, TlsSettings
from ginnel.release import VERSION
from ginnel.socks5 import datagram_header


def tls_context(config: ClientConfig, key_password: str | None = None) -> TlsContext:
    """``key_password`` counts more than the file's. Raises KeyPasswordError for one that is missing or wrong,
    ConfigError for what OpenSSL refuses."""
    settings = TlsSettings(
        ca=config.ca,
        cert=config.cert,
        key=config.key,
        key_password=key_password if key_password is not None else config.key_password,
        pkcs12=config.pkcs12,
        extra_certs=config.extra_certs,
        crl=config.crl,
        peer_fingerprints=config.peer_fingerprints,
        issuer_fingerprints=config.issuer_fingerprints,
        remote_cert_tls=config.remote_cert_tls,
        remote_cert_ku=config.remote_cert_ku,
        remote_cert_eku=config.remote_cert_eku,
        ns_cert_type=config.ns_cert_type,
        username_fields=config.username_fields,
        verify_name=config.verify_x509_name,
        version_min=config.tls_version_min,
        version_max=config.tls_version_max,
        cipher_list=config.cipher_list,
        cipher_suites=config.cipher_suites,
        groups=config.groups,
        cert_profile=config.cert_profile,
    )
    return TlsContext(settings, server=False)


def client_settings(config: ClientConfig, remote: Remote, tls: TlsContext) -> ClientSettings:
    """What a session with this remote needs to know."""
    config = config.for_remote(remote)
    relayed = isinstance(remote.proxy, SocksProxy) and not remote.tcp
    return ClientSettings(
        tls=tls,
        tcp=remote.tcp,
        floats=config.floats,
        relay_header=len(datagram_header(remote.host, remote.port)) if relayed else 0,
        wrap=config.wrap,
        tls_timeout=config.tls_timeout,
        hand_window=config.hand_window,
        tran_window=config.tran_window,
        reneg_sec=config.reneg_sec,
        max_packet_size=config.max_packet_size,
        data_ciphers=config.data_ciphers,
        fallback_cipher=config.cipher,
        auth=config.auth,
        framing=FRAMINGS[config.compression],
        tap=config.dev_type == "tap",
        topology=config.local.topology,
        tun_mtu=config.tun_mtu,
        tun_mtu_max=config.tun_mtu_max,
        mssfix=config.mssfix,
        explicit_exit_notify=config.explicit_exit_notify,
        ping=config.ping,
        ping_restart=config.ping_restart,
        ping_exit=config.ping_exit,
        pull_filters=config.pull_filters,
        route_nopull=config.route_nopull,
        session_timeout=config.session_timeout,
        inactive=config.inactive,
        gui_version=f"ginnel_{VERSION}",
        extra_peer_info=config.peer_info,
        export_keys=config.export_keys,
    )


def login(config: ClientConfig, given: tuple[str, str] | None) -> Login:
    """``given`` is a user and a password that count more than the file's."""
    known = config.auth_user_pass or AuthUserPass()
    username, password = given or (known.username, known.password)
    return Login(
        username,
        password,
        wanted=config.auth_user_pass is not None or given is not None,
        static_challenge=config.static_challenge,
        retry=config.auth_retry,
        nocache=config.auth_nocache,
    )
