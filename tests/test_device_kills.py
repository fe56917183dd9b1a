"""Programs and owners that are killed: the next one finds the device as it should be, and nothing is kept."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from ginnel.device import KernelDevice, NamedEnd, Service, create, named
from ginnel.device.address import Address
from ginnel.device.interface import Interfaces
from ginnel.device.lend.memory import Caller
from ginnel.device.lend.seccomp import Listener
from ginnel.errors import DeviceError
from ginnel.testing.subjects import set_ipv6
from tests.harness.lend import Running, lent
from tests.harness.network import Namespace

# `make soak` kills 200.
KILLS = int(os.environ.get("GINNEL_KILLS", "24"))
SEED = int(os.environ.get("GINNEL_SEED", random.randrange(1 << 32)))
PACKET = bytes.fromhex("4500001c000000004011 0000 0a000002 0a000001 04d2 0007 0008 0000")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A network and a folder for devices of this test alone."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with Namespace() as own, own.entered():
        yield


@pytest.fixture
async def interfaces() -> AsyncIterator[Interfaces]:
    made = Interfaces(first_index=1 << 20)
    yield made
    await made.aclose()


class Victims:
    """A device of each kind, and whoever is killed at it."""

    def __init__(self, chance: random.Random, service: Service, kernel: KernelDevice, interfaces: Interfaces) -> None:
        self._chance = chance
        self._service = service
        self._kernel = kernel
        self._interfaces = interfaces
        self.kinds = (self.named_program, self.named_owner, self.lent_program, self.kernel_program)

    async def named_program(self) -> None:
        async with await self._service.stack.open_datagram() as datagrams:
            with cat((await self._open("tun0")).open_fd()) as program:
                for _ in range(self._chance.randrange(50)):
                    await datagrams.sendto(b"x", ("10.0.0.2", 7))
                await self._wait_a_little()
                program.kill()
        (await self._open("tun0")).close()

    async def named_owner(self) -> None:
        command = [sys.executable, "-m", "ginnel", "device", "create", "tun9", "--address", "10.0.0.1/24", "--json"]
        with started(command) as owner:
            assert owner.stdout is not None
            assert b"created" in await asyncio.to_thread(owner.stdout.readline)
            with await self._open("tun9") as end:
                end.write_batch([PACKET] * self._chance.randrange(200))
                await self._wait_a_little()
                owner.kill()
                while await asyncio.to_thread(end.read, 30):
                    pass
        with pytest.raises(DeviceError) as caught:
            await asyncio.to_thread(named.open, "tun9")
        assert caught.value.errno == errno.ENODEV

    async def lent_program(self) -> None:
        async with lent(self._interfaces, LENT) as running:
            assert await running.line() == "begun"
            await self._wait_a_little()
            victims = [running.program.pid, running.program._launcher.pid]  # type: ignore[union-attr]
            os.kill(self._chance.choice(victims), signal.SIGKILL)
            assert await asyncio.wait_for(running.program.wait(), 30) == 128 + signal.SIGKILL
        await gone(self._interfaces)

    async def kernel_program(self) -> None:
        with cat(os.dup(self._kernel.application.fileno())) as program:
            self._kernel.application.close()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
                for _ in range(self._chance.randrange(50)):
                    own.sendto(b"x", ("10.9.0.2", 7))
            await self._wait_a_little()
            program.kill()
        # It is there, and has no memory of what was on its way.
        assert self._kernel.application.read_batch(9) == []

    async def _open(self, name: str) -> NamedEnd:
        return await asyncio.to_thread(named.open, name)

    async def _wait_a_little(self) -> None:
        await asyncio.sleep(self._chance.random() * 0.02)


async def test_killed_at_random(interfaces: Interfaces) -> None:
    print(f"GINNEL_SEED={SEED}")
    chance = random.Random(SEED)
    async with create("tun0", addresses=["10.0.0.1/24"]) as service:
        with KernelDevice("kept0", persist=True) as kernel:
            set_ipv6(kernel.name, False)
            kernel.add_address(Address(ip_interface("10.9.0.1/24")))
            kernel.set_up(True)
            victims = Victims(chance, service, kernel, interfaces)
            # What is kept of each for the next time.
            for kind in victims.kinds * 2:
                await kind()
            before, memory = await settled(), resident()
            for _ in range(KILLS - 2 * len(victims.kinds)):
                await chance.choice(victims.kinds)()
            assert await settled(before) == before
            assert resident() < memory + (24 << 20)


READS = ("read", "write", "read_path", "stat", "folder", "copy_socket", "process", "identity")
ANSWERS = ("is_waiting", "respond", "let_pass", "give_descriptor")


async def test_killed_at_each_step_of_each_answer(interfaces: Interfaces, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lent program dies just before a step of what answers a call of its."""
    step = 0
    act: Callable[[int], None] = lambda number: None  # noqa: E731

    def stumbling(own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal step
            step += 1
            act(step)
            return own(*arguments, **more)

        return call

    for kind, names in ((Caller, READS), (Listener, ANSWERS)):
        for name in names:
            monkeypatch.setattr(kind, name, stumbling(getattr(kind, name)))
    async with lent(interfaces, ONCE) as running:
        # The trial that comes before the program has steps of its own.
        step = 0
        assert await running.line() == "done"
        total = step
        running.tell()
        assert await running.program.wait() == 0
    assert total > 100
    before = None
    # Each in `make soak`; a few of them, spread over all, in the tests.
    for victim in sorted({1 + number * total // min(KILLS, total) for number in range(min(KILLS, total))}):
        async with lent(interfaces, ONCE) as running:
            step = 0
            act = kill_at(victim, running)
            status = await asyncio.wait_for(running.program.wait(), 30)
            assert status == 128 + signal.SIGKILL, f"at step {victim} of {total}"
            act = lambda number: None  # noqa: E731
        await gone(interfaces)
        now = await settled(before)
        before = before or now
        assert now == before, f"at step {victim} of {total}"


def kill_at(victim: int, running: Running) -> Callable[[int], None]:
    def act(number: int) -> None:
        if number == victim:
            os.kill(running.program.pid, signal.SIGKILL)
            # Dead, and perhaps gone: its number is nobody's, or soon another's.
            with contextlib.suppress(FileNotFoundError):
                while "State:\tZ" not in Path(f"/proc/{running.program.pid}/status").read_text():
                    os.sched_yield()

    return act


@contextlib.contextmanager
def cat(descriptor: int) -> Iterator[subprocess.Popen[bytes]]:
    """A program that sends everything back."""
    os.set_blocking(descriptor, True)
    with subprocess.Popen(["cat"], stdin=descriptor, stdout=descriptor) as program:
        os.close(descriptor)
        yield program


def started(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.PIPE)


async def gone(interfaces: Interfaces) -> None:
    for interface in interfaces:
        interface.notice_gone()
    assert not list(interfaces)
    await interfaces.aclose()


async def settled(wanted: tuple[int, int] | None = None) -> tuple[int, int]:
    """Descriptors, and threads of ginnel's (asyncio has its own), when they are as they should be, or stay otherwise:
    a thread that has ended is listed for a moment longer."""
    for _ in range(3000):
        gc.collect()
        found = len(os.listdir("/proc/self/fd")), sum(map(is_ours, os.listdir("/proc/self/task")))
        if wanted in (None, found):
            break
        await asyncio.sleep(0.01)
    return found


def is_ours(task: str) -> bool:
    try:
        return Path(f"/proc/self/task/{task}/comm").read_text().startswith("ginnel")
    except OSError:
        return False


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


LENT = """
fd = os.open("/dev/net/tun", os.O_RDWR)
name = attach(fd)
set_up(name)
say("begun")
packet = bytes.fromhex("4500001c0000000040110000 0a000002 0a000001 04d2000700080000")
while True:
    other = os.open("/dev/net/tun", os.O_RDWR)
    attach(other)
    if os.fork() == 0:
        os.write(fd, packet)
        os._exit(0)
    for _ in range(20):
        os.write(fd, packet)
    socket.if_nameindex()
    os.close(other)
    os.wait()
"""

# Every call that is trapped, once or more.
ONCE = """
fd = os.open("/dev/net/tun", os.O_RDWR)
name = attach(fd)
set_up(name)
socket.if_nameindex()
folder = os.open("/dev", os.O_RDONLY)
os.open("net/tun", os.O_RDWR, dir_fd=folder)
call(437, folder, b"net/tun", (ctypes.c_uint64 * 3)(os.O_RDWR, 0, 0), 24)
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
netlink.bind((0, 1))
netlink.setsockopt(270, 1, 1)
netlink.getsockname()
netlink.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
libc.connect(netlink.fileno(), struct.pack("=HHII", 16, 0, 0, 0), 12)
os.close(fd)
say("done")
sys.stdin.readline()
"""
