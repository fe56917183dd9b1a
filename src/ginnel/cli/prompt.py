"""Answers to what the server wants to know: from the environment, or from the terminal.

The terminal is read by the event loop, so that a signal or a server that gives up ends the question;
however it ends, the terminal is as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import termios
from collections.abc import Iterator
from dataclasses import replace

from ginnel.openvpn.config import AuthUserPass
from ginnel.openvpn.events import Prompt

log = logging.getLogger("ginnel")


def completed(login: AuthUserPass) -> AuthUserPass:
    """With what ``GINNEL_USERNAME`` and ``GINNEL_PASSWORD`` have, where the file leaves it out."""
    username, password = (os.environ.pop(name, "") or None for name in LOGIN)
    return replace(login, username=login.username or username, password=login.password or password)


class Asker:
    """Called with a question, it gives the answer, or None when there is nobody to ask.

    ``GINNEL_KEY_PASSWORD`` is asked first, once: what was wrong would be wrong again.
    """

    def __init__(self) -> None:
        self._key_password = os.environ.pop(KEY_PASSWORD, "")
        self._turn = asyncio.Lock()

    async def __call__(self, prompt: Prompt) -> str | None:
        if prompt.kind == "key-password" and self._key_password:
            known, self._key_password = self._key_password, ""
            return known
        if not prompt.needs_answer:
            log.warning("the server says: %s", prompt.text)
            return ""
        async with self._turn:
            answer = await _ask_terminal(prompt)
            while prompt.kind == "username" and answer is not None and not answer.strip():
                # Nobody is called so.
                answer = await _ask_terminal(prompt)
            return answer


async def _ask_terminal(prompt: Prompt) -> str | None:
    if not sys.stdin.isatty():
        return None
    terminal = sys.stdin.fileno()
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    def read() -> None:
        # The terminal hands over whole lines; an end of file is none.
        data = os.read(terminal, MAX_ANSWER)
        if not answer.done():
            answer.set_result(data)

    with _hidden(terminal, prompt.echo):
        print(f"{prompt.text}: ", end="", file=sys.stderr, flush=True)
        loop.add_reader(terminal, read)
        line = b""
        try:
            line = await answer
        finally:
            loop.remove_reader(terminal)
            # What comes next begins a line.
            if not (prompt.echo and line):
                print(file=sys.stderr, flush=True)
    return line.decode(errors="surrogateescape").removesuffix("\n") if line else None


@contextlib.contextmanager
def _hidden(terminal: int, echo: bool) -> Iterator[None]:
    before = termios.tcgetattr(terminal)
    changed = [*before[:3], before[3] if echo else before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(terminal, termios.TCSAFLUSH, changed)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


LOGIN = ("GINNEL_USERNAME", "GINNEL_PASSWORD")
KEY_PASSWORD = "GINNEL_KEY_PASSWORD"
MAX_ANSWER = 4096
