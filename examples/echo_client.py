"""Three senders at once, and a UDP echo server behind a device: python examples/echo_client.py ADDRESS PORT FROM [NAME]

`ginnel echo server --device NAME` is such a server. FROM is the first sender's address, of the device's network.
"""

import os
import select
import socket
import struct
import sys
import time

from tun import ipv4_packet, open_tun

address, port = socket.inet_aton(sys.argv[1]), int(sys.argv[2])
(first,) = struct.unpack("!I", socket.inet_aton(sys.argv[3]))
senders = [struct.pack("!I", first + number) for number in range(3)]
tun = open_tun(sys.argv[4] if len(sys.argv) > 4 else None)

missing = set()
for sender in senders:
    for number in range(10):
        text = f"datagram {number}".encode()
        # Without a checksum, as IPv4 allows.
        datagram = struct.pack("!HHHH", 5000 + number, port, 8 + len(text), 0) + text
        os.write(tun, ipv4_packet(sender, address, 17, datagram))
        missing.add((sender, 5000 + number, text))
sent = len(missing)

end = time.monotonic() + 5
while missing and (left := end - time.monotonic()) > 0:
    if not select.select([tun], [], [], left)[0]:
        break
    packet = os.read(tun, 65536)
    if packet[0] >> 4 == 4 and packet[9] == 17 and packet[12:16] == address:
        (to_port,) = struct.unpack_from("!H", packet, 22)
        missing.discard((packet[16:20], to_port, packet[28:]))
print(f"{sent} sent, {sent - len(missing)} came back")
