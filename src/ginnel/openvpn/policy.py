"""What a session is given: settings, what its role decides (`client`, `server`), and the tunnel that it is to open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from ginnel.openvpn.data_format import DataFormat
from ginnel.openvpn.handshake import Exchange
from ginnel.openvpn.packets import ControlPacket
from ginnel.openvpn.tls import TlsContext
from ginnel.openvpn.wrap import NoWrap, Wrap, Wrapper

if TYPE_CHECKING:
    from ginnel.openvpn.session import Session


class Timer(Enum):
    """What a session waits for. Sending again is not in the table: its times are the packets' own."""

    HAND_WINDOW = "the negotiation must be done"
    PUSH_REQUEST = "the next push request is due"
    PUSH_WINDOW = "the push reply must be there"
    RENEGOTIATE = "the keys are old enough"
    INACTIVE = "the bytes must be counted"
    SESSION_TIMEOUT = "the session is old enough"
    EXIT_NOTICE = "the next exit notice is due"
    LINGER = "the last message was given enough time"


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """What both roles need to know. Times are in seconds, ``reneg_sec`` 0 means never.

    ``max_packet_size`` bounds a control packet with its IP and UDP headers. ``floats``: the peer may answer from
    another path than the one that was given. ``elsewhere``: the owner carries out `events.Compute`.
    """

    tls: TlsContext
    wrap: Wrap = field(default_factory=NoWrap)
    tcp: bool = False
    floats: bool = False
    elsewhere: bool = False
    tls_timeout: float = 2.0
    hand_window: float = 60.0
    tran_window: float = 3600.0
    reneg_sec: float = 3600.0
    max_packet_size: int = 1250


@dataclass(frozen=True, kw_only=True)
class Tunnel:
    """What the data plane needs to know, once the roles agreed on it.

    ``exported``: data keys come from TLS's exporter. ``exit_notify``: how many times (or, with
    ``cc_exit``, for how many seconds) the end is announced to the peer; 0 for not at all.
    ``dyn_tls_crypt``: renegotiations are wrapped with a key of this session's alone. ``inactive``: the
    session ends when within so many seconds no more than ``inactive_bytes`` passed the device, and after
    ``session_timeout`` seconds in any case; 0 for never.
    """

    data_format: DataFormat
    exported: bool
    peer_id: int | None
    ping: float
    ping_restart: float
    ping_exit: bool
    mss: int
    cc_exit: bool
    exit_notify: int
    dyn_tls_crypt: bool = False
    inactive: float = 0.0
    inactive_bytes: int = 0
    session_timeout: float = 0.0


class Policy(Exchange, Protocol):
    """What a role does of its own. A policy serves one session."""

    server: bool
    peer: int
    unix_time: float
    """The wall clock's time at the session's start."""

    @property
    def settings(self) -> SessionSettings: ...
    @property
    def why_silent(self) -> str:
        """What may keep the peer from ending a handshake that it began, in brackets; "" where nothing is known."""

    def attach(self, session: Session, random: Callable[[int], bytes]) -> None: ...
    def reneg_sec(self) -> float:
        """How long the next keys live; 0 for ever."""

    def negotiated(self, now: float) -> None:
        """The first negotiation is done. Opens the tunnel, now or later."""

    def handle_message(self, text: str, now: float) -> None: ...
    def handle_timer(self, timer: Timer, now: float) -> None:
        """PUSH_REQUEST or PUSH_WINDOW."""


@dataclass(frozen=True, slots=True)
class First:
    """The packet that led to a session, with the wrap that it was taken out of (`endpoint`). When it is no
    reset, both resets were exchanged already, and it names the session id that we had in ours."""

    wrap: Wrapper
    packet: ControlPacket
