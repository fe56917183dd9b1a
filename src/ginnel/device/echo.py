"""Programs that try a device out: one answers, another asks and counts what comes back.

They work on anything that reads and writes whole packets: a `DeviceEnd`, an `EthernetEnd`, or
`Messages`, which are datagrams of a network stack.
"""

from __future__ import annotations

import errno
import secrets
import socket
import statistics
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Protocol

from ginnel.device.forge import Datagram, Echo, parse
from ginnel.errors import DeviceError
from ginnel.stack.sockets import ADDRESS_LEN, pack_address, unpack_address


class Packets(Protocol):
    """What a device's end and the others here have in common."""

    def read(self, timeout: float | None = None) -> bytes | None:
        """``b""``: the device has ended. None: nothing of interest came. Raises TimeoutError."""

    def write(self, packet: bytes) -> int: ...


class Messages:
    """Datagrams of a network stack: each with its other side's address in front (`pack_address`)."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, timeout: float | None = None) -> bytes:
        self._sock.settimeout(None if timeout is None else max(timeout, 1e-6))
        return self._sock.recv(ADDRESS_LEN + 65_535)

    def write(self, message: bytes) -> int:
        self._sock.settimeout(None)
        return self._sock.send(message)


class KernelMessages:
    """The same on a UDP socket of the kernel's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, timeout: float | None = None) -> bytes:
        self._sock.settimeout(None if timeout is None else max(timeout, 1e-6))
        data, address = self._sock.recvfrom(65_535)
        return pack_address(*address[:2]) + data

    def write(self, message: bytes) -> int:
        host, port = unpack_address(message[:ADDRESS_LEN])
        if self._sock.family == socket.AF_INET6 and ":" not in host:
            host = f"::ffff:{host}"
        self._sock.settimeout(None)
        return self._sock.sendto(message[ADDRESS_LEN:], (host, port))


@dataclass
class Answered:
    """What a responder saw."""

    answered: int = 0
    """Packets that asked."""
    other: int = 0
    """Packets that asked for nothing."""
    refused: int = 0
    """Those answers among them that the device did not take."""
    sources: Counter[str] = field(default_factory=Counter)

    def note(self, source: str) -> None:
        self.answered += 1
        self.sources[source if source in self.sources or len(self.sources) < MAX_SOURCES else "others"] += 1

    def describe(self) -> dict[str, Any]:
        fields = {"answered": self.answered, "other": self.other, "refused": self.refused}
        return {**fields, "sources": dict(self.sources)}


def respond(packets: Packets, answer: Callable[[bytes], tuple[bytes, str] | None], seen: Answered) -> None:
    """Answers until the device ends. ``answer``: of a packet, the one to send and who asked."""
    while (packet := _read(packets, None)) != b"":
        replied = answer(packet) if packet else None
        if replied is None:
            seen.other += 1
            continue
        # First, as a signal may end us as soon as the answer is there.
        seen.note(replied[1])
        try:
            packets.write(replied[0])
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EAGAIN, errno.ENOBUFS):
                raise
            seen.refused += 1


def answer_echo(packet: bytes) -> tuple[bytes, str] | None:
    """For `respond`: the reply to an echo request for whatever station."""
    asked = parse(packet)
    if not isinstance(asked, Echo) or asked.is_reply or _is_group(asked.destination):
        return None
    return asked.reply().emit(), _text(asked.source)


def answer_datagram(packet: bytes, port: int) -> tuple[bytes, str] | None:
    """For `respond`: what was sent to a UDP port of whatever station, sent back."""
    asked = parse(packet)
    if not isinstance(asked, Datagram) or asked.destination_port != port or _is_group(asked.destination):
        return None
    return asked.reply().emit(), _text(asked.source)


def answer_message(message: bytes) -> tuple[bytes, str]:
    """For `respond` on `Messages`: each goes back to where it came from."""
    return message, unpack_address(message[:ADDRESS_LEN])[0]


class Probe(Protocol):
    """What is asked, and how its answer is known."""

    sources: Sequence[str]
    """Who asks."""

    def packet(self, source: int, sequence: int) -> bytes: ...

    def match(self, packet: bytes) -> tuple[int, int] | None:
        """Source and sequence of what a packet answers; None when it answers nothing of ours."""


class EchoProbe:
    """Forged echo requests, from several sources."""

    def __init__(self, sources: Sequence[str], destination: str, size: int) -> None:
        """``size``: bytes of payload."""
        self.sources = sources
        self._packed = [ip_address(source).packed for source in sources]
        self._destination = ip_address(destination).packed
        self._identifier = secrets.randbits(16)
        self._payload = _pattern(size)

    def packet(self, source: int, sequence: int) -> bytes:
        number = sequence & 0xFFFF
        return Echo(self._packed[source], self._destination, self._identifier, number, self._payload).emit()

    def match(self, packet: bytes) -> tuple[int, int] | None:
        reply = parse(packet)
        if not isinstance(reply, Echo) or not reply.is_reply or reply.source != self._destination:
            return None
        if reply.identifier != self._identifier or reply.payload != self._payload:
            return None
        return _index(self._packed, reply.destination), reply.sequence


class DatagramProbe:
    """Forged UDP datagrams, from several sources."""

    def __init__(self, sources: Sequence[str], destination: str, port: int, size: int) -> None:
        self.sources = sources
        self._packed = [ip_address(source).packed for source in sources]
        self._destination, self._port = ip_address(destination).packed, port
        self._own_port = secrets.randbelow(16_384) + 49_152
        self._content = _Content(size)

    def packet(self, source: int, sequence: int) -> bytes:
        payload = self._content.emit(source, sequence)
        return Datagram(self._packed[source], self._own_port, self._destination, self._port, payload).emit()

    def match(self, packet: bytes) -> tuple[int, int] | None:
        reply = parse(packet)
        if not isinstance(reply, Datagram) or reply.destination_port != self._own_port:
            return None
        return self._content.parse(reply.payload)


class MessageProbe:
    """Datagrams through a network stack, for `Messages`."""

    def __init__(self, source: str, destination: str, port: int, size: int) -> None:
        self.sources: Sequence[str] = [source]
        self._address = pack_address(destination, port)
        self._content = _Content(size)

    def packet(self, source: int, sequence: int) -> bytes:
        return self._address + self._content.emit(source, sequence)

    def match(self, packet: bytes) -> tuple[int, int] | None:
        return self._content.parse(packet[ADDRESS_LEN:])


@dataclass
class Asked:
    """What a prober saw. ``sent`` and ``received`` have a place for each source."""

    sources: Sequence[str]
    sent: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    duplicates: int = 0
    other: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_LATENCIES))
    """Seconds, the latest."""

    def __post_init__(self) -> None:
        self.sent = [0] * len(self.sources)
        self.received = [0] * len(self.sources)

    def describe(self) -> dict[str, Any]:
        sent, received = sum(self.sent), sum(self.received)
        each = zip(self.sources, self.sent, self.received, strict=True)
        return {
            "sent": sent,
            "received": received,
            "lost": sent - received,
            "duplicates": self.duplicates,
            "other": self.other,
            "sources": {source: {"sent": asked, "received": got} for source, asked, got in each},
            "latency": self._latency(),
        }

    def _latency(self) -> dict[str, float] | None:
        if not self.latencies:
            return None
        ordered = sorted(self.latencies)
        high = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
        found = {"min": ordered[0], "median": statistics.median(ordered), "p99": high, "max": ordered[-1]}
        return {what: round(seconds, 7) for what, seconds in found.items()}


@dataclass(frozen=True, slots=True)
class Pace:
    """``count`` rounds (None: no end), one every ``interval`` seconds; one that gets no answer in ``timeout`` is lost.

    At an interval of 0 a round follows when the one before is answered, or lost.
    """

    count: int | None = None
    interval: float = 1.0
    timeout: float = 1.0


def ask(
    packets: Packets, probe: Probe, pace: Pace, seen: Asked, on_reply: Callable[[str, int, float], None] | None = None
) -> None:
    """In each round every source asks once. ``on_reply`` is told source, sequence (from 1) and seconds.

    Raises DeviceError (ENODEV) when the device ends.
    """
    waiting: dict[tuple[int, int], tuple[float, int]] = {}
    rounds, following = 0, time.monotonic()
    while True:
        now = time.monotonic()
        while waiting and now - next(iter(waiting.values()))[0] >= pace.timeout:
            del waiting[next(iter(waiting))]
        is_over = pace.count is not None and rounds == pace.count
        if is_over and not waiting:
            return
        if not is_over and now >= following and (pace.interval or not waiting):
            rounds += 1
            for source in range(len(probe.sources)):
                waiting[source, rounds & 0xFFFF] = time.monotonic(), rounds
                packets.write(probe.packet(source, rounds))
                seen.sent[source] += 1
            following = max(following + pace.interval, now)
            continue
        until = [next(iter(waiting.values()))[0] + pace.timeout] if waiting else []
        if not is_over and (pace.interval or not waiting):
            until.append(following)
        try:
            packet = _read(packets, max(min(until) - now, 0))
        except TimeoutError:
            continue
        arrived = time.monotonic()
        if packet == b"":
            raise DeviceError(errno.ENODEV, "the device has ended")
        key = probe.match(packet) if packet else None
        if key is None:
            seen.other += 1
        elif key not in waiting:
            seen.duplicates += 1
        else:
            sent, number = waiting.pop(key)
            seen.received[key[0]] += 1
            seen.latencies.append(arrived - sent)
            if on_reply is not None:
                on_reply(probe.sources[key[0]], number, arrived - sent)


def _read(packets: Packets, timeout: float | None) -> bytes | None:
    """``b""`` also where the device was deleted, which an end in memory and the kernel's have an error for."""
    try:
        return packets.read(timeout)
    except DeviceError as error:
        if error.errno == errno.EBADFD:
            return b""
        raise


class _Content:
    """A payload that says who sent it and when, and shows whether it came back whole."""

    def __init__(self, size: int) -> None:
        self._nonce = secrets.token_bytes(8)
        self._padding = _pattern(max(size - 12, 0))

    def emit(self, source: int, sequence: int) -> bytes:
        return self._nonce + struct.pack("!HH", source, sequence & 0xFFFF) + self._padding

    def parse(self, payload: bytes) -> tuple[int, int] | None:
        if len(payload) < 12 or payload[:8] != self._nonce or payload[12:] != self._padding:
            return None
        source, sequence = struct.unpack_from("!HH", payload, 8)
        return source, sequence


def _index(packed: Sequence[bytes], address: bytes) -> int:
    return packed.index(address) if address in packed else -1


def _pattern(size: int) -> bytes:
    return bytes(range(256)) * (size // 256) + bytes(range(size % 256))


def _is_group(address: bytes) -> bool:
    return ip_address(address).is_multicast or address == b"\xff" * 4


def _text(address: bytes) -> str:
    return str(ip_address(address))


MAX_SOURCES = 1024
MAX_LATENCIES = 100_000
