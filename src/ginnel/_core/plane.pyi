from collections.abc import Sequence
from typing import Any

from ginnel._core.device import End
from ginnel.openvpn.events import Framing, Path

class DataPlane:
    """The data plane on real sockets, on threads of its own. It takes over the device end it is given.

    Its peers are spread over ``lanes``: one belongs to that of the socket of its first path, a socket to that of its
    number's remainder. Each lane has one thread, or two that are ``apart``, one for each way.

    Commands take effect before they return. They raise ValueError where they make no sense (an
    unknown peer, a cipher or key of the wrong length).
    """

    def __new__(cls, end: End, *, lanes: int = 1, apart: bool = False) -> DataPlane: ...
    @staticmethod
    def on_kernel_device(
        queues: Sequence[int], kind: str, vnet_header: bool, udp_offload: bool, *, apart: bool = False
    ) -> DataPlane:
        """On attached descriptors of /dev/net/tun (IFF_NO_PI), one for each lane, which it takes over; ``kind`` is
        ``tun`` or ``tap``.

        ``vnet_header``: attached with IFF_VNET_HDR and a header of 10 bytes: long packets are cut and joined here.
        ``udp_offload``: TUNSETOFFLOAD has taken USO, too. When the device goes, ``("device_closed", errno)`` is an
        event.
        """

    @property
    def lanes(self) -> int: ...
    def add_udp(self, fd: int, header: bytes = b"") -> int:
        """Takes over a bound, possibly connected, UDP socket's descriptor. Returns its socket number.

        With a ``header`` the socket leads to a SOCKS5 relay: the header stands before each datagram that leaves, and
        what comes has one of its own (RFC 1928, section 7).
        """

    def add_tcp(self, fd: int) -> int:
        """Takes over a connected TCP socket's descriptor: packets go through it behind their length, 16 bits each.

        Its end, or an error, is reported as ``closed``.
        """

    def remove_socket(self, socket: int) -> None: ...
    def new_peer(self, peer: int, path: Path, peer_id: int | None) -> None: ...
    def set_peer(self, peer: int, ping: float, ping_restart: float, mss: int, framing: Framing = "") -> None: ...
    def del_peer(self, peer: int) -> None: ...
    def new_key(
        self,
        peer: int,
        handle: int,
        key_id: int,
        cipher: str,
        encrypt: bytes,
        decrypt: bytes,
        *,
        auth: str = "none",
        epochs: bool = False,
    ) -> None: ...
    def del_key(self, peer: int, handle: int) -> None: ...
    def swap(self, peer: int, handle: int) -> None: ...
    def set_routes(self, peer: int, routes: list[str], sources: list[str] | None) -> None:
        """Inner prefixes (CIDR) that lead to the peer, and the inner sources it may use (None: any)."""

    def limit_strangers(self, most: int, period: float) -> None:
        """How many control packets of strangers are reported within ``period`` seconds; 100 within 10 at first."""

    def guard_strangers(self, locks: list[tuple[str, bytes]]) -> None:
        """Which control packets of strangers count at all, `ginnel.openvpn.strangers.locks`: the others are dropped.
        Without a lock, as at first, all count."""

    def set_relaying(self, relaying: bool) -> None:
        """Whether packets for another peer's prefixes go there, and not to the device. Not at first."""

    def send_control(self, data: bytes, path: Path) -> None: ...
    def send_data_message(self, peer: int, data: bytes) -> None: ...
    def events(self) -> list[tuple[Any, ...]]:
        """What has happened: ``("control", data, path)``, ``("data_message", peer, data)``,
        ``("float", peer, path)``, ``("expired", peer)``, ``("key_limit", peer, handle)``,
        ``("closed", path, errno)``."""

    def fileno(self) -> int:
        """A descriptor that is readable while events wait."""

    def statistics(self) -> dict[str, int]: ...
    def peer_statistics(self, peer: int) -> dict[str, int]: ...
    def close(self) -> None:
        """Stops the thread, closes the sockets and the device end. Idempotent."""

class DataChannel:
    """The same data plane without sockets, threads or a clock: for tests and for other transports.

    ``now`` is in seconds on any monotonic clock. The commands are those of `DataPlane`.
    """

    def __new__(cls) -> DataChannel: ...
    def new_peer(self, peer: int, path: Path, peer_id: int | None, now: float) -> None: ...
    def set_peer(
        self, peer: int, ping: float, ping_restart: float, mss: int, now: float, framing: Framing = ""
    ) -> None: ...
    def del_peer(self, peer: int) -> None: ...
    def new_key(
        self,
        peer: int,
        handle: int,
        key_id: int,
        cipher: str,
        encrypt: bytes,
        decrypt: bytes,
        *,
        auth: str = "none",
        epochs: bool = False,
    ) -> None: ...
    def del_key(self, peer: int, handle: int) -> None: ...
    def swap(self, peer: int, handle: int) -> None: ...
    def set_routes(self, peer: int, routes: list[str], sources: list[str] | None) -> None: ...
    def send_data_message(self, peer: int, data: bytes, now: float) -> list[tuple[bytes, Path]]: ...
    def send_packet(self, packet: bytes, now: float) -> list[tuple[bytes, Path]]:
        """An inner packet, encrypted for the peer it is routed to: no datagram when there is none (counted)."""

    def receive_datagram(self, data: bytes, path: Path, now: float) -> list[bytes]:
        """The inner packets that a datagram held. Control datagrams become events."""

    def get_timer(self) -> float | None: ...
    def handle_timer(self, now: float) -> list[tuple[bytes, Path]]: ...
    def events(self) -> list[tuple[Any, ...]]: ...
    def statistics(self) -> dict[str, int]: ...
    def peer_statistics(self, peer: int) -> dict[str, int]: ...
