"""``python -m ginnel.bench.plumbing LOCAL REMOTE``: a TUN device joined to another by UDP, and nothing else.

No protocol and no cipher, so that it shows what the kernel's part of a tunnel costs: long packets as the device
gives them (vnet header), cut by one send (UDP segmentation), put together by one receive (GRO). What is between
the sockets is the device's bytes, so that it works between two of these alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading

from ginnel.device.kernel import KernelDevice


def main(local: str, remote: str) -> None:
    device = KernelDevice(DEVICE, vnet_header=True)
    with device, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind((local, PORT))
        udp.connect((remote, PORT))
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            udp.setsockopt(socket.SOL_SOCKET, option, 8 << 20)
        udp.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        device.offload()
        os.set_blocking(device.application.fileno(), True)
        print("ready", flush=True)
        threading.Thread(target=_send, args=(device.application.fileno(), udp), daemon=True).start()
        _receive(device.application.fileno(), udp)


def _send(device: int, udp: socket.socket) -> None:
    cut = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", SEGMENT))]
    while True:
        packet = os.read(device, LONGEST)
        # The other side may not be there yet.
        with contextlib.suppress(ConnectionRefusedError):
            if len(packet) > SEGMENT:
                udp.sendmsg([packet], cut)
            else:
                udp.send(packet)


def _receive(device: int, udp: socket.socket) -> None:
    while True:
        # Nor may it, or our own device, be up.
        with contextlib.suppress(OSError):
            os.write(device, udp.recvmsg(LONGEST, 64)[0])


DEVICE = "plumb0"
PORT = 7000
SEGMENT = 1400
LONGEST = 65_600
# From linux/udp.h.
UDP_SEGMENT, UDP_GRO = 103, 104

if __name__ == "__main__":
    main(*sys.argv[1:3])
