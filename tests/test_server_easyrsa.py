"""A server that begins with the keys and users of an easy-rsa. (The folder's layout is that of easy-rsa 3.1.)"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

import ginnel
from ginnel.errors import AuthError, ConfigError
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.openvpn.tls_crypt_v2 import ServerKey, TlsCryptV2Server
from ginnel.openvpn.tls_settings import VerifyName
from ginnel.openvpn.wrap import StaticKey, TlsCrypt
from ginnel.server import Listen, Server, ServerConfig
from ginnel.server.client_file import client_file
from ginnel.server.easyrsa import read_pki
from ginnel.server.store import Store, open_store
from tests.harness.pki import Authority, Identity, static_key
from tests.harness.process import Process, parse_event


class Pki:
    """Written by us as easy-rsa does: a line of index.txt a certificate, and revoked ones moved away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority("Old CA")
        for name in ("private", "issued", "certs_by_serial", "revoked/certs_by_serial"):
            (folder / name).mkdir(parents=True)
        (folder / "ca.crt").write_text(f"Certificate:\n    Data:\n{self.authority.certificate}")
        (folder / "private/ca.key").write_text(self.authority.key)
        (folder / "index.txt").touch()

    def issue(self, name: str, *, server: bool = False, revoked: bool = False) -> Identity:
        identity = self.authority.issue(name, server=server)
        serial = f"{x509.load_pem_x509_certificate(identity.certificate.encode()).serial_number:X}"
        places = (
            (f"revoked/certs_by_serial/{serial}.crt",)
            if revoked
            else (f"issued/{name}.crt", f"certs_by_serial/{serial}.pem")
        )
        for place in places:
            (self.folder / place).write_text(identity.certificate)
        (self.folder / f"private/{name}.key").write_text(identity.key)
        status, when = ("R", "261123085050Z") if revoked else ("V", "")
        with (self.folder / "index.txt").open("a") as index:
            index.write(f"{status}\t290225085049Z\t{when}\t{serial}\tunknown\t/CN={name}\n")
        return identity


def serial(identity: Identity) -> int:
    return x509.load_pem_x509_certificate(identity.certificate.encode()).serial_number


def client(pki: Pki, identity: Identity, server: Server, key: str, folder: Path) -> ginnel.Vpn:
    """With a file as easy-rsa's users have them."""
    port = next(place.port for place in server.places if place.proto == "udp")
    blocks = {"ca": pki.authority.certificate, "cert": identity.certificate, "key": identity.key, "tls-crypt": key}
    lines = ["client", "dev tun", "nobind", "remote-cert-tls server", "verify-x509-name vpn name"]
    lines += [f"remote 127.0.0.1 {port} udp", *(f"<{tag}>\n{text}</{tag}>" for tag, text in blocks.items())]
    (folder / "client.ovpn").write_text("\n".join(lines))
    return ginnel.connect(read_ovpn(folder / "client.ovpn"), timeout=20)


@contextlib.asynccontextmanager
async def serving(store: Store, key: str) -> AsyncIterator[Server]:
    wrap = TlsCryptV2Server(ServerKey.parse(store.identity.tls_crypt_v2), fallback=TlsCrypt(StaticKey.parse(key)))
    async with Server(store, ServerConfig(listen=Listen.parse("127.0.0.1:0"), wrap=wrap)) as server:
        yield server


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    pki = Pki(tmp_path / "pki")
    pki.issue("vpn", server=True)
    return pki


async def test_an_imported_users_present_file_connects(pki: Pki, tmp_path: Path) -> None:
    alice = pki.issue("alice")
    key = static_key()
    (tmp_path / "tc.key").write_text(key)
    store = open_store(tmp_path / "state", read_pki(tmp_path))
    assert store.imported_wrap() == ("tls-crypt", key)
    async with serving(store, key) as server, client(pki, alice, server, key, tmp_path) as vpn:
        await vpn.ping("10.8.0.1", timeout=20)
        assert [client.name for client in server.clients] == ["alice"]
    await asyncio.to_thread(store.close)


async def test_a_renewal_takes_every_imported_certificate_back(pki: Pki, tmp_path: Path) -> None:
    """The older one's file lies among all others, as easy-rsa leaves it where a user got a second certificate."""
    older, newer = pki.issue("alice"), pki.issue("alice")
    key = static_key()
    store = open_store(tmp_path / "state", read_pki(pki.folder))
    async with serving(store, key) as server:
        async with client(pki, older, server, key, tmp_path) as vpn:
            await vpn.ping("10.8.0.1", timeout=20)
            await asyncio.to_thread(store.renew_user, "alice")
            with pytest.raises(AuthError, match="the certificate was replaced by a new one"):
                await asyncio.wait_for(vpn.wait_closed(), 20)
        for identity in (older, newer):
            with pytest.raises(AuthError, match="the certificate was replaced by a new one"):
                async with client(pki, identity, server, key, tmp_path):
                    pass
    await asyncio.to_thread(store.close)


def test_certificates_whose_files_are_gone_are_known_by_the_index(pki: Pki, tmp_path: Path) -> None:
    older, newer = pki.issue("alice"), pki.issue("alice")
    (pki.folder / f"certs_by_serial/{serial(older):X}.pem").unlink()
    stranger = pki.authority.issue("alice")
    with contextlib.closing(open_store(tmp_path / "state", read_pki(pki.folder))) as store:
        assert [store.is_revoked(serial(each)) for each in (older, newer, stranger)] == [False, False, True]
        store.revoke_user("alice")
        assert [store.is_revoked(serial(each)) for each in (older, newer)] == [True, True]
        listed = x509.load_pem_x509_crl(store.revocation_list().encode())
        assert {entry.serial_number for entry in listed} == {serial(older), serial(newer)}


def test_what_was_revoked_there_keeps_its_date_here(pki: Pki, tmp_path: Path) -> None:
    bob = pki.issue("bob", revoked=True)
    with contextlib.closing(open_store(tmp_path / "state", read_pki(pki.folder))) as store:
        (entry,) = x509.load_pem_x509_crl(store.revocation_list().encode())
        assert entry.serial_number == serial(bob)
        assert entry.revocation_date_utc == datetime(2026, 11, 23, 8, 50, 50, tzinfo=UTC)


def test_of_several_servers_certificates_the_one_whose_key_is_there_is_taken(pki: Pki, tmp_path: Path) -> None:
    vpn = pki.issue("vpn", server=True)
    (pki.folder / "issued/older.crt").write_text(pki.authority.issue("vpn", server=True, days=900).certificate)
    pki.issue("vpn", server=True, revoked=True)
    (pki.folder / "private/vpn.key").write_text(vpn.key)
    imported = read_pki(pki.folder)
    assert imported.server is not None
    assert imported.server[1] == vpn.certificate


def test_who_was_revoked_there_is_revoked_here(pki: Pki, tmp_path: Path) -> None:
    pki.issue("bob", revoked=True)
    old = pki.issue("carol", revoked=True)
    new = pki.issue("carol")
    with contextlib.closing(open_store(tmp_path / "state", read_pki(pki.folder))) as store:
        users = {user.name: user for user in store.users()}
        assert (users["bob"].revoked, users["carol"].revoked) == (True, False)
        for identity, revoked in ((old, True), (new, False)):
            assert store.is_revoked(serial(identity)) is revoked
        listed = x509.load_pem_x509_crl(store.revocation_list().encode())
        assert len(list(listed)) == 2
        assert store.add_user("dave").certificate


def test_an_import_says_what_it_took_and_what_not(pki: Pki, tmp_path: Path) -> None:
    pki.issue("alice")
    pki.issue("bob", revoked=True)
    pki.issue("odd name")
    command = [sys.executable, "-m", "ginnel", "serve", "--json", "--dir", tmp_path / "state", "--import", tmp_path]
    with Process([*command, "--listen", "127.0.0.1:0"]) as server:
        server.wait_line('"event": "up"', 60)
        assert server.stop() == 0, str(server)
        said = [parse_event(line) for line in server.out.all()]
    assert {"event": "imported", "users": 2, "revoked": 1} in said
    left_out = " ".join(each["what"] for each in said if each["event"] == "not_imported")
    assert "no tc.key or ta.key" in left_out
    assert "odd name" in left_out


def test_without_the_authoritys_key_nobody_is_added_but_anyone_revoked(pki: Pki, tmp_path: Path) -> None:
    alice = pki.issue("alice")
    (pki.folder / "private/ca.key").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nx\n")
    imported = read_pki(pki.folder)
    assert "encrypted" in imported.left_out[0]
    with contextlib.closing(open_store(tmp_path / "state", imported)) as store:
        with pytest.raises(ConfigError, match="is not here"):
            store.add_user("bob")
        assert store.renewal("alice") == "a new one from the authority's own easy-rsa"
        # Where its key is, others are made that nobody tells us of.
        assert not store.is_revoked(serial(pki.authority.issue("alice")))
        store.revoke_user("alice")
        user = store.user("alice")
        assert user is not None
        assert user.revoked
        assert store.is_revoked(serial(alice))
        with pytest.raises(ConfigError, match="is not here"):
            store.revocation_list()


def test_a_servers_name_may_have_a_space(pki: Pki, tmp_path: Path) -> None:
    (pki.folder / "private/vpn.key").unlink()
    pki.issue("Our VPN", server=True)
    with contextlib.closing(open_store(tmp_path / "state", read_pki(pki.folder))) as store:
        issued = store.add_user("alice")
        places = [("udp", "192.0.2.9", 1194)]
        text = client_file(store.identity, issued, store.make_wrap_key(), places, password=False)
    (tmp_path / "alice.ovpn").write_text(text)
    assert read_ovpn(tmp_path / "alice.ovpn").verify_x509_name == VerifyName("Our VPN", "name")


def test_any_authority_of_easy_rsa_signs_here(tmp_path: Path) -> None:
    """Made by OpenSSL, as easy-rsa makes it."""
    for number, algorithm in enumerate(("ED25519", "RSA", "EC -pkeyopt ec_paramgen_curve:secp384r1")):
        folder = tmp_path / str(number) / "pki"
        (folder / "private").mkdir(parents=True)
        words = f"req -x509 -newkey {algorithm} -keyout private/ca.key -out ca.crt -noenc -subj /CN=Old"
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
        with contextlib.closing(open_store(tmp_path / f"state{number}", read_pki(folder))) as store:
            issued = store.add_user("alice")
            (folder / "trust").write_text(store.identity.ca + store.revocation_list())
            (folder / "cert").write_text(issued.certificate)
            verify = ["openssl", "verify", "-crl_check", "-purpose", "sslclient", "-CAfile", "trust", "cert"]
            subprocess.run(verify, cwd=folder, check=True, capture_output=True)


def test_names_that_could_do_harm_are_left_out(pki: Pki, tmp_path: Path) -> None:
    pki.issue("odd name")
    with contextlib.closing(open_store(tmp_path / "state", read_pki(pki.folder))) as store:
        assert store.users() == []


def test_what_is_there_is_not_imported_over(pki: Pki, tmp_path: Path) -> None:
    open_store(tmp_path / "state").close()
    with pytest.raises(ConfigError, match="keys and users already"):
        open_store(tmp_path / "state", read_pki(pki.folder))


def test_what_is_no_pki_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.crt: No such file or directory; name its pki folder"):
        read_pki(tmp_path)
    (tmp_path / "ca.crt").write_text("nothing")
    with pytest.raises(ConfigError, match="no certificate"):
        read_pki(tmp_path)
