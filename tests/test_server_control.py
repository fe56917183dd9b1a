"""A running server seen from outside: the control socket, the status file, the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import sys
from pathlib import Path

import pytest

import ginnel
from ginnel.errors import AuthError, ConfigError, UnreachableError
from ginnel.gateways.relay import Address, Listener
from ginnel.server import Listen
from ginnel.server.control import NAME, Control, ask
from ginnel.server.exporter import Exporter
from ginnel.server.metrics import metrics
from ginnel.server.monitor import METRICS, STATUS, Monitor
from ginnel.server.status import describe, status_file, table
from ginnel.server.store import open_store
from ginnel.vpn import Reconnecting, Up
from tests.harness.people import People
from tests.harness.process import Process, parse_event
from tests.test_egress import until
from tests.test_server_service import connecting, reaches, serving


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_status_and_kick_over_the_control_socket(tmp_path: Path) -> None:
    people = People()
    people.add("alice")
    async with serving(people) as server:
        control = await Control.open(server, tmp_path)
        assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
        async with connecting(server, people, "alice") as alice:
            await reaches(alice, server)
            described = await asyncio.to_thread(ask, tmp_path, {"command": "status"})
            (client,) = described["clients"]
            assert (client["name"], client["address"], client["cipher"]) == ("alice", "10.8.0.2", "AES-256-GCM")
            assert "alice" in table(described)
            assert await asyncio.to_thread(ask, tmp_path, {"command": "kick", "name": "bob"}) == {"kicked": 0}
            changes = alice.changes()
            assert await asyncio.to_thread(ask, tmp_path, {"command": "kick", "name": "alice"}) == {"kicked": 1}
            down = await asyncio.wait_for(anext(changes), 20)
            assert isinstance(down, Reconnecting)
            assert "ended by the administrator" in str(down)
            assert isinstance(await asyncio.wait_for(anext(changes), 20), Up)
            await reaches(alice, server)
            assert [session[4] for session in people.sessions] == ["ended by the administrator", None]
        assert "error" in await asyncio.to_thread(ask, tmp_path, {"command": "format"})
        await control.aclose()
    assert left_in(tmp_path) == []


async def test_who_changes_the_users_has_the_server_look_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ginnel.server.service.POLL", 1e9)
    people = People()
    people.add("alice")
    async with serving(people) as server, connecting(server, people, "alice") as alice:
        control = await Control.open(server, tmp_path)
        people.revoke("alice")
        assert await asyncio.to_thread(ask, tmp_path, {"command": "look"}) == {"looked": True}
        with pytest.raises(AuthError, match="the user is revoked"):
            await asyncio.wait_for(alice.wait_closed(), 20)
        await control.aclose()


async def test_status_is_of_the_moment_at_which_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ginnel.server.service.ACCOUNTING", 1e9)
    people = People()
    people.add("alice")
    async with serving(people) as server, connecting(server, people, "alice") as alice:
        await reaches(alice, server)
        (first,) = describe(server)["clients"]
        await reaches(alice, server)
        (second,) = describe(server)["clients"]
        assert 0 < first["rx"] < second["rx"]
        (client,) = server.clients
        began, rx, tx = client.measured
        counted = {"rx_datagrams": 9, "rx_dropped": 0}
        client.count({**counted, "rx_bytes": rx + 3000, "tx_bytes": tx + 6000}, began + 2)
        for seconds in (2, 2.9):
            client.count({**counted, "rx_bytes": rx + 9000, "tx_bytes": tx + 9000}, began + seconds)
            assert (client.rx_rate, client.tx_rate) == (1500, 3000), "looked at so soon again, they stand"
        client.count({**counted, "rx_bytes": rx + 9000, "tx_bytes": tx + 9000}, began + 4)
        assert (client.rx_rate, client.tx_rate) == (3000, 1500)


async def test_one_server_a_directory(tmp_path: Path) -> None:
    async with serving(People()) as server:
        control = await Control.open(server, tmp_path)
        with pytest.raises(ConfigError, match="a server runs"):
            await Control.open(server, tmp_path)
        # As a server leaves it that was killed.
        control._listening.close()
        await (await Control.open(server, tmp_path)).aclose()
    with pytest.raises(UnreachableError, match="ginnel serve --dir"):
        ask(tmp_path, {"command": "status"})


def test_a_second_server_leaves_the_first_ones_directory_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ginnel", "serve", "--json", "--dir", tmp_path / "state", "--listen"]
    with Process([*command, "udp:127.0.0.1:0"]) as first:
        up = parse_event(first.wait_line('"event": "up"', 30))
        with Process([*command, "udp:127.0.0.1:0"]) as second:
            assert second.wait(30) == 2, str(second)
            assert "a server runs in" in second.err.all()[-1]
        with contextlib.closing(open_store(tmp_path / "state")) as store:
            assert store.listeners()[0] == up["listen"]
        assert ask(tmp_path / "state", {"command": "status"})["listen"] == up["listen"]
        assert first.stop() == 0, str(first)


async def test_a_program_serves_a_directory_and_leaves_it_closed(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    config = ginnel.ServerConfig(listen=Listen.parse("127.0.0.1:0"))
    for _ in range(2):
        # As a server leaves it that was killed while it asked a program.
        (directory / "asked/ginnel-x").mkdir(parents=True)
        directory.chmod(0o700)
        (directory / "asked/ginnel-x/login").write_text("alice\nsecret\n")
        async with ginnel.serve(directory, config) as server:
            assert not (directory / "asked/ginnel-x").exists()
            status = await asyncio.to_thread(ask, directory, {"command": "status"})
            assert status["listen"] == [str(place) for place in server.places]
            with pytest.raises(ConfigError, match="a server runs in"):
                await ginnel.serve(directory, config).__aenter__()
        # SQLite's other files are gone when nobody has it open.
        assert sorted(left_in(directory)) == ["server.db", "server.lock"]


async def test_monitors_find_their_files(tmp_path: Path) -> None:
    people = People()
    people.add("alice")
    async with serving(people) as server, connecting(server, people, "alice") as alice:
        await reaches(alice, server)
        monitor = Monitor(server, tmp_path)
        await until((tmp_path / METRICS).exists)
        lines = [line.split("\t") for line in (tmp_path / STATUS).read_text().splitlines()]
        assert [line[0] for line in lines if line[0] not in ("HEADER", "ROUTING_TABLE", "GLOBAL_STATS")] == [
            *("TITLE", "TIME", "CLIENT_LIST", "END")
        ]
        header = next(line for line in lines if line[:2] == ["HEADER", "CLIENT_LIST"])[2:]
        (client,) = [dict(zip(header, line[1:], strict=True)) for line in lines if line[0] == "CLIENT_LIST"]
        assert (client["Common Name"], client["Virtual Address"]) == ("alice", "10.8.0.2")
        assert client["Real Address"].startswith("127.0.0.1:")
        assert "ginnel_clients 1" in (tmp_path / METRICS).read_text()
        await monitor.aclose()
        text = metrics(describe(server))
        lines = text.splitlines()
        for expected in (
            "ginnel_sessions 1",
            "ginnel_sessions_negotiating 0",
            "ginnel_egress_open 0",
            'ginnel_client_sessions{name="alice"} 1',
        ):
            assert expected in lines
        (info,) = [line for line in lines if line.startswith("ginnel_client_info{")]
        for label in ('name="alice"', 'transport="udp"', 'cipher="AES-256-GCM"', 'tls="TLSv1.3"', 'version="ginnel'):
            assert label in info
        assert not any("peer=" in line for line in lines)
        assert len({line.rpartition(" ")[0] for line in lines}) == len(lines), "no series twice"
        described = describe(server)
        described["clients"][0]["username"] = "x\nCLIENT_LIST\tadmin"
        shown = status_file(described, "0")
        assert "\nEND\n" in shown
        assert shown.count("\nCLIENT_LIST\t") == 1
        assert "x\\nCLIENT_LIST\\tadmin" in shown
        whole = table(described)
        assert whole.split("\n")[0].split()[-2:] == ["CIPHER", "CLIENT"]
        for width in (120, 100, 80, 60, 40):
            lines = table(described, width).splitlines()
            assert max(map(len, lines)) <= max(width, len("alice  10.8.0.2  127.0.0.1:12345 udp"))
            assert lines[0].split()[:3] == ["NAME", "ADDRESS", "FROM"]
        assert table(described, 1000) == whole
    assert left_in(tmp_path) == []


async def test_a_users_bytes_are_counted_over_all_sessions() -> None:
    people = People()
    people.add("alice")

    def received() -> int:
        (line,) = [line for line in metrics(describe(server)).splitlines() if line.startswith("ginnel_client_received")]
        return int(line.rpartition(" ")[2])

    async with serving(people, duplicate_cn=True) as server:
        async with connecting(server, people, "alice") as first:
            await reaches(first, server)
            one = received()
            async with connecting(server, people, "alice") as second:
                await reaches(second, server)
                two = received()
        await until(lambda: not server.clients)
        assert 0 < one < two <= received()


async def test_prometheus_fetches_counters(tmp_path: Path) -> None:
    people = People()
    people.add("alice")
    path = tmp_path / "metrics"
    async with serving(people) as server, connecting(server, people, "alice") as alice:
        await reaches(alice, server)
        exporter = Exporter(server, Listener(Address(path=path)))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

        async def fetch(request: bytes) -> bytes:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(request)
            answer = await asyncio.wait_for(reader.read(), 20)
            writer.close()
            return answer

        head, _, body = (await fetch(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"ginnel_clients 1\n" in body
        assert b'ginnel_client_received_bytes_total{name="alice"' in body
        assert (await fetch(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert (await fetch(b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 405")
        for hostile in (b"\0\0\0\n\n", b"GET /" + b"x" * 100_000, b"GET /metrics HTTP/1.1\r\n\r\n"):
            # What it does not even read to its end, it resets.
            with contextlib.suppress(ConnectionError):
                assert b"200" not in await fetch(hostile)
        assert await alice.ping(str(server.pool.address)) < 20
        await exporter.aclose()
    assert left_in(tmp_path) == []
