"""What the device suite is made of: packets, ways to wait, ways to be refused."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ginnel.device.base import DeviceEnd, Kind
from ginnel.device.interface import Interface, Interfaces
from ginnel.device.kernel import KernelDevice
from ginnel.testing.subjects import KernelSubject, Subject, set_ipv6


def packet(kind: Kind, number: int, writer: int = 0, *, size: int = 60) -> bytes:
    """A sound packet or frame, which no system answers: a protocol and an EtherType for experiments."""
    content = struct.pack("!IB", number, writer)
    if kind == "tap":
        return bytes.fromhex("02000000000102000000000288b5") + content + bytes(size - 19)
    header = struct.pack("!BBHIBBH4s4s", 0x45, 0, size, 0, 64, 253, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
    return header + content + bytes(size - 25)


def number_of(kind: Kind, each: bytes) -> int:
    return int(struct.unpack_from("!I", each, START[kind])[0])


def writer_of(kind: Kind, each: bytes) -> int:
    return each[START[kind] + 4]


def malformed(kind: Kind) -> list[bytes]:
    if kind == "tap":
        return [b"", bytes(1), bytes(13)]
    return [b"", b"\x00", b"\x50" + bytes(40), b"\x00\x00\x08\x00" + packet("tun", 0)]


def works(subject: Subject, number: int) -> None:
    """A packet goes each way."""
    each = packet(subject.kind, number)
    assert subject.end.write(each) == len(each)
    while (seen := subject.observe()) != each:
        assert sound(subject.kind, seen)
    subject.inject(each)
    assert subject.end.read(20) == each


def sound(kind: Kind, each: bytes) -> bool:
    return len(each) >= 14 if kind == "tap" else each[0] >> 4 in (4, 6)


def dropped(subject: Subject) -> int:
    return subject.device.statistics()["tx_dropped"]


def would_wait(subject: Subject) -> None:
    refuses(errno.EAGAIN, subject.end.read, 0)


def refused_for_good(end: DeviceEnd, kind: Kind) -> None:
    refuses(errno.EBADFD, end.read, 0)
    refuses(errno.EBADFD, end.read_batch, 1)
    refuses(errno.EBADFD, end.write, packet(kind, 0))


def ended_for_good(end: DeviceEnd, kind: Kind) -> None:
    """How a lent descriptor is over: its other side is closed."""
    assert end.read() == b""
    refuses(errno.EPIPE, end.write, packet(kind, 0))


def raises(kind: type[BaseException], call: Callable[[], object]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


def refuses(number: int | tuple[int, ...], call: Callable[..., object], *arguments: object) -> None:
    """The call fails with this errno, at once."""
    numbers = (number,) if isinstance(number, int) else number
    outcome: object = None
    try:
        outcome = call(*arguments)
    except OSError as error:
        outcome = error
    wanted = " or ".join(errno.errorcode[each] for each in numbers)
    assert isinstance(outcome, OSError), f"{outcome!r} in place of {wanted}"
    assert outcome.errno in numbers, f"{outcome!r} in place of {wanted}"
    assert "\n" not in str(outcome)


class Background:
    """A call in a thread of its own, and what came of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.outcome: list[Any] = []
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def native_id(self) -> int:
        return self._thread.native_id or 0

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._thread.join(60)
            assert self.outcome, "it hangs"

    def _run(self) -> None:
        try:
            self.outcome.append(self._call())
        except BaseException as error:
            self.outcome.append(error)


def asleep(thread: Background | threading.Thread) -> None:
    """Waits until a thread sleeps in a system call, its interpreter's lock given back."""
    seen = 0
    deadline = time.monotonic() + 60
    while seen < 3:
        with open(f"/proc/self/task/{thread.native_id}/stat") as file:
            seen = seen + 1 if file.read().rpartition(")")[2].split()[0] == "S" else 0
        assert time.monotonic() < deadline, "it does not sleep"
        time.sleep(0.001)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        os.sched_yield()


def switches(*threads: Background) -> dict[str, list[str]]:
    """The context switches of these threads and of all of ginnel's in this process; what else runs there, a test
    runner's for one, is not ours to ask."""
    chosen = {str(thread.native_id) for thread in threads}
    found = {}
    for task in Path("/proc/self/task").iterdir():
        # One of the others may end just now.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if task.name in chosen or (task / "comm").read_text().startswith("ginnel"):
                status = (task / "status").read_text().splitlines()
                found[task.name] = [text for text in status if "ctxt_switches" in text]
    return found


class Interrupted(Exception):  # noqa: N818
    """What a signal handler raises."""


@contextlib.contextmanager
def signals_itself_when_asleep() -> Iterator[None]:
    """A signal comes as soon as the main thread sleeps in the block; its handler raises `Interrupted`."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    def wait_and_send() -> None:
        asleep(threading.main_thread())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with Background(wait_and_send):
            yield
    finally:
        signal.signal(signal.SIGUSR1, previous)


READ, WRITE = select.POLLIN, select.POLLOUT
GONE = select.POLLHUP | select.POLLERR

Waiter = Callable[..., int]
"""Given a timeout in seconds, and what to wait for (all): what is ready, as poll says it."""


def by_select(descriptor: int) -> Waiter:
    def wait(timeout: float, what: int = READ | WRITE) -> int:
        reads, writes = [descriptor] if what & READ else [], [descriptor] if what & WRITE else []
        readable, writable, _ = select.select(reads, writes, [], timeout)
        return (READ if readable else 0) | (WRITE if writable else 0)

    return wait


def by_poll(descriptor: int) -> Waiter:
    def wait(timeout: float, what: int = READ | WRITE) -> int:
        poll = select.poll()
        poll.register(descriptor, what & (READ | WRITE))
        return dict(poll.poll(timeout * 1000)).get(descriptor, 0)

    return wait


def by_epoll(descriptor: int) -> Waiter:
    def wait(timeout: float, what: int = READ | WRITE) -> int:
        with select.epoll() as epoll:
            epoll.register(descriptor, what)
            return dict(epoll.poll(timeout)).get(descriptor, 0)

    return wait


def by_asyncio(descriptor: int) -> Waiter:
    async def watch(timeout: float, what: int) -> int:
        loop, found, ready = asyncio.get_running_loop(), asyncio.Event(), 0

        def is_ready(which: int) -> None:
            nonlocal ready
            ready |= which
            found.set()

        if what & READ:
            loop.add_reader(descriptor, is_ready, READ)
        if what & WRITE:
            loop.add_writer(descriptor, is_ready, WRITE)
        with contextlib.suppress(TimeoutError):
            # A turn of the loop says what is ready already.
            await asyncio.wait_for(found.wait(), timeout or 0.05)
        loop.remove_reader(descriptor)
        loop.remove_writer(descriptor)
        return ready

    return lambda timeout, what=READ | WRITE: asyncio.run(watch(timeout, what))


class Network:
    """Where devices of the subject's kind are made by name: the kernel's, or one in user space."""

    def __init__(self, subject: Subject) -> None:
        self._kind = subject.kind
        self._kernel = isinstance(subject, KernelSubject)
        self._devices: list[KernelDevice] = []
        self._interfaces = Interfaces()
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        for device in self._devices:
            device.close()
        self._loop.run_until_complete(self._interfaces.aclose())
        self._loop.close()

    def make(self, name: str) -> Any:
        if not self._kernel:
            return self._loop.run_until_complete(self._create(name))
        self._devices.append(KernelDevice(name, self._kind))
        return self._devices[-1]

    def remove(self, device: Any) -> None:
        if isinstance(device, KernelDevice):
            device.close()
        else:
            self._loop.run_until_complete(self._interfaces.delete(device))

    async def _create(self, name: str) -> Interface:
        return self._interfaces.create(name, self._kind)


def network_state() -> list[str]:
    """The links, addresses and routes of this network namespace, a line each."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}
        lines = [f"link {name}" for name in names.values()]
        lines += [f"address {names.get(each['index'])} {each.get_attr('IFA_ADDRESS')}" for each in ip.get_addr()]
        for each in ip.get_routes():
            lines.append(f"route {names.get(each.get_attr('RTA_OIF'))} {each.get_attr('RTA_DST')}/{each['dst_len']}")
    return sorted(lines)


def allow_system_packets(subject: Subject) -> bool:
    """Whether the system itself will send packets when the interface comes up; it may from now on."""
    if not isinstance(subject, KernelSubject):
        return False
    set_ipv6(subject.device.name, True)
    return True


START: dict[Kind, int] = {"tun": 20, "tap": 14}
COUNTED = ("packets", "bytes", "dropped", "errors")
