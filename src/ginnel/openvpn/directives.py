"""Every option of OpenVPN 2.6 and 2.7, and what ginnel does with it in a client's file.

``DIRECTIVES`` is the one table. What is *supported* has the form of its values, and is taken by the
function of the same name in `ovpn_options`. What is *ignored* has no effect that a user would miss
(quiet), or less than its author may think (the text says what is missing). What is *refused* would
change what the file protects, or how it connects: the text says why, ``instead`` what to write.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    SUPPORTED = "supported"
    IGNORED = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True)
class Directive:
    """``text`` is the form of the values for what is supported, else the reason; a quiet one that is
    ignored has none."""

    name: str
    verdict: Verdict
    text: str = ""
    instead: str | None = None

    @property
    def block(self) -> bool:
        """It may be written as a block."""
        return self.name in BLOCKS

    def takes(self, count: int) -> bool:
        """Whether the form of a supported one fits so many values."""
        forms = self.text.split()
        least = sum(form != "…" and not form.startswith("[") for form in forms)
        return least <= count and ("…" in forms or count <= len(forms))


def suggest(name: str) -> str | None:
    """The option that was probably meant."""
    close = difflib.get_close_matches(name.lower()[:40], DIRECTIVES, 1, 0.75)
    return close[0] if close else None


def _supported(**forms: str) -> list[Directive]:
    return [Directive(name.replace("_", "-"), Verdict.SUPPORTED, form) for name, form in forms.items()]


def _ignored(listed: str, text: str = "") -> list[Directive]:
    return [Directive(name, Verdict.IGNORED, text) for name in listed.split()]


def _refused(listed: str, text: str, instead: str | None = "remove it") -> list[Directive]:
    return [Directive(name, Verdict.REFUSED, text, instead) for name in listed.split()]


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


BLOCKS = names(
    "ca cert key dh extra-certs pkcs12 tls-auth tls-crypt tls-crypt-v2 secret crl-verify "
    "auth-user-pass http-proxy-user-pass peer-fingerprint verify-hash connection "
    "auth-gen-token-secret"
)
# What stock takes within <connection>.
IN_CONNECTION = names(
    "remote proto port rport nobind bind lport local float connect-retry connect-retry-max "
    "connect-timeout server-poll-timeout explicit-exit-notify tun-mtu tun-mtu-max tun-mtu-extra "
    "link-mtu udp-mtu mssfix fragment mtu-disc mtu-dynamic max-packet-size key-direction tls-auth "
    "tls-crypt tls-crypt-v2 http-proxy http-proxy-option http-proxy-user-pass http-proxy-retry http-proxy-timeout "
    "socks-proxy socks-proxy-retry"
)

_TABLE = [
    *_supported(
        # Whom to connect to, and how.
        client="",
        pull="",
        tls_client="",
        mode="p2p",
        remote="HOST [PORT] [PROTO]",
        port="PORT",
        rport="PORT",
        proto="PROTO",
        connection="block",
        remote_random="",
        nobind="",
        bind="[ipv6only]",
        local="ADDRESS",
        lport="PORT",
        float="",
        http_proxy="HOST PORT [FILE|auto|auto-nct] [METHOD]",
        http_proxy_option="WHAT VALUE [VALUE]",
        http_proxy_user_pass="FILE",
        socks_proxy="HOST [PORT] [FILE]",
        connect_retry="SECONDS [MAX]",
        connect_retry_max="TIMES",
        connect_timeout="SECONDS",
        server_poll_timeout="SECONDS",
        resolv_retry="SECONDS|infinite",
        explicit_exit_notify="[TIMES]",
        # Who the server is, and who we are.
        ca="FILE",
        cert="FILE",
        key="FILE",
        pkcs12="FILE",
        askpass="[FILE]",
        extra_certs="FILE",
        crl_verify="FILE [dir]",
        peer_fingerprint="FINGERPRINT",
        verify_hash="FINGERPRINT [SHA1|SHA256]",
        remote_cert_tls="server|client",
        remote_cert_ku="[NUMBER] …",
        remote_cert_eku="OID",
        ns_cert_type="server",
        verify_x509_name="NAME [TYPE]",
        x509_username_field="FIELD …",
        tls_auth="FILE [DIRECTION]",
        tls_crypt="FILE",
        tls_crypt_v2="FILE",
        key_direction="0|1",
        tls_version_min="VERSION [or-highest]",
        tls_version_max="VERSION",
        tls_cipher="CIPHER:CIPHER:...",
        tls_ciphersuites="CIPHER:CIPHER:...",
        tls_groups="GROUP:GROUP:...",
        ecdh_curve="GROUP",
        tls_cert_profile="insecure|legacy|preferred|suiteb",
        auth_user_pass="[FILE]",
        auth_retry="none|nointeract|interact",
        auth_nocache="",
        static_challenge="TEXT 0|1 [scrv1|concat]",
        push_peer_info="",
        setenv="NAME [VALUE]",
        # The two channels.
        cipher="CIPHER",
        data_ciphers="CIPHER:CIPHER:...",
        ncp_ciphers="CIPHER:CIPHER:...",
        data_ciphers_fallback="CIPHER",
        auth="DIGEST",
        compress="[stub|stub-v2|migrate|lz4|lz4-v2|lzo]",
        comp_lzo="[no|yes|adaptive]",
        allow_compression="no|asym|yes",
        reneg_sec="SECONDS [MIN]",
        hand_window="SECONDS",
        tran_window="SECONDS",
        tls_timeout="SECONDS",
        keepalive="PING RESTART",
        ping="SECONDS",
        ping_restart="SECONDS",
        ping_exit="SECONDS",
        inactive="SECONDS [BYTES]",
        session_timeout="SECONDS",
        tun_mtu="BYTES [BYTES]",
        tun_mtu_max="BYTES",
        max_packet_size="BYTES",
        mssfix="[BYTES] [mtu|fixed]",
        # The network.
        dev="tun|tap",
        dev_type="tun|tap",
        topology="subnet|net30|p2p",
        ifconfig="LOCAL REMOTE",
        ifconfig_ipv6="LOCAL/BITS REMOTE",
        route="NETWORK [NETMASK] [GATEWAY] [METRIC]",
        route_ipv6="NETWORK/BITS [GATEWAY] [METRIC]",
        route_gateway="GATEWAY",
        route_metric="METRIC",
        redirect_gateway="[FLAG] …",
        redirect_private="[FLAG] …",
        block_ipv6="",
        dhcp_option="TYPE [VALUE]",
        dns="WHAT …",
        pull_filter="accept|ignore|reject TEXT",
        route_nopull="",
        route_noexec="",
        route_table="TABLE",
        ifconfig_noexec="",
        # The file itself.
        ignore_unknown_option="NAME …",
        verb="LEVEL",
    ),
    *_ignored(
        "persist-key persist-tun mute-replay-warnings tun-ipv6 fast-io comp-noadapt ping-timer-rem "
        "prng http-proxy-retry http-proxy-timeout socks-proxy-retry disable-occ disable-dco route-method "
        "route-delay ifconfig-nowarn errors-to-stderr tcp-nodelay echo parameter ip-win32 tap-sleep "
        "dhcp-renew dhcp-release dhcp-pre-release show-net-up win-sys windows-driver pause-exit "
        "allow-recursive-routing tls-exit"
    ),
    *_ignored(
        "up down route-up route-pre-down ipchange dns-updown up-delay up-restart down-pre script-security "
        "tls-export-cert x509-track setenv-safe keying-material-exporter tmp-dir",
        "ginnel runs no scripts",
    ),
    *_ignored(
        "user group chroot setcon",
        "ginnel needs no rights; with --tun it becomes the user who called sudo, or nobody, by itself",
    ),
    *_ignored(
        "sndbuf rcvbuf txqueuelen socket-flags passtos mtu-disc mtu-test mark nice mlock shaper",
        "ginnel leaves this to its own and the system's defaults",
    ),
    *_ignored(
        "daemon log log-append syslog status status-version writepid suppress-timestamps "
        "machine-readable-output remap-usr1 service dev-node gremlin memstats",
        "ginnel runs in the foreground and writes its log to stderr",
    ),
    *_ignored(
        "management management-hold management-query-passwords management-query-remote "
        "management-query-proxy management-signal management-forget-disconnect management-up-down "
        "management-log-cache management-client management-client-user management-client-group",
        "there is no management interface",
    ),
    *_ignored("block-outside-dns register-dns", "it is for Windows"),
    *_ignored(
        "max-routes iproute lladdr route-ipv6-gateway allow-pull-fqdn",
        "this machine's own network stays as it is; with --tun ginnel speaks to the kernel by itself",
    ),
    *_ignored(
        "link-mtu udp-mtu tun-mtu-extra",
        "sizes follow from tun-mtu and mssfix",
    ),
    *_ignored("mute", "no line of the log is left out"),
    *_ignored("reneg-bytes reneg-pkts", "keys are renewed by time and by the cipher's own limit"),
    *_ignored("replay-window", "the replay window is always 1,984 packets and 15 seconds"),
    *_ignored(
        "persist-local-ip persist-remote-ip preresolve ip-remote-hint remote-random-hostname",
        "names are resolved anew, as they are written, for each round of attempts",
    ),
    # Not supported yet, and not to be passed over.
    *_refused(
        "pkcs11-id pkcs11-id-management pkcs11-providers pkcs11-pin-cache pkcs11-cert-private "
        "pkcs11-private-mode pkcs11-protected-authentication cryptoapicert management-external-key "
        "management-external-cert",
        "keys outside of files can't be used",
        "write cert and key",
    ),
    *_refused("engine providers", "OpenSSL's engines and providers can't be chosen"),
    *_refused("capath", "a folder of certificates is not read", "put the certificates into one ca file"),
    *_refused(
        "tls-verify plugin",
        "the server's certificate would not be checked as asked",
        "write peer-fingerprint, or verify-x509-name",
    ),
    *_refused(
        "http-proxy-override",
        "it is for programs that start openvpn",
        "write: http-proxy HOST PORT",
    ),
    *_refused("fragment mtu-dynamic", "both ends need it, or nothing passes", "remove it on the server as well"),
    *_refused(
        "secret allow-deprecated-insecure-static-crypto",
        "static keys for data have no forward secrecy; OpenVPN gives them up too",
        "use TLS: client, ca, cert, key",
    ),
    *_refused("no-replay replay-persist", "protection against replay is neither switched off nor kept between runs"),
    *_refused("force-tls-key-material-export", "older key derivation can't be ruled out yet"),
    *_refused("compat-mode", "it lowers several protections at once", "write the options that you need by name"),
    *_refused("client-nat", "addresses inside the tunnel are not translated"),
    *_refused("bind-dev multihome", "the system chooses the interface", "write: local ADDRESS"),
    *_refused("proto-force", "remotes are not filtered", "keep those remotes only that you want"),
    *_refused("config", "one file can't include another", "put its lines here"),
    *_refused("cd", "files are looked for beside this one", "write their paths relative to it"),
    *_refused(
        "auth-token auth-token-user key-derivation protocol-flags peer-id push-continuation",
        "only a server may say this, when the tunnel is up",
    ),
    *_refused("compat-names no-name-remapping", "OpenVPN 2.5 removed it"),
    *_refused(
        "ncp-disable key-method keysize no-iv ifconfig-pool-linear tls-remote",
        "OpenVPN removed it before version 2.6",
    ),
    *_refused(
        "help version genkey mktun rmtun test-crypto show-adapters show-ciphers show-curves show-digests "
        "show-engines show-gateway show-groups show-net show-pkcs11-ids show-tls show-valid-subnets "
        "allow-nonadmin dhcp-internal rdns-internal msg-channel",
        "it is a command to the openvpn program, not a setting",
    ),
    *_refused(
        "server server-bridge server-ipv6 tls-server push push-remove push-reset dh ifconfig-pool "
        "ifconfig-pool-persist ifconfig-ipv6-pool ifconfig-push ifconfig-ipv6-push "
        "ifconfig-push-constraint iroute iroute-ipv6 client-config-dir ccd-exclusive client-connect "
        "client-disconnect client-crresponse client-to-client duplicate-cn learn-address "
        "auth-user-pass-verify auth-user-pass-optional auth-gen-token auth-gen-token-secret opt-verify "
        "verify-client-cert client-cert-not-required username-as-common-name "
        "override-username max-clients max-routes-per-client connect-freq connect-freq-initial "
        "bcast-buffers tcp-queue-limit hash-size port-share stale-routes-check disable single-session "
        "vlan-accept vlan-pvid vlan-tagging tls-crypt-v2-verify tls-crypt-v2-max-age "
        "management-client-auth",
        "it is a server's option, and this is read as a client's file",
        "take the file that was made for the client",
    ),
]

DIRECTIVES = {directive.name: directive for directive in _TABLE}
