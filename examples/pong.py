"""Answers every ping that comes out of a device: python examples/pong.py [NAME]"""

import os
import sys

from tun import checksum, ipv4_packet, ipv6_packet, open_tun


def pong(packet):
    """The answer to an echo request; None for any other packet."""
    version = packet[0] >> 4
    if version == 4 and packet[9] == 1:
        message = packet[(packet[0] & 15) * 4 :]
        if message[0] == 8:
            reply = b"\0\0" + checksum(b"\0\0\0\0" + message[4:]) + message[4:]
            return ipv4_packet(packet[16:20], packet[12:16], 1, reply)
    if version == 6 and packet[6] == 58:
        message, source, destination = packet[40:], packet[24:40], packet[8:24]
        if message[0] == 128:
            pseudo_header = source + destination + len(message).to_bytes(4, "big") + b"\0\0\0\x3a"
            reply = b"\x81\0" + checksum(pseudo_header + b"\x81\0\0\0" + message[4:]) + message[4:]
            return ipv6_packet(source, destination, 58, reply)
    return None


tun = open_tun(sys.argv[1] if len(sys.argv) > 1 else None)
print("waiting for pings", flush=True)
count = 0
try:
    # Nothing to read is the end of the device.
    while packet := os.read(tun, 65536):
        reply = pong(packet)
        if reply:
            count += 1
            os.write(tun, reply)
except KeyboardInterrupt:
    pass
print(f"{count} pings answered")
