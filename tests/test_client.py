"""The client over several attempts, with servers and proxies of ours on loopback: whom it tries next, whom it asks,
and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import resource
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

import ginnel
from ginnel.errors import AuthError, ConfigError, DeviceError, UnreachableError
from ginnel.openvpn import client
from ginnel.openvpn.config import ClientConfig
from ginnel.openvpn.events import Prompt
from ginnel.openvpn.keys import Proto
from ginnel.openvpn.ovpn_file import parse_ovpn
from ginnel.openvpn.server import ClientLogin
from ginnel.server import Listen, Server
from ginnel.transports import dial, watch
from ginnel.vpn import Change, Down, Reconnecting, State, Up, Vpn
from tests.harness import proxy
from tests.harness.people import People
from tests.test_server_service import serving
from tests.test_ways import Names
from tests.test_ways import names as names

T = TypeVar("T", bound=Change)
QUICK = ("connect-retry 0 1", "server-poll-timeout 1")
NO_TOKEN: dict[str, Any] = {"token_lifetime": None}
# Nothing listens here.
NOBODY = "127.0.0.9"


@pytest.fixture
def people() -> People:
    people = People()
    people.add("alice", "secret")
    people.add("bob")
    return people


def port(server: Server, proto: str = "udp") -> int:
    return next(place.port for place in server.places if place.proto == proto)


def config(people: People, name: str, *lines: str) -> ClientConfig:
    return parse_ovpn(people.client_file(name, *lines))


def connecting(people: People, name: str, *lines: str, **options: Any) -> Vpn:
    return ginnel.connect(config(people, name, *lines), **{"timeout": 20, **options})


class Events:
    """What a connection tells, from its start on."""

    def __init__(self, vpn: Vpn) -> None:
        self._changes = vpn.changes()

    async def next(self, kind: type[T]) -> T:
        async with asyncio.timeout(20):
            while not isinstance(change := await anext(self._changes), kind):
                assert not isinstance(change, Down), change
        return change

    async def rest(self) -> list[Change]:
        """To the end of the connection."""
        return [change async for change in self._changes]


class User:
    """Answers from a list; where it is empty, waits for somebody who never comes."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.waits = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, prompt: Prompt) -> str | None:
        self.asked.append(prompt.kind)
        if self.answers:
            return self.answers.pop(0)
        self.waits.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()
        return None


# Logins.


async def test_what_a_program_gave_outlives_auth_nocache(people: People) -> None:
    lines = ("auth-user-pass", "auth-nocache")
    async with serving(people, **NO_TOKEN) as server:
        vpn = connecting(
            people, "alice", f"remote 127.0.0.1 {port(server)}", *lines, auth_user_pass=("alice", "secret")
        )
        events = Events(vpn)
        async with vpn:
            await events.next(Up)
            vpn.reconnect()
            await events.next(Up)


async def test_what_was_typed_is_asked_for_again_and_the_state_says_that_it_is_down(people: People) -> None:
    user = User("alice", "secret")
    async with serving(people, **NO_TOKEN) as server:
        lines = (f"remote 127.0.0.1 {port(server)}", "auth-user-pass", "auth-nocache")
        vpn = connecting(people, "alice", *lines, ask=user)
        events = Events(vpn)
        async with vpn:
            await events.next(Up)
            vpn.reconnect()
            await asyncio.wait_for(user.waits.wait(), 20)
            assert user.asked == ["username", "password", "password"]
            assert vpn.state is State.RECONNECTING
            assert (await events.next(Reconnecting)).delay == 0


async def test_a_login_that_a_program_gave_counts_more_than_the_files(people: People, tmp_path: Path) -> None:
    login = tmp_path / "login"
    login.write_text("alice\nwrong\n")
    async with serving(people, **NO_TOKEN) as server:
        lines = (f"remote 127.0.0.1 {port(server)}", f"auth-user-pass {login}")
        vpn = connecting(people, "alice", *lines, auth_user_pass=("alice", "secret"))
        events = Events(vpn)
        async with vpn:
            await events.next(Up)
            vpn.reconnect()
            await events.next(Up)


@pytest.mark.parametrize("nocache", [True, False])
async def test_a_file_with_the_login_is_read_for_each_connection(people: People, tmp_path: Path, nocache: bool) -> None:
    login = tmp_path / "login"
    login.write_text("alice\nsecret\n")
    async with serving(people, **NO_TOKEN) as server:
        lines = (f"remote 127.0.0.1 {port(server)}", f"auth-user-pass {login}", *["auth-nocache"] * nocache)
        vpn = connecting(people, "alice", *lines)
        events = Events(vpn)
        async with vpn:
            await events.next(Up)
            people.users["alice"].password = "other"
            login.write_text("alice\nother\n")
            vpn.reconnect()
            await events.next(Up)
            # One that is gone changes nothing.
            login.unlink()
            vpn.reconnect()
            await events.next(Up)


async def test_a_renegotiation_asks_for_what_was_forgotten(people: People) -> None:
    user = User("alice", "secret", "secret", "wrong")
    config = {**NO_TOKEN, "reneg_sec": 1.0}
    async with serving(people, **config) as server:
        lines = (f"remote 127.0.0.1 {port(server)}", "auth-user-pass", "auth-nocache")
        vpn = connecting(people, "alice", *lines, ask=user)
        async with vpn:
            with pytest.raises(AuthError):
                await asyncio.wait_for(vpn.wait_closed(), 20)
    assert user.asked == ["username", "password", "password", "password"]


async def test_time_in_which_a_login_waits_for_approval_is_not_the_servers(people: People) -> None:
    approved = asyncio.Event()

    async def decide(login: ClientLogin) -> None:
        await approved.wait()

    async with serving(people, authenticate=decide) as server:
        vpn = connecting(people, "bob", f"remote 127.0.0.1 {port(server)}", timeout=3)
        asyncio.get_running_loop().call_later(4, approved.set)
        async with vpn:
            assert vpn.state is State.UP


async def test_a_question_of_a_session_that_has_ended_is_withdrawn(people: People, tmp_path: Path) -> None:
    script = tmp_path / "ask"
    script.write_text(
        f'#!/bin/sh\nprintf "60\\ncrtext\\nCR_TEXT:R,E:Code\\n" > "$auth_pending_file"\n'
        f'( while [ ! -e {tmp_path}/over ]; do sleep 0.05; done; echo 0 > "$auth_control_file" ) >/dev/null 2>&1 &\n'
        "exit 2\n"
    )
    script.chmod(0o755)
    user = User()
    async with serving(people, auth_program=(str(script),)) as server:
        vpn = connecting(
            people,
            "alice",
            f"remote 127.0.0.1 {port(server)}",
            "auth-user-pass",
            auth_user_pass=("alice", "secret"),
            ask=user,
        )
        entering = asyncio.create_task(vpn.__aenter__())
        await asyncio.wait_for(user.waits.wait(), 20)
        user.waits.clear()
        vpn.reconnect()
        await asyncio.wait_for(user.left.wait(), 20)
        # The next session has a question of its own.
        await asyncio.wait_for(user.waits.wait(), 20)
        (tmp_path / "over").touch()
        with pytest.raises(AuthError):
            await asyncio.wait_for(entering, 20)
    assert user.asked == ["challenge", "challenge"]


async def test_the_latest_question_counts(people: People) -> None:
    """An answer does not say which one it is for."""
    user = User()

    async def decide(login: ClientLogin) -> None:
        for question in ("first", "second"):
            server._policies[login.peer].tell(f"CR_TEXT:R,E:{question}")
            await user.waits.wait()
            user.waits.clear()
            if question == "first":
                assert not user.left.is_set()

    async with (
        serving(people, authenticate=decide) as server,
        connecting(people, "bob", f"remote 127.0.0.1 {port(server)}", ask=user),
    ):
        assert user.asked == ["challenge", "challenge"]
        assert user.left.is_set()


async def test_a_keys_password_is_asked_for_three_times(people: People) -> None:
    """By a program that answers at once, too."""
    asked = []

    async def ask(prompt: Prompt) -> str:
        asked.append(prompt.text)
        return "wrong"

    taken = config(people, "bob", "remote 127.0.0.1")
    locked = load_pem_private_key((taken.key or "").encode(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"right")
    )
    with pytest.raises(ConfigError, match="password is wrong"):
        await ginnel.connect(replace(taken, key=locked.decode()), ask=ask, timeout=20)
    assert len(asked) == 3


# Where to connect.


@contextlib.asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[int]:
    """A proxy that says this to whoever says something, and ends."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(1000)
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def connection(*lines: str) -> str:
    return "\n".join(["<connection>", *lines, "</connection>"])


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("http-proxy", b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"),
        ("http-proxy", b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"),
        ("http-proxy", b"HTTP/1.1 50"),
        ("http-proxy", b""),
        ("http-proxy", b"SSH-2.0-x\r\n\r\n"),
        ("socks-proxy", b"\5"),
        ("socks-proxy", b""),
        ("socks-proxy", b"HTTP/1.1 400 Bad\r\n"),
    ],
)
async def test_a_proxy_that_leads_nowhere_makes_way_for_the_next_remote(
    people: People, option: str, answer: bytes
) -> None:
    async with serving(people) as server, listening(answer) as number:
        through = connection(f"remote 127.0.0.1 {port(server)} tcp", f"{option} 127.0.0.1 {number}")
        direct = connection(f"remote 127.0.0.1 {port(server)}")
        vpn = connecting(people, "bob", *[through] * 4, direct, "connect-retry 0 1")
        events = Events(vpn)
        async with vpn:
            assert vpn.info.transport == "udp"
            assert f"127.0.0.1:{number}" in str((await events.next(Reconnecting)).error)


async def test_each_attempt_is_said_where_that_is_wanted(people: People, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(people) as server:
        remotes = [connection(f"remote {NOBODY} 9 tcp"), connection(f"remote 127.0.0.1 {port(server)}")]
        vpn = connecting(people, "bob", *remotes, "connect-retry 0 1")
        events = Events(vpn)
        async with vpn:
            error = (await events.next(Reconnecting)).error
            assert str(error) == f"cannot reach {NOBODY} port 9 (TCP): Connection refused"
    said = [record.getMessage() for record in caplog.records if record.name == "ginnel.openvpn.aio"]
    assert said[:2] == [f"trying {NOBODY} port 9 (TCP)", f"trying 127.0.0.1 port {port(server)} (UDP)"]
    (pushed,) = [line for line in said if line.startswith("the server pushed: ")]
    assert "ifconfig 10.8.0.2" in pushed
    assert "auth-token" not in pushed


async def test_however_little_the_file_says_a_server_that_refuses_is_left_a_second(people: People) -> None:
    vpn = connecting(people, "bob", f"remote {NOBODY} 9 tcp", "connect-retry 0 1")
    events = Events(vpn)
    entering = asyncio.create_task(vpn.__aenter__())
    delays = [(await events.next(Reconnecting)).delay for _ in range(4)]
    assert delays[:2] == [0, 0]
    # With jitter.
    assert min(delays[2:]) >= 0.75
    entering.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await entering


async def test_only_a_login_that_the_proxy_refuses_is_final(people: People) -> None:
    answer = b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n"
    async with serving(people) as server, listening(answer) as number:
        through = connection(f"remote 127.0.0.1 {port(server)} tcp", f"http-proxy 127.0.0.1 {number}")
        with pytest.raises(AuthError, match="asks for a login, and there is none"):
            async with connecting(people, "bob", through, connection(f"remote 127.0.0.1 {port(server)}")):
                pass


async def test_the_proxys_time_is_not_the_users(people: People) -> None:
    async def ask(prompt: Prompt) -> str:
        # Slower than the server may be.
        await asyncio.sleep(0.7)
        return dict(zip(("proxy-username", "proxy-password"), proxy.LOGIN, strict=True))[prompt.kind]

    async def lead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await proxy.serve_http(reader, writer, "basic")

    listener = await asyncio.start_server(lead, "127.0.0.1", 0)
    number = listener.sockets[0].getsockname()[1]
    async with serving(people) as server, listener:
        lines = (f"remote 127.0.0.1 {port(server, 'tcp')} tcp", f"http-proxy 127.0.0.1 {number} auto")
        async with connecting(people, "bob", *lines, "server-poll-timeout 1", ask=ask) as vpn:
            assert vpn.info.transport == "tcp"
            assert vpn.info.server == f"127.0.0.1:{port(server, 'tcp')}"
            assert vpn.info.proxy == f"127.0.0.1:{number}"


@pytest.mark.parametrize("proto", ["udp", "tcp"])
async def test_without_a_server_poll_timeout_the_server_has_its_time(people: People, proto: str) -> None:
    async with serving(people) as server:
        remote = f"remote 127.0.0.1 {port(server, proto)} {proto}"
        async with connecting(people, "bob", remote, "server-poll-timeout 0") as vpn:
            assert vpn.state is State.UP


async def test_each_address_of_a_name_is_tried_before_its_remote_counts_as_tried(people: People, names: Names) -> None:
    names["vpn.example"] = [NOBODY, "127.0.0.1"]
    async with serving(people) as server:
        lines = (f"remote vpn.example {port(server)}", "connect-retry-max 1", *QUICK)
        async with connecting(people, "bob", *lines) as vpn:
            assert vpn.info.server == f"127.0.0.1:{port(server)}"
    vpn = connecting(people, "bob", "remote vpn.example 9", "connect-retry-max 2", *QUICK)
    events = Events(vpn)
    with pytest.raises(UnreachableError):
        await vpn.__aenter__()
    failures = [change for change in await events.rest() if isinstance(change, Reconnecting)]
    assert [NOBODY in str(failure.error) for failure in failures] == [True, False, True]


async def test_resolv_retry_counts_from_the_first_failure_on(people: People, names: Names) -> None:
    names["vpn.example"] = ["127.0.0.1"]
    async with contextlib.AsyncExitStack() as stack:
        async with serving(people) as server:
            number = port(server)
            lines = (f"remote vpn.example {number}", "resolv-retry 1", "connect-retry 0 1", "server-poll-timeout 1")
            vpn = connecting(people, "bob", *lines)
            events = Events(vpn)
            await stack.enter_async_context(vpn)
            await events.next(Up)
            # The connection is up for longer than a name may take.
            await asyncio.sleep(1.1)
            names.clear()
        while "resolve" not in str((await events.next(Reconnecting)).error):
            pass
        names["vpn.example"] = ["127.0.0.1"]
        await stack.enter_async_context(serving(people, listen=Listen.parse(f"127.0.0.1:{number}")))
        await events.next(Up)


async def test_a_name_that_stays_unknown_ends_it(people: People, names: Names) -> None:
    lines = ("remote vpn.example 9", "resolv-retry 0")
    with pytest.raises(UnreachableError, match=r"cannot resolve vpn\.example"):
        await connecting(people, "bob", *lines).__aenter__()


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_port_that_is_closed_is_said_to_be(people: People, refuses: bool) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as there:
        there.bind((NOBODY, 0))
        number = there.getsockname()[1]
        if refuses:
            there.close()
        with pytest.raises(UnreachableError, match=f"no answer from {NOBODY} port {number}") as caught:
            await connecting(people, "bob", f"remote {NOBODY} {number}", timeout=1).__aenter__()
    assert ("nothing listens on the port" in str(caught.value)) == refuses


async def test_the_waiting_grows_with_jitter_when_each_remote_has_failed_several_times(people: People) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    random.seed(seed)
    patient = connection(f"remote {NOBODY} 9 tcp", "connect-retry 2 3")
    vpn = connecting(people, "bob", "connect-retry 1 16", connection(f"remote {NOBODY} 9 tcp"), patient)
    events = Events(vpn)
    entering = asyncio.create_task(vpn.__aenter__())
    delays: list[float] = []
    for _ in range(20):
        delays.append((await events.next(Reconnecting)).delay)
        # Without waiting.
        vpn.reconnect()
    entering.cancel()
    await asyncio.gather(entering, return_exceptions=True)
    first, second = delays[::2], delays[1::2]
    for delay, expected in zip(first, [1, 1, 1, 1, 1, 2, 4, 8, 16, 16], strict=True):
        assert 0.75 * expected <= delay <= 1.25 * expected, first
    for delay, expected in zip(second, [2, 2, 2, 2, 3, 3, 3, 3, 3, 3], strict=True):
        assert 0.75 * expected <= delay <= 1.25 * expected, second
    assert len(set(first[:4])) == 4


# Staying up.


async def test_a_machine_that_slept_connects_anew(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = 0.0
    clock = time.clock_gettime

    def read(which: int) -> float:
        return clock(which) + (slept if which == time.CLOCK_BOOTTIME else 0)

    monkeypatch.setattr(time, "clock_gettime", read)
    monkeypatch.setattr(watch, "TICK", 0.01)
    async with serving(people) as server:
        vpn = connecting(people, "bob", f"remote 127.0.0.1 {port(server)}")
        events = Events(vpn)
        async with vpn:
            await events.next(Up)
            slept = 3600
            assert "this machine slept for 3600 s" in str((await events.next(Reconnecting)).error)
            await events.next(Up)


class Lossy:
    """A way to a server on loopback that loses the next ``loses`` datagrams to it. ``port`` is where it begins."""

    def __init__(self, to: int) -> None:
        self.loses = 0
        self._there, self._back = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
        self._there.connect(("127.0.0.1", to))
        self._back.bind(("127.0.0.1", 0))
        self.port = self._back.getsockname()[1]
        self._client: tuple[str, int] | None = None

    def __enter__(self) -> Lossy:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._back, self._outwards)
        loop.add_reader(self._there, self._inwards)
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._back, self._there):
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def _outwards(self) -> None:
        data, self._client = self._back.recvfrom(1 << 16)
        if self.loses:
            self.loses -= 1
        else:
            self._there.send(data)

    def _inwards(self) -> None:
        data = self._there.recv(1 << 16)
        if self._client is not None:
            self._back.sendto(data, self._client)


@pytest.mark.parametrize("told", ["on the control channel", "by data"])
async def test_the_server_hears_that_we_go_also_where_a_packet_is_lost(
    people: People, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    if told == "by data":
        monkeypatch.setattr(client, "OUR_PROTO", client.OUR_PROTO & ~Proto.CC_EXIT_NOTIFY)
    left = asyncio.Event()

    async def gone(client: object, reason: str) -> None:
        left.set()

    async with serving(people, disconnected=gone) as server:
        with Lossy(port(server)) as way:
            lines = (
                f"remote 127.0.0.1 {way.port}",
                "explicit-exit-notify 2",
                "pull-filter ignore explicit-exit-notify",
            )
            async with connecting(people, "bob", *lines) as vpn:
                await vpn.ping("10.8.0.1", timeout=10)
                way.loses = 1
            await asyncio.wait_for(left.wait(), 5)
    assert str(people.sessions[-1][4]).endswith("ended the session")


@pytest.mark.parametrize("moves", [False, True])
async def test_streams_live_on_where_the_address_stays_and_fail_where_it_changed(people: People, moves: bool) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    people.users["bob"].address = IPv4Address("10.8.0.66")
    async with serving(people) as server, await server.stack.start_server(echo, port=7):
        vpn = connecting(people, "bob", f"remote 127.0.0.1 {port(server)}")
        events = Events(vpn)
        async with vpn:
            await events.next(Up)
            reader, writer = await vpn.open_connection("10.8.0.1", 7)
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            if moves:
                people.users["bob"].address = IPv4Address("10.8.0.77")
            vpn.reconnect()
            await events.next(Reconnecting)
            assert vpn.state is State.RECONNECTING
            up = await events.next(Up)
            assert up.info.address == ("10.8.0.77/24" if moves else "10.8.0.66/24")
            if moves:
                with pytest.raises(OSError, match=os.strerror(errno.ENETRESET)):
                    await asyncio.wait_for(reader.read(1), 20)
            else:
                writer.write(b"after")
                assert await asyncio.wait_for(reader.readexactly(5), 20) == b"after"
            writer.transport.abort()


async def test_the_mtu_is_the_servers_and_goes_back_with_the_next(people: People) -> None:
    async with (
        serving(people) as last,
        serving(people) as plain,
        contextlib.AsyncExitStack() as stack,
    ):
        narrow = await stack.enter_async_context(serving(people, tun_mtu=1300))
        remotes = [[f"remote 127.0.0.1 {port(server)}"] for server in (narrow, plain, last)]
        remotes[-1].append("tun-mtu 1400")
        # Ours always say one: the others are those that don't.
        filters = ('pull-filter accept "tun-mtu 1300"', "pull-filter ignore tun-mtu")
        vpn = connecting(people, "bob", *(connection(*lines) for lines in remotes), *QUICK, *filters)
        events = Events(vpn)
        async with vpn:
            for server, mtu in ((narrow, 1300), (plain, 1500), (last, 1400)):
                await events.next(Up)
                assert vpn.stack.mtu == mtu
                await server.aclose()


async def test_the_files_own_addresses_count_where_the_server_gives_none(people: People) -> None:
    lines = ('pull-filter ignore "ifconfig "', "topology subnet", "ifconfig 10.8.0.9 255.255.255.0", "block-ipv6")
    async with (
        serving(people) as server,
        connecting(people, "bob", f"remote 127.0.0.1 {port(server)}", *lines) as vpn,
    ):
        assert (vpn.info.address, vpn.info.address6) == ("10.8.0.9/24", None)
        assert repr(vpn) == f"<Vpn 127.0.0.1:{port(server)} up>"
    with pytest.raises(ConnectionAbortedError, match="this connection is closed"):
        await vpn.open_connection("wiki.office", 80)
    with pytest.raises(ConfigError, match="a user and a password"):
        connecting(people, "bob", f"remote {NOBODY} 9", auth_user_pass="bob")


async def test_what_is_pushed_to_no_effect_is_said_once(people: People, caplog: pytest.LogCaptureFixture) -> None:
    push = ("sndbuf 400000", "dhcp-option WINS 10.8.0.1", "dns server 1 address 10.8.0.1", "dns server 1 transport DoH")
    async with serving(people, push=push) as server:
        vpn = connecting(people, "bob", f"remote 127.0.0.1 {port(server)}")
        events = Events(vpn)
        async with vpn:
            await events.next(Up)
            vpn.reconnect()
            await events.next(Up)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for word in ("sndbuf 400000", "dhcp-option WINS"):
        assert sum(word in line for line in said) == 1, said
    assert sum("asked with DoH" in line for line in said) == 1, said


@contextlib.contextmanager
def descriptors(more: int) -> Iterator[Callable[[], None]]:
    """No more than so many, all of which the function takes that it gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []

    def take_all() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))

    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + more, hard))
    try:
        yield take_all
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_what_this_machine_has_none_of_is_not_the_servers_fault(people: People, names: Names) -> None:
    class Taking(list[str]):
        def __iter__(self) -> Iterator[str]:
            take_all()
            return super().__iter__()

    vpn = connecting(people, "bob", "remote vpn.example 9", *QUICK)
    with descriptors(40) as take_all:
        names["vpn.example"] = Taking(["127.0.0.1"])
        with pytest.raises(DeviceError) as caught:
            await vpn.__aenter__()
    assert str(caught.value) == "cannot reach vpn.example port 9 (UDP): Too many open files"
    before = threading.stack_size(1 << 47)
    try:
        with pytest.raises(OSError, match="no room for another thread"):
            await dial.resolve("vpn.example", 9)
    finally:
        threading.stack_size(before)


async def test_a_reconnection_waits_for_descriptors(people: People) -> None:
    """Where there is none, nothing can be opened: that is a reason to wait, not to end."""
    async with serving(people) as server:
        vpn = connecting(people, "bob", f"remote 127.0.0.1 {port(server)}", "connect-retry 1 1")
        events = Events(vpn)
        async with vpn:
            await events.next(Up)
            with descriptors(20) as take_all:
                vpn.reconnect()
                # The last session's socket is free again by then.
                assert "asked to connect anew" in str((await events.next(Reconnecting)).error)
                take_all()
                assert os.strerror(errno.EMFILE) in str((await events.next(Reconnecting)).error)
                assert vpn.state is State.RECONNECTING
            await events.next(Up)
            await vpn.ping("10.8.0.1", timeout=10)
