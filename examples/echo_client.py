"""Three senders at once, and a UDP echo server behind a device: python examples/echo_client.py ADDRESS PORT FROM [NAME]

`ginnel echo server --device NAME` is such a server. FROM is the first sender's address, of the device's network.
"""

import os
import select
import struct
import sys
import time

from tun import ipv4_address, ipv4_packet, open_tun

if len(sys.argv) <= 3:
    sys.exit(__doc__)
address, source = ipv4_address(sys.argv[1]), ipv4_address(sys.argv[3])
if not sys.argv[2].isdecimal() or not 0 < (port := int(sys.argv[2])) < 65536:
    sys.exit(f"{sys.argv[2]} is no port")
(first,) = struct.unpack("!I", source)
senders = [struct.pack("!I", first + number) for number in range(3)]
tun = open_tun(sys.argv[4] if len(sys.argv) > 4 else None)

missing = {(sender, 5000 + number) for sender in senders for number in range(10)}
sent = len(missing)
# Datagrams get lost, on a device of the kernel's those of its first moment: what is missing is sent again.
for _ in range(5):
    for sender, from_port in missing:
        text = f"from port {from_port}".encode()
        # Without a checksum, as IPv4 allows.
        datagram = struct.pack("!HHHH", from_port, port, 8 + len(text), 0) + text
        os.write(tun, ipv4_packet(sender, address, 17, datagram))
    end = time.monotonic() + 1
    while missing and (left := end - time.monotonic()) > 0:
        if not select.select([tun], [], [], left)[0]:
            break
        packet = os.read(tun, 65536)
        if packet[0] >> 4 == 4 and packet[9] == 17 and packet[12:16] == address:
            (to_port,) = struct.unpack_from("!H", packet, 22)
            if packet[28:] == f"from port {to_port}".encode():
                missing.discard((packet[16:20], to_port))
print(f"{sent} sent, {sent - len(missing)} came back")
sys.exit(0 if not missing else 1)
