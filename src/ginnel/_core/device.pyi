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
