"""What someone at a terminal sees: who may use the gateway, that it is up, and a line that lives."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time

from tests.harness.client import program_folder
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.profile import Profile
from tests.harness.server import StockServer


def test_the_live_line_and_a_terminal_left_as_it_was(network: Network, ordinary_env: Environment) -> None:
    profile = Profile()
    ours, theirs = os.openpty()
    with StockServer(network, profile), program_folder(profile) as folder:
        words = [ordinary_env.ginnel, "connect", folder / "office.ovpn", "--socks", "0"]
        program = subprocess.Popen(
            network.client.command(words, ordinary=True, cwd=folder),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={"PATH": "/usr/bin:/bin", "TERM": "xterm", "COLUMNS": "120", "LANG": "C.UTF-8"},
        )
        os.close(theirs)
        try:
            seen = read_until(ours, "keys 2 s old")
            program.send_signal(signal.SIGINT)
            seen += read_to_end(ours)
            assert program.wait(5) == 0
        finally:
            program.kill()
            program.wait()
            os.close(ours)
    assert "SOCKS5 on 127.0.0.1:" in seen
    assert "open to every user of this machine" in seen
    assert "up: 10.8.0." in seen
    assert "total ↓" in seen
    assert seen.rfind(CURSOR_SHOWN) > seen.rfind(CURSOR_HIDDEN) > 0
    assert "Traceback" not in seen


def read_until(terminal: int, text: str) -> str:
    seen, end = b"", time.monotonic() + 20
    while text.encode() not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        assert ready, f"no {text!r} in {seen.decode(errors='replace')}"
        seen += os.read(terminal, 65536)
    return seen.decode()


def read_to_end(terminal: int) -> str:
    seen = b""
    # A terminal whose last user is gone ends with an error.
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 65536):
            seen += data
    return seen.decode()


CURSOR_HIDDEN, CURSOR_SHOWN = "\x1b[?25l", "\x1b[?25h"
