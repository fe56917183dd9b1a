"""What crosses the edges of a session, as values.

A session speaks to two neighbours. To the data plane it gives *commands* (create a peer, install a
key, ...) and from it takes *reports*. To its user it gives *news*. Commands and news come out of
``Session.next_event()`` in the order in which they must be carried out; reports go into
``Session.data_event()``.

Times are seconds on the caller's monotonic clock. A *path* names a way to a peer: the number of one
of the data plane's sockets with the peer's address and port on it. A *peer* is a small number that
the session's owner chose; a *handle* names one pair of data keys, unique within the peer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from ginnel.errors import GinnelError
    from ginnel.openvpn.push import PushReply

Path = tuple[int, str, int]
"""Socket number, IP address as text, UDP or TCP port."""

Advance = Literal["stay", "address", "remote"]

Framing = Literal["", "comp-lzo", "stub", "stub-v2"]
"""What stands around inner packets for the sake of compression, which is never used: nothing, a byte in front,
a byte in the place of the first (``compress``), or two bytes in front of what else would look like that."""


# Commands to the data plane.


@dataclass(frozen=True, slots=True)
class NewPeer:
    """Create a peer. With ``peer_id`` data packets are sent as P_DATA_V2, without as P_DATA_V1."""

    peer: int
    path: Path
    peer_id: int | None


@dataclass(frozen=True, slots=True)
class SetPeer:
    """Set a peer's timers and sizes.

    ``ping``: seconds without sending after which a ping goes out; 0 for never.
    ``ping_restart``: seconds without an authenticated packet after which `PeerExpired` is reported,
    once; 0 for never. ``mss``: the largest TCP MSS that an inner IPv4 SYN may announce, either
    way (IPv6: 20 less); 0 to leave it alone. Packets that come compressed are dropped.
    """

    peer: int
    ping: float
    ping_restart: float
    mss: int
    framing: Framing = ""


@dataclass(frozen=True, slots=True)
class DelPeer:
    """Forget a peer and its keys."""

    peer: int


@dataclass(frozen=True, slots=True)
class NewKey:
    """Install a pair of data keys for receiving; sending with it starts with `Swap`.

    ``encrypt`` and ``decrypt`` are 128 bytes each, as in OpenVPN's ``struct key``: 64 for the
    cipher, then 64 for the HMAC (AEAD: the first 8 of these are the implicit IV). With ``epochs``, which
    takes an AEAD cipher, the first 32 are the secret from which the keys of all epochs are derived.
    ``auth`` is the HMAC's hash with AES-*-CBC and "none"; an AEAD cipher has no use for it.
    A key with the same ``key_id`` is replaced; a fourth key displaces the oldest that doesn't send.
    """

    peer: int
    handle: int
    key_id: int
    cipher: str
    encrypt: bytes
    decrypt: bytes
    auth: str = "none"
    epochs: bool = False

    def __repr__(self) -> str:
        return (
            f"NewKey(peer={self.peer}, handle={self.handle}, key_id={self.key_id}, cipher={self.cipher!r}, "
            f"auth={self.auth!r}, epochs={self.epochs})"
        )


@dataclass(frozen=True, slots=True)
class DelKey:
    """Forget a pair of data keys."""

    peer: int
    handle: int


@dataclass(frozen=True, slots=True)
class Swap:
    """Send with this pair of data keys from now on."""

    peer: int
    handle: int


@dataclass(frozen=True, slots=True)
class SendDataMessage:
    """Send these bytes as a data packet of their own (an exit notice, say)."""

    peer: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CountBytes:
    """Say, with a `BytesCounted`, how many bytes passed the device."""

    peer: int


# For the owner.


@dataclass(frozen=True, slots=True)
class Compute:
    """A step of TLS that takes its time, where `SessionSettings.elsewhere` asks for that: the owner calls ``run`` in
    any thread, and then `Session.computed`. Until then the session goes on, and leaves that TLS connection alone."""

    run: Callable[[], None]


# Reports of the data plane.


@dataclass(frozen=True, slots=True)
class DataMessage:
    """An authenticated data packet that is neither an IP packet nor a ping: an exit notice, say."""

    peer: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PeerExpired:
    """Nothing authentic came from the peer for its ``ping_restart`` seconds."""

    peer: int


@dataclass(frozen=True, slots=True)
class PeerFloat:
    """An authenticated packet, of data or of the first negotiation, came from another path; the peer's go there now."""

    peer: int
    path: Path


@dataclass(frozen=True, slots=True)
class KeyLimit:
    """A sending key nears the end of its packet ids or of what its cipher allows: renegotiate."""

    peer: int
    handle: int


@dataclass(frozen=True, slots=True)
class BytesCounted:
    """The bytes of a peer's inner packets, both ways, since it was created. Pings don't count."""

    peer: int
    total: int


@dataclass(frozen=True, slots=True)
class PathClosed:
    """A path's socket failed for good. ``errno`` says why."""

    path: Path
    errno: int


# News for the session's user.


@dataclass(frozen=True, slots=True)
class Established:
    """The tunnel is up: keys are installed and the configuration is known.

    ``tls`` as OpenSSL names it (``TLSv1.3``), ``control_cipher`` the TLS suite, ``cipher`` that of
    the data channel, ``server`` the common name in the peer's certificate, "" without one.
    """

    push: PushReply
    tls: str
    control_cipher: str
    cipher: str
    server: str


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The server changed the configuration of a tunnel that is up (PUSH_UPDATE): this is all of it now."""

    push: PushReply


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question for the user, in words of ours or of the server's (escaped).

    ``echo``: the answer may be shown while it is typed. Where no answer is needed the text is to be
    shown, and the empty answer given.
    """

    kind: Literal["username", "password", "challenge", "key-password", "proxy-username", "proxy-password"]
    text: str
    echo: bool
    needs_answer: bool = True


@dataclass(frozen=True, slots=True)
class OpenUrl:
    """The server wants the user to visit an http or https address to log in. The session waits."""

    url: str


@dataclass(frozen=True, slots=True)
class AuthPending:
    """The login waits for somebody's approval, for up to so many seconds. The session waits."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """A renegotiation ended; data goes out with a key of this key id."""

    key_id: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth a line in the log; control characters are escaped already."""

    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over; nothing follows. ``error`` is None when our side ended it.

    ``retry`` says whether connecting again may help: after a lost peer yes, after a refused
    password no. ``delay`` is the least number of seconds to wait first, as the peer asked, or 0.
    ``advance`` says where: at this address again, the next address, or the next remote.
    """

    error: GinnelError | None
    retry: bool
    delay: float = 0.0
    advance: Advance = "address"


Command = NewPeer | SetPeer | DelPeer | NewKey | DelKey | Swap | SendDataMessage | CountBytes
Report = DataMessage | PeerExpired | PeerFloat | KeyLimit | BytesCounted | PathClosed
News = Established | Reconfigured | Rekeyed | Notice | Prompt | OpenUrl | AuthPending | Closed
Event = Command | Compute | News
