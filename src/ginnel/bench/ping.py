"""``python -m ginnel.bench.ping ADDRESS COUNT INTERVAL``: round trips of echo requests in ms, as a JSON list.

At a steady pace, whether or not the one before was answered; a lost one counts as `LOST`. What is measured is the
tunnel, not how long this program waits for a core: it is ahead of everything else on this machine, and the kernel says
when an answer came, as it does for ``ping``.
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
    sent, times = [0] * count, [LOST] * count
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        raw.connect((address, 0))
        began, asked, answered = time.perf_counter(), 0, 0
        while answered < count:
            now = time.perf_counter() - began
            if asked < count and now >= asked * interval:
                sent[asked] = time.time_ns()
                raw.send(_request(mark, asked))
                asked += 1
                continue
            due = asked * interval if asked < count else (count - 1) * interval + LOST / 1000
            if due <= now:
                break
            if not select.select([raw], [], [], due - now)[0]:
                continue
            packet, control, _, _ = raw.recvmsg(2048, CONTROL)
            reply, came = packet[20:], _timestamp(control)
            kind, _, _, its, number = struct.unpack_from("!BBHHH", reply)
            if (kind, its) == (0, mark) and number < count and times[number] == LOST:
                times[number] = (came - sent[number]) / 1e6
                answered += 1
    return times


def _request(mark: int, number: int) -> bytes:
    message = struct.pack("!BBHHH", 8, 0, 0, mark, number) + bytes(56)
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return message[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + message[4:]


def _timestamp(control: list[tuple[int, int, bytes]]) -> int:
    """When a message came, in ns of the clock that ``time.time_ns`` has (SO_TIMESTAMPNS, socket(7))."""
    seconds, nanoseconds = struct.unpack("@qq", control[0][2])
    return int(seconds * 10**9 + nanoseconds)


LOST = 1000.0
# Not among Python's names: asm-generic/socket.h, of every machine but SPARC and PA-RISC.
SO_TIMESTAMPNS = 35
CONTROL = socket.CMSG_SPACE(16)

if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))))
