"""``python -m ginnel.bench.datagrams send ADDRESS RATE SECONDS LEN`` and ``… receive``: UDP of LEN bytes of payload.

The sender makes a system call for each and catches up with its pace every millisecond; it prints how many it sent and
how many seconds it took, the receiver how many came once it is told to end.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import time


def send(address: str, rate: float, seconds: float, size: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outer:
        outer.connect((address, PORT))
        one, sent, began = bytes(size), 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            # Never more at once than a millisecond's: a burst after a pause would be another experiment.
            for _ in range(min(round(passed * rate) - sent, round(rate / 1000) + 1)):
                outer.send(one)
                sent += 1
            time.sleep(max(0, sent / rate - (time.perf_counter() - began)))
        print(json.dumps([sent, time.perf_counter() - began]))


def receive() -> None:
    came, into = 0, bytearray(2048)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as inner:
        inner.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        inner.bind(("", PORT))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        print("ready", flush=True)
        with contextlib.suppress(SystemExit):
            while True:
                inner.recv_into(into)
                came += 1
        # What has arrived has come, however far this program is behind.
        inner.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                inner.recv_into(into)
                came += 1
    print(f"came {came}", flush=True)


PORT = 5202
SO_RCVBUFFORCE = 33

if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
    else:
        receive()
