"""The numbers of system calls, machine by machine (``asm/unistd.h``, ``linux/audit.h``)."""

from __future__ import annotations

import errno
import platform
from dataclasses import dataclass
from types import MappingProxyType

from ginnel.errors import DeviceError


@dataclass(frozen=True, slots=True)
class Machine:
    """``audit``: what the kernel calls the machine in a filter's data. ``calls``: by name. ``stray_bit``: set in
    the numbers of another ABI of the same machine, None where there is none."""

    audit: int
    calls: MappingProxyType[str, int]
    stray_bit: int | None = None


def this_machine() -> Machine:
    """Raises DeviceError (ENOSYS) on a machine that is not in the table."""
    name = platform.machine()
    machine = MACHINES.get(name)
    if machine is None:
        raise DeviceError(errno.ENOSYS, f"lending is not known on {name}; it is on {', '.join(sorted(MACHINES))}")
    return machine


def _table(**calls: int) -> MappingProxyType[str, int]:
    return MappingProxyType(calls)


_GENERIC = _table(
    openat=56,
    openat2=437,
    ioctl=29,
    socket=198,
    bind=200,
    connect=203,
    getsockname=204,
    setsockopt=208,
    getsockopt=209,
    seccomp=277,
    io_uring_setup=425,
    pidfd_getfd=438,
)
MACHINES = {
    "x86_64": Machine(
        0xC000003E,
        _table(
            open=2,
            openat=257,
            openat2=437,
            ioctl=16,
            socket=41,
            connect=42,
            bind=49,
            getsockname=51,
            setsockopt=54,
            getsockopt=55,
            seccomp=317,
            io_uring_setup=425,
            pidfd_getfd=438,
        ),
        # The x32 ABI's.
        stray_bit=0x40000000,
    ),
    "aarch64": Machine(0xC00000B7, _GENERIC),
    "riscv64": Machine(0xC00000F3, _GENERIC),
    "loongarch64": Machine(0xC0000102, _GENERIC),
    "armv7l": Machine(
        0x40000028,
        _table(
            open=5,
            openat=322,
            openat2=437,
            ioctl=54,
            socket=281,
            bind=282,
            connect=283,
            getsockname=286,
            setsockopt=294,
            getsockopt=295,
            seccomp=383,
            io_uring_setup=425,
            pidfd_getfd=438,
        ),
    ),
}
