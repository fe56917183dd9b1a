"""The unprivileged side: starts the helper, gives up every right of this process, and asks."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import json
import os
import pkgutil
import pwd
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ginnel.errors import DeviceError
from ginnel.network.kill_switch import Port, Server
from ginnel.network.masquerade import Gate
from ginnel.network.plan import Settings
from ginnel.threads import MOST_LANES


class Rights:
    """The helper, asked. Each method waits for its answer and raises DeviceError for one that refuses."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # Without -P a module of the current directory, whoever wrote it, would be root's (json.py, say).
                [sys.executable, "-P", "-m", "ginnel.network.helper"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._socket = ours
        self._socket.settimeout(PATIENCE)
        self._ended = os.pidfd_open(self._process.pid)
        self._asking = threading.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """Readable when the helper has ended."""
        return self._ended

    def recover(self, *, keep_guard: bool) -> tuple[int, bool]:
        """Undoes what processes that were killed left behind: how many there were, and whether their kill switch
        is up still, as ``keep_guard`` asks for."""
        answer, _ = self._ask({"do": "recover", "keep_guard": keep_guard})
        return int(answer["found"]), bool(answer["guarded"])

    def device(self, name: str | None, kind: str, queues: int = 1) -> tuple[list[int], str, bool]:
        """The descriptors of a new device's queues, with a vnet header, its name, and whether it hands over long
        datagrams."""
        reply, descriptors = self._ask({"do": "device", "name": name, "kind": kind, "queues": queues})
        return descriptors, str(reply["name"]), bool(reply["udp_offload"])

    def tell_ports(self, ports: Iterable[Port], *, sockets: bool) -> None:
        """What `guard` may let through from now on, and whether `let_through` may be asked for; to be told while
        nothing of the network is trusted yet."""
        self._ask({"do": "ports", "ports": [list(port) for port in ports], "sockets": sockets})

    def name_servers(self) -> list[socket.socket]:
        """UDP sockets to this machine's own name servers, past the tunnel and the kill switch. They don't block."""
        _, descriptors = self._ask({"do": "names"})
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        for sock in sockets:
            sock.setblocking(False)
        return sockets

    def guard(self, servers: Iterable[Server]) -> None:
        self._ask({"do": "guard", "servers": [list(server) for server in servers]})

    def let_through(self, sock: socket.socket) -> None:
        """The kill switch lets the datagrams of this one socket through, wherever they go."""
        self._ask({"do": "through"}, sock.fileno())

    def configure(self, settings: Settings) -> list[str]:
        """Sentences on what goes past the tunnel all the same."""
        answer, _ = self._ask({"do": "configure", "settings": settings.emit()})
        return [str(sentence) for sentence in answer["told"]]

    def open_way_out(self, gate: Gate) -> None:
        self._ask({"do": "masquerade", "gate": gate.emit()})

    def close(self, *, orderly: bool) -> bool:
        """Takes everything back, and waits until it has; not ``orderly``, the kill switch stays. False where something
        was in the way. Idempotent."""
        if self._socket.fileno() < 0:
            return True
        if orderly:
            with contextlib.suppress(DeviceError):
                self._ask({"do": "release"})
        self._socket.close()
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(PATIENCE)
        os.close(self._ended)
        return status == 0

    def _ask(self, request: dict[str, Any], *lent: int) -> tuple[dict[str, Any], list[int]]:
        with self._asking:
            data, descriptors = self._exchange(json.dumps(request).encode() + b"\n", lent)
        if not data:
            raise RefusedError(errno.EIO, ENDED)
        reply = json.loads(data)
        if "ok" not in reply:
            raise RefusedError(int(reply["errno"]), str(reply["error"]))
        return reply, descriptors

    def _exchange(self, request: bytes, lent: Sequence[int]) -> tuple[bytes, list[int]]:
        """The answer's line, empty where there is none. Descriptors go with the request's first byte."""
        try:
            sent = socket.send_fds(self._socket, [request], lent) if lent else 0
            self._socket.sendall(request[sent:])
            data, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 16, MOST_LANES)
            while data and not data.endswith(b"\n"):
                data += self._socket.recv(1 << 16)
        except OSError:
            return b"", []
        return data, descriptors


class RefusedError(DeviceError):
    """What the helper says, or what is said of it, word for word."""

    def __init__(self, number: int, text: str) -> None:
        # EPIPE would be taken for a reader of our output that has gone.
        super().__init__(errno.EIO if number == errno.EPIPE else number, text)
        self.strerror = text


def check() -> None:
    """Raises DeviceError when this process may not make a kernel's device."""
    if not Path("/dev/net/tun").exists():
        raise RefusedError(
            errno.ENOENT, "there is no /dev/net/tun here; `modprobe tun`, or leave out --tun, which needs none"
        )
    if not _capabilities() >> CAP_NET_ADMIN & 1:
        raise RefusedError(
            errno.EPERM, "--tun takes CAP_NET_ADMIN: use sudo, or leave out --tun, which needs no rights"
        )


def caller() -> int | None:
    """The user who called sudo, unless that was root."""
    with contextlib.suppress(ValueError):
        return int(os.environ.get("SUDO_UID", "")) or None
    return None


def load(packages: Iterable[str], names: Iterable[str]) -> None:
    """Imports all modules of these packages, and those of these names: once the rights are gone, ginnel's own files may
    be unreadable."""
    for package in packages:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)
    for name in names:
        importlib.import_module(name)


@contextlib.contextmanager
def unreadable() -> Iterator[None]:
    """What is not loaded within the block, and can't be without the rights, is a DeviceError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise DeviceError(
            errno.EACCES,
            f"{error.name} cannot be loaded without root's rights; install ginnel where everybody reads it",
        ) from None


def drop(user: int | None = None, *, low_ports: bool = False) -> None:
    """Gives up all rights for good: root becomes ``user``, else the one who called sudo, else nobody; no capability
    stays.

    With ``low_ports`` it may go on to use ports below 1024. The data plane's threads may still stand ahead of ordinary
    ones (``rust/io/src/prompt.rs``), where this process could have them do so. To be called while the process has one
    thread. Raises DeviceError if anything else stays.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise DeviceError(errno.EBUSY, "rights are a thread's own, and there is more than one")
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_RTPRIO, (1, 1))
    libc = ctypes.CDLL(None, use_errno=True)
    # Through the change of users; what it keeps is cut down below.
    libc.prctl(PR_SET_KEEPCAPS, int(low_ports), 0, 0, 0)
    kept = 1 << CAP_NET_BIND_SERVICE & _capabilities() if low_ports else 0
    if os.geteuid() == 0:
        user = user or caller() or NOBODY
        group = _group(user)
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0))
    if _capabilities() != kept or 0 in os.getresuid():
        raise DeviceError(errno.EPERM, "the rights of this process could not be given up")


def _group(user: int) -> int:
    """The user's own, and never root's."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(user).pw_gid or NOBODY
    return NOBODY


def _capabilities() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    return int(fields["CapEff"], 16)


ENDED = "the helper that keeps the rights over addresses and routes has ended"
PATIENCE = 20.0
NOBODY = 65534
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN = 10, 12
PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 8, 38, 47, 4
LINUX_CAPABILITY_VERSION_3 = 0x20080522
