"""The ``ginnel`` command: what comes before all else, which takes a while to import."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from types import FrameType


def main() -> None:
    """The program ``ginnel``."""
    arguments = sys.argv[1:]
    runs_on = _runs_until_ended(arguments)

    # A signal is a wish to end, also while modules are still being imported.
    def end(number: int, frame: FrameType | None) -> None:
        raise _Ended(number, 0 if runs_on else 128 + number)

    sys.unraisablehook = _ask_again
    for number in endings():
        signal.signal(number, end)
    _mind_standard_streams()
    from ginnel.cli.program import run

    sys.exit(run(arguments))


def endings() -> list[signal.Signals]:
    """The signals that are a wish to end. What nohup(1) has set stays."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def ended() -> None:
    """All is done and put back: whoever asks for the end once more is not to see it die."""
    for number in endings():
        signal.signal(number, signal.SIG_IGN)


class _Ended(SystemExit):
    def __init__(self, number: int, status: int) -> None:
        super().__init__(status)
        self.number = number


def _ask_again(lost: sys.UnraisableHookArgs) -> None:
    """A signal that came while a finalizer ran: what that raises goes nowhere, so the signal comes once more."""
    if not isinstance(lost.exc_value, _Ended):
        sys.__unraisablehook__(lost)
        return
    main, number = _thread.get_ident(), lost.exc_value.number

    def send() -> None:
        # Not before the finalizer and this hook have returned.
        time.sleep(0.01)
        signal.pthread_kill(main, number)

    # A lock of the module `threading`, or of its import, may be what the finalizer holds.
    _thread.start_new_thread(send, ())


def _mind_standard_streams() -> None:
    """What is closed (``2>&-``) would be the number of the next socket, and what cannot be written would be a trace."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest number that is free.
            os.open(os.devnull, os.O_RDWR)
    # Without a stream print() writes to another one; what is to be on stdout is said to be lost (`output`).
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if sys.stdout is not None:
        # As stderr has it: a name that the locale's letters don't have is still told.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _runs_until_ended(arguments: list[str]) -> bool:
    """Whether a signal is how the command ends as it was asked to; any other has not done its work then."""
    words = [word for word in arguments if not word.startswith("-")]
    return words[:1] in RUN_ON or words[:2] in RUN_ON


RUN_ON = (["connect"], ["serve"], ["pong"], ["device", "create"], ["echo", "server"])
