"""Round trips beside an upload, where the way to the server is slow: a tunnel over TCP, on kernel devices.

A relay takes so many Mbit/s from the client, and has little room of its own. What waits, waits with us: in the order
in which it came, or a flow after the other. Run as root: ``python -m tests.bench.bench_slow``.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import statistics
import sys
import time

from ginnel.bench.measure import round_trips
from ginnel.bench.spaces import RIGHT, joined
from ginnel.bench.tunnels import INNER, USER, Tunnel, connected, our_server

RATES, SECONDS, PINGS = (20.0, 5.0), 14, 55
RELAY = 1195
ROOM = 32 << 10


def main() -> None:
    print("| the way takes | upload | ping, median | worst |\n|---|---|---|---|")
    for rate in RATES:
        with contextlib.ExitStack() as stack:
            left, right = stack.enter_context(joined())
            folder, server = our_server(stack, right, ["--tun", "--listen", f"tcp:{RIGHT}:1194"], INNER)
            file = folder / USER
            remotes = re.compile(r"^remote .*\n", re.MULTILINE)
            file.write_text(f"remote {RIGHT} {RELAY} tcp\n" + remotes.sub("", file.read_text()))
            relay = right.started(sys.executable, "-m", "tests.bench.bench_slow", str(rate))
            stack.enter_context(relay).wait_for("ready")
            client = connected(stack, left, file, "--tun")
            stack.enter_context(right.started("iperf3", "--server", "--forceflush")).wait_for("Server listening")
            # A sender that fills whatever queue it finds.
            words = ["iperf3", "--client", INNER, "--time", str(SECONDS), "--congestion", "reno", "--forceflush"]
            with left.started(*words) as bulk:
                bulk.wait_for("connected to")
                tunnel = Tunnel("slow", left, right, INNER, [], [client, server])
                times = round_trips(tunnel, PINGS, 0.2)
                bulk.wait_for("iperf Done", SECONDS + 30)
                [*_, sent] = re.findall(r"([\d.]+) Mbits/sec +receiver", bulk.output)
            print(f"| {rate:g} Mbit/s | {sent} Mbit/s | {statistics.median(times):.0f} ms | {max(times):.0f} ms |")


def relay(rate: float) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        listener.bind((RIGHT, RELAY))
        listener.listen()
        print("ready", flush=True)
        near, _ = listener.accept()
        with near, socket.create_connection((RIGHT, 1194)) as far:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            free_at = time.monotonic()
            while True:
                wait = free_at - time.monotonic()
                ready, _, _ = select.select([far, near] if wait <= 0 else [far], [], [], max(0.0, wait) or None)
                for source, target in ((near, far), (far, near)):
                    if source in ready:
                        data = source.recv(4096)
                        if not data:
                            return
                        target.sendall(data)
                        if source is near:
                            free_at = max(free_at, time.monotonic()) + len(data) * 8 / (rate * 1e6)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        relay(float(sys.argv[1]))
    else:
        main()
