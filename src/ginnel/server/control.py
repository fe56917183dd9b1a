"""A running server's control socket: a request and an answer, one JSON object a line each.

It is a unix socket that its user alone can open. Requests are ``{"command": "status"}``,
``{"command": "kick", "name": NAME}``, and ``{"command": "look"}`` of who has changed the users: what was revoked counts
before the answer. An answer has ``error`` where one was no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
from pathlib import Path
from typing import Any, Self

from ginnel.errors import ConfigError, DeviceError, UnreachableError
from ginnel.server.service import Server
from ginnel.server.status import describe


class Control:
    """Serves the socket in a server's directory; made by `open`, and ``aclose`` removes it."""

    def __init__(self, server: Server, path: Path, listening: asyncio.Server) -> None:
        self._server = server
        self._path = path
        self._listening = listening

    @classmethod
    async def open(cls, server: Server, directory: Path) -> Self:
        """Raises ConfigError where another server runs in this directory, DeviceError where there can't be a socket."""
        path = directory / NAME
        sock = _bound(path)
        made: list[Self] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await made[0]._serve(reader, writer)

        made.append(cls(server, path, await asyncio.start_unix_server(serve, sock=sock, limit=MAX_REQUEST)))
        return made[0]

    async def aclose(self) -> None:
        self._listening.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                line = await reader.readline()
                writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                await writer.drain()
        writer.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        match request:
            case {"command": "status"}:
                return describe(self._server)
            case {"command": "kick", "name": str(name)}:
                return {"kicked": self._server.kick(name)}
            case {"command": "look"}:
                self._server.look()
                return {"looked": True}
        return {"error": "no request: write status, kick or look"}


def ask(directory: Path, request: dict[str, Any]) -> dict[str, Any]:
    """A running server's answer. Raises UnreachableError where none runs in this directory."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        try:
            _at(sock.connect, directory / NAME)
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as answer:
                line = answer.readline()
        except PermissionError:
            raise DeviceError(errno.EACCES, f"the server's control socket in {directory}") from None
        except OSError as error:
            reason = error.strerror or "no answer in time"
            hint = f"start one with: ginnel serve --dir {directory}"
            raise UnreachableError(f"no server runs with its state in {directory} ({reason}); {hint}") from None
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UnreachableError(f"the server in {directory} ended while it was asked")
    return found


def _bound(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            _remove_left_behind(path)
        # Between the two nobody can connect yet: it does not listen. A umask would be every thread's.
        _at(sock.bind, path)
        path.chmod(0o600)
        sock.listen()
    except OSError as error:
        sock.close()
        raise DeviceError(error.errno or errno.EINVAL, f"cannot make the control socket {path}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_left_behind(path: Path) -> None:
    """What a server that was killed has left. Raises ConfigError where one answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            _at(sock.connect, path)
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"a server runs with its state in {path.parent}", instead="end it, or take another directory")


def _at(action: Any, path: Path) -> None:
    """Over a descriptor of the directory: the name of a unix socket holds no more than 107 bytes."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        action(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


NAME = "control.sock"
PATIENCE = 5.0
MAX_REQUEST = 4096
