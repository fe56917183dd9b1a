"""Ways to a server on loopback: addresses that race, and proxies as they are and as they shouldn't be."""

import asyncio
import base64
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from ginnel.errors import AuthError, GinnelError, RemoteProtocolError, UnreachableError
from ginnel.openvpn.config import HttpProxy, SocksProxy
from ginnel.transports import http_auth, http_proxy, socks
from ginnel.transports.dial import Local, dial, resolve, source_address, udp_socket

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LOGIN = ("alice", 'a "quoted" pass:word')


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def login() -> tuple[str, str]:
    return LOGIN


async def nobody() -> None:
    return None


async def through_http(handler: Handler, host: str = "vpn.example", **options: object) -> tuple[bytes, list[bytes]]:
    """What the server says through the proxy, and the heads of the requests that the proxy got."""
    heads: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recorded = _Recorder(reader, heads)
        await handler(recorded, writer)  # type: ignore[arg-type]

    credentials = options.pop("credentials", login)
    async with serving(proxy) as port:
        made = HttpProxy("127.0.0.1", port, **options)  # type: ignore[arg-type]
        connected = await http_proxy.connect(
            lambda: dial([("127.0.0.1", port)]),
            made,
            host,
            1194,
            credentials,  # type: ignore[arg-type]
        )
        with connected:
            connected.send(b"?")
            return await asyncio.get_running_loop().sock_recv(connected, 100), heads


class _Recorder:
    def __init__(self, reader: asyncio.StreamReader, heads: list[bytes]) -> None:
        self._reader = reader
        self._heads = heads

    async def spoken(self) -> None:
        await self._reader.readexactly(1)

    async def head(self) -> bytes:
        head = await self._reader.readuntil(b"\r\n\r\n")
        self._heads.append(head)
        return head


def answers(*texts: bytes) -> Handler:
    """A proxy that gives each request on a connection the next of these answers."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await reader.head()) and left:  # type: ignore[attr-defined]
            text = left.pop(0)
            writer.write(text)
            await writer.drain()
            if b"close" in text:
                return
            if b"200" in text:
                await reader.spoken()  # type: ignore[attr-defined]
                writer.write(b"hello")
                await writer.drain()
                return

    left = list(texts)
    return handle


OK = b"HTTP/1.0 200 Connection established\r\n\r\n"
BASIC = b'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="x, y"\r\nContent-Length: 3\r\n\r\nno!'
NO_KIND = (
    b"HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate abc==\r\nProxy-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n"
)
DIGEST = (
    b'HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm="x"\r\n'
    b'Proxy-Authenticate: Digest realm="x", qop="auth,auth-int", nonce="abc=", opaque="o", algorithm=MD5, '
    b'Digest realm="x", qop="auth", nonce="def", algorithm=SHA-256\r\nConnection: close\r\n\r\n'
)


async def test_a_proxy_that_asks_nothing_gets_no_login() -> None:
    headers = (("X-Site", "main"), ("Host", "other.example"))
    said, heads = await through_http(answers(OK), agent="An agent", headers=headers)
    assert said == b"hello"
    (head,) = heads
    assert head.startswith(b"CONNECT vpn.example:1194 HTTP/1.1\r\n")
    assert b"\r\nUser-Agent: An agent\r\n" in head
    assert b"\r\nX-Site: main\r\n" in head
    assert head.lower().count(b"\r\nhost: ") == 1
    assert b"authorization" not in head.lower()


async def test_basic_on_the_same_connection() -> None:
    said, heads = await through_http(answers(BASIC, OK))
    assert said == b"hello"
    assert b"Proxy-Authorization: Basic YWxpY2U6YSAicXVvdGVkIiBwYXNzOndvcmQ=" in heads[1]


async def test_the_strongest_that_is_offered_on_a_new_connection() -> None:
    said, heads = await through_http(answers(DIGEST, OK))
    assert said == b"hello"
    assert b"Digest " in heads[1]
    assert b"algorithm=SHA-256" in heads[1]
    assert b'nonce="def"' in heads[1]
    assert b"word" not in heads[1]


async def test_a_name_that_is_not_ascii_is_asked_for_as_resolvers_have_it() -> None:
    said, (head,) = await through_http(answers(OK), "büro.example")
    assert said == b"hello"
    assert head.startswith(b"CONNECT xn--bro-hoa.example:1194 HTTP/1.1\r\nHost: xn--bro-hoa.example:1194\r\n")


@pytest.mark.parametrize("text", ["jürgen".encode(), b"j\xfcrgen"], ids=["UTF-8", "Latin-1"])
@pytest.mark.parametrize("scheme", ["Basic", "Digest"])
async def test_a_login_that_is_not_ascii_goes_as_it_was_typed(text: bytes, scheme: str) -> None:
    async def login() -> tuple[str, str]:
        return text.decode(errors="surrogateescape"), "x"

    asked = b'HTTP/1.1 407 No\r\nProxy-Authenticate: %s realm="%s", nonce="abc"\r\nContent-Length: 0\r\n\r\n'
    asked %= scheme.encode(), text
    said, heads = await through_http(answers(asked, OK), credentials=login)
    assert said == b"hello"
    if scheme == "Basic":
        assert base64.b64encode(text + b":x") in heads[1]
        return
    assert b'username="%s", realm="%s"' % (text, text) in heads[1]
    secret = hashlib.md5(text + b":" + text + b":x").hexdigest()
    asked_for = hashlib.md5(b"CONNECT:vpn.example:1194").hexdigest()
    response = hashlib.md5(f"{secret}:abc:{asked_for}".encode()).hexdigest()
    assert f'response="{response}"'.encode() in heads[1]


@pytest.mark.parametrize(
    ("texts", "options", "error", "said"),
    [
        ([BASIC, BASIC], {}, AuthError, "refuses the login"),
        ([BASIC], {"cleartext": False}, AuthError, "not allowed"),
        ([BASIC], {"credentials": nobody}, AuthError, "there is none"),
        ([NO_KIND], {}, AuthError, "not supported or not allowed: Negotiate, NTLM$"),
        ([b"HTTP/1.1 403 For\x1bbidden\r\nContent-Length: 0\r\n\r\n"], {}, UnreachableError, "403 For"),
        ([b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"], {}, UnreachableError, "403 Forbidden"),
        ([b"HTTP/1.1 close"], {}, UnreachableError, "in the midst of its answer"),
        ([b"SSH-2.0-close\r\n\r\n"], {}, RemoteProtocolError, "does not speak HTTP"),
        ([OK + b"early"], {}, RemoteProtocolError, "before the server"),
        ([b"HTTP/1.1 403 No\r\nX: " + b"x" * 300_000 + b"\r\n\r\n"], {}, RemoteProtocolError, "HTTP"),
    ],
)
async def test_a_proxy_that_refuses_or_misbehaves(
    texts: list[bytes], options: dict[str, object], error: type[GinnelError], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        await through_http(answers(*texts), **options)
    assert "\x1b" not in str(caught.value)
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_digest_as_in_rfc_7616(algorithm: str, response: str) -> None:
    (challenge,) = http_auth.parse_challenges(
        [
            f'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={algorithm}, '
            'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", '
            'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
        ]
    )
    said = http_auth.answer(
        challenge,
        "Mufasa",
        "Circle of Life",
        "GET",
        "/dir/index.html",
        "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
    )
    assert f'response="{response}"' in said


def socks_proxy(script: list[tuple[bytes, bytes]]) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for expected, answer in script:
            assert await reader.readexactly(len(expected)) == expected
            writer.write(answer)
            await writer.drain()

    return handle


TARGET = b"\x05\x01\x00\x03\x0bvpn.example\x04\xaa"
TARGET4 = b"\x05\x01\x00\x01\xc0\x00\x02\x01\x04\xaa"
BOUND = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x09"


async def through_socks(script: list[tuple[bytes, bytes]], host: str = "vpn.example", *login: str) -> bytes:
    async with serving(socks_proxy(script)) as port:
        with await dial([("127.0.0.1", port)]) as sock:
            await socks.connect(sock, SocksProxy("127.0.0.1", port, *login), host, 1194)
            return await asyncio.get_running_loop().sock_recv(sock, 100)


@pytest.mark.parametrize(
    ("script", "host", "login"),
    [
        ([(b"\x05\x01\x00", b"\x05\x00"), (TARGET, BOUND + b"hello")], "vpn.example", ()),
        ([(b"\x05\x01\x00", b"\x05\x00"), (TARGET4, BOUND + b"hello")], "192.0.2.1", ()),
        ([(b"\x05\x01\x00", b"\x05\x00"), (TARGET, b"\x05\x00\x00\x03\x03abc\x00\x09hello")], "vpn.example", ()),
        ([(b"\x05\x01\x00", b"\x05\x00"), (TARGET, b"\x05\x00\x00\x04" + bytes(18) + b"hello")], "vpn.example", ()),
        (
            [(b"\x05\x02\x00\x02", b"\x05\x02"), (b"\x01\x05alice\x02pw", b"\x01\x00"), (TARGET, BOUND + b"hello")],
            "vpn.example",
            ("alice", "pw"),
        ),
        (
            [(b"\x05\x02\x00\x02", b"\x05\x02"), (b"\x01\x02j\xfc\x02pw", b"\x01\x00"), (TARGET, BOUND + b"hello")],
            "vpn.example",
            (b"j\xfc".decode(errors="surrogateescape"), "pw"),
        ),
    ],
    ids=["name", "address", "bound to a name", "bound to IPv6", "password", "Latin-1"],
)
async def test_socks(script: list[tuple[bytes, bytes]], host: str, login: tuple[str, ...]) -> None:
    """What the server says after the proxy's reply must not be swallowed with it."""
    assert await through_socks(script, host, *login) == b"hello"


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ([(b"\x05\x01\x00", b"\x05\xff")], AuthError, "another login"),
        ([(b"\x05\x01\x00", b"\x05\x02")], RemoteProtocolError, "SOCKS5"),
        ([(b"\x05\x01\x00", b"HTTP")], RemoteProtocolError, "SOCKS5"),
        ([(b"\x05\x01\x00", b"\x05")], UnreachableError, "closed"),
        ([(b"\x05\x01\x00", b"")], UnreachableError, "closed"),
        ([(b"\x05\x01\x00", b"\x05\x00"), (TARGET, b"\x05\x05\x00\x01")], UnreachableError, "connection refused"),
        ([(b"\x05\x01\x00", b"\x05\x00"), (TARGET, b"\x05\x00\x00\x09")], RemoteProtocolError, "SOCKS5"),
    ],
)
async def test_a_socks_proxy_that_refuses_or_misbehaves(
    script: list[tuple[bytes, bytes]], error: type[GinnelError], said: str
) -> None:
    with pytest.raises(error, match=said):
        await through_socks(script)


async def test_a_refused_socks_login() -> None:
    with pytest.raises(AuthError, match="refuses the login"):
        await through_socks([(b"\x05\x02\x00\x02", b"\x05\x02"), (b"\x01\x01a\x01b", b"\x01\x01")], "x", "a", "b")


ASSOCIATE = b"\x05\x03\x00\x01" + bytes(6)


@pytest.mark.parametrize(
    ("bound", "relay"),
    [
        (b"\x01\xc0\x00\x02\x09\x15\xb3", ("192.0.2.9", 5555)),
        (b"\x04" + b"\xfd" + bytes(14) + b"\x09\x15\xb3", ("fd00::9", 5555)),
        # Where the proxy is.
        (b"\x01\0\0\0\0\x15\xb3", ("127.0.0.1", 5555)),
        (b"\x04" + bytes(16) + b"\x15\xb3", ("127.0.0.1", 5555)),
        (b"\x03\x05relay\x15\xb3", None),
        (b"\x01\xc0\x00\x02\x09\0\0", None),
    ],
)
async def test_where_datagrams_go_through_a_socks_proxy(bound: bytes, relay: tuple[str, int] | None) -> None:
    script = [(b"\x05\x01\x00", b"\x05\x00"), (ASSOCIATE, b"\x05\x00\x00" + bound)]
    async with serving(socks_proxy(script)) as port:
        with await dial([("127.0.0.1", port)]) as sock:
            asking = socks.associate(sock, SocksProxy("127.0.0.1", port))
            if relay is not None:
                assert await asking == relay
                return
            with pytest.raises(RemoteProtocolError, match="no address"):
                await asking


async def test_a_socks_proxy_without_datagrams_says_so() -> None:
    script = [(b"\x05\x01\x00", b"\x05\x00"), (ASSOCIATE, b"\x05\x07\x00\x01" + bytes(6))]
    async with serving(socks_proxy(script)) as port:
        refused = pytest.raises(UnreachableError, match="can't relay datagrams: it does not support that")
        with await dial([("127.0.0.1", port)]) as sock, refused:
            await socks.associate(sock, SocksProxy("127.0.0.1", port))


async def test_the_first_address_that_answers_wins() -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        # Full, it lets further connections hang, as a filter on the way would.
        silent.listen(0)
        hanging = silent.getsockname()
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(hanging)
            async with serving(wait) as port:
                with await dial([hanging, ("127.0.0.1", 1), ("127.0.0.1", port)]) as sock:
                    assert sock.getpeername()[1] == port


async def test_when_all_fail_the_first_says_why() -> None:
    with pytest.raises(ConnectionRefusedError):
        await dial([("127.0.0.1", 1), ("127.0.0.1", 2)])


async def test_a_name_has_its_families_by_turns() -> None:
    addresses = await resolve("localhost", 1194)
    assert ("127.0.0.1", 1194) in addresses
    assert await resolve("127.0.0.9", 7, socket.AF_INET) == [("127.0.0.9", 7)]
    with pytest.raises(socket.gaierror):
        await resolve("no-such-host.invalid", 1)


def test_a_socket_is_bound_as_asked() -> None:
    with udp_socket(("127.0.0.1", 9)) as free, udp_socket(("127.0.0.1", 9), Local("127.0.0.3")) as bound:
        assert bound.getsockname()[0] == "127.0.0.3"
        port = free.getsockname()[1]
    with udp_socket(("127.0.0.1", 9), Local(None, port)) as again:
        assert again.getsockname() == ("127.0.0.1", port)
    assert source_address("127.0.0.1") == "127.0.0.1"
