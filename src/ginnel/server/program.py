"""A program that decides about logins, as stock's ``auth-user-pass-verify PROGRAM via-file`` runs one.

It is given a file with the user name and the password in a line each, and finds the rest in its environment.
Exit status 0 accepts, 2 defers: a "1" or "0" in the file ``auth_control_file`` decides then. Any other status
refuses, with the reason in ``auth_failed_reason_file``, if there is one. What a deferring program wrote into
``auth_pending_file`` (seconds, a method, a text) is told to the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ginnel.errors import AuthError
from ginnel.openvpn.server import ClientLogin


class UndecidedError(Exception):
    """Nobody has decided, and the reason is this machine's: no descriptor, no room on a disk, a store that fails."""


async def ask_program(
    command: Sequence[str], login: ClientLogin, name: str, *, timeout: float, tell: Callable[[str], None]
) -> None:
    """Returns for a login that is accepted. Raises AuthError for one that is not, or for a program that fails, and
    UndecidedError where it can't be run."""
    try:
        await _ask(command, login, name, timeout, tell)
    except OSError as error:
        raise UndecidedError(f"the program that checks logins does not run: {error.strerror}") from None


async def _ask(
    command: Sequence[str], login: ClientLogin, name: str, timeout: float, tell: Callable[[str], None]
) -> None:
    with tempfile.TemporaryDirectory(prefix="ginnel-auth-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        files = {key: folder / key for key in FILES}
        _prepare(files.values())
        credentials = folder / "login"
        _prepare([credentials], f"{login.username}\n{login.password}\n")
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "script_type": "user-pass-verify",
            "common_name": name,
            "username": login.username,
            "untrusted_ip": login.path[1],
            "untrusted_port": str(login.path[2]),
            **{key: str(file) for key, file in files.items()},
            **{key: value for key, value in login.peer_info.items() if key.startswith("IV_") and value.isprintable()},
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
