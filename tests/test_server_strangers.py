"""Whoever knocks without a key, or with one and nothing behind it, keeps nobody else out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ginnel.openvpn import events, settings
from ginnel.openvpn.client import ClientPolicy
from ginnel.openvpn.ovpn_file import parse_ovpn
from ginnel.openvpn.packets import ControlPacket, Header, Opcode
from ginnel.openvpn.session import Session
from ginnel.openvpn.tls_crypt_v2 import ServerKey, TlsCryptV2, TlsCryptV2Server
from ginnel.openvpn.wrap import StaticKey, TlsAuth, TlsCrypt, TlsCryptWrapper, Wrap
from ginnel.server import Server
from tests.harness.crowd import CrowdClient
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


def first_packet(people: People, name: str, *lines: str, block: str | None = None) -> bytes:
    """A client's, with all that it needs to be answered."""
    config = parse_ovpn(people.client_file(name, "remote 127.0.0.1 1194 udp", *lines, wrap=block))
    policy = ClientPolicy(
        settings.client_settings(config, config.remotes[0], settings.tls_context(config)), None, unix_time=time.time()
    )
    session = Session(policy, path=(0, "127.0.0.1", 1194), random=os.urandom, now=0.0)
    ((reset, _),) = session.datagrams_to_send(0.0)
    return reset


async def test_who_is_inside_has_turns_while_many_come() -> None:
    people = People()
    people.add("alice")
    async with serving(people, connect_freq_initial=(1000, 1.0)) as server:
        place = next(place for place in server.places if place.proto == "udp")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(100):
                sock.sendto(first_packet(people, "alice"), (place.address, place.port))
        # The loop has no turn until all are there.
        end = time.monotonic() + 20
        while server.statistics()["plane"]["rx_control"] < 100:
            assert time.monotonic() < end
        turns = 0
        while server.statistics()["endpoint"]["received"] < 100:
            await asyncio.sleep(0)
            turns += 1
        assert turns > 10
        assert server.statistics()["endpoint"]["answered"] == 100


@pytest.mark.parametrize("name", WRAPS)
async def test_recordings_of_a_clients_first_packet_keep_no_new_client_out(name: str) -> None:
    """Whoever hears it can send it from everywhere, without any key."""
    wrap, lines, block = WRAPS[name]
    people = People()
    people.add("alice")
    reset = first_packet(people, "alice", *lines, block=block)
    async with serving(people, wrap=wrap) as server:
        place = next(place for place in server.places if place.proto == "udp")
        for number in range(3000):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((f"127.2.{number % 200}.{number // 200 + 1}", 0))
                sock.sendto(reset, (place.address, place.port))
        async with connecting(server, people, "alice", *lines, wrap=block, timeout=20) as alice:
            await reaches(alice, server)
        assert server.statistics()["endpoint"]["answered"] < 10
        assert server.statistics()["plane"]["strangers_replayed"] > 1000


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


async def test_who_has_a_file_keeps_nobody_with_another_out() -> None:
    """One that was revoked, too. From everywhere, each packet new: that an address is another's shows in its answer."""
    people = People()
    people.add("alice")
    people.add("bob")
    config = parse_ovpn(people.client_file("bob", "remote 127.0.0.1 1194 udp"))
    wrap = settings.client_settings(config, config.remotes[0], settings.tls_context(config)).wrap
    people.revoke("bob")
    # More within the test's time than it lets one of them through, at each of both places that count.
    async with serving(people, connect_freq_initial=(50, 36000.0)) as server:
        place = next(place for place in server.places if place.proto == "udp")
        for number in range(1000):
            wrapper = wrap.start(server=False, unix_time=time.time(), now=0.0)
            header = Header(Opcode.HARD_RESET_CLIENT_V3, 0, os.urandom(8))
            packet = wrapper.wrap(ControlPacket(header, (), None, 0, b"").emit(), 0.0)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((f"127.3.{number % 200}.{number // 200 + 1}", 0))
                sock.sendto(packet, (place.address, place.port))
        await until(lambda: server.statistics()["plane"]["strangers_dropped"] > 0)
        for proto in ("udp", "tcp"):
            async with connecting(server, people, "alice", proto=proto, timeout=20) as alice:
                await reaches(alice, server)
        assert server.statistics()["endpoint"]["over_connect_freq_initial"] > 0


@pytest.mark.parametrize("digest", ["MD5", "SHA3-256"])
async def test_tls_auth_has_any_digest(digest: str) -> None:
    people = People()
    people.add("alice")
    _, lines, block = WRAPS["tls-auth"]
    own = TlsAuth(KEY, digest, 0)
    for wrap in (own, TlsCryptV2Server(ServerKey.parse(people.identity.tls_crypt_v2), fallback=own)):
        async with serving(people, wrap=wrap) as server:
            async with connecting(server, people, "alice", *lines, f"auth {digest}", wrap=block) as alice:
                await reaches(alice, server)
            if wrap is not own:
                async with connecting(server, people, "alice") as alice:
                    await reaches(alice, server)


async def test_a_client_before_2_6_is_not_answered_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    people = People()
    people.add("alice")
    config = parse_ovpn(people.client_file("alice", "remote 127.0.0.1 1194 udp"))
    wrap = settings.client_settings(config, config.remotes[0], settings.tls_context(config)).wrap
    assert isinstance(wrap, TlsCryptV2)
    # Without the sign that it can repeat its key.
    old = TlsCryptWrapper(wrap.key.key, server=False, unix_time=time.time(), now=0.0, wrapped_key=wrap.key.wrapped)
    reset = ControlPacket(Header(Opcode.HARD_RESET_CLIENT_V3, 0, b"old one!"), (), None, 0, b"").emit()
    async with serving(people) as server:
        place = next(place for place in server.places if place.proto == "udp")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(3):
                sock.sendto(old.wrap(reset, 0.0), (place.address, place.port))
            await until(lambda: server.statistics()["endpoint"]["no_early_negotiation"] == 3)
    told = [record.getMessage() for record in caplog.records if getattr(record, "event", None) == "turned_away"]
    assert len(told) == 1
    assert "before OpenVPN 2.6" in told[0]


# TCP.


class Connection:
    """A TCP connection to a server, on which sessions are held without a client around them."""

    def __init__(self, server: Server, people: People, source: str = "127.0.0.1") -> None:
        place = next(place for place in server.places if place.proto == "tcp")
        self._text = people.client_file("alice", f"remote {place.address} {place.port} tcp")
        self._path = (0, place.address, place.port)
        self.sock = socket.create_connection((place.address, place.port), timeout=20, source_address=(source, 0))
        self._sock_file = self.sock.makefile("rb")

    def session(self) -> Session:
        config = parse_ovpn(self._text)
        tls = settings.tls_context(config)
        policy = ClientPolicy(settings.client_settings(config, config.remotes[0], tls), None, unix_time=time.time())
        return Session(policy, path=self._path, random=os.urandom, now=time.monotonic())

    def say(self, session: Session) -> None:
        for datagram, _ in session.datagrams_to_send(time.monotonic()):
            self.sock.sendall(len(datagram).to_bytes(2, "big") + datagram)

    def run(self, session: Session, done: Callable[[events.Event], bool]) -> None:
        """Lets the session speak until it has such an event. EOFError when the server ends the connection."""
        while True:
            while (event := session.next_event()) is not None:
                if done(event):
                    self.say(session)
                    return
            self.say(session)
            size = int.from_bytes(self._read(2), "big")
            session.receive_datagram(self._read(size), self._path, time.monotonic())

    def wait_closed(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while self._read(1):
                pass

    def close(self) -> None:
        self._sock_file.close()
        self.sock.close()

    def _read(self, size: int) -> bytes:
        data = self._sock_file.read(size)
        if len(data) < size:
            raise EOFError
        return data


async def test_a_connection_whose_session_leads_nowhere_is_closed() -> None:
    people = People()
    people.add("alice")
    async with serving(people, hand_window=1.0) as server:
        with contextlib.closing(await asyncio.to_thread(Connection, server, people)) as connection:
            connection.say(connection.session())
            await until(lambda: server.statistics()["endpoint"]["created"] == 1)
            await asyncio.wait_for(asyncio.to_thread(connection.wait_closed), 20)


async def test_a_client_that_begins_anew_on_its_connection_keeps_it() -> None:
    people = People()
    people.add("alice")

    async with serving(people) as server:
        with contextlib.closing(await asyncio.to_thread(Connection, server, people)) as connection:
            sessions = [connection.session(), connection.session()]
            for session in sessions:
                up = asyncio.to_thread(connection.run, session, lambda event: isinstance(event, events.Established))
                await asyncio.wait_for(up, 20)
            await until(lambda: len(people.sessions) == 2 and people.sessions[0][4] is not None)
            sessions[1].renegotiate(time.monotonic())
            again = asyncio.to_thread(connection.run, sessions[1], lambda event: isinstance(event, events.NewKey))
            await asyncio.wait_for(again, 20)
            assert len(server.clients) == 1


@pytest.mark.parametrize("sources", [1, 150])
async def test_connections_that_say_nothing_keep_nobody_else_out(
    caplog: pytest.LogCaptureFixture, sources: int
) -> None:
    people = People()
    people.add("alice")
    async with serving(people, max_clients=5) as server:
        with contextlib.ExitStack() as stack:
            for number in range(300):
                source = f"127.1.0.{number % sources + 1}" if sources > 1 else "127.0.0.1"
                connection = await asyncio.to_thread(Connection, server, people, source)
                stack.callback(connection.close)
            async with connecting(server, people, "alice", proto="tcp") as alice:
                await reaches(alice, server)
    told = [record for record in caplog.records if getattr(record, "event", None) == "tcp_crowded"]
    assert len(told) == 1
    assert ("127.0.0.1" in told[0].getMessage()) == (sources == 1)


async def test_who_talks_and_moves_as_he_likes_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    people = People()
    people.add("alice")
    caplog.set_level(logging.INFO)

    def told(event: str) -> list[logging.LogRecord]:
        return [record for record in caplog.records if getattr(record, "event", None) == event]

    async with serving(people) as server:
        with contextlib.closing(await asyncio.to_thread(Connection, server, people)) as connection:
            session = connection.session()
            up = asyncio.to_thread(connection.run, session, lambda event: isinstance(event, events.Established))
            await asyncio.wait_for(up, 20)
            session.send_message("\0".join(f"x{number}" for number in range(100)))
            connection.say(session)
            await until(lambda: bool(told("notice")))
            # The last one tells that all have come.
            session.renegotiate(time.monotonic())
            again = asyncio.to_thread(connection.run, session, lambda event: isinstance(event, events.NewKey))
            await asyncio.wait_for(again, 20)
            assert len(told("notice")) == 10
        place = next(place for place in server.places if place.proto == "udp")
        config = parse_ovpn(people.client_file("alice", f"remote {place.address} {place.port} udp"))
        client = CrowdClient(config, settings.tls_context(config))
        await asyncio.wait_for(client.up, 20)
        for count in range(1, 31):
            client.move()
            client.ask(bytes([10, 8, 0, 1]))
            await until(lambda count=count: server.statistics()["plane"]["floats"] == count)
        await until(lambda: bool(told("moved")))
        client.close()
    assert 0 < len(told("moved")) <= 10


async def test_sessions_that_fail_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    people = People()
    people.add("alice")
    async with serving(people, hand_window=1.0) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                connection = await asyncio.to_thread(Connection, server, people)
                stack.callback(connection.close)
                connection.say(connection.session())
            await until(lambda: server.statistics()["endpoint"]["created"] == 60)
            await until(lambda: server.statistics()["endpoint"]["sessions"] == 0)
    told = [record for record in caplog.records if getattr(record, "event", None) == "failed"]
    assert len(told) == 30
