"""One session with one peer, either role: control packets in and out, key slots, timers, events.

The owner moves datagrams, passes commands on to the data plane and reports back to the session, and
calls `handle_timer` at the time that `get_timer` names. After each call of `receive_datagram`,
`data_event`, `handle_timer`, `renegotiate` or `close` it carries out what `next_event` has, and then
sends what `datagrams_to_send` has: a peer that reads that it is let in may send data at once. After
`Closed` too, as a TLS alert may wait there.

Both sides may begin a renegotiation at once: each reset then answers the other, as both carry the
same next key id. A renegotiation that isn't done within ``hand_window`` ends the session.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable

from ginnel.errors import GinnelError, UnreachableError
from ginnel.openvpn import events
from ginnel.openvpn.cookies import Limiter
from ginnel.openvpn.events import Event, Path, Report
from ginnel.openvpn.handshake import Handshake, State
from ginnel.openvpn.packets import (
    HARD_RESETS,
    MAX_ACKS,
    NO_SESSION,
    SESSION_ID_SIZE,
    ControlPacket,
    Header,
    Opcode,
    PacketError,
)
from ginnel.openvpn.policy import First, Policy, Timer, Tunnel
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.slots import KeySlots
from ginnel.openvpn.tls import TlsError
from ginnel.openvpn.tls_crypt_v2 import TlsCryptV2Server
from ginnel.openvpn.wrap import (
    KEY_FILE_SIZE,
    RENEW_LABEL,
    WITH_WRAPPED_KEY,
    ReplayError,
    UnauthenticatedError,
    Wrapper,
    renew,
)


class Session:
    """See the module. Errors of the peer become a `Closed` event; nothing is raised for them."""

    def __init__(
        self,
        policy: Policy,
        *,
        path: Path,
        random: Callable[[int], bytes],
        now: float,
        first: First | None = None,
    ) -> None:
        """``path`` leads to the peer; ``random`` gives so many bytes."""
        self._policy = policy
        self._settings = policy.settings
        self._path = path
        self._started = now
        opened = first is not None and first.packet.header.opcode not in HARD_RESETS
        cookie = first.packet.peer_session_id if first is not None and opened else None
        self._session_id = _random_session_id(random) if cookie is None else cookie
        self._peer_session_id: bytes | None = None
        if first is None:
            self._wrap = self._settings.wrap.start(server=policy.server, unix_time=policy.unix_time, now=now)
        else:
            self._wrap = first.wrap
        self._next_wrap: Wrapper | None = None
        self._timers: dict[Timer, float] = {}
        self._events: deque[Event] = deque()
        self._statistics = dict.fromkeys(COUNTERS, 0)
        self._notices = Limiter(MAX_NOTICES, MINUTE)
        self._asks = Limiter(MAX_ASKS, MINUTE)
        self._tunnel: Tunnel | None = None
        self._slots = KeySlots(
            policy.peer,
            hand_window=self._settings.hand_window,
            reneg_sec=self._settings.reneg_sec,
            tran_window=self._settings.tran_window,
            emit=self._command,
        )
        self._bytes_counted = 0
        self._active_at = now
        self._closing: events.Closed | None = None
        # The data plane knows nothing of us any longer, or is told to.
        self._cut = False
        self._finish_on_ack = False
        self._closed = False
        self._drained = False
        policy.attach(self, random)
        self._previous: Handshake | None = None
        self._current = self._begin(0, now, opened=opened)
        if first is not None:
            self._guard(self._receive, first.packet, now)

    # The owner's side.

    def receive_datagram(self, data: bytes, path: Path, now: float) -> None:
        """Takes a control packet. What isn't our peer's is dropped and counted."""
        self._count("received")
        if self._closed:
            self._count("after_close")
            return
        try:
            packet = self._open(data, path)
        except ReplayError:
            self._count("replayed")
        except UnauthenticatedError:
            self._count("unauthenticated")
        except PacketError:
            self._count("malformed")
        else:
            if packet is not None:
                self._guard(self._receive, packet, now)

    def data_event(self, report: Report, now: float) -> None:
        """Takes a report of the data plane."""
        if self._closed:
            return
        match report:
            case events.DataMessage(data=data):
                if data == EXIT_NOTICE:
                    self.peer_left()
                else:
                    self._count("data_messages_ignored")
            case events.PeerExpired():
                self._expire()
            case events.PeerFloat(path=path):
                self._path = path
            case events.KeyLimit(handle=handle):
                if self._slots.primary is not None and handle == self._slots.primary.handle:
                    self.renegotiate(now)
                else:
                    self._slots.swap()
            case events.BytesCounted(total=total):
                self._check_activity(total, now)
            case events.PathClosed(path=path, errno=number):
                if path[0] == self._path[0]:
                    self.finish(UnreachableError(_why_closed(path, number)), retry=True)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Path]]:
        """Takes everything that is due now: first packets, packets again, ACKs."""
        datagrams: list[tuple[bytes, Path]] = []
        for handshake in self._negotiations():
            wrap = self._wrap_of(handshake.key_id)
            chunk, acks = self._room(wrap)
            while (packet := handshake.take_packet(self._peer_session_id, chunk, acks, now)) is not None:
                datagrams.append((wrap.wrap(packet.emit(), now), self._path))
        self._statistics["sent"] += len(datagrams)
        self._drained = self._closed
        return datagrams

    def get_timer(self) -> float | None:
        """When to call `handle_timer`, None for not at all."""
        if self._closed:
            return None
        times = [*self._timers.values()]
        for time in (self._slots.get_timer(), *[item.get_timer() for item in self._negotiations()]):
            if time is not None:
                times.append(time)
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        """Does what is due. Packets that are due again come out of `datagrams_to_send`."""
        if not self._closed:
            self._slots.handle_timer(now)
        for timer in Timer:
            if not self._closed and self._timers.get(timer, now + 1) <= now:
                del self._timers[timer]
                self._guard(self._fire, timer, now)

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    def computed(self, now: float) -> None:
        """What `events.Compute` asked for is done."""
        if not self._closed:
            self._guard(self._computed, now)

    def renegotiate(self, now: float) -> None:
        """Begins to make new keys. Nothing happens before there are any, or while it is under way."""
        if self._closing is None and not self._closed and self._is_settled_on_primary():
            self._slots.we_begin(now)
            self._renegotiate(now)

    def close(self, now: float, notify: bool = True) -> None:
        """Ends the session. With ``notify`` the peer is told first, if the tunnel is set up to do that:
        `Closed` then comes when the notice arrived, or was sent often enough."""
        if self._closed or self._closing is not None:
            return
        tunnel = self._tunnel
        if not notify or tunnel is None or tunnel.exit_notify == 0:
            self.finish(None, retry=False)
        elif tunnel.cc_exit:
            self._guard(self._current.write_last_message, b"EXIT")
            self.finish_settled(None, retry=False, within=tunnel.exit_notify, now=now)
        else:
            self._command(events.SendDataMessage(self._policy.peer, EXIT_NOTICE))
            self.finish_settled(
                None, retry=False, within=(tunnel.exit_notify - 1) * EXIT_NOTICE_INTERVAL, now=now, acknowledged=False
            )
            if tunnel.exit_notify > 1:
                self._timers[Timer.EXIT_NOTICE] = now + EXIT_NOTICE_INTERVAL

    def statistics(self) -> dict[str, int]:
        """Counts since the start; all but the first four are of what was dropped, by reason."""
        again = sum(handshake.retransmitted for handshake in self._negotiations())
        return self._statistics | {"retransmitted": self._statistics["retransmitted"] + again}

    # The policy's side.

    @property
    def path(self) -> Path:
        return self._path

    @property
    def last_heard(self) -> float:
        """When the last valid control packet came."""
        return self._current.last_heard

    @property
    def tunnel(self) -> Tunnel | None:
        return self._tunnel

    @property
    def negotiated(self) -> bool:
        """The first negotiation is done: both sides have shown their certificates."""
        return self._tunnel is not None or self._current.state is State.ACTIVE

    def send_message(self, text: str) -> None:
        """Sends a control message. Raises RemoteProtocolError if TLS failed."""
        self._current.write_message(text.encode())

    def go_on(self, now: float) -> None:
        """What a key message waited for is known."""
        self._guard(self._proceed, now)

    def set_timer(self, timer: Timer, at: float | None) -> None:
        if at is None:
            self._timers.pop(timer, None)
        else:
            self._timers[timer] = at

    def notice(self, text: str) -> None:
        """News for the log; what is more than a hundred in a minute is counted instead."""
        if self._notices.allow(self.last_heard):
            self._emit(events.Notice(text))
        else:
            self._count("notices")

    def ask(self, wish: events.Prompt | events.OpenUrl | events.AuthPending) -> None:
        """What the peer wants of the session's user; what is more than a few in a minute is counted instead."""
        if self._asks.allow(self.last_heard):
            self._emit(wish)
        else:
            self._count("asks")

    def answered(self) -> None:
        """The user did what was asked: that may be asked again at once."""
        self._asks.give_back()

    def open_tunnel(self, tunnel: Tunnel, push: PushReply, now: float) -> None:
        """The configuration is known: commands for the data plane, then `Established`."""
        self._tunnel = tunnel
        peer = self._policy.peer
        self._emit(events.NewPeer(peer, self._path, tunnel.peer_id))
        current = self._current
        key = self._slots.install(current.key_id, current.started, tunnel.data_format, self._data_keys(tunnel))
        self._set_peer(tunnel)
        self._slots.start(key, now)
        self._schedule_renegotiation(now)
        tls = self._current.tls
        if tunnel.dyn_tls_crypt:
            self._next_wrap = renew(
                self._wrap,
                tls.export(RENEW_LABEL, KEY_FILE_SIZE),
                server=self._policy.server,
                unix_time=self._policy.unix_time + now - self._started,
                now=now,
            )
        self._active_at = now
        if tunnel.inactive:
            self._timers[Timer.INACTIVE] = now + tunnel.inactive / ACTIVITY_CHECKS
        if tunnel.session_timeout:
            self._timers[Timer.SESSION_TIMEOUT] = now + tunnel.session_timeout
        self._emit(events.Established(push, tls.version, tls.cipher, tunnel.data_format.cipher, tls.peer_common_name))

    def peer_left(self) -> None:
        """The peer announced its end."""
        who = "the client" if self._policy.server else "the server"
        error = UnreachableError(f"{who} at {_show(self._path)} ended the session")
        self.finish(error, retry=not self._policy.server)

    def tell(self, news: events.Prompt | events.Reconfigured) -> None:
        """News for the session's user."""
        self._emit(news)

    def change_tunnel(self, tunnel: Tunnel) -> None:
        """Other sizes or times for a tunnel that is open; its cipher, keys and peer id stay."""
        self._tunnel = tunnel
        self._set_peer(tunnel)

    def finish(
        self, error: GinnelError | None, *, retry: bool, delay: float = 0.0, advance: events.Advance = "address"
    ) -> None:
        """Ends the session now."""
        if self._closed:
            return
        self._closed = True
        self._timers.clear()
        self.cut()
        self._emit(events.Closed(error, retry, delay, advance))

    def cut(self) -> None:
        """Ends the data channel, and nothing else. Idempotent."""
        if self._tunnel is not None:
            self._command(events.DelPeer(self._policy.peer))
            self._cut = True

    def finish_settled(
        self, error: GinnelError | None, *, retry: bool, within: float, now: float, acknowledged: bool = True
    ) -> None:
        """Ends the session when all that we sent is acknowledged (if ``acknowledged`` matters), or
        after ``within`` seconds. The first call counts: who is to go stays no longer for another reason."""
        if self._closed or self._closing is not None:
            return
        self._timers.clear()
        self._closing = events.Closed(error, retry)
        self._finish_on_ack = acknowledged
        if within > 0:
            self._timers[Timer.LINGER] = now + within
        else:
            self.finish(error, retry=retry)

    # Inside.

    def _guard(self, action: Callable[..., None], *arguments: object) -> None:
        """Turns what the peer did wrong, or a configuration that can't be sent, into the session's end."""
        try:
            action(*arguments)
        except TlsError as error:
            self.finish(error, retry=error.retry)
        except GinnelError as error:
            self.finish(error, retry=False)

    def _open(self, data: bytes, path: Path) -> ControlPacket | None:
        """The packet if it is one of our peer's, else None and a count. Raises `PacketError`."""
        header = Header.parse(data)
        moved = path != self._path
        if moved and not self._settings.floats:
            self._count("wrong_path")
            return None
        if header.opcode in WITH_WRAPPED_KEY and not isinstance(self._settings.wrap, TlsCryptV2Server):
            self._count("malformed")
            return None
        if header.opcode in HARD_RESETS and header.key_id != 0:
            self._count("wrong_key")
            return None
        if self._peer_session_id is None:
            if header.opcode not in self._peers_resets:
                self._count("wrong_session")
                return None
        elif header.session_id != self._peer_session_id:
            # A reset among them is someone else's or an older answer. A server that lost its state answers
            # a new client only, never us; a client that did is its endpoint's business, not this session's.
            self._count("stray_resets" if header.opcode in HARD_RESETS else "wrong_session")
            return None
        elif header.opcode in OF_ONE_ROLE and header.opcode not in self._peers_own:
            self._count("wrong_session")
            return None
        packet = ControlPacket.parse(self._wrap_of(header.key_id).unwrap(data), header)
        if packet.peer_session_id not in (None, self._session_id):
            self._count("wrong_session")
            return None
        if moved and self._tunnel is None:
            # Who acknowledges what we sent has seen it. Once there are data channels, their packets alone move us.
            if packet.peer_session_id is None:
                self._count("wrong_path")
                return None
            self._path = path
        return packet

    def _receive(self, packet: ControlPacket, now: float) -> None:
        self._peer_session_id = packet.header.session_id
        handshake = self._find_handshake(packet, now)
        if handshake is None:
            self._count("wrong_key")
            return
        if handshake is self._current and self._previous is not None:
            self._forget_previous()
        if not handshake.receive(packet, now):
            self._count("out_of_window")
        self._follow(handshake, now)

    def _find_handshake(self, packet: ControlPacket, now: float) -> Handshake | None:
        """The negotiation that a packet belongs to; begins one when the peer did."""
        key_id = packet.header.key_id
        if packet.header.opcode is Opcode.SOFT_RESET_V1 and key_id == _next_key_id(self._current.key_id):
            self._current.peer_is_done()
            self._follow(self._current, now)
            # Who is to go negotiates no more: it could put its end off.
            if self._closing is None and self._is_settled_on_primary():
                self._slots.peer_begins(now - self._current.started)
                self._renegotiate(now)
        if key_id == self._current.key_id:
            return self._current
        if self._previous is not None and key_id == self._previous.key_id:
            return self._previous
        return None

    def _proceed(self, now: float) -> None:
        self._current.go_on()
        self._follow(self._current, now)

    def _computed(self, now: float) -> None:
        # No other negotiation begins before this one is done.
        self._current.computed()
        self._follow(self._current, now)

    def _follow(self, handshake: Handshake, now: float) -> None:
        """Does what a negotiation's progress asks for."""
        negotiating = handshake is self._current and Timer.HAND_WINDOW in self._timers
        if negotiating and handshake.state is State.ACTIVE:
            del self._timers[Timer.HAND_WINDOW]
            if handshake.key_id == 0:
                self._policy.negotiated(now)
            else:
                self._rotate(now)
        for message in handshake.read_messages():
            if self._closed or self._closing is not None:
                return
            self._handle_message(message, now)
        if self._closing is not None and self._finish_on_ack and self._current.settled:
            self.finish(self._closing.error, retry=self._closing.retry)

    def _handle_message(self, message: bytes, now: float) -> None:
        text = message.decode(errors="replace").rstrip("\r\n")
        if not text.isprintable():
            self._count("bad_messages")
        elif text == "EXIT":
            self.peer_left()
        else:
            self._policy.handle_message(text, now)

    def _fire(self, timer: Timer, now: float) -> None:
        match timer:
            case Timer.HAND_WINDOW:
                self._time_out()
            case Timer.PUSH_REQUEST | Timer.PUSH_WINDOW:
                self._policy.handle_timer(timer, now)
            case Timer.RENEGOTIATE:
                self.renegotiate(now)
            case Timer.INACTIVE:
                self._command(events.CountBytes(self._policy.peer))
            case Timer.SESSION_TIMEOUT:
                self.notice("the session has lasted as long as session-timeout lets it")
                self.close(now)
            case Timer.EXIT_NOTICE:
                self._command(events.SendDataMessage(self._policy.peer, EXIT_NOTICE))
                self._timers[Timer.EXIT_NOTICE] = now + EXIT_NOTICE_INTERVAL
            case Timer.LINGER:
                if self._closing is not None:
                    self.finish(self._closing.error, retry=self._closing.retry)

    def _time_out(self) -> None:
        window = f"{self._settings.hand_window:g} s"
        if self._peer_session_id is None:
            text = f"no answer from {_show(self._path)} within {window}; are address, port and key right?"
        elif self._current.key_id:
            text = f"{_show(self._path)} didn't finish making new keys within {window}"
        else:
            text = f"{_show(self._path)} answered, but didn't finish the TLS handshake within {window}"
            text += self._policy.why_silent
        self.finish(UnreachableError(text), retry=True)

    def _expire(self) -> None:
        tunnel = self._tunnel
        if tunnel is not None:
            text = f"nothing heard from {_show(self._path)} for {tunnel.ping_restart:g} s"
            self.finish(UnreachableError(text), retry=not tunnel.ping_exit and not self._policy.server)

    def _check_activity(self, total: int, now: float) -> None:
        """``inactive``: enough bytes begin a new period. They are counted several times a period, as nobody
        says when they passed."""
        tunnel = self._tunnel
        if tunnel is None or not tunnel.inactive or self._closing is not None:
            return
        if total - self._bytes_counted >= max(tunnel.inactive_bytes, 1):
            self._bytes_counted, self._active_at = total, now
        if now >= self._active_at + tunnel.inactive:
            self.notice(f"nothing passed the tunnel for {tunnel.inactive:g} s (inactive)")
            self.close(now)
        else:
            next_check = min(now + tunnel.inactive / ACTIVITY_CHECKS, self._active_at + tunnel.inactive)
            self._timers[Timer.INACTIVE] = next_check

    # Negotiations.

    def _negotiations(self) -> list[Handshake]:
        """Those that may send: a server none before its client, nor an ended session more than once."""
        if self._drained or (self._policy.server and self._peer_session_id is None):
            return []
        return [self._current] if self._previous is None else [self._previous, self._current]

    def _begin(self, key_id: int, now: float, *, opened: bool = False) -> Handshake:
        opcode = Opcode.SOFT_RESET_V1
        if key_id == 0:
            opcode = Opcode.HARD_RESET_CLIENT_V3 if self._wrap.wrapped_key else Opcode.HARD_RESET_CLIENT_V2
            opcode = Opcode.HARD_RESET_SERVER_V2 if self._policy.server else opcode
        self._timers[Timer.HAND_WINDOW] = now + self._settings.hand_window
        return Handshake(
            Header(opcode, key_id, self._session_id),
            self._settings.tls.connect(),
            self._policy,
            server=self._policy.server,
            timeout=self._settings.tls_timeout,
            now=now,
            opened=opened,
            wrapped_key_size=len(self._wrap.wrapped_key),
            elsewhere=(lambda run: self._emit(events.Compute(run))) if self._settings.elsewhere else None,
        )

    def _renegotiate(self, now: float) -> None:
        self._timers.pop(Timer.RENEGOTIATE, None)
        self._previous = self._current
        self._current = self._begin(_next_key_id(self._previous.key_id), now)

    def _is_settled_on_primary(self) -> bool:
        primary = self._slots.primary
        return primary is not None and primary.key_id == self._current.key_id

    def _forget_previous(self) -> None:
        """The peer is heard in the new negotiation: it has the primary keys, and left the old one."""
        if self._previous is not None:
            self._statistics["retransmitted"] += self._previous.retransmitted
            self._previous = None
        self._slots.swap()

    def _rotate(self, now: float) -> None:
        """A renegotiation is done."""
        tunnel, current = self._tunnel, self._current
        if tunnel is not None:
            self._slots.rotate(current.key_id, current.started, tunnel.data_format, self._data_keys(tunnel), now)
            self._schedule_renegotiation(now)

    def _set_peer(self, tunnel: Tunnel) -> None:
        framing = tunnel.data_format.framing
        self._command(events.SetPeer(self._policy.peer, tunnel.ping, tunnel.ping_restart, tunnel.mss, framing))

    def _data_keys(self, tunnel: Tunnel) -> tuple[bytes, bytes]:
        return self._current.data_keys(self._peer_session_id or NO_SESSION, exported=tunnel.exported)

    def _schedule_renegotiation(self, now: float) -> None:
        reneg_sec = self._policy.reneg_sec()
        if reneg_sec:
            self._timers[Timer.RENEGOTIATE] = now + reneg_sec

    # Small things.

    def _room(self, wrap: Wrapper) -> tuple[int, int]:
        """For how many bytes of TLS, and for how many ACKs, there is room in a packet."""
        headers = IPV6_UDP if ":" in self._path[1] else IPV4_UDP
        chunk = self._settings.max_packet_size - headers - MAX_OVERHEAD - wrap.overhead
        # SoftEther drops a packet with more than four ACKs (ssl_pkt.c, write_control_auth).
        softether = self._wrap.overhead == 0 and not self._policy.server
        if softether and not (self._tunnel is not None and self._tunnel.exported):
            return chunk, MAX_ACKS // 2
        return chunk, MAX_ACKS

    def _wrap_of(self, key_id: int) -> Wrapper:
        """The key id 0 is the first negotiation's alone, all others are of renegotiations."""
        return self._next_wrap if key_id and self._next_wrap is not None else self._wrap

    @property
    def _peers_own(self) -> frozenset[Opcode]:
        """What only a peer of this role sends."""
        return OF_CLIENTS if self._policy.server else OF_SERVERS

    @property
    def _peers_resets(self) -> frozenset[Opcode]:
        return self._peers_own & HARD_RESETS

    def _count(self, what: str) -> None:
        self._statistics[what] += 1

    def _command(self, event: Event) -> None:
        """For the data plane, while it knows us."""
        if not self._cut:
            self._emit(event)

    def _emit(self, event: Event) -> None:
        self._events.append(event)


def _next_key_id(key_id: int) -> int:
    """0 is the first key's alone."""
    return key_id % 7 + 1


def _random_session_id(random: Callable[[int], bytes]) -> bytes:
    while (session_id := random(SESSION_ID_SIZE)) == NO_SESSION:
        pass
    return session_id


def _why_closed(path: Path, number: int) -> str:
    if number == errno.ECONNRESET:
        return f"{_show(path)} closed the connection"
    return f"the socket to {_show(path)} failed ({errno.errorcode.get(number, number)})"


def _show(path: Path) -> str:
    _, address, port = path
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


EXIT_NOTICE = bytes.fromhex("287f346bd4ef7a812d56b8d3afc5459c") + b"\x06"
EXIT_NOTICE_INTERVAL = 0.1
# How many times the bytes are counted within ``inactive``.
ACTIVITY_CHECKS = 10
OF_CLIENTS = frozenset({Opcode.HARD_RESET_CLIENT_V2, Opcode.HARD_RESET_CLIENT_V3, Opcode.CONTROL_WKC_V1})
OF_SERVERS = frozenset({Opcode.HARD_RESET_SERVER_V2})
OF_ONE_ROLE = OF_CLIENTS | OF_SERVERS
MAX_NOTICES = 100
# A login may take that somebody approves it, a page and a code.
MAX_ASKS = 8
MINUTE = 60.0
IPV4_UDP = 20 + 8
IPV6_UDP = 40 + 8
# Opcode, session id, four ACKs with their count and session id, packet id.
MAX_OVERHEAD = 9 + (1 + 4 * 4 + 8) + 4
COUNTERS = (
    "received",
    "sent",
    "retransmitted",
    "data_messages_ignored",
    "malformed",
    "unauthenticated",
    "replayed",
    "wrong_path",
    "wrong_session",
    "wrong_key",
    "stray_resets",
    "out_of_window",
    "after_close",
    "bad_messages",
    "notices",
    "asks",
)
