"""The data keys of one session: which are held, and with which one data goes out.

A finished negotiation's keys go into the *primary* slot and are installed for receiving at once; the
keys before them become the *lame duck*. A side is done as soon as its own packets are acknowledged, and
can't know whether its last ACKs arrived; a server may also still be waiting for a password check. So,
as in stock OpenVPN (``ssl.c``, tls_select_encryption_key), data goes on with the lame duck for a while:
for ``hand_window``, or half of ``reneg_sec`` where that is shorter, counted from the end of the
negotiation, which may have been a long one on a bad line.

But a stock peer drops its lame duck as soon as the next negotiation begins. When it is the peer that
begins, that is a trip before we can know, and so the shortest time that it took between two of its own
counts like our ``reneg_sec``. When we begin, data moves over first, unless the primary keys are so new
that the peer may lack them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ginnel.openvpn import events
from ginnel.openvpn.data_format import DataFormat
from ginnel.openvpn.events import Event


@dataclass(frozen=True, slots=True)
class DataKey:
    handle: int
    key_id: int
    started: float


class KeySlots:
    """Commands come out through ``emit``. Nothing happens before `start`."""

    def __init__(
        self, peer: int, *, hand_window: float, reneg_sec: float, tran_window: float, emit: Callable[[Event], None]
    ) -> None:
        self.primary: DataKey | None = None
        self._peer = peer
        self._hand_window = hand_window
        self._reneg_sec = reneg_sec
        self._tran_window = tran_window
        self._emit = emit
        self._lame_duck: DataKey | None = None
        self._sending: DataKey | None = None
        self._handles = 0
        self._peers_pace = float("inf")
        self._settled = float("-inf")
        self._swap_at: float | None = None
        self._bury_at: float | None = None

    def install(self, key_id: int, started: float, form: DataFormat, keys: tuple[bytes, bytes]) -> DataKey:
        """Holds a pair of keys (encrypt, decrypt) for receiving. ``started``: when their negotiation did."""
        self._handles += 1
        self._emit(
            events.NewKey(self._peer, self._handles, key_id, form.cipher, *keys, auth=form.auth, epochs=form.epochs)
        )
        return DataKey(self._handles, key_id, started)

    def start(self, key: DataKey, now: float) -> None:
        """The first keys: data goes out with them at once."""
        self.primary = self._sending = key
        self._settled = now
        self._emit(events.Swap(self._peer, key.handle))

    def rotate(self, key_id: int, started: float, form: DataFormat, keys: tuple[bytes, bytes], now: float) -> None:
        """A renegotiation's keys become the primary ones."""
        self._bury_lame_duck()
        self._lame_duck = self.primary
        self.primary = self.install(key_id, started, form, keys)
        self._settled = now
        self._swap_at = now + self._delay()
        self._bury_at = max(now, started + self._tran_window)

    def swap(self) -> None:
        """Sends with the primary keys from now on: the peer has them."""
        self._swap_at = None
        if self.primary is not None and self._sending != self.primary:
            self._sending = self.primary
            self._emit(events.Swap(self._peer, self.primary.handle))
            self._emit(events.Rekeyed(self.primary.key_id))

    def peer_begins(self, interval: float) -> None:
        """The peer begins the next negotiation, so long after the last one began."""
        self._peers_pace = min(self._peers_pace, interval)
        self.swap()

    def we_begin(self, now: float) -> None:
        if now >= self._settled + SETTLING:
            self.swap()

    def get_timer(self) -> float | None:
        if self._swap_at is None:
            return self._bury_at
        return self._swap_at if self._bury_at is None else min(self._swap_at, self._bury_at)

    def handle_timer(self, now: float) -> None:
        if self._swap_at is not None and self._swap_at <= now:
            self.swap()
        if self._bury_at is not None and self._bury_at <= now:
            self._bury_lame_duck()

    def _delay(self) -> float:
        pace = self._peers_pace
        return min(
            self._hand_window,
            self._reneg_sec / 2 or float("inf"),
            max(pace / 2, min(SETTLING, pace - BEFORE_THE_NEXT)),
        )

    def _bury_lame_duck(self) -> None:
        self.swap()
        self._bury_at = None
        if self._lame_duck is not None:
            self._emit(events.DelKey(self._peer, self._lame_duck.handle))
            self._lame_duck = None


# Time for a last ACK that got lost to be asked for twice again.
SETTLING = 10.0
# A stock peer counts whole seconds, and may be one early.
BEFORE_THE_NEXT = 2.0
