"""Who is connected."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from ginnel.openvpn.events import Path
from ginnel.server.pool import Lease


@dataclass(slots=True)
class Client:
    """A client that was let in. ``rx`` and ``tx`` are the bytes of inner packets from it and to it, and the
    rates are in bytes a second, of the last second at least: since ``measured``, which is on `time.monotonic`, with
    the bytes until then. ``heard`` is when something authentic had last come, on `time.monotonic`, as
    exactly as the counters are looked at. ``session`` is the store's number, None before the tunnel is open.
    ``leaving``: it was told to go."""

    peer: int
    name: str
    username: str
    path: Path
    transport: str
    lease: Lease
    routes: tuple[str, ...]
    serial: int | None
    peer_info: Mapping[str, str]
    since: float = field(default_factory=time.time)
    cipher: str = ""
    tls: str = ""
    session: int | None = None
    leaving: bool = False
    rx: int = 0
    tx: int = 0
    authentic: int = 0
    heard: float = field(default_factory=time.monotonic)
    rx_rate: float = 0.0
    tx_rate: float = 0.0
    measured: tuple[float, int, int] = field(default_factory=lambda: (time.monotonic(), 0, 0))

    @property
    def is_inside(self) -> bool:
        """Its tunnel is open, and it was not told to go."""
        return self.session is not None and not self.leaving

    @property
    def address(self) -> IPv4Address:
        return self.lease.address

    @property
    def address6(self) -> IPv6Address | None:
        return self.lease.address6

    @property
    def remote(self) -> str:
        """Where it is, as ADDR:PORT."""
        _, address, port = self.path
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    @property
    def version(self) -> str:
        """What the client says it is; control characters are left out."""
        words = [self.peer_info.get(name, "") for name in ("IV_GUI_VER", "IV_VER", "IV_PLAT")]
        text = " ".join(filter(None, words))
        return (text if text.isprintable() else "".join(filter(str.isprintable, text)))[:80]

    def count(self, counted: Mapping[str, int], now: float) -> None:
        """Takes the data plane's counters of this moment, on `time.monotonic`."""
        self.rx, self.tx = counted["rx_bytes"], counted["tx_bytes"]
        began, rx, tx = self.measured
        if now >= began + 1:
            self.rx_rate, self.tx_rate = (self.rx - rx) / (now - began), (self.tx - tx) / (now - began)
            self.measured = now, self.rx, self.tx
        authentic = counted["rx_datagrams"] - counted["rx_dropped"]
        if authentic != self.authentic:
            self.authentic, self.heard = authentic, now

    def described(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "username": self.username,
            "peer": self.peer,
            "address": self.lease.text,
            "address6": self.lease.text6,
            "remote": self.remote,
            "transport": self.transport,
            "since": round(self.since, 3),
            "rx": self.rx,
            "tx": self.tx,
            "rx_rate": round(self.rx_rate, 1),
            "tx_rate": round(self.tx_rate, 1),
            "cipher": self.cipher,
            "tls": self.tls,
            "version": self.version,
        }


class Clients(Mapping[int, Client]):
    """Those who were let in, by peer, and by name: who comes is not looked for among all of them."""

    def __init__(self) -> None:
        self._by_peer: dict[int, Client] = {}
        self._by_name: dict[str, dict[int, Client]] = {}

    def __getitem__(self, peer: int) -> Client:
        return self._by_peer[peer]

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_peer)

    def __len__(self) -> int:
        return len(self._by_peer)

    def named(self, name: str) -> list[Client]:
        """A user's, who came first in front."""
        return list(self._by_name.get(name, {}).values())

    def add(self, client: Client) -> None:
        self._by_peer[client.peer] = client
        self._by_name.setdefault(client.name, {})[client.peer] = client

    def remove(self, peer: int) -> Client | None:
        client = self._by_peer.pop(peer, None)
        if client is not None:
            own = self._by_name[client.name]
            del own[peer]
            if not own:
                del self._by_name[client.name]
        return client
