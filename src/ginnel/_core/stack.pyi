from typing import Any

from ginnel._core.device import End

class NetStack:
    """A TCP/IP stack on the interface end of a device, on a thread of its own. It takes the end over.

    The application side of every stream and datagram socket is a descriptor: bytes are moved
    between it and the stack in Rust. ``budget`` bytes of buffers are shared by all connections.
    """

    def __new__(cls, end: End, budget: int) -> NetStack: ...
    def set_addresses(self, addresses: list[str]) -> None:
        """The interface's own addresses (CIDR). Streams from an address that is gone are reset."""

    def connect(self, host: str, port: int) -> int:
        """Starts a TCP connection to an IP address. Returns its flow number; events follow:
        ``("connected", flow, local_host, local_port)`` or ``("failed", flow, errno)``.
        Raises OSError: ENETUNREACH without an address of that family, ENOBUFS past the budget."""

    def attach(self, flow: int, fd: int) -> None:
        """Joins a connected flow with a stream socket, whose descriptor it takes over. When both
        directions have ended: ``("closed", flow, errno)``, 0 for an orderly end."""

    def abort(self, flow: int) -> None:
        """Resets the connection and forgets the flow. Harmless for one that is gone."""

    def listen(self, host: str | None, port: int, backlog: int) -> tuple[int, int]:
        """Listens on an own address (None: on all) and a port (0: a free one). Returns listener and
        port; each connection is an event ``("accepted", listener, flow, host, port, local_host, local_port)``."""

    def close_listener(self, listener: int) -> None: ...
    def open_datagram(self, host: str | None, port: int, fd: int) -> tuple[int, int]:
        """Binds a UDP port (0: a free one). ``fd`` is one end of a SOCK_SEQPACKET pair that it takes over.
        Each message on it is one datagram: 16 bytes of the other side's address (IPv4 mapped into
        IPv6), 2 of its port, both in network order, then the payload. Returns number and port;
        closing the other end of the pair frees it."""

    def close_datagram(self, datagram: int) -> None: ...
    def ping(self, host: str, identifier: int, sequence: int, payload: bytes) -> None:
        """Sends an echo request; a reply is the event ``("pong", host, identifier, sequence, payload)``."""

    def events(self) -> list[tuple[Any, ...]]: ...
    def fileno(self) -> int:
        """A descriptor that is readable while events wait."""

    def statistics(self) -> dict[str, int]: ...
    def close(self) -> None:
        """Stops the thread, resets its flows, closes its descriptors and the device end. Idempotent."""
