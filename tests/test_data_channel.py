"""The data channel without sockets: what is on the wire, what is refused, what happens when."""

import hashlib
import struct
from ipaddress import ip_address

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from ginnel._core import DataChannel

CIPHERS = ["AES-128-GCM", "AES-192-GCM", "AES-256-GCM", "CHACHA20-POLY1305"]
KEY_LENGTHS = dict(zip(CIPHERS, [16, 24, 32, 32], strict=True))
LEFT, RIGHT, ELSEWHERE = (0, "192.0.2.1", 1194), (0, "192.0.2.2", 1194), (1, "2001:db8::7", 5000)
PING = bytes.fromhex("2a187bf3641eb4cb07ed2d0a981fc748")


def material(name):
    return hashlib.shake_128(name.encode()).digest(128)


def ipv4(payload=b"", source="10.8.0.1", destination="10.8.0.2", protocol=17):
    addresses = ip_address(source).packed + ip_address(destination).packed
    return struct.pack("!BBHIBBH", 0x45, 0, 20 + len(payload), 0, 64, protocol, 0) + addresses + payload


def install(left, right, handle=1, key_id=0, cipher="AES-256-GCM", swap=True, **form):
    there, back = material(f"there {handle}"), material(f"back {handle}")
    left.new_key(1, handle, key_id, cipher, there, back, **form)
    right.new_key(1, handle, key_id, cipher, back, there, **form)
    if swap:
        left.swap(1, handle)
        right.swap(1, handle)


def pair(peer_id=5, **key):
    left, right = DataChannel(), DataChannel()
    left.new_peer(1, RIGHT, peer_id, 0.0)
    right.new_peer(1, LEFT, peer_id, 0.0)
    install(left, right, **key)
    return left, right


def sent(channel, packet, now=0.0):
    [(datagram, path)] = channel.send_packet(packet, now)
    assert path in (LEFT, RIGHT, ELSEWHERE)
    return datagram


def drops(channel):
    names = (
        "rx_malformed rx_no_peer rx_no_key rx_replayed rx_auth_failed rx_compressed rx_bad_inner rx_bad_source "
        "rx_float_refused control_dropped strangers_dropped"
    )
    statistics = channel.statistics()
    return {name: statistics[name] for name in names.split() if statistics[name]}


def test_before_there_is_a_key_nothing_moves_a_peer():
    """A float was once handled where there was no key to look at (OpenVPN, CVE-2020-11810)."""
    left, _ = pair()
    right = DataChannel()
    right.new_peer(1, LEFT, 5, 0.0)
    datagram = sent(left, ipv4(b"early"))
    for path in (ELSEWHERE, LEFT):
        assert right.receive_datagram(datagram, path, 0.0) == []
    assert drops(right) == {"rx_no_key": 2}
    assert right.events() == []
    right.new_key(1, 1, 0, "AES-256-GCM", material("back 1"), material("there 1"))
    right.swap(1, 1)
    [(_, path)] = right.send_packet(ipv4(b"back"), 1.0)
    assert path == LEFT


@pytest.mark.parametrize("peer_id", [None, 0, 0xFFFFFF])
@pytest.mark.parametrize("cipher", [*CIPHERS, "aes-256-gcm"])
def test_packets_pass_both_ways(cipher, peer_id):
    left, right = pair(peer_id, cipher=cipher)
    for size in (0, 1, 1380, 1980, 60_000):
        packet = ipv4(bytes(size))
        assert right.receive_datagram(sent(left, packet), LEFT, 0.0) == [packet]
        assert left.receive_datagram(sent(right, packet), RIGHT, 0.0) == [packet]
    for channel in (left, right):
        statistics = channel.statistics()
        assert statistics["rx_packets"] == statistics["tx_packets"] == 5
        assert statistics["rx_bytes"] == statistics["tx_bytes"] == 100 + 63_361
        assert channel.peer_statistics(1)["rx_packets"] == 5
        assert not drops(channel)


@pytest.mark.parametrize("peer_id", [None, 0xABCDEF])
@pytest.mark.parametrize("cipher", CIPHERS)
def test_the_layout_on_the_wire(cipher, peer_id):
    left, _ = pair(peer_id, cipher=cipher, key_id=3)
    key = material("there 1")
    secret, implicit_iv = key[: KEY_LENGTHS[cipher]], key[64:72]
    aead = ChaCha20Poly1305(secret) if cipher.startswith("CHACHA") else AESGCM(secret)
    header = bytes([6 << 3 | 3]) if peer_id is None else bytes([9 << 3 | 3]) + peer_id.to_bytes(3, "big")
    for number in (1, 2, 3):
        packet = ipv4(b"known answer %d" % number)
        packet_id = number.to_bytes(4, "big")
        authenticated = packet_id if peer_id is None else header + packet_id
        sealed = aead.encrypt(packet_id + implicit_iv, packet, authenticated)
        assert sent(left, packet) == header + packet_id + sealed[-16:] + sealed[:-16]


@settings(max_examples=300)
@given(st.data())
def test_forgeries_are_dropped_and_counted(data):
    left, right = pair()
    packet = ipv4(b"content")
    datagram = sent(left, packet)
    index = data.draw(st.integers(4, len(datagram) - 1))
    flip = data.draw(st.integers(1, 255))
    forged = bytearray(datagram)
    forged[index] ^= flip
    assert right.receive_datagram(bytes(forged), LEFT, 0.0) == []
    # A changed packet id can only be 0, which is never new.
    assert sum(drops(right).values()) == 1
    assert not right.events()
    assert right.receive_datagram(datagram, LEFT, 0.0) == [packet]


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_whatever_comes_is_counted_once(datagram):
    _, right = pair()
    assert right.receive_datagram(datagram, LEFT, 0.0) == []
    events = right.events()
    assert len(events) + sum(drops(right).values()) == 1
    assert all(event == ("control", datagram, LEFT) for event in events)


def test_every_truncation_is_dropped_and_counted():
    left, right = pair()
    datagram = sent(left, ipv4(b"content"))
    for length in range(len(datagram)):
        assert right.receive_datagram(datagram[:length], LEFT, 0.0) == []
    assert sum(drops(right).values()) == len(datagram)


@settings(max_examples=50)
@given(st.randoms(use_true_random=False))
def test_each_packet_arrives_once_in_any_order(random):
    left, right = pair()
    packets = [ipv4(b"%d" % number) for number in range(300)]
    datagrams = [sent(left, packet) for packet in packets] * 2
    random.shuffle(datagrams)
    received = [packet for datagram in datagrams for packet in right.receive_datagram(datagram, LEFT, 0.0)]
    assert sorted(received) == sorted(packets)
    assert drops(right) == {"rx_replayed": 300}


def test_what_is_older_than_the_window_is_dropped():
    left, right = pair()
    old = [sent(left, ipv4()) for _ in range(5000)]
    assert right.receive_datagram(old[-1], LEFT, 0.0)
    taken = sum(len(right.receive_datagram(datagram, LEFT, 0.0)) for datagram in old[:-1])
    assert 1000 < taken < 4999
    assert drops(right) == {"rx_replayed": 4999 - taken}


def test_keys_roll_over_without_a_loss():
    left, right = pair()
    late = []
    for handle in range(2, 30):
        key_id = (handle - 2) % 7 + 1
        install(left, right, handle, key_id, swap=False)
        late.append(sent(left, ipv4(b"under the old key")))
        left.swap(1, handle)
        assert right.receive_datagram(sent(left, ipv4()), LEFT, 0.0) == [ipv4()]
        right.swap(1, handle)
        assert left.receive_datagram(sent(right, ipv4()), RIGHT, 0.0) == [ipv4()]
        assert right.receive_datagram(late.pop(), LEFT, 0.0) == [ipv4(b"under the old key")]
    assert not drops(left)
    assert not drops(right)


def test_a_deleted_key_neither_sends_nor_receives():
    left, right = pair()
    datagram = sent(left, ipv4())
    right.del_key(1, 1)
    assert right.receive_datagram(datagram, LEFT, 0.0) == []
    assert drops(right) == {"rx_no_key": 1}
    assert right.send_packet(ipv4(), 0.0) == []
    assert right.statistics()["tx_no_key"] == 1


def test_pings_keep_a_peer_alive_and_silence_ends_it():
    left, right = pair()
    left.set_peer(1, 10.0, 0.0, 0, 0.0)
    right.set_peer(1, 0.0, 25.0, 0, 0.0)
    for now in range(1, 101):
        for datagram, path in left.handle_timer(float(now)):
            assert path == RIGHT
            assert right.receive_datagram(datagram, LEFT, float(now)) == []
        right.handle_timer(float(now))
    assert right.events() == []
    assert left.peer_statistics(1)["tx_pings"] == right.peer_statistics(1)["rx_pings"] == 10
    assert right.handle_timer(124.0) == []
    assert right.events() == []
    while (timer := right.get_timer()) is not None:
        right.handle_timer(timer)
    assert timer is None
    assert right.events() == [("expired", 1)]


def test_a_ping_is_the_known_one():
    left, _ = pair(None, cipher="AES-128-GCM")
    left.set_peer(1, 1.0, 0.0, 0, 0.0)
    [(datagram, _)] = left.handle_timer(1.0)
    key = material("there 1")
    nonce, sealed = datagram[1:5] + key[64:72], datagram[21:] + datagram[5:21]
    assert AESGCM(key[:16]).decrypt(nonce, sealed, datagram[1:5]) == PING


def test_a_peer_that_moves_is_followed_once_it_is_authentic():
    left, right = pair()
    datagram = sent(left, ipv4())
    forged = datagram[:-1] + bytes([datagram[-1] ^ 1])
    assert right.receive_datagram(forged, ELSEWHERE, 0.0) == []
    assert right.events() == []
    assert right.send_packet(ipv4(), 0.0)[0][1] == LEFT
    assert right.receive_datagram(datagram, ELSEWHERE, 0.0) == [ipv4()]
    assert right.events() == [("float", 1, ELSEWHERE)]
    assert right.send_packet(ipv4(), 0.0)[0][1] == ELSEWHERE
    assert right.receive_datagram(datagram, LEFT, 0.0) == []
    assert right.send_packet(ipv4(), 0.0)[0][1] == ELSEWHERE


def test_without_a_peer_id_nobody_moves():
    left, right = pair(None)
    assert right.receive_datagram(sent(left, ipv4()), ELSEWHERE, 0.0) == []
    assert drops(right) == {"rx_no_peer": 1}


def test_mssfix_lowers_what_a_syn_announces_either_way():
    left, right = pair()
    syn = ipv4(struct.pack("!HHIIBBHHHBBH", 1, 2, 0, 0, 0x60, 2, 0, 0, 0, 2, 4, 1460), protocol=6)
    left.set_peer(1, 0.0, 0.0, 1300, 0.0)
    [received] = right.receive_datagram(sent(left, syn), LEFT, 0.0)
    assert received[-4:] == struct.pack("!BBH", 2, 4, 1300)
    [received] = left.receive_datagram(sent(right, syn), RIGHT, 0.0)
    assert received[-4:] == struct.pack("!BBH", 2, 4, 1300)


def test_data_messages_go_to_the_session():
    left, right = pair()
    [(datagram, _)] = left.send_data_message(1, b"\x28 an exit notice", 0.0)
    assert right.receive_datagram(datagram, LEFT, 0.0) == []
    assert right.events() == [("data_message", 1, b"\x28 an exit notice")]
    [(datagram, _)] = left.send_data_message(1, b"\x28" * 300, 0.0)
    assert right.receive_datagram(datagram, LEFT, 0.0) == []
    assert drops(right) == {"rx_bad_inner": 1}


def test_a_flood_of_strangers_costs_no_peer_its_control_packet():
    _, right = pair()
    for port in range(1, 5001):
        right.receive_datagram(b"\x38 hello", (0, "198.51.100.9", port), 0.0)
    right.receive_datagram(b"\x20 rekey", LEFT, 0.0)
    events = right.events()
    assert ("control", b"\x20 rekey", LEFT) in events
    assert len(events) == 101
    assert drops(right) == {"strangers_dropped": 4900}


@pytest.mark.parametrize(
    "command",
    [
        lambda channel: channel.set_peer(9, 0.0, 0.0, 0, 0.0),
        lambda channel: channel.set_peer(1, -1.0, 0.0, 0, 0.0),
        lambda channel: channel.set_peer(1, float("nan"), 0.0, 0, 0.0),
        lambda channel: channel.del_peer(9),
        lambda channel: channel.new_peer(1, LEFT, None, 0.0),
        lambda channel: channel.new_peer(2, LEFT, 1 << 24, 0.0),
        lambda channel: channel.new_peer(2, (0, "host.example", 1), None, 0.0),
        lambda channel: channel.new_key(1, 2, 8, "AES-256-GCM", bytes(128), bytes(128)),
        lambda channel: channel.new_key(1, 1, 2, "AES-256-GCM", bytes(128), bytes(128)),
        lambda channel: channel.new_key(1, 2, 2, "AES-256-GCM", bytes(127), bytes(128)),
        lambda channel: channel.new_key(1, 2, 2, "BF-CBC", bytes(128), bytes(128)),
        lambda channel: channel.swap(1, 9),
        lambda channel: channel.set_routes(1, ["10.8.0.0/33"], None),
        lambda channel: channel.send_packet(bytes(65_536), 0.0),
        lambda channel: channel.peer_statistics(9),
    ],
)
def test_commands_that_make_no_sense_are_refused(command):
    left, right = pair()
    with pytest.raises(ValueError, match=r"\w"):
        command(left)
    assert right.receive_datagram(sent(left, ipv4()), LEFT, 0.0) == [ipv4()]
