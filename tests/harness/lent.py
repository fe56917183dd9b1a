"""Programs that live on lent devices, run by an ordinary user without any capability."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.harness.environment import Environment
from tests.harness.network import ORDINARY_ID, Namespace
from tests.harness.profile import Profile


class Lent:
    """A program on a lent device. With ``actions`` (see ``lent_driver``) through ginnel's Python interface, as
    the driver does it; else by ``ginnel lend`` with ``options``."""

    def __init__(
        self,
        namespace: Namespace,
        environment: Environment,
        command: Sequence[str | Path],
        *options: str,
        actions: Sequence[Sequence[Any]] | None = None,
        files: dict[str, str] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ginnel-lent-")
        self.folder = Path(self._folder.name)
        self.folder.chmod(0o755)
        for name, text in (files or {}).items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o644)
        os.chown(self.folder, ORDINARY_ID, ORDINARY_ID)
        words = [str(word) for word in command]
        if actions is None:
            start = [environment.ginnel, "lend", *options, "--", *words]
        else:
            start = [environment.python, "-c", _DRIVER.read_text(), json.dumps(words), json.dumps(actions)]
        try:
            self.process = namespace.start(start, ordinary=True, cwd=self.folder, env=_ENVIRONMENT)
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.close()
        self._folder.cleanup()

    def wait_done(self, action: str, timeout: float = 60, start: int = 0) -> dict[str, Any]:
        """What the driver says of an action."""
        begin = f'{{"done": "{action}"'
        line = self.process.wait_line(begin, timeout, start)
        # The program may be in the middle of a line of its own.
        done, _ = json.JSONDecoder().raw_decode(line[line.index(begin) :])
        assert "error" not in done, f"{done}\n{self.process}"
        return dict(done)


def openvpn_files(
    profile: Profile, *, tap: bool = False, client: Sequence[str] = (), server: Sequence[str] = ()
) -> tuple[str, str]:
    """A server's and a client's file with no option that an ordinary user of a kernel device would not write."""
    texts = []
    for text, more in ((profile.server_file(Path("/nonexistent")), server), (profile.client_file(), client)):
        lines = [line for line in text.splitlines() if line != "disable-dco"]
        if tap:
            lines = [line.replace("dev tun", "dev tap") for line in lines]
        texts.append("\n".join([*lines, *more, ""]))
    return texts[0], texts[1]


_DRIVER = Path(__file__).parent / "lent_driver.py"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
