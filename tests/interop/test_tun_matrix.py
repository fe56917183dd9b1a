"""Ciphers, wraps and transports on the kernel's device against stock OpenVPN: where long packets are cut and joined."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import pytest

from tests.harness import office
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.server import StockServer
from tests.harness.tun_client import Machine

SIZE = 8 << 20
#: Every cipher's own path, each transport, one thread and several; a wrap is not this path's concern.
CELLS: list[tuple[str, Literal["udp", "tcp"], Literal["none", "tls-auth", "tls-crypt"], int]] = [
    ("AES-256-GCM", "udp", "tls-crypt", 1),
    ("AES-256-GCM", "tcp", "tls-auth", 4),
    ("AES-192-GCM", "udp", "tls-auth", 4),
    ("CHACHA20-POLY1305", "udp", "none", 4),
    ("CHACHA20-POLY1305", "tcp", "tls-crypt", 1),
    ("AES-128-CBC", "udp", "tls-crypt", 4),
    ("AES-128-CBC", "tcp", "none", 1),
]


@pytest.mark.parametrize(("cipher", "transport", "wrap", "threads"), CELLS)
def test_bytes_arrive_both_ways(
    network: Network,
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cipher: str,
    transport: Literal["udp", "tcp"],
    wrap: Literal["none", "tls-auth", "tls-crypt"],
    threads: int,
) -> None:
    monkeypatch.setenv("GINNEL_THREADS", str(threads))
    profile = Profile(
        cipher=cipher, transport=transport, wrap=wrap, server_options=('push "route 10.77.0.0 255.255.255.0"',)
    )
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(office.body(SIZE))
    url = f"http://{office.ADDRESS}/body/{SIZE}"
    with StockServer(network, profile), machine.start(profile) as client:
        assert client.wait_next("up")["cipher"] == cipher
        curl = ("curl", "--silent", "--show-error", "--max-time", "60")
        client.run(*curl, "--output", str(back), url)
        assert hashlib.sha256(back.read_bytes()).hexdigest() == office.body_hash(SIZE)
        assert client.run(*curl, "--upload-file", str(there), url) == office.body_hash(SIZE)
        client.stop()
