"""``ginnel serve --tun``: whom root becomes, rights and device around a server on the kernel's device."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from ginnel.errors import ConfigError
from ginnel.network import rights
from ginnel.server.directory import state_directory
from ginnel.server.journal import tell
from ginnel.threads import for_many_peers


def place(given: Path | None) -> tuple[Path, int]:
    """Where the state is, and the number of the user to whom it belongs: root becomes that one. Where there is none yet
    it will be the one's who called sudo, and without ``given`` in that one's home.

    Raises ConfigError where it would be root's: who speaks with the internet is not to own what root owns.
    """
    directory = state_directory(given)
    if os.geteuid() != 0:
        return directory, os.geteuid()
    user = rights.caller()
    try:
        if given is None and user is not None and not directory.exists():
            with contextlib.suppress(KeyError):
                directory = Path(pwd.getpwuid(user).pw_dir, ".local/state/ginnel")
        owner = directory.stat().st_uid if directory.exists() else user
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}; the server keeps its keys and users there") from None
    if owner is None:
        raise ConfigError(
            f"{directory} is not there, and root's server becomes the user whose it is",
            instead=f"make it for a user of the server's own: install -d -m 700 -o USER {directory}",
        )
    if owner == 0:
        raise ConfigError(
            f"{directory} is root's, and a server that speaks with the internet must not be root",
            instead=f"give it to a user of the server's own, who can reach it: chown -R USER {directory}",
        )
    return directory, owner


@contextlib.contextmanager
def held(user: int, name: str | None) -> Iterator[tuple[rights.Rights, tuple[list[int], str, bool]]]:
    """Makes the device, and gives up every right of this process but to ports below 1024; root becomes ``user``. Takes
    all of it back after the block. Raises DeviceError where the system refuses."""
    rights.check()
    helper = rights.Rights()
    try:
        if helper.recover(keep_guard=False)[0]:
            tell(
                "put_back", level=logging.WARNING, what="the network of this machine, as a killed server had changed it"
            )
        device = helper.device(name, "tun", for_many_peers(queues=True)["lanes"])
        rights.load(("ginnel.server",), LATER)
        rights.drop(user, low_ports=True)
        with rights.unreadable():
            yield helper, device
    finally:
        helper.close(orderly=True)


# Modules of others that are loaded when they are first used.
LATER = (
    "encodings.idna",
    "encodings.utf_8_sig",
    "concurrent.futures.thread",
    "cryptography.hazmat.backends.openssl.backend",
)
