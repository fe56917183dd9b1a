"""Every wrap with every cipher, TLS version and key derivation, against stock OpenVPN."""

from __future__ import annotations

import hashlib
from typing import Literal

import pytest

from tests.harness import office
from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.network import SERVER6, Network
from tests.harness.profile import Profile
from tests.harness.server import StockServer
from tests.harness.socks import get

SIZE = 1 << 20


@pytest.mark.parametrize("derivation", ["prf", "ekm"])
@pytest.mark.parametrize("tls", ["1.2", "1.3"])
@pytest.mark.parametrize("cipher", ["AES-128-GCM", "AES-256-GCM", "CHACHA20-POLY1305"])
@pytest.mark.parametrize("wrap", ["none", "tls-auth", "tls-crypt"])
async def test_cell(
    network: Network,
    ordinary_env: Environment,
    wrap: Literal["none", "tls-auth", "tls-crypt"],
    cipher: str,
    tls: Literal["1.2", "1.3"],
    derivation: str,
) -> None:
    profile = Profile(wrap=wrap, cipher=cipher, tls=tls)
    with (
        StockServer(network, profile) as server,
        GinnelClient(network, ordinary_env, profile, old=derivation == "prf") as client,
    ):
        up = client.wait_up()
        assert up["cipher"] == cipher
        assert up["tls"].startswith(f"TLSv{tls}")
        assert ("tls-ekm" in server.wait_log("'PUSH_REPLY,")) == (derivation == "ekm")
        await fetch(client)
        client.stop()


@pytest.mark.parametrize(
    ("digest", "direction"),
    [
        *((digest, direction) for digest in ("SHA1", "SHA256", "SHA512") for direction in (True, False)),
        *((digest, True) for digest in ("SHA512-256", "SHA3-384", "BLAKE2b512", "BLAKE2s256", "RIPEMD160", "MD5")),
    ],
)
async def test_tls_auth(network: Network, ordinary_env: Environment, digest: str, direction: bool) -> None:
    profile = Profile(wrap="tls-auth", digest=digest, direction=direction)
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as client:
        await fetch(client)
        client.stop()


async def test_outer_ipv6(network: Network, ordinary_env: Environment) -> None:
    profile = Profile(address=SERVER6)
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as client:
        assert client.wait_up()["server"] == f"[{SERVER6}]:1194"
        await fetch(client)
        client.stop()


@pytest.mark.parametrize(
    "pushed",
    ["dns server 1 address 10.77.0.1", "dns server 1 address fd77::1", "dhcp-option DNS6 fd77::1"],
)
async def test_pushed_name_servers(network: Network, ordinary_env: Environment, pushed: str) -> None:
    profile = Profile(names=pushed)
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as client:
        await fetch(client)
        client.stop()


async def fetch(client: GinnelClient) -> None:
    assert client.curl("http://wiki.office/") == office.PAGE.decode()
    content = await get(client.network.client, client.socks, f"/body/{SIZE}")
    assert hashlib.sha256(content).hexdigest() == office.body_hash(SIZE)
