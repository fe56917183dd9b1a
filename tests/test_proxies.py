"""The proxies into a tunnel, HTTP and SOCKS5: clients on loopback, and servers in a second stack."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ginnel._core import Device
from ginnel.gateways.http_proxy import HttpProxy
from ginnel.gateways.relay import Address, Listener
from ginnel.gateways.socks5 import Login, Socks5Gateway
from ginnel.socks5 import parse_datagram
from ginnel.stack import Stack
from tests.harness.socks import GREETING

LOGIN = Login("alice", "wonder:land")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\nhello"
SEED = 20261


class Office:
    """A stack with a web server, whose answer can be changed, that keeps what it was asked."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.answer = ANSWER
        self.asked: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            content = b""
            if b"chunked" in head:
                content = await reader.readuntil(b"0\r\n\r\n")
            elif b"content-length: " in head.lower():
                content = await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
            self.asked.append(head + content)
            writer.write(self.answer)
            await writer.drain()
        writer.close()


@pytest.fixture
async def tunnel() -> AsyncIterator[tuple[Stack, Office]]:
    device = Device("tun", 1500, 4096)
    async with Stack(device.attach("interface")) as near, Stack(device.attach("application")) as far:
        device.set_up(True)
        near.set_addresses(["10.8.0.2/24", "fd00::2/64"])
        far.set_addresses(["10.8.0.1/24", "fd00::1/64"])
        office = Office(far)
        async with await far.start_server(office.serve, port=80):
            yield near, office


@pytest.fixture(params=[None, LOGIN], ids=["open", "login"])
async def proxy(request: pytest.FixtureRequest, tunnel: tuple[Stack, Office]) -> AsyncIterator[Address]:
    listener = Listener(Address())
    gateway = HttpProxy(tunnel[0], listener, request.param)
    yield listener.address
    await gateway.aclose()


@pytest.fixture
async def open_proxy(tunnel: tuple[Stack, Office]) -> AsyncIterator[Address]:
    listener = Listener(Address())
    gateway = HttpProxy(tunnel[0], listener)
    yield listener.address
    await gateway.aclose()


@pytest.fixture(params=[None, LOGIN], ids=["open", "login"])
async def socks(request: pytest.FixtureRequest, tunnel: tuple[Stack, Office]) -> AsyncIterator[Address]:
    listener = Listener(Address())
    gateway = Socks5Gateway(tunnel[0], listener, request.param)
    yield listener.address
    await gateway.aclose()


async def curl(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "curl", "-q", "--silent", "--show-error", "--max-time", "30", "--noproxy", "", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return output.decode()


async def say(address: Address, data: bytes) -> bytes:
    """All that a proxy answers to these bytes and the end."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(data)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("host", ["10.8.0.1", "[fd00::1]"])
@pytest.mark.parametrize("kind", [[], ["--proxytunnel"], ["--data", "x" * 100_000], ["--http1.0"]])
async def test_curl_gets_through(proxy: Address, tunnel: tuple[Stack, Office], host: str, kind: list[str]) -> None:
    where = f"http://alice:wonder%3Aland@{proxy}"
    assert await curl("--proxy", where, *kind, f"http://{host}/a?b=c") == "hello"
    (asked,) = tunnel[1].asked
    method = b"POST" if "--data" in kind else b"GET"
    assert asked.startswith(method + b" /a?b=c HTTP/1.")
    assert f"Host: {host}".encode() in asked
    if kind != ["--proxytunnel"]:
        assert b"proxy" not in asked.lower()
    if "--data" in kind:
        assert asked.endswith(b"x" * 100_000)


@pytest.mark.parametrize("proxy", [LOGIN], indirect=True)
@pytest.mark.parametrize("login", ["", "alice:wonderland@", "bob:wonder%3Aland@"])
@pytest.mark.parametrize("kind", [[], ["--proxytunnel"]])
async def test_a_wrong_login_is_407(proxy: Address, tunnel: tuple[Stack, Office], login: str, kind: list[str]) -> None:
    status = ("--output", "/dev/null", "--write-out", "%{http_code} %{http_connect}")
    assert "407" in await curl("--proxy", f"http://{login}{proxy}", *kind, *status, "http://10.8.0.1/")
    assert tunnel[1].asked == []


async def test_requests_follow_each_other_on_one_connection(open_proxy: Address, tunnel: tuple[Stack, Office]) -> None:
    output = await curl(
        "--proxy", f"http://{open_proxy}", "--write-out", " %{num_connects}\n",
        "http://10.8.0.1/1", "http://[fd00::1]/2", "http://10.8.0.1/3",
    )  # fmt: skip
    assert output == "hello 1\nhello 0\nhello 0\n"
    assert [asked.split()[1] for asked in tunnel[1].asked] == [b"/1", b"/2", b"/3"]


async def test_a_client_may_talk_before_connect_is_answered(open_proxy: Address, tunnel: tuple[Stack, Office]) -> None:
    reader, writer = await asyncio.open_connection(open_proxy.host, open_proxy.port)
    writer.write(b"CONNECT 10.8.0.1:80 HTTP/1.1\r\nHost: 10.8.0.1:80\r\n\r\nGET /early HTTP/1.0\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == b"200"
    assert await reader.readexactly(len(ANSWER)) == ANSWER
    assert tunnel[1].asked == [b"GET /early HTTP/1.0\r\n\r\n"]
    writer.close()


async def test_a_head_may_come_byte_by_byte(open_proxy: Address, tunnel: tuple[Stack, Office]) -> None:
    reader, writer = await asyncio.open_connection(open_proxy.host, open_proxy.port)
    for byte in b"GET http://10.8.0.1 HTTP/1.1\r\nHost: elsewhere\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\n\r\n":
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"hello")
    assert b"hop" not in answer.lower()
    (asked,) = tunnel[1].asked
    assert asked == b"GET / HTTP/1.1\r\nHost: 10.8.0.1\r\nConnection: close\r\n\r\n"


async def test_chunks_go_both_ways(open_proxy: Address, tunnel: tuple[Stack, Office], tmp_path: Path) -> None:
    tunnel[1].answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    (tmp_path / "content").write_bytes(b"y" * 40_000)
    output = await curl(
        "--proxy", f"http://{open_proxy}", "--header", "Transfer-Encoding: chunked", "--header", "Expect:",
        "--data-binary", f"@{tmp_path / 'content'}", "http://10.8.0.1/",
    )  # fmt: skip
    assert output == "hello"
    assert tunnel[1].asked[0].count(b"y") >= 40_000


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"CONNECT 10.8.0.1 HTTP/1.1", 400),
        (b"CONNECT 10.8.0.1:x HTTP/1.1", 400),
        (b"CONNECT 10.8.0.1:0 HTTP/1.1", 400),
        (b"CONNECT a@10.8.0.1:80 HTTP/1.1", 400),
        (b"CONNECT 10.8.0.1:80/x HTTP/1.1", 400),
        (b"GET / HTTP/1.1", 400),
        (b"GET https://10.8.0.1/ HTTP/1.1", 400),
        (b"GET http://a:b@10.8.0.1/ HTTP/1.1", 400),
        (b"GET http:///x HTTP/1.1", 400),
        (b"GET http://[fd00::1/ HTTP/1.1", 400),
        (b"GET http://10.8.0.1:99999/ HTTP/1.1", 400),
        (b"GET http://localhost/ HTTP/1.1", 502),
        (b"CONNECT 10.8.0.1:81 HTTP/1.1", 502),
        (b"GET http://10.8.0.1:81/ HTTP/1.1", 502),
        (b"GET http://10.8.0.1/" + b"x" * 70_000 + b" HTTP/1.1", 431),
        (b"\x16\x03\x01\x02", 400),
        (b"SSH-2.0-OpenSSH_9.6", 400),
    ],
)
async def test_bad_requests(
    open_proxy: Address, tunnel: tuple[Stack, Office], request_line: bytes, status: int
) -> None:
    answer = await say(open_proxy, request_line + b"\r\nHost: x\r\n\r\n")
    assert answer.split()[:2] == [b"HTTP/1.1", b"%d" % status]
    assert tunnel[1].asked == []


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 101 Up\r\n\r\n", b"HTTP/1.1 200 OK\r\nA"])
async def test_bad_servers(open_proxy: Address, tunnel: tuple[Stack, Office], answer: bytes) -> None:
    tunnel[1].answer = answer
    answered = await say(open_proxy, b"GET http://10.8.0.1/ HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answered.split()[:2] == [b"HTTP/1.1", b"502"]


async def test_a_request_is_not_smuggled_behind_anothers_content(
    open_proxy: Address, tunnel: tuple[Stack, Office]
) -> None:
    second = b"GET http://10.8.0.1/second HTTP/1.1\r\nHost: x\r\n\r\n"
    first = b"POST http://10.8.0.1/first HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    answer = await say(open_proxy, first + second)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"connection: close" in answer.lower()
    both = b"Host: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await say(open_proxy, b"POST http://10.8.0.1/ HTTP/1.1\r\n" + both + b"0\r\n\r\n" + second)
    assert answer.count(b"HTTP/1.1") == 1
    assert not any(b"second" in asked for asked in tunnel[1].asked)


async def test_garbage_and_others_go_on(open_proxy: Address) -> None:
    source = random.Random(SEED)
    for _ in range(60):
        first = source.choice([b"", b"GET ", b"GET http://10.8.0.1/ HTTP/1.1\r\n", b"CONNECT 10.8.0.1:80 HTTP/1.1\r\n"])
        await say(open_proxy, first + source.randbytes(source.randrange(600)) + b"\r\n\r\n")
    assert await curl("--proxy", f"http://{open_proxy}", "http://10.8.0.1/") == "hello", f"seed {SEED}"


@pytest.mark.parametrize("host", ["10.8.0.1", "[fd00::1]"])
async def test_curl_through_socks(socks: Address, host: str) -> None:
    assert await curl("--proxy", f"socks5h://alice:wonder%3Aland@{socks}", f"http://{host}/") == "hello"


@pytest.mark.parametrize("socks", [LOGIN], indirect=True)
@pytest.mark.parametrize("login", ["", "alice:wonderland@", "bob:wonder%3Aland@"])
async def test_a_wrong_socks_login(socks: Address, tunnel: tuple[Stack, Office], login: str) -> None:
    assert "curl: (97)" in await curl("--proxy", f"socks5h://{login}{socks}", "http://10.8.0.1/")
    assert tunnel[1].asked == []


async def test_who_speaks_http_to_socks_is_told(socks: Address, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        for words in ([f"http://{socks}/"], ["--proxy", f"http://{socks}", "http://10.8.0.1/"]):
            assert "This is a SOCKS5 proxy, not an HTTP proxy." in await curl(*words)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("SOCKS: a client speaks HTTP, and this is SOCKS5")


class Association:
    """A client of UDP ASSOCIATE."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, relay: tuple[str, int]) -> None:
        self.reader = reader
        self.writer = writer
        self.relay = relay
        self.socks: list[socket.socket] = []

    def socket(self, host: str = "127.0.0.1") -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socks.append(sock)
        sock.bind((host, 0))
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        for sock in self.socks:
            sock.close()
        self.writer.close()


@pytest.fixture
async def association(tunnel: tuple[Stack, Office]) -> AsyncIterator[Association]:
    listener = Listener(Address())
    gateway = Socks5Gateway(tunnel[0], listener)
    reader, writer = await asyncio.open_connection(listener.address.host, listener.address.port)
    writer.write(GREETING + b"\5\3\0\1\0\0\0\0\0\0")
    reply = await asyncio.wait_for(reader.readexactly(12), 30)
    assert reply[2:6] == b"\5\0\0\1"
    association = Association(reader, writer, (".".join(map(str, reply[6:10])), int.from_bytes(reply[10:], "big")))
    assert association.relay[0] == "127.0.0.1"
    yield association
    association.close()
    await gateway.aclose()


V4 = b"\0\0\0\1\x0a\x08\0\1"
V6 = b"\0\0\0\4\xfd" + bytes(14) + b"\1"


@pytest.mark.parametrize("header", [V4, V6, b"\0\0\0\x03\x0810.8.0.1"], ids=["v4", "v6", "name"])
async def test_datagrams_over_socks(association: Association, tunnel: tuple[Stack, Office], header: bytes) -> None:
    loop = asyncio.get_running_loop()
    sock = association.socket()
    async with await tunnel[1].stack.open_datagram() as far:
        port = far.port.to_bytes(2, "big")
        for content in (b"hello", b"", bytes(8000)):
            await loop.sock_sendto(sock, header + port + content, association.relay)
            received, (host, back) = await asyncio.wait_for(far.recvfrom(), 30)
            assert received == content
            await far.sendto(content * 2, (host, back))
            answer = await asyncio.wait_for(loop.sock_recv(sock, 65536), 30)
            assert answer == (V6 if header == V6 else V4) + port + content * 2


async def test_the_relay_is_the_clients_alone_and_ends_with_its_connection(
    association: Association, tunnel: tuple[Stack, Office]
) -> None:
    loop = asyncio.get_running_loop()
    sock, other, elsewhere = association.socket(), association.socket(), association.socket("127.0.0.2")
    async with await tunnel[1].stack.open_datagram() as far:
        port = far.port.to_bytes(2, "big")
        await loop.sock_sendto(elsewhere, V4 + port + b"from another address", association.relay)
        await loop.sock_sendto(sock, b"\0\0\1" + V4[3:] + port + b"a fragment", association.relay)
        await loop.sock_sendto(sock, V4 + port + b"first", association.relay)
        received, (host, back) = await asyncio.wait_for(far.recvfrom(), 30)
        assert received == b"first"
        await loop.sock_sendto(other, V4 + port + b"from another port", association.relay)
        await loop.sock_sendto(sock, V4 + port + b"second", association.relay)
        assert (await asyncio.wait_for(far.recvfrom(), 30))[0] == b"second"
        association.writer.write_eof()
        assert await asyncio.wait_for(association.reader.read(), 30) == b""
        # Both ports are free again.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(association.relay)
        async with await tunnel[0].open_datagram(host, back):
            pass


def test_hostile_datagrams() -> None:
    source = random.Random(SEED)
    for _ in range(20_000):
        message = bytes(3) + bytes([source.choice([0, 1, 3, 4, 9])]) + source.randbytes(source.randrange(30))
        datagram = parse_datagram(message)
        if datagram is not None:
            assert datagram.host.isprintable(), f"seed {SEED}"
            assert message.endswith(datagram.payload)
    assert parse_datagram(b"") is None


async def test_no_relay_on_a_unix_socket(tunnel: tuple[Stack, Office], tmp_path: Path) -> None:
    listener = Listener(Address(path=tmp_path / "socks"))
    gateway = Socks5Gateway(tunnel[0], listener)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "socks")
    writer.write(GREETING + b"\5\3\0\1\0\0\0\0\0\0")
    assert (await asyncio.wait_for(reader.readexactly(4), 30))[2:] == b"\5\7"
    writer.close()
    await gateway.aclose()
