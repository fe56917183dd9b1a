"""The line that a terminal shows while a connection or a device lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from ginnel.device.service import Service
    from ginnel.vpn import Vpn


async def live_line(vpn: Vpn) -> None:
    """Shows address, rates, totals and the age of the keys on stderr, once a second, until cancelled."""
    await _show(lambda: _bytes(vpn.statistics().get("device", {})), lambda total, rates: _line(vpn, total, rates))


async def device_line(service: Service) -> None:
    """Shows state, rates, totals and drops of a device on stderr, once a second, until cancelled."""

    def line(total: tuple[int, ...], rates: tuple[float, ...]) -> Text:
        counted = service.interface.statistics()
        dropped = counted["rx_dropped"] + counted["tx_dropped"]
        state = "up" if service.interface.up else "down"
        held = ", ".join(holder.program for holder in service.holders.values()) or "nobody"
        text = Text(f"{service.name} {state}  ", style="bold")
        text.append_text(_traffic(total, rates))
        text.append(f"  dropped {dropped}", style="yellow" if dropped else "dim")
        return text.append(f"  held by {held}", style="dim")

    await _show(lambda: _bytes(service.interface.statistics()), line)


async def _show(
    count: Callable[[], tuple[int, ...]], line: Callable[[tuple[int, ...], tuple[float, ...]], Text]
) -> None:
    console = Console(stderr=True)
    before, then = count(), time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            await asyncio.sleep(1)
            total, now = count(), time.monotonic()
            rates = tuple((new - old) / (now - then) for new, old in zip(total, before, strict=True))
            live.update(line(total, rates), refresh=True)
            before, then = total, now


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
