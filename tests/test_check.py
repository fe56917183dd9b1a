"""``ginnel check`` as its user sees it."""

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import pkcs12

from ginnel.cli.check import command
from ginnel.testing import Authority
from tests.test_ovpn_file import AUTHORITY, BASE, STATIC, TRUST, WHOLE, block


def revocation_list(*, until: int) -> str:
    """Of an authority, good until so many days from now."""
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Example CA")])
    builder = x509.CertificateRevocationListBuilder().issuer_name(name)
    builder = builder.last_update(now - timedelta(days=9)).next_update(now + timedelta(days=until))
    return builder.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(serialization.Encoding.PEM).decode()


def container(*, days: int) -> str:
    """A certificate that expires in so many days, and its key, as base64."""
    cert, key = AUTHORITY.issue("bob", "client", until=datetime.now(UTC) + timedelta(days=days))
    data = pkcs12.serialize_key_and_certificates(
        None,
        serialization.load_pem_private_key(key.encode(), None),  # type: ignore[arg-type]
        x509.load_pem_x509_certificate(cert.encode()),
        None,
        serialization.NoEncryption(),
    )
    return base64.encodebytes(data).decode()


def check(folder: Path, text: str, *options: str, mode: int = 0o600) -> Result:
    file = folder / "office.ovpn"
    file.write_text(text)
    file.chmod(mode)
    return CliRunner().invoke(command, [str(file), *options], standalone_mode=False)


def test_each_option_is_said_with_what_becomes_of_it(tmp_path: Path) -> None:
    result = check(tmp_path, WHOLE + "persist-tun\nup /etc/x\nsetenv opt verb 4\nkeepalive 10 60\n")
    assert result.return_value == 0
    lines = [line.split(maxsplit=3) for line in result.stdout.splitlines()]
    assert ["3", "remote", "supported", "tries vpn.example.org, port 1194, by udp"] in lines
    said = {words[1]: (words[2], words[3]) for words in lines if words[0].isdigit()}
    assert said["persist-tun"] == ("ignored", "nothing that would be missed")
    assert said["up"] == ("ignored", "up has no effect: ginnel runs no scripts")
    assert said["keepalive"] == ("supported", "pings every 10 s, connects again after 60 s of silence")
    assert "log level 4" in result.stdout
    assert "unsafe" in result.stdout
    assert "can be used" in result.stdout
    tables = [
        line.index(word) for line in result.stdout.splitlines() for word in ("supported", "unsafe ") if word in line
    ]
    assert len(set(tables)) == 1, result.stdout


def test_what_needs_a_password_and_what_has_no_effect_is_said(tmp_path: Path) -> None:
    cert, key = AUTHORITY.issue("bob", "client")
    locked = serialization.load_pem_private_key(key.encode(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    text = (
        BASE + TRUST + block("cert", cert) + block("key", locked.decode()) + "cipher BF-CBC\ndata-ciphers AES-256-GCM\n"
    )
    said = json.loads(check(tmp_path, text, "--json").stdout)["options"]
    (found,) = [item["text"] for item in said if item["option"] == "key"]
    assert found.endswith("it is encrypted, and its password asked for")
    (found,) = [item for item in said if item["option"] == "cipher"]
    assert (found["verdict"], "used by" in found["text"]) == ("ignored", False)


def test_a_file_that_cannot_be_used_ends_with_2_and_says_all_that_is_to_change(tmp_path: Path) -> None:
    result = check(tmp_path, BASE + TRUST + "fragment 1400\nremoet x\n", "--json")
    assert result.return_value == 2
    report = json.loads(result.stdout)
    assert not report["usable"]
    refused = {item["option"]: item["text"] for item in report["options"] if item["verdict"] == "refused"}
    assert set(refused) == {"fragment", "remoet"}
    assert refused["remoet"].endswith("did you mean 'remote'?")


@pytest.mark.parametrize(
    ("text", "mode", "option"),
    [
        (WHOLE, 0o644, "key"),
        (WHOLE.replace("remote-cert-tls server\n", ""), 0o600, "remote-cert-tls"),
        (WHOLE + "tls-version-min 1.0\n", 0o600, "tls-version-min"),
        (WHOLE, 0o600, "tls-crypt"),
        (WHOLE + block("auth-user-pass", "alice\nhunter2\n"), 0o600, "auth-user-pass"),
        (WHOLE + "redirect-gateway def1\n", 0o600, "redirect-gateway"),
        (WHOLE + "auth-user-pass\nauth-nocache\n", 0o600, "auth-nocache"),
        (WHOLE + "auth none\ndata-ciphers AES-256-GCM:AES-256-CBC\n", 0o600, "auth"),
        (WHOLE + "auth MD5\n" + block("tls-auth", STATIC.emit()), 0o600, "auth"),
        (f"{WHOLE}<connection>\nremote a\n{block('tls-auth', STATIC.emit())}</connection>\nauth MD5\n", 0o600, "auth"),
        (WHOLE + "tls-cipher DEFAULT:@SECLEVEL=0\n", 0o600, "tls-cipher"),
        (WHOLE + "tls-cert-profile insecure\n", 0o600, "tls-cert-profile"),
        (WHOLE + block("crl-verify", revocation_list(until=-1)), 0o600, "crl-verify"),
        (BASE + TRUST + block("pkcs12", container(days=-3)), 0o600, "pkcs12"),
    ],
)
def test_what_is_unsafe_is_said_with_what_to_change(tmp_path: Path, text: str, mode: int, option: str) -> None:
    result = check(tmp_path, text, "--json", mode=mode)
    assert result.return_value == 0
    assert "hunter2" not in result.stdout
    unsafe = {item["option"]: item["instead"] for item in json.loads(result.stdout)["unsafe"]}
    assert unsafe[option]


@pytest.mark.parametrize(
    "text",
    [
        WHOLE + block("auth-user-pass", "alice\nhunter2\n") + "auth-nocache\n",
        WHOLE + "auth none\n",
        WHOLE + "tls-cipher DEFAULT:@SECLEVEL=1\ntls-cert-profile legacy\n",
        WHOLE + block("crl-verify", revocation_list(until=1)),
        BASE + TRUST + block("pkcs12", container(days=300)),
    ],
)
def test_what_is_safe_is_not_called_unsafe(tmp_path: Path, text: str) -> None:
    unsafe = {item["option"] for item in json.loads(check(tmp_path, text, "--json").stdout)["unsafe"]}
    assert unsafe <= {"tls-crypt", "auth-user-pass"}


def test_a_key_that_each_connection_has_is_seen(tmp_path: Path) -> None:
    own = f"<connection>\nremote a\n{block('tls-crypt', STATIC.emit())}</connection>\n"
    for more, missing in (("", False), ("<connection>\nremote b\n</connection>\n", True)):
        said = json.loads(check(tmp_path, WHOLE + own + more, "--json").stdout)["unsafe"]
        assert ("tls-crypt" in [item["option"] for item in said]) == missing


@pytest.mark.parametrize(("mode", "unsafe"), [(0o600, False), (0o640, True)])
def test_a_file_with_the_login_is_to_be_ones_own(tmp_path: Path, mode: int, unsafe: bool) -> None:
    login = tmp_path / "login"
    login.write_text("alice\nhunter2\n")
    login.chmod(mode)
    said = json.loads(check(tmp_path, WHOLE + "auth-user-pass login\n", "--json").stdout)["unsafe"]
    found = [item["instead"] for item in said if item["option"] == "auth-user-pass"]
    assert found == ([f"chmod 600 {login}"] if unsafe else [])


@pytest.mark.parametrize("more", ["redirect-gateway def1 ipv6", "redirect-gateway def1\nblock-ipv6", "route 10.0.0.0"])
def test_a_file_that_lets_no_ipv6_past_is_not_blamed_for_it(tmp_path: Path, more: str) -> None:
    unsafe = json.loads(check(tmp_path, f"{WHOLE}{more}\n", "--json").stdout)["unsafe"]
    assert "redirect-gateway" not in [item["option"] for item in unsafe]


@pytest.mark.parametrize(("days", "said"), [(-3, "expired on"), (10, "expires on"), (400, None)])
def test_a_certificate_that_expires(tmp_path: Path, days: int, said: str | None) -> None:
    authority = Authority("Example CA")
    cert, key = authority.issue("bob", "client", until=datetime.now(UTC) + timedelta(days=days))
    text = BASE + TRUST + block("cert", cert) + block("key", key)
    unsafe = {item["option"]: item["text"] for item in json.loads(check(tmp_path, text, "--json").stdout)["unsafe"]}
    assert (said is None) == ("cert" not in unsafe)
    if said is not None:
        assert said in unsafe["cert"]


def test_what_is_no_file_of_options_is_one_error(tmp_path: Path) -> None:
    result = check(tmp_path, "\0\1\2")
    assert "office.ovpn:1" in str(result.exception)
    result = check(tmp_path, "\0\1\2", "--json")
    report = json.loads(result.stdout)
    assert (result.return_value, report["usable"], len(report["options"])) == (2, False, 1)
    assert "office.ovpn:1" in report["options"][0]["text"]
