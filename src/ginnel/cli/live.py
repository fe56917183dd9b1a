"""The line that a terminal shows while a connection or a device lives."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from typing import Self

    from ginnel.device.service import Service
    from ginnel.vpn import Vpn


async def live_line(vpn: Vpn) -> None:
    """Shows address, rates, totals and the age of the keys on stderr, once a second, until cancelled."""
    await _show(lambda: _bytes(vpn.statistics().get("device", {})), lambda total, rates: _line(vpn, total, rates))


async def device_line(service: Service) -> None:
    """Shows state, rates, totals and drops of a device on stderr, once a second while they change, until cancelled."""

    def line(total: tuple[int, ...], rates: tuple[float, ...]) -> Text:
        counted = service.interface.statistics()
        dropped = counted["rx_dropped"] + counted["tx_dropped"]
        state = "up" if service.interface.up else "down"
        held = ", ".join(holder.program for holder in service.holders.values()) or "nobody"
        text = Text(f"{service.name} {state}  ", style="bold")
        text.append_text(_traffic(total, rates))
        text.append(f"  dropped {dropped}", style="yellow" if dropped else "dim")
        return text.append(f"  held by {held}", style="dim")

    with _Changes(service) as changes:
        await _show(lambda: _bytes(service.interface.statistics()), line, changes)


class _Changes:
    """Whatever may change a device's line. A context manager that lets go of it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._number = -1
        service.interface.on_change.append(self._changed.set)
        service.on_holders.append(self._changed.set)

    def arm(self) -> None:
        """From now on."""
        self._changed.clear()
        self._number = self._service.interface.device.core.watch()
        self._loop.add_reader(self._number, self._passed)

    async def wait(self) -> None:
        """Returns when something has changed since `arm`."""
        await self._changed.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.remove_reader(self._number)
        for calls in (self._service.interface.on_change, self._service.on_holders):
            # A device that was deleted calls nobody any more.
            with contextlib.suppress(ValueError):
                calls.remove(self._changed.set)

    def _passed(self) -> None:
        self._loop.remove_reader(self._number)
        self._changed.set()


async def _show(
    count: Callable[[], tuple[int, ...]],
    line: Callable[[tuple[int, ...], tuple[float, ...]], Text],
    changes: _Changes | None = None,
) -> None:
    console = Console(stderr=True)
    before, then = count(), time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        shown = ""
        while True:
            await asyncio.sleep(1)
            if changes is not None:
                changes.arm()
            total, now = count(), time.monotonic()
            rates = tuple((new - old) / (now - then) for new, old in zip(total, before, strict=True))
            text = line(total, rates)
            live.update(text, refresh=True)
            is_still = (text.plain, total) == (shown, before)
            shown, before, then = text.plain, total, now
            if changes is not None and is_still:
                await changes.wait()
                then = time.monotonic()


def _line(vpn: Vpn, total: tuple[int, ...], rates: tuple[float, ...]) -> Text:
    if vpn.state != "up":
        return Text(f"{vpn.state} …", style="yellow")
    text = Text(f"{vpn.info.address or vpn.info.address6 or '-'}  ", style="bold")
    text.append_text(_traffic(total, rates))
    text.append(f"  keys {_age(vpn.handshake_age)} old", style="dim")
    return text


def _traffic(total: tuple[int, ...], rates: tuple[float, ...]) -> Text:
    text = Text(f"↓ {_size(rates[0])}/s ↑ {_size(rates[1])}/s", style="green")
    return text.append(f"  total ↓ {_size(total[0])} ↑ {_size(total[1])}", style="default")


def _bytes(device: dict[str, int]) -> tuple[int, ...]:
    return device.get("rx_bytes", 0), device.get("tx_bytes", 0)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _age(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
