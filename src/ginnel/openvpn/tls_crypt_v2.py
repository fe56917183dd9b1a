"""``tls-crypt-v2``: a key for each client, which it brings along wrapped with the server's.

A client's file holds its own key, Kc, and the wrapped key, WKc, that only servers can open (OpenVPN
``doc/tls-crypt-v2.txt``). WKc: tag (32), Kc (256) and metadata in AES-256-CTR, its own length (2). The tag
is an HMAC-SHA256 of length, Kc and metadata; its first 16 bytes are the counter's start. The client appends
WKc to its reset, and again to its second packet when the server, which keeps nothing until a client's
address is proven, asks for that.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from ginnel._core import ControlCipher
from ginnel.errors import ConfigError
from ginnel.openvpn.packets import HEADER_SIZE, PacketError
from ginnel.openvpn.wrap import (
    KEY_FILE_SIZE,
    WITH_WRAPPED_KEY,
    StaticKey,
    TlsAuth,
    TlsCrypt,
    TlsCryptWrapper,
    UnauthenticatedError,
    Wrapper,
)


@dataclass(frozen=True)
class Metadata:
    """What a wrapped key says about its client: ``kind`` `USER` with any bytes, or `TIMESTAMP` with the
    time at which it was made, 8 bytes of Unix time. Other kinds may exist."""

    kind: int
    data: bytes

    @classmethod
    def made_at(cls, unix_time: float) -> Metadata:
        return cls(TIMESTAMP, struct.pack(">q", int(unix_time)))

    @classmethod
    def of_user(cls, name: str) -> Metadata:
        return cls(USER, USER_LABEL + name.encode())

    @property
    def user(self) -> str | None:
        """Whose key it is, where `of_user` has said so."""
        if self.kind != USER or not self.data.startswith(USER_LABEL):
            return None
        return self.data.removeprefix(USER_LABEL).decode(errors="replace")

    @property
    def timestamp(self) -> int | None:
        if self.kind != TIMESTAMP or len(self.data) < 8:
            return None
        return int.from_bytes(self.data[:8], "big", signed=True)


@dataclass(frozen=True)
class ClientKey:
    """The file "OpenVPN tls-crypt-v2 client key": Kc and WKc."""

    key: StaticKey
    wrapped: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> ClientKey:
        """Raises ConfigError that says what is wrong with the text."""
        data = _decode_pem(text, CLIENT_NAME)
        wrapped = data[KEY_FILE_SIZE:]
        if not MIN_WRAPPED <= len(wrapped) <= MAX_WRAPPED or int.from_bytes(wrapped[-2:], "big") != len(wrapped):
            raise ConfigError("the tls-crypt-v2 client key is damaged", instead="get the file anew from its server")
        return cls(StaticKey(data[:KEY_FILE_SIZE]), wrapped)

    def emit(self) -> str:
        return _encode_pem(self.key.data + self.wrapped, CLIENT_NAME)


@dataclass(frozen=True)
class ServerKey:
    """The file "OpenVPN tls-crypt-v2 server key": 128 bytes, as one half of a static key."""

    data: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> ServerKey:
        """Raises ConfigError that says what is wrong with the text."""
        data = _decode_pem(text, SERVER_NAME)
        if len(data) != SERVER_KEY_SIZE:
            raise ConfigError(f"the tls-crypt-v2 server key has {len(data)} bytes, not {SERVER_KEY_SIZE}")
        return cls(data)

    def emit(self) -> str:
        return _encode_pem(self.data, SERVER_NAME)

    def make_client_key(self, metadata: Metadata, random: Callable[[int], bytes]) -> ClientKey:
        """Raises ConfigError for metadata over `MAX_METADATA` bytes."""
        key = StaticKey(random(KEY_FILE_SIZE))
        return ClientKey(key, self.wrap(key, metadata))

    def wrap(self, key: StaticKey, metadata: Metadata) -> bytes:
        if len(metadata.data) > MAX_METADATA:
            raise ConfigError(f"{len(metadata.data)} bytes of tls-crypt-v2 metadata; at most {MAX_METADATA} fit")
        plain = key.data + bytes([metadata.kind]) + metadata.data
        size = struct.pack(">H", TAG_SIZE + len(plain) + 2)
        return self._cipher.seal(size, plain) + size

    def unwrap(self, wrapped: bytes) -> tuple[StaticKey, Metadata | None]:
        """The client's key, and its metadata if it has any. Raises `PacketError` or `UnauthenticatedError`."""
        if not MIN_WRAPPED <= len(wrapped) <= MAX_WRAPPED or int.from_bytes(wrapped[-2:], "big") != len(wrapped):
            raise PacketError("a wrapped key of the wrong length")
        plain = self._cipher.open(wrapped[-2:], wrapped[:-2])
        if plain is None:
            raise UnauthenticatedError("the wrapped key isn't of this server")
        rest = plain[KEY_FILE_SIZE:]
        return StaticKey(plain[:KEY_FILE_SIZE]), Metadata(rest[0], rest[1:]) if rest else None

    @property
    def _cipher(self) -> ControlCipher:
        return ControlCipher(self.data[:32], self.data[64:96])


@dataclass(frozen=True)
class TlsCryptV2:
    """``tls-crypt-v2 KEY`` of a client."""

    key: ClientKey

    def start(self, *, server: bool, unix_time: float, now: float, sent: int = 0) -> Wrapper:
        first = EARLY_NEGOTIATION + sent
        return TlsCryptWrapper(
            self.key.key, server=server, unix_time=unix_time, now=now, sent=first, wrapped_key=self.key.wrapped
        )


@dataclass(frozen=True)
class TlsCryptV2Server:
    """``tls-crypt-v2 KEY`` of a server.

    ``fallback`` admits clients with ``tls-auth`` or ``tls-crypt`` as well. ``force_cookie``: whether clients
    are refused that can't repeat their wrapped key, and so make the server keep something for an address
    that isn't proven. ``max_age``: days since the timestamp in the metadata (``tls-crypt-v2-max-age``), 0 for
    any. ``verify`` looks at the metadata (``tls-crypt-v2-verify``); a refusal is never answered.
    """

    key: ServerKey
    fallback: TlsAuth | TlsCrypt | None = None
    force_cookie: bool = True
    max_age: int = 0
    verify: Callable[[Metadata], bool] | None = None

    def start(self, *, server: bool, unix_time: float, now: float, sent: int = 0) -> Wrapper:
        if not server:
            raise ConfigError("this tls-crypt-v2 key is a server's", option="tls-crypt-v2")
        return _ServerWrapper(self, unix_time, now, sent)

    def open(self, wrapped: bytes, unix_time: float) -> tuple[StaticKey, Metadata | None]:
        """The client's key, if it may be used, and its metadata. Raises `PacketError` or `UnauthenticatedError`."""
        key, metadata = self.key.unwrap(wrapped)
        if self.max_age:
            made = None if metadata is None else metadata.timestamp
            if made is None or unix_time - made > self.max_age * 86400:
                raise UnauthenticatedError("the wrapped key is too old, or doesn't say how old it is")
        self._check(metadata)
        return key, metadata

    def check(self, wrapper: Wrapper) -> None:
        """Has `verify` look at the key that a wrapper without it has taken. Raises `UnauthenticatedError`."""
        if isinstance(wrapper, _ServerWrapper) and wrapper.is_own:
            self._check(wrapper.metadata)

    def _check(self, metadata: Metadata | None) -> None:
        if self.verify is not None and (metadata is None or not self.verify(metadata)):
            raise UnauthenticatedError("the wrapped key's metadata is refused")


class _ServerWrapper:
    """Takes its key from the first packet, and from no later one: a client may send WKc again, as its packet
    may have been lost, but never another one. ``is_own``: it came wrapped, with ``metadata``."""

    def __init__(self, settings: TlsCryptV2Server, unix_time: float, now: float, sent: int) -> None:
        self._settings = settings
        self._unix_time = unix_time
        self._now = now
        self._sent = sent
        self._inner: Wrapper | None = None
        self.is_own = False
        self.metadata: Metadata | None = None
        self.wrapped_key = b""

    @property
    def overhead(self) -> int:
        return TlsCryptWrapper.overhead if self._inner is None else self._inner.overhead

    @property
    def secret(self) -> bytes:
        return b"" if self._inner is None else self._inner.secret

    def wrap(self, packet: bytes, now: float) -> bytes:
        if self._inner is None:
            raise UnauthenticatedError("no packet of the client's came yet")
        return self._inner.wrap(packet, now)

    def unwrap(self, datagram: bytes) -> bytes:
        packet, wrapped = split_wrapped_key(datagram)
        if self._inner is not None:
            return self._inner.unwrap(packet)
        metadata = None
        if wrapped:
            key, metadata = self._settings.open(wrapped, self._unix_time)
            inner = TlsCrypt(key).start(server=True, unix_time=self._unix_time, now=self._now, sent=self._sent)
        elif self._settings.fallback is not None:
            inner = self._settings.fallback.start(
                server=True, unix_time=self._unix_time, now=self._now, sent=self._sent
            )
        else:
            raise UnauthenticatedError("no wrapped key, and none but tls-crypt-v2 is allowed")
        plain = inner.unwrap(packet)
        self._inner, self.is_own, self.metadata = inner, bool(wrapped), metadata
        return plain


def split_wrapped_key(datagram: bytes) -> tuple[bytes, bytes]:
    """A control packet and the wrapped key behind it, b"" where the opcode has none. Raises `PacketError`."""
    if datagram[0] >> 3 not in WITH_WRAPPED_KEY:
        return datagram, b""
    size = int.from_bytes(datagram[-2:], "big")
    if not MIN_WRAPPED <= size <= min(MAX_WRAPPED, len(datagram) - HEADER_SIZE):
        raise PacketError("no wrapped key where one must be")
    return datagram[:-size], datagram[-size:]


def holder(datagram: bytes) -> bytes:
    """Whose key a first packet brings: the wrapped key's tag, b"" where it brings none. Raises `PacketError`."""
    return split_wrapped_key(datagram)[1][:TAG_SIZE]


def negotiates_early(datagram: bytes) -> bool:
    """Whether a client's HARD_RESET_CLIENT_V3 says, in its packet id, that it can repeat its wrapped key."""
    packet_id = int.from_bytes(datagram[HEADER_SIZE : HEADER_SIZE + 4], "big")
    return packet_id & EARLY_MASK == EARLY_NEGOTIATION


def _decode_pem(text: str, name: str) -> bytes:
    match = re.search(f"-----BEGIN {name}-----(.*?)-----END {name}-----", text, re.DOTALL)
    if match is None:
        raise ConfigError(f'no "-----BEGIN {name}-----" block in the key', instead=GENKEY[name])
    try:
        data = base64.b64decode("".join(match[1].split()), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f'the "{name}" block is not base64') from None
    return data


def _encode_pem(data: bytes, name: str) -> str:
    digits = base64.b64encode(data).decode()
    lines = [digits[at : at + 64] for at in range(0, len(digits), 64)]
    return "\n".join([f"-----BEGIN {name}-----", *lines, f"-----END {name}-----", ""])


USER = 0
USER_LABEL = b"user="
TIMESTAMP = 1
CLIENT_NAME = "OpenVPN tls-crypt-v2 client key"
SERVER_NAME = "OpenVPN tls-crypt-v2 server key"
GENKEY = {
    CLIENT_NAME: "make one with: openvpn --tls-crypt-v2 SERVERKEY --genkey tls-crypt-v2-client FILE",
    SERVER_NAME: "make one with: openvpn --genkey tls-crypt-v2-server FILE",
}
SERVER_KEY_SIZE = 128
TAG_SIZE = 32
MIN_WRAPPED = TAG_SIZE + KEY_FILE_SIZE + 2
MAX_WRAPPED = 1024
# Without the byte that says what kind it is.
MAX_METADATA = MAX_WRAPPED - MIN_WRAPPED - 1
# The packet id's first byte says that early negotiation is known; the second would have flags.
EARLY_NEGOTIATION = 0x0F000000
EARLY_MASK = 0xFF000000
