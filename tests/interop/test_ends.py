"""What a stock server says of when to end, and how it ends a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.management import Management
from tests.harness.network import Network
from tests.harness.profile import LOGIN, Profile
from tests.harness.server import StockServer


@pytest.mark.parametrize(
    ("pushed", "status", "words"),
    [
        (("inactive 1",), 0, "nothing passed the tunnel for 1 s (inactive)"),
        (("session-timeout 1",), 0, "the session has lasted as long as session-timeout lets it"),
        (("ping-exit 2", "ping 1"), 3, "nothing heard from 192.0.2.1:1194 for 2 s"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_is_pushed_ends_it(
    network: Network, ordinary_env: Environment, pushed: tuple[str, ...], status: int, words: str
) -> None:
    profile = Profile(server_options=tuple(f'push "{option}"' for option in pushed))
    with StockServer(network, profile) as server, GinnelClient(network, ordinary_env, profile) as client:
        client.wait_up()
        if status:
            server.kill()
        assert client.process.wait(20) == status, str(client.process)
        (line,) = client.process.err.all()
        assert line.endswith(words)


def test_halt(network: Network, ordinary_env: Environment, tmp_path: Path) -> None:
    manager = Management(tmp_path)
    profile = Profile(server_options=manager.options, client_options=("auth-user-pass",))
    with StockServer(network, profile), manager, GinnelClient(network, ordinary_env, profile, login=LOGIN) as client:
        number, _ = manager.login()
        manager.allow(number)
        client.wait_up()
        manager.end(number, "HALT,the office is closed")
        status, line = client.fail()
        assert (status, "ended the session: the office is closed" in line) == (3, True), line
