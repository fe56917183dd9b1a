"""Key-method 2: the message both sides send through TLS, and the data keys made from it.

The message (OpenVPN ``ssl.c``, key_method_2_write): four zero bytes, the method (1), from a client
a pre-master secret (48), two random values (32 each), then strings with a 16-bit length that counts
their closing NUL: options, user name, password, peer info.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntFlag

from ginnel.errors import ConfigError, RemoteProtocolError
from ginnel.openvpn.tls import TlsConnection


class Proto(IntFlag):
    """The bits of IV_PROTO (OpenVPN ``ssl.h``) that ginnel knows."""

    DATA_V2 = 1 << 1
    REQUEST_PUSH = 1 << 2
    TLS_KEY_EXPORT = 1 << 3
    AUTH_PENDING_KW = 1 << 4
    CC_EXIT_NOTIFY = 1 << 7
    AUTH_FAIL_TEMP = 1 << 8
    DYN_TLS_CRYPT = 1 << 9
    DATA_EPOCH = 1 << 10
    DNS_OPTION_V2 = 1 << 11
    PUSH_UPDATE = 1 << 12


@dataclass(frozen=True)
class KeyMessage:
    """One side's message. ``pre_master`` is the client's 48 bytes, empty in a server's message.

    Texts are UTF-8; bytes that aren't survive as surrogates.
    """

    random1: bytes = field(repr=False)
    random2: bytes = field(repr=False)
    pre_master: bytes = field(default=b"", repr=False)
    options: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    peer_info: str = ""

    @classmethod
    def make(cls, random: Callable[[int], bytes], *, server: bool, options: str) -> KeyMessage:
        """A message with fresh secrets and no more than an options string."""
        pre_master = b"" if server else random(PRE_MASTER_SIZE)
        return cls(random(RANDOM_SIZE), random(RANDOM_SIZE), pre_master, options)

    @classmethod
    def parse(cls, data: bytes, *, from_server: bool) -> KeyMessage:
        """Raises RemoteProtocolError. Strings after the options may be absent, as in old clients."""
        if len(data) < 5:
            raise RemoteProtocolError("the key message is too short")
        method = data[4] & 0x0F
        if method != KEY_METHOD:
            raise RemoteProtocolError(f"the peer uses key method {method}, which is not supported")
        at = 5
        pre_master_size = 0 if from_server else PRE_MASTER_SIZE
        secrets = data[at : at + pre_master_size + 2 * RANDOM_SIZE]
        if len(secrets) < pre_master_size + 2 * RANDOM_SIZE:
            raise RemoteProtocolError("the key message is too short")
        at += len(secrets)
        random1_at, random2_at = pre_master_size, pre_master_size + RANDOM_SIZE
        texts = []
        for limit in (MAX_OPTIONS, MAX_CREDENTIAL, MAX_CREDENTIAL, MAX_PEER_INFO):
            text, at = _read_text(data, at, limit)
            texts.append(text)
        return cls(
            secrets[random1_at:random2_at],
            secrets[random2_at:],
            secrets[:random1_at],
            *texts,
        )

    def emit(self) -> bytes:
        """Raises ConfigError when the whole gets longer than stock OpenVPN reads."""
        texts = (self.options, self.username, self.password, self.peer_info)
        start = [bytes(4), bytes([KEY_METHOD]), self.pre_master, self.random1, self.random2]
        message = b"".join([*start, *map(_emit_text, texts)])
        if len(message) > MAX_KEY_MESSAGE:
            raise ConfigError("user name, password and peer info are too long together")
        return message


def prf_keys(client: KeyMessage, server: KeyMessage, client_session: bytes, server_session: bytes) -> bytes:
    """256 bytes of data keys by OpenVPN's own derivation (``ssl.c``, generate_key_expansion)."""
    master = tls1_prf(client.pre_master, b"OpenVPN master secret" + client.random1 + server.random1, 48)
    seed = b"OpenVPN key expansion" + client.random2 + server.random2 + client_session + server_session
    return tls1_prf(master, seed, KEYS_SIZE)


def exported_keys(tls: TlsConnection) -> bytes:
    """256 bytes of data keys by TLS's exporter (``tls-ekm``)."""
    return tls.export(b"EXPORTER-OpenVPN-datakeys", KEYS_SIZE)


def direct(keys: bytes, *, server: bool) -> tuple[bytes, bytes]:
    """Splits 256 bytes into the pairs (encrypt, decrypt) of a role."""
    first, second = keys[: KEYS_SIZE // 2], keys[KEYS_SIZE // 2 :]
    return (second, first) if server else (first, second)


def tls1_prf(secret: bytes, seed: bytes, size: int) -> bytes:
    """The PRF of TLS 1.0 (RFC 2246, section 5), label and seed in one."""
    half = (len(secret) + 1) // 2
    md5 = _p_hash(_md5, secret[:half], seed, size)
    sha1 = _p_hash(hashlib.sha1, secret[len(secret) - half :], seed, size)
    return (int.from_bytes(md5, "big") ^ int.from_bytes(sha1, "big")).to_bytes(size, "big")


def options_string(
    *,
    server: bool,
    tap: bool,
    tcp: bool,
    tun_mtu: int,
    auth: str,
    key_direction: int | None = None,
    tls_auth: bool = False,
    framing: str = "",
) -> str:
    """The text that stock OpenVPN compares with its own and warns about (``options_string.c``).

    Like stock without a ``cipher`` option it counts with the overhead of a cipher of 128 bits and
    64-bit blocks, which neither side uses.
    """
    overhead = 1 + 8 + 8 + 4 + DIGEST_SIZES.get(auth.upper(), 0) + (2 if tcp else 0)
    overhead += 1 if framing in ("comp-lzo", "stub") else 0
    mtu = tun_mtu + (32 if tap else 0)
    proto = ("TCPv4_SERVER" if server else "TCPv4_CLIENT") if tcp else "UDPv4"
    parts = [
        "V4",
        f"dev-type {'tap' if tap else 'tun'}",
        f"link-mtu {mtu + overhead}",
        f"tun-mtu {mtu}",
        f"proto {proto}",
        *(["comp-lzo"] if framing else []),
        *([f"keydir {key_direction}"] if key_direction is not None else []),
        f"auth {'[null-digest]' if auth == 'none' else auth}",
        "keysize 128",
        *(["tls-auth"] if tls_auth else []),
        "key-method 2",
        "tls-server" if server else "tls-client",
    ]
    return ",".join(parts)


def peer_info(
    *, proto: Proto, ciphers: Iterable[str], mtu: int, gui_version: str, extra: Iterable[tuple[str, str]] = ()
) -> str:
    """A client's peer info, one ``NAME=value`` a line (``ssl.c``, push_peer_info)."""
    ciphers = tuple(ciphers)
    ncp = {"AES-128-GCM", "AES-256-GCM"} <= set(ciphers)
    pairs = [
        ("IV_VER", PROTOCOL_LEVEL),
        ("IV_PLAT", "linux"),
        ("IV_TCPNL", "1"),
        ("IV_MTU", str(mtu)),
        *([("IV_NCP", "2")] if ncp else []),
        ("IV_CIPHERS", ":".join(ciphers)),
        ("IV_PROTO", str(int(proto))),
        # That we take the framings of compression, and never compress.
        ("IV_LZO_STUB", "1"),
        ("IV_COMP_STUB", "1"),
        ("IV_COMP_STUBv2", "1"),
        ("IV_GUI_VER", gui_version),
        *extra,
    ]
    return "".join(f"{name}={value}\n" for name, value in pairs)


def parse_peer_info(text: str) -> dict[str, str]:
    """Lines without "=" are left out; of a name that comes twice the first counts."""
    info: dict[str, str] = {}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if equals:
            info.setdefault(name, value)
    return info


def parse_proto(info: Mapping[str, str]) -> Proto:
    """The client's IV_PROTO; 0 when it is absent or no number."""
    text = info.get("IV_PROTO", "")
    return Proto(int(text) & KNOWN_PROTO) if re.fullmatch("[0-9]{1,9}", text) else Proto(0)


def negotiate_cipher(ours: Iterable[str], info: Mapping[str, str], options: str) -> str | None:
    """A server's choice (``ssl_ncp.c``): the first of its own that the client has, None without any."""
    if "IV_CIPHERS" in info:
        theirs = info["IV_CIPHERS"].upper().split(":")
    else:
        theirs = ["AES-256-GCM", "AES-128-GCM"] if info.get("IV_NCP") == "2" else []
        theirs.append((option(options, "cipher") or "").upper())
    return next((cipher for cipher in ours if cipher.upper() in theirs), None)


def option(options: str, name: str) -> str | None:
    """A value of an options string."""
    for part in options.split(","):
        if part.startswith(name + " "):
            return part[len(name) + 1 :]
    return None


def _read_text(data: bytes, at: int, limit: int) -> tuple[str, int]:
    if at == len(data):
        return "", at
    if at + 2 > len(data):
        raise RemoteProtocolError("the key message ends within a length")
    (size,) = struct.unpack_from(">H", data, at)
    at += 2
    if at + size > len(data):
        raise RemoteProtocolError("the key message ends within a text")
    if size > limit:
        raise RemoteProtocolError(f"a text of {size} bytes in the key message is too long")
    # The last byte is the closing NUL whatever its value; an earlier one ends the text as in C.
    return data[at : at + max(size - 1, 0)].split(b"\0")[0].decode(errors="surrogateescape"), at + size


def _emit_text(text: str) -> bytes:
    if not text:
        return bytes(2)
    encoded = text.encode(errors="surrogateescape") + b"\0"
    if len(encoded) > 0xFFFF:
        raise ConfigError("user name, password or peer info is too long")
    return struct.pack(">H", len(encoded)) + encoded


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)


def _p_hash(digest: Callable[..., hashlib._Hash], secret: bytes, seed: bytes, size: int) -> bytes:
    output, a = b"", seed
    while len(output) < size:
        a = hmac.new(secret, a, digest).digest()
        output += hmac.new(secret, a + seed, digest).digest()
    return output[:size]


KEY_METHOD = 2
KEYS_SIZE = 256
PRE_MASTER_SIZE = 48
RANDOM_SIZE = 32
PROTOCOL_LEVEL = "2.6.14"
KNOWN_PROTO = sum(Proto)
# The buffer into which stock OpenVPN reads the message (common.h, TLS_CHANNEL_BUF_SIZE).
MAX_KEY_MESSAGE = 2048
MAX_OPTIONS = 512
MAX_CREDENTIAL = 4096
MAX_PEER_INFO = 8192
DIGEST_SIZES = {"MD5": 16, "SHA1": 20, "SHA224": 28, "SHA256": 32, "SHA384": 48, "SHA512": 64}
