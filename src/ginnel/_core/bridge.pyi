from ginnel._core.device import DescriptorEnd, End

class Bridge:
    """A learning switch between ends of TAP devices, on a thread of its own. It knows at most ``stations``
    stations, and forgets one that was silent for ``ageing`` seconds."""

    def __new__(cls, stations: int, ageing: float) -> Bridge: ...
    def add(self, end: End) -> int:
        """Takes an end over as a port. DeviceError: EINVAL for a TUN device, EBADFD, ENOSPC past 1,024 ports."""

    def add_descriptor(self, end: DescriptorEnd) -> int:
        """The same for a descriptor that gives and takes a frame a call. DeviceError: EBADFD, EPERM for a file that
        cannot be waited for, ENOSPC."""

    def remove(self, port: int) -> bool:
        """Gives a port's end back. False where there is no such port."""

    def ports(self) -> list[tuple[int, bool, dict[str, int]]]:
        """Number, whether it is closed for now, counters. DeviceError (EBADFD) once closed."""

    def stations(self) -> list[tuple[str, int, float]]:
        """Hardware address, port, seconds since it was heard."""

    @property
    def crowded(self) -> int:
        """Stations that were forgotten to make room for others."""

    def loops(self) -> list[tuple[int, str]]:
        """Ports that were closed since the last call, each with the station that turned up there."""

    def fileno(self) -> int:
        """A descriptor that is readable while `loops` has something to say."""

    def close(self) -> None: ...
