"""The data channel's other formats: what is on the wire, what is refused, and what the peers agree on."""

import hmac
import struct

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_data_channel import LEFT, drops, ipv4, material, pair, sent

CBC = {"AES-128-CBC": 16, "AES-192-CBC": 24, "AES-256-CBC": 32, "none": 0}
DIGESTS = {"SHA1": 20, "SHA224": 28, "SHA256": 32, "SHA384": 48, "SHA512": 64, "none": 0}
FORMATS = [
    {"cipher": "AES-256-GCM"},
    {"cipher": "AES-256-GCM", "epochs": True},
    {"cipher": "CHACHA20-POLY1305", "epochs": True},
    {"cipher": "AES-128-CBC", "auth": "SHA1"},
    {"cipher": "AES-256-CBC", "auth": "SHA512"},
    {"cipher": "none", "auth": "SHA256"},
]


def mac(auth, key, content):
    return b"" if auth == "none" else hmac.digest(key[64 : 64 + DIGESTS[auth]], content, auth)


@pytest.mark.parametrize("peer_id", [None, 0xABCDEF])
@pytest.mark.parametrize("auth", DIGESTS)
@pytest.mark.parametrize("cipher", CBC)
def test_ciphers_without_authentication_on_the_wire(cipher, auth, peer_id):
    left, right = pair(peer_id, cipher=cipher, auth=auth, key_id=3)
    key = material("there 1")
    header = bytes([6 << 3 | 3]) if peer_id is None else bytes([9 << 3 | 3]) + peer_id.to_bytes(3, "big")
    for number in range(1, 40):
        packet = ipv4(bytes(number))
        datagram = sent(left, packet)
        assert datagram.startswith(header)
        tag, sealed = datagram[len(header) :][: DIGESTS[auth]], datagram[len(header) + DIGESTS[auth] :]
        assert tag == mac(auth, key, sealed)
        if cipher != "none":
            decryptor = Cipher(algorithms.AES(key[: CBC[cipher]]), modes.CBC(sealed[:16])).decryptor()
            sealed = decryptor.update(sealed[16:]) + decryptor.finalize()
            sealed = sealed[: -sealed[-1]]
        assert sealed == struct.pack("!I", number) + packet
        assert right.receive_datagram(datagram, LEFT, 0.0) == [packet]
        assert right.receive_datagram(datagram, LEFT, 0.0) == []
    assert drops(right) == {"rx_replayed": 39}


def test_bad_padding_is_dropped_and_counted():
    left, right = pair(None, cipher="AES-128-CBC", auth="none")
    key = material("there 1")
    for padding in (bytes([0] * 16), bytes([17] * 16), bytes([1, 2]), bytes([2, 3, 3])):
        plain = struct.pack("!I", 1) + ipv4(bytes(-(24 + len(padding)) % 16)) + padding
        encryptor = Cipher(algorithms.AES(key[:16]), modes.CBC(bytes(16))).encryptor()
        datagram = bytes([6 << 3]) + bytes(16) + encryptor.update(plain) + encryptor.finalize()
        assert len(plain) % 16 == 0
        assert right.receive_datagram(datagram, LEFT, 0.0) == []
    assert drops(right) == {"rx_malformed": 4}
    assert right.receive_datagram(sent(left, ipv4()), LEFT, 0.0) == [ipv4()]


def label(secret, text, size):
    info = struct.pack("!HB", size, len(text) + 5) + b"ovpn " + text + b"\0"
    return HKDFExpand(hashes.SHA256(), size, info).derive(secret)


def test_epochs_on_the_wire():
    left, _ = pair(0xABCDEF, cipher="AES-256-GCM", epochs=True, key_id=3)
    secret = material("there 1")[:32]
    key, iv = label(secret, b"data_key", 32), label(secret, b"data_iv", 12)
    header = bytes([9 << 3 | 3, 0xAB, 0xCD, 0xEF])
    for number in (1, 2, 3):
        packet = ipv4(b"known answer %d" % number)
        packet_id = struct.pack("!Q", 1 << 48 | number)
        nonce = bytes(a ^ b for a, b in zip(iv, packet_id + bytes(4), strict=True))
        assert sent(left, packet) == header + packet_id + AESGCM(key).encrypt(nonce, packet, header + packet_id)


def test_an_epoch_ahead_is_followed():
    left, right = pair(5, cipher="AES-128-GCM", epochs=True)
    secret = label(label(material("there 1")[:32], b"datakey upd", 32), b"datakey upd", 32)
    key, iv = label(secret, b"data_key", 16), label(secret, b"data_iv", 12)
    packet_id = struct.pack("!Q", 3 << 48 | 9)
    header = bytes([9 << 3, 0, 0, 5])
    nonce = bytes(a ^ b for a, b in zip(iv, packet_id + bytes(4), strict=True))
    datagram = header + packet_id + AESGCM(key).encrypt(nonce, ipv4(), header + packet_id)
    assert right.receive_datagram(datagram, LEFT, 0.0) == [ipv4()]
    assert sent(right, ipv4())[4:12] == struct.pack("!Q", 3 << 48 | 1)
    assert left.receive_datagram(sent(right, ipv4()), LEFT, 0.0) == [ipv4()]
    assert right.receive_datagram(sent(left, ipv4()), LEFT, 0.0) == [ipv4()]
    assert not drops(right)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: " ".join(map(str, form.values())))
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_forgeries_are_dropped_and_counted(form, data):
    left, right = pair(**form)
    datagram = sent(left, ipv4(b"content"))
    match data.draw(st.sampled_from(["flip", "cut", "longer"])):
        case "flip":
            forged = bytearray(datagram)
            forged[data.draw(st.integers(4, len(datagram) - 1))] ^= data.draw(st.integers(1, 255))
        case "cut":
            forged = datagram[: data.draw(st.integers(4, len(datagram) - 1))]
        case _:
            forged = datagram + data.draw(st.binary(min_size=1, max_size=40))
    assert right.receive_datagram(bytes(forged), LEFT, 0.0) == []
    assert sum(drops(right).values()) == 1
    assert right.receive_datagram(datagram, LEFT, 0.0) == [ipv4(b"content")]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: " ".join(map(str, form.values())))
@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200))
def test_whatever_comes_behind_a_header_is_dropped_and_counted(form, content):
    _, right = pair(**form)
    assert right.receive_datagram(bytes([9 << 3, 0, 0, 5]) + content, LEFT, 0.0) == []
    assert sum(drops(right).values()) == 1


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(CBC)), st.binary(max_size=120))
def test_without_authentication_whatever_comes_does_no_harm(cipher, content):
    _, right = pair(None, cipher=cipher, auth="none")
    right.receive_datagram(bytes([6 << 3]) + content, LEFT, 0.0)
    statistics = right.statistics()
    assert sum(drops(right).values()) + statistics["rx_packets"] + statistics["rx_data_messages"] == 1


@pytest.mark.parametrize(
    ("framing", "marked"),
    [
        ("comp-lzo", lambda packet: b"\xfa" + packet),
        ("stub", lambda packet: b"\xfb" + packet[1:] + packet[:1]),
        ("stub-v2", lambda packet: packet),
    ],
)
def test_framing_on_the_wire(framing, marked):
    left, right = pair(None, cipher="AES-256-GCM")
    left.set_peer(1, 0.0, 0.0, 0, 0.0, framing)
    right.set_peer(1, 0.0, 0.0, 0, 0.0, framing)
    packet = ipv4(b"content")
    datagram = sent(left, packet)
    key = material("there 1")
    nonce, sealed = datagram[1:5] + key[64:72], datagram[21:] + datagram[5:21]
    assert AESGCM(key[:32]).decrypt(nonce, sealed, datagram[1:5]) == marked(packet)
    assert right.receive_datagram(datagram, LEFT, 0.0) == [packet]


@pytest.mark.parametrize(
    "form",
    [
        {"cipher": "BF-CBC", "auth": "SHA1"},
        {"cipher": "AES-128-CBC", "auth": "MD5"},
        {"cipher": "AES-128-CBC", "auth": ""},
        {"cipher": "AES-128-CBC", "auth": "SHA1", "epochs": True},
        {"cipher": "none", "auth": "none", "epochs": True},
    ],
)
def test_what_there_is_no_format_for_is_refused(form):
    with pytest.raises(ValueError, match="not supported"):
        pair(**form)


def test_a_late_packet_is_too_old_after_a_quarter_of_a_minute():
    left, right = pair()
    early, late, last = (sent(left, ipv4()) for _ in range(3))
    newer = [sent(left, ipv4()) for _ in range(40)]
    assert right.receive_datagram(newer[0], LEFT, 1.0)
    assert right.receive_datagram(early, LEFT, 15.5)
    for second, datagram in enumerate(newer[1:30], 16):
        assert right.receive_datagram(datagram, LEFT, float(second))
    assert right.receive_datagram(late, LEFT, 45.0) == []
    assert right.receive_datagram(last, LEFT, 46.0) == []
    assert drops(right) == {"rx_replayed": 2}
