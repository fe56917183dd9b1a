"""``python -m tests.bench.bench_handshakes [CLIENTS]``: what a new client costs a server, ours and stock's.

Both have the same keys and the same clients, which are ours; the limiters are lifted. Ours is `ginnel serve` as users
have it, installed from its wheel for the system's own Python. Server and clients have a core each; ours is tried a
second time with both, where it has TLS computed by a pool of threads. The clients name one group, so that both
servers compute the same key exchange; ours is tried once more with what clients offer by themselves (hybrid): a key
exchange that is post-quantum besides, with longer packets, which stock's OpenSSL 3.0 does not have. The servers take
turns; the medians count. Everything is in a namespace of its own. Needs root, as stock's server makes a kernel's
device.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.harness.client import Usage
from tests.harness.crowd import CrowdClient
from tests.harness.environment import ordinary_environment
from tests.harness.process import Process

from ginnel.openvpn import settings
from ginnel.openvpn.config import ClientConfig
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.server.client_file import client_file
from ginnel.server.store import Store, open_store

BATCH = 20
ROUNDS = 3
SETTINGS = """
duplicate_cn = true
network = "10.8.0.0/20"
connect_freq_initial = [1000000, 1]
max_clients = 4000
"""


def main() -> None:
    if "GINNEL_INSIDE" not in os.environ:
        # It may have to be installed, which takes the network outside.
        installed = str(ordinary_environment().ginnel)
        inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", sys.executable, "-m"]
        os.execvpe(inside[0], [*inside, __spec__.name, *sys.argv[1:]], {**os.environ, "GINNEL_INSIDE": installed})
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    os.sched_setaffinity(0, {1})
    with tempfile.TemporaryDirectory(prefix="ginnel-bench-") as made:
        folder = Path(made)
        store = open_store(folder / "state")
        issued = store.add_user("alice")
        remote = [("udp", "127.0.0.1", 1194)]
        text = client_file(store.identity, issued, store.make_wrap_key(), remote, password=False)
        (folder / "any.ovpn").write_text(text)
        (folder / "same.ovpn").write_text(f"{text}tls-groups X25519\n")
        anyhow, same = read_ovpn(folder / "any.ovpn"), read_ovpn(folder / "same.ovpn")
        pooled = functools.partial(ours, cores="0,1", threads="2")
        turns = {"stock": (stock, same), "ginnel": (ours, same), "in a pool": (pooled, same), "hybrid": (ours, anyhow)}
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
        for _ in range(ROUNDS):
            for name, (start, file) in turns.items():
                with start(folder, store) as server:
                    asyncio.run(connect(file, BATCH))
                    results[name].append(measure(file, count, server))
        cost = {}
        for name, measured in results.items():
            cost[name], rate = (statistics.median(each) for each in zip(*measured, strict=True))
            print(f"{name:>9}  {cost[name]:5.2f} ms of CPU a handshake, {rate:4.0f} a second, {ROUNDS} times {count}")
        print("    ratio  " + ", ".join(f"{cost[name] / cost['stock']:.2f}" for name in cost if name != "stock"))
        store.close()


def measure(file: ClientConfig, count: int, server: Process) -> tuple[float, float]:
    """Milliseconds of CPU each, and how many a second."""
    before, began = Usage.of(server.pid).cpu, time.monotonic()
    asyncio.run(connect(file, count))
    took = time.monotonic() - began
    return (Usage.of(server.pid).cpu - before) / count * 1000, count / took


async def connect(file: ClientConfig, count: int) -> None:
    tls = settings.tls_context(file)
    with contextlib.ExitStack() as stack:
        for start in range(0, count, BATCH):
            clients = [CrowdClient(file, tls) for _ in range(min(BATCH, count - start))]
            for client in clients:
                stack.callback(client.close)
            await asyncio.gather(*(client.up for client in clients))


@contextlib.contextmanager
def ours(folder: Path, store: Store, cores: str = "0", threads: str = "1") -> Iterator[Process]:
    (folder / "state/server.toml").write_text(SETTINGS)
    program = ["taskset", "-c", cores, os.environ["GINNEL_INSIDE"], "serve", "--json"]
    command = [*program, "--dir", folder / "state", "--listen", "udp:127.0.0.1:1194"]
    with Process(command, env={**os.environ, "GINNEL_THREADS": threads}) as server:
        server.wait_line('"event": "up"', 30)
        yield server


@contextlib.contextmanager
def stock(folder: Path, store: Store) -> Iterator[Process]:
    identity = store.identity
    blocks = {"ca": identity.ca, "cert": identity.cert, "key": identity.key, "tls-crypt-v2": identity.tls_crypt_v2}
    lines = ["server 10.8.0.0 255.255.240.0", "topology subnet", "dev tun", "dh none", "local 127.0.0.1", "port 1194"]
    lines += ["duplicate-cn", "keepalive 10 60", "connect-freq-initial 1000000 1", "max-clients 4000", "verb 1"]
    lines += ["disable-dco", *(f"<{tag}>\n{text.strip()}\n</{tag}>" for tag, text in blocks.items())]
    (folder / "server.conf").write_text("\n".join(lines) + "\n")
    with Process(["taskset", "-c", "0", "openvpn", "--config", folder / "server.conf"]) as server:
        server.wait_line("Initialization Sequence Completed", 20)
        yield server


if __name__ == "__main__":
    main()
