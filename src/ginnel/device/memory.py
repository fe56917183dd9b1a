"""A device in this process's memory: both ends are Python objects, or parts of ginnel in Rust."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ginnel._core import Device as CoreDevice
from ginnel.device.base import DEFAULT_MTU, QUEUE, Kind

if TYPE_CHECKING:
    from typing import Self

    from ginnel._core import End


class MemoryDevice:
    """A `ginnel.device.base.Device` in memory.

    ``queue`` is the number of packets that wait for a reader, each way; None for the kind's usual.
    An end's ``fileno()`` is for select and its kin only; ``open_fd()`` gives a descriptor to read and
    write, in place of the end. An end that is given away so, or to a data plane or a network stack, is
    closed for Python, and held until that is closed: EBUSY meanwhile.
    """

    def __init__(self, kind: Kind = "tun", mtu: int = DEFAULT_MTU, queue: int | None = None) -> None:
        self._device = CoreDevice(kind, mtu, QUEUE.get(kind, 0) if queue is None else queue)
        self._ends: dict[str, End] = {}
        # From the start on, so that nothing is dropped because an end was not looked at yet.
        self._end("application")
        self._end("interface")

    @property
    def kind(self) -> Kind:
        return cast("Kind", self._device.kind)

    @property
    def application(self) -> End:
        return self._end("application")

    @property
    def interface(self) -> End:
        return self._end("interface")

    @property
    def core(self) -> CoreDevice:
        """The device itself, for the parts of ginnel in Rust."""
        return self._device

    @property
    def up(self) -> bool:
        return self._device.up

    def set_up(self, up: bool) -> None:
        self._device.set_up(up)

    @property
    def queue_length(self) -> int:
        return self._device.queue_length

    def set_queue_length(self, packets: int) -> None:
        self._device.set_queue_length(packets)

    @property
    def mtu(self) -> int:
        return self._device.mtu

    def set_mtu(self, mtu: int) -> None:
        self._device.set_mtu(mtu)

    def statistics(self) -> dict[str, int]:
        return self._device.statistics()

    def close(self) -> None:
        self._device.delete()
        for end in self._ends.values():
            end.close()

    @property
    def closed(self) -> bool:
        return self._device.deleted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "deleted" if self.closed else "up" if self.up else "down"
        return f"<MemoryDevice {self.kind} mtu {self.mtu} {state}>"

    def _end(self, side: str) -> End:
        end = self._ends.get(side)
        if end is None or end.closed:
            end = self._ends[side] = self._device.attach(side)
        return end
