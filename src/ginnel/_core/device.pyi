from collections.abc import Iterable
from typing import Self

from ginnel._core.plane import DataPlane
from ginnel._core.stack import NetStack

class Device:
    """A memory device: two ends, a queue of ``capacity`` packets each way. It is down at first."""

    def __new__(cls, kind: str, mtu: int, capacity: int) -> Device: ...
    @property
    def kind(self) -> str: ...
    @property
    def mtu(self) -> int: ...
    def set_mtu(self, mtu: int) -> None:
        """Raises DeviceError (EINVAL) outside the limits."""

    @property
    def queue_length(self) -> int: ...
    def set_queue_length(self, packets: int) -> None:
        """Raises DeviceError (ERANGE) above 524,288."""

    @property
    def up(self) -> bool: ...
    def set_up(self, up: bool) -> None: ...
    def attach(self, side: str) -> End:
        """Takes the ``application`` or the ``interface`` end. Raises DeviceError (EBUSY, or EBADFD once deleted)."""

    def is_held(self, side: str) -> bool: ...
    def watch(self) -> int:
        """A descriptor that is readable once something has passed the device or changed it, from now on; until then
        nothing is. Called again it waits for the next."""

    def delete(self) -> None: ...
    @property
    def deleted(self) -> bool: ...
    def statistics(self) -> dict[str, int]:
        """rx_ and tx_ packets, bytes, dropped and errors, as the interface counts."""

class End:
    """A held end of a device, as `ginnel.device.base.DeviceEnd` says."""

    def read(self, timeout: float | None = None) -> bytes: ...
    def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int: ...
    def write(self, packet: bytes | bytearray | memoryview) -> int: ...
    def read_batch(self, limit: int) -> list[bytes]: ...
    def write_batch(self, packets: Iterable[bytes | bytearray | memoryview]) -> int: ...
    def fileno(self) -> int:
        """A descriptor to poll, not for I/O. Made when it is first asked for."""

    def open_fd(self) -> int:
        """Closes this object and gives a descriptor in its place, one half of a SOCK_SEQPACKET pair.

        A message is a packet. A thread serves it until either side closes; then the end is free again.
        """

    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...

class DescriptorEnd:
    """An end that is a descriptor of whole packets: /dev/net/tun's, or a SOCK_SEQPACKET socket."""

    def __new__(cls, fd: int) -> DescriptorEnd:
        """Takes the descriptor over and makes it non-blocking."""

    def read(self, timeout: float | None = None) -> bytes: ...
    def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int: ...
    def write(self, packet: bytes | bytearray | memoryview) -> int: ...
    def read_batch(self, limit: int) -> list[bytes]: ...
    def write_batch(self, packets: Iterable[bytes | bytearray | memoryview]) -> int: ...
    @property
    def dropped(self) -> int:
        """Packets that were written here and for which the descriptor had no room."""

    def fileno(self) -> int:
        """The descriptor itself."""

    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...

class Link:
    """Joins an end of a device with descriptors that other programs hold.

    Each message on a descriptor is one packet. What the program writes is always read: what a kernel's device would
    have refused is counted as an error, what finds no room is dropped and counted. Several descriptors are several
    queues: a flow's packets keep to one of them. When the device is deleted every program sees its descriptor end.
    """

    def __new__(cls, device: Device, side: str, stack: NetStack | None = None) -> Link:
        """The ``application`` or ``interface`` end. It is taken while an enabled descriptor is joined.

        A ``stack`` on the other end has its thread serve the descriptors, a thread less for packets to wait for. One
        link a stack, OSError (EADDRINUSE). None: a thread of its own."""

    def add(self, fd: int, packet_info: bool) -> int:
        """Takes over one half of a SOCK_SEQPACKET pair and returns its number.

        With ``packet_info`` each message has 4 bytes in front: flags (0) and the EtherType, as on /dev/net/tun
        without IFF_NO_PI. Raises DeviceError: EBUSY when somebody else holds the end, E2BIG past 256, EBADFD
        once deleted.
        """

    def set_enabled(self, number: int, enabled: bool) -> None:
        """A queue that is not enabled gives no packets, and what is written there is an error. DeviceError: EBUSY."""

    def set_packet_info(self, number: int, packet_info: bool) -> None: ...
    def remove(self, number: int) -> None:
        """Closes a descriptor. Harmless for one that is gone."""

    def events(self) -> list[tuple[str, int]]:
        """``("gone", number)``: the other side of a descriptor closed or died. True to this moment."""

    def fileno(self) -> int:
        """A descriptor that is readable while events wait."""

    def close(self) -> None:
        """Closes every descriptor and gives the end back. Idempotent."""

class Capture:
    """A pcapng file to which a thread of its own writes packets. Whoever moves them never waits for it."""

    def __new__(cls, fd: int, kind: str, name: str) -> Capture:
        """Takes over an empty file's descriptor. ``kind`` and ``name`` are the interface's. Raises OSError."""

    def observe(self, device: Device, name: str | None = None) -> None:
        """Notes every packet of a device, until the capture is closed. A device has one capture at a time.

        ``name``: of its interface in the file, which becomes another one where it is new; None: the first one's.
        """

    def observe_plane(self, plane: DataPlane) -> None:
        """The same for the device of the kernel's that a data plane is on. ValueError for one in memory."""

    def note(self, packet: bytes, outbound: bool) -> None:
        """Notes one packet. ``outbound``: the interface sends it."""

    def statistics(self) -> dict[str, int]:
        """packets: that passed; dropped: by the device; lost: that passed and are not in the file."""

    def failure(self) -> int | None:
        """The errno of the first write that failed."""

    def fileno(self) -> int:
        """A descriptor that is readable when a write has failed, until `failure` is called."""

    def close(self) -> None:
        """Writes what is left. Idempotent."""
