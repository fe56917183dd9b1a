"""Two network namespaces on a veth pair, and programs in them: all end with the process that made them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ginnel.errors import GinnelError

LEFT, RIGHT = "192.0.2.1", "192.0.2.2"


class BenchError(GinnelError):
    """A program of the benchmark did not do what it was started for."""


class Program:
    """A running program with its output in a file; it is killed at the end of the block."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._popen = subprocess.Popen(
            [*_DIE_WITH_US, *command], stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output
        )
        self.pid = self._popen.pid

    @property
    def output(self) -> str:
        # By position: the program writes through the same open file.
        return os.pread(self._output.fileno(), 1 << 20, 0).decode(errors="replace")

    def wait_for(self, text: str, timeout: float = 30) -> None:
        """Until ``text`` is in the output. BenchError if the program ends, or the time is over, before."""
        self.wait_until(lambda: text in self.output, f"'{text}'", timeout)

    def wait_until(self, done: Callable[[], bool], what: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            ended = self._popen.poll() is not None
            if (ended and not done()) or time.monotonic() > deadline:
                raise BenchError(f"{' '.join(self.command)[:200]}: no {what}; it said: {self.output[-400:]!r}")
            time.sleep(0.02)

    def signal(self) -> None:
        """Tells it to end."""
        self._popen.terminate()

    def close(self) -> None:
        self.signal()
        try:
            self._popen.wait(5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._output.close()

    def usage(self) -> tuple[float, int]:
        """CPU seconds, user and system, and bytes in memory, of it and all its descendants. What several of them
        have of the same files is there once, and counts once."""
        pids, cpu, own, files = [self.pid], 0.0, 0, 0
        for pid in pids:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                cpu += (int(fields[11]) + int(fields[12])) / _TICKS
                status = dict(
                    re.findall(r"^(Rss\w+):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
                )
                own += int(status["RssAnon"]) * 1024
                files = max(files, (int(status["RssFile"]) + int(status["RssShmem"])) * 1024)
                for task in Path(f"/proc/{pid}/task").iterdir():
                    pids += map(int, (task / "children").read_text().split())
        return cpu, own + files


class Space:
    """A network namespace, held by a process that sleeps."""

    def __init__(self) -> None:
        self._holder = Program(["unshare", "--net", "sh", "-ec", "ip link set lo up; echo ready; exec sleep infinity"])
        try:
            self._holder.wait_for("ready")
        except BaseException:
            self._holder.close()
            raise
        self.pid = self._holder.pid

    def close(self) -> None:
        self._holder.close()

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words]

    def run(self, *words: str, timeout: float = 60) -> str:
        """What a program prints. BenchError if it fails."""
        try:
            done = subprocess.run(
                [*_DIE_WITH_US, *self.command(*words)], capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"{' '.join(words)[:200]}: not done in {timeout:g} s") from None
        if done.returncode:
            raise BenchError(f"{' '.join(words)[:200]}: {(done.stdout + done.stderr).strip()[-400:]}")
        return done.stdout

    @contextlib.contextmanager
    def started(self, *words: str) -> Iterator[Program]:
        program = Program(self.command(*words))
        try:
            yield program
        finally:
            program.close()


@contextlib.contextmanager
def joined() -> Iterator[tuple[Space, Space]]:
    """A left and a right space at the ends of a veth pair, with the addresses LEFT and RIGHT."""
    with contextlib.ExitStack() as stack:
        left = Space()
        stack.callback(left.close)
        right = Space()
        stack.callback(right.close)
        left.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(right.pid))
        for space, address in ((left, LEFT), (right, RIGHT)):
            space.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
            space.run("ip", "link", "set", "eth0", "up")
        yield left, right


_DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
_TICKS = os.sysconf("SC_CLK_TCK")
