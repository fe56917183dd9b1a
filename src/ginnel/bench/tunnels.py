"""The tunnels that are compared. All have AES-256-GCM (WireGuard has only its own cipher), a device MTU of 1500
(WireGuard's 1420) and a keepalive of 10 and 60 seconds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ginnel.bench import plumbing, shaper
from ginnel.bench.ping import LOST
from ginnel.bench.spaces import LEFT, RIGHT, BenchError, Program, Space
from ginnel.network.rights import NOBODY
from ginnel.server.authority import Authority, now
from ginnel.server.client_file import client_file
from ginnel.server.store import open_store

# Where iperf3 listens, and a forward that leads to it.
IPERF, FORWARD = 5201, 15201
# Whose file a single client has.
USER = "client.ovpn"


@dataclass(frozen=True)
class Tunnel:
    """One that is up. ``far`` is the right side's address inside; ``ours`` and ``ends`` are the processes of
    ginnel and of both ends. One of which only ``streams`` are measured leads to iperf3 alone, at ``port``. ``devices``
    are those of many clients, of which each has one."""

    name: str
    left: Space
    right: Space
    far: str
    ours: list[Program]
    ends: list[Program]
    port: int = IPERF
    streams: bool = False
    devices: tuple[str, ...] = ()


@contextlib.contextmanager
def open_tunnel(name: str, left: Space, right: Space, crowd: int) -> Iterator[Tunnel]:
    """``crowd``: how many clients one of many has."""
    with contextlib.ExitStack() as stack:
        if name in _CROWDS:
            devices = tuple(f"crowd{number}" for number in range(crowd))
            tunnel = _CROWDS[name](stack, left, right, devices)
        else:
            tunnel = _KINDS[name](stack, left, right)
        words = [sys.executable, "-m", "ginnel.bench.ping", tunnel.far, "20", "0.05"]
        if not tunnel.streams and LOST in json.loads(left.run(*words))[10:]:
            raise BenchError(f"{name}: echo requests are lost in a tunnel that nothing else passes")
        yield tunnel


def available(crowd: int) -> dict[str, str]:
    """The tunnels that can be opened here, each with what it is."""
    found = {"ginnel": "ginnel serve --tun and ginnel connect --tun"}
    if shutil.which("ethtool"):
        found["unsegmented"] = "the same, UDP segmentation offload off on the way between them"
    found["user-space"] = "ginnel serve and ginnel connect -L, no kernel device"
    found["lossy"] = f"the same, {LOSSY}"
    found["lossy-kernel"] = f"ginnel serve --tun and ginnel connect --tun, {LOSSY}"
    found["crowd"] = f"ginnel serve --tun and {crowd} times ginnel connect --tun, a stream each at once"
    found["plumbing"] = "devices joined by UDP in Python, no protocol, no cipher: the limit of what is around them"
    if shutil.which("openvpn"):
        stock = subprocess.run(["openvpn", "--version"], capture_output=True, text=True).stdout.split()[1]
        found["mixed"] = f"ginnel connect --tun, OpenVPN {stock} as the server"
        found["mixed-server"] = f"ginnel serve --tun, OpenVPN {stock} as the client"
        found["stock"] = f"OpenVPN {stock} at both ends, without DCO"
        found["stock-crowd"] = f"the same with {crowd} clients, a stream each at once"
    if shutil.which("wireguard-go"):
        said = subprocess.run(["wireguard-go", "--version"], capture_output=True, text=True).stdout.split("\n")[0]
        found["wireguard"] = f"{said} at both ends, ChaCha20-Poly1305"
    return found


def _ginnel(stack: contextlib.ExitStack, left: Space, right: Space) -> Tunnel:
    server, client = _ours(stack, left, right, ["--tun"], ["--tun"], inside=INNER)
    return Tunnel("ginnel", left, right, INNER, [client, server], [client, server])


def _unsegmented(stack: contextlib.ExitStack, left: Space, right: Space) -> Tunnel:
    for space in (left, right):
        space.run("ethtool", "--features", "eth0", "tx-udp-segmentation", "off")
    return replace(_ginnel(stack, left, right), name="unsegmented", streams=True)


def _user_space(stack: contextlib.ExitStack, left: Space, right: Space, shaped: bool = False) -> Tunnel:
    forward = ["-L", f"{FORWARD}:{RIGHT}:{IPERF}"]
    server, client = _ours(stack, left, right, [], forward, inside=RIGHT, shaped=shaped)
    return Tunnel("user-space", left, right, "127.0.0.1", [client, server], [client, server], FORWARD, streams=True)


def _lossy(stack: contextlib.ExitStack, left: Space, right: Space) -> Tunnel:
    return replace(_user_space(stack, left, right, shaped=True), name="lossy")


def _lossy_kernel(stack: contextlib.ExitStack, left: Space, right: Space) -> Tunnel:
    server, client = _ours(stack, left, right, ["--tun"], ["--tun"], inside=INNER, shaped=True)
    return Tunnel("lossy-kernel", left, right, INNER, [client, server], [client, server], streams=True)


def _crowd(stack: contextlib.ExitStack, left: Space, right: Space, devices: tuple[str, ...]) -> Tunnel:
    folder, server = our_server(stack, right, ["--tun"], INNER, devices)
    clients = [
        stack.enter_context(left.started(*_GINNEL, "connect", str(folder / device), "--tun", "--dev", device, "--json"))
        for device in devices
    ]
    for client in clients:
        client.wait_for('"event": "up"', CROWD_PATIENCE)
    return Tunnel("crowd", left, right, INNER, [server], [*clients, server], devices=devices)


def _ours(
    stack: contextlib.ExitStack,
    left: Space,
    right: Space,
    serve: list[str],
    connect: list[str],
    *,
    inside: str,
    shaped: bool = False,
) -> tuple[Program, Program]:
    """Our server and our client. ``inside``: where iperf3 is, as clients see it; it is the server's own machine,
    which is closed to them without a word. ``shaped``: over a slow and lossy way."""
    folder, server = our_server(stack, right, serve, inside)
    file = folder / USER
    if shaped:
        words = [sys.executable, "-m", "ginnel.bench.shaper", f"{RIGHT}:1195", f"{RIGHT}:1194"]
        stack.enter_context(right.started(*words)).wait_for("ready")
        file.write_text(file.read_text().replace(f"{RIGHT} 1194", f"{RIGHT} 1195"))
    return server, connected(stack, left, file, *connect)


def our_server(
    stack: contextlib.ExitStack, space: Space, options: list[str], inside: str, users: Sequence[str] = (USER,)
) -> tuple[Path, Program]:
    """A server, and the folder with its state and its users' files, by their names."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ginnel-bench-")))
    state = folder / "state"
    with contextlib.closing(open_store(state)) as store:
        for user in users:
            text = client_file(
                store.identity, store.add_user(user), store.make_wrap_key(), [("udp", RIGHT, 1194)], password=False
            )
            (folder / user).touch(0o600)
            (folder / user).write_text(text)
    if "--tun" in options:
        # It runs as the user whose its state is, and that is not to be root.
        folder.chmod(0o711)
        for path in (state, *state.iterdir()):
            os.chown(path, NOBODY, NOBODY)
    place = ["--dir", str(state), "--listen", f"udp:{RIGHT}:1194", "--allow", f"{inside}/32"]
    server = stack.enter_context(space.started(*_GINNEL, "serve", *options, "--json", *place))
    server.wait_for('"event": "up"')
    return folder, server


def connected(stack: contextlib.ExitStack, space: Space, file: Path, *options: str) -> Program:
    client = stack.enter_context(space.started(*_GINNEL, "connect", str(file), *options, "--json"))
    client.wait_for('"event": "up"')
    return client


def _plumbing(stack: contextlib.ExitStack, left: Space, right: Space) -> Tunnel:
    ends = []
    for space, own, other, inner in ((left, LEFT, RIGHT, "10.9.1.2"), (right, RIGHT, LEFT, "10.9.1.1")):
        end = stack.enter_context(space.started(sys.executable, "-m", "ginnel.bench.plumbing", own, other))
        end.wait_for("ready")
        space.run("ip", "address", "add", f"{inner}/24", "dev", plumbing.DEVICE)
        space.run("ip", "link", "set", plumbing.DEVICE, "up")
        ends.append(end)
    return Tunnel("plumbing", left, right, "10.9.1.1", [], ends, streams=True)


def _mixed(stack: contextlib.ExitStack, left: Space, right: Space) -> Tunnel:
    folder, server = _stock_server(stack, right)
    client = connected(stack, left, folder / "client.ovpn", "--tun")
    return Tunnel("mixed", left, right, INNER, [client], [client, server])


def _mixed_server(stack: contextlib.ExitStack, left: Space, right: Space) -> Tunnel:
    folder, server = our_server(stack, right, ["--tun"], INNER)
    file = folder / USER
    client = _stock_client(stack, left, file)
    return Tunnel("mixed-server", left, right, INNER, [server], [client, server])


def _stock(stack: contextlib.ExitStack, left: Space, right: Space) -> Tunnel:
    folder, server = _stock_server(stack, right)
    client = _stock_client(stack, left, folder / "client.ovpn")
    return Tunnel("stock", left, right, INNER, [], [client, server])


def _stock_crowd(stack: contextlib.ExitStack, left: Space, right: Space, devices: tuple[str, ...]) -> Tunnel:
    folder, server = _stock_server(stack, right, "duplicate-cn")
    words = ["openvpn", "--config", str(folder / "client.ovpn"), "--disable-dco", "--dev-type", "tun"]
    clients = [stack.enter_context(left.started(*words, "--dev", device)) for device in devices]
    for client in clients:
        client.wait_for("Initialization Sequence Completed", CROWD_PATIENCE)
    return Tunnel("stock-crowd", left, right, INNER, [server], [*clients, server], devices=devices)


def _stock_client(stack: contextlib.ExitStack, space: Space, file: Path) -> Program:
    client = stack.enter_context(
        space.started("openvpn", "--config", str(file), "--disable-dco", "--dev-type", "tun", "--dev", "tun0")
    )
    client.wait_for("Initialization Sequence Completed")
    return client


def _stock_server(stack: contextlib.ExitStack, space: Space, *options: str) -> tuple[Path, Program]:
    """Debian's server, and the folder with its client's file."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ginnel-bench-")))
    authority, _ = Authority.create("bench", now())
    common = ["dev tun", "proto udp4", "data-ciphers AES-256-GCM", "verb 3", f"<ca>\n{authority.certificate}</ca>"]
    server_only = [
        "server 10.8.0.0 255.255.255.0",
        "topology subnet",
        "dh none",
        "disable-dco",
        "keepalive 10 60",
        *options,
    ]
    client_only = ["client", "nobind", f"remote {RIGHT} 1194", "remote-cert-tls server"]
    for name, usage, lines in (("server.conf", "server", server_only), ("client.ovpn", "client", client_only)):
        issued = authority.issue(name, usage, now(), 1)  # type: ignore[arg-type]
        pair = [f"<cert>\n{issued.certificate}</cert>", f"<key>\n{issued.key}</key>"]
        (folder / name).touch(0o600)
        (folder / name).write_text("\n".join([*common, *lines, *pair, ""]))
    server = stack.enter_context(space.started("openvpn", "--config", str(folder / "server.conf"), "--dev", "tun0"))
    server.wait_for("Initialization Sequence Completed")
    return folder, server


def _wireguard(stack: contextlib.ExitStack, left: Space, right: Space) -> Tunnel:
    keys = [X25519PrivateKey.generate() for _ in range(2)]
    programs = []
    sides = ((left, RIGHT, "10.9.0.1"), (right, LEFT, "10.9.0.2"))
    for index, (space, other, inner) in enumerate(sides):
        # The name is the socket's too, which all namespaces share.
        name = f"wgbench{index}"
        program = stack.enter_context(space.started("wireguard-go", "--foreground", name))
        path = Path("/var/run/wireguard") / f"{name}.sock"
        program.wait_until(path.exists, f"socket {path}")
        lines = [
            "set=1",
            f"private_key={keys[index].private_bytes_raw().hex()}",
            "listen_port=1194",
            f"public_key={keys[1 - index].public_key().public_bytes_raw().hex()}",
            f"endpoint={other}:1194",
            "persistent_keepalive_interval=10",
            "allowed_ip=0.0.0.0/0",
        ]
        _configure(path, "\n".join(lines))
        space.run("ip", "address", "add", f"{inner}/24", "dev", name)
        space.run("ip", "link", "set", name, "up", "mtu", "1420")
        programs.append(program)
    return Tunnel("wireguard", left, right, "10.9.0.2", [], programs)


def _configure(path: Path, text: str) -> None:
    """A request of WireGuard's cross-platform configuration protocol."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(text.encode() + b"\n\n")
        answer = client.recv(4096).decode()
    if "errno=0" not in answer:
        raise BenchError(f"wireguard-go at {path}: {answer.strip()}")


# So many programs begin at once.
CROWD_PATIENCE = 180.0
# The server's address inside, ours and stock's.
INNER = "10.8.0.1"
LOSSY = (
    f"a way of {shaper.RATE / 1e6:g} Mbit/s and {shaper.DELAY * 2000:g} ms there and back that loses {shaper.LOSS:.0%}"
)
_GINNEL = [sys.executable, "-m", "ginnel"]
_KINDS: dict[str, Callable[[contextlib.ExitStack, Space, Space], Tunnel]] = {
    "ginnel": _ginnel,
    "unsegmented": _unsegmented,
    "user-space": _user_space,
    "lossy": _lossy,
    "lossy-kernel": _lossy_kernel,
    "plumbing": _plumbing,
    "mixed": _mixed,
    "mixed-server": _mixed_server,
    "stock": _stock,
    "wireguard": _wireguard,
}
_CROWDS: dict[str, Callable[[contextlib.ExitStack, Space, Space, tuple[str, ...]], Tunnel]] = {
    "crowd": _crowd,
    "stock-crowd": _stock_crowd,
}
