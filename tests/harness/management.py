"""Stock OpenVPN's management interface, from the side of a program that decides who may log in."""

from __future__ import annotations

import socket
from pathlib import Path
from types import TracebackType
from typing import Self


class Management:
    """``options`` are the server's; enter it when the server runs."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "management"
        self.options = (
            f"management {self._path} unix",
            "management-client-auth",
            "verify-client-cert optional",
            "auth-user-pass-optional",
        )

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(self._path))
        self._lines = self._socket.makefile()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lines.close()
        self._socket.close()

    def login(self) -> tuple[str, dict[str, str]]:
        """The next login: what names it in commands, and the environment of a script in this place."""
        client = self._notice("CONNECT").replace(",", " ")
        known = {}
        while (line := self._notice("ENV")) != "END":
            name, _, value = line.partition("=")
            known[name] = value
        return client, known

    def response(self) -> str:
        """The next answer to a CR_TEXT, in base64."""
        return self._notice("CR_RESPONSE").split(",")[2]

    def allow(self, client: str) -> None:
        self._command(f"client-auth-nt {client}")

    def deny(self, client: str, said: str) -> None:
        self._command(f'client-deny {client} "no" "{said}"')

    def pend(self, client: str, said: str, seconds: int = 60) -> None:
        self._command(f'client-pending-auth {client} "{said}" {seconds}')

    def end(self, client: str, said: str) -> None:
        """Ends a session with a message of the control channel."""
        self._command(f'client-kill {client.split()[0]} "{said}"')

    def _command(self, line: str) -> None:
        self._socket.sendall(f"{line}\n".encode())

    def _notice(self, kind: str) -> str:
        """What the next notice of this kind says; others are passed over. AssertionError if a command failed."""
        for line in self._lines:
            assert not line.startswith("ERROR"), line
            if line.startswith(f">CLIENT:{kind},"):
                return line.split(",", 1)[1].rstrip("\r\n")
        raise AssertionError(f"the server is gone; no {kind} came")
