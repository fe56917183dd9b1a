"""A program to which a device is lent: started, supervised, and ended without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ginnel.device.interface import Interfaces
from ginnel.device.ioctls import IFF_NO_PI, IFF_TUN
from ginnel.device.lend import launch
from ginnel.device.lend.memory import Caller
from ginnel.device.lend.node import Node
from ginnel.device.lend.numbers import Machine, this_machine
from ginnel.device.lend.seccomp import NEW_LISTENER, WAIT_KILLABLE, Listener, build_filter, is_available
from ginnel.device.lend.supervisor import Supervisor
from ginnel.errors import DeviceError


class LentProgram:
    """A running program that lives on ``interfaces``. An asynchronous context manager that ends it, and all that
    it has started.

    ``signal_mask``: the signals that are blocked in it at first, None for those blocked here. What is blocked here and
    not there is meant for the program: such a signal that waits when it begins is passed on.
    ``options`` are those of `subprocess.Popen` for its input, output, environment and folder.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        interfaces: Interfaces,
        node: Node | None = None,
        *,
        signal_mask: Iterable[int] | None = None,
        **options: Any,
    ) -> None:
        self._command = [os.fspath(word) for word in command]
        self._interfaces = interfaces
        self._node = node or Node()
        self._options = options
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._signal_mask = blocked if signal_mask is None else set(signal_mask)
        self._passed_on = blocked - self._signal_mask
        self._launcher: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._supervisor: Supervisor | None = None
        self._ended: asyncio.Future[int] | None = None
        self._pidfd: int | None = None
        self.pid = 0
        #: How many processes it had left behind, which were killed.
        self.left_behind = 0

    @property
    def calls(self) -> dict[str, int]:
        """How many calls were trapped, by name."""
        return dict(self._supervisor.counts) if self._supervisor else {}

    async def start(self) -> None:
        """Lends a device to a child that is thrown away, then starts the program.

        Raises DeviceError where the system refuses any of it, OSError (E2BIG) for a command that is too long.
        """
        machine = this_machine()
        if sys.byteorder != "little" or not is_available(machine):
            raise _refused(errno.ENOSYS, "this kernel has no seccomp user notification as of Linux 5.14")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        ours.setblocking(False)
        with theirs:
            self._launch(theirs)
        order = {
            "filter": build_filter(machine).hex(),
            "seccomp": machine.calls["seccomp"],
            # Without the first, a signal makes a program repeat the call that it has interrupted (Linux 5.19).
            "flags": [NEW_LISTENER | WAIT_KILLABLE, NEW_LISTENER],
            "mask": sorted(self._signal_mask),
            "node": os.fspath(self._node.path),
            "set": None if self._node.attaches else struct.pack("=16sH22x", b"", IFF_TUN | IFF_NO_PI).hex(),
        }
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(ours, json.dumps(order).encode())
        await self._try(ours, machine)
        listener = await self._receive_listener(ours)
        self._ended = loop.create_future()
        self._supervisor = Supervisor(listener, machine, self._interfaces, self._node)
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(ours, self._read_control)
        # The terminal's may have come before there was a process that could have it. One that has it already, and
        # blocked, as all are until now, has it once.
        while waiting := signal.sigtimedwait(self._passed_on, 0) if self._passed_on else None:
            self.send_signal(waiting.si_signo)
        await loop.sock_sendall(ours, b"{}")

    def send_signal(self, number: int) -> None:
        """To the program itself. Harmless when it has ended."""
        if self._pidfd is not None:
            # Not by its number, which another process may have by now.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> int:
        """Its exit status; of one that a signal ended, 128 and the signal's number, as in the shell.

        Raises OSError where it could not be run, with the program as its filename: FileNotFoundError,
        PermissionError, ENOEXEC, ENOTDIR, ELOOP.
        """
        assert self._ended is not None
        return await asyncio.shield(self._ended)

    async def aclose(self) -> None:
        """Ends it if it still runs. Idempotent."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            # With this end gone the launcher kills everything, and goes.
            self._control.close()
            self._control = None
        if self._launcher is not None:
            await asyncio.to_thread(self._launcher.wait)
        if self._supervisor is not None:
            self._supervisor.close()
        self._close_pidfd()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _launch(self, control: socket.socket) -> None:
        control.set_inheritable(True)
        words = [sys.executable, "-I", "-S", launch.__file__, str(control.fileno()), *self._command]
        # What else is inheritable is meant for the program.
        try:
            self._launcher = subprocess.Popen(words, close_fds=False, **self._options)
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), self._command[0]) from None

    async def _try(self, control: socket.socket, machine: Machine) -> None:
        interfaces = Interfaces(first_index=1 << 20)
        supervisor = Supervisor(await self._receive_listener(control), machine, interfaces, self._node)
        try:
            await asyncio.get_running_loop().sock_sendall(control, b"{}")
            async with asyncio.timeout(PATIENCE):
                message, _ = await self._receive(control)
        except TimeoutError:
            raise _refused(errno.ETIMEDOUT, "a trial was not answered") from None
        finally:
            supervisor.close()
            await interfaces.aclose()
        if "failed" in message:
            raise _refused(message["errno"], f"a trial failed, of lending a device to a program ({message['failed']})")

    async def _receive(self, control: socket.socket) -> tuple[dict[str, Any], list[int]]:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(control, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(control)
        data, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 1)
        return json.loads(data) if data else {"failed": "launch", "errno": errno.ECHILD}, descriptors

    async def _receive_listener(self, control: socket.socket) -> Listener:
        message, descriptors = await self._receive(control)
        if "failed" in message:
            raise _explain(message["errno"])
        self.pid = message["pid"]
        os.set_inheritable(descriptors[0], False)
        listener = Listener(descriptors[0])
        try:
            Caller(self.pid).require_access()
        except OSError as error:
            listener.close()
            raise _refused(error.errno or errno.EACCES, "the system forbids to look into one's own programs") from None
        return listener

    def _read_control(self) -> None:
        assert self._control is not None
        assert self._ended is not None
        try:
            data = self._control.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        message = json.loads(data) if data else {}
        if "failed" in message:
            self._end(OSError(message["errno"], os.strerror(message["errno"]), self._command[0]))
        elif "status" in message:
            self.left_behind = message["left"]
            code = os.waitstatus_to_exitcode(message["status"])
            self._end(code if code >= 0 else 128 - code)
        elif not data:
            asyncio.get_running_loop().remove_reader(self._control)
            self._end(128 + signal.SIGKILL)

    def _close_pidfd(self) -> None:
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            os.close(pidfd)

    def _end(self, result: int | OSError) -> None:
        assert self._ended is not None
        if self._ended.done():
            return
        if isinstance(result, OSError):
            self._ended.set_exception(result)
        else:
            self._ended.set_result(result)


def _explain(code: int) -> DeviceError:
    if code == errno.EBUSY:
        return _refused(code, "a supervisor traps this program's calls already (it is lent a device, or in a sandbox)")
    return _refused(code, "the system refuses seccomp user notification")


def _refused(code: int, why: str) -> DeviceError:
    return DeviceError(code, f"{why}; what works without: {INSTEAD}")


PATIENCE = 20.0
INSTEAD = "'ginnel connect', OpenVPN 2.7's '--dev-node unix:PROGRAM', openconnect's '--script-tun'"
