"""The format of data packets as two peers agree on it: what it is called, and what it adds to a packet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ginnel.openvpn.events import Framing


@dataclass(frozen=True)
class MssFix:
    """``mssfix SIZE [mtu|fixed]``: the largest UDP payload, IP packet with its headers ("mtu"), or
    inner packet ("fixed") that a TCP segment may lead to. Size 0 switches it off."""

    size: int
    mode: Literal["payload", "mtu", "fixed"] = "payload"


@dataclass(frozen=True, slots=True)
class DataFormat:
    """``auth`` is the HMAC's hash, which AEAD ciphers have no use for; ``epochs`` is for them alone."""

    cipher: str
    auth: str = "none"
    epochs: bool = False
    framing: Framing = ""

    def mss(self, fix: MssFix, *, peer_id: bool, tcp: bool, ipv6: bool, tap: bool) -> int:
        """The TCP MSS over IPv4 that leads to packets of no more than ``fix`` (OpenVPN ``mss.c``,
        frame_calculate_mssfix; ``mtu.c``); 0 for any. ``ipv6`` is the outer packet's."""
        if fix.size == 0:
            return 0
        if fix.mode == "fixed":
            return max(fix.size - TCP_IP, 0)
        size = fix.size - (4 if peer_id else 1) - (2 if tcp else 0) - self._cipher_overhead
        if fix.mode == "mtu":
            size -= (40 if ipv6 else 20) + (20 if tcp else 8)
        if self.cipher in CBC_CIPHERS:
            # At least one byte of the last block is padding, and the packet id is encrypted too.
            size = size // CBC_BLOCK * CBC_BLOCK - 1 - 4
        size -= (1 if self.framing in ("comp-lzo", "stub") else 0) + (TAP_EXTRA if tap else 0)
        return max(size - TCP_IP, 0)

    @property
    def _cipher_overhead(self) -> int:
        """What stands around the ciphertext."""
        if self.cipher in AEAD_CIPHERS:
            return (8 if self.epochs else 4) + 16
        return MAC_SIZES[self.auth] + (CBC_BLOCK if self.cipher in CBC_CIPHERS else 4)


def normal_cipher(name: str) -> str:
    """A cipher's name as it stands in ``data-ciphers``."""
    return "none" if name.lower() == "none" else name.upper()


AEAD_CIPHERS = ("AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305", "AES-192-GCM")
CBC_CIPHERS = ("AES-256-CBC", "AES-192-CBC", "AES-128-CBC")
DATA_CIPHERS = (*AEAD_CIPHERS, *CBC_CIPHERS, "none")
MAC_SIZES = {"SHA1": 20, "SHA224": 28, "SHA256": 32, "SHA384": 48, "SHA512": 64, "none": 0}
FRAMINGS: dict[str | None, Framing] = {
    None: "",
    "compress migrate": "",
    **dict.fromkeys(("comp-lzo no", "comp-lzo", "comp-lzo yes", "comp-lzo adaptive", "compress lzo"), "comp-lzo"),
    **dict.fromkeys(("compress", "compress stub", "compress lz4"), "stub"),
    **dict.fromkeys(("compress stub-v2", "compress lz4-v2"), "stub-v2"),
}
# Who has one of these may send compressed packets, which are dropped (VORACLE): we never do.
COMPRESSING = frozenset(
    ("comp-lzo", "comp-lzo yes", "comp-lzo adaptive", "compress lzo", "compress lz4", "compress lz4-v2")
)
NEVER_COMPRESSED = "nothing is compressed (VORACLE), and what the server sends compressed is dropped"
CBC_BLOCK = 16
# IPv4 and TCP headers without options.
TCP_IP = 20 + 20
# Stock's allowance for what an Ethernet frame adds (tun-mtu-extra).
TAP_EXTRA = 32
