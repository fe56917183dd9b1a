"""How long a handshake takes on a way that loses datagrams: `ginnel connect` and a stock client by turns, each
through a relay that drops as many of either side's, to the same stock server.

``python -m tests.bench.bench_lossy [ROUNDS]``. The time is from the client's first datagram to the tunnel being up.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.harness.client import GinnelClient
from tests.harness.environment import Environment, ordinary_environment
from tests.harness.network import SERVER, Network
from tests.harness.profile import Profile
from tests.harness.server import Office, StockServer

PORT = 1300
LOSS = 1 / 16
# Seconds within which nothing was sent again.
AT_ONCE = 0.5


class Lossy:
    """Between ``PORT`` of the server's address and the server. ``first`` is when a datagram of the client's came."""

    def __init__(self, network: Network, seed: int) -> None:
        self.first: float | None = None
        self._random = random.Random(seed)
        self._ending = threading.Event()
        self._front = network.server.socket(kind=socket.SOCK_DGRAM)
        self._front.bind((SERVER, PORT))
        self._back = network.server.socket(kind=socket.SOCK_DGRAM)
        self._back.connect((SERVER, 1194))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._front.close()
        self._back.close()

    def _run(self) -> None:
        client = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._front, selectors.EVENT_READ)
            selector.register(self._back, selectors.EVENT_READ)
            while not self._ending.is_set():
                for key, _ in selector.select(0.05):
                    if key.fileobj is self._front:
                        data, client = self._front.recvfrom(1 << 16)
                        self.first = self.first or time.monotonic()
                        if self._random.random() >= LOSS:
                            self._back.send(data)
                    else:
                        data = self._back.recv(1 << 16)
                        if client is not None and self._random.random() >= LOSS:
                            self._front.sendto(data, client)


def ours(network: Network, environment: Environment, profile: Profile, way: Lossy) -> float:
    with GinnelClient(network, environment, profile, port=PORT) as client:
        client.process.wait_line('"event": "up"', 70)
        return time.monotonic() - (way.first or 0)


def stocks(network: Network, environment: Environment, profile: Profile, way: Lossy) -> float:
    with tempfile.TemporaryDirectory(prefix="ginnel-lossy-") as folder:
        file = Path(folder) / "client.conf"
        file.write_text(profile.client_file(PORT) + "disable-dco\n")
        with network.client.start(["openvpn", "--config", file]) as process:
            process.wait_line("Initialization Sequence Completed", 70)
            return time.monotonic() - (way.first or 0)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    environment, profile = ordinary_environment(), Profile(server_options=("duplicate-cn",))
    took: dict[str, list[float]] = {"ginnel": [], "stock": []}
    with Network() as network, Office(network.server), StockServer(network, profile):
        for seed in range(rounds):
            for name, run in (("ginnel", ours), ("stock", stocks)):
                with contextlib.closing(Lossy(network, seed)) as way:
                    took[name].append(run(network, environment, profile, way))
    print(f"handshakes of which 1 in {1 / LOSS:.0f} datagrams is lost, {rounds} rounds, seconds")
    for name, times in took.items():
        ninth = statistics.quantiles(times, n=10)[-1]
        at_once = sum(seconds < AT_ONCE for seconds in times) / len(times)
        print(f"{name:>8}: mean {statistics.mean(times):.2f}, nine of ten within {ninth:.2f}, at once {at_once:.0%}")


if __name__ == "__main__":
    main()
