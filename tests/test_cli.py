"""The ``ginnel`` command before and around its subcommands: signals, statuses, help."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

import ginnel
from ginnel.cli.program import cli


def ginnel_with(before: str, *words: str) -> subprocess.CompletedProcess[str]:
    text = f"import os, signal, sys\n{before}\nfrom ginnel.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", text, *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("words", "number", "status"),
    [
        ("connect office.ovpn", "INT", 0),
        ("-v serve", "TERM", 0),
        ("echo server", "INT", 0),
        ("user add alice", "INT", 130),
        ("user list --json", "TERM", 143),
        ("device list", "INT", 130),
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


def test_names_can_be_completed_before_they_are_imported() -> None:
    line = [sys.executable, "-c", "import ginnel; print(*dir(ginnel))"]
    names = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert set(ginnel.__all__) <= set(names)
    assert not {"importlib", "TYPE_CHECKING", "annotations"} & set(names)
