"""What a server answers strangers without keeping anything: session ids that prove an address, and limits.

A server's session id is an HMAC of the client's session id, address and port, and of the time
(OpenVPN ``ssl_pkt.c``, calculate_session_id_hmac). Who repeats it in an ACK has received it at that address.
"""

from __future__ import annotations

import hmac
import struct
from collections import OrderedDict

from ginnel.openvpn.events import Path
from ginnel.openvpn.packets import SESSION_ID_SIZE


class Cookies:
    """Session ids of one server. Time goes in slots of half a ``hand_window``; the current slot's is given out,
    and those of it and the two before are accepted."""

    def __init__(self, key: bytes, hand_window: float) -> None:
        """``key`` is 32 random bytes."""
        # Keyed once: each cookie begins with a copy.
        self._keyed = hmac.new(key, digestmod="sha256")
        self._slot = max(hand_window / 2, 1.0)

    @property
    def lifetime(self) -> float:
        """Seconds after which a cookie has surely lost its value."""
        return 3 * self._slot

    def make(self, session_id: bytes, path: Path, now: float) -> bytes:
        """The cookie for a client's session id."""
        return self._compute(session_id, path, int(now // self._slot))

    def check(self, cookie: bytes, session_id: bytes, path: Path, now: float) -> bool:
        current = int(now // self._slot)
        # All three are computed, so that the time taken says nothing.
        found = [
            hmac.compare_digest(cookie, self._compute(session_id, path, current - age)) for age in range(VALID_SLOTS)
        ]
        return any(found)

    def _compute(self, session_id: bytes, path: Path, slot: int) -> bytes:
        _, address, port = path
        mac = self._keyed.copy()
        mac.update(struct.pack(">qH", slot, port) + session_id + address.encode())
        return mac.digest()[:SESSION_ID_SIZE]


class Limiter:
    """So many within so many seconds, counted from the first one on (OpenVPN ``reflect_filter.c``)."""

    def __init__(self, most: int, period: float) -> None:
        self._most = most
        self._period = period
        self._began = float("-inf")
        self._count = 0

    def exhausted(self, now: float) -> bool:
        return now <= self._began + self._period and self._count >= self._most

    def allow(self, now: float) -> bool:
        """Counts one, if there is room for it."""
        if now > self._began + self._period:
            self._began, self._count = now, 0
        if self._count >= self._most:
            return False
        self._count += 1
        return True

    def give_back(self) -> None:
        """One that was allowed turned out to be wanted, and doesn't count."""
        self._count = max(0, self._count - 1)


class Limiters:
    """One for each client's key, so that whoever has a key keeps out nobody with another; those of `MAX_HOLDERS` keys
    that were used last."""

    def __init__(self, most: int, period: float) -> None:
        self._limit = most, period
        self._limiters: OrderedDict[bytes, Limiter] = OrderedDict()

    def exhausted(self, holder: bytes, now: float) -> bool:
        limiter = self._limiters.get(holder)
        return limiter is not None and limiter.exhausted(now)

    def allow(self, holder: bytes, now: float) -> bool:
        """For a holder whose packet is authentic."""
        limiter = self._limiters.setdefault(holder, Limiter(*self._limit))
        self._limiters.move_to_end(holder)
        if len(self._limiters) > MAX_HOLDERS:
            self._limiters.popitem(last=False)
        return limiter.allow(now)

    def give_back(self, holder: bytes) -> None:
        if (limiter := self._limiters.get(holder)) is not None:
            limiter.give_back()


VALID_SLOTS = 3
MAX_HOLDERS = 4096
