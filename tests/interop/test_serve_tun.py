"""``ginnel serve --tun``: stock clients go out through the kernel, behind the server's address, as far as allowed."""

from __future__ import annotations

import contextlib
import os
import pwd
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
from tests.harness.environment import Environment
from tests.harness.network import CLIENT, CLIENT6, SERVER, SERVER6, Namespace, Network
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


@pytest.fixture
def home(ordinary_env: Environment) -> Iterator[Path]:
    """Of the user whose the server's state is."""
    with tempfile.TemporaryDirectory(prefix="ginnel-home-") as name:
        home = Path(name)
        (home / "state").mkdir(mode=0o700)
        for folder in (home, home / "state"):
            os.chown(folder, OWNER.pw_uid, OWNER.pw_gid)
        (home / "ginnel").symlink_to(ordinary_env.ginnel)
        yield home


class TunServer:
    """``ginnel serve --tun --json``, started by root in the server's namespace."""

    def __init__(self, network: Network, home: Path, *options: str | Path) -> None:
        self.namespace = network.server
        self.state = home / "state"
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
def connected(network: Network, home: Path) -> Iterator[Namespace]:
    """A stock client with a kernel's device, in the client's namespace."""
    file = home / "alice.ovpn"
    if not file.exists():
        as_owner(network, home, "user", "add", "alice", "-o", file)
    with network.client.start(
        ["openvpn", "--config", file, "--dev", "tun9", "--disable-dco", "--resolv-retry", "0"]
    ) as client:
        client.wait_line("Initialization Sequence Completed", 30)
        yield network.client


def as_owner(network: Network, home: Path, *words: str | Path) -> str:
    """A command for the server, by the user whose its state is."""
    ids = ["--reuid", str(OWNER.pw_uid), "--regid", str(OWNER.pw_gid), "--clear-groups"]
    return network.server.run(["setpriv", *ids, home / "ginnel", *words, "--dir", home / "state"])


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
    network: Network, internet: Process, home: Path, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    monkeypatch.setenv("GINNEL_THREADS", threads)
    before = state(network.server)
    own = ["env", f"--chdir={home}", sys.executable, "-u", "-m", "http.server", "8080"]
    Path(home, "index.html").write_text(PAGE)
    with (
        network.server.start(own) as service,
        TunServer(network, home, "--dev", "office0", "--allow", f"{ALLOWED}/32") as server,
    ):
        service.wait_line("Serving", 20)
        # It is there for who is not a client.
        inside = [f"--net=/proc/{internet.pid}/ns/net", "curl", "--silent", f"http://{OUTSIDE}:8080/"]
        assert subprocess.run(["nsenter", *inside], capture_output=True, text=True, check=True).stdout == PAGE
        assert server.up["device"] == "office0"
        with connected(network, home) as client:
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


def test_a_published_port_leads_to_a_client_while_it_is_there(network: Network, internet: Process, home: Path) -> None:
    """From outside and from the machine itself; the client knows no way to who asks."""
    before = state(network.server)
    own = ["env", f"--chdir={home}", sys.executable, "-u", "-m", "http.server", "--bind", "::", "8000"]
    Path(home, "index.html").write_text(PAGE)
    outside = ["nsenter", f"--net=/proc/{internet.pid}/ns/net"]

    def status(prefix: list[str], *options: str, host: str = OUTSIDE) -> tuple[int, str]:
        words = [*prefix, "curl", "--silent", "--max-time", "5", *options, f"http://{host}:8081/"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    here = ["nsenter", f"--net=/proc/{network.server.pid}/ns/net"]
    with TunServer(network, home, "--publish", "8081:alice:8000") as server:
        assert status(outside) == status(here) == status(outside, host=f"[{OUTSIDE6}]") == REFUSED
        # It is held for her.
        assert subprocess.run([*here, *own[:-1], "8081"], capture_output=True, timeout=20, check=False).returncode == 1
        with network.client.start(own) as service:
            service.wait_line("Serving", 20)
            with connected(network, home):
                wait_until(lambda: status(outside) == (0, PAGE), 10, lambda: (status(outside), server.process))
                assert status(here) == (0, PAGE)
                assert status(outside, host=f"[{OUTSIDE6}]") == status(here, host=f"[{OUTSIDE6}]") == (0, PAGE)
                # Clients can't reach such an address; who is there may ask all the same.
                assert status(outside, "--interface", PRIVATE) == (0, PAGE)
                visitor = str(server.up["address"])
                assert service.err.wait(lambda line: visitor in line, 10), str(service)
                as_owner(network, home, "user", "revoke", "alice")
                wait_until(lambda: status(outside) == REFUSED, 10, lambda: status(outside))
        assert server.process.stop(signal.SIGTERM, 15) == 0, str(server.process)
    assert state(network.server) == before


def test_what_it_leaves_undone_of_the_machine_is_in_the_log(network: Network, home: Path) -> None:
    switch = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
    network.server.run(["sh", "-c", f"echo 1 > {switch}"])
    try:
        with TunServer(network, home) as server:
            told = parse_event(server.process.wait_line("carries IPv4 alone", 10))
            assert told["event"] == "routed_in_part"
            assert server.process.stop(signal.SIGTERM, 15) == 0, str(server.process)
    finally:
        network.server.run(["sh", "-c", f"echo 0 > {switch}"])


def test_no_flow_of_a_clients_has_a_port_of_the_machines_services(
    network: Network, internet: Process, home: Path
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
    with TunServer(network, home), connected(network, home) as client, Process(inside) as listener:
        listener.wait_line("ready", 20)
        client.run([sys.executable, "-c", say])
        listener.wait_line("heard", 20)
        heard = [line.split() for line in listener.out.all() if line.startswith("from")]
        assert {host for _, host, _ in heard} == {OUTSIDE}
        assert all(int(port) in PORTS for _, _, port in heard), heard


@pytest.mark.parametrize("forwards", ["nothing", "one link's", "all"])
def test_a_machine_forwards_for_others_what_it_did_before(
    network: Network, internet: Process, home: Path, forwards: str
) -> None:
    """Its two other links are no clients, and know a way through it."""
    inside = ["nsenter", f"--net=/proc/{internet.pid}/ns/net", "ip"]
    switches = {
        "nothing": [],
        "one link's": ["ipv4/conf/eth0/forwarding", "ipv4/conf/out/forwarding"],
        "all": ["ipv4/ip_forward", "ipv6/conf/all/forwarding"],
    }[forwards]

    def switch(value: int) -> None:
        for path in switches:
            network.server.run(["sh", "-c", f"echo {value} > /proc/sys/net/{path}"])

    def reached() -> list[bool]:
        words = ["curl", "--silent", "--max-time", "1"]
        return [
            network.client.run([*words, f"http://{host}/"], check=False) == PAGE
            for host in (INTERNET, f"[{INTERNET6}]")
        ]

    network.client.ip(f"route add {INTERNET} via {SERVER}", f"route add {INTERNET6} via {SERVER6}")
    for way in (f"{CLIENT} via {OUTSIDE}", f"{CLIENT6} via {OUTSIDE6}"):
        subprocess.run([*inside, "route", "add", *way.split()], check=True)
    try:
        switch(1)
        before = reached()
        assert before == {"nothing": [False] * 2, "one link's": [True, False], "all": [True] * 2}[forwards]
        with TunServer(network, home) as server:
            assert reached() == before
            server.process.stop(signal.SIGTERM, 15)
        assert reached() == before
    finally:
        switch(0)
        for way in (CLIENT, CLIENT6):
            subprocess.run([*inside, "route", "del", way], check=True)
        network.client.ip(f"route del {INTERNET}", f"route del {INTERNET6}")


def test_nobody_outside_opens_a_connection_to_a_client(network: Network, internet: Process, home: Path) -> None:
    with TunServer(network, home) as server, connected(network, home) as client:
        address = client.run(["ip", "-4", "-o", "address", "show", "tun9"]).split()[3].partition("/")[0]
        assert ask(network.server, address) == REPLY
        inside = [f"--net=/proc/{internet.pid}/ns/net", "ip", "route", "add", "10.8.0.0/24", "via", OUTSIDE]
        subprocess.run(["nsenter", *inside], check=True)
        assert ask(internet.pid, address) == (3, 13)
        assert server.process.running


def test_the_process_that_speaks_with_clients_has_no_rights(network: Network, internet: Process, home: Path) -> None:
    """It is the user whose its state is, in every thread, and so are the programs that it asks."""
    told = home / "state/told"
    (home / "state/server.toml").write_text(f"connected = ['/bin/sh', '-c', 'id -u > {told}']\n")
    os.chown(home / "state/server.toml", OWNER.pw_uid, OWNER.pw_gid)
    with TunServer(network, home, "--listen", "tcp:0.0.0.0:443") as server, connected(network, home):
        check_rights(server)
        assert told.read_text().split() == [str(OWNER.pw_uid)]
        as_owner(network, home, "user", "revoke", "alice")
        wait_until(lambda: "nobody is" in as_owner(network, home, "status", "--once"), 10, lambda: server.process)
        files = [home / "state", *(home / "state").rglob("*")]
        assert {path.stat().st_uid for path in files} == {OWNER.pw_uid}, files
        assert server.process.stop(signal.SIGTERM, 15) == 0, str(server.process)
        assert not [line for line in server.process.err.all() if "Traceback" in line], str(server.process)


def test_root_serves_for_nobody_who_owns_what_root_owns(network: Network, home: Path) -> None:
    """Without a directory it is the one's who called sudo; root's is refused, in a line."""
    own = {**os.environ, "HOME": str(home / "of-root")}

    def start(*words: str | Path, **more: str) -> Process:
        words = ("serve", "--tun", "--json", "--listen", f"udp:{SERVER}:1195", *words)
        return network.server.start([_GINNEL, *words], env={**own, **more})

    with start("--dir", home / "state", SUDO_UID="65534") as server:
        parse_event(server.wait_line('"event": "up"', 30))
        assert f"Uid:\t{OWNER.pw_uid}" in Path(f"/proc/{server.pid}/status").read_text()
        assert server.stop(signal.SIGTERM, 15) == 0, str(server)
    with start("--dir", home / "new", SUDO_UID=str(OWNER.pw_uid)) as server:
        parse_event(server.wait_line('"event": "up"', 30))
        assert (home / "new").stat().st_uid == OWNER.pw_uid
        assert server.stop(signal.SIGTERM, 15) == 0, str(server)
    (home / "of-root/.local/state/ginnel").mkdir(parents=True)
    for words, sudo, said in (
        ((), str(OWNER.pw_uid), "is root's"),
        (("--dir", home / "of-root"), "", "is root's"),
        (("--dir", home / "nowhere"), "0", "install -d -m 700 -o USER"),
    ):
        with start(*words, SUDO_UID=sudo) as server:
            assert server.wait(20) == 2, str(server)
            assert said in server.err.all()[-1]
            assert len(server.err.all()) == 1


@pytest.mark.parametrize("network4", ["192.0.2.0/24", "192.0.0.0/16"])
def test_a_network_that_the_machine_has_elsewhere_is_refused(
    network: Network, internet: Process, home: Path, network4: str
) -> None:
    before = state(network.server)
    (home / "state/server.toml").write_text(f'network = "{network4}"')
    (home / "state/server.toml").chmod(0o644)
    words = ["serve", "--tun", "--json", "--dir", home / "state", "--listen", f"udp:{SERVER}:1194"]
    with network.server.start([_GINNEL, *words], env=dict(os.environ)) as server:
        assert server.wait(20) == 2, str(server)
        assert f"{network4}, the clients' network, is on " in server.err.all()[-1]
    assert state(network.server) == before


def test_no_module_of_the_current_directory_is_roots(network: Network, home: Path) -> None:
    (home / "json.py").write_text(f"open({str(home / 'was-loaded')!r}, 'w')\nraise SystemExit(7)\n")
    words = [_GINNEL, "serve", "--tun", "--json", "--listen", f"udp:{SERVER}:1195", "--dir", home / "state"]
    with network.server.start(words, env=dict(os.environ), cwd=home) as server:
        server.wait_line('"event": "up"', 30)
        assert server.stop(signal.SIGTERM, 15) == 0, str(server)
    assert not (home / "was-loaded").exists()


def check_rights(server: TunServer) -> None:
    for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines())
        # CAP_NET_BIND_SERVICE alone, for a listener on port 443.
        assert int(status["CapEff"], 16) in (0, 1 << 10), status["Name"]
        assert status["NoNewPrivs"] == "1"
        assert status["Uid"].split() == [str(OWNER.pw_uid)] * 4
        assert status["Gid"].split() == [str(OWNER.pw_gid)] * 4
        assert status["Groups"].split() == []


@pytest.mark.parametrize("killed", ["session", "both"])
def test_all_comes_back_after_a_kill(network: Network, internet: Process, home: Path, killed: str) -> None:
    before = state(network.server)
    with TunServer(network, home) as server:
        changed = state(network.server)
        assert changed["sysctl"] != before["sysctl"]
        assert changed["nft"] != before["nft"]
        if killed == "both":
            os.kill(server.helper, signal.SIGKILL)
        server.process.stop(signal.SIGKILL)
    if killed == "both":
        with TunServer(network, home) as server, connected(network, home) as client:
            # What it has to say of the one before is no reason for a thread with rights.
            check_rights(server)
            assert fetch(client, INTERNET) == PAGE
            assert server.process.stop(signal.SIGINT, 15) == 0
    wait_until(lambda: state(network.server) == before, 10, lambda: (before, state(network.server)))


def test_without_its_helper_it_ends(network: Network, internet: Process, home: Path) -> None:
    with TunServer(network, home) as server:
        os.kill(server.helper, signal.SIGKILL)
        assert server.process.wait(15) == 6, str(server.process)
        assert "helper" in server.process.err.all()[-1]
    with TunServer(network, home) as server:
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


# Of the server's state; one that each system has.
OWNER = pwd.getpwnam("daemon")
REPLY = (0, 0)
# curl's status.
REFUSED = (7, "")
_GINNEL = Path(sys.executable).with_name("ginnel")
