"""The server with our own client on loopback: addresses, logins, limits, what becomes of a session."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import re
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

import ginnel
from ginnel.errors import AuthError, GinnelError, UnreachableError
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.openvpn.server import ClientLogin
from ginnel.server import Client, Listen, Publish, Server, ServerConfig
from ginnel.server.inner import UserSpace
from ginnel.vpn import Reconnecting, Up, Vpn
from tests.harness.network import Namespace, lasting_port
from tests.harness.people import People
from tests.test_egress import idle, until


@contextlib.asynccontextmanager
async def serving(people: People, *, scratch: Path | None = None, **config: Any) -> AsyncIterator[Server]:
    config.setdefault("listen", Listen.parse("127.0.0.1:0"))
    async with Server(people, ServerConfig(**config), scratch=scratch) as server:
        yield server


def connecting(
    server: Server,
    people: People,
    name: str,
    *lines: str,
    proto: str = "udp",
    login: tuple[str, str] | None = None,
    timeout: float = 20,
    wrap: str | None = None,
) -> Vpn:
    place = next(place for place in server.places if place.proto == proto)
    text = people.client_file(name, f"remote {place.address} {place.port} {proto}", *lines, wrap=wrap)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "client.ovpn"
        file.write_text(text)
        return ginnel.connect(read_ovpn(file), auth_user_pass=login, timeout=timeout)


async def reaches(vpn: Vpn, server: Server) -> None:
    try:
        await vpn.ping("10.8.0.1", timeout=10)
    except TimeoutError:
        raise AssertionError(f"no answer; {vpn.state}, {vpn.statistics()}, {server.statistics()}") from None
    assert vpn.info.address is not None
    await server.stack.ping(vpn.info.address.split("/")[0], timeout=10)


@pytest.mark.parametrize("proto", ["udp", "tcp"])
@pytest.mark.parametrize("topology", ["subnet", "net30"])
async def test_clients_get_addresses_and_reach_the_server(proto: str, topology: Any) -> None:
    people = People()
    people.add("alice")
    people.add("bob")
    async with (
        serving(people, topology=topology) as server,
        connecting(server, people, "alice", proto=proto) as alice,
        connecting(server, people, "bob", proto=proto) as bob,
    ):
        assert alice.info.address != bob.info.address
        await reaches(alice, server)
        await reaches(bob, server)
        await bob.ping("fd67:696e:6e65:6c::1", timeout=10)
        assert sorted(client.name for client in server.clients) == ["alice", "bob"]


async def test_a_second_login_ends_the_first_and_has_its_address() -> None:
    people = People()
    people.add("alice")
    async with (
        serving(people) as server,
        connecting(server, people, "alice") as first,
        connecting(server, people, "alice") as second,
    ):
        assert second.info.address == first.info.address
        await reaches(second, server)
        assert len(server.clients) == 1
        reason = f"the user logged in anew, from {server.clients[0].remote}; give each machine a user of its own"
        # It does not come again, and throws nobody out.
        with pytest.raises(GinnelError, match=f"the server ended the session: {re.escape(reason)}"):
            await asyncio.wait_for(first.wait_closed(), 20)
        assert people.sessions[0][4] == reason
        await reaches(second, server)


@pytest.mark.parametrize(("allowed", "count"), [("1", 0), ("3", 2)])
async def test_tls_is_computed_beside_the_loop_where_there_are_processors(
    monkeypatch: pytest.MonkeyPatch, allowed: str, count: int
) -> None:
    monkeypatch.setenv("GINNEL_THREADS", allowed)
    people = People()
    names = [f"user{number}" for number in range(6)]
    for name in names:
        people.add(name)

    def computing() -> int:
        return sum(thread.name.startswith("handshakes") for thread in threading.enumerate())

    async with serving(people) as server:
        async with contextlib.AsyncExitStack() as stack:
            await asyncio.gather(
                *(stack.enter_async_context(connecting(server, people, name, "reneg-sec 2")) for name in names)
            )
            assert computing() == count
            await until(lambda: server.statistics()["endpoint"]["received"] > 60)
            assert {client.name for client in server.clients} == set(names)
        # Whoever is on the way in when the server ends.
        late = connecting(server, people, "user0")
        coming = asyncio.ensure_future(late.__aenter__())
        created = server.statistics()["endpoint"]["created"]
        await until(lambda: server.statistics()["endpoint"]["created"] > created)
    assert computing() == 0
    coming.cancel()
    await asyncio.gather(coming, return_exceptions=True)
    await late.aclose()


async def test_several_sessions_of_a_user_where_that_is_allowed() -> None:
    people = People()
    people.add("alice", routes=("192.168.5.0/24",))
    async with serving(people, duplicate_cn=True) as server, connecting(server, people, "alice") as first:
        async with connecting(server, people, "alice") as second:
            await reaches(first, server)
            await reaches(second, server)
            assert len(server.clients) == 2
        await until(lambda: len(server.clients) == 1)
        # What is behind the user is reached through who is left.
        before = first.statistics()["device"]["rx_packets"]
        async with await server.stack.open_datagram() as datagrams:
            await datagrams.sendto(b"hello", ("192.168.5.9", 7))
            await until(lambda: first.statistics()["device"]["rx_packets"] > before)


async def test_what_is_open_from_behind_a_user_ends_with_the_session() -> None:
    people = People()
    people.add("alice", routes=("192.168.5.0/24",))
    with Namespace() as namespace, namespace.entered():
        namespace.ip("link set lo up", "address add 192.0.2.7/32 dev lo")
        async with (
            await asyncio.start_server(idle, "192.0.2.7", 0) as outside,
            serving(people, allow=("192.0.2.7/32",)) as server,
            connecting(server, people, "alice") as alice,
        ):
            port = outside.sockets[0].getsockname()[1]
            alice.stack.set_addresses(["192.168.5.9/24"])
            _, writer = await alice.stack.open_connection("192.0.2.7", port, timeout=20)
            assert server.statistics()["egress"]["open"] == 1
            people.revoke("alice")
            server.look()
            await until(lambda: server.statistics()["egress"]["open"] == 0)
            writer.close()


async def test_fixed_addresses_and_leases_are_kept() -> None:
    people = People()
    people.add("alice", address=IPv4Address("10.8.0.77"))
    people.add("bob")
    people.leases["bob"] = IPv4Address("10.8.0.50"), None
    async with (
        serving(people) as server,
        connecting(server, people, "alice") as alice,
        connecting(server, people, "bob") as bob,
    ):
        assert (alice.info.address, bob.info.address) == ("10.8.0.77/24", "10.8.0.50/24")


async def refused(server: Server, people: People, name: str, login: tuple[str, str] | None = None) -> str:
    with pytest.raises(AuthError) as caught:
        async with connecting(server, people, name, *(["auth-user-pass"] if login else []), login=login):
            pass
    return caught.value.reason


async def test_who_is_refused_is_told_why() -> None:
    people = People()
    people.add("alice", "secret")
    people.add("mallory").revoked = True
    stranger = people.users.pop("mallory")
    async with serving(people) as server:
        assert await refused(server, people, "alice", ("alice", "wrong")) == "wrong user name or password"
        assert await refused(server, people, "alice", ("bob", "secret")) == "wrong user name or password"
        people.users["mallory"] = stranger
        assert await refused(server, people, "mallory") == "the certificate is revoked"
        assert server.clients == []


async def test_hooks_decide_and_are_told() -> None:
    people = People()
    people.add("alice")
    people.add("bob")
    gone: asyncio.Queue[str] = asyncio.Queue()

    async def authenticate(login: ClientLogin) -> None:
        await asyncio.sleep(0)
        if login.name == "bob":
            raise AuthError("bob is on holiday", "come back on Monday")

    async def connected(client: Client) -> list[str]:
        return [f"route {client.address}", "dhcp-option DNS 10.8.0.53"]

    async def disconnected(client: Client, reason: str) -> None:
        gone.put_nowait(client.name)

    hooks = {"authenticate": authenticate, "connected": connected, "disconnected": disconnected}
    async with serving(people, **hooks) as server:
        assert await refused(server, people, "bob") == "come back on Monday"
        async with connecting(server, people, "alice") as alice:
            await reaches(alice, server)
        assert await asyncio.wait_for(gone.get(), 20) == "alice"


async def test_the_hook_for_those_who_are_gone_runs_for_all_a_few_at_a_time_and_at_the_servers_end() -> None:
    people = People()
    names = [f"u{number}" for number in range(12)]
    for name in names:
        people.add(name)
    running, most, told = 0, 0, []
    go_on = asyncio.Event()

    async def disconnected(client: Client, reason: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1
        told.append(client.name)

    async with serving(people, disconnected=disconnected) as server, contextlib.AsyncExitStack() as exits:
        for name in names:
            await exits.enter_async_context(connecting(server, people, name))
        for name in names[:10]:
            server.kick(name)
        await until(lambda: running == 8)
        asyncio.get_running_loop().call_later(0.5, go_on.set)
        await server.aclose()
        assert (sorted(told), most) == (sorted(names), 8)
    assert server.statistics()["endpoint"]["disconnected_hooks_lost"] == 0


async def test_a_hook_that_fails_refuses_and_the_server_goes_on() -> None:
    people = People()
    people.add("alice")
    broken = True

    async def authenticate(login: ClientLogin) -> None:
        if broken:
            raise ZeroDivisionError

    async with serving(people, authenticate=authenticate) as server:
        with pytest.raises(UnreachableError, match="try again later"):
            await connecting(server, people, "alice", timeout=2).__aenter__()
        broken = False
        async with connecting(server, people, "alice") as alice:
            await reaches(alice, server)


async def test_a_clients_first_packet_is_not_lost_however_slow_the_server_is() -> None:
    people = People()
    people.add("alice")

    class Slow(UserSpace):
        def lead_to(self, client: Client) -> None:
            # Longer than a client needs that was told too early.
            time.sleep(0.3)
            super().lead_to(client)

    async def reach_at_once(server: Server) -> None:
        async with connecting(server, people, "alice") as alice:
            await alice.ping("10.8.0.1", timeout=5)

    config = ServerConfig(listen=Listen.parse("127.0.0.1:0"))
    async with Server(people, config, Slow(config)) as server:
        await asyncio.to_thread(asyncio.run, reach_at_once(server))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 0", None),
        ("exit 1", ""),
        ('echo "your account is locked" > "$auth_failed_reason_file"; exit 1', "your account is locked"),
        ('(sleep 0.3; printf 1 > "$auth_control_file") & exit 2', None),
        ('(sleep 0.3; printf 0 > "$auth_control_file") & exit 2', ""),
        ('{ read -r user; read -r word; } < "$1"; [ "$common_name/$user" = alice/alice -a "$word" = secret ]', None),
        # In /tmp it would stay when the server is killed.
        ('cd /; case "$1" in "${0%/*}/asked/"*) exit 0;; esac; exit 1', None),
    ],
)
async def test_a_program_decides(
    tmp_path: Path, script: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    people = People()
    people.add("alice", "secret")
    program = tmp_path / "check"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    async with serving(people, scratch=Path("asked"), auth_program=(str(program),)) as server:
        if reason is None:
            async with connecting(server, people, "alice", "auth-user-pass", login=("alice", "secret")) as alice:
                await reaches(alice, server)
        else:
            assert await refused(server, people, "alice", ("alice", "secret")) == reason


async def test_revocation_ends_a_live_session_and_its_data() -> None:
    people = People()
    people.add("alice")
    async with serving(people) as server, connecting(server, people, "alice") as alice:
        await reaches(alice, server)
        people.revoke("alice")
        with pytest.raises(AuthError, match="the user is revoked"):
            await asyncio.wait_for(alice.wait_closed(), 20)
        # The server may hear later that she has heard.
        await until(lambda: people.sessions[0][4] is not None)
        assert people.sessions[0][2] > 0


async def test_a_log_that_fails_keeps_nobody_in_or_out() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError(errno.ENOSPC, "no space left on the device")

    people = People()
    people.add("alice")
    broken = Broken()
    logging.getLogger("ginnel").addHandler(broken)
    try:
        async with serving(people) as server, connecting(server, people, "alice") as alice:
            await reaches(alice, server)
            people.revoke("alice")
            with pytest.raises(AuthError, match="the user is revoked"):
                await asyncio.wait_for(alice.wait_closed(), 20)
            assert people.sessions[0][4] is not None
    finally:
        logging.getLogger("ginnel").removeHandler(broken)


async def test_an_address_that_is_not_the_clients_is_dropped() -> None:
    people = People()
    people.add("alice")
    async with serving(people) as server, connecting(server, people, "alice") as alice:
        await reaches(alice, server)
        alice.stack.set_addresses(["10.8.0.99/24"])
        with pytest.raises(TimeoutError):
            await alice.ping("10.8.0.1", timeout=0.5)
        assert server.statistics()["plane"]["rx_bad_source"] > 0


async def test_a_store_that_fails_costs_nobody_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    people = People()
    people.add("alice")
    asked = asyncio.Event()

    def fail(name: str) -> None:
        asked.set()
        raise OSError(errno.ENOSPC, "no space left on the device")

    async with serving(people) as server, connecting(server, people, "alice") as alice:
        await reaches(alice, server)
        monkeypatch.setattr(people, "user", fail)
        people.add("bob")
        await asyncio.wait_for(asked.wait(), 20)
        await reaches(alice, server)


async def test_what_is_pushed_changes_for_those_who_are_connected() -> None:
    people = People()
    people.add("alice")
    async with serving(people) as server, connecting(server, people, "alice") as alice:
        changes = alice.changes()
        config = replace(server.config, dns=(IPv4Address("10.8.0.1"), IPv4Address("9.9.9.9")), redirect_gateway=None)
        assert server.change(config) == (1, 0)
        change = await asyncio.wait_for(anext(changes), 20)
        assert isinstance(change, Up)
        await reaches(alice, server)


@pytest.mark.parametrize("topology", ["subnet", "net30"])
@pytest.mark.parametrize("proto", ["udp", "tcp"])
async def test_clients_reach_each_other_where_that_is_wanted(proto: str, topology: Any) -> None:
    people = People()
    people.add("alice", address=IPv4Address("10.8.0.6"))
    people.add("bob", address=IPv4Address("10.8.0.10"))
    for wanted in (True, False):
        async with (
            serving(people, client_to_client=wanted, topology=topology) as server,
            connecting(server, people, "alice", proto=proto) as alice,
            connecting(server, people, "bob") as bob,
        ):
            if wanted:
                await alice.ping("10.8.0.10", timeout=20)
                assert server.statistics()["plane"]["rx_relayed"] >= 2
                await bob.aclose()
            with pytest.raises(TimeoutError):
                await alice.ping("10.8.0.10", timeout=1)
            await reaches(alice, server)
            await bob.aclose()


async def test_a_full_server_lets_nobody_else_in_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    people = People()
    people.add("alice")
    people.add("bob")
    async with serving(people, max_clients=1) as server, connecting(server, people, "alice") as alice:
        bob = connecting(server, people, "bob", timeout=60)
        changes = bob.changes()
        entering = asyncio.create_task(bob.__aenter__())
        change = await asyncio.wait_for(anext(changes), 20)
        assert isinstance(change, Reconnecting)
        assert "the server is full" in str(change.error)
        entering.cancel()
        await asyncio.gather(entering, return_exceptions=True)
        await bob.aclose()
        assert "the server is full: max_clients is 1" in caplog.text
        await reaches(alice, server)


async def test_a_port_is_published() -> None:
    people = People()
    people.add("alice")

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"from inside")
        writer.close()

    port = lasting_port()
    async with (
        serving(people, publish=(Publish(port, "alice", 80),)) as server,
        connecting(server, people, "alice") as alice,
    ):
        await alice.stack.start_server(greet, port=80)
        await reaches(alice, server)
        for host in ("127.0.0.1", "::1"):
            reader, writer = await asyncio.open_connection(host, port)
            assert await reader.read() == b"from inside"
            writer.close()
