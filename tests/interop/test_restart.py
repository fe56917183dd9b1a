"""A server that dies without a word, and comes back: so does the connection."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from tests.harness import office
from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.pki import Authority
from tests.harness.profile import Profile
from tests.harness.server import StockServer
from tests.harness.socks import close, open_connection

PROFILE = Profile(keepalive=(1, 4))
RECONNECTS = int(os.environ.get("GINNEL_RECONNECTS", "4"))


def test_killed_and_restarted(network: Network, ordinary_env: Environment) -> None:
    with StockServer(network, PROFILE) as server, GinnelClient(network, ordinary_env, PROFILE) as client:
        client.wait_next("up")
        for _ in range(2):
            server.kill()
            assert "message" in client.wait_next("reconnecting")
            server.start()
            client.wait_next("up")
            assert client.curl("http://wiki.office/") == office.PAGE.decode()
        client.stop()


def test_asked_to_connect_anew_again_and_again(network: Network, ordinary_env: Environment) -> None:
    """By SIGUSR1, as stock is. Nothing grows: descriptors, threads, memory."""
    with StockServer(network, PROFILE), GinnelClient(network, ordinary_env, PROFILE) as client:
        client.wait_next("up")
        used = []
        for _ in range(RECONNECTS):
            os.kill(client.process.pid, signal.SIGUSR1)
            assert "asked to connect anew" in client.wait_next("reconnecting")["message"]
            client.wait_next("up")
            used.append(resources(client.process.pid))
        assert client.curl("http://wiki.office/") == office.PAGE.decode()
        client.stop(signal.SIGHUP)
    descriptors, threads, memory = zip(*used, strict=True)
    assert max(descriptors) <= min(descriptors) + 2, used
    assert max(threads) <= min(threads) + 1, used
    assert memory[-1] < memory[len(memory) // 2] * 1.05, used


def resources(pid: int) -> tuple[int, int, int]:
    """Open descriptors, threads, and bytes of its own in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    (anonymous,) = re.findall(r"RssAnon:\s+(\d+) kB", status)
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), int(anonymous) * 1024


async def test_a_stream_lives_on(network: Network, ordinary_env: Environment) -> None:
    """The server gives the same address again, so an open stream goes on where it was."""
    with StockServer(network, PROFILE) as server, GinnelClient(network, ordinary_env, PROFILE) as client:
        before = client.wait_next("up")
        reader, writer = await open_connection(network.client, client.socks, "echo.office", 7)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        server.kill()
        server.start()
        after = await asyncio.to_thread(client.wait_next, "up")
        assert after["address"] == before["address"]
        writer.write(b"after")
        async with asyncio.timeout(20):
            assert await reader.readexactly(5) == b"after"
        await close(writer)
        client.stop()


def test_server_says_restart(network: Network, ordinary_env: Environment) -> None:
    """A server that ends in order tells its clients (RESTART), which need not wait for the silence."""
    profile = Profile(keepalive=(10, 60), server_options=("explicit-exit-notify 1",))
    with StockServer(network, profile) as server, GinnelClient(network, ordinary_env, profile) as client:
        client.wait_next("up")
        server.process.stop(timeout=10)
        client.wait_next("reconnecting", timeout=8)
        server.start()
        client.wait_next("up")
        assert client.curl("http://wiki.office/") == office.PAGE.decode()
        client.stop()


@pytest.mark.parametrize("form", ["revoked.pem", ". dir"])
def test_a_server_that_was_revoked_meanwhile(network: Network, ordinary_env: Environment, form: str) -> None:
    authority = Authority()
    server, client = authority.issue("server", server=True), authority.issue("client")
    profile = replace(PROFILE, client_options=(f"crl-verify {form}",)).with_keys(
        ca=authority.certificate, server=server, client=client
    )
    files: dict[str, str | bytes] = {"revoked.pem": authority.revocation_list(client)}
    with (
        StockServer(network, profile) as stock,
        GinnelClient(network, ordinary_env, profile, files=files) as ours,
    ):
        ours.wait_next("up")
        stock.kill()
        if form == ". dir":
            (ours.folder / str(x509.load_pem_x509_certificate(server.certificate.encode()).serial_number)).touch()
        else:
            (ours.folder / "revoked.pem").write_text(authority.revocation_list(server))
        ours.wait_next("reconnecting")
        stock.start()
        status, line = ours.fail()
    assert status == 5
    assert "revoked" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_between(network: Network, ordinary_env: Environment, number: signal.Signals) -> None:
    with StockServer(network, PROFILE) as server, GinnelClient(network, ordinary_env, PROFILE) as client:
        client.wait_up()
        server.kill()
        client.wait_next("reconnecting")
        client.stop(number, timeout=2)
        assert network.client.ordinary_processes() == []
