"""``make bench``: `ginnel connect` in user space against a stock client on a kernel device.

Both are connected to the same stock server, at the same time on the same machine; downloads and
uploads take turns. The same curl moves the bytes: through SOCKS for the one, straight into the
device for the other. Rates are of payload; CPU is that of the client's process alone, user and system.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness import office
from tests.harness.client import GinnelClient, Usage, curl
from tests.harness.environment import ordinary_environment
from tests.harness.network import Namespace, Network
from tests.harness.profile import Profile
from tests.harness.server import Office, StockClient, StockServer


@dataclass(frozen=True)
class Run:
    """Bits of payload in a second, and the client's CPU seconds for a gigabyte (10⁹ bytes)."""

    speed: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="how long each transfer takes (default 10)")
    parser.add_argument("--rounds", type=int, default=5, help="of how many the median is taken (default 5)")
    parser.add_argument("--cipher", default="AES-256-GCM", help="of the data channel (default AES-256-GCM)")
    wanted = parser.parse_args()

    environment = ordinary_environment()
    # Both clients have the same certificate.
    profile = Profile(cipher=wanted.cipher, server_options=("duplicate-cn",))
    with (
        Network() as network,
        Office(network.server),
        StockServer(network, profile),
        StockClient(network, profile) as stock,
        GinnelClient(network, environment, profile) as ginnel,
    ):
        proxy = ["--proxy", f"socks5h://{ginnel.socks}"]
        clients: dict[str, tuple[int, Sequence[str]]] = {"ginnel": (ginnel.pid, proxy), "stock": (stock.pid, ())}
        print(f"{wanted.cipher}, {wanted.rounds} rounds of {wanted.seconds:g} s, medians")
        print(f"{'':>10} {'ginnel':>14} {'stock':>14} {'ratio':>7}")
        for name, transfer in (("download", download), ("upload", upload)):
            runs: dict[str, list[Run]] = {client: [] for client in clients}
            for _ in range(wanted.rounds):
                for client, (pid, options) in clients.items():
                    runs[client].append(measure(transfer, network, pid, options, wanted.seconds))
            report(name, runs)
        peak = ginnel.usage().peak
        idle = idle_share(ginnel.pid, wanted.seconds)
        print(f"ginnel: most memory {peak / 1e6:.0f} MB, idle CPU {idle:.2%}")
        ginnel.stop()


def measure(
    transfer: Callable[[Network, Sequence[str], float], tuple[int, float]],
    network: Network,
    pid: int,
    options: Sequence[str],
    seconds: float,
) -> Run:
    before = Usage.of(pid)
    count, took = transfer(network, options, seconds)
    used = Usage.of(pid).cpu - before.cpu
    return Run(count * 8 / took, used / (count / 1e9))


def download(network: Network, options: Sequence[str], seconds: float) -> tuple[int, float]:
    """The bytes that came, and the time from the first to the last."""
    shape = "%{size_download} %{time_starttransfer} %{time_total}"
    words = ["--output", "/dev/null", "--write-out", shape, f"http://{office.ADDRESS}/endless"]
    size, first, last = curl(network.client, *options, *words, timeout=seconds, check=False).split()
    return int(size), float(last) - float(first)


def upload(network: Network, options: Sequence[str], seconds: float) -> tuple[int, float]:
    """The bytes that arrived: what only filled a buffer on the way does not count."""
    before = uploaded(network.server)
    words = ["--upload-file", "-", "--write-out", "%{time_pretransfer} %{time_total}"]
    with Path("/dev/zero").open("rb") as zeros:
        first, last = curl(
            network.client,
            *options,
            *words,
            f"http://{office.ADDRESS}/sink",
            timeout=seconds,
            check=False,
            stdin=zeros,
        ).split()
    return uploaded(network.server) - before, float(last) - float(first)


def uploaded(server: Namespace) -> int:
    return int(curl(server, f"http://{office.ADDRESS}/uploads"))


def report(name: str, runs: dict[str, list[Run]]) -> None:
    speed = {client: statistics.median(run.speed for run in those) for client, those in runs.items()}
    cpu = {client: statistics.median(run.cpu for run in those) for client, those in runs.items()}
    for what, values, unit, scale in ((name, speed, "Mbit/s", 1e-6), ("CPU", cpu, "s/GB", 1)):
        ours, theirs = (f"{values[client] * scale:.4g} {unit}" for client in ("ginnel", "stock"))
        print(f"{what:>10} {ours:>14} {theirs:>14} {values['ginnel'] / values['stock']:>7.2f}", flush=True)


def idle_share(pid: int, seconds: float) -> float:
    """The share of one processor that a process takes while nothing passes."""
    # What the last transfer left in its buffers has to drain first.
    time.sleep(1)
    before, begin = Usage.of(pid).cpu, time.monotonic()
    time.sleep(seconds)
    return (Usage.of(pid).cpu - before) / (time.monotonic() - begin)


if __name__ == "__main__":
    main()
