"""A program that is lent to, run with the name of an interface of the machine's: asks for all that can be changed of
it without netlink, and says a JSON object, what each call was told; then configures a device of its own so."""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Callable

SIOCADDRT, SIOCDELRT, SIOCGIFCONF, SIOCSIFFLAGS, SIOCSIFADDR = 0x890B, 0x890C, 0x8912, 0x8914, 0x8916
SIOCSIFNETMASK, SIOCGIFMTU, SIOCGIFINDEX, SIOCDIFADDR = 0x891C, 0x8921, 0x8933, 0x8936
FOUR = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
SIX = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)


def main(name: bytes) -> None:
    index, mtu = number(SIOCGIFINDEX, name), number(SIOCGIFMTU, name)
    told = {what: refused(fcntl.ioctl, *call) for what, call in changes(name, index).items()}
    for what, protocol in (("IPsec", 6), ("nftables", 12)):
        told[what] = refused(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    for what, folder in (("sysctl", "/proc/sys/net"), ("sysctl of a thread", "/proc/thread-self/root/proc/sys/net")):
        told[what] = refused(os.open, f"{folder}/ipv4/ip_forward", os.O_WRONLY)
    told["iptables"] = refused(FOUR.setsockopt, socket.SOL_IP, 64, bytes(84))
    by_gateway, by_name = rtentry("10.78.0.0", 16, gateway="10.3.3.9"), rtentry("10.79.0.0", 16, name)
    routes = [refused(fcntl.ioctl, FOUR, SIOCADDRT, route) for route in (by_gateway, by_name, by_name)]

    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, 0x400454CA, ifreq(b"lent7", struct.pack("=H", 0x1001)))
    own = number(SIOCGIFINDEX, b"lent7")
    fcntl.ioctl(FOUR, SIOCSIFADDR, ifreq(b"lent7", address("10.9.0.1")))
    fcntl.ioctl(FOUR, SIOCSIFNETMASK, ifreq(b"lent7", address("255.255.255.0")))
    fcntl.ioctl(FOUR, SIOCSIFFLAGS, ifreq(b"lent7", struct.pack("=H", 1)))
    for request, text in ((SIOCSIFADDR, "fd00::9"), (SIOCSIFADDR, "fd00::a"), (SIOCDIFADDR, "fd00::a")):
        fcntl.ioctl(SIX, request, in6_ifreq(text, own))
    for request, sock, route in (
        (SIOCADDRT, FOUR, rtentry("10.77.0.0", 16, b"lent7")),
        (SIOCADDRT, FOUR, rtentry("192.0.2.1", 32, gateway="10.9.0.7")),
        (SIOCADDRT, FOUR, rtentry("10.76.0.0", 16, b"lent7")),
        (SIOCADDRT, FOUR, rtentry("10.75.0.0", 16, b"none")),
        (SIOCDELRT, FOUR, rtentry("10.76.0.0", 16)),
        (SIOCDELRT, FOUR, rtentry("10.74.0.0", 16)),
        (SIOCADDRT, SIX, in6_rtmsg("fd77::", 32, own)),
    ):
        routes.append(refused(fcntl.ioctl, sock, request, route))
    print(json.dumps({"mtu": mtu, "told": told, "routes": routes}), flush=True)
    for words in ("-4 route", "-6 route show dev lent7", "-6 -o address show dev lent7"):
        os.spawnlp(os.P_WAIT, "ip", "ip", *words.split())


def changes(name: bytes, index: int) -> dict[str, tuple[socket.socket, int, bytes]]:
    """The arguments of ioctl, each of which changes something for whoever has the right to."""
    mac, port = b"\2\0\0\0\0\7", struct.pack("=H", 1)
    arp = address("10.3.3.7") + port + mac.ljust(14, b"\0") + struct.pack("=i16s16s", 2, b"", name)
    table = {
        "SIOCSIFADDR": (SIOCSIFADDR, ifreq(name, address("10.4.4.4"))),
        "SIOCSIFNETMASK": (SIOCSIFNETMASK, ifreq(name, address("255.255.0.0"))),
        "SIOCSIFMTU": (0x8922, ifreq(name, struct.pack("=i", 1400))),
        "SIOCSIFTXQLEN": (0x8943, ifreq(name, struct.pack("=i", 7))),
        "SIOCADDMULTI": (0x8931, ifreq(name, bytes(2) + b"\1\0\x5e\1\2\3")),
        "SIOCSARP": (0x8955, arp),
        "SIOCGIFBR": (0x8940, struct.pack("@LPL", 2, 0, 0)),
        "SIOCETHTOOL": (0x8946, ifreq(name)),
        "SIOCSIFVLAN": (0x8983, bytes(40)),
        "SIOCBONDENSLAVE": (0x8990, ifreq(name)),
        "SIOCBRADDBR": (0x89A0, b"br9".ljust(40, b"\0")),
        "SIOCADDTUNNEL": (0x89F1, ifreq(name)),
        "SIOCSIWFREQ": (0x8B04, ifreq(name)),
        "SIOCSIFFLAGS": (SIOCSIFFLAGS, ifreq(name)),
        "SIOCSIFHWADDR": (0x8924, ifreq(name, port + mac)),
        "SIOCSIFNAME": (0x8923, ifreq(name, b"other")),
    }
    called = {what: (FOUR, *call) for what, call in table.items()}
    return {"SIOCSIFADDR of IPv6": (SIX, SIOCSIFADDR, in6_ifreq("fd00::7", index)), **called}


def refused(act: Callable[..., object], *arguments: object) -> str:
    """The error, or nothing."""
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def number(request: int, name: bytes) -> int:
    return int(struct.unpack_from("=i", fcntl.ioctl(FOUR, request, ifreq(name)), 16)[0])


def address(text: str) -> bytes:
    return struct.pack("=H2x4s8x", socket.AF_INET, socket.inet_aton(text))


def ifreq(name: bytes, value: bytes = b"") -> bytes:
    return struct.pack("=16s24s", name, value)


def in6_ifreq(text: str, index: int) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text) + struct.pack("=Ii", 64, index)


def in6_rtmsg(text: str, length: int, index: int) -> bytes:
    destination = socket.inet_pton(socket.AF_INET6, text)
    return struct.pack("@16s16s16sIHHILIi0L", destination, b"", b"", 0, length, 0, 1, 0, 1, index)


def rtentry(text: str, length: int, device: bytes = b"", gateway: str = "") -> bytes:
    mask = socket.inet_ntoa(((1 << 32) - (1 << 32 - length)).to_bytes(4, "big"))
    way = address(gateway) if gateway else b""
    flags = 1 | (2 if gateway else 0) | (4 if length == 32 else 0)
    return struct.pack(
        "@L16s16s16sHhLPhPLLH0L", 0, address(text), way, address(mask), flags, 0, 0, 0, 0, pointer(device), 0, 0, 0
    )


def pointer(text: bytes) -> int:
    if not text:
        return 0
    kept = array.array("b", text + b"\0")
    _KEPT.append(kept)
    return kept.buffer_info()[0]


_KEPT: list[array.array[int]] = []

if __name__ == "__main__":
    main(sys.argv[1].encode())
