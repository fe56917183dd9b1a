"""Strangers: how a data plane tells their first packets from noise, and what is counted as one place.

The data plane looks at the wrap before it counts, so that a flood of noise takes nothing of what strangers may ask.
"""

from __future__ import annotations

import ipaddress

from ginnel.openvpn.tls_crypt_v2 import TlsCryptV2Server
from ginnel.openvpn.wrap import TlsAuth, TlsCrypt, Wrap


def locks(wrap: Wrap) -> list[tuple[str, bytes]]:
    """For `DataPlane.guard_strangers` of a server: ``tls-crypt`` with a static key's 256 bytes, ``tls-crypt-v2`` with
    a server key's 128, or a digest's name with the key of the clients' way. [] where there is no wrap, or one with a
    digest that it doesn't know: then everything passes there, and is looked at later."""
    match wrap:
        case TlsAuth():
            return [(wrap.digest.upper(), wrap.receive_key)] if wrap.digest.upper() in DIGESTS else []
        case TlsCrypt():
            return [("tls-crypt", wrap.key.data)]
        case TlsCryptV2Server():
            own = [("tls-crypt-v2", wrap.key.data)]
            if wrap.fallback is None:
                return own
            other = locks(wrap.fallback)
            return [*own, *other] if other else []
    return []


def origin(address: str) -> str:
    """What one subscriber has: an IPv4 address, or an IPv6 network of 64 bits."""
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    return str(ipaddress.IPv6Network((int(parsed), 64), strict=False))


# The data plane's (`rust/core/src/plane/guard.rs`).
DIGESTS = frozenset({"SHA1", "SHA224", "SHA256", "SHA384", "SHA512"})
