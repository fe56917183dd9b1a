"""tls-crypt-v2, its cookies, and dyn-tls-crypt with stock OpenVPN, either side ours."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.network import SERVER, Network
from tests.harness.process import Process, parse_event, run
from tests.harness.profile import PORT, Profile
from tests.harness.server import StockClient, StockServer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def keys() -> Iterator[Path]:
    """A folder with a server's and two clients' keys, made by stock OpenVPN."""
    with tempfile.TemporaryDirectory(prefix="ginnel-keys-") as name:
        folder = Path(name)
        server = folder / "v2-server.key"
        run(["openvpn", "--genkey", "tls-crypt-v2-server", server])
        make = ["openvpn", "--tls-crypt-v2", server, "--genkey", "tls-crypt-v2-client"]
        run([*make, folder / "v2-client.key"])
        # A wrapped key that leaves a packet little room.
        run([*make, folder / "v2-client-large.key", "WFla" * 240])
        yield folder


def block(option: str, file: Path) -> str:
    return f"<{option}>\n{file.read_text().strip()}\n</{option}>"


def events(process: Process) -> list[dict[str, Any]]:
    return [parse_event(line) for line in process.out.all()]


def start_ours(network: Network, role: str, folder: Path, profile: Profile, **settings: Any) -> Process:
    namespace = network.server if role == "server" else network.client
    files = {
        "settings.json": json.dumps({"wrap": profile.wrap, "address": SERVER, "port": PORT, **settings}),
        "ca.pem": profile.keys.ca,
        "server.pem": profile.keys.server.certificate,
        "server.key": profile.keys.server.key,
        "static.key": profile.keys.static,
        "client.ovpn": profile.client_file(),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    program = [sys.executable, "-m", "tests.harness.ours", role, folder]
    return namespace.start(program, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("key", ["v2-client.key", "v2-client-large.key"])
@pytest.mark.parametrize("cookie", ["force-cookie", "allow-noncookie"])
def test_our_client_at_a_stock_server(network: Network, keys: Path, tmp_path: Path, cookie: str, key: str) -> None:
    v2 = f"tls-crypt-v2 {keys / 'v2-server.key'} {cookie}"
    with StockServer(network, Profile(wrap="none", server_options=(v2,))) as server:
        (tmp_path / "v2-client.key").write_text((keys / key).read_text())
        ours = Profile(wrap="none")
        with start_ours(network, "client", tmp_path, ours, wrap="tls-crypt-v2") as client:
            client.wait_line('"up"', 20)
            pinged = parse_event(client.wait_line('"pinged"', 20))
            assert (pinged["lost"], pinged["sent"] > 3) == (0, True)
            assert client.wait(10) == 0
        assert any("tls-crypt-v2" in line for line in server.log)


def test_our_client_at_a_stock_server_that_renegotiates_every_three_seconds(network: Network, tmp_path: Path) -> None:
    profile = Profile(server_options=("reneg-sec 3 3", "verb 4"), client_options=("reneg-sec 0",))
    with (
        StockServer(network, profile) as server,
        start_ours(network, "client", tmp_path, profile, seconds=11) as client,
    ):
        pinged = parse_event(client.wait_line('"pinged"', 40))
        assert (pinged["lost"], pinged["sent"] > 1000) == (0, True)
        assert sum("Control Channel: TLS" in line for line in server.log) >= 4
        assert any("dynamic tls-crypt" in line for line in server.log)
        assert client.wait(10) == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("wrap", ["none", "tls-auth", "tls-crypt", "tls-crypt-v2"])
def test_a_stock_client_at_our_server(network: Network, keys: Path, tmp_path: Path, wrap: Any) -> None:
    """With renegotiations every three seconds, which either side wraps anew."""
    for file in keys.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    v2 = wrap == "tls-crypt-v2"
    profile = Profile(
        wrap="none" if v2 else wrap,
        client_options=("reneg-sec 3", "verb 4", *([block("tls-crypt-v2", keys / "v2-client.key")] if v2 else [])),
    )
    with start_ours(network, "server", tmp_path, profile, wrap=wrap, seconds=8) as server:
        server.wait_line("ready", 20)
        with StockClient(network, profile) as client:
            established = parse_event(server.wait_line('"established"', 20))
            assert established["name"] == "client"
            assert "dyn-tls-crypt" in established["flags"]
            pinged = parse_event(server.wait_line('"pinged"', 40))
            assert (pinged["lost"], pinged["sent"] > 100) == (0, True)
            assert sum(event["event"] == "rekeyed" for event in events(server)) >= 2, server
            assert any("dynamic tls-crypt" in line for line in client.process.out.all()), client.process
        server.send_signal(signal.SIGTERM)
        statistics = parse_event(server.wait_line('"statistics"', 10))
        assert statistics["created"] == 1
        assert statistics["answered"] >= 1
