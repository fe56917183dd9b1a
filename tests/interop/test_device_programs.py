"""pong, ping, echo and the examples on a device of the kernel's, whose stack is at the other end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ginnel.device.forge import checksum
from ginnel.testing.probes import Background
from tests.harness.client import wait_until
from tests.harness.network import Namespace
from tests.harness.process import Process, parse_event

EXAMPLES = Path(__file__).parents[2] / "examples"

# Who is asked, and from which address the kernel asks.
SEVERAL = ("10.7.0.9", "10.8.0.9", "fd07::9", "fd08::9")
OWN = ("10.7.0.1", "10.8.0.1", "fd07::1", "fd08::1")
# An interface has its carrier from the moment that a program attaches; the kernel notices a little later, and drops
# what it would have sent until then.
FIRST_ROUND = 4


class Kernel:
    """A namespace with a persistent device of the kernel's, which is up and has addresses."""

    def __init__(self, folder: Path) -> None:
        self._env = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "PYTHONUNBUFFERED": "1"}
        self.namespace = Namespace()
        self._started: list[Process] = []

    def make(self, kind: str) -> None:
        name = f"{kind}7"
        self.namespace.ip(
            f"tuntap add {name} mode {kind}",
            f"addr add 10.7.0.1/24 dev {name}",
            f"addr add fd07::1/64 dev {name} nodad",
            f"addr add 10.8.0.1/24 dev {name}",
            f"addr add fd08::1/64 dev {name} nodad",
            f"link set {name} up",
        )

    def start(self, *words: str | Path) -> Process:
        process = self.namespace.start([sys.executable, *words], env=self._env)
        self._started.append(process)
        return process

    def start_held(self, name: str, *words: str | Path) -> Process:
        """A program, when it has the device."""
        process = self.start(*words)
        wait_until(lambda: "LOWER_UP" in self.namespace.run(["ip", "link", "show", name]), 30, lambda: process)
        return process

    def run(self, *words: str) -> dict[str, Any]:
        process = self.start("-m", "ginnel", *words, "--json")
        assert process.wait(60) == 0, str(process)
        assert process.err.all() == [], str(process)
        return parse_event(process.out.all()[-1])

    def ping(self, address: str, count: int) -> None:
        """Sends echo requests by the kernel, each when the one before is answered."""
        is_ipv6 = ":" in address
        family, protocol = (
            (socket.AF_INET6, socket.IPPROTO_ICMPV6) if is_ipv6 else (socket.AF_INET, socket.IPPROTO_ICMP)
        )
        with self.namespace.entered(), socket.socket(family, socket.SOCK_RAW, protocol) as sock:
            sock.settimeout(30)
            for number in range(count):
                payload = struct.pack("!HH", 77, number) + os.urandom(1000)
                kind = b"\x80\0" if is_ipv6 else b"\x08\0"
                # That of ICMPv6 is the kernel's to compute.
                sock.sendto(kind + checksum(kind + b"\0\0" + payload) + payload, (address, 0))
                reply = b"\x81" if is_ipv6 else b"\0"
                while True:
                    message = sock.recv(65_535)
                    message = message if is_ipv6 else message[20:]
                    if message[:1] == reply and message[4:] == payload:
                        break

    def close(self) -> None:
        for process in self._started:
            process.close()
        self.namespace.close()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path)
    yield made
    made.close()


def report(process: Process) -> dict[str, Any]:
    assert process.stop(signal.SIGINT, 30) == 0, str(process)
    seen: dict[str, Any] = json.loads(process.out.all()[-1])
    return seen


@pytest.mark.parametrize("kind", ["tun", "tap"])
def test_pong_answers_the_kernels_ping(kernel: Kernel, kind: str) -> None:
    kernel.make(kind)
    pong = kernel.start_held(f"{kind}7", "-m", "ginnel", "pong", f"{kind}7", "--json")
    with contextlib.ExitStack() as at_once:
        asking = [at_once.enter_context(Background(partial(kernel.ping, address, 20))) for address in SEVERAL]
    assert [each.outcome for each in asking] == [[None]] * len(SEVERAL)
    seen = report(pong)
    assert (seen["answered"], seen["sources"]) == (80, dict.fromkeys(OWN, 20))


@pytest.mark.parametrize("kind", ["tun", "tap"])
@pytest.mark.parametrize("address", ["10.7.0.1", "fd07::1"])
def test_the_kernel_answers_ping_of_several_sources(kernel: Kernel, kind: str, address: str) -> None:
    kernel.make(kind)
    words = ("-c", "20", "-i", "0", "-W", "5", "--sources", "4")
    seen = kernel.run("ping", "--device", f"{kind}7", address, *words)
    assert (seen["sent"], len(seen["sources"])) == (80, 4)
    assert seen["received"] >= 80 - FIRST_ROUND


@pytest.mark.parametrize("kind", ["tun", "tap"])
def test_echo_by_the_kernels_stack(kernel: Kernel, kind: str) -> None:
    kernel.make(kind)
    server = kernel.start("-m", "ginnel", "echo", "server", "--device", f"{kind}7", "--json")
    wait_until(lambda: ":7 " in kernel.namespace.run(["ss", "-uan"]), 30, lambda: server)
    words = ("-c", "20", "-i", "0", "-W", "5", "--sources", "4")
    for address in ("10.7.0.1", "fd07::1"):
        seen = kernel.run("echo", "client", "--device", f"{kind}7", address, *words)
        assert seen["sent"] == 80
        assert seen["received"] >= 80 - FIRST_ROUND
    answers = report(server)["sources"].values()
    assert len(answers) == 8
    assert min(answers) >= 19


@pytest.mark.parametrize("kind", ["tun", "tap"])
def test_echo_by_forging_of_what_the_kernel_sends(kernel: Kernel, kind: str) -> None:
    kernel.make(kind)
    words = ("-m", "ginnel", "echo", "server", "--device", f"{kind}7", "--end", "application", "--json")
    server = kernel.start_held(f"{kind}7", *words)
    asking = []
    for address in SEVERAL:
        words = ("--end", "interface", "-c", "20", "-i", "0", "-W", "30", "--json")
        asking.append(kernel.start("-m", "ginnel", "echo", "client", "--device", f"{kind}7", address, *words))
    for each in asking:
        assert each.wait(60) == 0, str(each)
        seen = parse_event(each.out.all()[-1])
        assert (seen["sent"], seen["received"]) == (20, 20)
    assert report(server)["sources"] == dict.fromkeys(OWN, 20)


def test_the_examples_on_the_kernels_device(kernel: Kernel) -> None:
    kernel.make("tun")
    pong = kernel.start(EXAMPLES / "pong.py", "tun7")
    pong.wait_line("waiting", 30)
    for address in ("10.7.0.9", "fd07::9"):
        kernel.ping(address, 3)
    assert pong.stop(signal.SIGINT, 30) == 0
    assert pong.out.all()[-1] == "6 pings answered"
    ping = kernel.start(EXAMPLES / "ping.py", "10.7.0.1", "10.7.0.2", "tun7")
    assert ping.wait(60) == 0
    # The first answer may be among what the kernel drops until it has noticed that somebody is there.
    assert ping.out.all()[-1] in ("4 sent, 4 received", "4 sent, 3 received")


def test_the_echo_examples_on_the_kernels_device(kernel: Kernel) -> None:
    kernel.make("tun")
    server = kernel.start_held("tun7", EXAMPLES / "echo_server.py", "tun7")
    for address in ("10.7.0.9", "fd07::9"):
        words = ("--end", "interface", "-c", "5", "-i", "0", "-W", "30")
        assert kernel.run("echo", "client", "--device", "tun7", address, *words)["received"] == 5
    assert server.stop(signal.SIGINT, 30) == 0
    assert server.out.all()[-1] == "10 datagrams from 2 senders sent back"
    stack = kernel.start("-m", "ginnel", "echo", "server", "--device", "tun7", "--json")
    wait_until(lambda: ":7 " in kernel.namespace.run(["ss", "-uan"]), 30, lambda: stack)
    client = kernel.start(EXAMPLES / "echo_client.py", "10.7.0.1", "7", "10.7.0.2", "tun7")
    assert client.wait(60) == 0
    came_back = int(client.out.all()[-1].split()[2])
    assert came_back == 30
    assert sum(report(stack)["sources"].values()) >= came_back


def test_a_name_that_is_nowhere_becomes_a_new_device_and_is_gone_after(kernel: Kernel) -> None:
    pong = kernel.start("-m", "ginnel", "pong", "tun3")
    wait_until(lambda: "tun3" in kernel.namespace.run(["ip", "link"]), 30, lambda: pong)
    assert pong.err.wait(lambda line: line == "tun3 is a new device of /dev/net/tun, and down", 30)
    assert pong.stop(signal.SIGINT, 30) == 0
    assert "tun3" not in kernel.namespace.run(["ip", "link"])
