"""What a command says that runs until it is ended: events as JSON lines on stdout for programs, or a log on stderr.
Neither a disk that is full, nor a reader that is gone or does not read, holds it up or ends it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, TextIO


class Reporter(logging.Handler):
    """The command's events, and all other lines of the log. Nothing is written before `start`."""

    def __init__(self, as_json: bool, *, verbose: bool = False, live: bool = False) -> None:
        """``verbose`` adds the trace to what failed. ``live``: a terminal has a line of its own (`live`)."""
        super().__init__()
        self._as_json = as_json
        self._verbose = verbose
        self._log = _writer("stderr", live, lambda count: f"WARNING: lines_lost count={count}")
        self._events = _writer("stdout", live, lambda count: _json("lines_lost", count=count), self._events_wait)

    def start(self) -> None:
        """From now on there are threads that write."""
        for lines in (self._events, self._log):
            lines.start()

    def event(self, event: str, **fields: Any) -> None:
        if self._as_json:
            self._events.add(_json(event, **fields))

    def say(self, text: str) -> None:
        if not self._as_json:
            self._log.add(text)

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if self._as_json and event is not None:
            self.event(event, **getattr(record, "fields", {}))
            return
        text = f"{record.levelname}: {record.getMessage()}"
        if record.exc_info and (error := record.exc_info[1]) is not None:
            text += f": {error!r}"
            if self._verbose:
                text = "\n".join([text, *"".join(traceback.format_exception(error)).splitlines()])
        self._log.add(text)

    def _events_wait(self, error: OSError) -> None:
        """Who reads the events waits as well."""
        self._log.add(f"WARNING: stdout: {error.strerror}; events wait until it takes them")

    def flush_all(self) -> None:
        """Waits until all is written, but not for long. Starts what was not started."""
        until = time.monotonic() + LAST_WORDS
        # The log last: how the events fare is said there.
        for lines in (self._events, self._log):
            lines.settle(until - time.monotonic())


class Lines:
    """Lines for a stream, written by a thread, which rests after each write while few wait: a crowd's cost a few
    writes a second. `add` neither waits nor fails: what can't be written is tried again, past `MAX_LINES` that wait
    further ones are dropped, and ``lost`` makes the line that says how many. The thread is there from `start` on:
    a process that gives up rights does so while it has one thread."""

    def __init__(
        self, stream: TextIO | None, lost: Callable[[int], str], stuck: Callable[[OSError], None] = lambda error: None
    ) -> None:
        """Without a stream (as a shell's ``>&-`` leaves it) nothing is written. ``stuck`` is called, on the thread,
        each time that lines begin to wait for room."""
        try:
            self._descriptor = -1 if stream is None else stream.fileno()
        except (OSError, ValueError):
            self._descriptor = -1
        self._lost = lost
        self._stuck = stuck
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._changed = threading.Condition()
        self._hurried = False
        self._started = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        with self._changed:
            self._started = True
            self._begin()

    def add(self, line: str) -> None:
        with self._changed:
            if self._descriptor < 0:
                return
            if len(self._waiting) >= MAX_LINES:
                self._dropped += 1
                return
            self._waiting.append(line)
            self._begin()
            if len(self._waiting) in (1, MANY):
                self._changed.notify_all()

    def settle(self, timeout: float) -> bool:
        """Has all written without a rest, and waits for that; whether it is."""
        self.start()
        with self._changed:
            self._hurried = bool(self._waiting)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._waiting, timeout)

    def _begin(self) -> None:
        if self._started and self._waiting and self._thread is None:
            # A daemon: a reader that stands still holds up no end of the program.
            self._thread = threading.Thread(target=self._write, name="ginnel-lines", daemon=True)
            self._thread.start()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                self._hurried = False
                count, dropped = len(self._waiting), self._dropped
                lines = [*self._waiting, *([self._lost(dropped)] if dropped else [])]
            try:
                data = "".join(f"{line}\n" for line in lines).encode(errors="replace")
                _write_all(self._descriptor, data, self._stuck)
            except OSError:
                # Nobody reads any longer: the clients have nothing to do with that.
                with self._changed:
                    self._descriptor = -1
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                for _ in range(count):
                    self._waiting.popleft()
                self._dropped -= dropped
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._hurried or len(self._waiting) >= MANY, REST)


class Terminal:
    """Lines for a terminal that has one which is renewed: each is written at once, above it."""

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self._name = name

    def start(self) -> None:
        pass

    def add(self, line: str) -> None:
        # A terminal that has gone takes nothing. Who renews a line has put another stream here meanwhile.
        with contextlib.suppress(OSError):
            print(line, file=getattr(sys, self._name), flush=True)

    def settle(self, timeout: float) -> bool:
        return True


def _writer(
    name: Literal["stdout", "stderr"],
    live: bool,
    lost: Callable[[int], str],
    stuck: Callable[[OSError], None] = lambda error: None,
) -> Lines | Terminal:
    stream = getattr(sys, name)
    if live and stream is not None and stream.isatty():
        return Terminal(name)
    return Lines(stream, lost, stuck)


def _write_all(descriptor: int, data: bytes, stuck: Callable[[OSError], None]) -> None:
    """Waits for as long as it takes: for room on a disk, too. Raises OSError where nothing can ever be written."""
    waits = False
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            # Whoever gave it to us shares it with a program that does not wait.
            select.select([], [descriptor], [], RETRY)
        except ConnectionError:
            raise
        except OSError as error:
            if not waits:
                stuck(error)
            waits = True
            time.sleep(RETRY)


def _json(event: str, **fields: Any) -> str:
    return json.dumps({"event": event, **fields}, default=str)


MAX_LINES = 1000
# So many don't wait for the rest's end, which is after so many seconds.
MANY = 100
REST = 0.05
# Seconds until a disk that was full is tried again, and those that last lines have to be written.
RETRY = 0.5
LAST_WORDS = 1.0
