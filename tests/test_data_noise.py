"""The data plane on real sockets, behind a wire that loses, repeats, reorders and damages what comes in runs."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from ginnel._core import DataChannel, DataPlane, Device
from tests.test_data_plane import material, udp, until

CIPHERS = [("AES-256-GCM", "none"), ("CHACHA20-POLY1305", "none"), ("AES-128-CBC", "SHA256"), ("AES-192-GCM", "none")]
SERVER = "10.8.0.254"
SOL_UDP, UDP_SEGMENT = 17, 103
#: Datagrams in a run, and bytes in it, that the kernel takes.
MOST_IN_A_RUN, MOST_BYTES = 60, 60_000
#: Where what came ends, if it was an authentic datagram or not.
ENDS = "rx_packets rx_replayed rx_auth_failed rx_malformed rx_no_key rx_no_peer rx_control rx_bad_inner rx_bad_source"


def packet(source: str, destination: str, number: int, size: int) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    body = random.Random(number).randbytes(size - 24)
    return b"\x45" + bytes(11) + addresses + struct.pack("!I", number) + body


def number_of(inner: bytes) -> int:
    return int(struct.unpack("!I", inner[20:24])[0])


@dataclass
class Client:
    """A peer of the server's, whose datagrams the test has in its hands."""

    number: int
    port: socket.socket
    channel: DataChannel = field(default_factory=DataChannel)

    @property
    def inner(self) -> str:
        return f"10.8.0.{self.number}"

    @property
    def cipher(self) -> str:
        return CIPHERS[self.number % len(CIPHERS)][0]

    def meet(self, server: DataPlane, lane_socket: int, at: tuple[str, int]) -> None:
        server.new_peer(self.number, (lane_socket, *self.port.getsockname()), self.number)
        self.channel.new_peer(0, (0, *at), self.number, 0.0)
        server.set_routes(self.number, [f"{self.inner}/32"], [f"{self.inner}/32"])
        self.rekey(server, 1)

    def rekey(self, server: DataPlane, handle: int) -> None:
        cipher, auth = CIPHERS[self.number % len(CIPHERS)]
        up, down = (material(f"{way}{self.number}.{handle}") for way in ("up", "down"))
        server.new_key(self.number, handle, handle % 8, cipher, down, up, auth=auth)
        server.swap(self.number, handle)
        self.channel.new_key(0, handle, handle % 8, cipher, up, down, auth=auth)
        self.channel.swap(0, handle)

    def seal(self, number: int, size: int) -> bytes:
        [(datagram, _)] = self.channel.send_packet(packet(self.inner, SERVER, number, size), 0.0)
        return datagram


@dataclass
class Server:
    plane: DataPlane
    stack: object
    addresses: list[tuple[str, int]]
    sockets: list[int]


@contextlib.contextmanager
def server(lanes: int, apart: bool) -> Iterator[Server]:
    device = Device("tun", 1500, 8192)
    stack = device.attach("interface")
    device.set_up(True)
    plane = DataPlane(device.attach("application"), lanes=lanes, apart=apart)
    bound = [udp() for _ in range(lanes)]
    addresses = [each.getsockname() for each in bound]
    sockets = [plane.add_udp(each.detach()) for each in bound]
    try:
        yield Server(plane, stack, addresses, sockets)
    finally:
        plane.close()
        stack.close()


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("GINNEL_SEED", random.randrange(1 << 32)))
    print(f"GINNEL_SEED={seed}")
    return random.Random(seed)


def noisy(chance: random.Random, datagrams: list[tuple[Client, int, bytes]]) -> list[tuple[Client, int, bytes]]:
    """What becomes of datagrams, each with its client and its inner number: -1 where it was damaged."""
    arriving = []
    for at, (client, number, data) in enumerate(datagrams):
        if chance.random() < 1 / 16:
            continue
        for _ in range(2 if chance.random() < 1 / 8 else 1):
            late = chance.randrange(12) if chance.random() < 1 / 8 else 0
            if chance.random() < 1 / 32:
                # What CBC's digest does not cover, the header, may be damaged and do no harm.
                place = chance.randrange(4 if client.cipher.endswith("CBC") else 0, len(data))
                broken = data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
                arriving.append((at + late, (client, -1, broken)))
            else:
                arriving.append((at + late, (client, number, data)))
    return [datagram for _, datagram in sorted(arriving, key=lambda each: each[0])]


def runs(chance: random.Random, datagrams: list[tuple[Client, int, bytes]]) -> Iterator[tuple[Client, list[bytes]]]:
    """What stands together and leaves as one: of one port and one length, but for a shorter last one."""
    run: list[bytes] = []
    whose, most = datagrams[0][0], chance.randrange(1, MOST_IN_A_RUN)
    for client, _, data in datagrams:
        fits = len(run) < most and sum(map(len, run)) + len(data) <= MOST_BYTES
        if run and not (client.port is whose.port and fits and len(run[-1]) == len(run[0]) >= len(data)):
            yield whose, run
            run, most = [], chance.randrange(1, MOST_IN_A_RUN)
        whose = client
        run.append(data)
    yield whose, run


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("lanes", [1, 3])
def test_what_passes_was_sent_and_passes_once_and_all_else_is_counted(
    chance: random.Random, lanes: int, apart: bool
) -> None:
    """With one lane all peers share a port, so that a run has several peers' datagrams; with three, each has its own,
    and copies of a datagram come to several threads at once."""
    with server(lanes, apart) as there, contextlib.ExitStack() as stack:
        shared = stack.enter_context(udp())
        clients = [
            Client(number, shared if lanes == 1 else stack.enter_context(udp())) for number in range(1, 2 * lanes + 3)
        ]
        for client in clients:
            lane = client.number % lanes
            client.meet(there.plane, there.sockets[lane], there.addresses[lane])
        wanted: Counter[tuple[int, int]] = Counter()
        order: dict[int, list[int]] = {client.number: [] for client in clients}
        came: dict[int, list[int]] = {client.number: [] for client in clients}
        on_the_wire, number = 0, 0

        def received() -> bool:
            for inner in there.stack.read_batch(8192):  # type: ignore[attr-defined]
                assert inner == packet(socket.inet_ntoa(inner[12:16]), SERVER, number_of(inner), len(inner))
                came[inner[15]].append(number_of(inner))
            counted = there.plane.statistics()
            ended = sum(counted[name] for name in ENDS.split()) + counted["rx_float_refused"]
            return ended == on_the_wire and sum(map(len, came.values())) == counted["rx_packets"]

        for turn in range(1, 7):
            datagrams = []
            for _ in range(300):
                client, number = chance.choice(clients), number + 1
                size = chance.choice([1400, 1400, 1400, 600, 64, chance.randrange(24, 1400)])
                for _ in range(chance.randrange(1, 6)):
                    number += 1
                    datagrams.append((client, number, client.seal(number, size)))
            arriving = noisy(chance, datagrams)
            for client, number_there, _ in arriving:
                key = client.number, number_there
                if number_there >= 0 and not wanted[key]:
                    wanted[key] = 1
                    order[client.number].append(number_there)
            for client, run in runs(chance, arriving):
                lane = chance.randrange(lanes) if chance.random() < 1 / 4 else client.number % lanes
                segment = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", len(run[0])))]
                client.port.sendmsg([b"".join(run)], segment if len(run) > 1 else [], 0, there.addresses[lane])
                on_the_wire += len(run)
            until(received)
            for client in clients:
                client.rekey(there.plane, turn + 1)
        assert there.plane.statistics()["rx_float_refused"] == 0
        assert there.plane.statistics()["rx_messages"] < on_the_wire / 2, "runs come whole"
        for client in clients:
            if lanes == 1:
                assert came[client.number] == order[client.number]
            else:
                assert sorted(came[client.number]) == sorted(order[client.number])


@pytest.mark.parametrize("apart", [False, True])
def test_what_leaves_in_runs_is_what_was_given_in_order(chance: random.Random, apart: bool) -> None:
    with server(1, apart) as there, contextlib.ExitStack() as stack:
        shared = stack.enter_context(udp())
        clients = [Client(number, shared if number < 3 else stack.enter_context(udp())) for number in range(1, 6)]
        for client in clients:
            client.meet(there.plane, there.sockets[0], there.addresses[0])
        given: dict[int, list[bytes]] = {client.number: [] for client in clients}
        came: dict[int, list[bytes]] = {client.number: [] for client in clients}
        ports = list({client.port for client in clients})

        def received() -> bool:
            for port in select.select(ports, [], [], 0)[0]:
                datagram, source = port.recvfrom(65_536)
                [client] = [each for each in clients if each.number == int.from_bytes(datagram[1:4], "big")]
                came[client.number] += client.channel.receive_datagram(datagram, (0, *source), 0.0)
            return sum(map(len, came.values())) == sum(map(len, given.values()))

        number = 0
        for _ in range(20):
            batch = []
            for _ in range(20):
                client, size = chance.choice(clients), chance.choice([1400, 1400, 700, chance.randrange(24, 1400)])
                for _ in range(chance.randrange(1, 12)):
                    number += 1
                    batch.append(packet(SERVER, client.inner, number, size))
                    given[client.number].append(batch[-1])
            there.stack.write_batch(batch)  # type: ignore[attr-defined]
            until(received)
        assert came == given
        counted = there.plane.statistics()
        assert counted["tx_messages"] < counted["tx_segments"], "they leave in runs"
