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
    def up(self) -> bool: ...
    def set_up(self, up: bool) -> None: ...
    def attach(self, side: str) -> End:
        """Takes the ``application`` or the ``interface`` end. Raises DeviceError (EBUSY, or EBADFD once deleted)."""

    def delete(self) -> None: ...
    @property
    def deleted(self) -> bool: ...
    def statistics(self) -> dict[str, int]:
        """rx_packets, rx_bytes, rx_dropped, tx_packets, tx_bytes, tx_dropped, errors, as the interface counts."""

class End:
    """A held end of a device. Every method but `close` raises DeviceError (EBADFD) once it is closed or deleted."""

    def read(self, timeout: float | None = None) -> bytes:
        """The next packet. Waits for it ``timeout`` seconds (None: for ever, 0: not at all); TimeoutError after."""

    def write(self, packet: bytes | bytearray | memoryview) -> int:
        """Writes one packet and returns its length. DeviceError: EIO when down, EINVAL when malformed."""

    def read_batch(self, limit: int) -> list[bytes]:
        """Up to ``limit`` packets that wait now."""

    def write_batch(self, packets: list[bytes]) -> int:
        """Writes all; returns how many the other end will read. The rest is counted."""

    def fileno(self) -> int:
        """A descriptor that is readable exactly while a packet waits. For select and its kin, not for I/O."""

    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...

class Link:
    """Joins an end of a device with descriptors that other programs hold, on a thread of its own.

    Each message on a descriptor is one packet. What the program writes is always read: what a kernel's device would
    have refused is counted as an error, what finds no room is dropped and counted. Several descriptors are several
    queues: a flow's packets keep to one of them. When the device is deleted every program sees its descriptor end.
    """

    def __new__(cls, device: Device, side: str) -> Link:
        """The ``application`` or ``interface`` end. It is taken while an enabled descriptor is joined."""

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
        """``("gone", number)``: the other side of a descriptor closed or died."""

    def fileno(self) -> int:
        """A descriptor that is readable while events wait."""

    def close(self) -> None:
        """Closes every descriptor, gives the end back and ends the thread. Idempotent."""
