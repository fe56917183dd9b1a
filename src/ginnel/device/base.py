"""What every device promises.

A device has two ends. A packet that is written at one end is read whole at the other, in order,
once. The *interface end* belongs to a network stack; the *application end* belongs to a program,
a VPN say. A TUN device carries IP packets and is point to point; a TAP device carries Ethernet
frames. Any number of threads may use either end at the same time.

While nobody holds the other end, an end is at its end of file: what waits can still be read, then
read() gives ``b""`` and poll says HUP. Its writes never wait: at the interface end they are dropped
and counted, for the interface is up without a program; at the application end they fail with EIO,
for without its interface end a device is down. Both pass when somebody attaches again. A deleted
device is over for good: EBADFD.

Refusals are `ginnel.errors.DeviceError`, with the errno that Linux's own device would give
(``Documentation/networking/tuntap.rst``, ``drivers/net/tun.c``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from typing import Self

Kind = Literal["tun", "tap"]

DEFAULT_MTU = 1500
QUEUE: dict[Kind, int] = {"tun": 500, "tap": 1000}
"""Packets that wait for a reader, each way, unless another number is asked for."""


class DeviceEnd(Protocol):
    """One end of a device, held by whoever attached to it.

    Every method but `close` raises EBADFD once the end is closed or the device deleted; whoever
    waits in one at that time is woken by it.
    """

    def read(self, timeout: float | None = None) -> bytes:
        """The next packet; ``b""`` when nobody holds the other end and no packet waits.

        Waits for it ``timeout`` seconds (None: for ever, 0: not at all) and raises TimeoutError, its
        errno EAGAIN, after. A signal interrupts the wait: its Python handler runs, and what it raises
        passes on.
        """

    def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """Reads the next packet into a buffer; the number of bytes.

        Of a packet that is longer the rest is lost. Into an empty buffer 0, at once, and no packet is
        consumed.
        """

    def write(self, packet: bytes | bytearray | memoryview) -> int:
        """Writes one packet and returns its length. Never waits.

        EIO: the interface is down. EINVAL: an empty packet, one of a TUN device whose version is
        neither 4 nor 6, a frame under 14 bytes, more than 65,535 bytes. A packet longer than the
        MTU is taken. When the queue is full or nobody is attached at the other end, the packet is
        dropped and counted, and that is no error. An end that is a descriptor, which is full before
        the device knows of a packet, counts that itself, as ``dropped``.
        """

    def read_batch(self, limit: int) -> list[bytes]:
        """Up to ``limit`` packets that wait now; an empty list when none does. Never waits."""

    def write_batch(self, packets: Iterable[bytes | bytearray | memoryview]) -> int:
        """Writes all of ``packets`` and returns how many the other end will read. Never waits.

        The rest is counted as with `write`: as dropped where there was no room, as an error where malformed.
        EIO when the interface is down: none was taken, and all are counted as errors.
        """

    def fileno(self) -> int:
        """A descriptor for select, poll, epoll and asyncio.

        Readable exactly while a packet waits, writable exactly while a write would be taken: the
        interface up, the other end held, room in the queue. Hung up while nobody holds the other end.
        Whether it can be read and written itself is each kind of device's own to say.
        """

    def close(self) -> None:
        """Gives the end back: what waited for it is dropped and counted, and anyone may attach.

        Without its interface end a device is down. Idempotent.
        """

    @property
    def closed(self) -> bool: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None:
        """Closes the end."""


class Device(Protocol):
    """A device. A new one is down, has both ends free and changes no other network state."""

    @property
    def kind(self) -> Kind: ...

    @property
    def application(self) -> DeviceEnd:
        """The application end. Attached when first asked for, and again after it was closed.

        EBUSY: somebody else holds it.
        """

    @property
    def interface(self) -> DeviceEnd:
        """The interface end, likewise."""

    @property
    def up(self) -> bool: ...

    def set_up(self, up: bool) -> None:
        """Sets the interface up or down. What waits when it goes down stays readable."""

    @property
    def mtu(self) -> int: ...

    @property
    def queue_length(self) -> int:
        """Packets that wait for a reader, each way; `QUEUE` at first."""

    def set_queue_length(self, packets: int) -> None:
        """None is lost of those that wait already. With 0 every packet is dropped and counted. Raises
        DeviceError above 524,288.
        """

    def set_mtu(self, mtu: int) -> None:
        """Sets the MTU in bytes. EINVAL below 68, above 65,535 (TAP: 65,521)."""

    def statistics(self) -> dict[str, int]:
        """``rx_`` and ``tx_`` ``packets``, ``bytes``, ``dropped`` and ``errors``.

        As the interface counts: *received* is what the application wrote. A packet counts as one of
        ``packets`` when it is read, as ``dropped`` when it was lost, as one of ``errors`` when its
        write was refused: what was written is the sum of the three and of what waits.
        """

    def close(self) -> None:
        """Deletes the device: both ends fail from now on. Idempotent."""

    @property
    def closed(self) -> bool: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...
