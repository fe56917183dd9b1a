"""A PKI that Debian's easy-rsa made, taken over by `ginnel serve --import`, and its users' stock clients."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.harness.network import SERVER, Network
from tests.harness.process import Process, run
from tests.interop.test_serve_cli import GINNEL, connected, serving

EASY_RSA = "/usr/share/easy-rsa/easyrsa"


def test_users_of_an_easy_rsa_keep_their_files_and_who_was_revoked_stays_out(network: Network, tmp_path: Path) -> None:
    pki, state = tmp_path / "pki", tmp_path / "state"
    made = f"EASYRSA_BATCH=1 EASYRSA_ALGO=ec EASYRSA_PKI={pki} {EASY_RSA}"
    for command in (
        *("init-pki", "build-ca nopass", "build-server-full vpn nopass"),
        *(f"build-client-full {name} nopass" for name in ("alice", "bob", "carol")),
        *("revoke bob", "gen-crl"),
    ):
        run(["sh", "-c", f"{made} {command}"], timeout=60)
    run(["openvpn", "--genkey", "secret", pki / "tc.key"])
    files = {name: _file(pki, name, tmp_path) for name in ("alice", "carol")}
    # What was bob's key still is; only his certificate was moved away.
    files["bob"] = tmp_path / "bob.ovpn"
    (revoked,) = (pki / "revoked/certs_by_serial").glob("*.crt")
    (key,) = (pki / "revoked/private_by_serial").glob("*.key")
    files["bob"].write_text(_text(pki, revoked, key))

    with serving(network, tmp_path, "--import", pki) as server:
        with connected(network, files["alice"]):
            pass
        for name, reason in (("bob", "the certificate is revoked"), ("carol", "the certificate is revoked")):
            if name == "carol":
                run([*GINNEL, "user", "revoke", "carol", "--dir", state])
            with _client(network, files[name]) as client:
                client.wait_line(f"AUTH_FAILED,{reason}", 30)
        assert server.running
    (tmp_path / "crl.pem").write_text(run([*GINNEL, "user", "crl", "--dir", state]))
    verify = ["openssl", "verify", "-crl_check", "-CAfile", pki / "ca.crt", "-CRLfile", tmp_path / "crl.pem"]
    for certificate, good in ((pki / "issued/alice.crt", True), (pki / "issued/carol.crt", False), (revoked, False)):
        found = subprocess.run([*map(str, verify), str(certificate)], capture_output=True, text=True, check=False)
        assert (found.returncode == 0, "certificate revoked" in found.stderr) == (good, not good), found.stderr


def _client(network: Network, file: Path) -> Process:
    return network.client.start(["openvpn", "--config", file, "--dev", "tun9", "--disable-dco", "--verb", "3"])


def _file(pki: Path, name: str, folder: Path) -> Path:
    file = folder / f"{name}.ovpn"
    file.write_text(_text(pki, pki / f"issued/{name}.crt", pki / f"private/{name}.key"))
    return file


def _text(pki: Path, certificate: Path, key: Path) -> str:
    blocks = {"ca": pki / "ca.crt", "cert": certificate, "key": key, "tls-crypt": pki / "tc.key"}
    lines = ["client", "dev tun", "nobind", "remote-cert-tls server", f"remote {SERVER} 1194 udp"]
    return "\n".join([*lines, *(f"<{tag}>\n{path.read_text()}</{tag}>" for tag, path in blocks.items())]) + "\n"
