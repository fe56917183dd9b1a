"""``ginnel connect --tun`` against a stock server: what it changes of a machine, and that all of it comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import network as places
from tests.harness import office
from tests.harness.client import curl, wait_until
from tests.harness.environment import Environment
from tests.harness.names import NameServer
from tests.harness.network import ORDINARY_ID, Network
from tests.harness.pcapng import CaptureFile
from tests.harness.process import run
from tests.harness.profile import Profile
from tests.harness.server import Office, StockServer
from tests.harness.tun_client import RESOLV_CONF, Machine, TunClient, way
from tests.harness.wire import Wire

# Everything is drawn into the tunnel, the server's own address by name: it has to stay outside.
EVERYTHING = (
    'push "redirect-gateway def1 ipv6"',
    f'push "route {places.SERVER} 255.255.255.255"',
    'push "route 198.51.100.0 255.255.255.0 net_gateway"',
    "tun-mtu 1400",
)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as network, Office(network.server):
        network.client.ip(f"route add default via {places.SERVER}", f"route add default via {places.SERVER6}")
        yield network


@pytest.fixture(scope="module")
def profile() -> Profile:
    return Profile(keepalive=(1, 4), server_options=EVERYTHING)


@pytest.fixture(scope="module")
def server(network: Network, profile: Profile) -> Iterator[StockServer]:
    with StockServer(network, profile) as server:
        yield server


def test_every_program_is_inside(machine: Machine, server: StockServer) -> None:
    before = machine.state()
    with machine.start(server.profile, "--dev", "office0") as client:
        up = client.wait_next("up")
        assert up["device"] == "office0"
        # Names are asked of the server that was pushed, with the domain that was.
        for host in (office.ADDRESS, f"[{office.ADDRESS6}]", "wiki.office", "wiki"):
            assert client.run("curl", "--silent", "--show-error", "--max-time", "10", f"http://{host}/").encode() == (
                office.PAGE
            ), host
        ways = {where: way(client, where) for where in ("1.2.3.4", "2600::1", "fd12::1", places.SERVER)}
        assert ways == {"1.2.3.4": "office0", "2600::1": "office0", "fd12::1": "office0", places.SERVER: "eth0"}
        assert way(client, "198.51.100.9") == "eth0"
        assert "mtu 1400" in client.run("ip", "link", "show", "office0")
        client.stop()
    assert machine.state() == before


def test_a_default_route_of_the_file_counts_beside_the_machines(machine: Machine, server: StockServer) -> None:
    """The kernel takes no second one of the same metric."""
    lines = ('pull-filter ignore "redirect-gateway"', "route 0.0.0.0 0.0.0.0", "route-ipv6 ::/0", "")
    before = machine.state()
    with machine.start(server.profile.client_file() + "\n".join(lines), "--dev", "office0") as client:
        client.wait_next("up")
        assert {way(client, where) for where in ("1.2.3.4", "198.18.0.1", "2600::1", "fd12::1")} == {"office0"}
        assert way(client, places.SERVER) == "eth0"
        client.stop()
    assert machine.state() == before


def test_the_mtu_of_a_connection_block(machine: Machine, server: StockServer) -> None:
    remote = f"remote {places.SERVER} 1194\n"
    text = server.profile.client_file().replace(remote, f"<connection>\n{remote}tun-mtu 1300\n</connection>\n")
    with machine.start(text + "pull-filter ignore tun-mtu\n", "--dev", "office0") as client:
        client.wait_next("up")
        assert "mtu 1300" in client.run("ip", "link", "show", "office0")
        client.stop()


def test_addresses_and_routes_that_are_left_to_others(machine: Machine, server: StockServer) -> None:
    before = machine.state()
    for lines, addressed, led in (
        (("route-noexec", "route-table 7"), True, False),
        (("ifconfig-noexec", "route 10.99.0.0 255.255.0.0"), False, True),
    ):
        profile = replace(server.profile, client_options=(*server.profile.client_options, *lines))
        with machine.start(profile, "--dev", "office0") as client:
            client.wait_next("up")
            assert ("inet " in client.run("ip", "address", "show", "dev", "office0")) == addressed
            assert (way(client, "10.99.0.1") == "office0") == led
            assert way(client, "1.2.3.4") != "office0"
            client.stop()
        assert machine.state() == before
    profile = replace(server.profile, client_options=(*server.profile.client_options, "route-table 7"))
    with machine.start(profile) as client:
        assert client.process.wait(20) == 2, str(client.process)
        assert "add route-noexec" in client.process.err.all()[-1]


@pytest.mark.parametrize(("topology", "peer"), [("net30", "10.8.0.5"), ("p2p", "10.8.0.1")])
def test_a_point_to_point_topology(
    network: Network, machine: Machine, server: StockServer, topology: str, peer: str
) -> None:
    """An address without a network, and another end that routes go by."""
    other = replace(server.profile, server_options=(*EVERYTHING, f"topology {topology}"))
    before = machine.state()
    with contextlib.ExitStack() as stack:
        stack.callback(server.start)
        server.kill()
        stack.enter_context(StockServer(network, other))
        with machine.start(other, "--dev", "office0") as client:
            address = client.wait_next("up")["address"].removesuffix("/32")
            assert f"inet {address} peer {peer}/32" in client.run("ip", "address", "show", "dev", "office0")
            for host in (office.ADDRESS, f"[{office.ADDRESS6}]", "wiki.office"):
                fetched = client.run("curl", "--silent", "--show-error", "--max-time", "10", f"http://{host}/")
                assert fetched.encode() == office.PAGE, host
            assert {way(client, where) for where in ("1.2.3.4", "2600::1", peer)} == {"office0"}
            client.stop()
    assert machine.state() == before


def test_an_ethernet_tunnel_on_a_device_of_the_kernels() -> None:
    """``dev tap``: the kernel's neighbours are found through the tunnel, and what is far by the server."""
    options = ("dev tap0", 'push "redirect-gateway def1 ipv6"', 'push "route-gateway 10.8.0.1"')
    profile = Profile(server_options=options, client_options=("dev tap",))
    with Network() as network, Office(network.server), Machine(network) as machine, StockServer(network, profile):
        network.client.ip(f"route add default via {places.SERVER}", f"route add default via {places.SERVER6}")
        before = machine.state()
        with machine.start(profile, "--dev", "office1") as client:
            client.wait_next("up")
            assert way(client, "1.2.3.4") == "office1"
            for host in (office.ADDRESS, f"[{office.ADDRESS6}]", "wiki.office"):
                fetched = client.run("curl", "--silent", "--show-error", "--max-time", "10", f"http://{host}/")
                assert fetched.encode() == office.PAGE, host
            assert "10.8.0.1" in client.run("ip", "neighbour", "show", "dev", "office1")
            client.stop()
        assert machine.state() == before


def test_a_capture_has_every_packet_as_it_was_on_the_way(machine: Machine, server: StockServer, tmp_path: Path) -> None:
    file = tmp_path / "office.pcapng"
    with machine.start(server.profile, "--dev", "office0", "--capture", str(file)) as client:
        client.wait_next("up")
        client.run("curl", "--silent", "--max-time", "20", "--output", "/dev/null", f"http://{office.ADDRESS}/")
        client.stop()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    capture = CaptureFile(file)
    assert (capture.link_type, capture.name) == (101, "office0")
    assert [packet.direction for packet in capture.packets if b"GET /" in packet.data] == ["out"]
    ipv4 = [packet.data for packet in capture.packets if packet.data[0] >> 4 == 4]
    # Not the long pieces in which the kernel hands them over.
    assert all(int.from_bytes(data[2:4], "big") == len(data) <= 1400 for data in ipv4)
    # Wireshark finds the request and its answer, with nothing missing in between.
    words = ["-Y", "http or tcp.analysis.lost_segment", "-T", "fields", "-e", "http.request.method"]
    fields = run(["tshark", "-r", file, *words, "-e", "http.response.code", "-e", "tcp.analysis.lost_segment"])
    assert [line.split() for line in fields.splitlines()] == [["GET"], ["200"]]


def test_the_session_has_no_rights_left(machine: Machine, server: StockServer) -> None:
    with machine.start(server.profile) as client:
        client.wait_next("up")
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{client.pid}/status").read_text().splitlines())
        assert status["Uid"].split() == status["Gid"].split() == [str(ORDINARY_ID)] * 4
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        threads = [(entry / "status").read_text() for entry in Path(f"/proc/{client.pid}/task").iterdir()]
        assert all("CapEff:\t" + "0" * 16 in thread for thread in threads)
        client.stop()


def test_a_port_below_1024_and_a_device_that_the_file_names(machine: Machine, server: StockServer) -> None:
    """For the port it keeps the one right that it may."""
    text = server.profile.client_file().replace("nobind\n", "lport 601\n")
    text = text.replace("dev tun\n", "dev office7\ndev-type tun\n")
    with machine.start(text) as client:
        assert client.wait_next("up")["device"] == "office7"
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{client.pid}/status").read_text().splitlines())
        assert status["Uid"].split() == [str(ORDINARY_ID)] * 4
        assert status["CapEff"] == status["CapPrm"] == f"{1 << 10:016x}"
        server.kill()
        server.start()
        client.wait_next("up")
        client.stop()
        assert any(f"[AF_INET]{places.CLIENT}:601" in line for line in server.log)


def test_a_next_run_puts_back_what_killed_ones_left(machine: Machine, server: StockServer) -> None:
    before = machine.state()
    with machine.start(server.profile, "--kill-switch") as client:
        client.wait_next("up")
        os.kill(client.helper, signal.SIGKILL)
        client.process.stop(signal.SIGKILL)
    left = machine.state()
    assert left["resolv.conf"] != RESOLV_CONF
    assert left["nft"] != before["nft"]
    assert left["routes"] != before["routes"]
    with machine.start(server.profile) as client:
        client.wait_next("up")
        assert machine.state()["nft"] == before["nft"]
        client.stop()
        assert "an earlier run was killed" in "\n".join(client.process.err.all())
    assert machine.state() == before
    assert machine.journals() == []


def test_what_cannot_be_put_back_is_put_back_by_the_next_run(
    machine: Machine, server: StockServer, tmp_path: Path
) -> None:
    """And not forgotten: whoever has no network would not know why."""
    nft = tmp_path / "nft"
    nft.write_text(
        '#!/bin/sh\ntext=$(cat)\ncase $text in *policy*) echo "$text" | /usr/sbin/nft -f - ;; *) exit 1; esac\n'
    )
    nft.chmod(0o755)
    before = machine.state()
    with machine.start(server.profile, "--kill-switch", programs=tmp_path) as client:
        client.wait_next("up")
        client.stop()
        assert any("put back" in line for line in client.process.err.all()), str(client.process)
    assert {name for name, text in machine.state().items() if text != before[name]} == {"nft"}
    with machine.start(server.profile, programs=tmp_path) as client:
        assert client.process.wait(20) == 6, str(client.process)
        assert "cannot be put back: kill switch" in client.process.err.all()[-1]
    with machine.start(server.profile) as client:
        client.wait_next("up")
        client.stop()
    assert machine.state() == before
    assert machine.journals() == []


def test_without_its_helper_it_ends(machine: Machine, server: StockServer) -> None:
    before = machine.state()
    with machine.start(server.profile) as client:
        client.wait_next("up")
        os.kill(client.helper, signal.SIGKILL)
        assert client.process.wait(10) == 6, str(client.process)
        assert "helper" in client.process.err.all()[-1]
    with machine.start(server.profile) as client:
        client.wait_next("up")
        client.stop()
    assert machine.state() == before


def test_a_device_that_somebody_deletes_ends_it_with_one_line(machine: Machine, server: StockServer) -> None:
    before = machine.state()
    with machine.start(server.profile, "--dev", "office0") as client:
        client.wait_next("up")
        machine.namespace.ip("link delete office0")
        assert client.process.wait(10) == 6, str(client.process)
        assert "device is gone" in client.process.err.all()[-1]
        wait_until(lambda: machine.state() == before, 10, lambda: (before, machine.state()))
    assert machine.journals() == []


def test_a_new_address_comes_to_the_same_device(network: Network, machine: Machine, server: StockServer) -> None:
    before = machine.state()
    server.kill()
    first = Profile(keepalive=(1, 4))
    other = Profile(server_options=("server 10.9.0.0 255.255.255.0", "server-ipv6 fd09::/64"))
    with machine.start(first) as client:
        with StockServer(network, first):
            client.wait_next("up")
            index = client.run("ip", "-o", "link", "show", "tun0").split()[0]
        client.wait_next("reconnecting")
        with StockServer(network, other):
            up = client.wait_next("up")
            assert up["address"].startswith("10.9.0.")
            addresses = client.run("ip", "-o", "address", "show", "tun0")
            assert "10.9.0." in addresses
            assert "10.8.0." not in addresses
            assert "fd08:" not in addresses
            assert client.run("ip", "-o", "link", "show", "tun0").split()[0] == index
            client.stop()
    server.start()
    assert machine.state() == before


def test_where_ipv6_is_switched_off_the_tunnel_carries_ipv4(machine: Machine, server: StockServer) -> None:
    """And IPv6 that others have is not forgotten: it leaves past the tunnel, and a line says so."""
    switch = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
    machine.namespace.run(["sh", "-c", f"echo 1 > {switch}"])
    try:
        before = machine.state()
        with machine.start(server.profile) as client:
            client.wait_next("up")
            fetch = ("curl", "--silent", "--show-error", "--max-time", "10", f"http://{office.ADDRESS}/")
            assert client.run(*fetch).encode() == office.PAGE
            client.stop()
            told = client.process.err.all()
            assert any("IPv6 is switched off here" in line for line in told), told
            assert any("IPv6 leaves past the tunnel" in line for line in told), told
        assert machine.state() == before
    finally:
        machine.namespace.run(["sh", "-c", f"echo 0 > {switch}"])


def test_what_is_drawn_in_does_not_leave_while_it_reconnects(machine: Machine, server: StockServer) -> None:
    """Without a kill switch, too: routes stay while the tunnel is down."""
    far = {"203.0.113.9", "2001:db8:1::9"}
    with Wire(server.network) as wire, machine.start(server.profile) as client:
        client.wait_next("up")
        wire.take()
        server.kill()
        try:
            client.process.send_signal(signal.SIGUSR1)
            client.wait_next("reconnecting")
            send_anywhere(client)
        finally:
            server.start()
        client.wait_next("up")
        send_anywhere(client)
        assert not far & {address for address, _ in wire.take()}
        client.stop()
        send_anywhere(client)
        assert far <= {address for address, _ in wire.take()}


def test_the_kill_switch_holds_while_it_reconnects(machine: Machine, server: StockServer) -> None:
    before = machine.state()
    with Wire(server.network) as wire, machine.start(server.profile, "--kill-switch") as client:
        client.wait_next("up")
        # As a hostile DHCP server would (TunnelVision): narrower than what the tunnel covers.
        machine.namespace.ip(f"route add 203.0.113.0/24 via {places.SERVER}")
        wire.take()
        server.kill()
        try:
            send_anywhere(client)
            client.wait_next("reconnecting")
            send_anywhere(client)
        finally:
            server.start()
        client.wait_next("up")
        send_anywhere(client)
        assert curl(server.network.client, f"http://{office.ADDRESS}/").encode() == office.PAGE
        seen = wire.take()
        assert seen
        assert {kind for kind in seen if kind[:2] != (places.SERVER, 17)} == set()
        machine.namespace.ip(f"route del 203.0.113.0/24 via {places.SERVER}")
        client.stop()
        # The wire does see what leaves without it.
        send_anywhere(client)
        assert ("203.0.113.9", 17) in wire.take()
    assert machine.state() == before


def test_the_way_to_the_server_follows_the_machines_routes(
    network: Network, machine: Machine, server: StockServer
) -> None:
    """Another router while the tunnel is up, and none for a while: no packet of the tunnel goes into the tunnel."""
    far, router = "198.51.100.77", "192.0.2.3"
    other = replace(server.profile, address=far, server_options=('push "redirect-gateway def1 ipv6"',))
    page = ("curl", "--silent", "--show-error", "--max-time", "10", f"http://{office.ADDRESS}/")
    with contextlib.ExitStack() as stack:
        stack.callback(server.start)
        server.kill()
        network.server.ip(f"address add {far}/32 dev lo", f"address add {router}/24 dev eth0")
        stack.callback(network.server.ip, f"address delete {far}/32 dev lo", f"address delete {router}/24 dev eth0")
        stack.enter_context(StockServer(network, other))
        before = machine.state()
        client = stack.enter_context(machine.start(other))
        client.wait_next("up")
        assert gateway(client, far) == places.SERVER
        machine.namespace.ip(f"route replace default via {router}")
        wait_until(lambda: gateway(client, far) == router, 10, lambda: client.run("ip", "route"))
        assert client.run(*page).encode() == office.PAGE
        machine.namespace.ip("route delete default")
        wait_until(lambda: f"unreachable {far}" in client.run("ip", "route"), 10, lambda: client.run("ip", "route"))
        machine.namespace.ip(f"route add default via {places.SERVER}")
        wait_until(lambda: gateway(client, far) == places.SERVER, 10, lambda: client.run("ip", "route"))
        wait_until(lambda: client.run(*page, check=False).encode() == office.PAGE, 30, lambda: client.process)
        client.stop()
        assert machine.state() == before


def gateway(client: TunClient, address: str) -> str | None:
    """The router that packets to an address go by."""
    routes = json.loads(client.run("ip", "-json", "route", "get", address, check=False) or "[]")
    return str(routes[0].get("gateway")) if routes else None


def test_the_kill_switch_outlives_a_killed_session(machine: Machine, server: StockServer) -> None:
    before = machine.state()
    with machine.start(server.profile, "--kill-switch") as client:
        client.wait_next("up")
        client.process.stop(signal.SIGKILL)
    wait_until(lambda: machine.state()["routes"] == before["routes"], 10, machine.state)
    assert "table inet ginnel" in machine.state()["nft"]
    # By its name, for which nothing but the machine's name server can be asked.
    by_name = replace(server.profile, address="vpn.example").client_file()
    with (
        NameServer(server.network.server, {"vpn.example": places.SERVER}) as names,
        machine.asking(names.resolv_conf),
        Wire(server.network) as wire,
        machine.start(by_name, "--kill-switch") as client,
    ):
        client.wait_next("up")
        assert {kind[:2] for kind in wire.take()} == {(places.SERVER, 17), (names.address, 17)}
        client.stop()
    wait_until(lambda: machine.state() == before, 10, lambda: (before, machine.state()))


def test_what_it_says_where_it_cannot(machine: Machine, ordinary_env: Environment, server: StockServer) -> None:
    before = machine.state()

    def fail(status: int, words: str, *options: str, ordinary: bool = False, under: Sequence[str] = ()) -> None:
        command = [*under, ordinary_env.ginnel, "connect", machine.folder / "office.ovpn", *options]
        with machine.namespace.start(command, ordinary=ordinary, cwd=Path("/")) as process:
            assert process.wait(20) == status, str(process)
            lines = process.err.all()
            assert len(lines) == 1, str(process)
            assert words in lines[0]

    file = machine.folder / "office.ovpn"
    file.write_text(server.profile.client_file())
    machine.folder.chmod(0o755)
    file.chmod(0o644)
    fail(6, "leave out --tun", "--tun", ordinary=True)
    fail(6, "there already", "--tun", "--dev", "eth0")
    fail(2, "no name for a device", "--tun", "--dev", 'x"y')
    fail(2, "--tun", "--dev", "tun5")
    full = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs -o ro none /run; exec "$@"', "sh"]
    fail(6, "nothing is changed", "--tun", under=full)
    fail(2, "--tun", "--kill-switch")
    fail(2, "leave them out", "--tun", "--socks", "1080")
    assert machine.state() == before
    assert machine.journals() == []


@pytest.mark.parametrize("sockets", [False, True])
def test_a_helper_lets_through_only_what_it_was_told_first(machine: Machine, sockets: bool) -> None:
    """What asks later has talked to the network, and may no longer be what it was."""
    ours, theirs = socket.socketpair()
    command = machine.namespace.command([sys.executable, "-m", "ginnel.network.helper"])
    with (
        theirs,
        subprocess.Popen(command, stdin=theirs.fileno(), cwd=Path(__file__).parents[2]) as helper,
        ours.makefile("rb") as answers,
        # First of all, whatever fails: the helper, which is waited for, ends with it.
        ours,
    ):
        theirs.close()

        def ask(*lent: socket.socket, **request: object) -> bool:
            data = json.dumps(request).encode() + b"\n"
            socket.send_fds(ours, [data], [sock.fileno() for sock in lent])
            return "ok" in json.loads(answers.readline())

        assert ask(do="device", name="office0", kind="tun", queues=1)
        assert not ask(do="guard", servers=[[places.SERVER, 1194, "udp"]])
        assert not ask(do="ports", ports=[[0, "udp"]], sockets=True)
        assert ask(do="ports", ports=[[1194, "udp"]], sockets=sockets)
        assert not ask(do="ports", ports=[[53, "udp"]], sockets=True)
        assert ask(do="guard", servers=[[places.SERVER, 1194, "udp"], [places.SERVER6, 1194, "udp"]])
        for server in ([places.SERVER, 53, "udp"], [places.SERVER, 1194, "tcp"], [places.SERVER, 0, "udp"]):
            assert not ask(do="guard", servers=[server])
        with socket.socket(type=socket.SOCK_DGRAM) as datagrams, socket.socket() as stream:
            assert ask(datagrams, do="through") == sockets
            assert (datagrams.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) != 0) == sockets
            assert not ask(stream, do="through")
        assert not ask(do="through")
        assert ask(do="names")
        assert ask(do="release")
        ours.shutdown(socket.SHUT_RDWR)
        assert helper.wait(10) == 0
    assert machine.journals() == []


def send_anywhere(client: TunClient) -> None:
    """What programs send while nobody looks after them; that it fails is well."""
    with client.machine.namespace.entered():
        for family, address in (
            (socket.AF_INET, "203.0.113.9"),
            (socket.AF_INET, places.SERVER),
            (socket.AF_INET6, "2001:db8:1::9"),
            (socket.AF_INET6, places.SERVER6),
        ):
            for kind, port in ((socket.SOCK_DGRAM, 53), (socket.SOCK_DGRAM, 5353), (socket.SOCK_STREAM, 80)):
                with socket.socket(family, kind) as sock, contextlib.suppress(OSError):
                    sock.setblocking(False)
                    if kind == socket.SOCK_DGRAM:
                        sock.sendto(b"leak", (address, port))
                    else:
                        sock.connect((address, port))
