"""Processes whose output is read as it comes, and that never outlive the one who started them."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self


class Lines:
    """The lines of a stream, read by a thread so that its writer never has to wait for us."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def __len__(self) -> int:
        return len(self.all())

    def all(self, start: int = 0) -> list[str]:
        with self._changed:
            return self._lines[start:]

    def wait(self, wanted: Callable[[str], bool], timeout: float, start: int = 0) -> str | None:
        """The first wanted line from number ``start`` on; None if the stream ends or the time is over before."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for line in self._lines[start:]:
                    start += 1
                    if wanted(line):
                        return line
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    return None
                self._changed.wait(left)

    def join(self, timeout: float) -> None:
        self._reader.join(timeout)

    def _read(self, stream: IO[str]) -> None:
        with stream, contextlib.suppress(ValueError):
            for line in stream:
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Process:
    """A running program, killed at the end of the block if it still runs then.

    It is in a session of its own: Ctrl-C on the terminal reaches us alone, and we end it in order.
    """

    def __init__(self, command: Sequence[str | Path], *, env: dict[str, str] | None = None) -> None:
        self.command = [str(word) for word in command]
        self._popen = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            env=env,
        )
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self.pid = self._popen.pid
        self.out = Lines(self._popen.stdout)
        self.err = Lines(self._popen.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def wait_line(self, text: str, timeout: float, start: int = 0) -> str:
        """The first line on stdout with ``text`` in it. AssertionError if it does not come."""
        line = self.out.wait(lambda line: text in line, timeout, start)
        assert line is not None, f"no '{text}' from {self}"
        return line

    def send_signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 5.0) -> int:
        """Sends a signal and returns the exit status, negative for a death by signal."""
        self.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout: float) -> int:
        """The exit status, when all output is read. AssertionError if it does not end in time."""
        try:
            status = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s: {self}") from None
        self._join()
        return status

    def close(self) -> None:
        """Kills it if it still runs. Idempotent."""
        self._popen.kill()
        self._popen.wait()
        self._join()

    def _join(self) -> None:
        for lines in (self.out, self.err):
            lines.join(timeout=5)

    def __str__(self) -> str:
        output = "\n".join(["stdout:", *self.out.all()[-40:], "stderr:", *self.err.all()[-40:]])
        return f"{' '.join(self.command)[:300]}\n{output}"


class JsonProgram:
    """A ``--json`` program that runs, and what it says, event by event. Its ``process`` is set by who starts it."""

    process: Process
    _seen = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_next(self, name: str, timeout: float = 30) -> dict[str, Any]:
        """The next event of a kind after the one that was waited for last."""
        line = self.process.wait_line(f'"event": "{name}"', timeout, self._seen)
        self._seen = self.process.out.all().index(line, self._seen) + 1
        return parse_event(line)


@contextlib.contextmanager
def no_descriptors(but: int = 0) -> Iterator[None]:
    """This process can open nothing more inside the block, but so many."""
    # What nobody refers to any more would close its descriptors at any time.
    gc.collect()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + but, limits[1]))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(but):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)


def run(command: Sequence[str | Path], *, timeout: float = 60, check: bool = True, **options: Any) -> str:
    """What a program prints on stdout. AssertionError, with its stderr, when it fails or takes too long."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, **options)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"{' '.join(words)[:300]}: not done in {timeout} s") from None
    if check and done.returncode:
        raise AssertionError(f"{' '.join(words)[:300]}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def parse_event(line: str) -> dict[str, Any]:
    """A line of a ``--json`` program. AssertionError for what is no object that begins with its event."""
    event = json.loads(line)
    assert isinstance(event, dict), line
    assert next(iter(event)) == "event", line
    return event
