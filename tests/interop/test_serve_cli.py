"""``ginnel serve``, ``user`` and ``kick`` as they are typed, and a stock client."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.harness.network import SERVER, Network
from tests.harness.process import Process, parse_event, run

GINNEL = [sys.executable, "-m", "ginnel"]
UP = "Initialization Sequence Completed"


@contextlib.contextmanager
def serving(network: Network, folder: Path, *options: str | Path) -> Iterator[Process]:
    place = f"udp:{SERVER}:1194"
    command = [*GINNEL, "serve", "--json", "--dir", folder / "state", "--listen", place, *options]
    with network.server.start(command, env=dict(os.environ)) as process:
        process.wait_line('"event": "up"', 30)
        yield process


@contextlib.contextmanager
def connected(network: Network, file: Path, *options: str) -> Iterator[Process]:
    command = ["openvpn", "--config", file, "--dev", "tun9", "--disable-dco", "--route-nopull", "--verb", "3", *options]
    with network.client.start(command) as client:
        client.wait_line(UP, 30)
        yield client


def test_who_is_kicked_comes_back_and_who_is_revoked_does_not(network: Network, tmp_path: Path) -> None:
    state = ["--dir", tmp_path / "state"]
    with serving(network, tmp_path) as server:
        run([*GINNEL, "user", "add", "alice", *state, "-o", tmp_path / "alice.ovpn"])
        with connected(network, tmp_path / "alice.ovpn", "--connect-retry", "1", "1") as client:
            seen = len(client.out)
            run([*GINNEL, "kick", "alice", *state])
            client.wait_line(UP, 30, seen)
            assert server.out.wait(lambda line: '"kicked"' in line, 20)
            run([*GINNEL, "user", "revoke", "alice", *state])
            client.wait(20)
            assert any("AUTH_FAILED,the user is revoked" in line for line in client.out.all()), str(client)
        again = network.client.start(
            ["openvpn", "--config", tmp_path / "alice.ovpn", "--dev", "tun9", "--disable-dco", "--verb", "3"]
        )
        with again as client:
            # Her file gets no answer at all.
            assert parse_event(server.wait_line('"event": "turned_away"', 30))["name"] == "alice"
            assert not any("VERIFY" in line for line in client.out.all())


def test_a_stock_client_is_let_in_by_a_program_and_pushed_what_is_hers(network: Network, tmp_path: Path) -> None:
    state, program = tmp_path / "state", tmp_path / "told"
    state.mkdir(mode=0o700)
    program.write_text('#!/bin/sh\nenv > "$0.env"\necho "push \\"route 10.3.0.0 255.255.0.0\\"" > "$1"\n')
    program.chmod(0o755)
    text = f'client_to_client = true\nconnected = "{program}"\n[user.alice]\nroutes = ["10.1.0.0/16"]\n'
    (state / "server.toml").write_text(text)
    with serving(network, tmp_path):
        add = [*GINNEL, "user", "add", "alice", "--dir", state, "-o", tmp_path / "alice.ovpn"]
        subprocess.run(list(map(str, add)), check=True, capture_output=True)
        with connected(network, tmp_path / "alice.ovpn") as client:
            (reply,) = [line for line in client.out.all() if "PUSH_REPLY" in line]
            assert "route 10.1.0.0 255.255.0.0,route 10.3.0.0 255.255.0.0" in reply
            told = Path(f"{program}.env").read_text()
            assert "common_name=alice\n" in told
            assert "IV_VER=2.6" in told
            assert "trusted_ip=" in told
