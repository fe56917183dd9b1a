"""Reliable, ordered delivery over datagrams, for one negotiation (OpenVPN ``reliable.c``).

Packet ids count from 0 in either direction. A sender has at most `SEND_WINDOW` packets that are not
acknowledged, a receiver keeps at most `RECEIVE_WINDOW` that wait for an earlier one. Every packet is
acknowledged, replays too, as its first ACK may have been lost; one outside of the window is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from ginnel.openvpn.packets import MAX_ACKS, Opcode


@dataclass(slots=True)
class Outgoing:
    """A packet that waits for its ACK. ``next_try`` is when it is due; ``timeout`` doubles; ``tries``
    counts how often it was sent."""

    packet_id: int
    opcode: Opcode
    payload: bytes
    next_try: float
    timeout: float
    later_acks: int = 0
    tries: int = 0


class SendWindow:
    """What we sent and the peer didn't acknowledge yet, the oldest first."""

    def __init__(self, timeout: float, next_id: int = 0) -> None:
        self._timeout = timeout
        self._next_id = next_id
        self._waiting: dict[int, Outgoing] = {}

    @property
    def empty(self) -> bool:
        return not self._waiting

    @property
    def next_id(self) -> int:
        """The number of the packet that is pushed next."""
        return self._next_id

    @property
    def room(self) -> int:
        """How many packets may follow now; the window starts at the oldest without an ACK."""
        return SEND_WINDOW - (self._next_id - next(iter(self._waiting), self._next_id))

    def push(self, opcode: Opcode, payload: bytes, now: float) -> None:
        """Takes a packet that is due at once. The caller looks at `room` first."""
        self._waiting[self._next_id] = Outgoing(self._next_id, opcode, payload, now, self._timeout)
        self._next_id += 1

    def hurry(self, timeout: float) -> None:
        """What is pushed from now on is sent again after so many seconds at most."""
        self._timeout = min(self._timeout, timeout)

    def acknowledge(self, acks: tuple[int, ...]) -> None:
        """Forgets what arrived; ids that we never sent change nothing."""
        if not self._waiting:
            return
        for ack in acks:
            if ack >= self._next_id:
                continue
            self._waiting.pop(ack, None)
            for entry in self._waiting.values():
                if entry.packet_id < ack:
                    entry.later_acks += 1

    def take_due(self, now: float) -> Outgoing | None:
        """The oldest packet to send now. It is due again after its timeout, or early, when
        `EARLY_ACKS` ACKs of later packets say that it was lost."""
        for entry in self._waiting.values():
            if entry.next_try <= now or entry.later_acks >= EARLY_ACKS:
                entry.next_try = now + entry.timeout
                entry.timeout *= 2
                entry.later_acks = 0
                entry.tries += 1
                return entry
        return None

    def get_timer(self) -> float | None:
        return min((entry.next_try for entry in self._waiting.values()), default=None)

    def clear(self) -> None:
        """Counts everything as acknowledged."""
        self._waiting.clear()


class ReceiveWindow:
    """What came from the peer, put into order."""

    def __init__(self, next_id: int = 0) -> None:
        self._next_id = next_id
        self._waiting: dict[int, bytes] = {}

    @property
    def next_id(self) -> int:
        """The number of the packet that `take_next` would give."""
        return self._next_id

    def receive(self, packet_id: int, payload: bytes) -> bool:
        """True if the packet is to be acknowledged: it was kept, or is a replay."""
        if packet_id >= self._next_id + RECEIVE_WINDOW:
            return False
        if packet_id >= self._next_id:
            self._waiting.setdefault(packet_id, payload)
        return True

    def take_next(self) -> bytes | None:
        """The next payload in order, or None if it didn't come yet."""
        payload = self._waiting.pop(self._next_id, None)
        if payload is not None:
            self._next_id += 1
        return payload


class AckQueue:
    """ACKs to write. Those that went out lately go along again while there is room for them."""

    def __init__(self) -> None:
        self._due: list[int] = []
        self._recent: list[int] = []

    @property
    def due(self) -> bool:
        return bool(self._due)

    def add(self, packet_id: int) -> None:
        """Over eight waiting ones the ACK is left out; the peer will send again."""
        if packet_id not in self._due and len(self._due) < MAX_ACKS:
            self._due.append(packet_id)

    def take(self, limit: int) -> tuple[int, ...]:
        fresh, self._due = self._due[:limit], self._due[limit:]
        self._recent = (fresh + [ack for ack in self._recent if ack not in fresh])[:MAX_ACKS]
        return tuple(self._recent[:limit])


SEND_WINDOW = 6
RECEIVE_WINDOW = 12
EARLY_ACKS = 3
