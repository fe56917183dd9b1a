"""``ginnel serve --tun``: stock clients go out through the kernel, behind the server's address, as far as allowed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ginnel.network.masquerade import PORTS
from tests.harness.client import wait_until
from tests.harness.network import SERVER, Namespace, Network
from tests.harness.process import Process, parse_event

PAGE = "what the internet says"
# Public as far as an access list is concerned (RFC 5737), and private ones behind the same router.
INTERNET, INTERNET6, OUTSIDE, OUTSIDE6 = "203.0.113.1", "2001:db8:5::1", "203.0.113.2", "2001:db8:5::2"
PRIVATE, ALLOWED = "10.99.0.1", "10.98.0.1"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture(scope="module")
def internet(network: Network) -> Iterator[Process]:
    """A web server at all its addresses, on a link to the VPN server's machine; it knows no way to clients."""
    with Namespace() as namespace, tempfile.TemporaryDirectory() as folder:
        network.server.ip(
            f"link add out type veth peer name out netns {namespace.pid}",
            f"address add {OUTSIDE}/24 dev out",
            f"address add {OUTSIDE6}/64 dev out nodad",
            "link set out up",
        )
        namespace.ip(
            f"address add {INTERNET}/24 dev out",
            f"address add {INTERNET6}/64 dev out nodad",
            f"address add {PRIVATE}/32 dev lo",
            f"address add {ALLOWED}/32 dev lo",
            "link set out up",
        )
        network.server.ip(f"route add 10.0.0.0/8 via {INTERNET}")
        Path(folder, "index.html").write_text(PAGE)
        serve = "import http.server as h, socket\n"
        serve += "class S(h.ThreadingHTTPServer):\n    address_family = socket.AF_INET6\n"
        serve += "s = S(('::', 80), h.SimpleHTTPRequestHandler)\nprint('ready', flush=True)\ns.serve_forever()"
        with namespace.start(["env", f"--chdir={folder}", sys.executable, "-u", "-c", serve]) as process:
            process.wait_line("ready", 20)
            # Addresses of the link that are still being tried out would look like a change.
            wait_until(lambda: "tentative" not in state(network.server)["addresses"], 10, lambda: state(network.server))
            yield process


class TunServer:
    """``ginnel serve --tun --json`` as root in the server's namespace."""

    def __init__(self, network: Network, folder: Path, *options: str) -> None:
        self.namespace = network.server
        self.state = folder / "state"
        words = ["serve", "--tun", "--json", "--dir", self.state, "--listen", f"udp:{SERVER}:1194", *options]
        self.process = self.namespace.start([_GINNEL, *words], env=dict(os.environ))
        self.up = parse_event(self.process.wait_line('"event": "up"', 30))

    def __enter__(self) -> TunServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.close()

    @property
    def helper(self) -> int:
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)


@contextlib.contextmanager
def connected(network: Network, folder: Path) -> Iterator[Namespace]:
    """A stock client with a kernel's device, in the client's namespace."""
    file = folder / "alice.ovpn"
    if not file.exists():
        subprocess.run(
            [_GINNEL, "user", "add", "alice", "--dir", folder / "state", "-o", file], check=True, capture_output=True
        )
    with network.client.start(
        ["openvpn", "--config", file, "--dev", "tun9", "--disable-dco", "--resolv-retry", "0"]
    ) as client:
        client.wait_line("Initialization Sequence Completed", 30)
        yield network.client


def state(namespace: Namespace) -> dict[str, str]:
    commands = {
        "links": ["ip", "-o", "link"],
        "addresses": ["ip", "-o", "address"],
        "routes": ["ip", "-4", "route", "show", "table", "all"],
        "routes6": ["ip", "-6", "route", "show", "table", "all"],
        "nft": ["nft", "list", "ruleset"],
        "sysctl": [
            "sh",
            "-c",
            "grep -r . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/*/{forwarding,accept_ra}",
        ],
    }
    shell = {"sysctl": ["bash", *commands["sysctl"][1:]]}
    return {name: namespace.run(shell.get(name, command)) for name, command in commands.items()}


def fetch(namespace: Namespace, host: str, **options: Any) -> str:
    return namespace.run(["curl", "--silent", "--max-time", "5", f"http://{host}/"], **options)


@pytest.mark.parametrize("threads", ["1", "4"])
def test_clients_reach_what_is_public_and_what_is_allowed(
    network: Network, internet: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    monkeypatch.setenv("GINNEL_THREADS", threads)
    before = state(network.server)
    own = ["env", f"--chdir={tmp_path}", sys.executable, "-u", "-m", "http.server", "8080"]
    Path(tmp_path, "index.html").write_text(PAGE)
    with (
        network.server.start(own) as service,
        TunServer(network, tmp_path, "--dev", "office0", "--allow", f"{ALLOWED}/32") as server,
    ):
        service.wait_line("Serving", 20)
        # It is there for who is not a client.
        inside = [f"--net=/proc/{internet.pid}/ns/net", "curl", "--silent", f"http://{OUTSIDE}:8080/"]
        assert subprocess.run(["nsenter", *inside], capture_output=True, text=True, check=True).stdout == PAGE
        assert server.up["device"] == "office0"
        with connected(network, tmp_path) as client:
            assert fetch(client, INTERNET) == PAGE
            assert internet.err.wait(lambda line: OUTSIDE in line, 10), str(internet)
            client.ip("route add 2001:db8:5::/64 dev tun9")
            assert fetch(client, f"[{INTERNET6}]") == PAGE
            assert internet.err.wait(lambda line: OUTSIDE6 in line, 10), str(internet)
            assert fetch(client, ALLOWED) == PAGE
            # Private ranges, and what the machine itself serves: refused at once, not silently.
            for closed in (PRIVATE, f"{OUTSIDE}:8080", f"{server.up['address']}:8080", "169.254.169.254"):
                refused = client.run(
                    ["curl", "--silent", "--max-time", "5", "--write-out", "%{errormsg}", f"http://{closed}/"],
                    check=False,
                )
                assert "timed out" not in refused, (closed, refused)
                assert PAGE not in refused
            assert ask(client, str(server.up["address"])) == REPLY
        assert server.process.stop(signal.SIGTERM, 15) == 0, str(server.process)
    assert state(network.server) == before


def test_a_published_port_leads_to_a_client_while_it_is_there(
    network: Network, internet: Process, tmp_path: Path
) -> None:
    """From outside and from the machine itself; the client knows no way to who asks."""
    before = state(network.server)
    own = ["env", f"--chdir={tmp_path}", sys.executable, "-u", "-m", "http.server", "--bind", "::", "8000"]
    Path(tmp_path, "index.html").write_text(PAGE)
    outside = ["nsenter", f"--net=/proc/{internet.pid}/ns/net"]

    def status(prefix: list[str], *options: str, host: str = OUTSIDE) -> tuple[int, str]:
        words = [*prefix, "curl", "--silent", "--max-time", "5", *options, f"http://{host}:8081/"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    here = ["nsenter", f"--net=/proc/{network.server.pid}/ns/net"]
    with TunServer(network, tmp_path, "--publish", "8081:alice:8000") as server:
        assert status(outside) == status(here) == status(outside, host=f"[{OUTSIDE6}]") == REFUSED
        # It is held for her.
        assert subprocess.run([*here, *own[:-1], "8081"], capture_output=True, timeout=20, check=False).returncode == 1
        with network.client.start(own) as service:
            service.wait_line("Serving", 20)
            with connected(network, tmp_path):
                wait_until(lambda: status(outside) == (0, PAGE), 10, lambda: (status(outside), server.process))
                assert status(here) == (0, PAGE)
                assert status(outside, host=f"[{OUTSIDE6}]") == status(here, host=f"[{OUTSIDE6}]") == (0, PAGE)
                # Clients can't reach such an address; who is there may ask all the same.
                assert status(outside, "--interface", PRIVATE) == (0, PAGE)
                visitor = str(server.up["address"])
                assert service.err.wait(lambda line: visitor in line, 10), str(service)
                revoke = [_GINNEL, "user", "revoke", "alice", "--dir", tmp_path / "state"]
                subprocess.run(revoke, check=True, capture_output=True)
                wait_until(lambda: status(outside) == REFUSED, 10, lambda: status(outside))
        assert server.process.stop(signal.SIGTERM, 15) == 0, str(server.process)
    assert state(network.server) == before


def test_what_it_leaves_undone_of_the_machine_is_in_the_log(network: Network, tmp_path: Path) -> None:
    switch = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
    network.server.run(["sh", "-c", f"echo 1 > {switch}"])
    try:
        with TunServer(network, tmp_path) as server:
            told = parse_event(server.process.wait_line("carries IPv4 alone", 10))
            assert told["event"] == "routed_in_part"
            assert server.process.stop(signal.SIGTERM, 15) == 0, str(server.process)
    finally:
        network.server.run(["sh", "-c", f"echo 0 > {switch}"])


def test_no_flow_of_a_clients_has_a_port_of_the_machines_services(
    network: Network, internet: Process, tmp_path: Path
) -> None:
    """From the listener's own port, say: what others send there would go to the client (port shadow)."""
    hear = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("{INTERNET}", 9999))
    print("ready", flush=True)
    for _ in range(5):
        print("from", *sock.recvfrom(100)[1], flush=True)
    print("heard", flush=True)
"""
    say = f"""
import socket
for port in (1194, 53, 22, 32767, 61000):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", port))
        sock.sendto(b"x", ("{INTERNET}", 9999))
"""
    inside = ["nsenter", f"--net=/proc/{internet.pid}/ns/net", sys.executable, "-c", hear]
    with TunServer(network, tmp_path), connected(network, tmp_path) as client, Process(inside) as listener:
        listener.wait_line("ready", 20)
        client.run([sys.executable, "-c", say])
        listener.wait_line("heard", 20)
        heard = [line.split() for line in listener.out.all() if line.startswith("from")]
        assert {host for _, host, _ in heard} == {OUTSIDE}
        assert all(int(port) in PORTS for _, _, port in heard), heard


def test_nobody_outside_opens_a_connection_to_a_client(network: Network, internet: Process, tmp_path: Path) -> None:
    with TunServer(network, tmp_path) as server, connected(network, tmp_path) as client:
        address = client.run(["ip", "-4", "-o", "address", "show", "tun9"]).split()[3].partition("/")[0]
        assert ask(network.server, address) == REPLY
        inside = [f"--net=/proc/{internet.pid}/ns/net", "ip", "route", "add", "10.8.0.0/24", "via", OUTSIDE]
        subprocess.run(["nsenter", *inside], check=True)
        assert ask(internet.pid, address) == (3, 13)
        assert server.process.running


def test_the_process_that_speaks_with_clients_has_no_rights(
    network: Network, internet: Process, tmp_path: Path
) -> None:
    with TunServer(network, tmp_path) as server, connected(network, tmp_path):
        text = Path(f"/proc/{server.process.pid}/status").read_text()
        status = dict(line.split(":\t", 1) for line in text.splitlines())
        # CAP_NET_BIND_SERVICE alone, for a listener on port 443.
        assert int(status["CapEff"], 16) in (0, 1 << 10)
        assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("killed", ["session", "both"])
def test_all_comes_back_after_a_kill(network: Network, internet: Process, tmp_path: Path, killed: str) -> None:
    before = state(network.server)
    with TunServer(network, tmp_path) as server:
        changed = state(network.server)
        assert changed["sysctl"] != before["sysctl"]
        assert changed["nft"] != before["nft"]
        if killed == "both":
            os.kill(server.helper, signal.SIGKILL)
        server.process.stop(signal.SIGKILL)
    if killed == "both":
        with TunServer(network, tmp_path) as server, connected(network, tmp_path) as client:
            assert fetch(client, INTERNET) == PAGE
            assert server.process.stop(signal.SIGINT, 15) == 0
    wait_until(lambda: state(network.server) == before, 10, lambda: (before, state(network.server)))


def test_without_its_helper_it_ends(network: Network, internet: Process, tmp_path: Path) -> None:
    with TunServer(network, tmp_path) as server:
        os.kill(server.helper, signal.SIGKILL)
        assert server.process.wait(15) == 6, str(server.process)
        assert "helper" in server.process.err.all()[-1]
    with TunServer(network, tmp_path) as server:
        server.process.stop(signal.SIGTERM, 15)


def ask(where: Namespace | int, address: str) -> tuple[int, int]:
    """Type and code of the ICMP message that answers an echo request."""
    pid = where if isinstance(where, int) else where.pid
    program = """
import socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
    sock.settimeout(10)
    packet = struct.pack("!BBHHH", 8, 0, 0, 77, 1)
    total = sum(struct.unpack("!4H", packet))
    sock.sendto(packet[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + packet[4:], (sys.argv[1], 0))
    while True:
        answer = sock.recv(2048)[20:]
        if answer[0] != 8:
            print(answer[0], answer[1])
            break
"""
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", program, address]
    kind, code = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split()
    return int(kind), int(code)


REPLY = (0, 0)
# curl's status.
REFUSED = (7, "")
_GINNEL = Path(sys.executable).with_name("ginnel")
