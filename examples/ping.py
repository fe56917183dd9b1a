"""Pings the network stack behind a device: python examples/ping.py ADDRESS FROM [NAME]

ADDRESS is the device's own, FROM whatever address you like of its network.
"""

import os
import select
import struct
import sys
import time

from tun import checksum, ipv4_address, ipv4_packet, open_tun

if len(sys.argv) <= 2:
    sys.exit(__doc__)
address, source = (ipv4_address(text) for text in sys.argv[1:3])
tun = open_tun(sys.argv[3] if len(sys.argv) > 3 else None)
received = 0
for sequence in range(1, 5):
    message = struct.pack("!HH", os.getpid() & 0xFFFF, sequence) + b"hello from a script"
    request = b"\x08\0" + checksum(b"\x08\0\0\0" + message) + message
    sent = time.monotonic()
    os.write(tun, ipv4_packet(source, address, 1, request))
    reply = b""
    while (left := sent + 1 - time.monotonic()) > 0 and reply != message:
        if select.select([tun], [], [], left)[0]:
            packet = os.read(tun, 65536)
            if packet[0] >> 4 == 4 and packet[9] == 1 and packet[20] == 0:
                reply = packet[24:]
    if reply == message:
        print(f"reply {sequence} from {sys.argv[1]} after {(time.monotonic() - sent) * 1000:.2f} ms")
        received += 1
    else:
        print(f"no reply to {sequence}")
print(f"4 sent, {received} received")
sys.exit(0 if received else 1)
