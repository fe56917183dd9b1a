"""Answers to what the server wants to know: from the environment, or from the terminal.

The terminal is read by the event loop, so that a signal or a server that gives up ends the question;
however it ends, the terminal is as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
from collections.abc import Iterator

from ginnel.openvpn.events import Prompt


class Asker:
    """Called with a question, it gives the answer, or None when there is nobody to ask.

    ``GINNEL_USERNAME`` and ``GINNEL_PASSWORD`` are asked first, each once: what the server refused
    would be refused again.
    """

    def __init__(self) -> None:
        self._known = {kind: os.environ.pop(name) for kind, name in ENVIRONMENT.items() if os.environ.get(name)}
        self._turn = asyncio.Lock()

    async def __call__(self, prompt: Prompt) -> str | None:
        known = self._known.pop(prompt.kind, None)
        if known is not None:
            return known
        if not prompt.needs_answer:
            print(prompt.text, file=sys.stderr, flush=True)
            return ""
        async with self._turn:
            return await _ask_terminal(prompt)


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
        try:
            line = await answer
        finally:
            loop.remove_reader(terminal)
            if not prompt.echo:
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


ENVIRONMENT = {"username": "GINNEL_USERNAME", "password": "GINNEL_PASSWORD", "key-password": "GINNEL_KEY_PASSWORD"}
MAX_ANSWER = 4096
