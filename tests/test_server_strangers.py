"""Whoever knocks without a key, or with one and nothing behind it, keeps nobody else out."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ginnel.openvpn.wrap import StaticKey, TlsAuth, TlsCrypt, Wrap
from ginnel.server import Server
from tests.harness.people import People
from tests.test_egress import until
from tests.test_server_service import connecting, reaches, serving

KEY = StaticKey(os.urandom(256))
WRAPS: dict[str, tuple[Wrap | None, list[str], str | None]] = {
    "tls-crypt-v2": (None, [], None),
    "tls-crypt": (TlsCrypt(KEY), [], f"<tls-crypt>\n{KEY.emit()}</tls-crypt>\n"),
    "tls-auth": (TlsAuth(KEY, "SHA1", 0), ["key-direction 1"], f"<tls-auth>\n{KEY.emit()}</tls-auth>\n"),
}


@contextlib.contextmanager
def noise(server: Server, seed: int) -> Iterator[list[int]]:
    """Some thousand packets a second that look like clients' first ones, from all over loopback; how many so far."""
    choose = random.Random(seed)
    place = next(place for place in server.places if place.proto == "udp")
    stop, sent = threading.Event(), [0]

    def make() -> None:
        with contextlib.ExitStack() as stack:
            socks = []
            for _ in range(100):
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind((f"127.{choose.randrange(1, 255)}.{choose.randrange(255)}.{choose.randrange(1, 255)}", 0))
                socks.append(sock)
            while not stop.is_set():
                for sock in socks:
                    opcode = choose.choice([7, 10])
                    wrapped = choose.randbytes(300) + (302).to_bytes(2, "big")
                    packet = bytes([opcode << 3]) + choose.randbytes(53) + (wrapped if opcode == 10 else b"")
                    with contextlib.suppress(OSError):
                        sock.sendto(packet, (place.address, place.port))
                        sent[0] += 1
                time.sleep(0.02)

    thread = threading.Thread(target=make)
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("name", WRAPS)
async def test_noise_from_everywhere_keeps_no_new_client_out(name: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    wrap, lines, block = WRAPS[name]
    people = People()
    people.add("alice")
    async with serving(people, wrap=wrap) as server:
        with noise(server, seed) as sent:
            await until(lambda: sent[0] > 3000)
            async with connecting(server, people, "alice", *lines, wrap=block, timeout=20) as alice:
                await reaches(alice, server)
                counted = server.statistics()
        # Python saw the one client, and nothing of the noise.
        assert counted["endpoint"]["received"] < 100
        assert counted["plane"]["strangers_unauthenticated"] > 1000
        assert counted["plane"]["strangers_dropped"] == 0
