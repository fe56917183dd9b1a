"""Stock OpenVPN: a server with an office behind it, and a client on a kernel device to compare with."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.harness import office
from tests.harness.network import Namespace, Network
from tests.harness.process import Process
from tests.harness.profile import LOGIN, Profile


class Office:
    """What is behind the VPN: addresses on the server's loopback, which the client's side has no route to."""

    def __init__(self, namespace: Namespace) -> None:
        namespace.ip(
            f"address add {office.ADDRESS}/32 dev lo",
            f"address add {office.ADDRESS6}/128 dev lo nodad",
        )
        namespace.settle(office.ADDRESS6)
        root = str(Path(__file__).parents[2])
        self._process = namespace.start(
            [sys.executable, "-m", "tests.harness.office"], env={**os.environ, "PYTHONPATH": root}
        )
        try:
            self._process.wait_line("ready", 20)
        except BaseException:
            self._process.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.close()


class StockServer:
    """Debian's own ``openvpn`` as a server, ready to be connected to once it is made."""

    def __init__(self, network: Network, profile: Profile) -> None:
        self.network = network
        self.profile = profile
        self._folder = tempfile.TemporaryDirectory(prefix="ginnel-server-")
        folder = Path(self._folder.name)
        self._file = folder / "server.conf"
        self._file.write_text(profile.server_file(_password_script(folder)))
        self._file.chmod(0o600)
        try:
            self.start()
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self._folder.cleanup()

    @property
    def log(self) -> list[str]:
        return self.process.out.all()

    def start(self) -> None:
        """Starts it, again after `kill`, with the same files."""
        self.process = _start_openvpn(self.network.server, self._file)

    def kill(self) -> None:
        """Ends it with SIGKILL: it can't say goodbye."""
        self.process.close()

    def wait_log(self, text: str, timeout: float = 10, start: int = 0) -> str:
        return self.process.wait_line(text, timeout, start)


class StockClient:
    """Debian's own ``openvpn`` as a client, on a kernel device, as root."""

    def __init__(self, network: Network, profile: Profile) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ginnel-client-")
        file = Path(self._folder.name) / "client.conf"
        login = Path(self._folder.name) / "login"
        login.write_text("\n".join(LOGIN) + "\n")
        login.chmod(0o600)
        text = profile.client_file().replace("\nauth-user-pass\n", f"\nauth-user-pass {login}\n")
        file.write_text(f"{text}\ndisable-dco\n")
        file.chmod(0o600)
        try:
            self.process = _start_openvpn(network.client, file)
        except BaseException:
            self._folder.cleanup()
            raise
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.close()
        self._folder.cleanup()


def _start_openvpn(namespace: Namespace, file: Path) -> Process:
    process = namespace.start(["openvpn", "--config", file])
    try:
        process.wait_line("Initialization Sequence Completed", 20)
    except BaseException:
        process.close()
        raise
    return process


def _password_script(folder: Path) -> Path:
    script = folder / "check-password"
    user, password = map(shlex.quote, LOGIN)
    script.write_text(
        f'#!/bin/sh\n{{ read -r user; read -r word; }} < "$1"\n[ "$user" = {user} ] && [ "$word" = {password} ]\n'
    )
    script.chmod(0o755)
    return script
