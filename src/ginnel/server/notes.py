"""What a running server writes down, by a thread of its own: a disk that is slow or full, or a database that is
locked, holds nobody up."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from ginnel.server.journal import tell

Note = tuple[str, Sequence[object]]


class Notes:
    """Statements for a database, in order, many to a transaction: after each `REST` follows, so that a crowd costs a
    few of them a second. One that fails is tried again later; past `MAX_NOTES` the oldest are dropped, and counted."""

    def __init__(self, path: Path, busy: float) -> None:
        """``busy``: seconds that another process's transaction is waited for."""
        self._path = path
        self._busy = busy
        self._notes: deque[Note] = deque()
        # How many were here once and are no longer.
        self._gone = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        # What there is is wanted on the disk now.
        self._hurried = False
        self._closing = False
        self.dropped = 0
        self.failing = False

    def add(self, statement: str, values: Sequence[object], *, hurry: bool = False) -> None:
        """``hurry``: it, and what came before it, is written without a rest."""
        with self._changed:
            if len(self._notes) >= MAX_NOTES:
                self._notes.popleft()
                self._gone += 1
                self.dropped += 1
            self._notes.append((statement, values))
            if self._thread is None and not self._closing:
                thread = threading.Thread(target=self._write, name="ginnel-notes", daemon=True)
                # Raises RuntimeError where the system has no room for one.
                thread.start()
                self._thread = thread
            self._hurried = self._hurried or hurry
            if hurry or len(self._notes) == 1:
                self._changed.notify_all()

    def settle(self, timeout: float) -> bool:
        """Has all that was added so far written without a rest, and waits for that; whether it is."""
        with self._changed:
            until = self._gone + len(self._notes)
            self._hurried = bool(self._notes)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._gone >= until, timeout)

    def close(self, timeout: float) -> None:
        """Writes what is left, for so long. Idempotent."""
        if self._thread is not None:
            self.settle(timeout)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(self._busy + 1)

    def _write(self) -> None:
        database: sqlite3.Connection | None = None
        while (batch := self._next()) is not None:
            try:
                if database is None:
                    database = sqlite3.connect(self._path, timeout=self._busy, isolation_level=None)
                    database.execute("PRAGMA synchronous = FULL")
                _write_all(database, batch)
            except sqlite3.Error as error:
                self._report(str(error))
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, RETRY)
            else:
                self._report(None)
                self._forget(batch)
                self._rest()
        if database is not None:
            database.close()

    def _next(self) -> list[Note] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._notes or self._closing)
            self._hurried = False
            return None if self._closing else list(self._notes)

    def _rest(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._hurried or self._closing, REST)

    def _forget(self, batch: list[Note]) -> None:
        with self._changed:
            # The limit may have dropped some of them meanwhile.
            done = set(map(id, batch))
            while self._notes and id(self._notes[0]) in done:
                self._notes.popleft()
                self._gone += 1
            self._changed.notify_all()

    def _report(self, reason: str | None) -> None:
        """Said once when it begins, and once when it is over."""
        if reason is not None and not self.failing:
            tell("store_failed", level=logging.ERROR, reason=f"{self._path}: {reason}; clients stay connected")
        elif reason is None and self.failing:
            tell("store_written", reason=f"{self._path} can be written to again", lost=self.dropped)
        self.failing = reason is not None


def _write_all(database: sqlite3.Connection, batch: list[Note]) -> None:
    database.execute("BEGIN IMMEDIATE")
    try:
        for statement, values in batch:
            database.execute(statement, values)
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


MAX_NOTES = 20_000
# Seconds between two transactions that nobody waits for, and until one that failed is tried again.
REST = 0.1
RETRY = 1.0
