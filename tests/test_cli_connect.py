"""``ginnel connect`` as it is typed: what it says, and what becomes of it where nobody can be told."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from tests.harness.profile import Profile
from tests.test_egress import until

GINNEL = [sys.executable, "-m", "ginnel"]


class Deaf:
    """A TCP server that ends each connection at once, and counts them."""

    def __init__(self, folder: Path) -> None:
        self.tried = 0
        self.file = folder / "deaf.ovpn"
        self._profile = Profile(transport="tcp", address="127.0.0.1", client_options=("connect-retry 1 1",))

    async def __aenter__(self) -> Deaf:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.file.write_text(self._profile.client_file(port))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tried += 1
        writer.close()


@contextlib.contextmanager
def connecting(file: Path, *options: str, out: IO[Any] | int, err: IO[Any] | int) -> Iterator[subprocess.Popen[bytes]]:
    line = [*GINNEL, "connect", str(file), *options]
    with subprocess.Popen(line, stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_events_for_a_full_disk_are_written_when_there_is_room(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with Deaf(tmp_path) as server:
        with log.open("w") as file, connecting(server.file, "--json", out=file, err=subprocess.PIPE) as process:
            await until(lambda: '"event": "reconnecting"' in log.read_text())
            limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
            written, tried = log.read_text(), server.tried
            await until(lambda: server.tried > tried + 1)
            assert log.read_text() == written
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
            await until(lambda: log.read_text().count('"event": "reconnecting"') > tried + 1)
            process.send_signal(signal.SIGTERM)
            said = (await asyncio.to_thread(process.communicate, timeout=20))[1].decode().splitlines()
            assert process.returncode == 0
    assert said.count("WARNING: stdout: File too large; events wait until it takes them") == 1
    assert json.loads(log.read_text().splitlines()[-1]) == {"event": "down"}


async def test_a_reader_that_reads_no_more_does_not_hold_it_up(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    async with Deaf(tmp_path) as server:
        with os.fdopen(reads, "rb"), os.fdopen(writes, "wb", buffering=0) as writer:
            filler = os.open(f"/proc/self/fd/{writes}", os.O_WRONLY | os.O_NONBLOCK)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(filler, bytes(fcntl.fcntl(filler, fcntl.F_GETPIPE_SZ)))
            os.close(filler)
            with connecting(server.file, out=subprocess.DEVNULL, err=writer) as process:
                await until(lambda: server.tried > 1)
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, 20) == 0


@pytest.mark.parametrize("stream", ["out", "err"])
async def test_a_stream_that_takes_nothing_does_not_change_the_status(tmp_path: Path, stream: str) -> None:
    async with Deaf(tmp_path) as server:
        full = os.open("/dev/full", os.O_WRONLY)
        streams: dict[str, Any] = {"out": subprocess.DEVNULL, "err": subprocess.DEVNULL} | {stream: full}
        options = ["--timeout", "1", *(["--json"] if stream == "out" else [])]
        with connecting(server.file, *options, **streams) as process:
            os.close(full)
            assert await asyncio.to_thread(process.wait, 30) == 3
