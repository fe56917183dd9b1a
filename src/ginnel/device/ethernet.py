"""IP packets through the application end of a TAP device: frames, ARP (RFC 826), neighbour discovery (RFC 4861).

What a program needs that forges packets: it answers for whatever address it is asked for, and asks
for those it sends to.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from ginnel.device.base import DeviceEnd
from ginnel.device.capture import CapturedEnd
from ginnel.device.forge import ICMPV6, checksum, emit_ip, parse_ip


class EthernetEnd:
    """Reads and writes IP packets where a device carries frames.

    It answers for every address but those in whose name it is asked. `dropped` counts packets that waited in vain
    for a neighbour, or found no room to wait, and what the device refused of it while it was reading.
    """

    def __init__(self, end: DeviceEnd | CapturedEnd) -> None:
        self._end = end
        self._mac = bytes([0x02]) + secrets.token_bytes(5)
        self._neighbours: dict[bytes, bytes] = {}
        self._waiting: dict[bytes, _Wanted] = {}
        self.dropped = 0

    def read(self, timeout: float | None = None) -> bytes | None:
        """The IP packet of the next frame, None when it holds none for us, ``b""`` at the device's end."""
        frame = self._read_frame(timeout)
        if not frame:
            return b""
        destination, source, kind, payload = frame[:6], frame[6:12], frame[12:14], frame[14:]
        if not destination[0] & 1 and destination != self._mac:
            return None
        if kind == ARP:
            self._answer_arp(payload)
            return None
        if kind not in (IPV4, IPV6):
            return None
        parsed = parse_ip(payload)
        if parsed is None:
            return None
        sender, _, protocol, message = parsed
        if protocol == ICMPV6 and message[:1] in (SOLICITATION, ADVERTISEMENT):
            self._answer_discovery(sender, message)
            return None
        if not source[0] & 1:
            self._learn(sender, source)
        return payload

    def write(self, packet: bytes) -> int:
        """Sends a packet, or keeps it until its destination's address is known. The newest few are kept, and dropped
        when nobody answers three times (RFC 4861, MAX_MULTICAST_SOLICIT). OSError as the device's own."""
        parsed = parse_ip(packet)
        if parsed is None:
            raise ValueError("not an IP packet")
        source, destination, _, _ = parsed
        if destination in self._neighbours:
            self._end.write(self._frame(self._neighbours[destination], packet))
            return len(packet)
        if destination not in self._waiting and len(self._waiting) >= MAX_NEIGHBOURS:
            self.dropped += 1
            return len(packet)
        wanted = self._waiting.setdefault(destination, _Wanted(source))
        wanted.packets.append(packet)
        if len(wanted.packets) > MAX_WAITING:
            del wanted.packets[0]
            self.dropped += 1
        if wanted.asked == 0:
            self._ask_for(destination, wanted)
        return len(packet)

    def _read_frame(self, timeout: float | None) -> bytes:
        """Asks again meanwhile for the addresses that packets wait for: the first request may have been lost."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            due = self._ask_again()
            left = min(due, until) - time.monotonic()
            try:
                return self._end.read(None if left == math.inf else max(left, 0))
            except TimeoutError:
                if time.monotonic() >= until:
                    raise

    def _ask_again(self) -> float:
        """When it is to be called again."""
        now = time.monotonic()
        for destination, wanted in list(self._waiting.items()):
            if now < wanted.next:
                continue
            if wanted.asked == MOST_ASKED:
                self.dropped += len(self._waiting.pop(destination).packets)
                continue
            with self._unasked():
                self._ask_for(destination, wanted)
        return min((wanted.next for wanted in self._waiting.values()), default=math.inf)

    @contextlib.contextmanager
    def _unasked(self) -> Iterator[None]:
        """For what is sent while somebody reads, who is not to be told that the device is down, and sees for himself
        that it has ended."""
        try:
            yield
        except OSError:
            self.dropped += 1

    def _ask_for(self, destination: bytes, wanted: _Wanted) -> None:
        wanted.asked += 1
        wanted.next = time.monotonic() + ASK_AGAIN
        source = wanted.source
        if len(destination) == 4:
            body = ARP_HEADER + b"\0\x01" + self._mac + source + bytes(6) + destination
            self._end.write(b"\xff" * 6 + self._mac + ARP + body)
            return
        group = bytes.fromhex("ff0200000000000000000001ff") + destination[13:]
        message = SOLICITATION + bytes(7) + destination + b"\x01\x01" + self._mac
        self._end.write(b"\x33\x33" + group[12:] + self._mac + IPV6 + _discovery(source, group, message))

    def _answer_arp(self, body: bytes) -> None:
        if len(body) < 28 or body[:6] != ARP_HEADER:
            return
        operation, mac, sender, target = body[6:8], body[8:14], body[14:18], body[24:28]
        if not any(sender):
            # It looks whether its own address is taken, and it is not.
            return
        self._learn(sender, mac)
        if operation == b"\0\x01" and target != sender:
            answer = ARP_HEADER + b"\0\x02" + self._mac + target + mac + sender
            with self._unasked():
                self._end.write(mac + self._mac + ARP + answer)

    def _answer_discovery(self, sender: bytes, message: bytes) -> None:
        target, options = message[8:24], message[24:]
        if len(message) < 32 or options[1] != 1:
            # Without the other's link-layer address: it looks whether its own is taken, and it is not.
            return
        mac = options[2:8]
        if message[:1] == ADVERTISEMENT:
            self._learn(target, mac)
        elif any(sender) and target != sender:
            self._learn(sender, mac)
            answer = ADVERTISEMENT + bytes(3) + b"\x60" + bytes(3) + target + b"\x02\x01" + self._mac
            with self._unasked():
                self._end.write(mac + self._mac + IPV6 + _discovery(target, sender, answer))

    def _learn(self, address: bytes, mac: bytes) -> None:
        if address not in self._neighbours and len(self._neighbours) >= MAX_NEIGHBOURS:
            self._neighbours.pop(next(iter(self._neighbours)))
        self._neighbours[address] = mac
        wanted = self._waiting.pop(address, None)
        for packet in wanted.packets if wanted is not None else ():
            with self._unasked():
                self._end.write(self._frame(mac, packet))

    def _frame(self, mac: bytes, packet: bytes) -> bytes:
        return mac + self._mac + (IPV6 if packet[0] >> 4 == 6 else IPV4) + packet


@dataclass(slots=True)
class _Wanted:
    """An address that packets wait for."""

    source: bytes
    """In whose name it is asked for."""
    packets: list[bytes] = field(default_factory=list)
    asked: int = 0
    next: float = 0.0


def _discovery(source: bytes, destination: bytes, message: bytes) -> bytes:
    pseudo = source + destination + struct.pack("!I3xB", len(message), ICMPV6)
    message = message[:2] + checksum(pseudo + message) + message[4:]
    packet = emit_ip(source, destination, ICMPV6, message)
    # Only from the same link: a router would have lowered it.
    return packet[:7] + b"\xff" + packet[8:]


IPV4 = b"\x08\x00"
ARP = b"\x08\x06"
IPV6 = b"\x86\xdd"
ARP_HEADER = bytes.fromhex("000108000604")
SOLICITATION = b"\x87"
ADVERTISEMENT = b"\x88"
MAX_NEIGHBOURS = 1024
MAX_WAITING = 16
MOST_ASKED = 3
ASK_AGAIN = 0.5
"""Seconds."""
