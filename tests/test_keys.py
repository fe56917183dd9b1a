import contextlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ginnel.errors import ConfigError, RemoteProtocolError
from ginnel.openvpn import keys
from ginnel.openvpn.keys import KeyMessage, Proto

VECTORS = json.loads((Path(__file__).parent / "vectors" / "openvpn.json").read_text())
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60)


@st.composite
def messages(draw: st.DrawFn, *, server: bool) -> KeyMessage:
    return KeyMessage(
        draw(st.binary(min_size=32, max_size=32)),
        draw(st.binary(min_size=32, max_size=32)),
        b"" if server else draw(st.binary(min_size=48, max_size=48)),
        *(draw(texts) for _ in range(4)),
    )


@pytest.mark.parametrize("server", [False, True])
@given(data=st.data())
def test_what_is_emitted_is_parsed_again(server: bool, data: st.DataObject) -> None:
    message = data.draw(messages(server=server))
    assert KeyMessage.parse(message.emit(), from_server=server) == message


@given(st.binary(max_size=400), st.booleans(), st.booleans())
def test_any_bytes_are_a_message_or_a_typed_error(data: bytes, start: bool, server: bool) -> None:
    with contextlib.suppress(RemoteProtocolError):
        KeyMessage.parse((b"\0\0\0\0\x02" if start else b"") + data, from_server=server)


@pytest.mark.parametrize("method", [0, 1, 3, 15])
def test_another_key_method_is_refused_by_its_number(method: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"key method {method}"):
        KeyMessage.parse(bytes(4) + bytes([method]) + bytes(200), from_server=True)


def test_a_text_ends_at_its_first_nul() -> None:
    message = KeyMessage(bytes(32), bytes(32), options="V4\0evil", username="bob")
    parsed = KeyMessage.parse(message.emit(), from_server=True)
    assert (parsed.options, parsed.username) == ("V4", "bob")


def test_bytes_that_are_not_utf8_survive() -> None:
    message = KeyMessage(bytes(32), bytes(32), username=b"caf\xe9".decode(errors="surrogateescape"))
    assert b"caf\xe9\0" in message.emit()
    assert KeyMessage.parse(message.emit(), from_server=True) == message


def test_an_old_client_may_leave_out_what_follows_the_options() -> None:
    whole = KeyMessage(bytes(32), bytes(32), bytes(48), options="V4").emit()
    parsed = KeyMessage.parse(whole[:-6], from_server=False)
    assert (parsed.options, parsed.username, parsed.peer_info) == ("V4", "", "")


def test_texts_that_are_too_long_are_refused_on_both_sides() -> None:
    with pytest.raises(ConfigError, match="too long"):
        KeyMessage(bytes(32), bytes(32), password="x" * 2000).emit()
    start = bytes(4) + b"\x02" + bytes(64)
    with pytest.raises(RemoteProtocolError, match="too long"):
        KeyMessage.parse(start + b"\x02\x01" + bytes(513), from_server=True)


def test_secrets_are_not_shown() -> None:
    shown = repr(KeyMessage(b"r" * 32, b"r" * 32, b"p" * 48, password="hunter2"))
    assert "hunter2" not in shown
    assert "rrr" not in shown
    assert "ppp" not in shown


def test_the_prf_gives_openvpns_own_value() -> None:
    vector = VECTORS["tls1_prf"]
    output = keys.tls1_prf(vector["secret"].encode(), vector["seed"].encode(), 32)
    assert output.hex() == vector["output"]


def test_both_sides_derive_the_same_keys_crosswise() -> None:
    source = random.Random(7)
    client = KeyMessage.make(source.randbytes, server=False, options="")
    server = KeyMessage.make(source.randbytes, server=True, options="")
    material = keys.prf_keys(client, server, b"client01", b"server01")
    assert len(material) == 256
    ours, theirs = keys.direct(material, server=False), keys.direct(material, server=True)
    assert ours == theirs[::-1]
    assert ours[0] == material[:128]
    assert keys.prf_keys(client, server, b"client02", b"server01") != material


def test_peer_info_says_what_stock_servers_look_for() -> None:
    text = keys.peer_info(
        proto=Proto.DATA_V2 | Proto.REQUEST_PUSH,
        ciphers=["AES-256-GCM", "AES-128-GCM"],
        mtu=1600,
        gui_version="ginnel_1",
        extra=[("UV_ID", "7")],
    )
    info = keys.parse_peer_info(text)
    assert info["IV_PROTO"] == "6"
    assert info["IV_NCP"] == "2"
    assert info["IV_CIPHERS"] == "AES-256-GCM:AES-128-GCM"
    assert info["UV_ID"] == "7"
    assert keys.parse_proto(info) == Proto.DATA_V2 | Proto.REQUEST_PUSH
    assert "IV_NCP" not in keys.peer_info(proto=Proto.DATA_V2, ciphers=["AES-256-GCM"], mtu=1, gui_version="")


@given(st.text(max_size=30))
def test_any_iv_proto_is_read(text: str) -> None:
    keys.parse_proto({"IV_PROTO": text})


@pytest.mark.parametrize(
    ("info", "options", "expected"),
    [
        ({"IV_CIPHERS": "AES-128-GCM:AES-256-GCM"}, "", "AES-256-GCM"),
        ({"IV_CIPHERS": "CHACHA20-POLY1305"}, "", "CHACHA20-POLY1305"),
        ({"IV_CIPHERS": "BF-CBC"}, "V4,cipher AES-256-GCM", None),
        ({"IV_NCP": "2"}, "", "AES-256-GCM"),
        ({}, "V4,cipher AES-128-GCM,auth x", "AES-128-GCM"),
        ({}, "V4", None),
    ],
)
def test_the_server_takes_the_first_of_its_own_that_the_client_has(
    info: dict[str, str], options: str, expected: str | None
) -> None:
    ours = ["AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305"]
    assert keys.negotiate_cipher(ours, info, options) == expected


def test_the_options_string_is_stocks() -> None:
    text = keys.options_string(
        server=False, tap=False, tcp=False, tun_mtu=1500, auth="SHA1", key_direction=1, tls_auth=True
    )
    assert text == (
        "V4,dev-type tun,link-mtu 1541,tun-mtu 1500,proto UDPv4,keydir 1,auth SHA1,keysize 128,"
        "tls-auth,key-method 2,tls-client"
    )
