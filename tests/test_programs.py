"""What a program's own code takes of its connection: proxies for libraries, an awaited one, one without asyncio."""

from __future__ import annotations

import asyncio
import errno
import signal
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import ginnel
from ginnel import blocking
from ginnel.errors import AuthError, ConfigError, LocalProtocolError
from ginnel.server import Server
from ginnel.vpn import State
from tests.harness.people import People
from tests.harness.process import Process
from tests.test_client import NO_TOKEN, config, connecting, port
from tests.test_client import people as people
from tests.test_server_service import serving

EXAMPLES = Path(__file__).parents[1] / "examples"
PAGE = b"<h1>inside</h1>"
LOGIN = ("alice", "p@ss/w:ö rd%")


@asynccontextmanager
async def office(people: People, **options: Any) -> AsyncIterator[Server]:
    """A server, and a page and an echo on its inner address."""

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(PAGE), PAGE))
        writer.close()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with (
        serving(people, **options) as server,
        await server.stack.start_server(page, port=80),
        await server.stack.start_server(echo, port=7),
    ):
        yield server


async def curl(proxy: str, address: str = "http://10.8.0.1/") -> bytes:
    line = ("curl", "--silent", "--show-error", "--max-time", "20", "--proxy", proxy, address)
    process = await asyncio.create_subprocess_exec(*line, stdout=-1, stderr=-1)
    out, error = await process.communicate()
    return out or error


def fetch(proxy: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy}))
    return opener.open("http://10.8.0.1/", timeout=20).read()  # type: ignore[no-any-return]


# Proxies.


@pytest.mark.parametrize("login", [None, LOGIN])
@pytest.mark.parametrize("kind", ["http", "socks5h"])
async def test_a_proxy_leads_in_whoever_has_its_url(people: People, kind: str, login: tuple[str, str] | None) -> None:
    async with office(people) as server, connecting(people, "bob", f"remote 127.0.0.1 {port(server)}") as vpn:
        start = vpn.start_http if kind == "http" else vpn.start_socks
        async with await start(login=login) as proxy, await start("::1") as other:
            assert await curl(proxy.url) == PAGE
            assert (other.host, f"@[::1]:{other.port}" in other.url) == ("::1", True)
            # The other users of this machine know where it is, and no more.
            bare = f"{kind}://{proxy.host}:{proxy.port}"
            assert PAGE not in await curl(bare)
            assert proxy.password not in repr(proxy)
            assert other.password != proxy.password
            with pytest.raises(OSError, match="Address already in use") as taken:
                await start(port=proxy.port)
            assert taken.value.errno == errno.EADDRINUSE
        assert b"connect" in await curl(proxy.url)
        with pytest.raises(ConfigError, match="'wiki.office' in .* is no address to listen on"):
            await start("wiki.office")


@pytest.mark.parametrize("by_itself", [False, True])
async def test_a_proxy_ends_with_its_connection(people: People, by_itself: bool) -> None:
    lines = ("session-timeout 1",) if by_itself else ()
    async with office(people) as server:
        vpn = await connecting(people, "bob", f"remote 127.0.0.1 {port(server)}", *lines)
        url = (await vpn.start_http()).url
        assert await asyncio.to_thread(fetch, url) == PAGE
        await (vpn.wait_closed() if by_itself else vpn.aclose())
        with pytest.raises(urllib.error.URLError, match="Connection refused"):
            await asyncio.to_thread(fetch, url)
        with pytest.raises(ConnectionAbortedError):
            await vpn.start_http()
        await vpn.aclose()


# Without a block, and without asyncio.


async def test_a_connection_can_be_awaited(people: People) -> None:
    async with office(people) as server:
        remote = f"remote 127.0.0.1 {port(server)}"
        vpn = await connecting(people, "bob", remote)
        assert vpn.state is State.UP
        await vpn.ping("10.8.0.1", timeout=20)
        await vpn.aclose()
        with pytest.raises(LocalProtocolError, match="make a new one"):
            await vpn
        async with await connecting(people, "bob", remote) as vpn:
            assert vpn.state is State.UP
        assert vpn.state is State.CLOSED
        with pytest.raises(TypeError, match=r"async with.*blocking\.connect"), connecting(people, "bob", remote):
            pass


async def test_a_program_without_asyncio(people: People) -> None:
    def use(file: Any) -> str:
        with blocking.connect(file, timeout=20) as vpn:
            assert vpn.state is State.UP
            assert vpn.info.address in repr(vpn) or vpn.info.server in repr(vpn)
            assert fetch(vpn.start_http()) == PAGE
            socks = vpn.start_socks()
            with vpn.create_connection(("10.8.0.1", 7), timeout=20) as sock:
                sock.sendall(bytes(range(256)) * 4096)
                sock.shutdown(1)
                assert sock.makefile("rb").read() == bytes(range(256)) * 4096
            with vpn.create_connection(("10.8.0.1", 7), timeout=0.05) as sock, pytest.raises(TimeoutError):
                sock.recv(1)
            with pytest.raises(ConnectionRefusedError, match="10.8.0.1:81"):
                vpn.create_connection(("10.8.0.1", 81))
            with pytest.raises(ssl.SSLError), vpn.create_connection(("10.8.0.1", 7), timeout=20) as sock:
                ssl.create_default_context().wrap_socket(sock, server_hostname="wiki.office")
        vpn.close()
        assert vpn.state is State.CLOSED
        for call in (vpn.start_http, lambda: vpn.create_connection(("10.8.0.1", 7))):
            with pytest.raises(ConnectionAbortedError):
                call()
        return socks

    async with office(people) as server:
        socks = await asyncio.to_thread(use, config(people, "bob", f"remote 127.0.0.1 {port(server)}"))
        assert b"connect" in await curl(socks)
        assert "ginnel" not in [thread.name for thread in threading.enumerate()]


async def test_a_program_without_asyncio_is_asked_and_told_what_failed(people: People) -> None:
    asked: list[tuple[str, str]] = []

    def answer(secret: str) -> Callable[[ginnel.Prompt], str]:
        def ask(prompt: ginnel.Prompt) -> str:
            asked.append((prompt.kind, threading.current_thread().name))
            return secret if prompt.kind == "password" else "alice"

        return ask

    def use(file: Any) -> None:
        with blocking.connect(file, ask=answer("secret"), timeout=20) as vpn:
            assert vpn.state is State.UP
        with pytest.raises(ConfigError, match=r"a user and a password.*auth_user_pass=.*, or ask"):
            blocking.connect(file, timeout=20)
        with pytest.raises(AuthError):
            blocking.connect(file, ask=answer("guess"), timeout=20)
        assert "ginnel" not in [thread.name for thread in threading.enumerate()]

    async with office(people, **NO_TOKEN) as server:
        await asyncio.to_thread(use, config(people, "alice", "auth-user-pass", f"remote 127.0.0.1 {port(server)}"))
    assert [kind for kind, _ in asked] == ["username", "password"] * 2
    assert all(thread != "ginnel" for _, thread in asked)


async def test_a_program_without_asyncio_that_is_interrupted_or_forgets_ends(people: People, tmp_path: Path) -> None:
    file = tmp_path / "office.ovpn"
    program = f"import ginnel; vpn = ginnel.blocking.connect({str(file)!r}); print(vpn.state, flush=True)"
    async with office(people) as server:
        file.write_text(people.client_file("bob", f"remote 127.0.0.1 {port(server)}"))
        with Process([sys.executable, "-W", "error", "-c", program]) as process:
            assert await asyncio.to_thread(process.wait, 20) == 0, str(process)
            assert (process.out.all(), process.err.all()) == (["up"], [])
    file.write_text(people.client_file("bob", f"remote 127.0.0.9 {port(server)}"))
    program = "import logging; logging.basicConfig(level=20); " + program
    with Process([sys.executable, "-c", program]) as process:
        assert await asyncio.to_thread(process.err.wait, lambda line: "connecting to" in line, 20), str(process)
        await asyncio.to_thread(process.stop, signal.SIGINT)
        assert process.err.all()[-1] == "KeyboardInterrupt"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("ping.py foo 10.0.0.1 tun0", "foo is no IPv4 address"),
        ("ping.py 10.0.0.1 fd00::2 tun0", "fd00::2 is no IPv4 address"),
        ("echo_client.py 10.0.0.1 x 10.0.0.2 tun0", "x is no port"),
        ("echo_client.py 10.0.0.1 7 10.0.0.x tun0", "10.0.0.x is no IPv4 address"),
    ],
)
def test_what_an_example_does_not_take_is_one_line(words: str, line: str) -> None:
    script, *arguments = words.split()
    command = [sys.executable, EXAMPLES / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{line}\n")
