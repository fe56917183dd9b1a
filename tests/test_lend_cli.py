"""``ginnel lend`` as a command: what it says, what it passes on, how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import network_ioctls
from tests.harness.client import wait_until
from tests.harness.network import Namespace
from tests.harness.pcapng import CaptureFile
from tests.harness.process import Process

GINNEL = [sys.executable, "-m", "ginnel", "lend"]


def run(*words: str) -> tuple[int, str, str]:
    done = subprocess.run([*GINNEL, *words], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def python(text: str) -> list[str]:
    return [sys.executable, "-I", "-c", text]


def test_what_is_lent_is_said_first_and_the_status_is_the_programs() -> None:
    status, out, said = run("--", *python("print('hello'); raise SystemExit(7)"))
    assert (status, out) == (7, "hello\n")
    assert said == f"ginnel: /dev/net/tun is lent to {sys.executable}\n"


def test_a_program_that_speaks_netlink_through_pyroute2() -> None:
    """It asks a socket what it is, and trusts the answer."""
    status, out, said = run(
        "--",
        *python("""
import fcntl, os, socket, struct
from pyroute2 import IPRoute
device = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"lent7", 0x1001))
with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE) as plain:
    print([plain.getsockopt(socket.SOL_SOCKET, option) for option in (3, 38, 39)])
with IPRoute() as ip:
    (index,) = ip.link_lookup(ifname="lent7")
    ip.addr("add", index=index, address="10.9.0.1", prefixlen=24)
    ip.link("set", index=index, state="up", mtu=1400)
    ip.route("add", dst="10.77.0.0/16", oif=index)
    print([link.get_attr("IFLA_MTU") for link in ip.get_links(index)])
    print([address.get_attr("IFA_ADDRESS") for address in ip.get_addr(index=index)])
    print([route.get_attr("RTA_DST") for route in ip.get_routes(oif=index, family=socket.AF_INET)])
"""),
    )
    assert status == 0, said
    assert out.splitlines() == ["[2, 0, 16]", "[1400]", "['10.9.0.1']", "['10.9.0.0', '10.77.0.0']"]


def test_with_roots_rights_the_machines_network_is_read_and_never_changed() -> None:
    """By the calls of before netlink: a route through the program's device is set, one through the machine's shown."""
    command = [*GINNEL, "--", sys.executable, "-I", str(Path(network_ioctls.__file__)), "veth9"]
    with Namespace() as machine:
        machine.ip("link add veth9 mtu 1300 type veth peer name veth8", "address add 10.3.3.3/24 dev veth9")
        # Without addresses of the kernel's own, which come when they like.
        machine.ip(*(f"link set {name} {what}" for what in ("addrgenmode none", "up") for name in ("veth8", "veth9")))
        state = [f"ip {words}" for words in ("-d address", "maddress", "neigh", "-4 route show table all", "rule")]
        before = [machine.run(line.split()) for line in state]
        said, *shown = machine.run(command).splitlines()
        assert [machine.run(line.split()) for line in state] == before
    found = json.loads(said)
    assert found["mtu"] == 1300
    absent = dict.fromkeys(("IPsec", "nftables"), "EPROTONOSUPPORT")
    assert found["told"] == dict.fromkeys(found["told"], "EPERM") | absent
    assert found["routes"] == ["", "", "EEXIST", *[""] * 3, "ENODEV", "", "ESRCH", ""]
    assert [line.partition(" proto ")[0].partition(" scope ")[0].strip() for line in shown] == [
        *("10.3.3.0/24 dev veth9", "10.78.0.0/16 via 10.3.3.9 dev veth9", "10.79.0.0/16 dev veth9"),
        *("10.9.0.0/24 dev lent7", "10.77.0.0/16 dev lent7", "192.0.2.1 via 10.9.0.7 dev lent7"),
        *("fd00::/64", "fd77::/32 metric 1", "1048576: lent7    inet6 fd00::9/64"),
    ]


def test_a_device_with_an_address_is_up_and_said_to_be() -> None:
    status, out, said = run("--address", "10.0.0.1/24", "--", sys.executable, "-m", "ginnel", "ping", "10.0.0.1", "-c1")
    assert status == 0, said
    assert "1 received" in out
    assert said.splitlines()[-1] == "tun0 is a new device of /dev/net/tun, and up"


def test_another_node_than_dev_net_tun(tmp_path: Path) -> None:
    """Attached when it is opened, and named after the path; the path need not be there."""
    node, path = tmp_path / "tap3", tmp_path / "seen.pcapng"
    text = f"""
import os, socket
device = os.open({str(node)!r}, os.O_RDWR)
os.write(device, bytes(60))
print("tap3" in [name for _, name in socket.if_nameindex()])
"""
    words = ("--node", str(node), "--address", "10.0.0.1/24", "--capture", str(path), "--", *python(text))
    status, out, said = run(*words)
    assert (status, out) == (0, "True\n"), said
    assert said.startswith(f"ginnel: {node} is lent to ")
    found = CaptureFile(path)
    assert (found.name, found.link_type) == ("tap3", 1)
    assert [packet.data for packet in found.packets if packet.direction == "in"] == [bytes(60)]


def test_whom_the_gateway_is_open_to() -> None:
    _, _, said = run("--socks", "0", "--", "true")
    assert "SOCKS5 on 127.0.0.1:" in said
    assert "open to every user of this machine" in said
    status, _, said = run("--socks", "0.0.0.0:0", "--", "true")
    assert (status, len(said.splitlines())) == (2, 1)
    assert "open to everyone" in said


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["/nonexistent"], 127, "No such file"),
        (["no-such-program"], 127, "no-such-program: No such file"),
        (["/etc/passwd"], 126, "Permission denied"),
        (["/etc/passwd/x"], 126, "Not a directory"),
        (["./circle"], 126, "Too many levels of symbolic links"),
        (["./empty"], 126, "Exec format error"),
        (["sh", "-c", "kill -KILL $$"], 137, ""),
        (["openvpn", "--daemon", "--config", "x"], 2, "leave --daemon out"),
        (["--node", "relative", "--", "true"], 2, "no absolute path"),
        (["--dns", "office", "--", "true"], 2, "write an IP address"),
        (["--address", "10.0.0.256/24", "--", "true"], 2, "write one as 10.0.0.1/24"),
        (["--address", "224.0.0.1/24", "--", "true"], 2, "no host's address"),
        (["--address", "fd00::1/64", "--address", "fd00::1/64", "--", "true"], 2, "given twice"),
        ([], 2, "Missing argument"),
        ([*GINNEL, "--", "true"], 125, "traps this program's calls already"),
    ],
)
def test_how_it_ends(words: list[str], status: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("circle").symlink_to("circle")
    Path("empty").touch(0o755)
    found, _, said = run(*words)
    assert found == status, said
    assert text in said
    assert "Traceback" not in said
    assert all(line.startswith("ginnel: ") for line in said.splitlines())
    assert "no-such-program" not in words or "is lent to" not in said


def test_what_goes_into_the_background_is_ended(tmp_path: Path) -> None:
    status, _, said = run("--", "sh", "-c", "sleep 1000 & exit 3")
    assert status == 3
    assert "left 1 of its processes behind, which were ended too: a lent program has to stay in the foreground" in said
    (tmp_path / "openvpn").write_text("#!/bin/sh\nsleep 1000 &\n")
    (tmp_path / "openvpn").chmod(0o755)
    _, _, said = run("--", str(tmp_path / "openvpn"), "--config", "office.ovpn")
    assert "leave `daemon` out of its file" in said


def test_no_orphan_when_the_one_dies_that_looks_after_them() -> None:
    """With a grandchild in a session of its own: everything goes."""
    lines = ["import os, time", "if os.fork() == 0: os.setsid()", "print(os.getppid(), os.getpid(), flush=True)"]
    text = "\n".join([*lines, "time.sleep(1000)"])
    with Process([*GINNEL, "--", *python(text)]) as process:
        wait_until(lambda: len(process.out.all()) == 2, 60, lambda: str(process))
        family = [[int(word) for word in line.split()] for line in process.out.all()]
        program = next(pid for _, pid in family if pid in {parent for parent, _ in family})
        guardian = next(parent for parent, pid in family if pid == program)
        os.kill(guardian, signal.SIGKILL)
        # The program is killed with it.
        assert process.wait(30) == 128 + signal.SIGKILL, str(process)
    assert not any(Path(f"/proc/{pid}").exists() for _, pid in family)


def test_what_a_shell_left_running_before_it_became_ginnel_runs_on() -> None:
    """Its children are ours from then on, and none of our business."""
    words = ["sh", "-c", 'sleep 1000 >/dev/null 2>&1 & echo $!; exec "$@"', "sh", *GINNEL, "--", "true"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    # It fails for a process that is not there.
    os.kill(int(done.stdout), signal.SIGKILL)


def test_signals_are_the_programs() -> None:
    text = """
import os, signal, sys
got = []
def take(number, frame):
    os.write(1, signal.Signals(number).name.encode() + b"\\n")
for name in ("SIGHUP", "SIGINT", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), take)
print("ready", flush=True)
while True:
    signal.pause()
"""
    with Process([*GINNEL, "--", *python(text)]) as process:
        process.wait_line("ready", 30)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            process.send_signal(number)
            process.wait_line(number.name, 30)
        assert process.stop(signal.SIGTERM) == 128 + signal.SIGTERM


def test_ctrl_c_reaches_the_program_once() -> None:
    """The terminal sends it to both of us; passing it on as well would make two of one."""
    text = """
import os, signal, time
got = []
signal.signal(signal.SIGINT, lambda *_: (got.append(1), os.write(1, b"once\\n")))
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"got %d\\n" % len(got)))
print("ready", flush=True)
while True:
    time.sleep(1)
"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(GINNEL[0], [*GINNEL, "--", *python(text)])
    try:
        read_until(terminal, b"ready")
        os.write(terminal, b"\x03")
        read_until(terminal, b"once")
        # What is passed on keeps its order: a second one would come before this.
        os.kill(pid, signal.SIGUSR1)
        assert b"got 1\r\n" in read_until(terminal, b"got ", b"\r\n")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def test_ctrl_c_reaches_a_program_that_has_not_begun() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(GINNEL[0], [*GINNEL, "--", "sleep", "20"])
    try:
        read_until(terminal, b"is lent to")
        os.write(terminal, b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGINT
    finally:
        os.close(terminal)


def test_each_trapped_call_is_logged_on_request() -> None:
    program = python("open('/dev/net/tun', 'r+b', buffering=0)")
    done = subprocess.run(
        [sys.executable, "-m", "ginnel", "-v", "lend", "--", *program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("DEBUG: openat by ") and line.endswith(": given") for line in done.stderr.splitlines())


def read_until(terminal: int, text: bytes, after: bytes = b"") -> bytes:
    """What is written, until ``text`` is among it and ``after`` behind that."""
    seen = b""
    while text not in seen or after not in seen.partition(text)[2]:
        part = os.read(terminal, 1000)
        assert part, seen
        seen += part
    return seen
