"""ginnel from a program of one's own: the examples of docs/api.md as they stand, and what each promises."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import office
from tests.harness.client import program_folder, start_program, wait_until
from tests.harness.environment import Environment
from tests.harness.network import Namespace, Network
from tests.harness.profile import Profile
from tests.harness.server import StockServer

DOCUMENT = Path(__file__).parents[2] / "docs/api.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(network: Network) -> Iterator[StockServer]:
    with StockServer(network, Profile()) as server:
        yield server


@pytest.fixture
def folder(server: StockServer) -> Iterator[Path]:
    with program_folder(server.profile) as folder:
        yield folder


def output(server: StockServer, env: Environment, folder: Path, program: str) -> list[str]:
    """What a program prints that ends well, without a word on stderr."""
    with start_program(server.network, env, folder, program) as process:
        assert process.wait(20) == 0, str(process)
        assert process.err.all() == [], str(process)
        return process.out.all()


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(server: StockServer, ordinary_env: Environment, folder: Path, number: int) -> None:
    lines = output(server, ordinary_env, folder, EXAMPLES[number])
    if "GET /" in EXAMPLES[number] or "http://wiki.office/" in EXAMPLES[number]:
        assert office.PAGE.decode().strip() in lines
    if "sendto" in EXAMPLES[number]:
        (line,) = lines
        assert line.startswith("b'hello' from ")
    assert lines


@pytest.mark.parametrize("kind", ["four.office", "six.office"])
def test_datagrams_and_ping(server: StockServer, ordinary_env: Environment, folder: Path, kind: str) -> None:
    program = f"""
import asyncio, ginnel

async def main():
    async with ginnel.connect("office.ovpn") as vpn:
        async with await vpn.open_datagram() as datagram:
            for size in (0, 1, 1000, 1400):
                await datagram.sendto(bytes(size), ({kind!r}, 7))
                data, address = await datagram.recvfrom()
                assert data == bytes(size), (size, len(data))
        print(await vpn.ping({kind!r}))

asyncio.run(main())
"""
    (line,) = output(server, ordinary_env, folder, program)
    assert 0 < float(line) < 5


def test_server_inside_is_reached_from_the_office(server: StockServer, ordinary_env: Environment, folder: Path) -> None:
    program = """
import asyncio, ginnel

async def main():
    async with ginnel.connect("office.ovpn") as vpn:
        done = asyncio.Event()

        async def shout(reader, writer):
            text = await reader.read()
            writer.write(text.upper())
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            done.set()

        server = await vpn.start_server(shout, port=8000)
        print(vpn.info.address.partition("/")[0], flush=True)
        await asyncio.wait_for(done.wait(), 10)
        server.close()

asyncio.run(main())
"""
    with start_program(server.network, ordinary_env, folder, program) as process:
        address = process.wait_line("10.8.0.", 20)
        assert ask(server.network.server, address, 8000, b"hello") == b"HELLO"
        assert process.wait(10) == 0, str(process)
        assert process.err.all() == []


def test_errors_are_typed(server: StockServer, ordinary_env: Environment, folder: Path) -> None:
    program = """
import asyncio, socket, ginnel

async def main():
    try:
        ginnel.connect("missing.ovpn")
    except ginnel.ConfigError as error:
        print(type(error).__name__)
    async with ginnel.connect("office.ovpn") as vpn:
        for host, port in (("nobody.office", 80), ("wiki.office", 81)):
            try:
                await vpn.open_connection(host, port)
            except OSError as error:
                print(type(error).__name__)

asyncio.run(main())
"""
    lines = output(server, ordinary_env, folder, program)
    assert lines == ["ConfigError", "gaierror", "ConnectionRefusedError"]


def test_processes_leave_nothing(server: StockServer, ordinary_env: Environment, folder: Path) -> None:
    """The program is killed in the middle: nothing of it stays, and the next one gets in."""
    program = """
import asyncio, ginnel

async def main():
    async with ginnel.connect("office.ovpn") as vpn:
        print(vpn.state, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""
    with start_program(server.network, ordinary_env, folder, program) as process:
        process.wait_line("up", 20)
        process.close()
    client = server.network.client
    wait_until(lambda: client.ordinary_processes() == [], 5, client.ordinary_processes)
    assert output(server, ordinary_env, folder, EXAMPLES[0])


def ask(namespace: Namespace, host: str, port: int, data: bytes) -> bytes:
    with namespace.socket() as sock:
        sock.settimeout(10)
        sock.connect((host, port))
        sock.sendall(data)
        sock.shutdown(1)
        answer = b""
        while piece := sock.recv(1 << 16):
            answer += piece
        return answer
