"""``make demo``: a page and a large file from behind a stock OpenVPN server, fetched by a user without any right.

Everything happens in two network namespaces that are gone when this program is, however it ends.
"""

from __future__ import annotations

import hashlib
import signal
import sys
from pathlib import Path
from types import FrameType

from tests.harness import office
from tests.harness.client import GinnelClient
from tests.harness.environment import Environment, ordinary_environment
from tests.harness.network import Network
from tests.harness.process import run
from tests.harness.profile import Profile
from tests.harness.server import Office, StockServer

SIZE = 64 << 20


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    environment = ordinary_environment()
    profile = Profile()
    with Network() as network, Office(network.server), StockServer(network, profile):
        say("server", run(["openvpn", "--version"], check=False).split(" [")[0] + ", unmodified, in a namespace")
        with GinnelClient(network, environment, profile) as client:
            show(client, environment)
            client.stop()
            assert network.client.ordinary_processes() == []
            say("ended", "by Ctrl-C; no process, device or route is left")
    print("demo: ok")


def show(client: GinnelClient, environment: Environment) -> None:
    up = client.wait_up()
    say("client", f"{environment.ginnel} connect office.ovpn --socks 0")
    say("its rights", rights(client.pid))
    say("tunnel", f"{up['address']} and {up['address6']}, {up['cipher']}, {up['tls']}")
    say("handshake", f"{up['handshake'] * 1000:.0f} ms")
    for what, host in (("by name", "wiki.office"), ("by address", office.ADDRESS), ("by IPv6", f"[{office.ADDRESS6}]")):
        url = f"http://{host}/"
        page = client.curl(url)
        assert page == office.PAGE.decode(), page
        say(what, f"curl {url} gives {page.strip()}")
    say(f"{SIZE >> 20} MB", download(client))


def rights(pid: int) -> str:
    """What the kernel says that a process may do."""
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert fields["Uid"].split()[1] != "0"
    assert not any(int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb"))
    assert not Path(f"/proc/{pid}/root/dev/net/tun").exists()
    return f"user {fields['Uid'].split()[1]}, no capability, no /dev/net/tun"


def download(client: GinnelClient) -> str:
    file = client.folder / "download"
    words = ["--output", str(file), "--write-out", "%{time_starttransfer} %{time_total}"]
    first, last = client.curl(*words, f"http://files.office/body/{SIZE}", timeout=120).split()
    seconds = float(last) - float(first)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest == office.body_hash(SIZE), f"SHA-256 {digest} is wrong"
    return f"in {seconds:.2f} s, {SIZE * 8 / seconds / 1e6:.0f} Mbit/s, SHA-256 right: {digest[:16]}…"


def say(what: str, text: str) -> None:
    print(f"{what:>12}  {text}", flush=True)


def _end(number: int, frame: FrameType | None) -> None:
    # Once is enough: what follows ends the programs and removes the files.
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
