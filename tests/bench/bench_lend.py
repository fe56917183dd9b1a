"""Round trips through stock OpenVPN: both sides on lent devices, against both on the kernel's.

Echo requests are sent one after the other, by a plain loop on either kind: into the network stack of
the lent device, or into a raw socket of the kernel's. Timed is what the program that asks sees, on either: from
before it hands the request over until it has the answer. Run as root: ``python -m tests.bench.bench_lend``.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import struct
import tempfile
import time
from pathlib import Path

from tests.harness.environment import Environment, ordinary_environment
from tests.harness.lent import Lent, openvpn_files
from tests.harness.network import Network
from tests.harness.profile import Profile

# A stack answers so many at once; the next ones would have to wait.
ROUNDS, PINGS = 5, 600
HOST = "10.8.0.1"


def main() -> None:
    lent, kernel = [], []
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network())
        environment = ordinary_environment()
        for _ in range(ROUNDS):
            lent.append(through_lent(network, environment))
            kernel.append(through_kernel(network))
    ours, theirs = statistics.median(lent), statistics.median(kernel)
    print(f"ping through stock OpenVPN, medians of {ROUNDS} x {PINGS}")
    print(f"  lent devices {ours * 1e6:.0f} µs, kernel devices {theirs * 1e6:.0f} µs: {ours / theirs:.2f} x")


def through_lent(network: Network, environment: Environment) -> float:
    server_file, client_file = openvpn_files(Profile())
    command = ["openvpn", "--config"]
    serving = {"actions": [["up", HOST]], "files": {"server.conf": server_file}}
    using = {
        "actions": [["up", "10.8.0.2"], ["ping", HOST], ["rtt", HOST, PINGS]],
        "files": {"client.conf": client_file},
    }
    with (
        Lent(network.server, environment, [*command, "server.conf"], **serving) as server,  # type: ignore[arg-type]
        Lent(network.client, environment, [*command, "client.conf"], **using) as client,  # type: ignore[arg-type]
    ):
        server.wait_done("up", 30)
        return float(client.wait_done("rtt", 60)["median"])


def through_kernel(network: Network) -> float:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for namespace, name, text in zip(
            (network.server, network.client), ("server", "client"), openvpn_files(Profile()), strict=True
        ):
            file = Path(folder, f"{name}.conf")
            file.write_text(text)
            process = namespace.start(["openvpn", "--config", file])
            stack.callback(process.close)
            if name == "client":
                process.wait_line("Initialization Sequence Completed", 30)
        with network.client.entered(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.settimeout(10)
            raw.connect((HOST, 0))
            return statistics.median(one_echo(raw, number) for number in range(PINGS))


def one_echo(raw: socket.socket, number: int) -> float:
    payload = bytes(56)
    head = struct.pack("!BBHHH", 8, 0, 0, 77, number)
    head = struct.pack("!BBHHH", 8, 0, checksum(head + payload), 77, number)
    began = time.perf_counter()
    raw.send(head + payload)
    while True:
        packet = raw.recv(2000)
        if packet[20] == 0 and struct.unpack_from("!HH", packet, 24) == (77, number):
            return time.perf_counter() - began


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


if __name__ == "__main__":
    main()
