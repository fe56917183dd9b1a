from typing import Any

from ginnel._core.device import End

class NetStack:
    """A TCP/IP stack on an end of a device, TUN or TAP, with a thread of its own. It takes the end over.

    The application side of every stream and datagram socket is a descriptor: bytes are moved
    between it and the stack in Rust. ``budget`` bytes of buffers are shared by all connections.
    """

    def __new__(cls, end: End, budget: int) -> NetStack: ...
    def set_addresses(self, addresses: list[str]) -> None:
        """The interface's own addresses (CIDR). Streams from an address that is gone are reset."""

    def set_mac(self, mac: str) -> None:
        """The hardware address ("aa:bb:cc:dd:ee:ff"), at first a random one. OSError (EOPNOTSUPP) on TUN."""

    @property
    def mac(self) -> str | None:
        """None on TUN."""

    def set_routes(self, routes: list[tuple[str, str | None]] | None) -> None:
        """Replaces the routes: prefix (CIDR) and gateway, None where it is on the link. The longest prefix wins.

        The own addresses' subnets are on the link always. None: nothing but these on TAP, everything on TUN.
        What has no route is refused with ENETUNREACH, or dropped and counted."""

    def add_route(self, destination: str, gateway: str | None) -> None:
        """One more, or another to this prefix."""

    def remove_route(self, destination: str) -> None:
        """Takes back what was given to this prefix. Harmless where nothing was."""

    def set_client(self, client: int, networks: list[str]) -> None:
        """The addresses and networks (CIDR) of one who shares the stack with others; none: it is gone.

        Of the memory for connections half is in parts, 256 KiB for each client; of the other half a client has no
        more than it leaves to others. What is undecided or open of others' traffic is shared in the same way."""

    def set_mtu(self, mtu: int) -> None:
        """Sets the device's MTU. Open connections only ever take a lower one. DeviceError (EINVAL) out of range.

        A device whose MTU is set otherwise needs no telling."""

    @property
    def mtu(self) -> int: ...
    def neighbours(self) -> list[tuple[str, str | None, str, float]]:
        """The stations known on the link: IP address, hardware address (None while it is asked for), state
        (``incomplete``, ``reachable``, ``stale``, ``delay``, ``probe``), seconds since it was heard of."""

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

    def capture_flows(self, idle: float) -> None:
        """Takes what is for addresses that are not the stack's own from now on, as if they were. Events:

        ``("arrived", arrival, host, port, dest_host, dest_port)``: a SYN, unanswered until `accept` or `refuse`;
        ``("withdrawn", arrival)``: its sender has given up, or nobody decided in time;
        ``("datagram_flow", flow, host, port, dest_host, dest_port)``: the first datagram of this pair;
        ``("datagram_flow_ended", flow)``: none for ``idle`` seconds, or its socket has ended;
        ``("echo", host, dest_host, identifier, sequence, payload)``.

        A client (`set_client`), or an address that is none's, has at most 128 connections undecided or half open, and
        512 flows of datagrams."""

    def reserve(self, arrival: int) -> None:
        """Keeps the memory that a connection needs, before anything is done for it. OSError as for `accept`."""

    def accept(self, arrival: int) -> int:
        """Answers the SYN. Returns a flow, as `connect` does: "connected" or "failed" follow.
        OSError: ENOTCONN for one that is gone, ENOBUFS past the budget, where it is to be refused."""

    def refuse(self, arrival: int, reason: str) -> None:
        """Answers the SYN with a reset ("reset") or an ICMP message: "network", "host", "port" unreachable, or
        "prohibited". Harmless for one that is gone."""

    def attach_datagram_flow(self, flow: int, fd: int) -> None:
        """Joins a flow of datagrams with a connected UDP socket, which it takes over. OSError (ENOTCONN)."""

    def refuse_datagram_flow(self, flow: int, reason: str) -> None:
        """Answers its datagrams with an ICMP message for 10 seconds: reasons as for `refuse`, without "reset"."""

    def close_datagram_flow(self, flow: int) -> None: ...
    def echo_reply(self, source: str, destination: str, identifier: int, sequence: int, payload: bytes) -> None:
        """Answers an echo request that was for ``source``."""

    def events(self) -> list[tuple[Any, ...]]: ...
    def fileno(self) -> int:
        """A descriptor that is readable while events wait."""

    def statistics(self) -> dict[str, int]: ...
    def close(self) -> None:
        """Stops the thread, resets its flows, closes its descriptors and the device end. Idempotent."""
