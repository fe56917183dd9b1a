"""Every option, in each of its forms, once to stock OpenVPN and once to ginnel: both take it, both refuse it, or the
table in docs/check.md says why not.

Each is added to a client's file that is good without it, and that ends with a line which stock complains
about after everything else: with that complaint alone the option was taken.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from ginnel.cli.check import command as check
from ginnel.openvpn.directives import DIRECTIVES, Verdict
from ginnel.openvpn.ovpn_file import report_ovpn
from ginnel.openvpn.tls_crypt_v2 import Metadata, ServerKey
from tests.harness.network import Network
from tests.harness.pki import Authority, static_key
from tests.harness.profile import COMMON_KEYS
from tests.harness.shapes import encrypt

PAGE = Path(__file__).parents[2] / "docs" / "check.md"
# What the file is without, and what it has instead.
SPOILT: dict[str, tuple[str, tuple[str, ...]]] = {
    "good": ("", ()),
    "no certificate": ("cert", ("cert login",)),
    "a damaged certificate": ("cert", ("cert damaged.crt",)),
    "another certificate's key": ("key cert", ("cert own.crt", "key other.key")),
    "a damaged authority": ("ca", ("ca damaged.crt",)),
    "no PKCS #12": ("ca cert key", ("pkcs12 login",)),
    "a wrong password of the key": ("key", ("askpass login", "key encrypted.key")),
    "unknown ciphers": ("", ("tls-cipher NO-SUCH",)),
    "unknown suites of TLS 1.3": ("", ("tls-ciphersuites NO-SUCH",)),
    "unknown groups": ("", ("tls-groups no-such",)),
    "no static key": ("", ("tls-crypt login",)),
}


@dataclass(frozen=True)
class Outcome:
    """``line`` is how the option was written; the reasons are "" where it was taken."""

    name: str
    line: str
    stock: str
    ours: str


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    folder = tmp_path_factory.mktemp("differential")
    fill(folder)
    return compare_all(folder)


def test_stock_and_ginnel_agree_or_the_difference_is_listed(outcomes: list[Outcome]) -> None:
    assert len(outcomes) > 400
    assert table(outcomes) == listed(), "run: python -m tests.interop.test_differential"


def test_what_stock_takes_and_we_refuse_has_its_reason_from_the_one_table(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if not outcome.stock and outcome.ours:
            directive = DIRECTIVES.get(outcome.name)
            assert directive is not None, f"stock takes {outcome.line!r}, and we don't know it"
            assert directive.verdict is Verdict.REFUSED or outcome.line in NARROWER, outcome
        elif outcome.stock and not outcome.ours:
            assert {outcome.name, outcome.line} & WIDER.keys(), outcome


@pytest.mark.parametrize("name", SPOILT)
def test_what_openssl_does_not_take_is_refused_by_both_before_they_connect(
    name: str, tmp_path: Path, network: Network
) -> None:
    fill(tmp_path)
    without, lines = SPOILT[name]
    base = [line for line in BASE.replace("../", "").splitlines() if line.split()[0] not in without.split()]
    file = tmp_path / "client.ovpn"
    file.write_text("\n".join([*base, *lines, "proto tcp-client", "rport 9", "connect-retry-max 1", ""]))
    # Where nobody is there to answer, who gets as far as connecting says so.
    command = ["openvpn", "--config", file, "--cd", tmp_path, "--remote", "127.0.0.1", "--connect-timeout", "1"]
    stock = network.client.run(command, timeout=60, check=False)
    result = CliRunner().invoke(check, [str(file)], standalone_mode=False)
    assert ("All connections have been connect-retry-max" in stock) == (name == "good"), stock
    assert (result.return_value == 0) == (name == "good"), result.output
    if name != "good":
        option = lines[-1].split()[0]
        assert f" {option} " in next(line for line in result.output.splitlines() if " refused " in line)


def fill(folder: Path) -> None:
    keys = COMMON_KEYS.ca_signed
    for name, text in {
        "ca.crt": keys.ca,
        "own.crt": keys.client.certificate,
        "own.key": keys.client.key,
        "static.key": static_key(),
        "login": "alice\nsecret\n",
        "client.key": ServerKey(bytes(128)).make_client_key(Metadata.made_at(0), bytes).emit(),
        "revoked.pem": Authority().revocation_list(),
        "other.key": keys.server.key,
        "damaged.crt": keys.client.certificate.replace("MII", "MIX", 1),
        "encrypted.key": encrypt(keys.client.key),
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)


def compare_all(folder: Path) -> list[Outcome]:
    cases = [(name, forms) for name in sorted(names()) for forms in forms_of(name)]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda case: compare(folder / str(case[0]), *case[1]), enumerate(cases)))


def forms_of(name: str) -> list[tuple[str, ...]]:
    """What is to be written after it: each form by itself, or guesses of which one is enough."""
    return [(words,) for words in SAMPLES[name]] if name in SAMPLES else [GUESSES]


def names() -> set[str]:
    """What stock's own help names, and what it doesn't but our table does."""
    shown = subprocess.run(["openvpn", "--help"], capture_output=True, text=True, check=False).stdout
    return (set(re.findall(r"^--([a-z0-9-]+)", shown, re.M)) | set(DIRECTIVES)) - COMMANDS


def compare(folder: Path, name: str, forms: tuple[str, ...]) -> Outcome:
    """The first form that stock takes, or else the first. Each has a folder of its own: some write files."""
    folder.mkdir()
    lines = [f"{name} {words}".strip() for words in forms]
    tried = [(line, ask_stock(folder, name, line)) for line in lines]
    line, complaint = next((pair for pair in tried if not pair[1]), tried[0])
    report = report_ovpn(write(folder, name, line))
    refused = [finding.text for finding in report.findings if finding.verdict is Verdict.REFUSED]
    return Outcome(name, line, complaint, "; ".join(refused))


def ask_stock(folder: Path, name: str, line: str) -> str:
    """What stock says against it, "" for nothing."""
    said = subprocess.run(
        ["openvpn", "--config", write(folder, name, line)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    complaints = re.findall("(?:Options error|Error): (.*)", said)
    own = [text for text in complaints if "writepid" not in text and not text.startswith("Please correct")]
    return "" if "--writepid fails with" in said and not own else (own or ["it ends"])[0]


def write(folder: Path, name: str, line: str) -> Path:
    file = folder / "client.ovpn"
    without = {name, DROPPED.get(name)} - {"remote"}
    own = [text for text in BASE.splitlines() if text.split()[0] not in without]
    file.write_text("\n".join([*own, *EXTRA.get(name, []), line, "writepid /nonexistent/pid", ""]))
    return file


def table(outcomes: list[Outcome]) -> list[str]:
    rows = list(HEAD)
    for outcome in outcomes:
        if bool(outcome.stock) == bool(outcome.ours):
            continue
        reasons = WIDER if outcome.stock else NARROWER
        why = reasons.get(outcome.line) or reasons.get(outcome.name) or DIRECTIVES[outcome.name].text
        verdicts = ("refuses", "takes") if outcome.stock else ("takes", "refuses")
        rows.append(f"| `{outcome.line}` | {verdicts[0]} | {verdicts[1]} | {why} |")
    return rows


def listed() -> list[str]:
    lines = PAGE.read_text().splitlines()
    start = lines.index(HEAD[0])
    return [line for line in lines[start:] if line.startswith("|")]


HEAD = ["| written | stock 2.6 | ginnel | why |", "|---|---|---|---|"]
BASE = """\
client
dev null
dev-type tun
remote 192.0.2.1
nobind
ca ../ca.crt
cert ../own.crt
key ../own.key
remote-cert-tls server
"""
GUESSES = ("", "1", "1 1", "10.0.0.1", "10.0.0.1 255.255.255.0", "x", "x y", "x y z")
# What no guess would hit, or what only the other program would look at.
SAMPLES: dict[str, tuple[str, ...]] = {
    "allow-compression": ("no", "asym", "yes", "x"),
    "chroot": ("/",),
    "mtu-disc": ("yes",),
    "remap-usr1": ("SIGTERM",),
    "shaper": ("1000",),
    "tmp-dir": ("/tmp",),
    "tls-export-cert": ("/tmp",),
    "x509-track": ("CN",),
    "route-ipv6-gateway": ("fd00::1",),
    "keying-material-exporter": ("EXPORTER-x 20",),
    "lladdr": ("02:00:00:00:00:01",),
    **dict.fromkeys(("up", "down", "ipchange", "route-up", "route-pre-down", "iproute"), ("/bin/true",)),
    "askpass": ("../login",),
    "auth": (
        *("SHA1", "sha256", "SHA512", "none", "MD5", "RIPEMD160", "SHA512-256", "BLAKE2s256", "SHA3-256"),
        *("RSA-SHA256", "CRC32", "SM3", "MD5-SHA1", "SHAKE128"),
    ),
    "auth-retry": ("none", "nointeract", "interact", "x"),
    "auth-user-pass": ("../login",),
    "bind": ("",),
    "ca": ("../ca.crt",),
    "cert": ("../own.crt",),
    "cipher": ("AES-256-GCM", "aes-128-cbc", "BF-CBC", "none", "x"),
    "comp-lzo": ("no", "", "yes", "adaptive", "x"),
    "compat-mode": ("2.4.0",),
    "compress": ("", "stub", "stub-v2", "lzo", "lz4", "lz4-v2", "migrate", "x"),
    "crl-verify": ("../revoked.pem", ".. dir"),
    "data-ciphers": ("AES-256-GCM", "DEFAULT", "AES-128-GCM:AES-128-CBC", "none", "BF-CBC", "?x:AES-256-GCM", "x"),
    "ncp-ciphers": ("AES-256-GCM",),
    "data-ciphers-fallback": ("AES-128-GCM", "AES-256-CBC", "BF-CBC", "x"),
    "dev": ("tun",),
    "dev-type": ("tap",),
    "fragment": ("1400",),
    "capath": (".",),
    "ns-cert-type": ("server",),
    "tls-verify": ("/bin/true",),
    "providers": ("default",),
    "client-nat": ("snat 10.0.0.0 255.0.0.0 10.1.0.0",),
    "ecdh-curve": ("secp384r1",),
    "dhcp-option": (
        *(
            "DNS 10.0.0.1",
            "DNS fd00::1",
            "DNS6 fd00::1",
            "DNS x",
            "DOMAIN office",
            "DOMAIN-SEARCH a.example",
            "WINS 10.0.0.1",
        ),
        *("NTP 10.0.0.1", "PROXY_HTTP x 80", "UNKNOWN x", "DISABLE-NBT", "DOMAIN"),
    ),
    "dns": (
        *("server 1 address 10.0.0.1", "server 1 address 10.0.0.1:5353", "server 1 address [fd00::1]:5353"),
        *("server 1 resolve-domains x.example", "server 1 address x", "search-domains a.example b.example"),
        *("server 200 address 10.0.0.1", "server -5 address 10.0.0.1", "server 1 transport DoT"),
    ),
    "extra-certs": ("../ca.crt",),
    "http-proxy": ("192.0.2.9 8080",),
    "http-proxy-option": ("AGENT x",),
    "http-proxy-user-pass": ("../login",),
    "ifconfig": ("10.0.0.1 10.0.0.2", "10.0.0.1", "fd00::1 fd00::2"),
    "ifconfig-ipv6": ("fd00::1/64 fd00::2", "fd00::1 fd00::2", "10.0.0.1/24 10.0.0.2"),
    "keepalive": ("10 60", "10 15", "0 60", "10"),
    "key": ("../own.key",),
    "local": ("192.0.2.2", "fd00::2", "localhost"),
    "max-packet-size": ("1200", "100", "2100"),
    "management-client-group": ("root",),
    "management-client-user": ("root",),
    "management-log-cache": ("5",),
    "mode": ("p2p",),
    "mssfix": ("1400", "", "0", "100", "1400 mtu", "1400 fixed", "1400 x"),
    "peer-fingerprint": (":".join(["AA"] * 32),),
    "proto": ("tcp-client", "udp", "udp4", "udp6", "tcp", "tcp6-client", "tcp-server", "x"),
    "proto-force": ("udp",),
    "pull-filter": ("ignore route", "accept x", "reject x", "x x"),
    "redirect-gateway": ("def1", "", "def1 ipv6 !ipv4", "local autolocal bypass-dhcp bypass-dns block-local", "x"),
    "redirect-private": ("def1",),
    "remote": (
        *("192.0.2.9 1194 udp", "x.example", "::1", "[::1]", "x.example 0", "x.example 65536", "x.example 1194 tcp"),
        *("x.example 1194 tcp6-client", "x.example 1194 x", "x.example x"),
    ),
    "remote-cert-eku": ("1.3.6.1.5.5.7.3.1",),
    "remote-cert-ku": ("a0", "", "a0 88", "x"),
    "remote-cert-tls": ("server", "client", "x"),
    "resolv-retry": ("infinite", "60", "x"),
    "route": (
        *(
            "10.0.0.0 255.0.0.0",
            "10.0.0.0",
            "10.0.0.1 255.0.0.0",
            "10.0.0.0 255.0.255.0",
            "10.0.0.0 255.0.0.0 default 5",
        ),
        *("10.0.0.0 255.0.0.0 net_gateway", "vpn_gateway", "remote_host", "x.example", "fd00::/64"),
    ),
    "route-gateway": ("10.0.0.1", "dhcp", "x.example"),
    "route-table": ("7",),
    "route-ipv6": ("fd00::/64", "fd00::1", "fd00::/64 fd00::1 5", "10.0.0.0/8"),
    "setenv": ("NAME value",),
    "socks-proxy": ("192.0.2.9 1080",),
    "static-challenge": ("Code 1", "Code 0", "Code 1 concat", "Code 2"),
    "tls-auth": ("../static.key 1",),
    "tls-cert-profile": ("preferred", "insecure", "legacy", "suiteb", "foo"),
    "tls-cipher": ("DEFAULT", "DEFAULT:@SECLEVEL=0", "TLS-ECDHE-ECDSA-WITH-AES-128-GCM-SHA256"),
    "tls-ciphersuites": ("TLS_AES_256_GCM_SHA384",),
    "tls-crypt": ("../static.key",),
    "tls-crypt-v2": ("../client.key",),
    "tls-groups": ("X25519",),
    "tls-version-max": ("1.3", "1.0", "1.4"),
    "tls-version-min": ("1.2", "1.0", "1.3 or-highest", "1.4", "1.4 or-highest"),
    "topology": ("subnet", "net30", "p2p", "x"),
    "tun-mtu": ("1400", "90", "100", "65535", "1500 1400"),
    "tun-mtu-max": ("1700", "1400"),
    "verify-hash": (":".join(["AA"] * 20), ":".join(["AA"] * 32) + " SHA256", "AA"),
    "verify-x509-name": ("server name", "CN=server", "server name-prefix", "server x"),
    "x509-username-field": ("CN", "ext:subjectAltName", "emailAddress", "CN serialNumber", "x"),
    "port": ("1194", "0", "x"),
    "rport": ("1194", "0"),
    "lport": ("1194", "0"),
    "hand-window": ("60", "0"),
    "tls-timeout": ("2", "0"),
    "tran-window": ("60", "0"),
    "reneg-sec": ("0", "3600 60", "-1"),
    "ping": ("10", "0"),
    "ping-exit": ("10", "0"),
    "ping-restart": ("10", "0"),
    "inactive": ("60", "60 1000"),
    "connect-retry": ("1", "1 60", "0"),
    "connect-retry-max": ("3", "0"),
    "connect-timeout": ("9", "0"),
    "server-poll-timeout": ("9", "0"),
    "explicit-exit-notify": ("", "2", "0"),
    "session-timeout": ("60", "0"),
    "verb": ("3", "11", "15", "16"),
    "key-direction": ("0", "1", "2"),
}
MANAGEMENT = (
    *("management-client", "management-forget-disconnect", "management-hold", "management-query-passwords"),
    *(
        "management-query-proxy",
        "management-query-remote",
        "management-signal",
        "management-up-down",
        "management-log-cache",
    ),
)
# What an option needs beside it.
EXTRA = {
    "management-client-user": ["management /tmp/x unix"],
    "management-client-group": ["management /tmp/x unix"],
    "lladdr": ["dev-type tap"],
    "auth-nocache": ["auth-user-pass ../login"],
    "auth-retry": ["auth-user-pass ../login"],
    "static-challenge": ["auth-user-pass ../login"],
    "http-proxy": ["proto tcp-client"],
    "http-proxy-option": ["proto tcp-client", "http-proxy 192.0.2.9 8080"],
    "http-proxy-user-pass": ["proto tcp-client", "http-proxy 192.0.2.9 8080 stdin"],
    **{name: ["management 127.0.0.1 7505"] for name in MANAGEMENT},
    **{name: ["script-security 2"] for name in ("up", "down", "route-up", "ipchange", "tls-verify")},
    "up-delay": ["script-security 2", "up /bin/true"],
}
DROPPED = {
    "bind": "nobind",
    "local": "nobind",
    "lport": "nobind",
    "port": "",
    "peer-fingerprint": "ca",
    "dev": "dev-type",
}
# Not settings of a client's file: stock does something else and ends, or they are blocks.
COMMANDS = {"config", "connection", "help", "version", "daemon", "syslog", "log", "log-append"}
LATER = "stock takes it when it starts, and fails when it is used"
NARROWER: dict[str, str] = {
    **dict.fromkeys(("auth MD5-SHA1", "auth SHAKE128"), "no digest of its own, or of no size of its own"),
    **dict.fromkeys(("auth CRC32", "cipher x", "data-ciphers-fallback x"), "no library has it"),
    **dict.fromkeys(
        ("dhcp-option DNS x", "dhcp-option DOMAIN", "route-ipv6 10.0.0.0/8", "route fd00::/64"),
        "stock hands it on as it is, to a script or to ip(8)",
    ),
    **dict.fromkeys(("hand-window 0", "tls-timeout 0", "tran-window 0"), "nothing is done in no time"),
    **dict.fromkeys(("max-packet-size 100", "max-packet-size 2100"), "control packets are of 154 to 2,048 bytes"),
    "mssfix 100": "TCP would be left without room",
    **dict.fromkeys(
        ("port 0", "port x", "rport 0", "remote x.example 0", "remote x.example 65536", "remote x.example x"), LATER
    ),
    "remote [::1]": LATER,
    "proto tcp-server": "it is a server's",
    "remote-cert-ku x": "stock takes it for 0, which asks for nothing",
    "reneg-sec -1": "no time is negative",
    "resolv-retry x": "stock takes it for 0",
    "route 10.0.0.0 255.0.255.0": LATER,
    "route x.example": "names in routes aren't resolved",
    "static-challenge Code 2": "stock takes it for 1",
    "tls-cert-profile foo": LATER,
    "tun-mtu 90": "less than 100 bytes leave no room",
}
WINDOWS = "a setting for Windows, where stock takes it"
NEWER = "a setting of OpenVPN 2.7"
WIDER = {
    **dict.fromkeys(
        (
            *("block-outside-dns", "dhcp-pre-release", "dhcp-release", "dhcp-renew", "ip-win32", "pause-exit"),
            *("register-dns", "service", "show-net-up", "tap-sleep", "win-sys", "windows-driver"),
        ),
        WINDOWS,
    ),
    **dict.fromkeys(
        ("dns-updown", "route-table", "data-ciphers DEFAULT", "static-challenge Code 1 concat"),
        NEWER,
    ),
    "iproute": "stock takes it where it was built to call ip(8)",
    "setcon": "stock takes it where it was built for SELinux",
}


def main() -> None:
    """Writes the table anew."""
    with tempfile.TemporaryDirectory() as place:
        fill(Path(place))
        rows = table(compare_all(Path(place)))
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(HEAD[0])] + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
