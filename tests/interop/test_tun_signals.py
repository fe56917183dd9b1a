"""``ginnel connect --tun`` ended at every stage of its start and its end, by every signal: all comes back."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import network as places
from tests.harness.client import wait_until
from tests.harness.names import NameServer
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.relay import Relay
from tests.harness.server import Office, StockServer
from tests.harness.tun_client import Machine, TunClient

PROFILE = Profile(keepalive=(1, 4), server_options=('push "redirect-gateway def1 ipv6"',))
# As many as a file or a server may well have; they must be no reason to wait.
ROUTES = "".join(f"route 10.{100 + number // 256}.{number % 256}.0 255.255.255.0\n" for number in range(5000))


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as network, Office(network.server):
        network.client.ip(f"route add default via {places.SERVER}", f"route add default via {places.SERVER6}")
        yield network


@pytest.fixture(scope="module")
def server(network: Network) -> Iterator[StockServer]:
    with StockServer(network, PROFILE) as server:
        yield server


class Programs:
    """A machine's nft and resolvconf, one of which stops where it is told to until it is let go."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.folder = folder
        self._gate = folder / "gate"
        self._held: int | None = None
        os.mkfifo(self._gate)
        # Once: a reader waits until somebody writes, and goes on when the writer has gone.
        hold = f"[ -e {folder}/who ] || {{ echo $$ > {folder}/who; read _ < {self._gate}; }} || :"
        before, after, on_add, on_delete = (
            hold if stage == each else ":"
            for each in ("before the kill switch", "kill switch", "configuring", "ending")
        )
        load = f"/usr/sbin/nft -f {folder}/text"
        put_up = f"if grep -q policy {folder}/text; then {before}; {load}; {after}; else exec {load}; fi"
        self._write("nft", f"cat > {folder}/text; {put_up}")
        change = f"if [ $1 = -a ]; then cat > /dev/null; {on_add}; else {on_delete}; fi"
        self._write("resolvconf", f"echo $1 >> {folder}/said; {change}")

    def wait_held(self, what: Callable[[], object]) -> None:
        """Until the one that stops has come there."""

        def opened() -> bool:
            try:
                self._held = os.open(self._gate, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
            return self._held is not None

        wait_until(opened, 30, what)

    def let_go(self) -> None:
        """Lets it go on, and waits until it has ended. Idempotent."""
        if self._held is not None:
            os.close(self._held)
            self._held = None
            who = (self.folder / "who").read_text().strip()
            wait_until(lambda: not Path("/proc", who).exists(), 10, lambda: "a program of the machine's stays")

    @property
    def name_servers_are_back(self) -> bool:
        said = self.folder / "said"
        return not said.exists() or said.read_text().split()[-1] == "-d"

    def _write(self, name: str, script: str) -> None:
        program = self.folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)


BEFORE_IT_IS_UP = ["resolving", "before the kill switch", "kill switch", "first packet", "handshake"]
STAGES = [*BEFORE_IT_IS_UP, "configuring", "up", "reconnecting", "ending"]
CASES = [
    *((stage, end) for stage in STAGES for end in ("SIGINT", "SIGTERM", "SIGKILL")),
    *((stage, end) for stage in ("kill switch", "configuring", "up", "ending") for end in ("helper", "both")),
    *((stage, "SIGKILL-open") for stage in ("handshake", "configuring", "up", "reconnecting")),
]


@pytest.mark.parametrize(("stage", "end"), CASES, ids=lambda value: value.replace(" ", "-"))
def test_all_comes_back(machine: Machine, server: StockServer, tmp_path: Path, stage: str, end: str) -> None:
    """``helper`` and ``both`` are killed, too: then the next run puts all back. ``open`` is without a kill switch."""
    before = machine.state()
    programs = Programs(tmp_path, stage)
    with contextlib.ExitStack() as stack:
        stack.callback(programs.let_go)
        client = stack.enter_context(
            _at(stage, machine, server, programs, stack, () if "open" in end else ("--kill-switch",))
        )
        helper = client.helper
        if end in ("helper", "both"):
            os.kill(helper, signal.SIGKILL)
        if end == "helper":
            programs.let_go()
            assert client.process.wait(10) == (0 if stage == "ending" else 6), str(client.process)
            assert "ended" in client.process.err.all()[-1] or "put back" in client.process.err.all()[-1]
        elif end in ("SIGKILL", "SIGKILL-open", "both"):
            os.kill(client.pid, signal.SIGKILL)
            programs.let_go()
        elif stage == "ending":
            # Who asks twice does not wait.
            client.process.send_signal(signal.Signals[end])
            wait_until(lambda: not client.process.running, 10, lambda: client.process)
            programs.let_go()
            assert client.process.wait(10) == 0
        else:
            client.process.send_signal(signal.Signals[end])
            programs.let_go()
            client.wait_stopped()
        wait_until(lambda: not Path(f"/proc/{helper}").exists(), 10, lambda: "the helper stays")
        if end in ("helper", "both") or (end == "SIGKILL" and stage not in (*BEFORE_IT_IS_UP, "ending")):
            left = machine.state()
            assert left["nft"] != before["nft"], "the kill switch"
            recover(machine, programs)
    assert machine.state() == before
    assert programs.name_servers_are_back
    assert machine.journals() == []


def _at(
    stage: str,
    machine: Machine,
    server: StockServer,
    programs: Programs,
    stack: contextlib.ExitStack,
    options: tuple[str, ...],
) -> TunClient:
    """A client that has come so far."""
    text, port = PROFILE.client_file(), 1194
    relay = names = None
    match stage:
        case "resolving":
            names = stack.enter_context(NameServer(server.network.server))
            stack.enter_context(machine.asking(names.resolv_conf))
            text = replace(PROFILE, address="vpn.example").client_file()
        case "first packet" | "handshake":
            relay = stack.enter_context(Relay(server.network, 0 if stage == "first packet" else 3))
            text = PROFILE.client_file(relay.PORT)
        case "configuring":
            text += ROUTES
    client = machine.start(text, *options, port=port, programs=programs.folder)
    try:
        if names is not None:
            assert names.asked.wait(30), str(client.process)
        elif relay is not None:
            assert relay.held.wait(30), str(client.process)
        elif stage in ("up", "reconnecting", "ending"):
            client.wait_next("up")
        if stage == "reconnecting":
            server.kill()
            stack.callback(server.start)
            client.process.send_signal(signal.SIGUSR1)
            client.wait_next("reconnecting")
        if stage == "ending":
            client.process.send_signal(signal.SIGTERM)
        if stage in ("before the kill switch", "kill switch", "configuring", "ending"):
            programs.wait_held(lambda: client.process)
    except BaseException:
        client.process.close()
        raise
    return client


def recover(machine: Machine, programs: Programs) -> None:
    """What the next run begins with."""
    ours, theirs = socket.socketpair()
    command = machine.namespace.command([sys.executable, "-m", "ginnel.network.helper"])
    environment = {**os.environ, "PATH": f"{programs.folder}:{os.environ['PATH']}"}
    with ours, theirs, subprocess.Popen(command, stdin=theirs.fileno(), env=environment):
        theirs.close()
        ours.sendall(json.dumps({"do": "recover", "keep_guard": False}).encode() + b"\n")
        answer = json.loads(ours.recv(1 << 16))
        ours.shutdown(socket.SHUT_RDWR)
    assert answer.get("found") == 1, answer
