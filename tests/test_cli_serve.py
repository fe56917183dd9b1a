"""``ginnel serve`` as it is typed: what it says, and what becomes of it where nobody can be told."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from cryptography import x509

import ginnel
from ginnel.cli.reporter import MANY, MAX_LINES, Lines, Reporter
from ginnel.errors import AuthError, UnreachableError
from ginnel.gateways.egress import may_ping
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.server.control import ask
from ginnel.vpn import Vpn
from tests.harness.network import lasting_port
from tests.harness.process import Process, parse_event
from tests.test_egress import until

# So many that are started and ended.
SIGNALS = int(os.environ.get("GINNEL_SIGNALS", "4"))
GINNEL = [sys.executable, "-m", "ginnel"]


class Served:
    """A server in ``folder / "state"`` that writes to any file, and a user's file for it."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.process = process

    def user(self, *words: str | Path) -> None:
        line = [*GINNEL, "user", words[0], "--dir", self.folder / "state", *words[1:]]
        subprocess.run(list(map(str, line)), capture_output=True, timeout=60, check=True)

    def connecting(self, name: str) -> Vpn:
        file = self.folder / f"{name}.ovpn"
        self.user("add", name, "-o", file)
        return ginnel.connect(read_ovpn(file), timeout=60)

    async def serves(self) -> None:
        await until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None
        with contextlib.suppress(UnreachableError):
            return "clients" in ask(self.folder / "state", {"command": "status"})
        return False


@contextlib.contextmanager
def serving(folder: Path, *options: str, out: IO[Any] | int, err: IO[Any] | int) -> Iterator[Served]:
    words: Sequence[object] = [*GINNEL, "serve", "--dir", folder / "state", "--listen", "udp:127.0.0.1:0", *options]
    with subprocess.Popen(list(map(str, words)), stdout=out, stderr=err, start_new_session=True) as process:
        try:
            yield Served(folder, process)
        finally:
            process.kill()


async def revoked_and_out(served: Served, vpn: Vpn) -> None:
    await asyncio.to_thread(served.user, "revoke", "alice")
    with pytest.raises(AuthError, match="the user is revoked"):
        await asyncio.wait_for(vpn.wait_closed(), 20)


async def test_a_log_on_a_full_disk_costs_nobody_anything_and_is_written_later(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file, serving(tmp_path, "--json", out=file, err=subprocess.DEVNULL) as served:
        await until(lambda: '"event": "up"' in log.read_text())
        limits = resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE)
        async with served.connecting("alice") as alice:
            await until(lambda: '"event": "connected"' in log.read_text())
            written = log.read_text()
            resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (1, limits[1]))
            await revoked_and_out(served, alice)
        assert log.read_text() == written
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, limits)
        await until(lambda: '"event": "disconnected"' in log.read_text())
        served.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(served.process.wait, 20) == 0
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert [event for event in events if event in ("up", "connected", "expelled", "disconnected", "down")] == [
        *("up", "connected", "expelled", "disconnected", "down")
    ]


async def test_a_reader_that_reads_no_more_holds_nobody_up(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    with (
        os.fdopen(reads, "rb") as reader,
        os.fdopen(writes, "wb", buffering=0) as writer,
        serving(tmp_path, "--json", out=writer, err=subprocess.DEVNULL) as served,
    ):
        assert b'"event": "up"' in await asyncio.to_thread(reader.readline)
        # Of another description of the pipe: the server's own is one that waits.
        filler = os.open(f"/proc/self/fd/{writes}", os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(filler, bytes(fcntl.fcntl(filler, fcntl.F_GETPIPE_SZ)))
        os.close(filler)
        async with served.connecting("alice") as alice:
            await alice.ping("10.8.0.1", timeout=20)
            await revoked_and_out(served, alice)
        served.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(served.process.wait, 20) == 0


@pytest.mark.parametrize("err", ["full", "gone"])
async def test_a_stderr_that_takes_nothing_is_no_reason_to_end(tmp_path: Path, err: str) -> None:
    with contextlib.ExitStack() as stack:
        reads, writes = os.pipe()
        os.close(reads)
        stack.callback(os.close, writes)
        stream = writes
        if err == "full":
            stream = os.open("/dev/full", os.O_WRONLY)
            stack.callback(os.close, stream)
        served = stack.enter_context(serving(tmp_path, out=subprocess.DEVNULL, err=stream))
        await served.serves()
        async with served.connecting("alice") as alice:
            await revoked_and_out(served, alice)
        # Where it may not run, it says so with its status alone.
        second = stack.enter_context(serving(tmp_path, out=subprocess.DEVNULL, err=stream))
        assert await asyncio.to_thread(second.process.wait, 30) == 2
        served.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(served.process.wait, 20) == 0


def test_lines_that_are_lost_are_counted_and_said_once() -> None:
    reads, writes = os.pipe()
    with os.fdopen(reads) as reader, os.fdopen(writes, "w") as writer:
        lines = Lines(writer, lambda count: f"{count} lost")
        lines.start()
        long = "x" * 1000
        lines.add(long * 100)
        # The pipe is full of it, and who writes it waits there.
        assert select.select([reads], [], [], 20)[0]
        for _ in range(MAX_LINES + 499):
            lines.add(long)
        assert not lines.settle(0)
        assert len(reader.readline()) == 100_001
        # All that waited then, and what was lost until the first batch had been written.
        got = [reader.readline() for _ in range(MAX_LINES)]
        assert got == [f"{long}\n"] * (MAX_LINES - 1) + ["500 lost\n"]
        assert lines.settle(20)
        lines.add("the last")
        assert reader.readline() == "the last\n"


def test_lines_wait_for_company_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ginnel.cli.reporter.REST", 3600)
    reads, writes = os.pipe()
    with os.fdopen(reads) as reader, os.fdopen(writes, "w") as writer:
        lines = Lines(writer, lambda count: f"{count} lost")
        lines.start()
        lines.add("at once")
        assert reader.readline() == "at once\n"
        # Mostly it rests already.
        for _ in range(20):
            for number in range(MANY):
                lines.add(f"{number}")
            assert [reader.readline() for _ in range(MANY)] == [f"{number}\n" for number in range(MANY)]
        lines.add("the last")
        assert lines.settle(20)
        assert reader.readline() == "the last\n"


async def test_without_descriptors_clients_stay_and_the_rest_comes_back(tmp_path: Path) -> None:
    """Names, the control socket, and what clients open outside, each need one."""
    allow = ("--allow", "127.0.0.2/32")
    with serving(tmp_path, *allow, out=subprocess.DEVNULL, err=subprocess.DEVNULL) as served:
        await served.serves()
        soft, hard = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard, "as many as the system grants"
        async with served.connecting("alice") as alice:
            used = max(map(int, os.listdir(f"/proc/{served.process.pid}/fd")))
            resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (used + 1, hard))
            for _ in range(3):
                with pytest.raises(OSError, match="through the tunnel"):
                    await alice.open_connection("127.0.0.2", 9)
                with pytest.raises(OSError, match="through the tunnel"):
                    await alice.resolve("nowhere.invalid")
            status = asyncio.to_thread(ask, tmp_path / "state", {"command": "status"})
            with pytest.raises(UnreachableError):
                await status
            await alice.ping("10.8.0.1", timeout=20)
            resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
            await served.serves()
            await revoked_and_out(served, alice)


async def test_who_is_revoked_is_out_within_a_second(tmp_path: Path) -> None:
    with serving(tmp_path, out=subprocess.DEVNULL, err=subprocess.DEVNULL) as served:
        await served.serves()
        async with served.connecting("alice") as alice:
            heard = 0.0

            async def talk() -> None:
                nonlocal heard
                while True:
                    await alice.ping("10.8.0.1", timeout=20)
                    heard = time.monotonic()

            talking = asyncio.create_task(talk())
            await until(lambda: heard > 0)
            await asyncio.to_thread(served.user, "revoke", "alice")
            revoked = time.monotonic()
            with pytest.raises(AuthError, match="the user is revoked"):
                await asyncio.wait_for(alice.wait_closed(), 20)
            talking.cancel()
            await asyncio.gather(talking, return_exceptions=True)
            print(f"the last reply came {heard - revoked:.3f} s after `ginnel user revoke` had ended")
            assert heard < revoked + 1


async def test_the_file_of_who_was_revoked_opens_no_session_and_one_that_was_replaced_says_so(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file, serving(tmp_path, "--json", out=file, err=subprocess.DEVNULL) as served:
        await served.serves()
        async with served.connecting("alice") as alice:
            await asyncio.to_thread(served.user, "renew", "alice", "-o", tmp_path / "new.ovpn")
            with pytest.raises(AuthError, match="replaced by a new one"):
                await asyncio.wait_for(alice.wait_closed(), 20)
        with pytest.raises(AuthError, match="replaced by a new one"):
            await ginnel.connect(read_ovpn(tmp_path / "alice.ovpn"), timeout=20).__aenter__()
        crl = tmp_path / "state" / "crl.pem"
        await until(lambda: crl.exists() and len(x509.load_pem_x509_crl(crl.read_bytes())) == 1)
        await asyncio.to_thread(served.user, "revoke", "alice")
        # Twice: silence to one who asks again is no accident.
        for _ in range(2):
            with pytest.raises(UnreachableError, match="did not end .nor does it for a user who was revoked, or "):
                await ginnel.connect(read_ovpn(tmp_path / "new.ovpn"), timeout=2).__aenter__()
        told = [event for event in map(json.loads, log.read_text().splitlines()) if event["event"] == "turned_away"]
        assert [(event["name"], event["reason"]) for event in told] == [("alice", "the user is revoked")]
        assert ask(tmp_path / "state", {"command": "status"})["counters"]["endpoint"]["created"] == 2
        await until(lambda: len(x509.load_pem_x509_crl(crl.read_bytes())) == 2)


async def test_what_is_configured_and_leads_to_nobody_is_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ("--json", "--publish", "0:alice:80")
    with log.open("w") as file, serving(tmp_path, *options, out=file, err=subprocess.PIPE) as served:
        assert await asyncio.to_thread(served.process.wait, 20) == 2
    port = lasting_port()
    (tmp_path / "state").mkdir(mode=0o700, exist_ok=True)
    (tmp_path / "state/server.toml").write_text("[user.nobody]\npush = []\n")
    metrics = f"unix:{tmp_path / 'metrics'}"
    options = ("--json", "--publish", f"{port}:alice:80", "--metrics", metrics, "--public", "10.8.0.9")
    with log.open("w") as file, serving(tmp_path, *options, out=file, err=subprocess.DEVNULL) as served:
        await served.serves()
        await until(lambda: '"dialed_inside"' in log.read_text())
        events = {event["event"]: event for event in map(json.loads, log.read_text().splitlines())}
        assert events["publish_nobody"]["name"] == "alice"
        assert events["dialed_inside"]["host"] == "10.8.0.9"
        assert (events["push_nobody"]["name"], events["push_nobody"]["reason"]) == ("nobody", "is no user here")
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            served.process.send_signal(number)
            await until(lambda name=number.name: f'"event": "signal", "name": "{name}"' in log.read_text())
        assert (events["up"]["publish"], events["up"]["metrics"]) == ([f"{port}:alice:80"], metrics)
    said = tmp_path / "said"
    with said.open("w") as file, serving(tmp_path, *options[1:], out=file, err=file) as served:
        await served.serves()
        last = f"port {port} of every address leads to alice's port 80\n"
        await until(lambda: last in said.read_text())
        assert f"counters for Prometheus at /metrics on {metrics}\n" in said.read_text()
        assert ("no_ping reason=" in said.read_text()) is not may_ping()


def test_a_signal_at_any_stage_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    """And a second one while it ends."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    options = ["--dir", tmp_path / "state", "--listen", "127.0.0.1:0", "--metrics", f"unix:{tmp_path / 'metrics'}"]
    starting = 1.0
    for number in range(SIGNALS):
        began = time.monotonic()
        with Process([*GINNEL, "serve", "--json", *options]) as process:
            if number == 0:
                process.wait_line('"event": "up"', 30)
                starting = time.monotonic() - began
            # Whenever that is: what counts is that it is at any time.
            time.sleep(choose.uniform(0, 1.2 * starting))
            process.send_signal(signal.SIGTERM)
            time.sleep(choose.uniform(0, 0.3))
            process.send_signal(choose.choice([signal.SIGTERM, signal.SIGINT]))
            # Before it has begun, when nobody listens for signals, it dies of one.
            assert process.wait(10) in (0, -signal.SIGTERM, -signal.SIGINT), str(process)
            if process.out.all():
                assert process.wait(0) == 0, str(process)
                assert parse_event(process.out.all()[-1])["event"] in ("up", "down"), str(process)
            assert "Traceback" not in str(process) or "KeyboardInterrupt" in str(process), str(process)
        left = {path.name for path in (tmp_path / "state").glob("*")}
        assert left <= {"server.db", "server.lock", "crl.pem"}
        assert not (tmp_path / "metrics").exists()


@pytest.mark.parametrize("verbose", [False, True])
def test_what_failed_is_in_the_log_with_its_trace_where_that_is_wanted(
    capfd: pytest.CaptureFixture[str], verbose: bool
) -> None:
    reporter = Reporter(False, verbose=verbose)
    try:
        raise ZeroDivisionError("of ours")
    except ZeroDivisionError:
        record = logging.LogRecord("ginnel", logging.ERROR, "", 1, "a hook failed", (), sys.exc_info())
    reporter.emit(record)
    reporter.flush_all()
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "ERROR: a hook failed: ZeroDivisionError('of ours')"
    assert (len(lines) > 1) == verbose
    assert any("test_cli_serve.py" in line for line in lines) == verbose
