"""The data plane on real sockets: nothing is lost in silence, and nothing is left behind."""

import contextlib
import hashlib
import os
import select
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from ginnel import socks5
from ginnel._core import DataPlane, Device


def material(name):
    return hashlib.shake_128(name.encode()).digest(128)


def packet(number, size=1400):
    return b"\x45" + bytes(15) + struct.pack("!I", number) + bytes(size - 20)


def udp(family=socket.AF_INET, address="127.0.0.1"):
    bound = socket.socket(family, socket.SOCK_DGRAM)
    bound.bind((address, 0))
    return bound


def until(condition, seconds=20.0):
    """Waits for what another thread does: by the clock only in order to fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.001)


class Side:
    """A data plane, the device that it serves, and its one socket."""

    def __init__(self, family=socket.AF_INET, address="127.0.0.1", capacity=1000):
        self.device = Device("tun", 1500, capacity)
        self.stack = self.device.attach("interface")
        self.device.set_up(True)
        self.plane = DataPlane(self.device.attach("application"))
        bound = udp(family, address)
        self.address = bound.getsockname()[:2]
        self.socket = self.plane.add_udp(bound.detach())

    def meet(self, other, there, back, cipher="AES-256-GCM", peer_id=3):
        self.plane.new_peer(1, (self.socket, *other.address), peer_id)
        self.plane.new_key(1, 1, 0, cipher, material(there), material(back))
        self.plane.swap(1, 1)

    def wait_events(self):
        assert select.select([self.plane], [], [], 20)[0]
        return self.plane.events()

    def close(self):
        self.plane.close()
        self.stack.close()


@contextlib.contextmanager
def sides(**options):
    left, right = Side(**options), Side(**options)
    left.meet(right, "there", "back")
    right.meet(left, "back", "there")
    try:
        yield left, right
    finally:
        left.close()
        right.close()


def is_accounted_for(receiver, read, total):
    """Whether all that was sent has been read or counted. The kernel counts a run of up to 64 once."""
    statistics = receiver.plane.statistics()
    names = "rx_replayed rx_auth_failed rx_no_peer rx_no_key rx_malformed"
    lost = statistics["rx_device_dropped"] + sum(statistics[name] for name in names.split())
    missing, dropped = total - read - lost, statistics["rx_kernel_dropped"]
    return read + statistics["rx_device_dropped"] == statistics["rx_packets"] and dropped <= missing <= 64 * dropped


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_packets_pass_both_ways(family, address):
    with sides(family=family, address=address) as (left, right):
        for number, size in enumerate([20, 100, 1400, 2000, 9000, 60_000]):
            left.stack.write(packet(number, size))
            assert right.stack.read(20) == packet(number, size)
            right.stack.write(packet(number, size))
            assert left.stack.read(20) == packet(number, size)


def test_a_socket_of_both_families_speaks_ipv4():
    with sides() as (left, right):
        both = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::", 0))
        port = both.getsockname()[1]
        number = left.plane.add_udp(both.detach())
        right.plane.send_control(b"\x38 hello", (right.socket, "127.0.0.1", port))
        assert left.wait_events() == [("control", b"\x38 hello", (number, *right.address))]
        left.plane.send_control(b"\x40 hello", (number, *right.address))
        assert right.wait_events() == [("control", b"\x40 hello", (right.socket, "127.0.0.1", port))]


@pytest.mark.parametrize(("family", "anywhere"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")])
def test_answers_come_from_the_address_that_was_asked(family, anywhere):
    """As a host with several addresses needs it; what nobody asked for comes from where the system likes."""
    with sides() as (left, _):
        bound = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind((anywhere, 0))
        port = bound.getsockname()[1]
        number = left.plane.add_udp(bound.detach())
        with udp() as asker:
            asker.settimeout(20)
            for asked in ("127.0.0.2", "127.0.0.3", "127.0.0.2"):
                asker.sendto(b"\x38 hello", (asked, port))
                [(_, _, path)] = left.wait_events()
                assert path == (number, *asker.getsockname())
                left.plane.send_control(b"\x40 hello", path)
                assert asker.recvfrom(100) == (b"\x40 hello", (asked, port))
            left.plane.new_peer(2, path, None)
            left.plane.new_key(2, 1, 0, "AES-256-GCM", material("there"), material("back"))
            left.plane.swap(2, 1)
            left.plane.set_routes(2, ["0.0.0.0/0"], None)
            left.stack.write_batch([packet(each) for each in range(50)])
            assert {asker.recvfrom(2000)[1] for _ in range(50)} == {("127.0.0.2", port)}


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "vpn.example"])
def test_a_relay_finds_its_header_before_every_datagram(host):
    """Of a batch, too, that leaves as one run; and what it sends back has the header that it likes."""
    header = socks5.datagram_header(host, 1194)
    back = socks5.datagram_header("203.0.113.9", 1194)
    with sides() as (left, right), udp() as relay:
        relay.settimeout(20)
        ours = udp()
        ours.connect(relay.getsockname())
        where = ours.getsockname()
        number = left.plane.add_udp(ours.detach(), header)
        left.plane.new_peer(2, (number, *relay.getsockname()), 3)
        left.plane.new_key(2, 1, 0, "AES-256-GCM", material("there"), material("back"))
        left.plane.swap(2, 1)
        left.plane.set_routes(2, ["0.0.0.0/0"], None)
        # A long run, then one that ends with a shorter datagram.
        sizes = [1400] * 20 + [900] * 7 + [20]
        left.stack.write_batch([packet(each, size) for each, size in enumerate(sizes)])
        right.plane.new_peer(2, (right.socket, *relay.getsockname()), 3)
        right.plane.new_key(2, 1, 0, "AES-256-GCM", material("back"), material("there"))
        right.plane.swap(2, 1)
        right.plane.set_routes(2, ["0.0.0.0/0"], None)
        messages = [relay.recv(65536) for _ in sizes]
        for each, (size, message) in enumerate(zip(sizes, messages, strict=True)):
            assert message[: len(header)] == header
            relay.sendto(message[len(header) :], right.address)
            assert right.stack.read(20) == packet(each, size)
            right.stack.write(packet(each, size))
            relay.sendto(back + relay.recv(65536), where)
            assert left.stack.read(20) == packet(each, size)
        left.plane.send_control(b"\x38 hello", (number, *relay.getsockname()))
        assert relay.recv(65536) == header + b"\x38 hello"
        for bad in (b"", back[:9], b"\0\0\1" + back[3:] + b"\x40 a fragment", b"\0\0\0\2" + bytes(50)):
            relay.sendto(bad, where)
        relay.sendto(back + b"\x40 hello", where)
        assert left.wait_events() == [("control", b"\x40 hello", (number, *relay.getsockname()))]
        assert left.plane.statistics()["rx_bad_relayed"] == 4


def test_every_packet_arrives_or_is_counted():
    total, read = 100_000, 0
    with sides(capacity=2000) as (left, right):
        stop = threading.Event()

        def write():
            number = 0
            while number < total and not stop.is_set():
                number += left.stack.write_batch([packet(each) for each in range(number, min(number + 64, total))])

        writer = threading.Thread(target=write)
        writer.start()
        try:
            numbers = []

            def settled():
                nonlocal read
                batch = right.stack.read_batch(1000)
                numbers.extend(struct.unpack("!I", each[16:20])[0] for each in batch)
                read += len(batch)
                return not writer.is_alive() and is_accounted_for(right, read, total)

            until(settled, 60)
        finally:
            stop.set()
            writer.join()
        assert read > 0
        assert numbers == sorted(numbers)
        sent, received = left.plane.statistics(), right.plane.statistics()
        assert sent["tx_packets"] == sent["tx_segments"] == total
        assert received["rx_packets"] == read + received["rx_device_dropped"]
        assert not any(sent[name] for name in ("tx_too_long", "tx_errors", "tx_closed", "tx_socket_full"))
        assert sent["tx_messages"] < total / 4, "GSO"
        assert received["rx_messages"] < received["rx_segments"] / 4, "GRO"


def test_both_directions_at_once():
    with sides(capacity=2000) as both:
        count = 20_000

        def write(side):
            sent = 0
            while sent < count:
                sent += side.stack.write_batch([packet(sent)] * min(32, count - sent))

        writers = [threading.Thread(target=write, args=(side,)) for side in both]
        for writer in writers:
            writer.start()
        read = [0, 0]

        def settled():
            for index, side in enumerate(both):
                read[index] += len(side.stack.read_batch(1000))
            return all(is_accounted_for(side, read[index], count) for index, side in enumerate(both))

        until(settled, 60)
        for writer in writers:
            writer.join()


def test_control_packets_go_out_in_order_and_come_in_as_events():
    with sides() as (left, right):
        path = (left.socket, *right.address)
        messages = [b"\x20%d" % number for number in range(50)]
        for message in messages:
            left.plane.send_control(message, path)
        received = []
        while len(received) < len(messages):
            received += right.wait_events()
        assert received == [("control", message, (right.socket, *left.address)) for message in messages]
        assert not select.select([right.plane], [], [], 0)[0]


def test_a_data_message_leaves_before_its_peer_is_deleted():
    with sides() as (left, right):
        left.plane.send_data_message(1, b"\x28 exit")
        left.plane.del_peer(1)
        assert right.wait_events() == [("data_message", 1, b"\x28 exit")]


def test_keepalive_runs_on_the_thread():
    with sides() as (left, right):
        left.plane.set_peer(1, 0.05, 0.0, 0)
        right.plane.set_peer(1, 0.0, 1.0, 0)
        until(lambda: right.plane.peer_statistics(1)["rx_pings"] >= 3)
        left.plane.set_peer(1, 0.0, 0.0, 0)
        assert right.wait_events() == [("expired", 1)]


def test_a_peer_that_is_gone_and_comes_back_costs_nothing():
    with sides() as (left, right):
        connected = udp()
        gone = udp()
        connected.connect(gone.getsockname())
        number = left.plane.add_udp(connected.detach())
        path = (number, *gone.getsockname())
        port = gone.getsockname()[1]
        gone.close()
        for _ in range(100):
            left.plane.send_control(b"\x20 anyone?", path)
        until(lambda: left.plane.statistics()["rx_errors"] + left.plane.statistics()["tx_calls"] > 100)
        back = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        back.bind(("127.0.0.1", port))
        back.settimeout(20)
        left.plane.send_control(b"\x20 there?", path)
        assert back.recv(100) == b"\x20 there?"
        back.close()
        assert left.plane.events() == []
        left.stack.write(packet(1))
        assert right.stack.read(20) == packet(1)


def test_a_socket_that_fails_for_good_is_reported():
    with sides() as (left, _):
        connected = udp()
        other = udp()
        connected.connect(other.getsockname())
        shared = os.dup(connected.fileno())
        number = left.plane.add_udp(connected.detach())
        with socket.socket(fileno=shared) as twin:
            twin.shutdown(socket.SHUT_RDWR)
        [(kind, path, errno)] = left.wait_events()
        assert (kind, path) == ("closed", (number, *other.getsockname()))
        assert errno != 0
        left.plane.send_control(b"\x20", path)
        assert left.plane.statistics()["tx_closed"] == 1
        other.close()


def test_a_removed_socket_frees_its_port():
    with sides() as (left, _):
        left.plane.remove_socket(left.socket)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(left.address)
        left.stack.write(packet(1))
        until(lambda: left.plane.statistics()["tx_closed"] == 1)
        with pytest.raises(ValueError, match="never"):
            left.plane.remove_socket(17)


def test_only_udp_sockets_are_taken_and_others_stay_the_callers():
    with sides() as (left, _), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        with pytest.raises(OSError, match=r"\w"):
            left.plane.add_udp(stream.fileno())
        with pytest.raises(OSError, match=r"\w"):
            left.plane.add_udp(-1)
        with pytest.raises(OSError, match=r"\w"):
            left.plane.add_udp(10**6)
        assert stream.getsockname()


def test_the_end_is_taken_over_and_free_again_after():
    device = Device("tun", 1500, 10)
    end = device.attach("application")
    plane = DataPlane(end)
    assert end.closed
    with pytest.raises(OSError, match=r"\w"):
        end.read(0)
    with pytest.raises(OSError, match=r"\w"):
        DataPlane(end)
    plane.close()
    device.attach("application").close()


def test_closing_while_busy():
    for _ in range(20):
        with sides() as (left, right):
            stop = threading.Event()

            def write(side=left, stop=stop):
                while not stop.is_set():
                    side.stack.write_batch([packet(0)] * 50)

            writer = threading.Thread(target=write)
            writer.start()
            until(lambda: right.plane.statistics()["rx_packets"] > 100)
            left.plane.close()
            left.plane.close()
            right.plane.close()
            stop.set()
            writer.join()


def test_nothing_is_left_behind():
    def resources():
        return [sum(1 for _ in Path("/proc/self", each).iterdir()) for each in ("fd", "task")]

    with sides():
        pass
    before = resources()
    for _ in range(200):
        with sides() as (left, right):
            left.stack.write(packet(1))
            right.stack.read(20)
    del left, right
    # The kernel takes a thread off its list a moment after it has been waited for.
    until(lambda: all(now <= then for now, then in zip(resources(), before, strict=True)))


def test_an_idle_plane_costs_no_cpu():
    with sides() as (left, right):
        left.plane.set_peer(1, 60.0, 120.0, 0)
        left.stack.write(packet(1))
        right.stack.read(20)
        before = time.process_time()
        select.select([left.plane], [], [], 1.0)
        assert time.process_time() - before < 0.1
