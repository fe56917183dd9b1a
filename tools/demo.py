"""``make demo``: a VPN's first minute. Our server, a user added to it, our client, and a page through the tunnel.

Neither has any right, and nothing of this machine changes: no device, no namespace, no route. Run by root, all of it
runs as an ordinary user (65534) without a capability. All is gone when this program is, however it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tests.harness.environment import ordinary_environment
from tests.harness.network import ORDINARY, ORDINARY_ID
from tests.harness.process import Process, parse_event, run

SIZE = 64 << 20
PAGE = b"a page from the other end of the tunnel\n"


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ginnel-demo-", dir="/tmp")))
        ginnel = _program(folder)
        began = time.monotonic()
        address = own_address()
        port = stack.enter_context(website(address))
        # The page is this machine's own, which is closed to clients unless it is allowed.
        options = ["--listen", "127.0.0.1:0", "--allow", f"{address}/32", "--json"]
        server = stack.enter_context(Process([*ginnel, "serve", "--dir", folder / "vpn", *options]))
        listen = parse_event(server.wait_line('"event": "up"', 30))["listen"]
        say("server", f"ginnel serve: {', '.join(listen)}; keys made in {time.monotonic() - began:.1f} s")
        say("its rights", rights(server.pid))
        file = folder / "alice.ovpn"
        run([*ginnel, "user", "add", "alice", "--dir", folder / "vpn", "-o", file])
        say("user", f"ginnel user add alice -o alice.ovpn: {len(file.read_text().splitlines())} lines")
        client = stack.enter_context(Process([*ginnel, "connect", file, "--http", "0", "--json"]))
        up = parse_event(client.wait_line('"event": "up"', 30))
        show(up, address, port)
        seen = time.monotonic()
        run([*ginnel, "user", "revoke", "alice", "--dir", folder / "vpn"])
        status = client.wait(10)
        assert status == 4, str(client)
        say("revoked", f"and out {time.monotonic() - seen:.1f} s later: {client.err.all()[-1]}")
        assert server.stop() == 0, str(server)
        say("ended", f"by a signal; {time.monotonic() - began:.1f} s in all")
    print("demo: ok")


def show(up: dict[str, Any], address: str, port: int) -> None:
    say("client", f"ginnel connect alice.ovpn --http 0: {up['address']}, {up['cipher']}, {up['tls']}")
    say("handshake", f"{up['handshake'] * 1000:.0f} ms")
    page, _ = fetch(up["http"], address, port, "/")
    assert page == PAGE, page
    say("a page", f"http://{address}:{port}/ through the tunnel: {page.decode().strip()}")
    body, seconds = fetch(up["http"], address, port, "/large")
    digest = hashlib.sha256(body).hexdigest()
    assert digest == hashlib.sha256(_large()).hexdigest(), f"SHA-256 {digest} is wrong"
    say(f"{SIZE >> 20} MB", f"in {seconds:.2f} s, {SIZE * 8 / seconds / 1e6:.0f} Mbit/s, SHA-256 right")


def fetch(proxy: str, address: str, port: int, path: str) -> tuple[bytes, float]:
    """What is there, by way of the client's HTTP proxy, and the seconds that it took."""
    began = time.monotonic()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://{proxy}"}))
    with opener.open(f"http://{address}:{port}{path}", timeout=60) as answer:
        body: bytes = answer.read()
    return body, time.monotonic() - began


@contextlib.contextmanager
def website(address: str) -> Iterator[int]:
    """A web server at an address of this machine; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = _large() if self.path == "/large" else PAGE
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((address, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def own_address() -> str:
    """An IPv4 address of this machine that isn't loopback: nobody sends to that through a VPN."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            sys.exit("demo: this machine has no address but loopback's; connect it to any network")
        return str(probe.getsockname()[0])


def rights(pid: int) -> str:
    """What the kernel says that a process may do."""
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert fields["Uid"].split()[1] != "0"
    assert not any(int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapAmb"))
    return f"user {fields['Uid'].split()[1]}, no capability"


def say(what: str, text: str) -> None:
    print(f"{what:>12}  {text}", flush=True)


def _program(folder: Path) -> list[str | Path]:
    if os.geteuid():
        return [Path(sys.executable).with_name("ginnel")]
    os.chown(folder, ORDINARY_ID, ORDINARY_ID)
    try:
        return [*ORDINARY, ordinary_environment().ginnel]
    except AssertionError as error:
        # What pip or the compiler said last.
        sys.exit(f"demo: no environment for an ordinary user can be made; {str(error).strip().splitlines()[-1]}")


def _large() -> bytes:
    return random.Random(1).randbytes(1 << 20) * (SIZE >> 20)


def _end(number: int, frame: FrameType | None) -> None:
    # Once is enough: what follows ends the programs and removes the files.
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
