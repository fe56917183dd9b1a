"""``python -m ginnel.bench.plane SIDE``: a bare data plane with keys that all know, on a kernel device.

What ``--tun`` runs for data, without a handshake before it. SIDE is ``left`` or ``right``.
"""

from __future__ import annotations

import signal
import socket
import sys
from ipaddress import ip_interface

from ginnel.bench.spaces import LEFT, RIGHT
from ginnel.device.interface import Address
from ginnel.device.kernel import KernelDevice


def main(side: str) -> None:
    own, other = (LEFT, RIGHT) if side == "left" else (RIGHT, LEFT)
    inner = "10.9.0.1/24" if side == "left" else "10.9.0.2/24"
    keys = [bytes(range(128)), bytes(range(128, 256))]
    seal, unseal = keys if side == "left" else keys[::-1]
    with KernelDevice("tun%d", vnet_header=True, mtu=1500) as device:
        device.add_address(Address(ip_interface(inner)))
        plane = device.data_plane()
        device.set_up(True)
        outer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        outer.bind((own, PORT))
        outer.connect((other, PORT))
        outer.setblocking(False)
        number = plane.add_udp(outer.detach())
        plane.new_peer(0, (number, other, PORT), 0)
        plane.new_key(0, 1, 0, "AES-256-GCM", seal, unseal)
        plane.swap(0, 1)
        plane.set_routes(0, ["0.0.0.0/0", "::/0"], None)
        plane.set_peer(0, 10, 60, MSS)
        print("ready", flush=True)
        signal.sigwait([signal.SIGTERM, signal.SIGINT])
        plane.close()


PORT = 1194
# As OpenVPN's own `mssfix 1492` makes it for this cipher.
MSS = 1400

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    main(sys.argv[1])
