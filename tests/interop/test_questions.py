"""What a stock server asks through its management interface: challenges, questions, a login on the web."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.harness import office
from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.management import Management
from tests.harness.network import Network
from tests.harness.profile import LOGIN, Profile
from tests.harness.server import StockServer
from tests.interop.test_login import at_a_terminal
from tests.interop.test_terminal import read_to_end, read_until


@contextlib.contextmanager
def asking(network: Network, environment: Environment, folder: Path) -> Iterator[tuple[Management, GinnelClient]]:
    """A server that is told what to answer, and a client that has a login for it."""
    manager = Management(folder)
    profile = Profile(server_options=manager.options, client_options=("auth-user-pass",))
    with StockServer(network, profile), manager, GinnelClient(network, environment, profile, login=LOGIN) as ours:
        yield manager, ours


def test_a_challenge_and_then_a_question(network: Network, ordinary_env: Environment, tmp_path: Path) -> None:
    manager = Management(tmp_path)
    profile = Profile(server_options=manager.options, client_options=("auth-user-pass",))
    with (
        StockServer(network, profile),
        manager,
        at_a_terminal(network, ordinary_env, profile) as (terminal, program),
    ):
        read_until(terminal, "User: ")
        os.write(terminal, b"alice\n")
        read_until(terminal, "Password for alice: ")
        os.write(terminal, b"secret\n")
        client, env = manager.login()
        assert (env["username"], env["password"]) == ("alice", "secret")
        user = base64.b64encode(b"alice").decode()
        manager.deny(client, f"CRV1:R,E:state-1:{user}:The code of your token")
        read_until(terminal, "The code of your token: ")
        os.write(terminal, b"123456\n")
        client, env = manager.login()
        assert (env["username"], env["password"]) == ("alice", "CRV1::state-1::123456")
        manager.pend(client, "CR_TEXT:R,E:And the one by mail")
        read_until(terminal, "And the one by mail: ")
        os.write(terminal, b"789\n")
        assert base64.b64decode(manager.response()) == b"789"
        manager.allow(client)
        read_until(terminal, "up: 10.8.0.")
        program.send_signal(signal.SIGINT)
        read_to_end(terminal)
        assert program.wait(10) == 0


def test_a_login_on_the_web(network: Network, ordinary_env: Environment, tmp_path: Path) -> None:
    with asking(network, ordinary_env, tmp_path) as (manager, ours):
        client, _ = manager.login()
        manager.pend(client, "WEB_AUTH::https://login.example/y")
        assert ours.wait_next("open_url")["url"] == "https://login.example/y"
        manager.allow(client)
        assert ours.curl("http://wiki.office/") == office.PAGE.decode()
        ours.stop()


def test_a_server_that_is_busy_for_a_moment(network: Network, ordinary_env: Environment, tmp_path: Path) -> None:
    with asking(network, ordinary_env, tmp_path) as (manager, ours):
        client, first = manager.login()
        manager.deny(client, "TEMP[backoff 2]: too many logins at once")
        again = ours.wait_next("reconnecting")
        assert "too many logins at once" in again["message"]
        assert again["delay"] >= 2
        client, second = manager.login()
        assert second["password"] == first["password"]
        manager.allow(client)
        assert ours.curl("http://wiki.office/") == office.PAGE.decode()
        ours.stop()
