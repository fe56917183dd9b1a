"""The outer protection of control packets: none, ``tls-auth`` or ``tls-crypt``.

`NoWrap`, `TlsAuth` and `TlsCrypt` are settings with keys (`tls_crypt_v2` has more). ``start()`` makes
the state of one session from them: its sending counter and its replay window. `renew()` makes that of
its renegotiations (``dyn-tls-crypt``). On the wire (OpenVPN ``ssl_pkt.c``,
``tls_crypt.c``), after the nine bytes of the header:

- tls-auth: HMAC, packet id (4), time (4), body. The HMAC covers packet id, time, header, body.
- tls-crypt: packet id (4), time (4), tag (32), body in AES-256-CTR. The tag is an HMAC-SHA256 of
  header, packet id, time and the plain body; its first 16 bytes are the counter's start.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ginnel._core import ControlCipher
from ginnel.errors import ConfigError, LocalProtocolError
from ginnel.openvpn.packets import HEADER_SIZE, Opcode, PacketError


class UnauthenticatedError(PacketError):
    """The packet wasn't made with our key."""


class ReplayError(PacketError):
    """The packet was seen before, or is older than the replay window."""


class Wrapper(Protocol):
    """The wrap of one session."""

    @property
    def overhead(self) -> int:
        """How many bytes longer a packet becomes, without a wrapped key."""

    @property
    def wrapped_key(self) -> bytes:
        """What a tls-crypt-v2 client appends to its reset and to P_CONTROL_WKC_V1; b"" without."""

    @property
    def secret(self) -> bytes:
        """The 256 bytes of key behind it, b"" without one."""

    def wrap(self, packet: bytes, now: float) -> bytes: ...
    def unwrap(self, datagram: bytes) -> bytes:
        """Raises `PacketError`, `UnauthenticatedError` or `ReplayError`."""


class Wrap(Protocol):
    """Settings of a wrap."""

    def start(self, *, server: bool, unix_time: float, now: float, sent: int = 0) -> Wrapper:
        """``unix_time`` is the wall clock's time at ``now``. ``sent``: so many packets left under this key
        before, by someone who kept nothing of it."""


@dataclass(frozen=True)
class StaticKey:
    """256 bytes of a file "OpenVPN Static key V1": two keys of 64 bytes cipher and 64 bytes HMAC."""

    data: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> StaticKey:
        """Raises ConfigError that says what is wrong with the text."""
        lines = [line.strip() for line in text.splitlines()]
        if KEY_HEAD not in lines:
            raise ConfigError(f'no "{KEY_HEAD}" line in the static key', instead=GENKEY)
        start = lines.index(KEY_HEAD) + 1
        if KEY_FOOT not in lines[start:]:
            raise ConfigError(f'no "{KEY_FOOT}" line in the static key', instead=GENKEY)
        digits = "".join(lines[start : lines.index(KEY_FOOT, start)]).replace(" ", "")
        try:
            data = bytes.fromhex(digits)
        except ValueError:
            raise ConfigError("the static key has something other than hexadecimal digits in it") from None
        if len(data) != KEY_FILE_SIZE:
            raise ConfigError(f"the static key has {len(data)} bytes, not {KEY_FILE_SIZE}", instead=GENKEY)
        return cls(data)

    def emit(self) -> str:
        lines = [self.data[at : at + 16].hex() for at in range(0, KEY_FILE_SIZE, 16)]
        return "\n".join([KEY_HEAD, *lines, KEY_FOOT, ""])

    def cipher(self, index: int) -> bytes:
        return self.data[index * 128 : index * 128 + 64]

    def hmac(self, index: int) -> bytes:
        return self.data[index * 128 + 64 : index * 128 + 128]


@dataclass(frozen=True)
class NoWrap:
    """Control packets as they are."""

    def start(self, *, server: bool, unix_time: float, now: float, sent: int = 0) -> Wrapper:
        return _NoWrapper()


@dataclass(frozen=True)
class TlsAuth:
    """``tls-auth KEY [DIRECTION]`` with ``auth DIGEST``; no direction means one key for both ways."""

    key: StaticKey
    digest: str = "SHA1"
    direction: int | None = None

    def __post_init__(self) -> None:
        if self.digest.upper() not in DIGESTS:
            raise ConfigError(f"digest {self.digest!r} is not supported", instead="use " + ", ".join(DIGESTS))
        try:
            hmac.digest(b"", b"", _hash(self.digest))
        except ValueError:
            raise ConfigError(f"this machine's OpenSSL has no {self.digest}", instead="use SHA256") from None
        if self.direction not in (None, 0, 1):
            raise ConfigError(f"key-direction is 0 or 1, not {self.direction!r}")

    def start(self, *, server: bool, unix_time: float, now: float, sent: int = 0) -> Wrapper:
        return _TlsAuthWrapper(self, PacketIdSender(_net_clock(unix_time, now), sent))

    @property
    def send_key(self) -> bytes:
        return self._key(0 if self.direction is None else self.direction)

    @property
    def receive_key(self) -> bytes:
        return self._key(0 if self.direction is None else 1 - self.direction)

    def _key(self, index: int) -> bytes:
        return self.key.hmac(index)[: DIGESTS[self.digest.upper()]]


@dataclass(frozen=True)
class TlsCrypt:
    """``tls-crypt KEY``."""

    key: StaticKey

    def start(self, *, server: bool, unix_time: float, now: float, sent: int = 0) -> Wrapper:
        return TlsCryptWrapper(self.key, server=server, unix_time=unix_time, now=now, sent=sent)


def renew(wrapper: Wrapper, exported: bytes, *, server: bool, unix_time: float, now: float) -> Wrapper:
    """``dyn-tls-crypt``: the wrap of the renegotiations that follow, from 256 bytes of TLS's exporter with the
    label `RENEW_LABEL` and the key of the wrap so far (``tls_crypt.c``)."""
    before = wrapper.secret or bytes(KEY_FILE_SIZE)
    mixed = int.from_bytes(exported, "big") ^ int.from_bytes(before, "big")
    return TlsCrypt(StaticKey(mixed.to_bytes(KEY_FILE_SIZE, "big"))).start(server=server, unix_time=unix_time, now=now)


class _NoWrapper:
    overhead = 0
    wrapped_key = b""
    secret = b""

    def wrap(self, packet: bytes, now: float) -> bytes:
        return packet

    def unwrap(self, datagram: bytes) -> bytes:
        return datagram


class _TlsAuthWrapper:
    wrapped_key = b""

    def __init__(self, settings: TlsAuth, sender: PacketIdSender) -> None:
        self._digest = _hash(settings.digest)
        self._size = DIGESTS[settings.digest.upper()]
        self._send = settings.send_key
        self._receive = settings.receive_key
        self._sender = sender
        self._window = ReplayWindow()
        self.overhead = self._size + PACKET_ID_SIZE
        self.secret = settings.key.data

    def wrap(self, packet: bytes, now: float) -> bytes:
        packet_id = self._sender.take(now)
        tag = hmac.digest(self._send, packet_id + packet, self._digest)
        return b"".join((packet[:HEADER_SIZE], tag, packet_id, packet[HEADER_SIZE:]))

    def unwrap(self, datagram: bytes) -> bytes:
        body_at = HEADER_SIZE + self.overhead
        if len(datagram) < body_at:
            raise PacketError("too short for tls-auth")
        tag = datagram[HEADER_SIZE : HEADER_SIZE + self._size]
        packet_id = datagram[HEADER_SIZE + self._size : body_at]
        packet = datagram[:HEADER_SIZE] + datagram[body_at:]
        if not hmac.compare_digest(tag, hmac.digest(self._receive, packet_id + packet, self._digest)):
            raise UnauthenticatedError("the HMAC is wrong")
        self._window.accept(packet_id)
        return packet


class TlsCryptWrapper:
    """With a ``wrapped_key``, the first packet has the number ``sent`` + 1."""

    overhead = 8 + 32

    def __init__(
        self,
        key: StaticKey,
        *,
        server: bool,
        unix_time: float,
        now: float,
        sent: int = 0,
        wrapped_key: bytes = b"",
    ) -> None:
        send, receive = (0, 1) if server else (1, 0)
        self._send = ControlCipher(key.cipher(send)[:32], key.hmac(send)[:32])
        self._receive = ControlCipher(key.cipher(receive)[:32], key.hmac(receive)[:32])
        self._sender = PacketIdSender(_net_clock(unix_time, now), sent)
        self._window = ReplayWindow()
        self.secret = key.data
        self.wrapped_key = wrapped_key

    def wrap(self, packet: bytes, now: float) -> bytes:
        head = packet[:HEADER_SIZE] + self._sender.take(now)
        tail = self.wrapped_key if packet[0] >> 3 in WITH_WRAPPED_KEY else b""
        return head + self._send.seal(head, packet[HEADER_SIZE:]) + tail

    def unwrap(self, datagram: bytes) -> bytes:
        if len(datagram) < HEADER_SIZE + self.overhead:
            raise PacketError("too short for tls-crypt")
        head = datagram[: HEADER_SIZE + PACKET_ID_SIZE]
        body = self._receive.open(head, datagram[len(head) :])
        if body is None:
            raise UnauthenticatedError("the tag is wrong")
        self._window.accept(head[HEADER_SIZE:])
        return datagram[:HEADER_SIZE] + body


NetClock = Callable[[float], int]
"""From the caller's ``now`` to the wall clock's whole seconds."""


class PacketIdSender:
    """Packet ids with a time that stays that of the first packet, until they run out (OpenVPN ``packet_id.c``)."""

    def __init__(self, clock: NetClock, sent: int = 0) -> None:
        self._clock = clock
        self._time: int | None = None
        self._id = sent

    def take(self, now: float) -> bytes:
        if self._time is None:
            self._time = self._clock(now)
        if self._id == 0xFFFFFFFF:
            time = self._clock(now)
            if time <= self._time:
                raise LocalProtocolError("four thousand million control packets within a second")
            self._time, self._id = time, 0
        self._id += 1
        return struct.pack(">II", self._id, self._time)


class ReplayWindow:
    """Accepts each packet id once: ids start anew when the time moves on, and may come
    `REPLAY_WINDOW` late within one time."""

    def __init__(self) -> None:
        self._time = 0
        self._top = 0
        self._seen = 0

    def accept(self, packet_id: bytes) -> None:
        """Raises `ReplayError`. Call it for authentic packets only: it remembers the id."""
        number, time = struct.unpack(">II", packet_id)
        if number == 0 or time < self._time:
            raise ReplayError("the packet id is from the past")
        if time > self._time:
            self._time, self._top, self._seen = time, 0, 0
        behind = self._top - number
        if behind >= REPLAY_WINDOW or (behind >= 0 and self._seen >> behind & 1):
            raise ReplayError("the packet id was there before")
        if behind < 0:
            # Past the window's width nothing of it remains, so the shift needs no more than that.
            self._seen = self._seen << min(-behind, REPLAY_WINDOW) & REPLAY_MASK
            self._top, behind = number, 0
        self._seen |= 1 << behind


def _hash(digest: str) -> str:
    """OpenSSL's name as `hashlib` has it."""
    return digest.lower().replace("-", "_")


def _net_clock(unix_time: float, start: float) -> NetClock:
    return lambda now: int(unix_time + (now - start)) & 0xFFFFFFFF


RENEW_LABEL = b"EXPORTER-OpenVPN-dynamic-tls-crypt"
WITH_WRAPPED_KEY = frozenset({Opcode.HARD_RESET_CLIENT_V3, Opcode.CONTROL_WKC_V1})
KEY_HEAD = "-----BEGIN OpenVPN Static key V1-----"
KEY_FOOT = "-----END OpenVPN Static key V1-----"
KEY_FILE_SIZE = 256
GENKEY = "make one with: openvpn --genkey secret FILE"
PACKET_ID_SIZE = 8
# Of those that OpenSSL has, without MD5-SHA1, which is no digest of its own, and without what has no fixed size.
DIGESTS = {
    name: size
    for size, names in {
        16: "MD5",
        20: "SHA1 RIPEMD160",
        28: "SHA224 SHA512-224 SHA3-224",
        32: "SHA256 SHA512-256 SHA3-256 BLAKE2S256 SM3",
        48: "SHA384 SHA3-384",
        64: "SHA512 SHA3-512 BLAKE2B512",
    }.items()
    for name in names.split()
}
REPLAY_WINDOW = 64
REPLAY_MASK = (1 << REPLAY_WINDOW) - 1
