"""Sends every datagram that comes out of a device back: python examples/echo_server.py [NAME]"""

import os
import sys

from tun import checksum, ipv4_packet, ipv6_packet, open_tun


def echo(packet):
    """The same datagram with its addresses and ports changed about; None for any other packet."""
    version = packet[0] >> 4
    if version == 4 and packet[9] == 17:
        datagram, source, destination = packet[(packet[0] & 15) * 4 :], packet[16:20], packet[12:16]
        # IPv4 allows a datagram without a checksum.
        reply = datagram[2:4] + datagram[0:2] + datagram[4:6] + b"\0\0" + datagram[8:]
        return ipv4_packet(source, destination, 17, reply)
    if version == 6 and packet[6] == 17:
        datagram, source, destination = packet[40:], packet[24:40], packet[8:24]
        reply = datagram[2:4] + datagram[0:2] + datagram[4:6] + b"\0\0" + datagram[8:]
        pseudo_header = source + destination + len(reply).to_bytes(4, "big") + b"\0\0\0\x11"
        # A sum of zero would say that there is none.
        found = checksum(pseudo_header + reply).replace(b"\0\0", b"\xff\xff")
        return ipv6_packet(source, destination, 17, reply[:6] + found + reply[8:])
    return None


tun = open_tun(sys.argv[1] if len(sys.argv) > 1 else None)
print("waiting for datagrams", flush=True)
senders = {}
try:
    # Nothing to read is the end of the device.
    while packet := os.read(tun, 65536):
        reply = echo(packet)
        if reply:
            sender = packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]
            senders[sender] = senders.get(sender, 0) + 1
            os.write(tun, reply)
except KeyboardInterrupt:
    pass
print(f"{sum(senders.values())} datagrams from {len(senders)} senders sent back")
