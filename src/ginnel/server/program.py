"""Programs that a server asks and tells, with the environment that stock's have.

One decides about logins, as ``auth-user-pass-verify PROGRAM via-file``. It is given a file with the user name and the
password in a line each, and finds the rest in its environment. Exit status 0 accepts, 2 defers: a "1" or "0" in the
file ``auth_control_file`` decides then. Any other status refuses, with the reason in ``auth_failed_reason_file``, if
there is one. What a deferring program wrote into ``auth_pending_file`` (seconds, a method, a text) is told to the
client.

One is run when a client is let in, as ``client-connect``: with any status but 0 it is not. The lines
``push "OPTION"`` that it writes to the file of its last argument are for this client, and ``disable`` refuses it. One
is told when a client is gone, as ``client-disconnect``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ginnel.errors import AuthError
from ginnel.openvpn import events
from ginnel.openvpn.server import ClientLogin
from ginnel.server.clients import Client


class UndecidedError(Exception):
    """Nobody has decided, and the reason is this machine's: no descriptor, no room on a disk, a store that fails."""


async def ask_program(
    command: Sequence[str],
    login: ClientLogin,
    name: str,
    *,
    scratch: Path | None,
    timeout: float,
    tell: Callable[[str], None],
) -> None:
    """Returns for a login that is accepted. Raises AuthError for one that is not, or for a program that fails, and
    UndecidedError where it can't be run. The password lies in ``scratch`` meanwhile: see `_folder`."""
    try:
        await _ask(command, login, name, scratch, timeout, tell)
    except OSError as error:
        reason = f"the program that checks logins, {command[0]}, does not run: {error.strerror}"
        raise UndecidedError(reason) from None


async def _ask(
    command: Sequence[str],
    login: ClientLogin,
    name: str,
    scratch: Path | None,
    timeout: float,
    tell: Callable[[str], None],
) -> None:
    with _folder(scratch) as folder:
        files = {key: folder / key for key in FILES}
        _prepare(files.values())
        credentials = folder / "login"
        _prepare([credentials], f"{login.username}\n{login.password}\n")
        environment = {
            **_environment("user-pass-verify", name, login.username, login.peer_info),
            **_place("untrusted", login.path),
            **{key: str(file) for key, file in files.items()},
        }
        try:
            async with asyncio.timeout(timeout):
                status = await _run([*command, str(credentials)], environment)
                if status == DEFERRED:
                    _pass_on(files["auth_pending_file"], tell)
                    status = await _decision(files["auth_control_file"])
        except TimeoutError:
            raise AuthError("the program that checks logins did not decide in time") from None
        if status:
            reason = _read(files["auth_failed_reason_file"])[:MAX_REASON]
            raise AuthError("the program refuses the login", reason if reason.isprintable() else "")


async def run_connected(command: Sequence[str], client: Client, *, scratch: Path | None, timeout: float) -> list[str]:
    """What a client is pushed besides. Raises AuthError where the program refuses it, and UndecidedError where it can't
    be run, or writes what it may not."""
    try:
        with _folder(scratch) as folder:
            answer = folder / "answer"
            _prepare([answer])
            async with asyncio.timeout(timeout):
                status = await _run([*command, str(answer)], _of_client("client-connect", client))
            lines = _read(answer).splitlines()
    except TimeoutError:
        raise AuthError("the program for clients that connect did not end in time") from None
    except OSError as error:
        reason = f"the program for clients that connect, {command[0]}, does not run: {error.strerror}"
        raise UndecidedError(reason) from None
    if status or "disable" in lines:
        raise AuthError("the program for clients that connect refuses the login")
    return [_pushed(line) for line in lines if line.strip()]


async def run_disconnected(command: Sequence[str], client: Client, reason: str) -> None:
    """Tells a program that a client is gone, and why. Raises OSError where it does not run."""
    environment = {
        **_of_client("client-disconnect", client),
        "bytes_received": str(client.rx),
        "bytes_sent": str(client.tx),
        "time_duration": str(max(0, int(time.time() - client.since))),
        "signal": reason,
    }
    async with asyncio.timeout(TELLING):
        await _run(command, environment)


@contextlib.contextmanager
def _folder(scratch: Path | None) -> Iterator[Path]:
    """For one program's files, in ``scratch``, which is emptied when a server starts: what one that is killed leaves
    behind may be a password (see `ginnel.server.directory.scratch`). The system's own place with None."""
    if scratch is not None:
        # Programs need not stay where the server is.
        scratch = scratch.absolute()
        scratch.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ginnel-", dir=scratch, ignore_cleanup_errors=True) as made:
        yield Path(made)


def _of_client(kind: str, client: Client) -> dict[str, str]:
    environment = {
        **_environment(kind, client.name, client.username, client.peer_info),
        **_place("trusted", client.path),
        "ifconfig_pool_remote_ip": str(client.address),
        "time_unix": str(int(client.since)),
    }
    if client.address6 is not None:
        environment["ifconfig_pool_remote_ip6"] = str(client.address6)
    return environment


def _environment(kind: str, name: str, username: str, peer_info: Mapping[str, str]) -> dict[str, str]:
    # Bounded, or a client could make it too long for any program to start.
    said = {
        key[:MAX_WORD]: value[:MAX_WORD]
        for key, value in itertools.islice(peer_info.items(), MAX_SAID)
        if key.startswith("IV_") and key.isprintable() and value.isprintable()
    }
    own = {"PATH": os.environ.get("PATH", os.defpath), "script_type": kind, "common_name": name, "username": username}
    return {**said, **own}


def _place(word: str, path: events.Path) -> dict[str, str]:
    _, address, port = path
    return {f"{word}_ip6" if ":" in address else f"{word}_ip": address, f"{word}_port": str(port)}


def _pushed(line: str) -> str:
    match = re.fullmatch(r"""\s*push\s+(?:"([^"]*)"|'([^']*)')\s*""", line)
    if match is None:
        raise UndecidedError(f'the program for clients that connect wrote {line[:80]!r}; it may write push "OPTION"')
    return str(match[1] or match[2])


async def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        env=environment,
    )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _decision(file: Path) -> int:
    """Waits for the file's first character. A program may write from anywhere, so the file is looked at."""
    while not (said := _read(file)):  # noqa: ASYNC110
        await asyncio.sleep(POLL)
    return 0 if said[0] == "1" else 1


def _prepare(files: Iterable[Path], text: str = "") -> None:
    for file in files:
        file.touch(0o600)
        file.write_text(text, errors="surrogateescape")


def _read(file: Path) -> str:
    return file.read_text(errors="replace").strip()


def _pass_on(file: Path, tell: Callable[[str], None]) -> None:
    lines = file.read_text(errors="replace").splitlines()
    if len(lines) >= 3 and lines[2].isprintable():
        tell(lines[2][:MAX_REASON])


FILES = ("auth_control_file", "auth_failed_reason_file", "auth_pending_file")
DEFERRED = 2
POLL = 0.1
MAX_REASON = 800
MAX_SAID = 64
MAX_WORD = 256
# Seconds that a program has to take note of who is gone.
TELLING = 60.0
