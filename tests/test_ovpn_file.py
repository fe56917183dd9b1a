"""``.ovpn`` files: realistic ones, wrong ones, and any others."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from hypothesis import example, given
from hypothesis import strategies as st

from ginnel.errors import ConfigError
from ginnel.openvpn import settings
from ginnel.openvpn.config import AuthUserPass, ClientConfig, HttpProxy, Remote, SocksProxy
from ginnel.openvpn.data_format import MssFix
from ginnel.openvpn.directives import DIRECTIVES, Verdict
from ginnel.openvpn.login import StaticChallenge
from ginnel.openvpn.meanings import MEANINGS, meaning
from ginnel.openvpn.ovpn_file import Finding, parse_ovpn, read_ovpn, report_ovpn
from ginnel.openvpn.ovpn_lexer import MAX_LINE, statements
from ginnel.openvpn.ovpn_options import TAKERS
from ginnel.openvpn.push import PullFilter
from ginnel.openvpn.push_values import Inactive
from ginnel.openvpn.tls import KeyPasswordError, TlsContext, TlsSettings, VerifyName
from ginnel.openvpn.tls_crypt_v2 import Metadata, ServerKey, TlsCryptV2
from ginnel.openvpn.words import quote, split_words
from ginnel.openvpn.wrap import NoWrap, StaticKey, TlsAuth, TlsCrypt
from ginnel.testing import Authority

VECTORS = Path(__file__).parent / "vectors"
AUTHORITY = Authority("Example CA")
OTHER = Authority("Other CA", seed=1)
CERT, KEY = AUTHORITY.issue("bob", "client")
STATIC = StaticKey(bytes(range(256)))
OTHER_STATIC = StaticKey(bytes(range(255, -1, -1)))
FINGERPRINT = ":".join(f"{byte:02X}" for byte in range(32))
DAMAGED = OTHER.pem.replace("M", "N")
COMMENT = "#\n# 2048 bit OpenVPN static key\n#\n"
LOGIN = "alice\ncorrect horse \n"
NO_PRIVATE_KEY = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"


def block(name: str, text: str) -> str:
    return f"<{name}>\n{text}</{name}>\n"


TRUST = block("ca", AUTHORITY.pem) + "remote-cert-tls server\n"
OWN = block("cert", CERT) + block("key", KEY)
BASE = "client\ndev tun\nremote vpn.example.org 1194 udp\n"
WHOLE = BASE + TRUST + OWN


def error(text: str | bytes, directory: Path | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_ovpn(text, name="x.ovpn", directory=directory)
    assert "\n" not in str(caught.value)
    return caught.value


def reads(data: str | bytes) -> ClientConfig | ConfigError:
    """What any text gives; the error is a single line."""
    result: ClientConfig | ConfigError
    try:
        result = parse_ovpn(data, directory="/nonexistent")
    except ConfigError as caught:
        result = caught
    assert "\n" not in str(result)
    return result


def warnings(text: str) -> list[tuple[int, str, str]]:
    return [(warning.line, warning.option, warning.text) for warning in parse_ovpn(text).warnings]


# Files as they are in the field.


def test_the_file_of_a_commercial_provider() -> None:
    config = parse_ovpn(
        f"""\
# City 7, UDP
client
dev tun
proto udp
remote de7.provider.example 1194
remote de7.provider.example 4569
remote de7.provider.example 443 tcp-client
remote-random
resolv-retry infinite
nobind
tun-mtu 1500
tun-mtu-extra 32
mssfix 1450
persist-key
persist-tun
ping 15
ping-restart 0
ping-timer-rem
reneg-sec 0
remote-cert-tls server
auth-user-pass
pull
fast-io
cipher AES-256-CBC
auth SHA512
verb 3
mute-replay-warnings
setenv opt block-outside-dns
setenv CLIENT_CERT 0
key-direction 1
{block("ca", AUTHORITY.pem)}{block("tls-auth", COMMENT + STATIC.emit())}"""
    )
    assert config.remotes == (
        Remote("de7.provider.example", 1194),
        Remote("de7.provider.example", 4569),
        Remote("de7.provider.example", 443, "tcp"),
    )
    assert config.remote_random
    assert config.auth_user_pass == AuthUserPass()
    assert config.wrap == TlsAuth(STATIC, "SHA512", 1)
    assert (config.ping, config.ping_restart, config.reneg_sec) == (15, 0, 0)
    assert config.mssfix == MssFix(1450)
    assert config.data_ciphers == ("AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305")
    assert config.cipher is None
    options = [(warning.line, warning.option) for warning in config.warnings]
    assert options == [(12, "tun-mtu-extra"), (28, "block-outside-dns")]


def test_the_file_of_a_company_access_server() -> None:
    config = parse_ovpn(
        f"""\
# Automatically generated OpenVPN client config file
# OVPN_ACCESS_SERVER_PROFILE=alice@vpn.company.example
setenv FORWARD_COMPATIBLE 1
client
server-poll-timeout 4
nobind
remote 192.0.2.10 1194 udp
remote 192.0.2.10 1194 udp
remote 192.0.2.10 443 tcp
remote 192.0.2.10 1194 udp
dev tun
dev-type tun
remote-cert-tls server
tls-version-min 1.2
reneg-sec 604800
auth-user-pass
comp-lzo no
verb 3
setenv PUSH_PEER_INFO
setenv UV_ASCLI_VER 2.0
some-option-of-2030 yes
{TRUST}{OWN}{block("tls-crypt", STATIC.emit())}## -----BEGIN RSA SIGNATURE-----
## DIGEST:sha256
## -----END RSA SIGNATURE-----
"""
    )
    assert config.wrap == TlsCrypt(STATIC)
    assert (config.reneg_sec, config.connect_timeout, len(config.remotes)) == (604800, 4, 4)
    assert config.compression == "comp-lzo no"
    assert config.peer_info == (("IV_SSO", "webauth,openurl,crtext"), ("UV_ASCLI_VER", "2.0"))
    assert (config.cert, config.key) == (CERT, KEY)
    assert {warning.option for warning in config.warnings} == {"comp-lzo", "some-option-of-2030"}


def test_the_files_of_a_pfsense_export(tmp_path: Path) -> None:
    (tmp_path / "fw-udp-1194-alice-ca.crt").write_text(AUTHORITY.pem)
    (tmp_path / "fw alice.crt").write_text(CERT)
    (tmp_path / "fw alice.key").write_text(KEY)
    (tmp_path / "fw-tls.key").write_text(STATIC.emit())
    path = tmp_path / "fw-udp-1194-alice.ovpn"
    path.write_text(
        """\
dev tun
persist-tun
persist-key
data-ciphers AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305:AES-256-CBC
data-ciphers-fallback AES-256-CBC
auth SHA256
tls-client
client
resolv-retry infinite
remote fw.company.example 1194 udp4
nobind
verify-x509-name "C=DE, O=Company GmbH, CN=fw.company.example" subject
auth-user-pass
ca fw-udp-1194-alice-ca.crt
cert "fw alice.crt"
key fw\\ alice.key
tls-auth fw-tls.key 1
remote-cert-tls server
explicit-exit-notify
"""
    )
    config = read_ovpn(path)
    assert config.remotes == (Remote("fw.company.example", 1194, "udp4"),)
    assert config.wrap == TlsAuth(STATIC, "SHA256", 1)
    assert config.verify_x509_name == VerifyName("C=DE, O=Company GmbH, CN=fw.company.example", "subject")
    assert config.explicit_exit_notify == 1
    assert config.data_ciphers == ("AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305", "AES-256-CBC")
    assert config.warnings == ()


def test_the_file_of_a_router() -> None:
    config = parse_ovpn(
        f"""\
client
dev tun0
proto udp6
port 51194
remote router.home.example
<connection>
remote router.home.example 443
</connection>
<connection>
proto udp4
remote 198.51.100.7
port 1195
nobind
</connection>
keepalive 10 60
connect-retry 5 30
hand-window 30
route 192.168.1.0 255.255.255.0 vpn_gateway 50
route remote_host 255.255.255.255 net_gateway
dhcp-option DNS 192.168.1.1
dhcp-option WINS 192.168.1.1
redirect-gateway def1 bypass-dhcp
pull-filter ignore "dhcp-option DNS"
route-nopull
script-security 2
up /etc/openvpn/update-resolv-conf
down /etc/openvpn/update-resolv-conf
user nobody
group nogroup
log-append /var/log/openvpn.log
{TRUST}{block("auth-user-pass", LOGIN)}"""
    )
    assert config.remotes == (
        Remote("router.home.example", 443, "udp6"),
        Remote("198.51.100.7", 1195, "udp4"),
    )
    assert (config.ping, config.ping_restart, config.hand_window) == (10, 60, 30)
    assert config.connect_retry == (5, 30)
    assert config.auth_user_pass == AuthUserPass("alice", "correct horse ")
    assert [route.network for route in config.local.routes] == [IPv4Network("192.168.1.0/24"), "remote_host"]
    assert config.local.dhcp_dns == (IPv4Address("192.168.1.1"),)
    assert config.local.redirect_gateway == ("def1", "bypass-dhcp")
    assert config.pull_filters == (PullFilter("ignore", "dhcp-option DNS"),)
    assert config.route_nopull
    assert {warning.option for warning in config.warnings} == {
        "remote", "route", "script-security", "up", "down", "user", "group", "log-append",
    }  # fmt: skip
    texts = {warning.option: warning.text for warning in config.warnings}
    assert "runs no scripts" in texts["up"]


def test_an_easy_rsa_file_with_text_around_its_certificates() -> None:
    text = "Certificate:\n    Data:\n        Issuer: O=Büro <info@example.org>\n"
    inline = block("ca", text + AUTHORITY.pem + "\n" + text + OTHER.pem)
    data = BASE + inline + "remote-cert-tls server\n" + block("cert", text + CERT) + block("key", KEY)
    for encoding in ("utf-8", "latin-1"):
        config = parse_ovpn(data.encode(encoding))
        assert config.ca == AUTHORITY.pem + OTHER.pem
        assert config.cert == CERT
    assert config.wrap == NoWrap()
    TlsContext(TlsSettings(ca=config.ca, cert=config.cert, key=config.key), server=False)


def test_a_file_with_a_fingerprint_instead_of_a_ca() -> None:
    line = parse_ovpn(f"{BASE}{OWN}peer-fingerprint {FINGERPRINT}\n")
    several = parse_ovpn(BASE + OWN + block("peer-fingerprint", f"# mine\n\n  {FINGERPRINT}\n{FINGERPRINT}\n"))
    assert line.peer_fingerprints == (FINGERPRINT.lower(),)
    assert several.peer_fingerprints == (FINGERPRINT.lower(),) * 2


@pytest.fixture(scope="session", params=["RSA", "EC"])
def other_key(request: pytest.FixtureRequest) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    if request.param == "RSA":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
def test_the_usual_kinds_of_keys_are_read_and_compared(
    other_key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, form: str
) -> None:
    private_format = getattr(serialization.PrivateFormat, form)
    pem = other_key.private_bytes(serialization.Encoding.PEM, private_format, serialization.NoEncryption()).decode()
    caught = error(BASE + TRUST + block("cert", CERT) + block("key", pem))
    assert "key does not belong to cert" in str(caught)
    assert caught.option == "key"


# How the text is read.


@given(st.text(st.characters(exclude_characters="\n\0"), max_size=40))
def test_a_quoted_word_is_read_back(word: str) -> None:
    assert split_words(f" {quote(word)}\tnext # end") == [word, "next"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a b\tc", ["a", "b", "c"]),
        ('"a b" \'c "d\' e"f', ["a b", 'c "d', 'e"f']),
        (r'"a \"b\" \\ c" \"d e\ f', ['a "b" \\ c', '"d', "e f"]),
        (r"'a\b'", [r"a\b"]),
        ("a#b c;d # e", ["a#b", "c;d"]),
        ("a '' \"\"", ["a", "", ""]),
        ('"a"b', ["a", "b"]),
        (r"\#a", []),
        ("a ;b", ["a"]),
    ],
)
def test_words_are_split_as_stock_does(line: str, words: list[str]) -> None:
    assert split_words(line) == words


@pytest.mark.parametrize("line", [r"a\b", '"a', "'a", "a\\", r'"c:\dir"'])
def test_a_line_that_stock_refuses(line: str) -> None:
    assert error(f"{WHOLE}verify-x509-name {line}\n").line == WHOLE.count("\n") + 1


VARIANTS: dict[str, Callable[[str], bytes]] = {
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "bom": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "tabs": lambda text: re.sub("(?m)^([a-z-]+) ", "\\1\t \v", text).encode(),
    "dashes": lambda text: re.sub("(?m)^(?=[a-z-]+( .*)?$)", "--", text).encode(),
    "comments": lambda text: re.sub("(?m)^([a-z-]+( .*)?)$", r"\1 # so\n; then", text).encode(),
    "no end of line": lambda text: text.removesuffix("\n").encode(),
    "indented": lambda text: re.sub("(?m)^", "  ", text).encode(),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_configuration_however_it_is_written(variant: str) -> None:
    text = WHOLE + "tls-version-min 1.2 or-highest\nkey-direction 1\n" + block("tls-auth", STATIC.emit())
    assert parse_ovpn(VARIANTS[variant](text)) == parse_ovpn(text)


@given(st.randoms(use_true_random=False))
def test_quoting_changes_nothing(source: random.Random) -> None:
    lines = []
    for line in (BASE + "keepalive 10 60\nverify-x509-name vpn.example.org name\n").splitlines():
        styles = (str, quote, lambda word: f'"{word}"', lambda word: f"'{word}'")
        lines.append("\t".join(source.choice(styles)(word) for word in line.split()))
    assert parse_ovpn("\n".join(lines) + "\n" + TRUST + OWN) == parse_ovpn(
        BASE + "keepalive 10 60\nverify-x509-name vpn.example.org name\n" + TRUST + OWN
    )


def test_a_block_has_no_carriage_returns() -> None:
    assert next(statements("<ca>\r\nA\r\n</ca>\r\n")).block == "A"


def test_values_at_their_limits() -> None:
    config = parse_ovpn(WHOLE + "ping 86400\nping-exit 86400\nremote b 65535\nremote c\nport 7\nmssfix 154 fixed\n")
    assert (config.ping, config.ping_exit, config.ping_restart) == (86400, 86400, 0)
    assert config.remotes[1:] == (Remote("b", 65535), Remote("c", 7))
    assert config.mssfix == MssFix(154, "fixed")


def test_the_lowest_tls_version_follows_a_highest_one_that_is_lower() -> None:
    config = parse_ovpn(WHOLE + "tls-version-max 1.1\n")
    assert (config.tls_version_min, config.tls_version_max) == ("1.1", "1.1")


def test_a_block_says_where_it_begins_and_keeps_its_lines() -> None:
    (first, second) = statements("<ca>\nA\n  B # c\n  </ca> rest\nverb 3")
    assert (first.line, first.name, first.block) == (1, "ca", "A\n  B # c")
    assert (second.line, second.words) == (5, ("3",))


def test_lines_as_long_as_stock_takes() -> None:
    comment = "#" * 5000
    line = "setenv A "
    fits = line + "x" * (MAX_LINE - len(line))
    assert parse_ovpn(f"{WHOLE}{comment}\n{fits}\n").setenv[0][0] == "A"
    assert "longer than" in str(error(f"{WHOLE}{fits}x\n"))


# Everything that stock knows.


def stock_directives() -> list[str]:
    lines = (VECTORS / "stock_directives.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_option_of_stock_is_in_the_table() -> None:
    names = stock_directives()
    assert len(names) == 315
    assert set(names) <= set(DIRECTIVES)


def test_what_the_table_calls_supported_is_taken() -> None:
    supported = {name for name, directive in DIRECTIVES.items() if directive.verdict is Verdict.SUPPORTED}
    assert supported == {*TAKERS, "connection"}


@pytest.mark.parametrize("name", stock_directives())
def test_no_option_of_stock_is_unknown_and_each_refusal_says_why(name: str) -> None:
    caught = reads(f"{WHOLE}{name} 1\n")
    if isinstance(caught, ConfigError):
        assert "unknown option" not in str(caught)
        assert caught.option == name
        assert caught.line == WHOLE.count("\n") + 1
    else:
        assert DIRECTIVES[name].verdict is not Verdict.REFUSED


SAFETY = """auth-token secret fragment engine providers tls-verify plugin
    replay-persist capath management-external-key compat-mode"""
SERVERS = "server push dh client-to-client ifconfig-pool client-config-dir tls-server"
OPTIONAL = [
    "{} x",
    "setenv opt {} x",
    "ignore-unknown-option {}\n{} x",
    "setenv FORWARD_COMPATIBLE 1\n{} x",
    "<connection>\n{} x\n</connection>",
]


@pytest.mark.parametrize("name", SAFETY.split())
@pytest.mark.parametrize("form", OPTIONAL)
def test_what_matters_to_safety_is_refused_even_where_the_file_calls_it_optional(name: str, form: str) -> None:
    caught = error(WHOLE + form.replace("{}", name) + "\n")
    assert str(caught).startswith("x.ovpn:")
    assert f"{name} is not supported" in str(caught)


@pytest.mark.parametrize("name", SERVERS.split())
def test_a_servers_option_is_called_one(name: str) -> None:
    assert "it is a server's option" in str(error(f"{WHOLE}{name} x\n"))


def test_what_changes_nothing_is_taken_without_a_word() -> None:
    quiet = "persist-key\npersist-tun\nnobind\nmute-replay-warnings\ntun-ipv6\nfast-io\nroute-delay 2\n"
    assert warnings(WHOLE + quiet) == []


def test_one_warning_for_an_option_that_is_repeated() -> None:
    assert [option for _, option, _ in warnings(WHOLE + "up a\nup b\nsndbuf 1\nsndbuf 2\n")] == ["up", "sndbuf"]


def test_where_to_connect_and_how() -> None:
    config = parse_ovpn(
        WHOLE
        + """\
proto tcp
local 192.0.2.77
lport 5000
inactive 600 1000
session-timeout 86400
static-challenge "Your code" 1 concat
connect-timeout 9
<connection>
remote one.example
http-proxy proxy.example 3128
http-proxy-option AGENT "An agent"
http-proxy-option CUSTOM-HEADER X-Site main
http-proxy-option CUSTOM-HEADER "X-Two: b:c"
<http-proxy-user-pass>
alice
pass word
</http-proxy-user-pass>
connect-timeout 3
mssfix 1300
explicit-exit-notify 2
</connection>
<connection>
remote two.example 1195 tcp6-client
socks-proxy socks.example
</connection>
<connection>
remote three.example 1196 udp
socks-proxy socks.example 1081
explicit-exit-notify 2
</connection>
"""
    )
    bound = {"local": "192.0.2.77", "local_port": 5000}
    headers = (("X-Site", "main"), ("X-Two", "b:c"))
    proxy = HttpProxy("proxy.example", 3128, "alice", "pass word", agent="An agent", headers=headers)
    own = (("connect_timeout", 3), ("mssfix", MssFix(1300)), ("explicit_exit_notify", 2))
    assert config.remotes == (
        Remote("one.example", 1194, "tcp", proxy, **bound, own=own),
        Remote("two.example", 1195, "tcp6", SocksProxy("socks.example", 1080), **bound),
        Remote(
            "three.example", 1196, "udp", SocksProxy("socks.example", 1081), **bound, own=(("explicit_exit_notify", 2),)
        ),
    )
    first, second, third = map(config.for_remote, config.remotes)
    assert (first.connect_timeout, first.mssfix, first.explicit_exit_notify) == (3, MssFix(1300), 0)
    assert (second.connect_timeout, second.mssfix, second.explicit_exit_notify) == (9, None, 0)
    assert third.explicit_exit_notify == 2
    assert config.inactive == Inactive(600, 1000)
    assert config.session_timeout == 86400
    assert config.static_challenge == StaticChallenge("Your code", True, "concat")


def test_a_key_of_one_connection_alone() -> None:
    inner = block("tls-crypt", OTHER_STATIC.emit())
    config = parse_ovpn(
        f"{WHOLE}{block('tls-crypt', STATIC.emit())}<connection>\nremote a\n</connection>\n"
        f"<connection>\nremote b\n{inner}</connection>\n"
    )
    assert [config.for_remote(remote).wrap for remote in config.remotes] == [TlsCrypt(STATIC), TlsCrypt(OTHER_STATIC)]


@pytest.mark.parametrize("text", ["auth SHA256\n{}", "{}auth SHA256\n"], ids=["auth before", "auth after"])
@pytest.mark.parametrize(("outside", "inside", "direction"), [("0", "1", 1), ("1", None, None)])
def test_the_digest_of_a_connections_key_is_the_files_and_its_direction_its_own(
    text: str, outside: str, inside: str | None, direction: int | None
) -> None:
    """As with stock, wherever they stand."""
    own = f"key-direction {inside}\n" if inside else ""
    inner = f"<connection>\nremote a\n{own}{block('tls-auth', STATIC.emit())}</connection>\n"
    config = parse_ovpn(f"{WHOLE}key-direction {outside}\n{text.format(inner)}")
    assert config.for_remote(config.remotes[0]).wrap == TlsAuth(STATIC, "SHA256", direction)


# What is wrong, and what is said about it.

WRONG = [
    ("remoet x", "unknown option 'remoet'; did you mean 'remote'?"),
    ("Remote x", "did you mean 'remote'?"),
    ("quux 1", "unknown option 'quux'; if the server does not depend on it, remove it"),
    ("remote", "remote needs HOST [PORT] [PROTO]"),
    ("remote a 1 udp x", "remote needs HOST [PORT] [PROTO]"),
    ("remote a 0", "remote: '0' is not a port from 1 to 65535"),
    ("remote a 65536", "remote: '65536' is not a port"),
    ("remote a http", "remote: 'http' is not a port"),
    ("remote a 1194 sctp", "remote: 'sctp' is no protocol; write udp, udp4, udp6, tcp, tcp4 or tcp6"),
    ("remote [::1]", "write an IPv6 address without brackets"),
    ("remote https://a", "is no host name or address"),
    (f"remote {'ü' * 80}", "is no host name"),
    ("remote vpn..example", "'vpn..example' is no host name"),
    (f"remote {'x' * 64}.example", "is no host name"),
    ("http-proxy-option AGENT grüß", "User-Agent takes plain ASCII, and 'grüß' is more"),
    ("http-proxy-option CUSTOM-HEADER X-Site grüß", "X-Site takes plain ASCII, and 'grüß' is more"),
    ("http-proxy-option CUSTOM-HEADER Content-Length 5", "is of a request with content"),
    ("http-proxy-option CUSTOM-HEADER Host a\nhttp-proxy-option CUSTOM-HEADER Host b", "a request has one Host"),
    ("proto tcp-server", "tcp-server is for a server"),
    ("client x", "client takes no value"),
    ("verb many", "verb: 'many' is not a number of at least 0"),
    ("ping -1", "ping: '-1' is not a number from 0 to 86400"),
    ("ping ٣", "is not a number"),
    ("keepalive 10", "keepalive needs PING RESTART"),
    ("keepalive 60 60", "at least twice the first, 120"),
    ("keepalive 10 60\nping 5", "keepalive has ping and ping-restart in it"),
    ("tun-mtu 99", "from 100 to 65535"),
    ("mssfix 100", "write 0 to switch it off, or at least 154"),
    ("mssfix 1400 wide", "is not one of: mtu, fixed"),
    ("key-direction 2", "key-direction: '2' is not one of: 0, 1"),
    ("auth-retry yes", "is not one of: none, nointeract, interact"),
    ("ns-cert-type client", "'client' is not one of: server"),
    ("verify-x509-name a b", "is not one of: subject, name, name-prefix"),
    ("tls-version-min 1.4", "is not one of: 1.0, 1.1, 1.2, 1.3"),
    ("tls-version-min 1.3\ntls-version-max 1.2", "tls-version-max 1.2 is less than tls-version-min 1.3"),
    ("cipher AES-256-GMC", "'AES-256-GMC' is no cipher; choose from AES-256-GCM"),
    ("data-ciphers AES-256-GCM:AES-256-GMC", "'AES-256-GMC' is no cipher"),
    ("data-ciphers BF-CBC", "none of 'BF-CBC' is supported"),
    ("auth MD4", "the digest 'MD4' is not supported; use SHA1"),
    ("auth MD4", "the digest 'MD4' is not supported"),
    ("comp-lzo maybe", "'maybe' is no kind of compression"),
    ("compress zip", "'zip' is no kind of compression"),
    ("peer-fingerprint 00:11", "not a SHA-256 fingerprint"),
    ("setenv GENERIC_CONFIG 1", "this file is a template"),
    ("setenv opt", "setenv opt needs an option"),
    ("pull-filter drop x", "is not one of: accept, ignore, reject"),
    ("route 10.0.0.0 255.0.255.0", "route: "),
    ("route intranet", "write: route NETWORK [NETMASK]"),
    ("redirect-gateway def2", "redirect-gateway: def2 is not one of"),
    ("dhcp-option DNS ns.example.org", "dhcp-option: "),
    ("topology star", "topology: "),
    ("tls-auth", "tls-auth needs FILE [DIRECTION]"),
    ("extra-certs missing.crt", "extra-certs: cannot read missing.crt: No such file or directory"),
    ("extra-certs .", "cannot read .: Is a directory"),
    ("<route>\n1.2.3.4\n</route>", "route can't be a block; write it in one line"),
    ("<frobnicate>\n</frobnicate>", "unknown option 'frobnicate'"),
    (KEY, "-----BEGIN, a certificate's or a key's, is outside of a block; write its name before it and after it"),
    ("</ca>", "</ca> closes a block that was not opened"),
    ("<connection>\nport 1\n</connection>", "this <connection> has no remote"),
    ("<connection>\nremote a\nremote b\n</connection>", "a second remote in one <connection>"),
    ("<connection>\nremote a\nverb 4\n</connection>", "verb can't be within <connection>"),
    ("http-proxy 192.0.2.9 8080", "http-proxy leads to TCP only, and this remote is udp; write: proto tcp"),
    ("http-proxy 192.0.2.9", "http-proxy needs HOST PORT [FILE|auto|auto-nct] [METHOD]"),
    ("http-proxy 192.0.2.9 8080 stdin ntlm", "ntlm is not supported"),
    ("http-proxy-option COLOUR red", "'COLOUR' is not one of: VERSION, AGENT, CUSTOM-HEADER"),
    ("nobind\nlport 1194", "nobind and lport exclude each other"),
    ("local 192.0.2.2\nremote a 1194 udp6", "local: from 192.0.2.2 no udp6 goes out; write: proto udp"),
    ("route example.org", "route: example.org is a name, and routes are for addresses alone"),
    ("dns server 1 resolve-domains example.org", "dns server 1: has no address"),
    ("local a/b", "'a/b' is no host name or address"),
    ("port 0\n<connection>\nremote a\n</connection>", ": 0 is no port of a server's; write: remote a PORT"),
    ("crl-verify folder dir", "crl-verify: cannot read folder: No such file or directory"),
    ("crl-verify . directory", "'directory' is not one of: dir"),
    ("auth SHAKE128", "the digest 'SHAKE128' is not supported"),
    ("auth SHA3-256\ndata-ciphers AES-256-GCM:AES-128-CBC", "auth SHA3-256 is for tls-auth alone"),
    (block("crl-verify", AUTHORITY.pem), "has no revocation list"),
    ("verify-hash 00:11", "not 20 pairs of hexadecimal digits"),
    ("verify-hash 00:11 SHA256", "not 32 pairs of hexadecimal digits"),
    ("verify-hash 00:11 MD5", "'MD5' is not one of"),
    ("remote-cert-ku signing", "'signing' is no key usage"),
    ("tls-cert-profile strict", "'strict' is not one of"),
    ("static-challenge Code 2", "'2' is not one of: 0, 1"),
    ("static-challenge Code 1 rot13", "'rot13' is not one of: scrv1, concat"),
    ("<connection>\nremote a\nca x\n</connection>", "ca can't be within <connection>"),
    ("<connection>\nremtoe a\n</connection>", "did you mean 'remote'?"),
    (
        "<connection>\nremote a\n"
        f"{block('tls-crypt', STATIC.emit())}{block('tls-crypt', OTHER_STATIC.emit())}</connection>",
        "tls-crypt is given twice, with another value in line",
    ),
    ("dev-type bridge", "is not one of: tun, tap"),
    ("mode server", "mode server is a server's"),
    ("verb 3\0", "a NUL byte: this is no text file"),
    ("verb \x1b[31m", "the character U+001B can't be part of a word"),
    ("remote a\u00a01194", "the character U+00A0 can't be part of a word"),
    (" ".join("remote-random" for _ in range(17)), "more than 16 words"),
    ("tls-crypt [inline]", "tls-crypt [inline] without a <tls-crypt> block"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text[:30] for text, _ in WRONG])
def test_what_is_wrong_is_said_with_its_line(text: str, message: str) -> None:
    caught = error(f"{WHOLE}{text}\n")
    assert message in str(caught)
    first = WHOLE.count("\n") + 1
    assert caught.line is not None
    assert first <= caught.line <= first + text.count("\n")
    assert str(caught).startswith(f"x.ovpn:{caught.line}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WHOLE.replace("client\n", ""), "the file does not say that it is a client's; write: client"),
        (WHOLE.replace("client\n", "tls-client\n"), "write: client"),
        (WHOLE.replace("dev tun\n", ""), "no dev: the file does not say what kind of tunnel it is for; write: dev tun"),
        (WHOLE.replace("dev tun", "dev vpn0"), "'vpn0' does not begin with tun or tap; add: dev-type tun"),
        (re.sub("remote vpn.*\n", "", WHOLE), "no remote"),
        (BASE + OWN, "neither ca nor peer-fingerprint: the server could be anyone"),
        (BASE + TRUST, "nothing says to the server who we are; add cert and key, or auth-user-pass"),
        (BASE + TRUST + block("cert", CERT), "cert without key"),
        (BASE + TRUST + block("key", KEY), "key without cert"),
        (WHOLE + block("tls-auth", STATIC.emit()) + block("tls-crypt", STATIC.emit()), "exclude each other"),
        ("", "write: client"),
    ],
)  # fmt: skip
def test_what_a_whole_file_lacks(text: str, message: str) -> None:
    assert message in str(error(text))


@pytest.mark.parametrize(
    ("name", "text", "message", "line"),
    [
        ("ca", "\n", "the <ca> block is empty", 1),
        ("ca", "hello\n", "the <ca> block has no certificate; it must have the lines from -----BEGIN CERT", 1),
        ("ca", AUTHORITY.pem + DAMAGED, "certificate 2 in the <ca> block is damaged", 1 + AUTHORITY.pem.count("\n")),
        ("ca", "x\n" + AUTHORITY.pem[:-40] + "\n", "the <ca> block has a CERTIFICATE without its end", 2),
        ("cert", KEY, "the <cert> block has no certificate", 1),
        ("key", CERT, "the <key> block has no private key", 1),
        ("key", NO_PRIVATE_KEY, "the private key in the <key> block is damaged or of an unknown kind", 1),
        ("key", KEY + KEY, "the <key> block has 2 private keys", 1 + KEY.count("\n")),
        ("tls-auth", CERT, 'the <tls-auth> block: no "-----BEGIN OpenVPN Static key V1-----" line', 1),
        ("tls-crypt", STATIC.emit().replace("00", "0", 1), "the <tls-crypt> block", 1),
        ("tls-crypt", STATIC.emit().replace("0f\n", "\n", 1), "the static key has 255 bytes, not 256", 1),
        ("tls-crypt", "-----BEGIN OpenVPN tls-crypt-v2 client key-----\n", "write it as tls-crypt-v2", 1),
        ("auth-user-pass", "\nsecret\n", "no user in its first line", 1),
        ("auth-user-pass", "bob\n\x1b\n", "something other than a user and a password", 2),
        ("peer-fingerprint", "# x\n00:11\n", "not a SHA-256 fingerprint", 2),
    ],
)  # fmt: skip
def test_a_wrong_block_is_named_with_the_line_in_it(name: str, text: str, message: str, line: int) -> None:
    caught = error(f"{BASE}{block(name, text)}")
    assert message in str(caught)
    assert caught.line == BASE.count("\n") + 1 + line


def encrypted(key: str, password: str) -> str:
    return (
        serialization.load_pem_private_key(key.encode(), None)
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password.encode()),
        )
        .decode()
    )


def test_an_encrypted_key_is_opened_with_its_password(tmp_path: Path) -> None:
    text = BASE + TRUST + block("cert", CERT) + block("key", encrypted(KEY, "let me in"))
    with pytest.raises(KeyPasswordError) as caught:
        settings.tls_context(parse_ovpn(text))
    assert not caught.value.wrong
    settings.tls_context(parse_ovpn(text), "let me in")
    (tmp_path / "password").write_text("let me in\r\n")
    settings.tls_context(parse_ovpn(text + "askpass password\n", directory=tmp_path))
    settings.tls_context(parse_ovpn(text + "askpass\n"), "let me in")
    (tmp_path / "password").write_text("let me out\n")
    with pytest.raises(KeyPasswordError) as caught:
        settings.tls_context(parse_ovpn(text + "askpass password\n", directory=tmp_path))
    assert caught.value.wrong


def test_a_folder_of_what_is_revoked(tmp_path: Path) -> None:
    for name in ("17", "018", "x", "-3", "0", "1.pem"):
        (tmp_path / name).touch()
    config = parse_ovpn(WHOLE + "crl-verify . dir\n", directory=tmp_path)
    assert (config.crl, config.crl_file) == ({17, -3, 0}, str(tmp_path))


def test_pkcs12_as_a_file_and_as_a_block(tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(CERT.encode())
    ca = x509.load_pem_x509_certificate(AUTHORITY.pem.encode())
    key = serialization.load_pem_private_key(KEY.encode(), None)
    data = pkcs12.serialize_key_and_certificates(
        b"bob",
        key,
        certificate,
        [ca],
        serialization.BestAvailableEncryption(b"x"),  # type: ignore[arg-type]
    )
    (tmp_path / "bob.p12").write_bytes(data)
    config = parse_ovpn(BASE + "remote-cert-tls server\npkcs12 bob.p12\n", directory=tmp_path)
    assert config.pkcs12 == data
    settings.tls_context(config, "x")
    inline = block("pkcs12", base64.encodebytes(data).decode())
    assert parse_ovpn(BASE + "remote-cert-tls server\n" + inline).pkcs12 == data
    assert "not base64" in str(error(BASE + block("pkcs12", "!\n")))
    assert "exclude each other" in str(error(WHOLE + inline))


def test_whom_to_trust_in_every_detail(tmp_path: Path) -> None:
    hashes = "AA:" * 19 + "aa"
    text = (
        WHOLE
        + f"""\
tls-crypt-v2 client.key
verify-hash {hashes}
remote-cert-ku a0 0x88
remote-cert-eku "TLS Web Server Authentication"
x509-username-field CN ext:subjectAltName
tls-cipher DEFAULT:@SECLEVEL=0
tls-ciphersuites TLS_AES_256_GCM_SHA384
tls-groups X25519:secp384r1
tls-cert-profile preferred
"""
    )
    key = ServerKey(bytes(range(128))).make_client_key(Metadata.made_at(0), lambda size: bytes(size))
    (tmp_path / "client.key").write_text(key.emit())
    config = parse_ovpn(text, directory=tmp_path)
    assert config.wrap == TlsCryptV2(key)
    assert config.issuer_fingerprints == (hashes.lower(),)
    assert (config.remote_cert_ku, config.remote_cert_eku) == ((0xA0, 0x88), "TLS Web Server Authentication")
    assert config.username_fields == ("CN", "ext:subjectAltName")
    assert (config.cipher_list, config.cipher_suites) == ("DEFAULT:@SECLEVEL=0", "TLS_AES_256_GCM_SHA384")
    assert (config.groups, config.cert_profile) == ("X25519:secp384r1", "preferred")
    inline = WHOLE + block("tls-crypt-v2", key.emit())
    assert parse_ovpn(inline).wrap == TlsCryptV2(key)
    assert "tls-crypt and tls-crypt-v2 exclude" in str(error(inline + block("tls-crypt", STATIC.emit())))


def test_a_block_that_is_not_closed_says_where_it_was_opened() -> None:
    caught = error(f"{BASE}<ca>\n{AUTHORITY.pem}{OWN}")
    assert str(caught) == "x.ovpn:4: the <ca> block is not closed; write </ca> after it"


def test_a_wrong_file_is_named_with_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("one\ntwo\n" + DAMAGED)
    caught = error(BASE + "ca ca.crt\n", tmp_path)
    assert (caught.file, caught.line, caught.option) == (str(tmp_path / "ca.crt"), 3, "ca")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.ovpn", Path("a\0b")):
        with pytest.raises(ConfigError, match="cannot read"):
            read_ovpn(path)
    with pytest.raises(ConfigError, match="a file's text, not its name") as caught:
        read_ovpn(WHOLE)
    assert len(str(caught.value)) < 200, "keys belong in no message"
    (tmp_path / "large.ovpn").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="more than 1 MiB"):
        read_ovpn(tmp_path / "large.ovpn")
    assert "UTF-16" in str(error(WHOLE.encode("utf-16")))
    assert "not UTF-8 text" in str(error("client\ndev tün\n".encode("latin-1")))


def test_logins_from_files(tmp_path: Path) -> None:
    (tmp_path / "login").write_bytes("alice\r\npä ss\r\n\r\n".encode())
    (tmp_path / "user").write_text("alice")
    text = BASE + TRUST + "auth-user-pass {}\n"
    login = parse_ovpn(text.format("login"), directory=tmp_path).auth_user_pass
    assert login == AuthUserPass("alice", "pä ss")
    assert login is not None
    assert login.file == str(tmp_path / "login")
    assert parse_ovpn(text.format("user"), directory=tmp_path).auth_user_pass == AuthUserPass("alice", None)
    assert parse_ovpn(text.format("stdin"), directory=tmp_path).auth_user_pass == AuthUserPass()


@pytest.mark.parametrize(
    ("line", "said"),
    [("transport DoH", "it is not asked, as DoH"), ("dnssec yes", "with --tun alone"), ("transport DoT", None)],
)
def test_a_name_server_that_is_not_asked_as_the_file_says(line: str, said: str | None) -> None:
    text = WHOLE + f"dns server 1 address 10.0.0.1\ndns server 1 {line}\n"
    found = [text for _, option, text in warnings(text) if option == "dns"]
    assert [said is not None and said in text for text in found] == ([] if said is None else [True])


def test_a_name_that_is_to_stay_outside_is_no_reason_to_refuse_the_file() -> None:
    text = WHOLE + "route printer.example.org 255.255.255.255 net_gateway\n"
    ((_, option, said),) = [each for each in warnings(text) if each[1] == "route"]
    assert said.endswith("it is reached through the tunnel like all else")
    assert parse_ovpn(text).local.routes == ()


def test_what_is_for_all_connections_is_not_for_one() -> None:
    text = (
        WHOLE + "connect-retry-max 3\n<connection>\nremote a\nconnect-retry 5 60\nconnect-retry-max 9\n</connection>\n"
    )
    config = parse_ovpn(text)
    assert config.connect_retry_max == 3
    assert config.for_remote(config.remotes[0]).connect_retry == (5, 60)
    assert [option for _, option, _ in warnings(text)] == ["connect-retry-max", "remote"]


# What is given twice, before, after, or as optional.


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (block("ca", AUTHORITY.pem), block("ca", OTHER.pem)),
        ("verify-x509-name a name\n", "verify-x509-name b name\n"),
        ("tls-version-min 1.3\n", "tls-version-min 1.0\n"),
        ("data-ciphers AES-256-GCM\n", "data-ciphers AES-128-GCM\n"),
        (block("tls-crypt", STATIC.emit()), block("tls-crypt", StaticKey(bytes(256)).emit())),
    ],
)
def test_two_answers_to_a_question_of_trust_are_refused(first: str, second: str) -> None:
    rest = BASE + OWN + "remote-cert-tls server\n"
    caught = error(rest + first + second)
    assert f"is given twice, with another value in line {rest.count(chr(10)) + 1}" in str(caught)
    assert caught.line == (rest + first).count("\n") + 1
    if not first.startswith("<ca>"):
        rest += block("ca", AUTHORITY.pem)
    assert parse_ovpn(rest + first + first).warnings == ()


def test_of_other_options_the_last_holds() -> None:
    config = parse_ovpn(f"{WHOLE}verb 3\nverb 4\n")
    assert config.verb == 4
    assert config.warnings[0].text == f"verb: replaces line {WHOLE.count(chr(10)) + 1}"


@pytest.mark.parametrize("text", ["key-direction 1\n{}", "{}key-direction 1\n", "tls-auth [inline] 1\n{}"])
def test_the_direction_stands_before_or_after_the_key(text: str) -> None:
    config = parse_ovpn(WHOLE + text.format(block("tls-auth", STATIC.emit())) + "auth SHA256\n")
    assert config.wrap == TlsAuth(STATIC, "SHA256", 1)


def test_what_the_file_calls_optional() -> None:
    config = parse_ovpn(
        f"{WHOLE}ignore-unknown-option foo --bar\nfoo 1\nbar\nsetenv opt quux\nsetenv opt verb 5\nsetenv opt verb\n"
    )
    assert config.verb == 5
    assert [warning.option for warning in config.warnings] == ["foo", "bar", "quux", "verb"]
    assert "unknown option 'foo'" in str(error(f"{WHOLE}foo 1\nignore-unknown-option foo\n"))


def test_optional_ciphers() -> None:
    config = parse_ovpn(WHOLE + "data-ciphers aes-128-gcm:?AES-999-XTS:BF-CBC:DEFAULT\ncipher AES-256-GCM\n")
    assert config.data_ciphers == ("AES-128-GCM", "AES-256-GCM", "CHACHA20-POLY1305")
    (warning,) = config.warnings
    assert "AES-999-XTS, BF-CBC left out" in warning.text
    assert parse_ovpn(WHOLE + "data-ciphers-fallback AES-128-GCM\n").cipher == "AES-128-GCM"


def test_a_server_that_anyone_of_the_ca_can_pose_as() -> None:
    ((line, option, text),) = warnings(BASE + block("ca", AUTHORITY.pem) + OWN)
    assert (line, option) == (4, "ca")
    assert "remote-cert-tls server" in text


# The report.


def test_the_report_goes_on_after_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ovpn"
    path.write_text("client\nremoet a\nuser nobody\nverb x\n")
    report = report_ovpn(path)
    assert report.config is None
    assert report.findings == (
        Finding(1, "client", Verdict.SUPPORTED, "TLS, with the server's settings taken over"),
        Finding(2, "remoet", Verdict.REFUSED, "unknown option 'remoet'; did you mean 'remote'?"),
        Finding(3, "user", Verdict.IGNORED, f"user has no effect: {DIRECTIVES['user'].text}"),
        Finding(4, "verb", Verdict.REFUSED, "verb: 'x' is not a number of at least 0"),
    )
    path.write_text(WHOLE)
    report = report_ovpn(path)
    assert {finding.verdict for finding in report.findings} == {Verdict.SUPPORTED}
    assert report.config == read_ovpn(path)
    path.write_text(BASE)
    assert report_ovpn(path).findings[-1].verdict is Verdict.REFUSED


def test_the_report_has_what_stands_in_a_connection(tmp_path: Path) -> None:
    path = tmp_path / "a.ovpn"
    path.write_text(f"{WHOLE}<connection>\nremote a\nmssfix 1300\nudp-mtu 1400\n</connection>\n")
    report = report_ovpn(path)
    first = WHOLE.count("\n") + 1
    found = [(each.line - first, each.option, each.verdict) for each in report.findings if each.line >= first]
    assert found == [
        (0, "connection", Verdict.SUPPORTED),
        (1, "remote", Verdict.SUPPORTED),
        (2, "mssfix", Verdict.SUPPORTED),
        (3, "udp-mtu", Verdict.IGNORED),
    ]
    path.write_text(f"{WHOLE}<connection>\nremote a\nca x\n</connection>\nverb x\n")
    refused = [each.line - first for each in report_ovpn(path).findings if each.verdict is Verdict.REFUSED]
    assert refused == [2, 4]


@pytest.mark.parametrize("lost", ["<key>", "<key>\n-----BEGIN PRIVATE KEY-----"])
def test_a_key_that_has_lost_its_first_lines_is_not_in_the_report(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "a.ovpn"
    secret = base64.b64encode(bytes(range(1, 100))).decode()
    body = "\n".join(re.findall(".{1,64}", secret))
    text = f"<key>\n-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\nremoet a\n"
    path.write_text(WHOLE + text.removeprefix(f"{lost}\n"))
    report = report_ovpn(path)
    refused = [finding for finding in report.findings if finding.verdict is Verdict.REFUSED]
    assert refused[-1].option == "remoet"
    assert not any(secret[at : at + 16] in repr(report) for at in range(0, 64, 8))
    with pytest.raises(ConfigError) as caught:
        read_ovpn(path)
    assert caught.value.line == refused[0].line
    assert secret[:16] not in str(caught.value)


def test_every_supported_option_has_a_meaning() -> None:
    supported = {name for name, directive in DIRECTIVES.items() if directive.verdict is Verdict.SUPPORTED}
    assert supported <= set(MEANINGS)
    for name in supported:
        for words in ((), ("1",), ("1", "2"), ("a\x1b", "2", "3", "4")):
            assert "\x1b" not in meaning(name, words)
        assert meaning(name, ("a", "b", "c"))


# Anything else.

FRAGMENTS = [*DIRECTIVES, *WHOLE.splitlines(), "<ca>", "</ca>", "<connection>", "</connection>"]
FRAGMENTS += ["1", "'", '"', "\\", "\r", "udp"]


@given(st.one_of(st.text(), st.binary()))
@example("\\ ")
@example('""')
@example("\\#")
def test_any_text_is_a_configuration_or_an_error(data: str | bytes) -> None:
    reads(data)


@given(st.lists(st.tuples(st.sampled_from(FRAGMENTS), st.sampled_from([" ", "\n", "\t", ""]))))
def test_any_mixture_of_what_files_are_made_of(pieces: list[tuple[str, str]]) -> None:
    reads("".join(text + between for text, between in pieces))
    reads(WHOLE + "".join(text + between for text, between in pieces))


@given(st.data())
def test_any_damage_to_a_good_file(data: st.DataObject) -> None:
    whole = (WHOLE + block("tls-auth", STATIC.emit())).encode()
    at = data.draw(st.integers(0, len(whole)))
    skip = data.draw(st.integers(0, 8))
    new = data.draw(st.binary(max_size=8))
    reads(whole[:at] + new + whole[at + skip :])
