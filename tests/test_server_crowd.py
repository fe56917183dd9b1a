"""Many clients at once, and strangers who only knock: who is inside loses nothing, and nothing is kept for the others.

``make soak`` has 500 clients for two minutes, and knocks as fast as one process can.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading
import time
from ipaddress import IPv4Network
from pathlib import Path

from ginnel.openvpn import settings
from ginnel.openvpn.client import ClientPolicy
from ginnel.openvpn.config import ClientConfig
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.openvpn.session import Session
from ginnel.server.client_file import client_file
from ginnel.server.store import open_store
from tests.harness.client import Usage
from tests.harness.crowd import CrowdClient
from tests.harness.process import Process
from tests.test_server_faults import places, serving

CLIENTS = int(os.environ.get("GINNEL_CLIENTS", "40"))
SECONDS = float(os.environ.get("GINNEL_SECONDS", "3"))
# Echo requests a second of each client.
RATE = 2
# What share of them may stay unanswered: where a machine is busy with other tests, too, it drops some.
LOST = float(os.environ.get("GINNEL_LOST", "0.02"))
SERVER = bytes([10, 8, 0, 1])


async def test_a_crowd_inside_and_strangers_outside(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    directory = tmp_path / "state"
    config = {
        "duplicate_cn": True,
        "network": IPv4Network("10.8.0.0/20"),
        "keepalive": (10, 60),
        "connect_freq_initial": (10 * CLIENTS, 10.0),
    }
    with serving(directory, **config) as server, contextlib.ExitStack() as stack:
        file = _file(directory, places(server)["udp"], tmp_path)
        before = Usage.of(server.pid)
        clients = await _connect(file, stack)
        after = Usage.of(server.pid)
        print(f"{CLIENTS} handshakes: {(after.cpu - before.cpu) / CLIENTS * 1000:.1f} ms of the server's CPU each")
        held = await _talk(clients, server, "alone")
        knocks = await _talk(clients, server, "with strangers", _Strangers(file, random.Random(seed)))
        sent, answered = sum(client.sent for client in clients), sum(client.answered for client in clients)
        print(f"{sent - answered} of {sent} echo requests lost")
        # A server that drowns loses most.
        assert sent - answered <= LOST * sent
        assert knocks.memory - held.memory < 8 << 20
        assert knocks.descriptors <= held.descriptors
        metrics = await asyncio.to_thread(_metrics, directory, server)
        assert f"ginnel_clients {CLIENTS}" in metrics


async def _connect(file: ClientConfig, stack: contextlib.ExitStack) -> list[CrowdClient]:
    tls = settings.tls_context(file)
    clients: list[CrowdClient] = []
    for _ in range(0, CLIENTS, 20):
        batch = [CrowdClient(file, tls) for _ in range(min(20, CLIENTS - len(clients)))]
        for client in batch:
            stack.callback(client.close)
        clients += batch
        async with asyncio.timeout(100):
            await asyncio.gather(*(client.up for client in batch))
    assert len({client.address for client in clients}) == CLIENTS
    return clients


async def _talk(clients: list[CrowdClient], server: Process, what: str, strangers: _Strangers | None = None) -> Usage:
    before, loop = Usage.of(server.pid), asyncio.get_running_loop()
    began = loop.time()
    with strangers or contextlib.nullcontext():
        for turn in range(int(SECONDS * RATE * 10)):
            for client in clients[turn % 10 :: 10]:
                client.ask(SERVER)
            await asyncio.sleep(max(0.0, began + (turn + 1) / RATE / 10 - loop.time()))
        knocked = 0 if strangers is None else strangers.knocked
    asked = sum(client.sent for client in clients)
    async with asyncio.timeout(20):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_all_answered(clients, asked), 5)
    after = Usage.of(server.pid)
    took = loop.time() - began
    share = (after.cpu - before.cpu) / took * 100
    print(f"{what}: {share:.0f} % of a core, {after.memory >> 20} MB, {knocked / took:.0f} resets a second")
    return after


async def _all_answered(clients: list[CrowdClient], asked: int) -> None:
    while sum(client.answered for client in clients) < asked:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


class _Strangers:
    """Sends resets from addresses all over loopback, as fast as a thread can: half of them are noise, half have a
    valid wrap, as whoever got hold of a client's file can make."""

    def __init__(self, file: ClientConfig, choose: random.Random) -> None:
        self._file = file
        self._choose = choose
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._knock)
        self.knocked = 0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _knock(self) -> None:
        remote = (self._file.remotes[0].host, self._file.remotes[0].port)
        tls = settings.tls_context(self._file)
        resets = [self._reset(tls) for _ in range(50)]
        with contextlib.ExitStack() as stack:
            socks = []
            for _ in range(200):
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind((".".join(["127", *(str(self._choose.randrange(1, 255)) for _ in range(3))]), 0))
                sock.setblocking(False)
                socks.append(sock)
            while not self._stop.is_set():
                for sock in socks:
                    reset = self._choose.choice(resets)
                    if self._choose.random() < 0.5:
                        reset = reset[:30] + self._choose.randbytes(len(reset) - 30)
                    with contextlib.suppress(OSError):
                        sock.sendto(reset, remote)
                        self.knocked += 1
                # So that the clients, in this process too, have their turn.
                time.sleep(0.001)

    def _reset(self, tls: object) -> bytes:
        remote = self._file.remotes[0]
        policy = ClientPolicy(
            settings.client_settings(self._file, remote, tls),  # type: ignore[arg-type]
            settings.login(self._file, None),
            unix_time=time.time(),
        )
        session = Session(policy, path=(0, remote.host, remote.port), random=self._choose.randbytes, now=0.0)
        ((datagram, _),) = session.datagrams_to_send(0.0)
        return datagram


def _file(directory: Path, port: int, folder: Path) -> ClientConfig:
    with contextlib.closing(open_store(directory)) as store:
        issued = store.add_user("alice")
        text = client_file(store.identity, issued, store.make_wrap_key(), [("udp", "127.0.0.1", port)], password=False)
    (folder / "alice.ovpn").write_text(text)
    return read_ovpn(folder / "alice.ovpn")


def _metrics(directory: Path, server: Process) -> str:
    """What the server's file says after all that."""
    path = directory / "metrics.prom"
    written = path.stat().st_mtime_ns
    deadline = time.monotonic() + 30
    while path.stat().st_mtime_ns == written:
        assert time.monotonic() < deadline, str(server)
        time.sleep(0.05)
    return path.read_text()
