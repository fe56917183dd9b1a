"""Small programs on lent devices, in this process's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from ginnel.device.interface import Interfaces
from ginnel.device.lend import LentProgram, Node

PREAMBLE = """
import ctypes, errno, fcntl, json, os, select, signal, socket, stat, struct, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
TUNSETIFF, TUN, TAP, NO_PI, MULTI = 0x400454CA, 1, 2, 0x1000, 0x100

def attach(fd, name="", flags=TUN | NO_PI):
    answer = fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", name.encode(), flags))
    return answer[:16].rstrip(b"\\0").decode()

def set_up(name):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, 0x8914, struct.pack("=16sH22x", name.encode(), 1))

def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]

def refused(act, *arguments):
    try:
        return repr(act(*arguments))
    except OSError as error:
        return errno.errorcode[error.errno]

def say(what):
    print(what if isinstance(what, str) else json.dumps(what), flush=True)
"""


class Running:
    """A lent program, and what it says and hears, a line at a time."""

    def __init__(self, program: LentProgram, out: asyncio.StreamReader, into: int) -> None:
        self.program = program
        self._out = out
        self._into = into

    async def line(self) -> str:
        """What it says next; an empty string at the end."""
        return (await asyncio.wait_for(self._out.readline(), 30)).decode().rstrip("\n")

    async def lines(self) -> list[str]:
        """All it says until it ends."""
        return (await asyncio.wait_for(self._out.read(), 60)).decode().splitlines()

    def tell(self, line: str = "") -> None:
        os.write(self._into, line.encode() + b"\n")


@contextlib.asynccontextmanager
async def lent(
    interfaces: Interfaces, program: str | Sequence[str | Path], *, node: Node | None = None, **options: Any
) -> AsyncIterator[Running]:
    """Runs Python text (after the preamble), or a command."""
    command = [sys.executable, "-I", "-c", PREAMBLE + program] if isinstance(program, str) else program
    out, their_out = os.pipe()
    their_in, into = os.pipe()
    reader = asyncio.StreamReader()
    with os.fdopen(out, "rb", buffering=0) as pipe:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            running = LentProgram(command, interfaces, node, stdin=their_in, stdout=their_out, **options)
            try:
                await running.start()
            finally:
                os.close(their_in)
                os.close(their_out)
            try:
                yield Running(running, reader, into)
            finally:
                await running.aclose()
        finally:
            os.close(into)
            transport.close()
            await asyncio.sleep(0)
