"""Every option, once to stock OpenVPN and once to ginnel: both take it, both refuse it, or the table in
docs/check.md says why not.

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
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("differential")
    fill(folder)
    return compare_all(folder)


def test_stock_and_ginnel_agree_or_the_difference_is_listed(outcomes: dict[str, Outcome]) -> None:
    assert len(outcomes) > 250
    assert table(outcomes) == listed(), "run: python -m tests.interop.test_differential"


def test_what_stock_takes_and_we_refuse_has_its_reason_from_the_one_table(outcomes: dict[str, Outcome]) -> None:
    for name, outcome in outcomes.items():
        if not outcome.stock and outcome.ours:
            directive = DIRECTIVES.get(name)
            assert directive is not None, f"stock takes {outcome.line!r}, and we don't know it"
            assert directive.verdict is Verdict.REFUSED or name in NARROWER, outcome
        elif outcome.stock and not outcome.ours:
            assert name in WIDER, outcome


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


def compare_all(folder: Path) -> dict[str, Outcome]:
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda name: compare(folder, name), sorted(names()))
        return {outcome.name: outcome for outcome in found}


def names() -> set[str]:
    """What stock's own help names, and what it doesn't but our table does."""
    shown = subprocess.run(["openvpn", "--help"], capture_output=True, text=True, check=False).stdout
    return (set(re.findall(r"^--([a-z0-9-]+)", shown, re.M)) | set(DIRECTIVES)) - COMMANDS


def compare(folder: Path, name: str) -> Outcome:
    """Written as stock takes it, if there is such a way."""
    lines = [f"{name} {words}".strip() for words in SAMPLES.get(name, GUESSES)]
    tried = [(line, ask_stock(folder, name, line)) for line in lines]
    line, complaint = next((pair for pair in tried if not pair[1]), tried[0])
    file = write(folder, name, line)
    report = report_ovpn(file)
    refused = [finding.text for finding in report.findings if finding.verdict is Verdict.REFUSED]
    return Outcome(name, line, complaint, "; ".join(refused))


def ask_stock(folder: Path, name: str, line: str) -> str:
    """What stock says against it, "" for nothing."""
    said = subprocess.run(
        ["openvpn", "--config", write(folder, name, line)],
        cwd=folder / name,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    complaints = re.findall("(?:Options error|Error): (.*)", said)
    own = [text for text in complaints if "writepid" not in text and not text.startswith("Please correct")]
    return "" if "--writepid fails with" in said and not own else (own or ["it ends"])[0]


def write(folder: Path, name: str, line: str) -> Path:
    """Each option has a folder of its own: some write files."""
    (folder / name).mkdir(exist_ok=True)
    file = folder / name / "client.ovpn"
    without = {name, DROPPED.get(name)} - {"remote"}
    own = [text for text in BASE.splitlines() if text.split()[0] not in without]
    file.write_text("\n".join([*own, *EXTRA.get(name, []), line, "writepid /nonexistent/pid", ""]))
    return file


def table(outcomes: dict[str, Outcome]) -> list[str]:
    rows = list(HEAD)
    for name, outcome in sorted(outcomes.items()):
        if bool(outcome.stock) == bool(outcome.ours):
            continue
        why = WIDER.get(name) or NARROWER.get(name) or DIRECTIVES[name].text
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
    "allow-compression": ("no",),
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
    "auth": ("SHA256",),
    "auth-retry": ("nointeract",),
    "auth-user-pass": ("../login",),
    "bind": ("",),
    "ca": ("../ca.crt",),
    "cert": ("../own.crt",),
    "cipher": ("AES-256-GCM",),
    "comp-lzo": ("no", ""),
    "compat-mode": ("2.4.0",),
    "compress": ("stub-v2",),
    "crl-verify": ("../revoked.pem",),
    "data-ciphers": ("AES-256-GCM",),
    "ncp-ciphers": ("AES-256-GCM",),
    "data-ciphers-fallback": ("AES-128-GCM",),
    "dev": ("tun",),
    "dev-type": ("tap",),
    "fragment": ("1400",),
    "capath": (".",),
    "ns-cert-type": ("server",),
    "tls-verify": ("/bin/true",),
    "providers": ("default",),
    "client-nat": ("snat 10.0.0.0 255.0.0.0 10.1.0.0",),
    "ecdh-curve": ("secp384r1",),
    "dhcp-option": ("DNS 10.0.0.1",),
    "dns": ("server 1 address 10.0.0.1",),
    "extra-certs": ("../ca.crt",),
    "http-proxy": ("192.0.2.9 8080",),
    "http-proxy-option": ("AGENT x",),
    "http-proxy-user-pass": ("../login",),
    "ifconfig": ("10.0.0.1 10.0.0.2",),
    "ifconfig-ipv6": ("fd00::1/64 fd00::2",),
    "keepalive": ("10 60",),
    "key": ("../own.key",),
    "local": ("192.0.2.2",),
    "max-packet-size": ("1200",),
    "management-client-group": ("root",),
    "management-client-user": ("root",),
    "management-log-cache": ("5",),
    "mode": ("p2p",),
    "mssfix": ("1400",),
    "peer-fingerprint": (":".join(["AA"] * 32),),
    "proto": ("tcp-client",),
    "proto-force": ("udp",),
    "pull-filter": ("ignore route",),
    "redirect-gateway": ("def1",),
    "redirect-private": ("def1",),
    "remote": ("192.0.2.9 1194 udp",),
    "remote-cert-eku": ("1.3.6.1.5.5.7.3.1",),
    "remote-cert-ku": ("a0", ""),
    "remote-cert-tls": ("server",),
    "resolv-retry": ("infinite",),
    "route": ("10.0.0.0 255.0.0.0",),
    "route-gateway": ("10.0.0.1",),
    "route-ipv6": ("fd00::/64",),
    "setenv": ("NAME value",),
    "socks-proxy": ("192.0.2.9 1080",),
    "static-challenge": ("Code 1",),
    "tls-auth": ("../static.key 1",),
    "tls-cert-profile": ("preferred",),
    "tls-cipher": ("DEFAULT",),
    "tls-ciphersuites": ("TLS_AES_256_GCM_SHA384",),
    "tls-crypt": ("../static.key",),
    "tls-crypt-v2": ("../client.key",),
    "tls-groups": ("X25519",),
    "tls-version-max": ("1.3",),
    "tls-version-min": ("1.2",),
    "topology": ("subnet",),
    "tun-mtu": ("1400",),
    "tun-mtu-max": ("1700",),
    "verify-hash": (":".join(["AA"] * 20),),
    "verify-x509-name": ("server name",),
    "x509-username-field": ("CN",),
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
NARROWER: dict[str, str] = {}
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
    **dict.fromkeys(("dns-updown", "route-table"), NEWER),
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
