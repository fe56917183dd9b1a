"""The data plane on TCP: packets behind their lengths, and a peer that reads nothing delays nobody."""

import contextlib
import random
import select
import socket
import struct

import pytest

from ginnel._core import DataPlane, Device
from tests.test_data_plane import Side, material, packet, sides, until


def streams(family=socket.AF_INET, address="127.0.0.1"):
    """Two ends of one connection."""
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        left = socket.create_connection(listener.getsockname()[:2])
        right, _ = listener.accept()
    return left, right


class Alone:
    """A data plane with a device, whose peers are sockets in the test's hands."""

    def __init__(self):
        self.device = Device("tun", 1500, 1000)
        self.stack = self.device.attach("interface")
        self.device.set_up(True)
        self.plane = DataPlane(self.device.attach("application"))

    def add(self, peer, peer_id=None):
        """A peer on a TCP connection. Returns the other end, and the path."""
        ours, theirs = streams()
        theirs.settimeout(20)
        number = self.plane.add_tcp(ours.detach())
        path = (number, *theirs.getsockname())
        self.plane.new_peer(peer, path, peer_id)
        self.plane.new_key(peer, 1, 0, "AES-256-GCM", material("there"), material("back"))
        self.plane.swap(peer, 1)
        return theirs, path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.plane.close()
        self.stack.close()


@contextlib.contextmanager
def stream_sides(family=socket.AF_INET, address="127.0.0.1"):
    with sides() as (left, right):
        ends = streams(family, address)
        for side, end, other in zip((left, right), ends, ends[::-1], strict=True):
            side.address = end.getsockname()[:2]
            side.plane.del_peer(1)
            side.plane.remove_socket(side.socket)
            side.peer_path = other.getsockname()[:2]
        for side, end in zip((left, right), ends, strict=True):
            side.socket = side.plane.add_tcp(end.detach())
        left.meet(right, "there", "back")
        right.meet(left, "back", "there")
        yield left, right


def read_packets(stream, count):
    def exactly(size):
        content = b""
        while len(content) < size:
            piece = stream.recv(size - len(content))
            assert piece, "the stream has ended"
            content += piece
        return content

    return [exactly(*struct.unpack("!H", exactly(2))) for _ in range(count)]


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_packets_pass_both_ways(family, address):
    with stream_sides(family, address) as (left, right):
        for number, size in enumerate([20, 100, 1400, 2000, 9000, 60_000]):
            left.stack.write(packet(number, size))
            assert right.stack.read(20) == packet(number, size)
            right.stack.write(packet(number, size))
            assert left.stack.read(20) == packet(number, size)


def test_with_one_peer_nothing_is_dropped_in_front_of_the_stream():
    """The device waits while no socket has room, and who writes to the device waits for that."""
    with stream_sides() as (left, right):
        total, written, numbers = 20_000, 0, []

        def step():
            nonlocal written
            if written < total:
                batch = [packet(each) for each in range(written, min(written + 64, total))]
                written += left.stack.write_batch(batch)
            numbers.extend(struct.unpack("!I", each[16:20])[0] for each in right.stack.read_batch(50))
            return len(numbers) + right.plane.statistics()["rx_device_dropped"] == total

        until(step, 60)
        assert numbers == sorted(set(numbers))
        sent, received = left.plane.statistics(), right.plane.statistics()
        assert sent["tx_segments"] == received["rx_packets"] == total
        assert sent["tx_messages"] < total / 4, "batches"
        assert received["rx_messages"] < total / 4, "batches"


def test_control_packets_come_in_order_however_the_stream_is_cut():
    source = random.Random(4)
    with Alone() as side:
        theirs, path = side.add(1)
        messages = [b"\x20" + source.randbytes(source.randrange(1, 2000)) for _ in range(50)]
        stream = b"".join(struct.pack("!H", len(message)) + message for message in messages)
        received = []
        while stream:
            cut = source.choice([1, 2, 3, source.randrange(1, 5000)])
            theirs.sendall(stream[:cut])
            stream = stream[cut:]
            received += side.plane.events()
        while len(received) < len(messages):
            assert select.select([side.plane], [], [], 20)[0]
            received += side.plane.events()
        assert received == [("control", message, path) for message in messages]
        for message in messages:
            side.plane.send_control(message, path)
        assert read_packets(theirs, len(messages)) == messages
        theirs.close()


def test_what_was_sent_before_the_socket_is_removed_still_goes():
    with Alone() as side:
        theirs, path = side.add(1)
        for _ in range(20):
            side.plane.send_control(b"\x28 last words", path)
        side.plane.remove_socket(path[0])
        assert read_packets(theirs, 20) == [b"\x28 last words"] * 20
        assert theirs.recv(1) == b""
        theirs.close()


@pytest.mark.parametrize("end", ["close", "reset", "zero"])
def test_a_connections_end_is_reported_once(end):
    with Alone() as side:
        theirs, path = side.add(1)
        if end == "zero":
            theirs.sendall(b"\0\0 and more")
        elif end == "reset":
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if end != "zero":
            theirs.close()
        assert select.select([side.plane], [], [], 20)[0]
        [(kind, where, errno)] = side.plane.events()
        assert (kind, where) == ("closed", path)
        assert errno != 0
        side.plane.send_control(b"\x28", path)
        assert side.plane.statistics()["tx_closed"] == 1
        assert side.plane.statistics()["rx_bad_streams"] == (end == "zero")
        theirs.close()


def test_a_peer_that_reads_nothing_delays_nobody_and_is_bounded():
    with Alone() as side:
        stalled, stalled_path = side.add(1)
        lively, _ = side.add(2)
        side.plane.set_routes(1, ["10.8.0.1/32"], None)
        side.plane.set_routes(2, ["10.8.0.2/32"], None)
        to = {peer: b"\x45" + bytes(15) + bytes([10, 8, 0, peer]) + bytes(1380) for peer in (1, 2)}

        def is_full():
            side.stack.write_batch([to[1]] * 64)
            return side.plane.statistics()["tx_queue_dropped"] > 0

        until(is_full)
        for _ in range(300):
            side.stack.write(to[2])
            [datagram] = read_packets(lively, 1)
            assert len(datagram) == 1 + 4 + 16 + 1400
        # A handshake does not wait behind all that data, nor for ever.
        assert side.plane.statistics()["tx_socket_full"] == 0
        for number in range(1000):
            side.plane.send_control(b"\x20%d" % number, stalled_path)
        until(lambda: side.plane.statistics()["tx_socket_full"] > 0)
        stalled_packets = []
        while len(stalled_packets) < 400:
            stalled_packets += [each for each in read_packets(stalled, 1) if each[0] == 0x20]
        assert stalled_packets == [b"\x20%d" % number for number in range(400)]
        stalled.close()
        lively.close()


def test_a_flow_that_begins_does_not_wait_behind_a_long_queue():
    with Alone() as side:
        stalled, _ = side.add(1)
        other, _ = side.add(2)
        side.plane.set_routes(1, ["10.8.0.0/24"], None)
        bulk, short = (
            b"\x45" + bytes(15) + bytes([10, 8, 0, flow]) + bytes(size) for flow, size in ((1, 1380), (2, 64))
        )

        def is_full():
            side.stack.write_batch([bulk] * 64)
            return side.plane.statistics()["tx_queue_dropped"] > 0

        until(is_full)
        side.stack.write(short)
        while len(read_packets(stalled, 1)[0]) != 1 + 4 + 16 + 84:
            pass
        # All of it was there before.
        assert all(len(datagram) == 1 + 4 + 16 + 1400 for datagram in read_packets(stalled, 300))
        stalled.close()
        other.close()


def test_nobody_moves_onto_a_stream_or_off_one():
    with Alone() as side, contextlib.closing(Side()) as other:
        first, _ = side.add(1, peer_id=7)
        second, _ = side.add(2, peer_id=8)
        other.plane.new_peer(1, (other.socket, "127.0.0.1", 9), 7)
        other.plane.new_key(1, 1, 0, "AES-256-GCM", material("back"), material("there"))
        other.plane.swap(1, 1)
        catcher = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        catcher.bind(("127.0.0.1", 0))
        catcher.settimeout(20)
        other.plane.del_peer(1)
        other.plane.new_peer(1, (other.socket, *catcher.getsockname()), 7)
        other.plane.new_key(1, 1, 0, "AES-256-GCM", material("back"), material("there"))
        other.plane.swap(1, 1)
        other.stack.write(packet(1))
        datagram = catcher.recv(2000)
        second.sendall(struct.pack("!H", len(datagram)) + datagram)
        until(lambda: side.plane.statistics()["rx_float_refused"] == 1)
        assert side.plane.events() == []
        for each in (first, second, catcher):
            each.close()


def test_only_connected_streams_are_taken():
    with Alone() as side:
        with socket.socket() as unconnected, pytest.raises(OSError, match=r"\w"):
            side.plane.add_tcp(unconnected.fileno())
        with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(OSError, match=r"\w"):
            side.plane.add_tcp(datagrams.fileno())
        left, right = socket.socketpair()
        with left, right, pytest.raises(OSError, match=r"\w"):
            side.plane.add_tcp(left.fileno())
