"""The line that a terminal shows while a connection lives."""

from __future__ import annotations

import asyncio
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ginnel.vpn import State, Vpn


async def live_line(vpn: Vpn) -> None:
    """Shows address, rates, totals and the age of the keys on stderr, once a second, until cancelled."""
    console = Console(stderr=True)
    before, then = _bytes(vpn), time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            await asyncio.sleep(1)
            total, now = _bytes(vpn), time.monotonic()
            rates = tuple((new - old) / (now - then) for new, old in zip(total, before, strict=True))
            live.update(_line(vpn, total, rates), refresh=True)
            before, then = total, now


def _line(vpn: Vpn, total: tuple[int, ...], rates: tuple[float, ...]) -> Text:
    if vpn.state is not State.UP:
        return Text(f"{vpn.state} …", style="yellow")
    text = Text(f"{vpn.info.address or vpn.info.address6 or '-'}  ", style="bold")
    text.append(f"↓ {_size(rates[0])}/s ↑ {_size(rates[1])}/s", style="green")
    text.append(f"  total ↓ {_size(total[0])} ↑ {_size(total[1])}", style="default")
    text.append(f"  keys {_age(vpn.handshake_age)} old", style="dim")
    return text


def _bytes(vpn: Vpn) -> tuple[int, ...]:
    device = vpn.statistics().get("device", {})
    return device.get("rx_bytes", 0), device.get("tx_bytes", 0)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _age(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
