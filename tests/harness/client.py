"""``ginnel connect`` as a user without any right, in the client's namespace, and what it leads to."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.harness.environment import Environment
from tests.harness.network import ORDINARY_ID, Namespace, Network
from tests.harness.process import JsonProgram, Process, parse_event
from tests.harness.profile import PORT, Profile


class GinnelClient(JsonProgram):
    """``ginnel connect --json``. ``folder`` is its own, and its working directory; ``files`` lie there.

    ``port`` is the server's, ``threads`` how many it may have. ``old`` makes it one of the clients that know
    nothing of TLS's key exporter, so that both sides derive their keys by the PRF.
    """

    def __init__(
        self,
        network: Network,
        environment: Environment,
        profile: Profile | str,
        *options: str,
        socks: str | None = "0",
        login: tuple[str, str] | None = None,
        port: int = PORT,
        old: bool = False,
        files: dict[str, str | bytes] | None = None,
        threads: int = 1,
        env: dict[str, str] | None = None,
    ) -> None:
        self.network = network
        self._folder = tempfile.TemporaryDirectory(prefix="ginnel-client-")
        self.folder = Path(self._folder.name)
        os.chown(self.folder, ORDINARY_ID, ORDINARY_ID)
        text = profile if isinstance(profile, str) else profile.client_file(port)
        words = [*options, *(["--socks", socks] if socks else [])]
        if login is not None:
            words += ["--auth-user-pass", str(_write(self.folder / "login", "\n".join(login) + "\n"))]
        program = [environment.python, "-c", _OLD_CLIENT] if old else [environment.ginnel]
        for name, content in (files or {}).items():
            _write(self.folder / name, content)
        self.process = network.client.start(
            [*program, "connect", _write(self.folder / "office.ovpn", text), "--json", *words],
            ordinary=True,
            env=_ENVIRONMENT | {"GINNEL_THREADS": str(threads)} | (env or {}),
            cwd=self.folder,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.close()
        self._folder.cleanup()

    @property
    def socks(self) -> str:
        """Where its SOCKS gateway listens, once it is up."""
        return str(self.wait_up()["socks"])

    @property
    def events(self) -> list[dict[str, Any]]:
        return [parse_event(line) for line in self.process.out.all()]

    def wait_up(self) -> dict[str, Any]:
        """The first ``up``."""
        self.process.wait_line('"event": "up"', 20)
        return next(event for event in self.events if event["event"] == "up")

    def stop(self, number: signal.Signals = signal.SIGINT, timeout: float = 5) -> None:
        """Ends it as a user does; it must end well and say so."""
        status = self.process.stop(number, timeout)
        assert status == 0, f"status {status}: {self.process}"
        assert self.events[-1]["event"] == "down", str(self.process)

    def fail(self, timeout: float = 20) -> tuple[int, str]:
        """Its exit status, and the line that says why, when it ends by itself."""
        status = self.process.wait(timeout)
        lines = self.process.err.all()
        assert len(lines) == 1, str(self.process)
        error = self.events[-1]
        assert error["event"] == "error", str(self.process)
        assert error["code"] == status, str(self.process)
        return status, lines[0]

    def curl(self, *words: str, timeout: float = 30, check: bool = True) -> str:
        """What curl(1) prints, through the SOCKS gateway; names are resolved inside the tunnel."""
        proxy = (
            f"socks5h://localhost{self.socks.removeprefix('unix:')}" if "/" in self.socks else f"socks5h://{self.socks}"
        )
        return curl(self.network.client, "--proxy", proxy, *words, timeout=timeout, check=check)

    def usage(self) -> Usage:
        return Usage.of(self.pid)


@dataclass(frozen=True)
class Usage:
    """What a process holds: descriptors, sockets among them, threads, and resident memory in bytes;
    ``peak`` is the most it ever was. ``cpu`` is in seconds, user and system."""

    descriptors: int
    sockets: int
    threads: int
    memory: int
    peak: int
    cpu: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        process = Path(f"/proc/{pid}")
        targets = []
        for link in (process / "fd").iterdir():
            # It may be closed between being listed and being looked at.
            with contextlib.suppress(FileNotFoundError):
                targets.append(str(link.readlink()))
        fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        times = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
        return cls(
            descriptors=len(targets),
            sockets=sum(target.startswith("socket:") for target in targets),
            threads=int(fields["Threads"]),
            memory=int(fields["VmRSS"].split()[0]) << 10,
            peak=int(fields["VmHWM"].split()[0]) << 10,
            cpu=sum(map(int, times)) / os.sysconf("SC_CLK_TCK"),
        )


@contextlib.contextmanager
def program_folder(profile: Profile) -> Iterator[Path]:
    """A folder of the ordinary user's with an ``office.ovpn``."""
    with tempfile.TemporaryDirectory(prefix="ginnel-program-") as name:
        folder = Path(name)
        os.chown(folder, ORDINARY_ID, ORDINARY_ID)
        _write(folder / "office.ovpn", profile.client_file())
        yield folder


def start_program(network: Network, environment: Environment, folder: Path, program: str) -> Process:
    """Runs Python text that uses ginnel, as the ordinary user in the client's namespace."""
    return network.client.start([environment.python, "-c", program], ordinary=True, cwd=folder, env=_ENVIRONMENT)


def curl(namespace: Namespace, *words: str, timeout: float = 30, check: bool = True, **options: Any) -> str:
    """What curl(1) prints in a namespace; ``options`` are those of `subprocess.run`."""
    common = ["curl", "--silent", "--show-error", "--fail", "--max-time", str(timeout)]
    return namespace.run([*common, *words], timeout=timeout + 5, check=check, **options)


def wait_until(condition: Callable[[], bool], timeout: float, what: Callable[[], object]) -> None:
    """Looks again and again, for what can't be waited for in another way; ``what`` says what was seen last."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, str(what())
        time.sleep(0.02)


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    os.chown(path, ORDINARY_ID, ORDINARY_ID)
    path.chmod(0o600)
    return path


_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
# Clients before 2.6 don't offer TLS's key exporter; a 2.6 server, which has no option against it,
# then takes the PRF. No option of a client file does this either.
_OLD_CLIENT = """
from dataclasses import replace
from ginnel.cli import connect, main

read_ovpn = connect.read_ovpn
connect.read_ovpn = lambda file: replace(read_ovpn(file), export_keys=False)
main()
"""
