import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ginnel.errors import ConfigError, LocalProtocolError
from ginnel.openvpn.packets import PacketError
from ginnel.openvpn.wrap import (
    NoWrap,
    ReplayError,
    ReplayWindow,
    StaticKey,
    TlsAuth,
    TlsCrypt,
    UnauthenticatedError,
    Wrap,
    Wrapper,
)

VECTORS = json.loads((Path(__file__).parent / "vectors" / "openvpn.json").read_text())["packets"]
KEY = StaticKey(bytes(range(256)))
PACKET = b"\x38sessions" + b"\x00\x00\x00\x00\x00"
PAIRS: dict[str, Callable[[], tuple[Wrap, Wrap]]] = {
    "none": lambda: (NoWrap(), NoWrap()),
    "sha1": lambda: (TlsAuth(KEY, "SHA1", 1), TlsAuth(KEY, "SHA1", 0)),
    "sha256": lambda: (TlsAuth(KEY, "SHA256", 1), TlsAuth(KEY, "sha256", 0)),
    "sha512": lambda: (TlsAuth(KEY, "SHA512", 1), TlsAuth(KEY, "SHA512", 0)),
    "both ways": lambda: (TlsAuth(KEY, "SHA512"), TlsAuth(KEY, "SHA512")),
    "tls-crypt": lambda: (TlsCrypt(KEY), TlsCrypt(KEY)),
}


def start(wrap: Wrap, *, server: bool, unix_time: float = 1.7e9) -> Wrapper:
    return wrap.start(server=server, unix_time=unix_time, now=50.0)


def both(name: str) -> tuple[Wrapper, Wrapper]:
    client, server = PAIRS[name]()
    return start(client, server=False), start(server, server=True)


@pytest.mark.parametrize("name", PAIRS)
@given(body=st.binary(max_size=100))
def test_each_side_reads_what_the_other_wraps(name: str, body: bytes) -> None:
    client, server = both(name)
    packet = PACKET[:9] + body
    wrapped = client.wrap(packet, 50.0)
    assert len(wrapped) == len(packet) + client.overhead
    assert server.unwrap(wrapped) == packet
    assert client.unwrap(server.wrap(packet, 51.0)) == packet


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "none"])
@given(data=st.data())
def test_a_changed_byte_anywhere_is_noticed(name: str, data: st.DataObject) -> None:
    client, server = both(name)
    wrapped = bytearray(client.wrap(PACKET, 50.0))
    wrapped[data.draw(st.integers(0, len(wrapped) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UnauthenticatedError):
        server.unwrap(bytes(wrapped))


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "none"])
@given(data=st.binary(max_size=150))
def test_any_bytes_are_refused_by_a_typed_error(name: str, data: bytes) -> None:
    with pytest.raises(PacketError):
        both(name)[1].unwrap(data)


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "none"])
def test_a_packet_counts_once_and_may_come_late(name: str) -> None:
    client, server = both(name)
    datagrams = [client.wrap(PACKET, 50.0) for _ in range(70)]
    for datagram in reversed(datagrams[6:]):
        server.unwrap(datagram)
    for datagram in datagrams:
        with pytest.raises(ReplayError):
            server.unwrap(datagram)


def test_a_recording_of_an_earlier_session_is_a_replay() -> None:
    server = start(TlsCrypt(KEY), server=True)
    client = start(TlsCrypt(KEY), server=False, unix_time=1.7e9)
    old = [client.wrap(PACKET, 50.0) for _ in range(5)][-1]
    server.unwrap(start(TlsCrypt(KEY), server=False, unix_time=1.7e9 + 60).wrap(PACKET, 50.0))
    with pytest.raises(ReplayError):
        server.unwrap(old)


def test_a_forged_packet_does_not_move_the_replay_window() -> None:
    client, server = both("tls-crypt")
    first = client.wrap(PACKET, 50.0)
    forged = bytearray(client.wrap(PACKET, 50.0))
    forged[9:13] = b"\xff\xff\xff\xff"
    with pytest.raises(UnauthenticatedError):
        server.unwrap(bytes(forged))
    server.unwrap(first)


def test_a_huge_jump_of_the_packet_id_costs_nothing() -> None:
    window = ReplayWindow()
    window.accept(bytes.fromhex("0000000100000001"))
    window.accept(bytes.fromhex("ffffffff00000001"))
    with pytest.raises(ReplayError):
        window.accept(bytes.fromhex("0000000200000001"))
    with pytest.raises(ReplayError):
        window.accept(bytes.fromhex("0000000000000002"))


def test_directions_that_are_equal_do_not_fit() -> None:
    client = start(TlsAuth(KEY, "SHA1", 1), server=False)
    server = start(TlsAuth(KEY, "SHA1", 1), server=True)
    with pytest.raises(UnauthenticatedError):
        server.unwrap(client.wrap(PACKET, 50.0))


def test_openvpns_own_wrapped_packets() -> None:
    key = StaticKey(bytes.fromhex(VECTORS["static_key"]))
    auth = start(TlsAuth(key, "SHA1", 0), server=True)
    assert auth.unwrap(bytes.fromhex(VECTORS["reset_tls_auth_sha1"])).hex() == "38de694c5c7bfba2740000000000"
    assert len(auth.unwrap(bytes.fromhex(VECTORS["control_tls_auth_sha1"]))) > 200
    crypt = start(TlsCrypt(key), server=True)
    assert crypt.unwrap(bytes.fromhex(VECTORS["reset_tls_crypt"])).hex() == "38f419cb12d1f9e48f0000000000"


def test_a_wrapped_packet_is_openvpns_to_the_byte() -> None:
    key = StaticKey(bytes.fromhex(VECTORS["static_key"]))
    client = start(TlsAuth(key, "SHA1", 1), server=False, unix_time=0x61D3BF6C)
    assert client.wrap(bytes.fromhex("38de694c5c7bfba2740000000000"), 50.9).hex() == VECTORS["reset_tls_auth_sha1"]
    crypt = start(TlsCrypt(key), server=False, unix_time=0x61D3F8E1)
    assert crypt.wrap(bytes.fromhex("38f419cb12d1f9e48f0000000000"), 50.0).hex() == VECTORS["reset_tls_crypt"]


def test_a_key_file_is_read_as_it_was_written() -> None:
    text = "# 2048 bit OpenVPN static key\n" + KEY.emit()
    assert StaticKey.parse(text) == KEY
    assert StaticKey.parse(text.replace("\n", "\r\n")) == KEY


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda text: text.replace("BEGIN", "BEGUN"), "BEGIN OpenVPN Static key V1"),
        (lambda text: text.replace("END", "BEND"), "END OpenVPN Static key V1"),
        (lambda text: text.replace("0a0b", "xa0b"), "hexadecimal"),
        (lambda text: text.replace("0a0b", ""), "254 bytes, not 256"),
        (lambda text: "", "BEGIN"),
    ],
)
def test_a_wrong_key_file_is_refused_with_what_is_wrong(spoil: Callable[[str], str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        StaticKey.parse(spoil(KEY.emit()))


def test_a_key_is_not_shown() -> None:
    assert "0102" not in repr(TlsCrypt(KEY))
    assert "\\x01" not in repr(TlsAuth(KEY))


def test_wrong_digest_and_direction_are_configuration_errors() -> None:
    with pytest.raises(ConfigError, match="MD4"):
        TlsAuth(KEY, "MD4")
    with pytest.raises(ConfigError, match="key-direction"):
        TlsAuth(KEY, "SHA1", 2)


@pytest.mark.parametrize("name", ["sha1", "tls-crypt"])
def test_packet_ids_that_run_out_begin_again_with_a_later_time(name: str) -> None:
    _, receiver = both(name)
    wrap, _ = PAIRS[name]()
    sender = wrap.start(server=False, unix_time=1.7e9, now=0.0, sent=0xFFFFFFFE)
    assert receiver.unwrap(sender.wrap(PACKET, 0.0)) == PACKET
    with pytest.raises(LocalProtocolError):
        sender.wrap(PACKET, 0.5)
    assert receiver.unwrap(sender.wrap(PACKET, 1.0)) == PACKET
    assert receiver.unwrap(sender.wrap(PACKET, 1.0)) == PACKET
