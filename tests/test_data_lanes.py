"""A data plane on several threads: what comes twice passes once, what is in order stays so, whoever carries it."""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from ginnel._core import DataPlane, Device
from tests.test_data_plane import material, udp, until

LANES = 3
CLIENTS = 6


def packet(source: str, destination: str, number: int) -> bytes:
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    return b"\x45" + bytes(11) + addresses + struct.pack("!I", number) + bytes(176)


def number_of(received: bytes) -> int:
    return int(struct.unpack("!I", received[20:24])[0])


class Side:
    def __init__(self, lanes: int, apart: bool) -> None:
        self.device = Device("tun", 1500, 4096)
        self.stack = self.device.attach("interface")
        self.device.set_up(True)
        self.plane = DataPlane(self.device.attach("application"), lanes=lanes, apart=apart)
        bound = [udp() for _ in range(lanes)]
        self.addresses = [each.getsockname() for each in bound]
        self.sockets = [self.plane.add_udp(each.detach()) for each in bound]

    def meet(self, peer: int, socket_number: int, address: tuple[str, int], there: str, back: str) -> None:
        self.plane.new_peer(peer, (socket_number, *address), peer)
        self.rekey(peer, 1, there, back)

    def rekey(self, peer: int, handle: int, there: str, back: str) -> None:
        self.plane.new_key(peer, handle, handle % 8, "AES-256-GCM", material(there), material(back))

    def close(self) -> None:
        self.plane.close()
        self.stack.close()


class Relay(threading.Thread):
    """Stands between each client and the server, and sends everything twice."""

    def __init__(self, server: Side) -> None:
        super().__init__()
        self.server = server
        self.ports = [udp() for _ in range(CLIENTS)]
        self.clients: list[tuple[str, int]] = []
        #: On which of the server's sockets each client's datagrams arrive.
        self.lanes = [client % LANES for client in range(CLIENTS)]
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            for port in select.select(self.ports, [], [], 0.1)[0]:
                client = self.ports.index(port)
                data, source = port.recvfrom(65536)
                to_server = source == self.clients[client]
                where = self.server.addresses[self.lanes[client]] if to_server else self.clients[client]
                for _ in range(2):
                    port.sendto(data, where)

    def close(self) -> None:
        self.stop.set()
        self.join()
        for port in self.ports:
            port.close()


@contextlib.contextmanager
def crowd(apart: bool) -> Iterator[tuple[Side, list[Side], Relay]]:
    """A server with several lanes, and clients in each of them behind the relay."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.closing(Side(LANES, apart)))
        clients = [stack.enter_context(contextlib.closing(Side(1, apart))) for _ in range(CLIENTS)]
        relay = Relay(server)
        relay.clients = [client.addresses[0] for client in clients]
        for number, client in enumerate(clients):
            address = relay.ports[number].getsockname()
            server.meet(number, server.sockets[relay.lanes[number]], address, f"down{number}", f"up{number}")
            server.plane.set_routes(number, [f"10.8.0.{number}/32"], [f"10.8.0.{number}/32"])
            client.meet(number, client.sockets[0], address, f"up{number}", f"down{number}")
            server.plane.swap(number, 1)
            client.plane.swap(number, 1)
        relay.start()
        stack.callback(relay.close)
        yield server, clients, relay


@pytest.mark.parametrize("apart", [False, True])
def test_what_comes_twice_passes_once_and_in_order_while_keys_change(apart: bool) -> None:
    count = 400
    with crowd(apart) as (server, clients, _):
        up: list[list[int]] = [[] for _ in clients]
        down: list[list[int]] = [[] for _ in clients]

        def all_came(limit: int) -> bool:
            for received in server.stack.read_batch(4096):
                up[received[15]].append(number_of(received))
            for came, client in zip(down, clients, strict=True):
                came.extend(number_of(received) for received in client.stack.read_batch(4096))
            return all(len(came) >= limit for came in up + down)

        for begin in range(0, count, 40):
            for index, client in enumerate(clients):
                inner = f"10.8.0.{index}"
                client.stack.write_batch([packet(inner, "10.8.0.254", each) for each in range(begin, begin + 40)])
                server.stack.write_batch([packet("10.8.0.254", inner, each) for each in range(begin, begin + 40)])
                # What is on its way under the old key is still taken.
                handle = 2 + begin // 40
                server.rekey(index, handle, f"down{index}.{handle}", f"up{index}.{handle}")
                client.rekey(index, handle, f"up{index}.{handle}", f"down{index}.{handle}")
                server.plane.swap(index, handle)
                client.plane.swap(index, handle)
            until(lambda limit=begin + 40: all_came(limit))
        assert up == down == [list(range(count))] * CLIENTS

        def all_counted() -> bool:
            return all(
                side.plane.statistics()["rx_replayed"] == side.plane.statistics()["rx_packets"]
                for side in (server, *clients)
            )

        until(all_counted)
        assert server.plane.statistics()["handed_dropped"] == 0


@pytest.mark.parametrize("apart", [False, True])
def test_a_client_that_moves_to_another_lane_loses_nothing(apart: bool) -> None:
    with crowd(apart) as (server, clients, relay):
        came: list[int] = []

        def arrived(limit: int) -> bool:
            came.extend(number_of(received) for received in server.stack.read_batch(4096))
            return len(came) >= limit

        for turn in range(6):
            relay.lanes[0] = turn % LANES
            clients[0].stack.write_batch(
                [packet("10.8.0.0", "10.8.0.254", each) for each in range(50 * turn, 50 * turn + 50)]
            )
            until(lambda limit=50 * turn + 50: arrived(limit))
            server.stack.write(packet("10.8.0.254", "10.8.0.0", turn))
            assert number_of(clients[0].stack.read(20)) == turn
        assert came == list(range(300))
        assert server.plane.statistics()["floats"] == 5


@pytest.mark.parametrize("apart", [False, True])
def test_clients_of_different_lanes_reach_each_other(apart: bool) -> None:
    with crowd(apart) as (server, clients, _):
        server.plane.set_relaying(True)
        came: list[list[int]] = [[] for _ in clients]

        def all_came(limit: int) -> bool:
            for numbers, client in zip(came, clients, strict=True):
                numbers.extend(number_of(received) for received in client.stack.read_batch(4096))
            return all(len(numbers) == limit for numbers in came)

        for begin in range(0, 400, 40):
            for index, client in enumerate(clients):
                inner, other = f"10.8.0.{index}", f"10.8.0.{(index + 1) % CLIENTS}"
                client.stack.write_batch([packet(inner, other, each) for each in range(begin, begin + 40)])
            until(lambda limit=begin + 40: all_came(limit))
        assert came == [list(range(400))] * CLIENTS
        assert server.plane.statistics()["rx_relayed"] == 400 * CLIENTS
