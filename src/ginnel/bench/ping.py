"""``python -m ginnel.bench.ping ADDRESS COUNT INTERVAL``: round trips of echo requests in ms, as a JSON list.

At a steady pace, whether or not the one before was answered; a lost one counts as `LOST`. Ahead of everything else
on this machine, for what is measured is the tunnel, not how long this program waits for a core.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time


def main(address: str, count: int, interval: float) -> list[float]:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    mark = os.getpid() & 0xFFFF
    sent, times = [0.0] * count, [LOST] * count
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.connect((address, 0))
        began, asked, answered = time.perf_counter(), 0, 0
        while answered < count:
            now = time.perf_counter() - began
            if asked < count and now >= asked * interval:
                sent[asked] = time.perf_counter()
                raw.send(_request(mark, asked))
                asked += 1
                continue
            due = asked * interval if asked < count else (count - 1) * interval + LOST / 1000
            if due <= now:
                break
            if not select.select([raw], [], [], due - now)[0]:
                continue
            reply = raw.recv(2048)[20:]
            kind, _, _, its, number = struct.unpack_from("!BBHHH", reply)
            if (kind, its) == (0, mark) and number < count and times[number] == LOST:
                times[number] = (time.perf_counter() - sent[number]) * 1000
                answered += 1
    return times


def _request(mark: int, number: int) -> bytes:
    message = struct.pack("!BBHHH", 8, 0, 0, mark, number) + bytes(56)
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return message[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + message[4:]


LOST = 1000.0

if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
