"""A learning switch that joins TAP devices."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ginnel._core import Bridge as CoreBridge
from ginnel._core import DescriptorEnd
from ginnel.device.kernel import is_tun
from ginnel.device.named import NamedEnd
from ginnel.errors import DeviceError

if TYPE_CHECKING:
    from typing import Self

    from ginnel._core import End

DEFAULT_STATIONS = 4096
#: Seconds (IEEE 802.1D, table 7-5).
DEFAULT_AGEING = 300.0


@dataclass(frozen=True, slots=True)
class Port:
    """A port as it is now.

    ``counters``: of what came in, ``rx_frames`` = ``forwarded`` + ``flooded`` + ``dropped_malformed`` +
    ``dropped_reserved`` + ``dropped_local`` + ``dropped_blocked``; of what was to go out, ``tx_frames``,
    ``tx_dropped`` (the device took no more) and ``tx_blocked``; ``rx_bytes``, ``tx_bytes``; ``loops``, how often
    it was closed.
    """

    number: int
    blocked: bool
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class Station:
    """A hardware address, the port behind which it is, and seconds since it was heard."""

    mac: str
    port: int
    age: float


@dataclass(frozen=True, slots=True)
class Loop:
    """A port was closed for a while, because ``station``, which is elsewhere, kept turning up there."""

    port: int
    station: str

    def __str__(self) -> str:
        return f"port {self.port} is closed for a while: it leads back to the bridge ({self.station} turned up there)"


class Bridge:
    """A switch between ends of TAP devices. A context manager that closes it.

    It learns which station is behind which port (IEEE 802.1D) and sends frames for it there alone; frames for
    groups and for unknown stations go to all other ports. Tagged frames pass as they are; those for bridges
    themselves (01-80-C2-00-00-0x) do not. There is no spanning tree: a port that leads back to the bridge is
    closed for 2 to 4 seconds, then for longer, up to 60. Any end that can be held may be a port, of a device in
    this process, of one with a name, of a kernel's; whoever holds the other end is its station.
    """

    def __init__(self, *, stations: int = DEFAULT_STATIONS, ageing: float = DEFAULT_AGEING) -> None:
        """``stations``: how many it knows at most; ``ageing``: seconds after which a silent one is forgotten."""
        self._core = CoreBridge(stations, ageing)

    def add(self, end: End | NamedEnd | DescriptorEnd) -> int:
        """Takes a device's end over and returns its port's number. At any time.

        DeviceError: EINVAL for a TUN device, EBADFD for an end that is closed, ENOSPC past 1,024 ports.
        """
        if isinstance(end, NamedEnd):
            if end.kind == "tun":
                raise DeviceError(errno.EINVAL, f"{end.name} is a TUN device, and no port of the bridge")
            return self._core.add_descriptor(end.core)
        if isinstance(end, DescriptorEnd):
            if is_tun(end.fileno()):
                raise DeviceError(errno.EINVAL, "this end cannot be a port of the bridge")
            return self._core.add_descriptor(end)
        return self._core.add(end)

    def remove(self, port: int) -> None:
        """Gives a port's end back, so that anyone may attach to it; a descriptor is closed. KeyError where there is
        no such port.

        A port whose device is deleted goes by itself.
        """
        if not self._core.remove(port):
            raise KeyError(port)

    def ports(self) -> list[Port]:
        """The ports by number. DeviceError (EBADFD) once closed."""
        return [Port(*row) for row in self._core.ports()]

    def stations(self) -> list[Station]:
        """The stations that are known, by address."""
        return [Station(*row) for row in self._core.stations()]

    def statistics(self) -> dict[str, int]:
        """The counters of all ports together, and ``crowded``: stations forgotten to make room for others."""
        total = {"crowded": self._core.crowded}
        for port in self.ports():
            for name, value in port.counters.items():
                total[name] = total.get(name, 0) + value
        return total

    def loops(self) -> list[Loop]:
        """The ports that were closed since the last call; the latest 64."""
        return [Loop(*row) for row in self._core.loops()]

    def fileno(self) -> int:
        """A descriptor that is readable while :meth:`loops` has something to say."""
        return self._core.fileno()

    def close(self) -> None:
        """Gives all ends back. Idempotent."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
