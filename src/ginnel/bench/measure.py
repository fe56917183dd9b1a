"""What is measured through a tunnel: by iperf3 and echo requests, with the ends' own processor time beside it."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ginnel.bench.spaces import BenchError, Program
from ginnel.bench.tunnels import Tunnel


def measure(tunnel: Tunnel, seconds: float) -> dict[str, float]:
    """Every figure of a tunnel once, by name (`UNITS`)."""
    before = _processor_time()
    figures = _measure(tunnel, seconds)
    total, stolen = (now - then for now, then in zip(_processor_time(), before, strict=True))
    return figures | {"stolen_percent": stolen / max(total, 1) * 100}


def _measure(tunnel: Tunnel, seconds: float) -> dict[str, float]:
    if tunnel.devices:
        return _crowd(tunnel, seconds)
    with _iperf_server(tunnel):
        if tunnel.streams:
            return _tcp(tunnel, seconds, "up") | _tcp(tunnel, seconds, "down", "--reverse")
        figures = {"ping_ms": statistics.median(round_trips(tunnel, 200, 0.01))}
        figures |= _tcp(tunnel, seconds, "up")
        figures |= _tcp(tunnel, seconds, "down", "--reverse")
        figures |= {"up8_mbit": _tcp(tunnel, seconds, "up8", "--parallel", "8")["up8_mbit"]}
        figures |= {f"small_{name}": value for name, value in _datagrams(tunnel, SMALL, seconds).items()}
        figures |= {f"long_{name}": value for name, value in _datagrams(tunnel, LONG, seconds).items()}
        figures |= _loaded_ping(tunnel, seconds)
        figures["memory_mb"] = max(program.usage()[1] for program in tunnel.ours or tunnel.ends) / 1e6
    return figures


def _tcp(tunnel: Tunnel, seconds: float, name: str, *options: str) -> dict[str, float]:
    before, ours_before = _cpu(tunnel.ends), _cpu(tunnel.ours)
    end = _iperf(tunnel, seconds, *options)
    gbit = end["sum_received"]["bytes"] * 8 / 1e9
    if not gbit:
        raise BenchError(f"{tunnel.name}: no byte of TCP arrived")
    figures = {
        f"{name}_mbit": end["sum_received"]["bits_per_second"] / 1e6,
        f"{name}_cpu": (_cpu(tunnel.ends) - before) / gbit,
        f"{name}_resent": end["sum_sent"].get("retransmits", 0),
    }
    if tunnel.name in ("mixed", "mixed-server"):
        figures[f"{name}_ours_cpu"] = (_cpu(tunnel.ours) - ours_before) / gbit
    return figures


def _crowd(tunnel: Tunnel, seconds: float) -> dict[str, float]:
    """A stream of each client's, all at once."""
    ports = range(tunnel.port, tunnel.port + len(tunnel.devices))
    with contextlib.ExitStack() as stack:
        for port in ports:
            server = tunnel.right.started("iperf3", "--server", "--forceflush", "--port", str(port))
            stack.enter_context(server).wait_for("Server listening")
        before, ours_before, began = _cpu(tunnel.ends), _cpu(tunnel.ours), time.monotonic()
        common = ["iperf3", "--client", tunnel.far, "--time", f"{seconds:g}", "--json"]
        streams = [
            stack.enter_context(tunnel.left.started(*common, "--port", str(port), "--bind-dev", device))
            for port, device in zip(ports, tunnel.devices, strict=True)
        ]
        ends = [_end_of(stream, tunnel, seconds + 60) for stream in streams]
        # Where so many share few cores some begin when others have ended: each one's own seconds would count twice, in
        # the total and in the slowest one's share of it.
        passed = time.monotonic() - began
        cpu, ours_cpu = _cpu(tunnel.ends) - before, _cpu(tunnel.ours) - ours_before
    received = [end["sum_received"]["bytes"] * 8 / 1e9 for end in ends]
    gbit = sum(received)
    return {
        "crowd_mbit": gbit * 1000 / passed,
        "crowd_least_mbit": min(received) * 1000 / passed,
        "crowd_cpu": cpu / gbit,
        "crowd_server_cpu": ours_cpu / gbit,
    }


def _end_of(stream: Program, tunnel: Tunnel, timeout: float) -> dict[str, Any]:
    """An iperf3's sums, when it has ended."""
    # It writes all at once, and last a brace of its own.
    stream.wait_until(lambda: stream.output.endswith("\n}\n"), "sums from iperf3", timeout)
    return _sums(json.loads(stream.output), tunnel)


def _datagrams(tunnel: Tunnel, size: int, transfer: float) -> dict[str, float]:
    """Datagrams of ``size`` bytes at rising rates, each for half a ``transfer`` at most: the most that arrived in a
    second with at most 1 % lost, what was lost then, and 1 if it is the generator's limit that was met, not the
    tunnel's."""
    best, lost_then, failures, limited, rate = 0.0, 0.0, 0, 0.0, FIRST_RATE
    while failures < 2:
        sent, seconds, came = _send(tunnel, size, rate, min(DATAGRAM_SECONDS, transfer / 2))
        lost = 1 - came / max(sent, 1)
        if lost > MOST_LOST:
            failures += 1
        elif came / seconds > best:
            best, lost_then, failures = came / seconds, lost, 0
        if sent / seconds < rate * 0.9:
            limited = float(lost <= MOST_LOST)
            break
        rate *= STEP
    return {"pps": best, "lost_percent": lost_then * 100, "limited": limited}


def _send(tunnel: Tunnel, size: int, rate: float, wanted: float) -> tuple[int, float, int]:
    """How many were sent, in how many seconds, and how many of them came."""
    module = [sys.executable, "-m", "ginnel.bench.datagrams"]
    with tunnel.right.started(*module, "receive") as receiver:
        receiver.wait_for("ready")
        words = [*module, "send", tunnel.far, str(rate), str(wanted), str(size)]
        sent, seconds = json.loads(tunnel.left.run(*words))
        # What is still in queues on the way.
        time.sleep(0.2)
        receiver.signal()
        receiver.wait_for("came ", 10)
        came = int(receiver.output.rpartition("came ")[2])
    return sent, seconds, came


def _loaded_ping(tunnel: Tunnel, seconds: float) -> dict[str, float]:
    words = ["iperf3", "--client", tunnel.far, "--time", str(round(seconds + 2)), "--forceflush"]
    with tunnel.left.started(*words) as bulk:
        bulk.wait_for("connected to")
        times = round_trips(tunnel, round(seconds / PING_INTERVAL), PING_INTERVAL)
        bulk.wait_for("iperf Done", seconds + 30)
    times.sort()
    return {"loaded_ping_ms": statistics.median(times), "loaded_ping_p99_ms": times[int(len(times) * 0.99)]}


def round_trips(tunnel: Tunnel, count: int, interval: float) -> list[float]:
    """Round trips in ms. Lost ones count as a second."""
    words = [sys.executable, "-m", "ginnel.bench.ping", tunnel.far, str(count), str(interval)]
    times: list[float] = json.loads(tunnel.left.run(*words, timeout=count * interval + 30))
    return times


@contextlib.contextmanager
def _iperf_server(tunnel: Tunnel) -> Iterator[None]:
    with tunnel.right.started("iperf3", "--server", "--forceflush") as server:
        server.wait_for("Server listening")
        yield


def _iperf(tunnel: Tunnel, seconds: float, *options: str) -> dict[str, Any]:
    words = ["iperf3", "--client", tunnel.far, "--port", str(tunnel.port), "--time", f"{seconds:g}", "--json", *options]
    for _ in range(BUSY):
        report = json.loads(tunnel.left.run(*words, timeout=seconds + 60))
        # Over a long way its server hears late that the measurement before is over.
        if "busy" not in report.get("error", ""):
            break
        time.sleep(0.5)
    return _sums(report, tunnel)


def _sums(report: dict[str, Any], tunnel: Tunnel) -> dict[str, Any]:
    end: dict[str, Any] = report.get("end", {})
    if "sum_received" not in end or "sum_sent" not in end:
        raise BenchError(f"{tunnel.name}: iperf3 gave no sums: {report.get('error', 'without a reason')}")
    return end


def _processor_time() -> tuple[int, int]:
    """All of this machine's, and what its host gave to others meanwhile (steal), in ticks: proc(5)."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split(maxsplit=11)[1:9]]
    return sum(ticks), ticks[7]


def _cpu(programs: list[Program]) -> float:
    return sum(program.usage()[0] for program in programs)


UNITS = {
    "up_mbit": "TCP, Mbit/s",
    "down_mbit": "TCP back, Mbit/s",
    "up8_mbit": "TCP, 8 streams, Mbit/s",
    "crowd_mbit": "TCP of all clients at once, Mbit/s",
    "crowd_least_mbit": "of it the slowest client's",
    "crowd_cpu": "CPU s a Gbit then, all ends",
    "crowd_server_cpu": "of it the server's",
    "up_cpu": "CPU s a Gbit, both ends",
    "down_cpu": "the same, back",
    "up_ours_cpu": "CPU s a Gbit, ginnel's end",
    "down_ours_cpu": "the same, back",
    "up_resent": "segments sent again",
    "down_resent": "the same, back",
    "small_pps": "UDP of 64 bytes, packets/s at <= 1 % loss (ginnel.bench.datagrams)",
    "small_lost_percent": "lost then, %",
    "small_limited": "1: as fast as the generator goes",
    "long_pps": "UDP of 1,400 bytes, the same",
    "long_lost_percent": "lost then, %",
    "long_limited": "1: as fast as the generator goes",
    "ping_ms": "ping, median, ms",
    "loaded_ping_ms": "ping under a stream, median, ms",
    "loaded_ping_p99_ms": "ping under a stream, p99, ms",
    "memory_mb": "resident memory, MB",
    "stolen_percent": "taken by the machine's host, % of the cores' time",
}
SMALL, LONG = 64, 1400
DATAGRAM_SECONDS = 1.5
FIRST_RATE, STEP = 6_000.0, 1.35
MOST_LOST = 0.01
PING_INTERVAL = 0.01
BUSY = 20
