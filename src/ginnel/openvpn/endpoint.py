"""A server's many sessions behind one data plane: who is spoken to, and which packet is whose.

Like a session it does no I/O, and it has the same six verbs; events come with the number of their peer.

A stranger is answered without anything being kept (OpenVPN ``mudp.c``). Its reset gets a reset whose
session id is a cookie; only who repeats that within the next packets, and so receives at its address,
gets a session. What has no valid wrap is dropped without an answer, and so is everything else that a
stranger sends. The answer to a reset is stock's to the byte: without a wrap 26 bytes for 14, with
tls-auth and tls-crypt 12 more than came, with tls-crypt-v2 a fraction of it; ``connect_freq_initial``
bounds how many leave.

Two clients may come from one path one after the other, or one client may have lost its session: sessions
are found by path and the client's session id. A newcomer takes a path over when its tunnel opens, which
is after it has logged in; until then whoever was there stays. Control packets never move a session to
another path, only authenticated data does (`events.PeerFloat`), as in stock.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

from ginnel.errors import UnreachableError
from ginnel.openvpn import events
from ginnel.openvpn.cookies import Cookies, Limiter, Limiters
from ginnel.openvpn.events import Event, Path, Report
from ginnel.openvpn.packets import (
    ASK_FOR_WRAPPED_KEY,
    ControlPacket,
    Header,
    Opcode,
    PacketError,
)
from ginnel.openvpn.policy import First, Policy, SessionSettings
from ginnel.openvpn.session import Session
from ginnel.openvpn.strangers import origin
from ginnel.openvpn.tls_crypt_v2 import TlsCryptV2Server, holder, negotiates_early
from ginnel.openvpn.wrap import WITH_WRAPPED_KEY, ReplayError, UnauthenticatedError, Wrap, Wrapper

TurnedAway = Callable[[str, Path], None]
"""Somebody with a valid wrap got no session: which counter says so, and where the client is."""


class MakePolicy(Protocol):
    def __call__(self, *, peer: int, path: Path, unix_time: float) -> Policy:
        """A new client's policy. Its settings have the endpoint's wrap."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """``max_clients`` bounds sessions of all kinds, ``max_negotiating`` those whose tunnel isn't open yet, and
    ``max_negotiating_each`` those of them at one place (`strangers.origin`). The oldest makes way for a newcomer if it
    has had time enough for its handshake; else the newcomer comes again, as its packets do.

    ``connect_freq`` and ``connect_freq_initial`` are pairs (number, seconds), as the options: new sessions,
    and answers to strangers that did not lead to one. These are counted for each client's key of tls-crypt-v2, and for
    all other strangers together.
    """

    max_clients: int = 1024
    max_negotiating: int = 256
    max_negotiating_each: int = 64
    connect_freq: tuple[int, float] | None = None
    connect_freq_initial: tuple[int, float] = (100, 10.0)


@dataclass(slots=True)
class _Entry:
    session: Session
    path: Path
    client_id: bytes
    began: float
    place: str
    due: float | None = None
    open: bool = False


class Endpoint:
    """See the module."""

    def __init__(
        self,
        settings: SessionSettings,
        make_policy: MakePolicy,
        *,
        random: Callable[[int], bytes],
        unix_time: float,
        now: float,
        limits: Limits | None = None,
        proven: Callable[[Path], bool] = lambda path: False,
        turned_away: TurnedAway = lambda what, path: None,
    ) -> None:
        """``unix_time`` is the wall clock's time at ``now``. ``proven`` says of which paths the address needs no
        proof: TCP connections."""
        self._settings = settings
        self._make_policy = make_policy
        self._random = random
        self._clock = unix_time - now
        self._limits = limits or Limits()
        self._proven = proven
        self._turned_away = turned_away
        self._cookies = Cookies(random(32), settings.hand_window)
        self._answers_left = Limiters(*self._limits.connect_freq_initial)
        self._sessions_left = None if self._limits.connect_freq is None else Limiter(*self._limits.connect_freq)
        # A script that looks at metadata runs for those alone whose address is proven.
        wrap = settings.wrap
        self._first_opcodes = FIRST_OPCODES
        if isinstance(wrap, TlsCryptV2Server):
            self._strangers_wrap: Wrap = replace(wrap, verify=None)
        else:
            self._strangers_wrap = wrap
            self._first_opcodes -= WITH_WRAPPED_KEY
        self._entries: dict[int, _Entry] = {}
        self._at: dict[Path, dict[bytes, int]] = {}
        self._negotiating = 0
        # The same by place; a client that moves is counted where it came from.
        self._places: Counter[str] = Counter()
        self._spent: OrderedDict[tuple[Path, bytes], float] = OrderedDict()
        self._next_peer = 0
        self._ending = False
        self._timers: list[tuple[float, int]] = []
        self._touched: dict[int, None] = {}
        self._answers: deque[tuple[bytes, Path]] = deque()
        self._events: deque[tuple[int, Event]] = deque()
        self._statistics = dict.fromkeys(COUNTERS, 0)

    # The owner's side.

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        """Takes a control packet. What is nobody's is dropped and counted."""
        self._count("received")
        try:
            header = Header.parse(data)
            peer = self._at.get(path, {}).get(header.session_id)
            if peer is None:
                self._meet(data, header, path, now)
                return
        except ReplayError:
            self._count("replayed")
        except UnauthenticatedError:
            self._count("unauthenticated")
        except PacketError:
            self._count("malformed")
        else:
            self._entries[peer].session.receive_datagram(data, path, now)
            self.touch(peer, now)

    def data_event(self, report: Report, now: float) -> None:
        """Takes a report of the data plane."""
        if isinstance(report, events.PathClosed):
            peers = list(self._at.get(report.path, {}).values())
        else:
            peers = [report.peer] if report.peer in self._entries else []
        for peer in peers:
            if isinstance(report, events.PeerFloat):
                self._move(peer, report.path, now)
            self._entries[peer].session.data_event(report, now)
            self.touch(peer, now)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Path]]:
        """Takes everything that is due now, of all sessions."""
        datagrams = list(self._answers)
        self._answers.clear()
        for peer in self._take_touched():
            entry = self._entries[peer]
            datagrams += entry.session.datagrams_to_send(now)
            entry.due = entry.session.get_timer()
            if entry.due is not None:
                heapq.heappush(self._timers, (entry.due, peer))
        self._prune()
        self._statistics["sent"] += len(datagrams)
        return datagrams

    def get_timer(self) -> float | None:
        """When to call `handle_timer`, None for not at all."""
        while self._timers and not self._is_due(*self._timers[0]):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def handle_timer(self, now: float) -> None:
        """Does what is due. Packets that are due again come out of `datagrams_to_send`."""
        while (time := self.get_timer()) is not None and time <= now:
            _, peer = heapq.heappop(self._timers)
            entry = self._entries[peer]
            entry.due = None
            entry.session.handle_timer(now)
            self.touch(peer, now)

    def next_event(self) -> tuple[int, Event] | None:
        """The next event with its peer. After `events.Closed` the number is free."""
        return self._events.popleft() if self._events else None

    def computed(self, peer: int, session: Session, now: float) -> None:
        """What a session's `events.Compute` asked for is done. Harmless for one that is over."""
        if self.session(peer) is session:
            session.computed(now)
            self.touch(peer, now)

    def end_admission(self) -> None:
        """From now on a stranger gets no answer: one who knew of us already finds our successor sooner."""
        self._ending = True

    def touch(self, peer: int, now: float) -> None:
        """Something was done with this session, by its policy, say: it may have events and datagrams."""
        if (entry := self._entries.get(peer)) is not None:
            self._touched[peer] = None
            self._collect(peer, entry, now)

    @property
    def sessions(self) -> Mapping[int, Session]:
        return MappingProxyType({peer: entry.session for peer, entry in self._entries.items()})

    def session(self, peer: int) -> Session | None:
        entry = self._entries.get(peer)
        return None if entry is None else entry.session

    def statistics(self) -> dict[str, int]:
        """Counts since the start, and how many sessions there are; what strangers sent in vain by reason."""
        return self._statistics | {"sessions": len(self._entries), "negotiating": self._negotiating}

    # Strangers.

    def _meet(self, data: bytes, header: Header, path: Path, now: float) -> None:
        """A packet of no session: an answer, a session, or nothing. Raises `PacketError`."""
        if self._ending or header.key_id != 0 or header.opcode not in self._first_opcodes:
            self._count("strays")
            return
        limited = header.opcode in RESETS and not self._proven(path)
        knocker = holder(data)
        if limited and (self._answers_left.exhausted(knocker, now) or len(self._answers) >= MAX_ANSWERS):
            # Before any cryptography: a flood costs next to nothing.
            self._count("over_connect_freq_initial")
            return
        # The packet that repeats a cookie follows a reset of ours.
        sent = int(header.opcode not in RESETS)
        wrapper = self._strangers_wrap.start(server=True, unix_time=self._clock + now, now=now, sent=sent)
        first = First(wrapper, ControlPacket.parse(wrapper.unwrap(data), header))
        if header.opcode not in RESETS:
            self._admit(first, knocker, path, now)
        elif not limited:
            self._create(first, path, now)
        elif self._answers_left.allow(knocker, now):
            self._greet(data, first, path, now)

    def _greet(self, data: bytes, first: First, path: Path, now: float) -> None:
        """An authentic reset: a cookie, or for clients that can't repeat their wrapped key a session, where
        that is allowed."""
        wrap, header = self._settings.wrap, first.packet.header
        if header.opcode is not Opcode.HARD_RESET_CLIENT_V3 or negotiates_early(data):
            self._answer(header, first.wrap, path, now)
        elif isinstance(wrap, TlsCryptV2Server) and not wrap.force_cookie:
            self._create(first, path, now)
        else:
            self._turn_away("no_early_negotiation", path)

    def _answer(self, header: Header, wrapper: Wrapper, path: Path, now: float) -> None:
        cookie = self._cookies.make(header.session_id, path, now)
        ask = ASK_FOR_WRAPPED_KEY if header.opcode is Opcode.HARD_RESET_CLIENT_V3 else b""
        reset = Header(Opcode.HARD_RESET_SERVER_V2, 0, cookie)
        packet = ControlPacket(reset, (0,), header.session_id, 0, ask)
        self._answers.append((wrapper.wrap(packet.emit(), now), path))
        self._count("answered")

    def _admit(self, first: First, knocker: bytes, path: Path, now: float) -> None:
        """Makes a session for who repeats its cookie in one of its first packets."""
        packet = first.packet
        client_id, cookie = packet.header.session_id, packet.peer_session_id
        early = max(packet.acks, default=0) <= 1 and (packet.packet_id or 0) <= 1
        if cookie is None or not early or not self._cookies.check(cookie, client_id, path, now):
            self._count("bad_cookies")
        elif self._spent.get((path, client_id), now) > now:
            self._count("spent_cookies")
        elif self._create(first, path, now):
            self._answers_left.give_back(knocker)
            self._spend(path, client_id, now)

    def _create(self, first: First, path: Path, now: float) -> bool:
        """Raises `PacketError` for whom the wrap refuses now that the address is known."""
        place = origin(path[1])
        if len(self._entries) >= self._limits.max_clients or not self._make_room(place, now):
            self._turn_away("full", path)
            return False
        if self._sessions_left is not None and not self._sessions_left.allow(now):
            self._turn_away("over_connect_freq", path)
            return False
        if isinstance(wrap := self._settings.wrap, TlsCryptV2Server):
            wrap.check(first.wrap)
        peer = self._free_number()
        policy = self._make_policy(peer=peer, path=path, unix_time=self._clock + now)
        session = Session(policy, path=path, random=self._random, now=now, first=first)
        client_id = first.packet.header.session_id
        self._entries[peer] = _Entry(session, path, client_id, now, place)
        self._at.setdefault(path, {})[client_id] = peer
        self._count_negotiating(place, 1)
        self._count("created")
        self.touch(peer, now)
        return True

    def _make_room(self, place: str, now: float) -> bool:
        """Whether another may negotiate. Who makes way is no client on its way in: that takes a moment."""
        own = self._places[place] >= self._limits.max_negotiating_each
        if not own and self._negotiating < self._limits.max_negotiating:
            return True
        for peer, entry in self._entries.items():
            if entry.began > now - HANDSHAKE:
                break
            if not entry.session.negotiated and (not own or entry.place == place):
                self._count("crowded_out")
                entry.session.finish(UnreachableError("it did not go on, and others came"), retry=False)
                self._collect(peer, entry, now)
                return True
        return False

    def _spend(self, path: Path, client_id: bytes, now: float) -> None:
        """A recording of the packet that led to a session leads to no other one."""
        self._spent[path, client_id] = now + self._cookies.lifetime
        while len(self._spent) > MAX_SPENT or next(iter(self._spent.values())) <= now:
            self._spent.popitem(last=False)

    # Sessions.

    def _collect(self, peer: int, entry: _Entry, now: float) -> None:
        """Takes a session's events; a newcomer whose tunnel opens takes its path over."""
        while (event := entry.session.next_event()) is not None:
            if isinstance(event, events.NewPeer):
                self._count_negotiating(entry.place, -1)
                entry.open = True
                self._displace(entry.path, peer, now)
            self._events.append((peer, event))
            if isinstance(event, events.Closed):
                self._touched.pop(peer, None)
                self._answers.extend(entry.session.datagrams_to_send(now))
                self._forget(peer, entry)

    def _displace(self, path: Path, newcomer: int, now: float) -> None:
        for peer in [peer for peer in self._at[path].values() if peer != newcomer]:
            entry = self._entries[peer]
            entry.session.finish(UnreachableError("the client began a new session"), retry=False)
            self._collect(peer, entry, now)

    def _forget(self, peer: int, entry: _Entry) -> None:
        del self._entries[peer]
        if not entry.open:
            self._count_negotiating(entry.place, -1)
        self._leave(entry)

    def _count_negotiating(self, place: str, change: int) -> None:
        self._negotiating += change
        self._places[place] += change
        if not self._places[place]:
            del self._places[place]

    def _leave(self, entry: _Entry) -> None:
        there = self._at[entry.path]
        del there[entry.client_id]
        if not there:
            del self._at[entry.path]

    def _move(self, peer: int, path: Path, now: float) -> None:
        entry = self._entries[peer]
        other = self._at.get(path, {}).get(entry.client_id, peer)
        if other != peer:
            # Clients choose their session ids; who sends authentic data there has the better claim.
            self._entries[other].session.finish(UnreachableError("another client has this session id"), retry=False)
            self._collect(other, self._entries[other], now)
        self._leave(entry)
        entry.path = path
        self._at.setdefault(path, {})[entry.client_id] = peer

    def _free_number(self) -> int:
        while self._next_peer in self._entries:
            self._next_peer = (self._next_peer + 1) % NO_PEER_ID
        peer = self._next_peer
        self._next_peer = (peer + 1) % NO_PEER_ID
        return peer

    def _take_touched(self) -> list[int]:
        touched = [peer for peer in self._touched if peer in self._entries]
        self._touched.clear()
        return touched

    def _is_due(self, time: float, peer: int) -> bool:
        entry = self._entries.get(peer)
        return entry is not None and entry.due == time

    def _prune(self) -> None:
        """Entries that no longer count stay in the heap until they are on top, or too many."""
        if len(self._timers) > 2 * len(self._entries) + 100:
            self._timers = [item for item in set(self._timers) if self._is_due(*item)]
            heapq.heapify(self._timers)

    def _turn_away(self, what: str, path: Path) -> None:
        self._count(what)
        self._turned_away(what, path)

    def _count(self, what: str) -> None:
        self._statistics[what] += 1


RESETS = frozenset({Opcode.HARD_RESET_CLIENT_V2, Opcode.HARD_RESET_CLIENT_V3})
FIRST_OPCODES = RESETS | {Opcode.CONTROL_V1, Opcode.ACK_V1, Opcode.CONTROL_WKC_V1}
# More than an owner lets pile up between two calls of `datagrams_to_send`.
MAX_ANSWERS = 1000
MAX_SPENT = 4096
# Seconds that a handshake may take before others need the place more.
HANDSHAKE = 5.0
# In P_DATA_V2's 24 bits this number stands for no peer.
NO_PEER_ID = 0xFFFFFF
COUNTERS = (
    "received",
    "sent",
    "answered",
    "created",
    "malformed",
    "unauthenticated",
    "replayed",
    "strays",
    "bad_cookies",
    "spent_cookies",
    "no_early_negotiation",
    "over_connect_freq_initial",
    "over_connect_freq",
    "full",
    "crowded_out",
)
