"""What each supported option of a client's file will do, in words for its author."""

from __future__ import annotations

import string

from ginnel.openvpn.words import escape


def meaning(name: str, words: tuple[str, ...]) -> str:
    """The first text of the option's that has enough values to be filled in. A secret is never among them."""
    shown = [escape(word[:80]) for word in words]
    for text in MEANINGS[name]:
        fields = {field for _, field, _, _ in string.Formatter().parse(text) if field}
        needed = {0 if field == "all" else int(field) for field in fields}
        if len(shown) > max(needed, default=-1):
            return text.format(*shown, all=" ".join(shown))
    return ""


MEANINGS: dict[str, tuple[str, ...]] = {
    "client": ("TLS, with the server's settings taken over",),
    "pull": ("the server's settings are taken over",),
    "tls-client": ("TLS, as the side that begins",),
    "mode": ("a connection to one server",),
    "remote": (
        "tries {0}, port {1}, by {2}",
        "tries {0}, port {1}",
        "tries {0}",
    ),
    "port": ("port {0} of the server, where a remote names none",),
    "rport": ("port {0} of the server, where a remote names none",),
    "lport": ("sends from the local port {0}",),
    "local": ("sends from the local address {0}",),
    "bind": (
        "sends from the local port that lport or port names; a socket is of one family in any case",
        "sends from the local port that lport or port names",
    ),
    "nobind": ("the system chooses the local port",),
    "proto": ("{0}, where a remote names nothing else",),
    "connection": ("a server, with options of its own",),
    "float": ("a server may answer, and move to, another address than the one that was asked",),
    "remote-random": ("the servers are tried in another order each time",),
    "http-proxy": ("connects through the HTTP proxy {0}, port {1}",),
    "http-proxy-option": ("tells the proxy: {0}",),
    "http-proxy-user-pass": ("the login for the HTTP proxy, sent when it asks",),
    "socks-proxy": ("connects through the SOCKS5 proxy {0}, port {1}", "connects through the SOCKS5 proxy {0}"),
    "connect-retry": ("waits {0} to {1} s between attempts", "waits {0} s between attempts, longer after several"),
    "connect-retry-max": ("gives up after {0} attempts at each server",),
    "connect-timeout": ("a silent server is left after {0} s; 0: when hand-window is over",),
    "server-poll-timeout": ("a silent server is left after {0} s; 0: when hand-window is over",),
    "resolv-retry": ("a name that can't be resolved is tried again: {0}",),
    "explicit-exit-notify": (
        "tells the server at the end, until it has heard, or up to {0} times",
        "tells the server at the end",
    ),
    "ca": (
        "the server's certificate must be signed by one in {0}",
        "the server's certificate must be signed by one of these",
    ),
    "cert": ("our certificate is in {0}", "our certificate"),
    "key": ("our private key is in {0}", "our private key"),
    "pkcs12": ("our certificate and key are in {0}", "our certificate and key"),
    "askpass": ("the key's password is in {0}", "the key's password is asked for"),
    "extra-certs": ("sends the certificates in {0} along", "sends these certificates along"),
    "crl-verify": (
        "certificates whose numbers are names of files in {0} ({1}) are refused; it is read again when it changes",
        "certificates that {0} revokes are refused; it is read again when it changes",
        "certificates that it revokes are refused",
    ),
    "peer-fingerprint": ("the server's certificate must be the one with this fingerprint",),
    "verify-hash": ("the certificate that signed the server's must have this fingerprint",),
    "ns-cert-type": ("the server's certificate must not be for something else than a server",),
    "remote-cert-tls": ("the server's certificate must say that it is a {0}'s",),
    "remote-cert-ku": (
        "the server's certificate must have one of these key usages: {all}",
        "the server's certificate must say for what its key is used",
    ),
    "remote-cert-eku": ("the server's certificate must have the extended key usage {0}",),
    "verify-x509-name": (
        "the server's certificate must have the {1} '{0}'",
        "the server's certificate must have the subject '{0}'",
    ),
    "x509-username-field": ("verify-x509-name looks at {all}",),
    "tls-auth": ("packets are signed with the key in {0}", "packets are signed with this key"),
    "tls-crypt": ("packets are encrypted with the key in {0}", "packets are encrypted with this key"),
    "tls-crypt-v2": ("packets are encrypted with our own key in {0}", "packets are encrypted with this key of our own"),
    "key-direction": ("tls-auth signs with half {0} of its key",),
    "tls-version-min": ("no TLS older than {0}",),
    "tls-version-max": ("no TLS newer than {0}",),
    "tls-cipher": ("TLS up to 1.2 uses {0}",),
    "tls-ciphersuites": ("TLS 1.3 uses {0}",),
    "tls-groups": ("keys are agreed on by {0}",),
    "ecdh-curve": ("keys are agreed on by {0}",),
    "tls-cert-profile": ("certificates must be as strong as OpenVPN's profile {0} says",),
    "auth-user-pass": ("user and password are in {0}", "user and password"),
    "auth-retry": ("after a refused login: {0}",),
    "auth-nocache": ("a password that was typed is forgotten when the tunnel is up",),
    "static-challenge": ("asks you '{0}' at each login",),
    "push-peer-info": ("tells the server what setenv calls UV_…",),
    "setenv": ("{0} is set, for programs and the server",),
    "cipher": ("used by none but old servers: {0}",),
    "data-ciphers": ("data is encrypted with one of {0}",),
    "ncp-ciphers": ("data is encrypted with one of {0}",),
    "data-ciphers-fallback": ("data is encrypted with {0}, if the server can't negotiate",),
    "auth": ("packets that no cipher protects are signed with {0}",),
    "compress": ("nothing is compressed; packets are framed as '{0}' asks", "nothing is compressed"),
    "comp-lzo": ("nothing is compressed; packets are framed for it",),
    "allow-compression": ("nothing is compressed",),
    "reneg-sec": ("new keys after {0} s; 0 leaves it to the server",),
    "hand-window": ("a handshake may take {0} s",),
    "tran-window": ("old keys are good for {0} s after new ones",),
    "tls-timeout": ("a packet without an answer is sent again after {0} s",),
    "keepalive": ("pings every {0} s, connects again after {1} s of silence",),
    "ping": ("pings after {0} s of silence",),
    "ping-restart": ("connects again after {0} s of silence; 0 never",),
    "ping-exit": ("ends after {0} s of silence",),
    "inactive": ("ends when less than {1} bytes pass within {0} s", "ends when nothing passes within {0} s"),
    "session-timeout": ("ends after {0} s",),
    "tun-mtu": ("packets in the tunnel have at most {0} bytes",),
    "tun-mtu-max": ("the server may ask for packets of at most {0} bytes",),
    "max-packet-size": ("packets to the server have at most {0} bytes",),
    "mssfix": (
        "TCP in the tunnel is kept small enough for packets of {0} bytes",
        "TCP in the tunnel is kept small enough",
    ),
    "dev": ("a {0} tunnel",),
    "dev-type": ("a {0} tunnel",),
    "topology": ("addresses as in topology {0}, unless the server says another",),
    "ifconfig": ("our address is {0}, unless the server gives another",),
    "ifconfig-ipv6": ("our IPv6 address is {0}, unless the server gives another",),
    "route": ("{0} {1} is reached through the tunnel", "{0} is reached through the tunnel"),
    "route-ipv6": ("{0} is reached through the tunnel",),
    "route-gateway": ("the other end of the tunnel is {0}",),
    "route-metric": ("routes have the metric {0}",),
    "redirect-gateway": ("everything is reached through the tunnel",),
    "redirect-private": ("local networks are reached as before",),
    "block-ipv6": ("IPv6 goes nowhere",),
    "dhcp-option": ("{0} {1}, unless the server says otherwise", "{0}"),
    "dns": ("names: {all}",),
    "pull-filter": ("options of the server that begin with '{1}': {0}",),
    "route-nopull": ("the server's routes and name servers are not taken over",),
    "route-noexec": ("with --tun no route is set, nor IPv6 blocked: what leads into the tunnel is up to you",),
    "route-table": ("for --tun alone, which has the main table and refuses another unless there is route-noexec",),
    "ifconfig-noexec": ("with --tun the device has no address but those that you give it",),
    "ignore-unknown-option": ("unknown options of these names are left out: {all}",),
    "verb": ("log level {0}",),
}
