"""``ginnel connect --tun`` as root in the client's namespace, and what it changes there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.harness.client import wait_until
from tests.harness.network import Namespace, Network
from tests.harness.process import JsonProgram, Process, parse_event
from tests.harness.profile import PORT, Profile
from tests.harness.resolver import Resolver

RESOLV_CONF = "# the machine's own\nnameserver 192.0.2.53\n"


class Machine:
    """The client's side as a machine: its network, and a resolv.conf of its own."""

    def __init__(self, network: Network) -> None:
        self.namespace: Namespace = network.client
        self._folder = tempfile.TemporaryDirectory(prefix="ginnel-machine-")
        self.folder = Path(self._folder.name)
        self.resolv_conf = self.folder / "resolv.conf"
        self.resolv_conf.write_text(RESOLV_CONF)
        self.resolv_conf.chmod(0o644)
        # Addresses of the link that are still being tried out would look like a change.
        wait_until(lambda: "tentative" not in self.state()["addresses"], 10, lambda: self.state()["addresses"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def state(self) -> dict[str, str]:
        """Everything that a tunnel may change."""
        commands = {
            "links": ["ip", "-o", "link"],
            "addresses": ["ip", "-o", "address"],
            "routes": ["ip", "-4", "route", "show", "table", "all"],
            "routes6": ["ip", "-6", "route", "show", "table", "all"],
            "rules": ["ip", "rule"],
            "nft": ["nft", "list", "ruleset"],
        }
        state = {name: self.namespace.run(command) for name, command in commands.items()}
        return {**state, "resolv.conf": self.resolv_conf.read_text()}

    @contextlib.contextmanager
    def asking(self, resolv_conf: str) -> Iterator[None]:
        """It has another resolv.conf inside the block."""
        self.resolv_conf.write_text(resolv_conf)
        try:
            yield
        finally:
            self.resolv_conf.write_text(RESOLV_CONF)

    def journals(self) -> list[str]:
        """What is left of journals for this machine's network; other tests have others."""
        namespace = Path(f"/proc/{self.namespace.pid}/ns/net").stat().st_ino
        return sorted(map(str, Path("/run/ginnel").glob(f"{namespace}-*")))

    def start(
        self,
        profile: Profile | str,
        *options: str,
        port: int = PORT,
        programs: Path | None = None,
        resolver: Resolver | None = None,
    ) -> TunClient:
        """``programs``: a folder of this machine's own, before all others; its ``run`` is laid over /run/systemd.
        ``resolver``: who is in charge of /etc/resolv.conf, which is not the machine's one then."""
        file = self.folder / "office.ovpn"
        file.write_text(profile if isinstance(profile, str) else profile.client_file(port))
        file.chmod(0o600)
        # The folder is root's alone, as a home is: what the session loads once it is nobody, it can't.
        private = self.folder / "private"
        private.mkdir(exist_ok=True)
        bind = 'mount --bind "$2" "$3"; [ ! "$1" ] || mount --bind "$1" /etc/resolv.conf; shift 3; exec "$@"'
        if programs is not None:
            bind = f"PATH={programs}:$PATH; [ ! -d {programs}/run ] || mount --bind {programs}/run /run/systemd; {bind}"
        ginnel = [private / _PYTHON.relative_to(_ROOT), "-m", "ginnel"]
        words = [*ginnel, "connect", file, "--tun", "--json", *options]
        enter = [] if resolver is None else ["nsenter", f"--mount=/proc/{resolver.pid}/ns/mnt"]
        resolv_conf = self.resolv_conf if resolver is None else ""
        command = [*enter, "unshare", "--mount", "sh", "-ec", bind, "sh", resolv_conf, _ROOT, private, *words]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(private / "src")}
        return TunClient(self, self.namespace.start(command, env=environment))


class TunClient(JsonProgram):
    def __init__(self, machine: Machine, process: Process) -> None:
        self.machine = machine
        self.process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.close()

    @property
    def helper(self) -> int:
        """The process that kept the rights."""
        (child,) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(child)

    def run(self, *command: str, **options: Any) -> str:
        """Runs a program of this machine, which sees the same resolv.conf."""
        return self.machine.namespace.run(["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *command], **options)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it as a user does; it must end well and say so."""
        self.process.send_signal(number)
        self.wait_stopped()

    def wait_stopped(self) -> None:
        """After a signal that asks it to end. It promises two seconds on a machine that has time for it."""
        status = self.process.wait(8)
        assert status == 0, str(self.process)
        assert parse_event(self.process.out.all()[-1])["event"] == "down", str(self.process)


def way(client: TunClient, address: str) -> str:
    """The device that packets to an address leave by."""
    (route,) = json.loads(client.run("ip", "-json", "route", "get", address))
    return str(route["dev"])


_ROOT = Path(__file__).parents[2]
_PYTHON = Path(sys.prefix) / "bin/python"
