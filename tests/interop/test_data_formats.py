"""Data packets of every other format against stock: what breaks where two sides count bytes differently.

Each digest and each header (with and without a peer id) moves every offset of a CBC packet; a framing
moves the inner packet; TCP adds its own. What is not here differs from what is by a key's length alone.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.harness.client import GinnelClient, program_folder, start_program, wait_until
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.server import StockServer
from tests.interop.test_matrix import fetch

CBC = Profile(wrap="none")


def with_auth(cipher: str, auth: str, **options: str) -> Profile:
    lines = (f"auth {auth}",)
    return replace(CBC, cipher=cipher, server_options=lines, client_options=lines, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cipher", "auth"),
    [
        ("AES-128-CBC", "SHA1"),
        ("AES-256-CBC", "SHA256"),
        ("AES-192-CBC", "SHA384"),
        ("AES-256-CBC", "SHA512"),
        ("AES-128-CBC", "none"),
        ("none", "SHA256"),
        ("AES-192-GCM", "none"),
    ],
)
async def test_ciphers(network: Network, ordinary_env: Environment, cipher: str, auth: str) -> None:
    profile = with_auth(cipher, auth)
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as client:
        assert client.wait_up()["cipher"] == cipher
        await fetch(client)
        client.stop()


async def test_cbc_over_tcp(network: Network, ordinary_env: Environment) -> None:
    profile = with_auth("AES-256-CBC", "SHA256", transport="tcp")
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as client:
        await fetch(client)
        client.stop()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("cipher", ["AES-128-CBC", "AES-256-GCM"])
async def test_without_a_peer_id(network: Network, ordinary_env: Environment, cipher: str, transport: str) -> None:
    """P_DATA_V1, as with a client before 2.4."""
    profile = with_auth(cipher, "SHA256", transport=transport)
    with StockServer(network, profile) as server, program_folder(profile) as folder:
        with start_program(network, ordinary_env, folder, _V1 + _FETCH) as process:
            assert process.wait(40) == 0, str(process)
        assert "peer-id" not in server.wait_log("'PUSH_REPLY,")


@pytest.mark.parametrize("cipher", ["AES-256-CBC", "AES-128-GCM"])
def test_a_server_that_negotiates_no_cipher(network: Network, ordinary_env: Environment, cipher: str) -> None:
    """Stock takes the fallback with clients that offer none, and pushes no cipher: both sides must know theirs."""
    fallback = (f"data-ciphers-fallback {cipher}", "auth SHA256")
    profile = Profile(server_options=(*fallback, "verb 4"), client_options=fallback)
    with StockServer(network, profile) as server, program_folder(profile) as folder:
        with start_program(network, ordinary_env, folder, _NO_NCP + _FETCH) as process:
            assert process.wait(40) == 0, str(process)
        assert "cipher" not in server.wait_log("'PUSH_REPLY,")


@pytest.mark.parametrize(
    ("server", "client"),
    [
        (("comp-lzo no", 'push "comp-lzo no"'), ()),
        (("compress", 'push "compress"'), ()),
        (("compress stub", 'push "compress stub"'), ()),
        (("compress stub-v2", 'push "compress stub-v2"'), ()),
        (("comp-lzo no",), ("comp-lzo no",)),
        (("compress migrate",), ("comp-lzo no",)),
        # What old files and servers have: it compresses nothing until allow-compression yes.
        (("comp-lzo",), ("comp-lzo",)),
        (("comp-lzo adaptive", 'push "comp-lzo adaptive"'), ()),
        (("compress lzo",), ("compress lzo",)),
        (("compress lz4",), ("compress lz4",)),
        (("compress lz4-v2", 'push "compress lz4-v2"'), ()),
    ],
)
async def test_framings(
    network: Network, ordinary_env: Environment, server: tuple[str, ...], client: tuple[str, ...]
) -> None:
    profile = replace(CBC, server_options=server, client_options=client)
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as ours:
        await fetch(ours)
        ours.stop()


@pytest.mark.parametrize(
    ("server", "client", "said"),
    [
        (("comp-lzo no",), (), "add to the file: comp-lzo no"),
        ((), ("comp-lzo",), "remove comp-lzo"),
        (("comp-lzo no",), ("comp-lzo no",), None),
        (("compress migrate",), ("comp-lzo no",), None),
        (("compress stub", 'push "compress stub"'), (), None),
    ],
)
def test_a_framing_that_one_side_alone_has_is_said(
    network: Network, ordinary_env: Environment, server: tuple[str, ...], client: tuple[str, ...], said: str | None
) -> None:
    """Nothing passes, and nobody would know why."""
    profile = replace(CBC, server_options=server, client_options=client)
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as ours:
        ours.wait_up()
        ours.stop()
        lines = [line for line in ours.process.err.all() if "the server has" in line]
        assert [said in line for line in lines if said] == ([True] if said else []), lines
        assert len(lines) == (said is not None)


@pytest.mark.parametrize("option", ["comp-lzo", "compress lz4", "compress lz4-v2"])
def test_what_comes_compressed_is_dropped_and_said(network: Network, ordinary_env: Environment, option: str) -> None:
    """What doesn't get smaller comes as it is; what does must not come through in another shape."""
    profile = replace(CBC, server_options=(option, "allow-compression yes"), client_options=(option,))
    with StockServer(network, profile), program_folder(profile) as folder:
        with start_program(network, ordinary_env, folder, _COMPRESSIBLE) as process:
            assert process.wait(40) == 0, str(process)
        random, zeros, dropped = json.loads(process.out.all()[-1])
        assert (random, zeros) == (True, False)
        assert dropped > 0
        assert any("allow-compression asym" in line for line in process.err.all()), str(process)


@pytest.mark.parametrize("fix", ["mssfix 1300", "mssfix 1300 mtu", "mssfix 1300 fixed", "mssfix 0"])
@pytest.mark.parametrize("profile", [CBC, with_auth("AES-256-CBC", "SHA256"), replace(CBC, transport="tcp")])
async def test_mssfix_is_stocks(network: Network, ordinary_env: Environment, profile: Profile, fix: str) -> None:
    """Stock says in its log what it comes to; the two sides then agree, so that it doesn't matter who lowers."""
    profile = replace(
        profile,
        server_options=(*profile.server_options, fix, "verb 4"),
        client_options=(*profile.client_options, fix),
    )
    with StockServer(network, profile) as server, program_folder(profile) as folder:
        with start_program(network, ordinary_env, folder, _MSS) as process:
            assert process.wait(40) == 0, str(process)
        ours = json.loads(process.out.all()[-1])

        def theirs() -> int:
            """The last one: those before are from before the two agreed on a cipher."""
            lines = [line for line in server.log if "Data Channel MTU parms" in line]
            return int(lines[-1].split("mss_fix:")[1].split()[0])

        wait_until(lambda: theirs() == ours, 10, lambda: f"stock: {theirs()}, ours: {ours}")


_FETCH = """
import asyncio, ginnel

async def main():
    async with ginnel.connect("office.ovpn") as vpn:
        reader, writer = await vpn.open_connection("echo.office", 7)
        content = bytes(range(256)) * 2000
        writer.write(content)
        assert await reader.readexactly(len(content)) == content
        writer.close()

asyncio.run(main())
"""
_COMPRESSIBLE = """
import asyncio, json, os, ginnel
async def echoes(vpn, content):
    reader, writer = await vpn.open_connection("echo.office", 7)
    writer.write(content)
    try:
        return await asyncio.wait_for(reader.readexactly(len(content)), 3) == content
    except TimeoutError:
        return False
    finally:
        writer.transport.abort()

async def main():
    async with ginnel.connect("office.ovpn") as vpn:
        random = await echoes(vpn, os.urandom(20_000))
        zeros = await echoes(vpn, bytes(20_000))
        print(json.dumps([random, zeros, vpn.statistics()["plane"]["rx_compressed"]]))

asyncio.run(main())
"""
_V1 = """
from ginnel.openvpn import client, keys
client.OUR_PROTO &= ~keys.Proto.DATA_V2
"""
_NO_NCP = """
import re
from ginnel.openvpn import keys

made = keys.peer_info
keys.peer_info = lambda **values: re.sub("IV_(NCP|CIPHERS)=.*\\\\n", "", made(**values))
"""
_MSS = (
    """
import json
from ginnel.openvpn import session
made = []
set_peer = session.Session._set_peer
def record(self, tunnel):
    made.append(tunnel.mss)
    set_peer(self, tunnel)
session.Session._set_peer = record
"""
    + _FETCH
    + "print(json.dumps(made[-1]))\n"
)
