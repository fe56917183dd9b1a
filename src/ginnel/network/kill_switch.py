"""Nothing leaves but to the servers, on loopback and through the tunnel: a table of our own in nftables."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterable
from ipaddress import ip_address

from ginnel.errors import DeviceError

Server = tuple[str, int, str]
"""An address, a port, and ``udp`` or ``tcp``."""
Port = tuple[int, str]
"""The same without the address."""


def rules(device: str, servers: Iterable[Server]) -> str:
    """The table, as nft(8) reads it; it replaces an earlier one in one transaction."""
    allowed = []
    for host, port, protocol in servers:
        address = ip_address(host)
        family = "ip6" if address.version == 6 else "ip"
        allowed.append(f"{family} daddr {address} {protocol} dport {port} accept")
    lines = "\n        ".join([f'oifname {{ "lo", "{device}" }} accept', *dict.fromkeys(allowed), *HOUSEKEEPING])
    return f"""table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
    chain output {{
        type filter hook output priority filter; policy drop;
        {lines}
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        oifname "{device}" accept
        iifname "{device}" accept
    }}
}}
"""


def close(device: str, servers: Iterable[Server]) -> None:
    """Puts it up, or another in its place without a gap. Raises DeviceError."""
    load(rules(device, servers), "the kill switch")


def open_again() -> None:
    """Takes it down, if it is there. Raises DeviceError."""
    load(f"table inet {TABLE}\ndelete table inet {TABLE}\n", "the end of the kill switch")


def load(text: str, what: str) -> None:
    """Has nft(8) carry a text out, whole or not at all. Raises DeviceError, with ``what`` it was."""
    try:
        done = subprocess.run(["nft", "-f", "-"], input=text.encode(), capture_output=True, timeout=10, check=False)
    except FileNotFoundError:
        raise DeviceError(errno.ENOENT, f"{what} needs the program nft (the package nftables)") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(errno.EIO, f"nft did not answer ({error})") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[:1]
        raise DeviceError(errno.EIO, f"nft refused {what}: {''.join(reason)}")


TABLE = "ginnel"
# Marks of single sockets, which only root can set: those that ask for the servers' names, made by the helper, and one
# of the tunnel's whose datagrams go where nobody can tell beforehand.
NAMES_MARK, TUNNEL_MARK = 0x67696E6E, 0x67696E74
# Beside the servers' names: what keeps the link itself alive, DHCP's leases and the neighbours' addresses.
HOUSEKEEPING = (
    f"meta mark {NAMES_MARK} udp dport 53 accept",
    f"meta mark {TUNNEL_MARK} meta l4proto udp accept",
    "udp sport 68 udp dport 67 accept",
    "udp sport 546 udp dport 547 accept",
    "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept",
)
