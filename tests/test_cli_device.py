"""``ginnel device``, ``pong``, ``ping`` and ``echo``, and the scripts of examples/, each a process of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.pcapng import CaptureFile
from tests.harness.process import Process, parse_event, run

EXAMPLES = Path(__file__).parents[1] / "examples"
GINNEL = (sys.executable, "-m", "ginnel")
ADDRESSES = ("--address", "10.0.0.1/24", "--address", "fd00::1/64")


class Shell:
    """Runs programs that share a folder for their devices."""

    def __init__(self, folder: Path) -> None:
        self.env = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "PYTHONUNBUFFERED": "1"}
        self._started: list[Process] = []

    def start(self, *words: str | Path) -> Process:
        process = Process([*GINNEL, *words] if words[0] != sys.executable else words, env=self.env)
        self._started.append(process)
        return process

    def own(self, *words: str) -> Process:
        """``ginnel device create``, when the device is there."""
        process = self.start("device", "create", *words, "--json")
        process.wait_line('"created"', 30)
        return process

    def hold(self, name: str, *words: str) -> Process:
        """A program that has the device's application end, when it has it."""
        process = self.start(*words)
        while f"(pid {process.pid})" not in self("device", "list"):
            assert process.running, str(process)
        return process

    def __call__(self, *words: str | Path) -> str:
        return run([*GINNEL, *words], env=self.env)

    def fails(self, status: int, *words: str | Path) -> str:
        """The one line that a command fails with."""
        done = subprocess.run([*GINNEL, *words], capture_output=True, text=True, timeout=60, env=self.env, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("ginnel: ")
        return line

    def close(self) -> None:
        for process in self._started:
            process.close()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.close()


def report(process: Process) -> dict[str, Any]:
    """What a program says at its end, after SIGINT if it still runs."""
    assert process.stop(signal.SIGINT, 30) == 0, str(process)
    assert process.err.all() == [], str(process)
    return parse_event(process.out.all()[-1])


def last(output: str) -> dict[str, Any]:
    return parse_event(output.splitlines()[-1])


def test_a_device_is_made_listed_shown_set_and_deleted(shell: Shell) -> None:
    owner = shell.own("tun%d", *ADDRESSES)
    created = parse_event(owner.out.all()[0])
    assert (created["name"], created["state"], created["mtu"]) == ("tun0", "up", 1500)
    assert shell("device", "list") == "tun0  tun  up  10.0.0.1/24 fd00::1/64  free\n"
    shell("device", "set", "tun0", "mtu", "1400", "address", "10.1.0.1/16", "down")
    shell("device", "set", "tun0", "address", "10.2.0.1/16", "no-address", "10.2.0.1/16")
    shown = json.loads(shell("device", "show", "tun0", "--json"))
    assert (shown["state"], shown["mtu"], len(shown["addresses"])) == ("down", 1400, 3)
    text = shell("device", "show", "tun0")
    assert text.startswith("tun0: tun, down, MTU 1400, queue 500\n")
    for words in ("10.1.0.1/16", "free", f"(pid {owner.pid})", "0 dropped"):
        assert words in text
    assert json.loads(shell("device", "list", "--json")) == json.loads(shell("device", "show", "tun0", "--json"))
    shell("device", "delete", "tun0")
    assert owner.wait(30) == 0
    assert parse_event(owner.out.all()[-1]) == {"event": "deleted", "name": "tun0"}
    assert shell("device", "list") == ""


def test_an_owner_that_is_stopped_is_listed_as_that(shell: Shell) -> None:
    stopped = shell.own("tun0", *ADDRESSES)
    shell.own("tun1")
    stopped.send_signal(signal.SIGSTOP)
    try:
        assert shell("device", "list") == "tun0  not answering\ntun1  tun  down  no address  free\n"
        first, second = map(json.loads, shell("device", "list", "--json").splitlines())
        assert (first, second["state"]) == ({"name": "tun0", "state": "not answering"}, "down")
    finally:
        stopped.send_signal(signal.SIGCONT)


def test_what_a_program_asks_for_in_vain_is_said(shell: Shell) -> None:
    shell.own("tap0", "--tap", "--address", "10.0.0.1/24")
    words = [*GINNEL, "ping", "--device", "tap0", "--end", "application", "10.0.0.7", "-c", "2", "-i", "1", "-W", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=shell.env, check=False)
    assert done.returncode == 1
    assert done.stderr == "packets dropped: 0 found tap0 full, 2 nobody answered for\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_owner_and_nothing_is_left(shell: Shell, tmp_path: Path, number: signal.Signals) -> None:
    owner = shell.own("tun0")
    assert owner.stop(number, 30) == 0
    assert owner.err.all() == []
    assert list((tmp_path / "ginnel").iterdir()) == []


def test_mistakes_end_in_one_line(shell: Shell, tmp_path: Path) -> None:
    shell.own("tun0")
    assert "no device tun9; see `ginnel device list`" in shell.fails(6, "device", "show", "tun9")
    assert "there is a device tun0 already" in shell.fails(6, "device", "create", "tun0")
    for name in ("a-name-that-is-too-long", ""):
        assert shell.fails(2, "device", "create", name).endswith("1 to 15 letters, digits and -_.")
    assert "write one as 10.0.0.1/24" in shell.fails(2, "device", "create", "tun1", "--address", "10.0.0.300")
    assert "MTU 10 is outside" in shell.fails(2, "device", "create", "tun1", "--mtu", "10")
    assert "'nan' is no number of seconds" in shell.fails(2, "ping", "--device", "tun0", "10.0.0.1", "-W", "nan")
    for command in (("serve",), ("connect", "office.ovpn")):
        assert "'a b' is no name for a device" in shell.fails(2, *command, "--tun", "--dev", "a b")
    shell.own("tun2", "--address", "10.0.0.1/24")
    assert "MTU 10 is outside" in shell.fails(2, "device", "set", "tun0", "mtu", "10")
    for words in (("ping",), ("echo", "client")):
        line = shell.fails(2, *words, "--device", "tun2", "10.0.0.1", "--end", "application", "-s", "1473")
        assert "write 1472 or less" in line
    assert "mtu is followed by nothing" in shell.fails(2, "device", "set", "tun0", "mtu")
    line = shell.fails(6, "ping", "--device", "tun0", "--end", "interface", "10.0.0.9")
    assert line == "ginnel: tun0 is down; set it up with `ginnel device set tun0 up`: Network is down"
    for words in (("create", "tun1", "--mtu"), ("set", "tun0", "mtu")):
        assert "MTU 99999999999999999999 is outside" in shell.fails(2, "device", *words, "99999999999999999999")
    assert "tun0 does not have the address 10.9.9.9/24" in shell.fails(
        6, "device", "set", "tun0", "no-address", "10.9.9.9/24"
    )
    assert "write up, down, mtu N, address" in shell.fails(2, "device", "set", "tun0", "sideways")
    assert "cannot write" in shell.fails(2, "device", "create", "tun1", "--capture", tmp_path / "no/such/file")
    assert "'ten' is no address" in shell.fails(2, "ping", "--device", "tun0", "ten")
    assert "tun0 is down; `ginnel device set tun0 up`" in shell.fails(6, "ping", "--device", "tun0", "10.0.0.1")
    assert "add --end application" in shell.fails(
        2, "ping", "--device", "tun0", "--end", "interface", "--sources", "2", "10.0.0.9"
    )
    (tmp_path / "ginnel").chmod(0o755)
    assert "is not yours alone" in shell.fails(6, "device", "list")


def test_ping_through_a_device_is_answered_by_pong(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "tun0.pcapng"
    owner = shell.own("tun0", *ADDRESSES, "--capture", str(path))
    pong = shell.hold("tun0", "pong", "tun0", "--json")
    assert "held by ginnel" in shell("device", "show", "tun0")
    assert "held by ginnel" in shell.fails(6, "ping", "--device", "tun0", "10.0.0.1").splitlines()[0]
    for address in ("10.0.0.9", "192.0.2.1", "fd00::9"):
        seen = last(shell("ping", "--device", "tun0", address, "-c", "5", "-i", "0", "-W", "30", "--json"))
        assert (seen["sent"], seen["received"], seen["lost"]) == (5, 5, 0)
        assert 0 < seen["latency"]["median"] < 30
    seen = report(pong)
    assert (seen["answered"], seen["sources"]) == (15, {"10.0.0.1": 10, "fd00::1": 5})
    assert owner.stop(timeout=30) == 0
    # Ten requests and their replies of IPv4, five of IPv6.
    echoes = [packet.data for packet in CaptureFile(path).packets]
    assert sum(packet[0] >> 4 == 4 for packet in echoes) == 20
    assert sum(packet[0] >> 4 == 6 and packet[40] in (128, 129) for packet in echoes) == 10


# A stack sends from the address whose network it sends to: to these from 10.0.0.1, 10.1.0.1 and so on.
SEVERAL = ("10.0.0.9", "10.1.0.9", "10.2.0.9", "fd00::9", "fd01::9")
OWN_OF_SEVERAL = ("10.0.0.1/24", "10.1.0.1/24", "10.2.0.1/24", "fd00::1/64", "fd01::1/64")


@pytest.mark.parametrize("what", ["pong", "echo"])
@pytest.mark.parametrize("column", ["named", "named-tap", "lent"])
def test_several_sources_at_once_are_answered_each_to_itself(shell: Shell, column: str, what: str) -> None:
    answering = ("pong",) if what == "pong" else ("echo", "server")
    if column == "lent":
        server = lend(shell, *GINNEL, *answering, "--json")
        for own in ("10.1.0.1/24", "10.2.0.1/24", "fd01::1/64"):
            shell("device", "set", "tun0", "address", own)
    else:
        addresses = [word for own in OWN_OF_SEVERAL for word in ("--address", own)]
        shell.own("tun0", *addresses, *(["--tap"] if column == "named-tap" else []))
        words = ("pong", "tun0") if what == "pong" else ("echo", "server", "--device", "tun0", "--end", "application")
        server = shell.hold("tun0", *words, "--json")
    asking = ("ping",) if what == "pong" else ("echo", "client", "--end", "interface")
    words = ("-c", "20", "-i", "0", "-W", "30", "--json")
    clients = [shell.start(*asking, "--device", "tun0", address, *words) for address in SEVERAL]
    for client in clients:
        assert client.wait(60) == 0, str(client)
        seen = last("\n".join(client.out.all()))
        assert (seen["sent"], seen["received"]) == (20, 20)
    assert server.stop(signal.SIGINT, 30) == 0, str(server)
    seen = parse_event(server.out.all()[-1])
    assert seen["sources"] == {own.partition("/")[0]: 20 for own in OWN_OF_SEVERAL}


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
def test_ping_of_the_devices_own_address_is_answered_by_its_stack(shell: Shell, address: str) -> None:
    shell.own("tun0", *ADDRESSES)
    words = ("ping", "--device", "tun0", address, "-c", "20", "-i", "0", "-W", "30", "--sources", "5", "--json")
    seen = last(shell(*words))
    assert (seen["sent"], seen["received"], len(seen["sources"])) == (100, 100, 5)


def test_what_is_not_answered_is_lost_and_the_status_says_so(shell: Shell) -> None:
    shell.own("tun0", *ADDRESSES)
    done = subprocess.run(
        [*GINNEL, "ping", "--device", "tun0", "10.0.0.9", "-c", "2", "-i", "0", "-W", "0.05"],
        capture_output=True,
        text=True,
        timeout=60,
        env=shell.env,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "2 sent, 0 received, 2 lost (100.0 %)\n"


def test_echo_by_the_stack_of_forged_datagrams_of_several_sources(shell: Shell) -> None:
    shell.own("tun0", *ADDRESSES)
    server = shell.start("echo", "server", "--device", "tun0", "--json")
    while json.loads(shell("device", "show", "tun0", "--json"))["stack"]["datagrams"] == 0:
        assert server.running, str(server)
    words = ("-c", "50", "-i", "0", "-W", "30", "-s", "1000", "--sources", "4", "--json")
    for address in ("10.0.0.1", "fd00::1"):
        seen = last(shell("echo", "client", "--device", "tun0", address, *words))
        assert (seen["sent"], seen["received"], len(seen["sources"])) == (200, 200, 4)
    seen = report(server)
    assert seen["answered"] == 400
    assert sorted(seen["sources"].values()) == [50] * 8


def test_echo_by_forging_of_datagrams_that_the_stack_sends(shell: Shell) -> None:
    shell.own("tun0", *ADDRESSES)
    server = shell.hold(
        "tun0", "echo", "server", "--device", "tun0", "--end", "application", "--port", "9000", "--json"
    )
    words = ("--port", "9000", "-c", "50", "-i", "0", "-W", "30", "--end", "interface", "--json")
    for address in ("10.0.0.77", "fd00::77"):
        seen = last(shell("echo", "client", "--device", "tun0", address, *words))
        assert (seen["sent"], seen["received"]) == (50, 50)
    assert report(server)["sources"] == {"10.0.0.1": 50, "fd00::1": 50}


def test_programs_end_with_their_device_and_say_what_they_saw(shell: Shell) -> None:
    owner = shell.own("tun0", *ADDRESSES)
    pong = shell.hold("tun0", "pong", "tun0", "--json")
    owner.close()
    assert pong.wait(30) == 0
    assert parse_event(pong.out.all()[-1])["answered"] == 0
    shell.own("tun0", *ADDRESSES)
    asking = shell.hold("tun0", "ping", "--device", "tun0", "10.0.0.1", "-i", "0.01")
    asking.wait_line("from 10.0.0.1", 30)
    shell("device", "delete", "tun0")
    assert asking.wait(30) == 6
    assert "received" in asking.out.all()[-1]
    assert len(asking.err.all()) == 1


def example(shell: Shell, *words: str) -> Process:
    return shell.start(sys.executable, EXAMPLES / words[0], *words[1:])


@pytest.mark.parametrize("script", ["ping.py", "echo_client.py"])
def test_an_example_without_arguments_says_which_it_takes(script: str) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"python examples/{script} ADDRESS" in done.stderr
    assert "Traceback" not in done.stderr


def test_examples_say_that_they_are_for_tun(shell: Shell) -> None:
    shell.own("tap0", "--tap")
    words = [sys.executable, EXAMPLES / "ping.py", "10.0.0.1", "10.0.0.2", "tap0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=shell.env, check=False)
    assert done.stderr == "tap0 carries Ethernet frames; this script is for a TUN device\n"


def test_example_pong(shell: Shell) -> None:
    shell.own("tun0", *ADDRESSES)
    pong = example(shell, "pong.py", "tun0")
    pong.wait_line("waiting", 30)
    for address in ("10.0.0.9", "fd00::9"):
        shell("ping", "--device", "tun0", address, "-c", "3", "-i", "0", "-W", "30")
    assert "held by pong.py" in shell("device", "list")
    assert pong.stop(signal.SIGINT, 30) == 0
    assert pong.out.all()[-1] == "6 pings answered"


def test_example_ping(shell: Shell) -> None:
    shell.own("tun0", *ADDRESSES)
    ping = example(shell, "ping.py", "10.0.0.1", "10.0.0.2", "tun0")
    assert ping.wait(60) == 0
    assert ping.out.all()[-1] == "4 sent, 4 received"
    ping = example(shell, "ping.py", "10.0.0.9", "10.0.0.2", "tun0")
    assert ping.wait(60) == 1
    assert ping.out.all() == [*(f"no reply to {number}" for number in range(1, 5)), "4 sent, 0 received"]


def test_example_echo_server(shell: Shell) -> None:
    shell.own("tun0", *ADDRESSES)
    server = example(shell, "echo_server.py", "tun0")
    server.wait_line("waiting", 30)
    for address in ("10.0.0.77", "fd00::77"):
        words = ("-c", "5", "-i", "0", "-W", "30", "--end", "interface", "--json")
        assert last(shell("echo", "client", "--device", "tun0", address, *words))["received"] == 5
    # The end of the device ends it.
    shell("device", "delete", "tun0")
    assert server.wait(30) == 0
    assert server.out.all()[-1] == "10 datagrams from 2 senders sent back"


def test_example_echo_client(shell: Shell) -> None:
    shell.own("tun0", *ADDRESSES)
    server = shell.start("echo", "server", "--device", "tun0", "--json")
    while json.loads(shell("device", "show", "tun0", "--json"))["stack"]["datagrams"] == 0:
        assert server.running, str(server)
    client = example(shell, "echo_client.py", "10.0.0.1", "7", "10.0.0.2", "tun0")
    assert client.wait(60) == 0
    assert client.out.all() == ["30 sent, 30 came back"]
    assert report(server)["sources"] == {f"10.0.0.{number}": 10 for number in (2, 3, 4)}


def lend(shell: Shell, *words: str | Path) -> Process:
    """A program on a lent device that is named tun0, when it has opened that and the device is up."""
    lent = shell.start("lend", "--device", "tun0", "--", *words)
    while "held by" not in shell("device", "list"):
        assert lent.running, str(lent)
    shell("device", "set", "tun0", "address", "10.0.0.1/24", "address", "fd00::1/64", "up")
    return lent


@pytest.mark.parametrize("program", ["example", "ginnel"])
def test_pong_on_a_lent_device(shell: Shell, program: str) -> None:
    words = [sys.executable, EXAMPLES / "pong.py"] if program == "example" else [*GINNEL, "pong"]
    lent = lend(shell, *words)
    for address in ("10.0.0.9", "fd00::9"):
        seen = last(shell("ping", "--device", "tun0", address, "-c", "3", "-i", "0", "-W", "30", "--json"))
        assert (seen["sent"], seen["received"]) == (3, 3)
    assert "held by python" in shell("device", "show", "tun0")
    assert "held by python" in shell.fails(6, "pong", "tun0").replace(sys.executable, "python")
    assert lent.stop(signal.SIGINT, 30) == 0, str(lent)
    assert any(line.startswith("6 ") for line in lent.out.all()), str(lent)
    assert shell("device", "list") == ""


@pytest.mark.parametrize("program", ["example", "ginnel"])
def test_echo_on_a_lent_device(shell: Shell, program: str) -> None:
    words = [sys.executable, EXAMPLES / "echo_server.py"] if program == "example" else [*GINNEL, "echo", "server"]
    lent = lend(shell, *words)
    for address in ("10.0.0.77", "fd00::77"):
        asked = ("-c", "5", "-i", "0", "-W", "30", "--end", "interface", "--json")
        assert last(shell("echo", "client", "--device", "tun0", address, *asked))["received"] == 5
    assert lent.stop(signal.SIGINT, 30) == 0, str(lent)
    assert any(line.startswith("10 datagrams") for line in lent.out.all()), str(lent)


READY = ("lend", "--device", "tun0", "--address", "10.0.0.1/24", "--address", "fd00::1/64", "--")


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
def test_ping_on_a_lent_device_that_is_ready(shell: Shell, address: str) -> None:
    words = ("ping", address, "-c", "5", "-i", "0", "-W", "30", "--sources", "4", "--json")
    seen = last(shell(*READY, *GINNEL, *words))
    assert (seen["sent"], seen["received"], len(seen["sources"])) == (20, 20, 4)


def test_example_ping_on_a_lent_device(shell: Shell) -> None:
    said = shell(*READY, sys.executable, EXAMPLES / "ping.py", "10.0.0.1", "10.0.0.2")
    assert said.splitlines()[-1] == "4 sent, 4 received"


def test_a_lent_device_that_is_idle_wakes_nobody(shell: Shell) -> None:
    """Neither the program nor what is around it: no context is switched in ten seconds."""
    lent = shell.start(*READY, sys.executable, EXAMPLES / "pong.py")
    lent.wait_line("waiting", 30)
    deadline = time.monotonic() + 30
    before, now = {}, switches(lent.pid)
    # What a start leaves to be done.
    while before != now:
        assert time.monotonic() < deadline, (before, now)
        time.sleep(0.5)
        before, now = now, switches(lent.pid)
    time.sleep(10)
    assert switches(lent.pid) == now
    assert len(now) >= 6
    assert lent.stop(signal.SIGINT, 30) == 0, str(lent)


def test_a_device_that_is_idle_wakes_nobody_though_a_terminal_shows_it(shell: Shell) -> None:
    master, slave = pty.openpty()
    owner = subprocess.Popen(
        [*GINNEL, "device", "create", "tun0", *ADDRESSES], stderr=slave, env={**shell.env, "TERM": "xterm"}
    )
    os.close(slave)
    try:
        shown = os.read(master, 65_536)
        while b"held by nobody" not in shown:
            shown += os.read(master, 65_536)
        deadline = time.monotonic() + 30
        before, now = {}, switches(owner.pid)
        while before != now:
            assert time.monotonic() < deadline, (before, now)
            time.sleep(3)
            before, now = now, switches(owner.pid)
        # What changes is shown: who holds it, then what passes.
        pong = shell.hold("tun0", "pong", "tun0")
        while b"held by ginnel" not in shown:
            shown += os.read(master, 65_536)
        shell("ping", "--device", "tun0", "10.0.0.9", "-c", "5", "-i", "0", "-W", "30")
        total = json.loads(shell("device", "show", "tun0", "--json"))["statistics"]["rx_bytes"]
        while f"total ↓ {total} B".encode() not in shown:
            shown += os.read(master, 65_536)
        assert pong.running
    finally:
        owner.kill()
        owner.wait()
        os.close(master)


def switches(pid: int) -> dict[str, list[str]]:
    """How often each thread of a process and of its children gave the processor up, or had it taken."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        found[task.name] = re.findall(r"ctxt_switches:\t(\d+)", (task / "status").read_text())
        for child in (task / "children").read_text().split():
            found.update(switches(int(child)))
    return found


# Makes a device that stays, waits for a word, and becomes the program, which finds the device by its name.
STAYING = """
import fcntl, os, struct, sys
device = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))
fcntl.ioctl(device, 0x400454CB, 1)
os.close(device)
open(sys.argv[1]).read()
os.environ["XDG_RUNTIME_DIR"] = "/nowhere"
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("program", ["example", "ginnel"])
def test_echo_client_on_a_lent_device(shell: Shell, tmp_path: Path, program: str) -> None:
    words = [sys.executable, EXAMPLES / "echo_client.py", "10.0.0.1", "7", "10.0.0.2", "tun0"]
    if program == "ginnel":
        words = [*GINNEL, "echo", "client", "--device", "tun0", "10.0.0.1", "-c", "10", "-i", "0", "--sources", "3"]
    os.mkfifo(tmp_path / "go")
    lent = shell.start(*READY, sys.executable, "-c", STAYING, tmp_path / "go", *words)
    while "tun0" not in shell("device", "list"):
        assert lent.running, str(lent)
    server = shell.start("echo", "server", "--device", "tun0", "--json")
    while json.loads(shell("device", "show", "tun0", "--json"))["stack"]["datagrams"] == 0:
        assert server.running, str(server)
    (tmp_path / "go").write_text("")
    assert lent.wait(60) == 0, str(lent)
    assert lent.out.all()[-1].startswith("30 sent, 30 "), str(lent)
    assert server.wait(30) == 0, str(server)
    assert parse_event(server.out.all()[-1])["sources"] == {f"10.0.0.{number}": 10 for number in (2, 3, 4)}


def test_a_lent_device_is_captured_and_deleted_by_its_name(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "lent.pcapng"
    words = ("lend", "--device", "tun0", "--capture", path, "--", sys.executable, EXAMPLES / "pong.py")
    assert "cannot write" in shell.fails(125, "lend", "--capture", tmp_path / "no/such", "--", "true")
    lent = shell.start(*words)
    while "held by" not in shell("device", "list"):
        assert lent.running, str(lent)
    shell("device", "set", "tun0", "address", "10.0.0.1/24", "up")
    shell("ping", "--device", "tun0", "10.0.0.9", "-c", "3", "-i", "0", "-W", "30")
    assert "there is a device tun0 already" in shell.fails(6, "device", "create", "tun0")
    shell("device", "delete", "tun0")
    assert lent.wait(30) == 0, str(lent)
    assert [packet.direction for packet in CaptureFile(path).packets] == ["out", "in"] * 3


def test_each_device_of_a_lent_program_is_an_interface_of_its_capture(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "lent.pcapng"
    text = """
import fcntl, os, socket, struct
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for name, flags, packet in ((b"tun0", 0x1001, b"E" + bytes(19)), (b"tap0", 0x1002, bytes(60))) * 2:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", name, flags))
    fcntl.ioctl(asking, 0x8914, struct.pack("16sH22x", name, 1))
    os.write(device, packet)
    os.close(device)
"""
    shell("lend", "--capture", path, "--", sys.executable, "-c", text)
    found = CaptureFile(path)
    assert [(each.link_type, each.name) for each in found.interfaces] == [(101, "tun0"), (1, "tap0")]
    taken = [(packet.interface, len(packet.data)) for packet in found.packets if packet.direction == "in"]
    assert taken == [(0, 20), (1, 60)] * 2


def test_programs_that_try_a_device_capture_what_they_see(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "pong.pcapng"
    shell.own("tap0", "--tap", *ADDRESSES)
    pong = shell.hold("tap0", "pong", "tap0", "--capture", str(path), "--json")
    shell("ping", "--device", "tap0", "10.0.0.9", "-c", "3", "-i", "0", "-W", "30")
    report(pong)
    found = CaptureFile(path)
    assert (found.link_type, found.name) == (1, "tap0")
    # Who has 10.0.0.9, three requests and three replies.
    mine = [packet.direction for packet in found.packets if packet.data[12:14] == b"\x08\x00"]
    assert mine == ["out", "in"] * 3
    line = shell.fails(2, "echo", "server", "--device", "tap0", "--capture", path)
    assert "add --end application" in line


def test_a_terminal_shows_rates_and_is_left_as_it_was(shell: Shell) -> None:

    master, slave = pty.openpty()
    owner = subprocess.Popen(
        [*GINNEL, "device", "create", "tun0", *ADDRESSES], stderr=slave, env={**shell.env, "TERM": "xterm"}
    )
    os.close(slave)
    shown = b""
    try:
        while not re.search(rb"tun0 up .*/s.*dropped 0.*held by nobody", shown, re.DOTALL):
            shown += os.read(master, 65_536)
        owner.terminate()
        assert owner.wait(30) == 0
        while True:
            try:
                shown += os.read(master, 65_536)
            except OSError:
                break
        # The cursor, which the line has hidden, is there again.
        assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")
    finally:
        owner.kill()
        owner.wait()
        os.close(master)
