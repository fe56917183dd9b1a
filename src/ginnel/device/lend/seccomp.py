"""Seccomp user notification: the filter that traps a program's calls, and the listener that answers them.

Sources: ``linux/seccomp.h``, seccomp_unotify(2). A trapped call waits until it is answered here; every other
call of the program runs at full speed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
from dataclasses import dataclass

from ginnel.device.lend.numbers import Machine


@dataclass(frozen=True, slots=True)
class Notification:
    """A call that waits for its answer. ``thread`` is the caller's thread id as we see it, 0 where we don't."""

    identifier: int
    thread: int
    number: int
    arguments: tuple[int, ...]


class Listener:
    """The descriptor that the kernel gives for a filter. Readable while calls wait."""

    def __init__(self, descriptor: int) -> None:
        """Takes over the descriptor."""
        self._descriptor = descriptor
        # Wakes the waiting program on this CPU: a call takes 25 µs and not 93. Linux 6.6 and later.
        try:
            fcntl.ioctl(descriptor, _SET_FLAGS, _SYNC_WAKE_UP)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise

    def fileno(self) -> int:
        return self._descriptor

    def receive(self) -> Notification | None:
        """The next call; None if its caller died meanwhile."""
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._descriptor, _RECEIVE, buffer)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        identifier, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        return Notification(identifier, thread, number, tuple(arguments))

    def has_ended(self) -> bool:
        """Whether no task with the filter is left."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return bool(poll.poll(0))

    def is_waiting(self, notification: Notification) -> bool:
        """Whether the caller still waits: if not, its thread id and memory may be another's by now."""
        try:
            fcntl.ioctl(self._descriptor, _IS_VALID, struct.pack("=Q", notification.identifier))
        except OSError:
            return False
        return True

    def respond(self, notification: Notification, value: int = 0, error: int = 0) -> None:
        """Ends the call with a value, or an errno."""
        self._send(_RESPONSE.pack(notification.identifier, value, -error, 0))

    def let_pass(self, notification: Notification) -> None:
        """Lets the kernel do the call after all."""
        self._send(_RESPONSE.pack(notification.identifier, 0, 0, _CONTINUE))

    def give_descriptor(self, notification: Notification, descriptor: int, *, close_on_exec: bool) -> bool:
        """Ends the call with a copy of a descriptor as its value; False if the caller died meanwhile."""
        flags = os.O_CLOEXEC if close_on_exec else 0
        # A bytearray: with bytes the result would be the buffer, and errors of the call itself be lost.
        request = bytearray(_ADDITION.pack(notification.identifier, _ADD_AND_SEND, descriptor, 0, flags))
        try:
            fcntl.ioctl(self._descriptor, _ADD_DESCRIPTOR, request)
        except OSError as error:
            if error.errno in _GONE:
                return False
            # The program has as many descriptors as it may have.
            self.respond(notification, error=error.errno or errno.EIO)
            return False
        return True

    def close(self) -> None:
        """From now on trapped calls fail with ENOSYS. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _send(self, response: bytes) -> None:
        try:
            fcntl.ioctl(self._descriptor, _SEND, response)
        except OSError as error:
            if error.errno not in _GONE:
                raise


def build_filter(machine: Machine) -> bytes:
    """The program (struct sock_filter) that traps what a lent program opens and configures by.

    Calls of another machine's ABI end the program: their numbers mean something else, and would pass by. io_uring
    is not there (ENOSYS), since it opens files without a system call. Generic netlink is not there either, so that
    nobody finds a way to tunnels in the kernel (OpenVPN's DCO), nor is what sets the firewall and IPsec.
    """
    calls = machine.calls
    code = _Assembler()
    code.load(_ARCHITECTURE).unless_equal(machine.audit, "kill")
    code.load(_NUMBER)
    if machine.stray_bit is not None:
        code.if_bits(machine.stray_bit, "unknown")
    for name in ("open", "openat", "openat2", "getsockname"):
        if name in calls:
            code.if_equal(calls[name], "notify")
    for name in ("ioctl", "socket", "bind", "connect", "setsockopt", "getsockopt"):
        code.if_equal(calls[name], name)
    code.if_equal(calls["io_uring_setup"], "unknown").jump("allow")
    # Type 'T' has the device's and the terminals', 0x89 those about interfaces, 0x8B those of wireless ones.
    code.label("ioctl").load(_argument(1))
    for request in _OF_EVERY_FILE:
        code.if_equal(request, "allow")
    code.mask(0xFF00)
    for kind in (0x5400, 0x8900, 0x8B00):
        code.if_equal(kind, "notify")
    code.jump("allow")
    code.label("socket").load(_argument(0)).unless_equal(_AF_NETLINK, "allow")
    code.load(_argument(2)).if_equal(_NETLINK_ROUTE, "notify")
    for family in (_NETLINK_XFRM, _NETLINK_NETFILTER, _NETLINK_GENERIC):
        code.if_equal(family, "absent")
    code.jump("allow")
    code.label("bind").load(_argument(2)).if_equal(_SOCKADDR_NL, "notify").jump("allow")
    code.label("connect").load(_argument(2)).if_equal(_SOCKADDR_NL, "notify").jump("allow")
    code.label("setsockopt").load(_argument(1)).if_equal(_SOL_NETLINK, "notify")
    code.if_equal(_SOL_IP, "tables").if_equal(_SOL_IPV6, "tables").jump("allow")
    code.label("tables").load(_argument(2))
    for option in _SET_TABLES:
        code.if_equal(option, "forbidden")
    code.jump("allow")
    code.label("getsockopt").load(_argument(1)).unless_equal(_SOL_SOCKET, "allow").load(_argument(2))
    for option in (SO_TYPE, SO_PROTOCOL, SO_DOMAIN):
        code.if_equal(option, "notify")
    code.jump("allow")
    code.label("allow").end(_ALLOW)
    code.label("notify").end(_NOTIFY)
    code.label("unknown").end(_ERRNO | errno.ENOSYS)
    code.label("absent").end(_ERRNO | errno.EPROTONOSUPPORT)
    code.label("forbidden").end(_ERRNO | errno.EPERM)
    code.label("kill").end(_KILL_PROCESS)
    return code.assemble()


def is_available(machine: Machine) -> bool:
    """Whether the kernel knows user notification in the layout that is used here."""
    sizes = ctypes.create_string_buffer(6)
    if ctypes.CDLL(None).syscall(machine.calls["seccomp"], _GET_NOTIFICATION_SIZES, 0, sizes):
        return False
    notification, response, _ = struct.unpack("=3H", sizes.raw)
    return bool(notification == _NOTIFICATION.size and response == _RESPONSE.size)


class _Assembler:
    """Classic BPF with labels. Jumps lead forward, 255 instructions at most."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str | None, str | None]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> _Assembler:
        self._labels[name] = len(self._code)
        return self

    def load(self, offset: int) -> _Assembler:
        return self._add(0x20, offset)

    def mask(self, bits: int) -> _Assembler:
        return self._add(0x54, bits)

    def if_equal(self, value: int, label: str) -> _Assembler:
        return self._add(0x15, value, label)

    def unless_equal(self, value: int, label: str) -> _Assembler:
        return self._add(0x15, value, None, label)

    def if_bits(self, bits: int, label: str) -> _Assembler:
        return self._add(0x45, bits, label)

    def jump(self, label: str) -> _Assembler:
        # Either way the same: the unconditional jump's distance is encoded in another field.
        return self._add(0x15, 0, label, label)

    def end(self, verdict: int) -> _Assembler:
        return self._add(0x06, verdict)

    def assemble(self) -> bytes:
        return b"".join(
            struct.pack("=HBBI", operation, self._distance(index, yes), self._distance(index, no), value)
            for index, (operation, value, yes, no) in enumerate(self._code)
        )

    def _add(self, operation: int, value: int, yes: str | None = None, no: str | None = None) -> _Assembler:
        self._code.append((operation, value, yes, no))
        return self

    def _distance(self, index: int, label: str | None) -> int:
        return 0 if label is None else self._labels[label] - index - 1


def _argument(number: int) -> int:
    """Where the low half of an argument is in struct seccomp_data, on a little-endian machine."""
    return 16 + 8 * number


# What a socket is, which the pair that stands for one of netlink's is not (asm-generic/socket.h).
SO_TYPE, SO_PROTOCOL, SO_DOMAIN = 3, 38, 39
WAIT_KILLABLE = 1 << 5
NEW_LISTENER = 1 << 3

_NUMBER, _ARCHITECTURE = 0, 4
_ALLOW, _NOTIFY, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x7FC00000, 0x00050000, 0x80000000
_GET_NOTIFICATION_SIZES = 3
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_ADDITION = struct.Struct("=QIIII")
_RECEIVE, _SEND, _IS_VALID = 0xC0502100, 0xC0182101, 0x40082102
_ADD_DESCRIPTOR, _SET_FLAGS = 0x40182103, 0x40082104
_CONTINUE, _ADD_AND_SEND, _SYNC_WAKE_UP = 1, 2, 1
# The caller died (ENOENT) or a signal ended its call before it was received again (EINPROGRESS).
_GONE = (errno.ENOENT, errno.EINPROGRESS)
_AF_NETLINK, _SOL_NETLINK, _SOCKADDR_NL = 16, 270, 12
_NETLINK_ROUTE, _NETLINK_XFRM, _NETLINK_NETFILTER, _NETLINK_GENERIC = 0, 6, 12, 16
_SOL_SOCKET, _SOL_IP, _SOL_IPV6 = 1, 0, 41
# IPT_SO_SET_REPLACE, which is IP6T_SO_SET_REPLACE, ARPT_SO_SET_REPLACE, EBT_SO_SET_ENTRIES.
_SET_TABLES = (64, 96, 128)
# FIONCLEX, FIOCLEX, FIOASYNC, FIONBIO: the kernel answers them for every file alike.
_OF_EVERY_FILE = (0x5450, 0x5451, 0x5452, 0x5421)
