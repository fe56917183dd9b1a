"""Starts a lent program, and sees to it that nothing of it stays behind. Run as a script, by a Python of its own.

It imports nothing of ginnel: between installing the filter and handing over its listener no call may be trapped,
because nobody is there to answer yet. So a small process does that, which has loaded all it needs before.

It has two halves. The child installs the filter, hands the listener over and becomes the program. The parent stays,
without a filter: it is where the program's orphans come (PR_SET_CHILD_SUBREAPER), and kills what is left when the
program ends, or when ginnel does, however that may be.

The control socket is SOCK_SEQPACKET and carries JSON. In: ``filter`` (hexadecimal), ``seccomp`` (the number of the
call), ``flags`` (in the order they are tried), ``mask`` (of signals), ``node`` and ``set`` (of the trial: what is
opened, and the struct ifreq of TUNSETIFF, hexadecimal, or None), then twice an empty object, when the trial and when
the program may start. Out: ``listener`` (with the descriptor) and ``pid``, of the trial, then ``tried``; the same of
the program; or ``failed`` (what) and ``errno``; at the end ``status`` (as waitpid(2)'s) and ``left`` (how many orphans
were killed).
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    message = control.recv(1 << 16)
    if not message:
        return
    order = json.loads(message)
    program = sys.argv[2:]
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    become_subreaper()
    parent = os.getpid()
    trial = _fork(lambda: _try(control, order, parent))
    if os.waitstatus_to_exitcode(os.waitpid(trial, 0)[1]) != 0:
        return
    pid = _fork(lambda: _become(control, order, program, parent))
    status = _wait(control, pid)
    left = kill_orphans()
    if status is not None:
        _tell(control, {"status": status, "left": left})


def become_subreaper() -> None:
    """Orphans among our descendants come to us from now on."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_orphans() -> int:
    """Kills all that is left of a lent program. How many were killed.

    Told by their filter: other children may be ours that have nothing to do with it, such as those of a shell that
    became us. Their own children come to us when they die, so it ends when there are none.
    """
    killed = 0
    while left := _lent_children():
        for pid, state in left:
            killed += state != "Z"
            os.kill(pid, signal.SIGKILL)
        for pid, _ in left:
            os.waitpid(pid, 0)
    return killed


def _fork(child: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(125)
    return pid


def _try(control: socket.socket, order: dict[str, Any], parent: int) -> None:
    """Opens and attaches the device as a program does: what the system refuses of it shows now."""
    if not _enter(control, order, parent):
        return
    step = "open"
    try:
        device = os.open(order["node"], os.O_RDWR)
        if order["set"] is not None:
            step = "TUNSETIFF"
            fcntl.ioctl(device, _TUNSETIFF, bytes.fromhex(order["set"]))
        _tell(control, {"tried": True})
        os._exit(0)
    except OSError as error:
        _tell(control, {"failed": step, "errno": error.errno})


def _enter(control: socket.socket, order: dict[str, Any], parent: int) -> bool:
    """Installs the filter and hands the listener over; whether to go on then."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return False
    try:
        listener = _install(bytes.fromhex(order["filter"]), order["seccomp"], order["flags"])
    except OSError as error:
        _tell(control, {"failed": "filter", "errno": error.errno})
        return False
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))
    control.sendmsg([json.dumps({"listener": True, "pid": os.getpid()}).encode()], [rights])
    os.close(listener)
    return bool(control.recv(64))


def _become(control: socket.socket, order: dict[str, Any], program: list[str], parent: int) -> None:
    if not _enter(control, order, parent):
        return
    # What Python changed for itself; first, since a signal may be waiting.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, order["mask"])
    try:
        os.execvp(program[0], program)
    except OSError as error:
        _tell(control, {"failed": "program", "errno": error.errno})


def _install(program: bytes, call: int, attempts: list[int]) -> int:
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    for flags in attempts:
        listener = _libc.syscall(call, _SET_MODE_FILTER, flags, header)
        if listener >= 0:
            return int(listener)
        if ctypes.get_errno() != errno.EINVAL:
            break
    raise OSError(ctypes.get_errno(), "seccomp")


def _wait(control: socket.socket, pid: int) -> int | None:
    """The program's status; None when ginnel has gone before."""
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    # Only that ginnel hangs up matters here; what it writes is for the child.
    poll.register(control, 0)
    ready = {descriptor for descriptor, _ in poll.poll()}
    if ended in ready:
        return os.waitpid(pid, 0)[1]
    return None


def _lent_children() -> list[tuple[int, str]]:
    """Children with more filters than we have, and their states."""
    me, (_, own, _) = os.getpid(), _status("self")
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parent, filters, state = _status(name)
            except OSError:
                continue
            if parent == me and filters > own:
                found.append((int(name), state))
    return found


def _status(name: str) -> tuple[int, int, str]:
    """A process's parent, how many seccomp filters it has, and its state."""
    with open(f"/proc/{name}/status") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return int(fields["PPid"]), int(fields.get("Seccomp_filters", 0)), fields["State"][0]


def _tell(control: socket.socket, what: dict[str, Any]) -> None:
    # Perhaps nobody is left to hear it.
    with contextlib.suppress(OSError):
        control.send(json.dumps(what).encode())


_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_SET_MODE_FILTER = 1
_TUNSETIFF = 0x400454CA

if __name__ == "__main__":
    main()
