"""Stock OpenVPN 2.6 clients, and ours, at our server."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from ginnel.openvpn.wrap import NoWrap, StaticKey, TlsAuth, TlsCrypt
from ginnel.server import Listen
from tests.harness import office
from tests.harness.client import GinnelClient, curl, wait_until
from tests.harness.environment import Environment
from tests.harness.network import SERVER, Network
from tests.harness.people import People
from tests.harness.pki import static_key
from tests.harness.process import Process, parse_event

ROOT = Path(__file__).parents[2]
UP = "Initialization Sequence Completed"
REKEYS = int(os.environ.get("GINNEL_REKEYS", "2"))
# Seconds until who was revoked is out; ``make soak``, where nothing runs beside it, has what a user is promised.
REVOKED = float(os.environ.get("GINNEL_REVOKED", "10"))


@contextlib.contextmanager
def serving(network: Network, people: People, **config: Any) -> Iterator[Process]:
    config.setdefault("listen", Listen.parse(f"{SERVER}:1194"))
    config.setdefault("redirect_gateway", None)
    with tempfile.TemporaryDirectory(prefix="ginnel-served-") as made:
        folder = Path(made)
        (folder / "people.pickle").write_bytes(pickle.dumps(people))
        (folder / "config.pickle").write_bytes(pickle.dumps(config))
        program = [sys.executable, "-m", "tests.harness.served", folder]
        with network.server.start(program, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
            process.wait_line('"event": "ready"', 20)
            yield process


@contextlib.contextmanager
def stock_client(
    network: Network, people: People, name: str, *lines: str, proto: str = "udp", server: str = SERVER, **options: Any
) -> Iterator[Process]:
    with tempfile.TemporaryDirectory(prefix="ginnel-stock-") as made:
        folder = Path(made)
        password = people.users[name].password
        if password is not None:
            (folder / "login").write_text(f"{name}\n{options.pop('password', password)}\n")
            (folder / "login").chmod(0o600)
            lines = (*lines, f"auth-user-pass {folder / 'login'}")
        remote = f"remote {server} 1194 {proto}"
        (folder / "client.conf").write_text(people.client_file(name, remote, "disable-dco", *lines, **options))
        with network.client.start(["openvpn", "--config", folder / "client.conf"]) as process:
            yield process


def event(process: Process, name: str, timeout: float = 20) -> dict[str, Any]:
    return parse_event(process.wait_line(f'"event": "{name}"', timeout))


def echo(network: Network, host: str = "10.8.0.1") -> None:
    """Bytes to the server's inner end and back, in full packets."""
    sent = os.urandom(100_000)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if family == socket.AF_INET6:
        # As long as the kernel tries the tunnel's address out, a connection would begin at another for good.
        shown = ["ip", "-6", "address", "show", "tentative"]
        wait_until(lambda: network.client.run(shown) == "", 10, lambda: network.client.run(shown))
    with network.client.socket(family) as sock:
        sock.settimeout(20)
        sock.connect((host, 7))
        sender = threading.Thread(target=lambda: (sock.sendall(sent), sock.shutdown(socket.SHUT_WR)))
        sender.start()
        came = b"".join(iter(lambda: sock.recv(65536), b""))
        sender.join(20)
    assert came == sent


@pytest.mark.parametrize("login", ["certificate", "password", "token"])
@pytest.mark.parametrize("topology", ["subnet", "net30"])
@pytest.mark.parametrize("proto", ["udp", "tcp"])
def test_stock_clients_connect(network: Network, proto: str, topology: str, login: str) -> None:
    people = People()
    people.add("alice", None if login == "certificate" else "secret")
    lifetime = 600 if login == "token" else None
    with serving(network, people, topology=topology, token_lifetime=lifetime, reneg_sec=6) as server:
        with stock_client(network, people, "alice", proto=proto) as client:
            client.wait_line(UP, 30)
            echo(network)
            echo(network, "fd67:696e:6e65:6c::1")
            if login != "certificate":
                # The renegotiation has the password again, or the token that came in its place.
                client.wait_line("Control Channel: TLS", 30, len(client.out) - 1)
                echo(network)
            assert event(server, "connected")["name"] == "alice"
            assert not any('"event": "refused"' in line for line in server.out.all())
            assert client.stop() == 0
        event(server, "disconnected", 10)
        assert server.stop() == 0, str(server)


def test_our_client_connects(network: Network, ordinary_env: Environment) -> None:
    people = People()
    people.add("alice")
    with serving(network, people) as server:
        text = people.client_file("alice", f"remote {SERVER} 1194 udp")
        with GinnelClient(network, ordinary_env, text) as client:
            assert client.wait_up()["address"] == "10.8.0.2/24"
            client.stop()
        event(server, "disconnected", 10)


@pytest.mark.parametrize("wrap", ["none", "tls-auth", "tls-crypt"])
def test_other_wraps(network: Network, wrap: str) -> None:
    people = People()
    people.add("alice")
    key = static_key()
    static = StaticKey.parse(key)
    ours = {"none": NoWrap(), "tls-auth": TlsAuth(static, "SHA256", 0), "tls-crypt": TlsCrypt(static)}[wrap]
    block = "" if wrap == "none" else f"<{wrap}>\n{key}</{wrap}>\n"
    lines = ("auth SHA256", "key-direction 1") if wrap == "tls-auth" else ()
    with (
        serving(network, people, wrap=ours, auth="SHA256" if lines else "SHA1"),
        stock_client(network, people, "alice", *lines, wrap=block) as client,
    ):
        client.wait_line(UP, 30)
        echo(network)


def test_refusals_have_a_reason(network: Network) -> None:
    people = People()
    people.add("alice", "secret")
    people.add("mallory").revoked = True
    stranger = People(people.authority)
    stranger._key = people._key
    stranger.add("nobody")
    with serving(network, people) as server:
        with stock_client(network, people, "alice", password="wrong") as client:
            client.wait_line("AUTH_FAILED,wrong user name or password", 30)
        with stock_client(network, people, "mallory") as client:
            client.wait_line("AUTH_FAILED,the certificate is revoked", 30)
        with stock_client(network, stranger, "nobody") as client:
            client.wait_line("AUTH_FAILED,unknown user", 30)
        with stock_client(network, people, "alice", "data-ciphers AES-128-CBC") as client:
            client.wait_line("AUTH_FAILED,Data channel cipher negotiation failed", 30)
        reasons = [parse_event(line)["reason"] for line in server.out.all() if '"event": "refused"' in line]
        assert reasons == ["the password is wrong", "the certificate is revoked", "unknown user"]


def test_revocation_ends_a_live_session(network: Network) -> None:
    people = People()
    people.add("alice")
    with serving(network, people) as server, stock_client(network, people, "alice") as client:
        client.wait_line(UP, 30)
        server.send_signal(signal.SIGUSR1)
        event(server, "expelled", REVOKED)
        client.wait_line("AUTH_FAILED,the user is revoked", REVOKED)
        assert client.wait(10) == 0


def test_who_is_replaced_ends_and_the_newcomer_stays(network: Network) -> None:
    people = People()
    people.add("alice")
    with serving(network, people) as server, stock_client(network, people, "alice") as client:
        client.wait_line(UP, 30)
        with stock_client(network, people, "alice") as newcomer:
            newcomer.wait_line(UP, 30)
            client.wait_line("the user logged in anew, from 192.0.2.2:", 10)
            assert client.wait(20) == 0
            echo(network)
        assert sum('"event": "connected"' in line for line in server.out.all()) == 2


def test_a_restart_brings_clients_back(network: Network) -> None:
    people = People()
    people.add("alice")
    with contextlib.ExitStack() as stack:
        with serving(network, people) as server:
            client = stack.enter_context(stock_client(network, people, "alice"))
            client.wait_line(UP, 30)
            seen = len(client.out)
            assert server.stop() == 0, str(server)
            client.wait_line("SIGUSR1", 10, seen)
        with serving(network, people):
            client.wait_line(UP, 30, seen)
            echo(network)


@pytest.mark.parametrize("allowed", [True, False])
def test_all_traffic_goes_through_the_server_where_it_is_allowed(network: Network, allowed: bool) -> None:
    people = People()
    people.add("alice")
    allow = (IPv4Network(f"{office.ADDRESS}/32"),) if allowed else ()
    with (
        serving(network, people, allow=allow, redirect_gateway=("def1",)) as server,
        stock_client(network, people, "alice") as client,
    ):
        client.wait_line(UP, 30)
        page = curl(network.client, f"http://{office.ADDRESS}/", check=False)
        assert page == (office.PAGE.decode() if allowed else "")
        assert client.stop() == 0
        event(server, "disconnected", 10)


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("proto", ["udp", "tcp"])
def test_a_stream_goes_on_while_keys_change(network: Network, proto: str, side: str) -> None:
    """As many times as GINNEL_REKEYS says; whoever begins."""
    people = People()
    people.add("alice")
    often, lines = (2, ("reneg-sec 0",)) if side == "server" else (3600, ("reneg-sec 2 2",))
    with (
        serving(network, people, reneg_sec=often),
        stock_client(network, people, "alice", *lines, proto=proto) as client,
    ):
        client.wait_line(UP, 30)
        came, enough = [0], threading.Event()
        stream = threading.Thread(target=echo_until, args=(network, enough, came))
        stream.start()
        try:
            for _ in range(REKEYS):
                client.wait_line("Control Channel: TLS", 30, len(client.out))
                before = came[0]

                def goes_on(before: int = before) -> bool:
                    return came[0] > before or not stream.is_alive()

                wait_until(goes_on, 20, lambda: came)
        finally:
            enough.set()
            stream.join(30)
        assert came[-1] is True, "the stream broke"


def echo_until(network: Network, enough: threading.Event, came: list[Any]) -> None:
    """One stream to the server's inner end and back; counts bytes in ``came``, and adds True if none was missing."""
    piece = os.urandom(200_000)
    with network.client.socket(socket.AF_INET) as sock:
        sock.settimeout(20)
        sock.connect(("10.8.0.1", 7))
        while not enough.is_set():
            sender = threading.Thread(target=sock.sendall, args=(piece,))
            sender.start()
            back = b""
            while len(back) < len(piece):
                data = sock.recv(65536)
                assert data, "the stream ended"
                back += data
            sender.join(20)
            assert back == piece
            came[0] += len(piece)
    came.append(True)


def test_renegotiation_under_traffic_and_float(network: Network) -> None:
    people = People()
    people.add("alice")
    with serving(network, people, reneg_sec=2) as server, stock_client(network, people, "alice") as client:
        client.wait_line(UP, 30)
        seen = len(client.out)
        for _ in range(3):
            echo(network)
            client.wait_line("Control Channel: TLS", 30, seen)
            seen = len(client.out)
        # The client's port changes under it, as behind a NAT that forgets.
        network.client.ip("address add 192.0.2.77/24 dev eth0", "route change 192.0.2.0/24 dev eth0 src 192.0.2.77")
        try:
            echo(network)
            assert event(server, "moved")["remote"].startswith("192.0.2.77:")
        finally:
            network.client.ip("address del 192.0.2.77/24 dev eth0")
