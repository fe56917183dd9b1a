"""Where gateways listen, as texts and as sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from pathlib import Path

import pytest

from ginnel.device import MemoryDevice
from ginnel.errors import ConfigError, DeviceError
from ginnel.gateways.forward import Forward, Target
from ginnel.gateways.http_proxy import HttpProxy
from ginnel.gateways.relay import Acceptor, Address, Listener, read_exactly
from ginnel.gateways.socks5 import Socks5Gateway
from ginnel.stack import Stack


@pytest.mark.parametrize(
    ("text", "address", "private"),
    [
        ("1080", Address("127.0.0.1", 1080), True),
        ("localhost:0", Address("127.0.0.1", 0), True),
        ("0.0.0.0:1080", Address("0.0.0.0", 1080), False),
        ("[::1]:1080", Address("::1", 1080), True),
        ("unix:/run/x", Address(path=Path("/run/x")), True),
    ],
)
def test_an_address_is_read(text: str, address: Address, private: bool) -> None:
    assert Address.parse(text) == address
    assert Address.parse(text).is_private == private


@pytest.mark.parametrize(
    "text", ["", "x", "1.2.3.4", ":", "host.example:80", "127.0.0.1:65536", "unix:", "-1", "١", "unix:/" + "x" * 107]
)
def test_what_is_no_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Address.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("5432:db.office:5432", Target(Address("127.0.0.1", 5432), "db.office", 5432)),
        ("0.0.0.0:80:[fd00::1]:8080", Target(Address("0.0.0.0", 80), "fd00::1", 8080)),
        ("[::1]:0:10.0.0.1:1", Target(Address("::1", 0), "10.0.0.1", 1)),
    ],
)
def test_a_forward_is_read(text: str, target: Target) -> None:
    assert Target.parse(text) == target


@pytest.mark.parametrize("text", ["", "1:2", "1:host:0", "1:host:x", "1::2", "a:b:c:d:e", "x:host:1"])
def test_what_is_no_forward_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Target.parse(text)


def test_a_unix_listener_is_ours_alone_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "socks"
    listener = Listener(Address(path=path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(DeviceError):
        Listener(Address(path=path))
    listener.close()
    assert not path.exists()


def test_a_socket_that_a_dead_process_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "socks"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    listener = Listener(Address(path=path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))
    listener.close()


def test_a_file_in_the_way_stays(tmp_path: Path) -> None:
    path = tmp_path / "socks"
    path.write_text("mine")
    with pytest.raises(DeviceError):
        Listener(Address(path=path))
    assert path.read_text() == "mine"


def test_a_taken_port_is_one_line() -> None:
    first = Listener(Address())
    with pytest.raises(DeviceError) as caught:
        Listener(first.address)
    assert str(caught.value) == f"cannot listen on {first.address}: Address already in use"
    first.close()


async def test_a_handler_reads_no_byte_too_many() -> None:
    rest: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def handler(connection: socket.socket) -> None:
        assert await read_exactly(connection, 3) == b"abc"
        rest.set_result(await asyncio.get_running_loop().sock_recv(connection, 100))

    listener = Listener(Address())
    acceptor = Acceptor(listener, handler)
    with socket.create_connection((listener.address.host, listener.address.port)) as client:
        client.sendall(b"abcdef")
        assert await asyncio.wait_for(rest, 10) == b"def"
    await acceptor.aclose()


async def test_a_handler_that_fails_ends_its_connection_only() -> None:
    async def handler(connection: socket.socket) -> None:
        await read_exactly(connection, 2)

    listener = Listener(Address())
    acceptor = Acceptor(listener, handler, limit=1)
    for _ in range(3):
        reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
        writer.write(b"x")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    await acceptor.aclose()


SOCKS = b"\5\1\0\5\1\0\3\x0bwiki.office\0\x50"
PAGE = b"GET http://wiki.office/ HTTP/1.1\r\nHost: wiki.office\r\n\r\n"
CONNECT = b"CONNECT wiki.office:80 HTTP/1.1\r\nHost: wiki.office\r\n\r\n"


@pytest.mark.parametrize(
    ("kind", "request_", "status"),
    [
        ("SOCKS", SOCKS, b"\5\0\5\4"),
        ("HTTP proxy", PAGE, b"502 Bad"),
        ("HTTP proxy", CONNECT, b"502 Bad"),
        ("forward", b"", b""),
    ],
)
async def test_what_cannot_be_reached_is_said_once_with_its_reason(
    kind: str, request_: bytes, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    why = "wiki.office: the tunnel gave no DNS server (and the host's own is not asked)"
    listener = Listener(Address())
    with MemoryDevice() as device:
        async with Stack(device.interface) as stack:
            device.set_up(True)
            stack.set_addresses(["10.8.0.1/24"])
            assert not stack.has_dns
            gateway = {
                "SOCKS": lambda: Socks5Gateway(stack, listener),
                "HTTP proxy": lambda: HttpProxy(stack, listener),
                "forward": lambda: Forward(stack, listener, Target(Address(), "wiki.office", 80)),
            }[kind]()
            for _ in range(2):
                reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
                writer.write(request_)
                answer = b""
                with contextlib.suppress(ConnectionResetError):
                    answer = await asyncio.wait_for(reader.read(), 10)
                writer.close()
                assert status in answer
                assert kind != "HTTP proxy" or f"cannot reach wiki.office port 80: {why}".encode() in answer
            await gateway.aclose()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{kind}: cannot reach wiki.office port 80: {why}"
    ]
