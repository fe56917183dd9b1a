"""A server that begins with the keys and users of an easy-rsa. (The folder's layout is that of easy-rsa 3.1.)"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from cryptography import x509

import ginnel
from ginnel.errors import ConfigError
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.openvpn.tls_crypt_v2 import ServerKey, TlsCryptV2Server
from ginnel.openvpn.wrap import StaticKey, TlsCrypt
from ginnel.server import Listen, Server, ServerConfig
from ginnel.server.easyrsa import read_pki
from ginnel.server.store import open_store
from tests.harness.pki import Authority, Identity, static_key


class Pki:
    """Written by us as easy-rsa does: a line of index.txt a certificate, and revoked ones moved away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority("Old CA")
        for name in ("private", "issued", "revoked/certs_by_serial"):
            (folder / name).mkdir(parents=True)
        (folder / "ca.crt").write_text(f"Certificate:\n    Data:\n{self.authority.certificate}")
        (folder / "private/ca.key").write_text(self.authority.key)
        (folder / "index.txt").touch()

    def issue(self, name: str, *, server: bool = False, revoked: bool = False) -> Identity:
        identity = self.authority.issue(name, server=server)
        serial = f"{x509.load_pem_x509_certificate(identity.certificate.encode()).serial_number:X}"
        place = f"revoked/certs_by_serial/{serial}" if revoked else f"issued/{name}"
        (self.folder / f"{place}.crt").write_text(identity.certificate)
        (self.folder / f"private/{name}.key").write_text(identity.key)
        status, when = ("R", "261123085050Z") if revoked else ("V", "")
        with (self.folder / "index.txt").open("a") as index:
            index.write(f"{status}\t290225085049Z\t{when}\t{serial}\tunknown\t/CN={name}\n")
        return identity


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
    wrap = TlsCryptV2Server(ServerKey.parse(store.identity.tls_crypt_v2), fallback=TlsCrypt(StaticKey.parse(key)))
    async with Server(store, ServerConfig(listen=Listen.parse("127.0.0.1:0"), wrap=wrap)) as server:
        place = next(place for place in server.places if place.proto == "udp")
        blocks = {"ca": pki.authority.certificate, "cert": alice.certificate, "key": alice.key, "tls-crypt": key}
        lines = ["client", "dev tun", "nobind", "remote-cert-tls server", "verify-x509-name vpn name"]
        lines += [f"remote 127.0.0.1 {place.port} udp", *(f"<{tag}>\n{text}</{tag}>" for tag, text in blocks.items())]
        (tmp_path / "alice.ovpn").write_text("\n".join(lines))
        async with ginnel.connect(read_ovpn(tmp_path / "alice.ovpn")) as vpn:
            await vpn.ping("10.8.0.1", timeout=20)
            assert [client.name for client in server.clients] == ["alice"]
    await asyncio.to_thread(store.close)


def test_who_was_revoked_there_is_revoked_here(pki: Pki, tmp_path: Path) -> None:
    pki.issue("bob", revoked=True)
    old = pki.issue("carol", revoked=True)
    new = pki.issue("carol")
    with contextlib.closing(open_store(tmp_path / "state", read_pki(pki.folder))) as store:
        users = {user.name: user for user in store.users()}
        assert (users["bob"].revoked, users["carol"].revoked) == (True, False)
        for identity, revoked in ((old, True), (new, False)):
            number = x509.load_pem_x509_certificate(identity.certificate.encode()).serial_number
            assert store.is_revoked(number) is revoked
        listed = x509.load_pem_x509_crl(store.identity.crl.encode())
        assert len(list(listed)) == 2
        assert store.add_user("dave").certificate


def test_without_the_authoritys_key_nobody_is_added_but_anyone_revoked(pki: Pki, tmp_path: Path) -> None:
    pki.issue("alice")
    (pki.folder / "private/ca.key").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nx\n")
    imported = read_pki(pki.folder)
    assert "encrypted" in imported.left_out[0]
    with contextlib.closing(open_store(tmp_path / "state", imported)) as store:
        with pytest.raises(ConfigError, match="is not here"):
            store.add_user("bob")
        store.revoke_user("alice")
        alice = store.user("alice")
        assert alice is not None
        assert alice.revoked


def test_names_that_could_do_harm_are_left_out(pki: Pki, tmp_path: Path) -> None:
    pki.issue("odd name")
    with contextlib.closing(open_store(tmp_path / "state", read_pki(pki.folder))) as store:
        assert store.users() == []


def test_what_is_there_is_not_imported_over(pki: Pki, tmp_path: Path) -> None:
    open_store(tmp_path / "state").close()
    with pytest.raises(ConfigError, match="keys and users already"):
        open_store(tmp_path / "state", read_pki(pki.folder))


def test_what_is_no_pki_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name its pki folder"):
        read_pki(tmp_path)
    (tmp_path / "ca.crt").write_text("nothing")
    with pytest.raises(ConfigError, match="no certificate"):
        read_pki(tmp_path)
