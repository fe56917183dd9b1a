"""Opening a TUN device, and the checksum that the packets on it carry. The other scripts here use it."""

import errno
import fcntl
import os
import socket
import struct
import sys

import ginnel.device

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000


def open_tun(name=None):
    """A descriptor of which each read is a packet, and each write.

    The device of that name that `ginnel device create` made; where there is none, one of /dev/net/tun,
    which is the kernel's, or the one that `ginnel lend` lends.
    """
    if name:
        try:
            end = ginnel.device.open(name)
            if end.kind == "tap":
                sys.exit(f"{name} carries Ethernet frames; this script is for a TUN device")
            return end.open_fd()
        except OSError as error:
            if error.errno != errno.ENODEV:
                sys.exit(str(error))
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", (name or "tun%d").encode(), IFF_TUN | IFF_NO_PI))
    except OSError as error:
        sys.exit(f"/dev/net/tun: {error.strerror}; `ginnel device create NAME` makes a device for everyone")
    return tun


def ipv4_address(text):
    """Its four bytes."""
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except OSError:
        sys.exit(f"{text} is no IPv4 address")


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def ipv4_packet(source, destination, protocol, payload):
    header = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol)
    addresses = source + destination
    return header + checksum(header + b"\0\0" + addresses) + addresses + payload


def ipv6_packet(source, destination, protocol, payload):
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + source + destination + payload
