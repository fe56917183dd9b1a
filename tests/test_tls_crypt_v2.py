"""tls-crypt-v2: keys, wrapped keys, and what a session does with them."""

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ginnel._core import ControlCipher
from ginnel.errors import ConfigError
from ginnel.openvpn.packets import (
    ASK_FOR_WRAPPED_KEY,
    ControlPacket,
    Header,
    Opcode,
    PacketError,
    resend_wrapped_key,
)
from ginnel.openvpn.tls_crypt_v2 import (
    MAX_METADATA,
    MAX_WRAPPED,
    MIN_WRAPPED,
    TIMESTAMP,
    USER,
    ClientKey,
    Metadata,
    ServerKey,
    TlsCryptV2,
    TlsCryptV2Server,
    negotiates_early,
    split_wrapped_key,
)
from ginnel.openvpn.wrap import NoWrap, ReplayError, StaticKey, TlsAuth, TlsCrypt, UnauthenticatedError, renew

VECTORS = json.loads((Path(__file__).parent / "vectors" / "openvpn.json").read_text())
KEYS = VECTORS["tls_crypt_v2"]
NOW = 1.7e9
SERVER = ServerKey(bytes(range(128)))
STATIC = StaticKey(bytes(range(256)))
CLIENT = SERVER.make_client_key(Metadata.made_at(NOW), random.Random(1).randbytes)
RESET = Header(Opcode.HARD_RESET_CLIENT_V3, 0, b"clientid").emit() + b"\0\0\0\0\0"
SECOND = Header(Opcode.CONTROL_WKC_V1, 0, b"clientid").emit() + b"\0\0\0\0\x01"


def sent(packet: bytes, key: ClientKey = CLIENT, count: int = 1) -> bytes:
    """What a client sends for a packet, its ``count``th."""
    wrapper = TlsCryptV2(key).start(server=False, unix_time=NOW, now=0.0)
    return [wrapper.wrap(packet, 0.0) for _ in range(count)][-1]


def opened(datagram: bytes, server: TlsCryptV2Server) -> bytes:
    return server.start(server=True, unix_time=NOW, now=0.0).unwrap(datagram)


# OpenVPN's own values.


def test_openvpns_own_keys_are_read_and_written_to_the_byte() -> None:
    server = ServerKey.parse(KEYS["server_key"])
    assert server.emit() == KEYS["server_key"]
    for name in ("client_key", "client_key_metadata"):
        client = ClientKey.parse(KEYS[name])
        assert client.emit() == KEYS[name]
        key, metadata = server.unwrap(client.wrapped)
        assert key == client.key == STATIC
        assert metadata is not None
        assert server.wrap(key, metadata) == client.wrapped
        if name == "client_key":
            assert metadata == Metadata.made_at(0)
        else:
            assert metadata == Metadata(USER, base64.b64decode(KEYS["metadata"]))


def test_openvpns_own_key_of_a_renegotiation() -> None:
    vector = {name: bytes.fromhex(text) for name, text in VECTORS["dyn_tls_crypt"].items()}
    wrapper = renew(
        NoWrap().start(server=False, unix_time=NOW, now=0.0),
        vector["exported"] * 256,
        server=False,
        unix_time=NOW,
        now=0.0,
    )
    key = StaticKey(wrapper.secret)
    cipher = ControlCipher(key.cipher(1)[:32], key.hmac(1)[:32])
    assert cipher.seal(vector["packet_id"], vector["plain"]) == vector["wrapped"]


@pytest.mark.parametrize("wrap", [TlsCrypt(STATIC), TlsAuth(STATIC), TlsCryptV2(ClientKey(STATIC, CLIENT.wrapped))])
def test_the_key_of_a_renegotiation_has_the_old_one_in_it(wrap: TlsCrypt | TlsAuth | TlsCryptV2) -> None:
    old = wrap.start(server=False, unix_time=NOW, now=0.0)
    new = renew(old, bytes(255) + b"\x01", server=False, unix_time=NOW, now=0.0)
    assert new.secret == bytes(range(255)) + bytes([255 ^ 1])
    assert new.wrapped_key == b""


# Key files.


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda text: text.replace("BEGIN", "BEGINN"), "no .*BEGIN OpenVPN tls-crypt-v2 client key"),
        (lambda text: text.replace("client", "server"), "no .*BEGIN OpenVPN tls-crypt-v2 client key"),
        (lambda text: text.replace("A", "?", 1).replace("B", "?"), "not base64|no .*BEGIN"),
        (lambda text: text[:60] + text[80:], "not base64|damaged"),
        (lambda text: ClientKey(STATIC, CLIENT.wrapped[:-1]).emit(), "damaged"),
        (lambda text: ClientKey(STATIC, b"").emit(), "damaged"),
        (lambda text: "", "no .*BEGIN"),
    ],
)
def test_a_wrong_client_key_is_refused_with_what_is_wrong(spoil: Callable[[str], str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ClientKey.parse(spoil(CLIENT.emit()))


def test_a_server_key_of_another_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="127 bytes, not 128"):
        ServerKey.parse(ServerKey(bytes(127)).emit())


def test_text_and_line_ends_around_a_key_do_no_harm() -> None:
    text = "# for bob\r\n" + CLIENT.emit().replace("\n", "\r\n")
    assert ClientKey.parse(text) == CLIENT


def test_keys_are_not_shown() -> None:
    for value in (SERVER, CLIENT, TlsCryptV2(CLIENT), TlsCryptV2Server(SERVER)):
        assert "\\x01\\x02" not in repr(value)
        assert repr(CLIENT.wrapped[:4])[2:-1] not in repr(value)


def test_metadata_up_to_its_limit() -> None:
    for size in (0, 1, MAX_METADATA):
        metadata = Metadata(USER, bytes(size))
        assert SERVER.unwrap(SERVER.wrap(STATIC, metadata)) == (STATIC, metadata)
    assert len(SERVER.wrap(STATIC, Metadata(USER, bytes(MAX_METADATA)))) == MAX_WRAPPED
    with pytest.raises(ConfigError, match="at most 733 fit"):
        SERVER.wrap(STATIC, Metadata(USER, bytes(MAX_METADATA + 1)))


# Wrapped keys that were tampered with.


def test_every_bit_of_a_wrapped_key_counts() -> None:
    for at in range(len(CLIENT.wrapped)):
        for bit in range(8):
            changed = bytearray(CLIENT.wrapped)
            changed[at] ^= 1 << bit
            with pytest.raises(PacketError):
                SERVER.unwrap(bytes(changed))


def test_wrapped_keys_of_every_length() -> None:
    padded = CLIENT.wrapped * 225
    for size in range(65536):
        for wrapped in (padded[:size], padded[: size - 2] + size.to_bytes(2, "big")):
            if wrapped != CLIENT.wrapped:
                with pytest.raises(PacketError):
                    SERVER.unwrap(wrapped)


def test_every_length_that_a_packet_may_claim() -> None:
    good = sent(RESET)
    server = TlsCryptV2Server(SERVER)
    assert opened(good, server) == RESET
    wrapper = server.start(server=True, unix_time=NOW, now=0.0)
    for size in range(65536):
        if size != len(CLIENT.wrapped):
            with pytest.raises(PacketError):
                wrapper.unwrap(good[:-2] + size.to_bytes(2, "big"))
    for length in range(9, len(good)):
        with pytest.raises(PacketError):
            wrapper.unwrap(good[:length])
    assert wrapper.unwrap(good) == RESET


def test_every_byte_of_a_first_packet_counts() -> None:
    good = sent(RESET)
    for at in range(len(good)):
        changed = bytearray(good)
        changed[at] ^= 0x10
        with pytest.raises(PacketError):
            opened(bytes(changed), TlsCryptV2Server(SERVER))


def test_another_servers_key_is_unauthenticated() -> None:
    with pytest.raises(UnauthenticatedError):
        opened(sent(RESET), TlsCryptV2Server(ServerKey(bytes(128))))


# Sessions.


def test_the_reset_says_that_the_key_can_be_sent_again() -> None:
    assert negotiates_early(sent(RESET))
    plain = TlsCrypt(STATIC).start(server=False, unix_time=NOW, now=0.0).wrap(RESET, 0.0)
    assert not negotiates_early(plain)


def test_a_server_takes_the_key_from_either_packet_and_keeps_the_first_one() -> None:
    server = TlsCryptV2Server(SERVER)
    for packet in (RESET, SECOND):
        assert opened(sent(packet), server) == packet
    wrapper = server.start(server=True, unix_time=NOW, now=0.0)
    wrapper.unwrap(sent(RESET))
    assert wrapper.unwrap(sent(SECOND, count=2)) == SECOND
    with pytest.raises(ReplayError):
        wrapper.unwrap(sent(SECOND, count=2))
    other = SERVER.make_client_key(Metadata(USER, b""), random.Random(2).randbytes)
    with pytest.raises(UnauthenticatedError):
        wrapper.unwrap(sent(SECOND, other, count=3))


def test_a_forged_first_packet_does_not_decide_the_key() -> None:
    wrapper = TlsCryptV2Server(SERVER).start(server=True, unix_time=NOW, now=0.0)
    forged = sent(RESET, ClientKey(StaticKey(bytes(256)), CLIENT.wrapped))
    with pytest.raises(UnauthenticatedError):
        wrapper.unwrap(forged)
    assert wrapper.unwrap(sent(RESET)) == RESET


def test_a_forged_packet_does_not_decide_which_wrap_it_is() -> None:
    wrapper = TlsCryptV2Server(SERVER, fallback=TlsCrypt(STATIC)).start(server=True, unix_time=NOW, now=0.0)
    with pytest.raises(UnauthenticatedError):
        wrapper.unwrap(Header(Opcode.HARD_RESET_CLIENT_V2, 0, b"clientid").emit() + bytes(60))
    assert wrapper.unwrap(sent(RESET)) == RESET


def test_only_a_server_with_a_fallback_takes_clients_without_a_wrapped_key() -> None:
    reset = Header(Opcode.HARD_RESET_CLIENT_V2, 0, b"clientid").emit() + b"\0\0\0\0\0"
    datagram = TlsCrypt(STATIC).start(server=False, unix_time=NOW, now=0.0).wrap(reset, 0.0)
    with pytest.raises(UnauthenticatedError, match="none but tls-crypt-v2"):
        opened(datagram, TlsCryptV2Server(SERVER))
    both = TlsCryptV2Server(SERVER, fallback=TlsCrypt(STATIC))
    assert opened(datagram, both) == reset
    assert opened(sent(RESET), both) == RESET
    with pytest.raises(PacketError):
        opened(reset, both)


@pytest.mark.parametrize(
    ("metadata", "fits"),
    [
        (Metadata.made_at(NOW), True),
        (Metadata.made_at(NOW - 7 * 86400), True),
        (Metadata.made_at(NOW - 7 * 86400 - 1), False),
        (Metadata.made_at(-1), False),
        (Metadata(USER, (int(NOW)).to_bytes(8, "big")), False),
        (Metadata(TIMESTAMP, b"\x7f"), False),
    ],
)
def test_the_age_of_a_key(metadata: Metadata, fits: bool) -> None:
    key = SERVER.make_client_key(metadata, random.Random(3).randbytes)
    server = TlsCryptV2Server(SERVER, max_age=7)
    if fits:
        assert opened(sent(RESET, key), server) == RESET
    else:
        with pytest.raises(UnauthenticatedError):
            opened(sent(RESET, key), server)


def test_a_key_without_metadata_is_taken_where_nobody_asks_for_it() -> None:
    # No server of ours makes one, but stock's reads one.
    size = MIN_WRAPPED.to_bytes(2, "big")
    wrapped = ControlCipher(SERVER.data[:32], SERVER.data[64:96]).seal(size, STATIC.data) + size
    assert SERVER.unwrap(wrapped) == (STATIC, None)
    datagram = sent(RESET, ClientKey(STATIC, wrapped))
    assert opened(datagram, TlsCryptV2Server(SERVER)) == RESET
    for strict in (TlsCryptV2Server(SERVER, max_age=1), TlsCryptV2Server(SERVER, verify=lambda metadata: True)):
        with pytest.raises(UnauthenticatedError):
            opened(datagram, strict)


def test_metadata_is_judged_by_the_servers_own_rule() -> None:
    seen = []

    def verify(metadata: Metadata) -> bool:
        seen.append(metadata)
        return metadata.data == b"good"

    server = TlsCryptV2Server(SERVER, verify=verify)
    good, bad = (SERVER.make_client_key(Metadata(USER, text), random.Random(4).randbytes) for text in (b"good", b"bad"))
    assert opened(sent(RESET, good), server) == RESET
    with pytest.raises(UnauthenticatedError, match="metadata is refused"):
        opened(sent(RESET, bad), server)
    assert [metadata.data for metadata in seen] == [b"good", b"bad"]


def test_a_servers_key_is_no_clients() -> None:
    with pytest.raises(ConfigError, match="is a server's"):
        TlsCryptV2Server(SERVER).start(server=False, unix_time=NOW, now=0.0)


# Early negotiation.


@pytest.mark.parametrize(
    ("payload", "asked"),
    [
        (b"", False),
        (ASK_FOR_WRAPPED_KEY, True),
        (bytes.fromhex("0001 0002 0000"), False),
        (bytes.fromhex("0001 0002 fffe"), False),
        (bytes.fromhex("00ff 0003 aabbcc 0001 0002 0001"), True),
        (bytes.fromhex("0001 0002 0001 0007 0000"), True),
    ],
)
def test_what_a_servers_reset_asks_for(payload: bytes, asked: bool) -> None:
    assert resend_wrapped_key(payload) is asked


@pytest.mark.parametrize("text", ["00", "0001", "000100", "00010002", "0001000200", "0001000100", "00010003000000"])
def test_a_malformed_list_is_refused(text: str) -> None:
    with pytest.raises(PacketError):
        resend_wrapped_key(bytes.fromhex(text))


def test_the_wrapped_key_is_cut_off_where_it_belongs_to_the_packet_alone() -> None:
    packet = ControlPacket(Header(Opcode.CONTROL_V1, 0, b"clientid"), (), None, 1, CLIENT.wrapped).emit()
    assert split_wrapped_key(packet) == (packet, b"")
