"""Network namespaces that vanish with the process that made them, whatever ends it.

A namespace has no name: a sleeping process holds it, which the kernel kills with its parent. So
nothing is left behind, not even when we are killed ourselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.harness.process import Process, run


class Namespace:
    """A network namespace with loopback up. Where ``without_tun`` is set it has a mount namespace too,
    in which there is no /dev/net/tun and no name server, and /etc/hosts is its own."""

    def __init__(self, *, without_tun: bool = False) -> None:
        mount, hide = (["--mount"], _HIDE) if without_tun else ([], "")
        script = f"{hide} ip link set lo up && echo ready && exec sleep infinity"
        self._holder = Process([*_DIE_WITH_US, "unshare", "--net", *mount, "sh", "-ec", script])
        self._mount = without_tun
        try:
            self._holder.wait_line("ready", 10)
        except BaseException:
            self._holder.close()
            raise
        self.pid = self._holder.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._holder.close()

    def command(self, command: Sequence[str | Path], *, ordinary: bool = False, cwd: Path | None = None) -> list[str]:
        """The command that runs ``command`` here; as an ordinary user without any capability, and without
        the device if it is hidden, where ``ordinary`` is set."""
        enter = ["nsenter", f"--net=/proc/{self.pid}/ns/net"]
        if ordinary and self._mount:
            enter.append(f"--mount=/proc/{self.pid}/ns/mnt")
        # Entering a mount namespace leads to its root, so the folder is changed after that.
        change = ["env", f"--chdir={cwd}"] if cwd is not None else []
        return [*enter, *(ORDINARY if ordinary else _DIE_WITH_US), *change, *map(str, command)]

    def start(
        self,
        command: Sequence[str | Path],
        *,
        ordinary: bool = False,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Process:
        return Process(self.command(command, ordinary=ordinary, cwd=cwd), env=env)

    def run(self, command: Sequence[str | Path], *, ordinary: bool = False, **options: Any) -> str:
        return run(self.command(command, ordinary=ordinary), **options)

    def ip(self, *lines: str) -> None:
        """Runs commands of ip(8) in one batch."""
        self.run(["ip", "-batch", "-"], input="\n".join(lines), timeout=10)

    def settle(self, *addresses: str) -> None:
        """Waits until these IPv6 addresses of ours can be reached: the kernel adds the routes to them a moment later,
        on a thread of its own, which a busy machine lets wait."""
        deadline = time.monotonic() + 20
        while not {f"local {address} " for address in addresses} <= set(
            re.findall("^local [^ ]+ ", self.run(["ip", "-6", "route", "show", "table", "local"]), re.M)
        ):
            assert time.monotonic() < deadline, addresses
            time.sleep(0.02)

    def names(self, **known: Sequence[str]) -> None:
        """What the system's resolver knows from now on, where there is a mount namespace: names in ``.example``."""
        lines = [f"{address} {name}.example" for name, addresses in known.items() for address in addresses]
        Path(f"/proc/{self.pid}/root/etc/hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in the namespace inside the block. A socket stays where it was made."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            with open(f"/proc/{self.pid}/ns/net", "rb") as inside:
                _setns(inside.fileno())
            try:
                yield
            finally:
                _setns(outside)
        finally:
            os.close(outside)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        with self.entered():
            return socket.socket(family, kind)

    def ordinary_processes(self) -> list[int]:
        """The processes here that belong to the ordinary user."""
        here = Path(f"/proc/{self.pid}/ns/net").stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                ours = entry.name.isdigit() and entry.stat().st_uid == ORDINARY_ID
                if ours and (entry / "ns/net").stat().st_ino == here:
                    found.append(int(entry.name))
        return found


class Network:
    """A server and a client side, joined by a link.

    With ``link_mtu`` that link is narrow, and both ends know. With ``path_mtu`` there is a router
    between the client and a narrow link to the server, of which the client can only learn.
    """

    def __init__(self, *, link_mtu: int = 1500, path_mtu: int | None = None) -> None:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self.server = stack.enter_context(Namespace())
            self.client = stack.enter_context(Namespace(without_tun=True))
            if path_mtu is None:
                _join(self.server, SERVER, self.client, CLIENT, link_mtu)
            else:
                router = stack.enter_context(Namespace())
                _join(self.server, SERVER, router, CLIENT, path_mtu)
                _join(router, FAR_ROUTER, self.client, FAR_CLIENT, link_mtu, device="eth1")
                router.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
                self.server.ip(f"route add 198.51.100.0/24 via {CLIENT}")
                self.client.ip(f"route add 192.0.2.0/24 via {FAR_ROUTER}")
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()


def _join(
    left: Namespace, left_address: str, right: Namespace, right_address: str, mtu: int, device: str = "eth0"
) -> None:
    left.ip(
        f"link add {device} mtu {mtu} type veth peer name {device} mtu {mtu} netns {right.pid}",
        f"address add {left_address}/24 dev {device}",
        f"link set {device} up",
        *([f"address add {SERVER6}/64 dev {device} nodad"] if left_address == SERVER and mtu >= 1280 else []),
    )
    right.ip(
        f"address add {right_address}/24 dev {device}",
        f"link set {device} up",
        *([f"address add {CLIENT6}/64 dev {device} nodad"] if right_address == CLIENT and mtu >= 1280 else []),
    )
    if mtu >= 1280:
        left.settle(*([SERVER6] if left_address == SERVER else []))
        right.settle(*([CLIENT6] if right_address == CLIENT else []))


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def lasting_port() -> int:
    """A port that is free at all addresses, over UDP and TCP, and that the system gives to nobody who asks for any: for
    who is to have it later, or again."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    # Other processes of tests begin elsewhere.
    begin = 10000 + os.getpid() * 10 % 20000
    for port in range(begin, begin + 2000):
        if not first <= port <= last and _is_free(port):
            return port
    raise AssertionError("no port is free")


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_INET6, kind) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            try:
                sock.bind(("::", port))
            except OSError:
                return False
    return True


# Addresses set aside for documentation (RFC 5737, RFC 3849): no machine's own.
SERVER, CLIENT = "192.0.2.1", "192.0.2.2"
SERVER6, CLIENT6 = "2001:db8::1", "2001:db8::2"
FAR_ROUTER, FAR_CLIENT = "198.51.100.1", "198.51.100.2"
ORDINARY_ID = 65534

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
ORDINARY = [
    "setpriv",
    "--reuid",
    str(ORDINARY_ID),
    "--regid",
    str(ORDINARY_ID),
    "--clear-groups",
    "--bounding-set=-all",
    "--inh-caps=-all",
    "--no-new-privs",
    "--pdeathsig",
    "KILL",
]
_HIDE = (
    "mkdir -p /dev/net; mount -t tmpfs none /dev/net; mount --bind /dev/null /etc/resolv.conf;"
    "echo 127.0.0.1 localhost > /dev/net/hosts; mount --bind /dev/net/hosts /etc/hosts;"
)
