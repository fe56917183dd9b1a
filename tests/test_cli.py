"""The ``ginnel`` command before and around its subcommands: signals, statuses, help."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner

import ginnel
from ginnel.cli.connect import _gateway_login, _with_login
from ginnel.cli.program import cli
from ginnel.cli.prompt import Asker
from ginnel.errors import ConfigError
from ginnel.gateways.socks5 import Login
from ginnel.openvpn.config import AuthUserPass
from ginnel.openvpn.events import Prompt
from ginnel.openvpn.ovpn_file import parse_ovpn
from tests.harness.people import People
from tests.harness.process import Process
from tests.test_client import people as people
from tests.test_client import port
from tests.test_server_service import serving


def ginnel_with(before: str, *words: str) -> subprocess.CompletedProcess[str]:
    text = f"import os, signal, sys\n{before}\nfrom ginnel.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", text, *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("words", "number", "status"),
    [
        ("connect office.ovpn", "INT", 0),
        ("-v serve", "TERM", 0),
        ("device create dev0", "HUP", 0),
        ("echo server", "INT", 0),
        ("user add alice", "INT", 130),
        ("user list --json", "TERM", 143),
        ("device list", "INT", 130),
        ("user list", "HUP", 129),
        ("lend -- sleep 20", "TERM", 143),
    ],
)
def test_a_signal_ends_it_quietly_while_modules_are_imported(words: str, number: str, status: int) -> None:
    """And no script takes that for work that was done."""
    before = f"""
class Finder:
    def find_spec(name, path, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.SIG{number})
sys.meta_path.insert(0, Finder)"""
    done = ginnel_with(before, *words.split())
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode == status


@pytest.mark.parametrize(("words", "status"), [("serve", 0), ("user list", 143)])
def test_a_signal_while_a_finalizer_runs_is_not_lost(words: str, status: int) -> None:
    """What a finalizer raises ends nothing, and modules that are imported have many: their locks."""
    before = """
import time
class Lock:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
class Finder:
    def find_spec(name, path, target=None):
        if name == "click":
            Lock()
            time.sleep(30)
sys.meta_path.insert(0, Finder)"""
    done = ginnel_with(before, *words.split())
    assert (done.stdout, done.stderr, done.returncode) == ("", "", status)


def test_ctrl_c_before_that_has_no_trace_either() -> None:
    """The program's own script imports this, and the module `signal` takes long."""
    text = """
import _signal, os, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == "enum":
            os.kill(os.getpid(), _signal.SIGINT)
sys.meta_path.insert(0, Finder)
from ginnel.__main__ import main"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
    (script,) = metadata.entry_points(group="console_scripts", name="ginnel")
    assert script.value == "ginnel.__main__:main"


@pytest.mark.parametrize("words", [[], ["device"], ["user"], ["echo"]])
def test_without_a_command_the_help_is_shown_and_nothing_else(words: list[str]) -> None:
    done = ginnel_with("", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.split() == CliRunner().invoke(cli, [*words, "--help"], prog_name="ginnel").stdout.split()
    assert "..." not in done.stderr.partition("Commands:")[2], "a sentence that is cut"


@pytest.mark.parametrize("words", [["-v", "check"], ["check", "-v"]])
def test_a_trace_is_shown_with_the_line_where_it_is_asked_for(words: list[str]) -> None:
    done = ginnel_with("", *words, "/nonexistent")
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1] == "ginnel: cannot read /nonexistent: No such file or directory"


def test_a_thread_that_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    done = ginnel_with("import threading; threading.stack_size(1 << 47)", "serve", "--dir", str(tmp_path / "state"))
    assert done.returncode == 6
    assert done.stderr == "ginnel: this system has no room for another thread left; see `ulimit -a`\n"


@contextlib.contextmanager
def a_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """In place of stdin: what is written to the descriptor is typed."""
    ours, theirs = pty.openpty()
    with open(ours, "wb", buffering=0), open(theirs) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        yield ours


@pytest.mark.parametrize(("typed", "answer"), [(b"\x04", None), (b"alice\n", "alice"), (b"\n", "")])
@pytest.mark.parametrize("kind", ["username", "password"])
async def test_a_terminal_is_asked_until_there_is_a_user(
    kind: Literal["username", "password"],
    typed: bytes,
    answer: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with a_terminal(monkeypatch) as keys:
        asked = asyncio.ensure_future(Asker()(Prompt(kind, "User", echo=kind == "username")))
        said = ""
        for count, line in enumerate([typed, b"alice\n"], 1):
            while said.count("User: ") < count and not asked.done():
                await asyncio.sleep(0)
                said += capsys.readouterr().err
            if not asked.done():
                os.write(keys, line)
        # Nobody is called nothing.
        assert await asked == ("alice" if (kind, answer) == ("username", "") else answer)
    if answer is None or kind == "password":
        assert (said + capsys.readouterr().err).endswith("\n"), "what is said next begins a line"


def test_a_file_with_a_login_is_read_as_the_one_that_a_configuration_names(tmp_path: Path) -> None:
    """At first as for each connection after that."""
    login = tmp_path / "login"
    login.write_bytes(b"\xef\xbb\xbfalice\r\nsecret\r\n")
    assert _gateway_login("1080", None, login) == Login("alice", "secret")
    login.write_text("alice\n")
    with pytest.raises(ConfigError, match="no password"):
        _gateway_login("1080", None, login)
    # It is asked for.
    people = People()
    people.add("bob")
    config = _with_login(parse_ovpn(people.client_file("bob", "remote 127.0.0.1")), login)
    assert config.auth_user_pass == AuthUserPass("alice", None, str(login))
    login.write_text("alice\nsec\x0cret\n")
    with pytest.raises(ConfigError, match="something other than a user and a password"):
        _with_login(config, login)


def test_a_device_that_is_not_there_is_said_and_nothing_reported(tmp_path: Path) -> None:
    """As by a user without rights, who cannot make one of the kernel's."""
    line = ["unshare", "--user", sys.executable, "-m", "ginnel", "ping", "--device", "nodev", "10.0.0.9"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("ginnel: there is no device nodev, see `ginnel device list`")


def test_letters_that_the_locale_does_not_have_are_shown_as_others(tmp_path: Path) -> None:
    file = tmp_path / "ünï.ovpn"
    file.write_text("client\n")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    line = [sys.executable, "-m", "ginnel", "check", file]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "\\xfcn\\xef.ovpn can't be used" in done.stdout


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
async def test_a_stream_that_is_closed_is_not_missed(people: People, tmp_path: Path, closed: str) -> None:
    """Nor does anything go to another in its place."""
    file = tmp_path / "office.ovpn"
    up = asyncio.Event()

    async def connected(client: object) -> None:
        up.set()

    async with serving(people, connected=connected) as server:
        file.write_text(people.client_file("bob", f"remote 127.0.0.1 {port(server)}"))
        line = f"exec {sys.executable} -m ginnel connect {file} --json --socks unix:{tmp_path / 'socks'} {closed}"
        with Process(["sh", "-c", line]) as process:
            await asyncio.wait_for(up.wait(), 20)
            reader, writer = await asyncio.open_unix_connection(tmp_path / "socks")
            writer.write(b"\x05\x01\x00")
            assert await asyncio.wait_for(reader.readexactly(2), 20) == b"\x05\x00", "it goes on when it is up"
            writer.close()
            process.send_signal(signal.SIGUSR2)
            assert await asyncio.to_thread(process.stop) == 0, str(process)
            events = [json.loads(line)["event"] for line in process.out.all()]
            assert events == ([] if ">&- 2" in closed else ["up", "down"])


def test_names_can_be_completed_before_they_are_imported() -> None:
    line = [sys.executable, "-c", "import ginnel; print(*dir(ginnel))"]
    names = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert set(ginnel.__all__) <= set(names)
    assert len(names) == len(set(names))
    line = [sys.executable, "-c", "import ginnel; print(*(type(getattr(ginnel, name)) for name in ginnel.__all__))"]
    subprocess.run(line, capture_output=True, check=True)
    assert not {"importlib", "TYPE_CHECKING", "annotations"} & set(names)
