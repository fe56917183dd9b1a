"""A signal at every stage: it ends well, within two seconds, and leaves nothing behind."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.client import GinnelClient, wait_until
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.process import Process
from tests.harness.profile import Profile
from tests.harness.relay import Relay
from tests.harness.server import StockServer

LIMIT = 2.0


@pytest.fixture(scope="module")
def server(network: Network) -> Iterator[StockServer]:
    with StockServer(network, Profile()) as server:
        yield server


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def number(request: pytest.FixtureRequest) -> signal.Signals:
    assert isinstance(request.param, signal.Signals)
    return request.param


# Of the client's datagrams the first is the reset, the next ones carry its hello, its key
# message and its request for a push.
@pytest.mark.parametrize("passed", [0, 1, 2, 3, 4])
def test_in_the_handshake(server: StockServer, ordinary_env: Environment, number: signal.Signals, passed: int) -> None:
    network = server.network
    with (
        Relay(network, passed) as relay,
        GinnelClient(network, ordinary_env, server.profile, port=relay.PORT, socks="unix:gate") as client,
    ):
        assert relay.held.wait(20), str(client.process)
        check_end(client, number)


def test_while_it_loads(server: StockServer, ordinary_env: Environment, number: signal.Signals) -> None:
    with GinnelClient(server.network, ordinary_env, server.profile, socks="unix:gate") as client:
        wait_until(lambda: catches(client.pid, signal.SIGTERM), 10, lambda: client.process)
        status = client.process.stop(number, LIMIT)
        assert status == 0, str(client.process)
        check_nothing_left(client)


def test_when_up(server: StockServer, ordinary_env: Environment, number: signal.Signals) -> None:
    """The server learns of it at once (explicit-exit-notify, over the control channel: cc-exit)."""
    start = len(server.log)
    with GinnelClient(server.network, ordinary_env, server.profile, socks="unix:gate") as client:
        client.wait_up()
        check_end(client, number)
        server.wait_log("CC-EEN exit message received", 5, start)


def test_twice(server: StockServer, ordinary_env: Environment, number: signal.Signals) -> None:
    with GinnelClient(server.network, ordinary_env, server.profile, socks="unix:gate") as client:
        client.wait_up()
        client.process.send_signal(number)
        check_end(client, number)


def test_in_the_background_of_a_script_and_under_nohup(tmp_path: Path) -> None:
    """A shell has what it starts with & ignore SIGINT, which ends it all the same; SIGHUP is nohup's to ignore."""
    file = tmp_path / "office.ovpn"
    file.write_text(Profile(transport="tcp", address="127.0.0.1").client_file())
    file.chmod(0o600)
    ignoring = ["sh", "-c", 'trap "" INT HUP; exec "$@"', "sh"]
    with Process([*ignoring, sys.executable, "-m", "ginnel", "connect", file, "--json"]) as process:
        process.wait_line('"event": "reconnecting"', 30)
        process.send_signal(signal.SIGHUP)
        process.wait_line('"event": "reconnecting"', 30, len(process.out.all()))
        assert process.stop(signal.SIGINT, 10) == 0, str(process)


def check_end(client: GinnelClient, number: signal.Signals) -> None:
    client.stop(number, LIMIT)
    assert client.process.err.all() == []
    check_nothing_left(client)


def check_nothing_left(client: GinnelClient) -> None:
    assert client.network.client.ordinary_processes() == []
    assert [path.name for path in client.folder.iterdir()] == ["office.ovpn"]


def catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
