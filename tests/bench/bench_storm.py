"""``python -m tests.bench.bench_storm [SECONDS] [ROUNDS]``: whether those who are inside wait for those who come.

As many new clients as the server can take come at our server, whose limiter is lifted, and one that has been there
before asks by turns for (a) an echo of the server's inner address and (b) a TCP connection that leaves by the server's
own sockets, beside them and alone. The server computes TLS on Python's thread, and beside it, by turns. Those who come
have one core of two; the server and who asks go before them, and before what else runs on the machine. In a namespace
of its own. Needs root for all that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

from tests.harness.client import Usage
from tests.harness.crowd import CrowdClient
from tests.harness.process import Process

import ginnel
from ginnel.openvpn import settings
from ginnel.openvpn.config import ClientConfig
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.server.client_file import client_file
from ginnel.server.store import open_store

THREADS = {"one thread": "1", "in a pool": "2"}
# How many are on their way in at a time.
CROWD = 40
INNER, OUTER = "10.8.0.1", "198.51.100.1"
# Seconds between two questions.
PAUSE = 0.02


def main() -> None:
    if "GINNEL_INSIDE" not in os.environ:
        up = f'ip link set lo up; ip address add {OUTER}/32 dev lo; exec "$@"'
        inside = ["unshare", "--net", "sh", "-c", up, "sh", sys.executable, "-m"]
        os.execvpe(inside[0], [*inside, __spec__.name, *sys.argv[1:]], {**os.environ, "GINNEL_INSIDE": "1"})
    os.sched_setaffinity(0, {1})
    if sys.argv[1:2] == ["storm"]:
        asyncio.run(storm(read_ovpn(Path(sys.argv[2])), float(sys.argv[3])))
        return
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    os.setpriority(os.PRIO_PROCESS, 0, -15)
    with tempfile.TemporaryDirectory(prefix="ginnel-bench-") as made:
        folder = Path(made)
        with contextlib.closing(open_store(folder / "state")) as store:
            for name in ("inside", "crowd"):
                remote = [("udp", "127.0.0.1", 1194)]
                text = client_file(store.identity, store.add_user(name), store.make_wrap_key(), remote, password=False)
                (folder / f"{name}.ovpn").write_text(text)
        found: dict[str, list[dict[str, list[float]]]] = {"alone": [], **{name: [] for name in THREADS}}
        costs: dict[str, list[tuple[float, float]]] = {name: [] for name in THREADS}
        for _ in range(rounds):
            for name, threads in THREADS.items():
                with serving(folder, threads) as server:
                    alone, beside, cost = asyncio.run(measure(folder, seconds, server))
                found["alone"].append(alone)
                found[name].append(beside)
                costs[name].append(cost)
        for what, times in found.items():
            for question in ("echo", "connection"):
                every = sorted(each for one in times for each in one[question])
                worst = every[int(len(every) * 0.99)]
                print(
                    f"{what:>10} {question:>10}: median {statistics.median(every) * 1e3:6.2f} ms, "
                    f"p99 {worst * 1e3:6.2f} ms, most {every[-1] * 1e3:6.2f} ms of {len(every)}"
                )
        for name, those in costs.items():
            cost, rate = (statistics.median(each) for each in zip(*those, strict=True))
            print(f"{name:>10}: {cost:.2f} ms of the server's CPU a handshake, {rate:.0f} a second")


async def measure(
    folder: Path, seconds: float, server: Process
) -> tuple[dict[str, list[float]], dict[str, list[float]], tuple[float, float]]:
    """The times alone and beside the crowd; a handshake's CPU in milliseconds, and how many there were in a second."""
    outside = await asyncio.start_server(lambda _, writer: writer.close(), OUTER, 7)
    async with outside, ginnel.connect(folder / "inside.ovpn") as vpn:
        alone = await ask(vpn, seconds)
        program = ["-m", __spec__.name, "storm", folder / "crowd.ovpn", str(seconds + 1)]
        crowd = await asyncio.create_subprocess_exec(
            *("nice", "-n", "5", sys.executable, *program), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert crowd.stdout is not None
            await crowd.stdout.readline()
            before = Usage.of(server.pid).cpu
            asked = asyncio.create_task(ask(vpn, seconds))
            count, took = (await crowd.stdout.readline()).split()
            used = Usage.of(server.pid).cpu - before
            return alone, await asked, (used / int(count) * 1000, int(count) / float(took))
        finally:
            with contextlib.suppress(ProcessLookupError):
                crowd.kill()
            await crowd.wait()


async def ask(vpn: ginnel.Vpn, seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"echo": [], "connection": []}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        times["echo"].append(await vpn.ping(INNER))
        await asyncio.sleep(PAUSE)
        began = time.monotonic()
        _, writer = await vpn.open_connection(OUTER, 7)
        times["connection"].append(time.monotonic() - began)
        writer.close()
        await asyncio.sleep(PAUSE)
    return times


async def storm(file: ClientConfig, seconds: float) -> None:
    """Says when it begins, and at the end how many came in, and in how many seconds."""
    tls = settings.tls_context(file)
    loop = asyncio.get_running_loop()
    count = 0

    async def come() -> None:
        nonlocal count
        while loop.time() < end:
            client = CrowdClient(file, tls)
            try:
                await client.up
            finally:
                client.close()
            count += 1

    end = loop.time() + 1.0
    await asyncio.gather(*(come() for _ in range(CROWD)))
    print("begin", flush=True)
    count, began = 0, loop.time()
    end = began + seconds
    await asyncio.gather(*(come() for _ in range(CROWD)))
    print(count, loop.time() - began, flush=True)


@contextlib.contextmanager
def serving(folder: Path, threads: str) -> Iterator[Process]:
    config = {
        "duplicate_cn": True,
        "network": IPv4Network("10.8.0.0/16"),
        "connect_freq_initial": (1_000_000, 1.0),
        "max_clients": 60_000,
        "allow": (IPv4Network(f"{OUTER}/32"),),
    }
    text = f"{{'listen': Listen.parse('udp:127.0.0.1:1194'), **{config!r}}}"
    command = ["taskset", "-c", "0,1", sys.executable, "-m", "tests.harness.served_store", folder / "state", text]
    with Process(command, env={**os.environ, "GINNEL_THREADS": threads}) as server:
        server.wait_line("ready", 30)
        yield server


if __name__ == "__main__":
    main()
