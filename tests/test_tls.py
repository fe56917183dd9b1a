import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ginnel.errors import ConfigError
from ginnel.openvpn.tls import (
    TlsConnection,
    TlsContext,
    TlsError,
    TlsSettings,
    VerifyName,
)
from ginnel.testing import Authority

AUTHORITY = Authority()
SERVER = AUTHORITY.issue("vpn.example.org", "server")
CLIENT = AUTHORITY.issue("bob", "client")
CLIENT_SETTINGS = TlsSettings(ca=AUTHORITY.pem, cert=CLIENT[0], key=CLIENT[1])
SERVER_SETTINGS = TlsSettings(ca=AUTHORITY.pem, cert=SERVER[0], key=SERVER[1])


def fingerprint(pem: str) -> str:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    return x509.load_pem_x509_certificate(pem.encode()).fingerprint(SHA256()).hex(":")


def shake_hands(client: TlsSettings, server: TlsSettings) -> tuple[TlsConnection, TlsConnection]:
    return meet(TlsContext(client, server=False), TlsContext(server, server=True))


def meet(client: TlsContext, server: TlsContext) -> tuple[TlsConnection, TlsConnection]:
    ends = client.connect(), server.connect()
    for _ in range(6):
        for end, other in (ends, ends[::-1]):
            end.step()
            other.feed(end.take_output(100_000))
        for end in ends:
            end.read()
    assert all(end.established for end in ends)
    return ends


def refusal(client: TlsSettings, server: TlsSettings = SERVER_SETTINGS) -> TlsError:
    with pytest.raises(TlsError) as caught:
        shake_hands(client, server)
    return caught.value


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_both_sides_see_each_other_and_export_the_same_keys(version: str) -> None:
    client, server = shake_hands(replace(CLIENT_SETTINGS, version_max=version), SERVER_SETTINGS)
    assert client.version == server.version == f"TLSv{version}"
    assert (client.peer_common_name, server.peer_common_name) == ("vpn.example.org", "bob")
    assert client.export(b"EXPORTER-x", 256) == server.export(b"EXPORTER-x", 256)
    assert client.export(b"EXPORTER-x", 32) != client.export(b"EXPORTER-y", 32)


def test_a_client_that_is_silent_costs_a_server_little_memory() -> None:
    """In a process of its own, where nobody else's memory is free for it."""
    script = (
        "from pathlib import Path; from tests.test_tls import *\n"
        "def pages(): return int(Path('/proc/self/statm').read_text().split()[1])\n"
        "client, server = TlsContext(CLIENT_SETTINGS, server=False), TlsContext(SERVER_SETTINGS, server=True)\n"
        "held = [meet(client, server)[1] for _ in range(20)]\n"
        "before = pages()\n"
        "held += [meet(client, server)[1] for _ in range(200)]\n"
        "print((pages() - before) * 4 / 200)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    # 66 KiB with room for records that come and go, 39 without.
    assert float(run.stdout) < 52


def test_records_stay_apart() -> None:
    client, server = shake_hands(CLIENT_SETTINGS, SERVER_SETTINGS)
    for text in (b"one\0", b"two\0"):
        client.write(text)
    client.step()
    server.feed(client.take_output(100_000))
    assert [server.read() for _ in range(3)] == [b"one\0", b"two\0", None]


def test_a_damaged_record_is_answered_with_an_alert() -> None:
    client, server = shake_hands(CLIENT_SETTINGS, SERVER_SETTINGS)
    client.write(b"one\0")
    client.step()
    record = client.take_output(100_000)
    server.feed(record[:-1] + bytes([record[-1] ^ 1]))
    with pytest.raises(TlsError):
        server.read()
    client.feed(server.take_output(100_000))
    with pytest.raises(TlsError, match="alert bad record mac"):
        client.read()


def test_output_comes_in_the_pieces_that_are_asked_for() -> None:
    client = TlsContext(CLIENT_SETTINGS, server=False).connect()
    client.step()
    pieces = []
    while client.pending_output:
        pieces.append(client.take_output(100))
    assert {len(piece) for piece in pieces[:-1]} == {100}
    assert pieces[0].startswith(b"\x16\x03")


def test_a_certificate_of_another_ca() -> None:
    other = Authority("Other CA", seed=1)
    error = refusal(replace(CLIENT_SETTINGS, ca=other.pem))
    assert "the server's certificate is not signed by the given CA (" in str(error)
    assert "self-signed certificate in chain, CN=Test CA" in str(error)
    assert not error.retry


def test_the_server_refuses_a_certificate_of_another_ca() -> None:
    cert, key = Authority("Other CA", seed=1).issue("mallory", "client")
    error = refusal(replace(CLIENT_SETTINGS, cert=cert, key=key))
    assert "the client's certificate is not signed by the given CA" in str(error)


def test_an_expired_certificate() -> None:
    cert, key = AUTHORITY.issue("old", "server", until=datetime(2021, 5, 4, tzinfo=UTC))
    error = refusal(CLIENT_SETTINGS, replace(SERVER_SETTINGS, cert=cert, key=key))
    assert "the server's certificate expired on 2021-05-04 00:00 UTC (CN=old)" in str(error)


def test_remote_cert_tls() -> None:
    strict = replace(CLIENT_SETTINGS, remote_cert_tls="server")
    shake_hands(strict, SERVER_SETTINGS)
    cert, key = AUTHORITY.issue("vague", None)
    error = refusal(strict, replace(SERVER_SETTINGS, cert=cert, key=key))
    assert "remote-cert-tls asks for a server's" in str(error)


def test_a_clients_certificate_is_no_servers() -> None:
    # OpenSSL itself refuses the purpose; the text still names the reason.
    error = refusal(CLIENT_SETTINGS, replace(SERVER_SETTINGS, cert=CLIENT[0], key=CLIENT[1]))
    assert "made for another purpose" in str(error)


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        (VerifyName("vpn.example.org", "name"), True),
        (VerifyName("vpn.example", "name"), False),
        (VerifyName("vpn.", "name-prefix"), True),
        (VerifyName("www.", "name-prefix"), False),
        (VerifyName("CN=vpn.example.org", "subject"), True),
        (VerifyName("CN=vpn", "subject"), False),
    ],
)
def test_verify_x509_name(name: VerifyName, fits: bool) -> None:
    settings = replace(CLIENT_SETTINGS, verify_name=name)
    if fits:
        shake_hands(settings, SERVER_SETTINGS)
    else:
        assert "verify-x509-name asks for (CN=vpn.example.org)" in str(refusal(settings))


def test_a_fingerprint_alone_is_enough() -> None:
    good = replace(CLIENT_SETTINGS, ca=None, peer_fingerprints=(fingerprint(SERVER[0]),))
    shake_hands(good, SERVER_SETTINGS)
    error = refusal(replace(good, peer_fingerprints=(fingerprint(CLIENT[0]),)))
    assert "fingerprint that isn't in the list" in str(error)
    assert fingerprint(SERVER[0]) in str(error)


def test_with_a_ca_a_fingerprint_is_one_more_condition() -> None:
    other = Authority("Other CA", seed=1)
    settings = replace(CLIENT_SETTINGS, peer_fingerprints=(fingerprint(SERVER[0]),))
    shake_hands(settings, SERVER_SETTINGS)
    assert "not signed" in str(refusal(replace(settings, ca=other.pem)))


def test_an_expired_certificate_with_the_right_fingerprint_is_accepted_as_in_stock() -> None:
    cert, key = AUTHORITY.issue("old", "server", until=datetime(2021, 5, 4, tzinfo=UTC))
    settings = replace(CLIENT_SETTINGS, ca=None, peer_fingerprints=(fingerprint(cert),))
    theirs = replace(SERVER_SETTINGS, cert=cert, key=key)
    shake_hands(settings, theirs)
    assert "expired" in str(refusal(replace(settings, ca=AUTHORITY.pem), theirs))


def test_a_client_without_certificate() -> None:
    bare = replace(CLIENT_SETTINGS, cert=None, key=None)
    assert "sent no certificate" in str(refusal(bare))
    shake_hands(bare, replace(SERVER_SETTINGS, client_certificate=False))


def test_no_tls_version_in_common() -> None:
    error = refusal(replace(CLIENT_SETTINGS, version_max="1.2"), replace(SERVER_SETTINGS, version_min="1.3"))
    assert "the two sides share no TLS version" in str(error)
    assert not error.retry


def test_damaged_bytes_may_go_better_next_time() -> None:
    client = TlsContext(CLIENT_SETTINGS, server=False).connect()
    client.step()
    client.feed(b"\x16\x03\x03\x00\x04abcd")
    with pytest.raises(TlsError) as caught:
        client.step()
    assert caught.value.retry
    assert client.pending_output


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ca": None}, "neither ca nor peer-fingerprint"),
        ({"ca": "nonsense"}, "not a certificate"),
        ({"cert": None}, "together"),
        ({"key": SERVER[1]}, "refuses the certificate with its key"),
        ({"key": "nonsense"}, "not a private key"),
        ({"version_min": "1.4"}, "'1.4' is no TLS version"),
        ({"peer_fingerprints": ("aa:bb",)}, "not a SHA256 fingerprint"),
        ({"cipher_list": "NONSENSE"}, "OpenSSL knows none"),
        ({"cipher_suites": "NONSENSE"}, "OpenSSL refuses"),
        ({"crl": "nonsense"}, "not a revocation list"),
    ],
)
def test_settings_that_openssl_does_not_take(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        TlsContext(replace(CLIENT_SETTINGS, **changes), server=False)  # type: ignore[arg-type]


def test_keys_are_not_shown() -> None:
    assert "PRIVATE" not in repr(SERVER_SETTINGS)
