"""A server that is killed, has no descriptors left, or a disk that takes no more: users, leases and revocations are
intact, and who is connected stays so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import socket
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ginnel
from ginnel.errors import AuthError
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.server.client_file import client_file
from ginnel.server.store import DATABASE, Store, open_store
from ginnel.vpn import Up, Vpn
from tests.harness.network import lasting_port
from tests.harness.process import Process, parse_event

# Seconds: of a client whose server is gone without a word, until it connects again.
QUICK = (1, 3)
KILLS = int(os.environ.get("GINNEL_KILLS", "4"))


@contextlib.contextmanager
def serving(
    directory: Path, listen: str = "udp:127.0.0.1:0", *, noting: float | None = None, **config: Any
) -> Iterator[Process]:
    """``noting``: seconds for which a client waits at most until its address is on disk, if not as in the field."""
    text = f"{{'listen': Listen.parse({listen!r}), **{config!r}}}"
    command = [sys.executable, "-m", "tests.harness.served_store", directory, text]
    if noting is not None:
        command.append(str(noting))
    with Process(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}) as process:
        process.wait_line('"event": "ready"', 60)
        yield process


def places(process: Process) -> dict[str, int]:
    """Ports by protocol."""
    listen = parse_event(process.wait_line('"event": "ready"', 1))["listen"]
    return {place.split()[0]: int(place.rpartition(":")[2]) for place in listen}


def joining(store: Store, name: str, port: int, folder: Path, proto: str = "udp") -> Vpn:
    """A client with a file of its own; the user is added."""
    text = client_file(
        store.identity, store.add_user(name), store.make_wrap_key(), [(proto, "127.0.0.1", port)], password=False
    )
    file = folder / f"{name}.ovpn"
    file.write_text(f"{text}connect-retry 1 1\n")
    return ginnel.connect(read_ovpn(file), timeout=60)


async def wait_for_line(process: Process, text: str) -> str:
    return await asyncio.to_thread(process.wait_line, text, 60)


async def test_killed_at_random_it_forgets_nothing_and_clients_come_back(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    directory = tmp_path / "state"
    port = lasting_port()
    store = open_store(directory)
    added, revoked = {"alice", "bob"}, set[str]()
    async with contextlib.AsyncExitStack() as exits:
        process = exits.enter_context(serving(directory, f"udp:127.0.0.1:{port}", keepalive=QUICK))
        vpns = [await exits.enter_async_context(joining(store, name, port, tmp_path)) for name in ("alice", "bob")]
        addresses = [vpn.info.address for vpn in vpns]
        for number in range(KILLS):
            changes = [vpn.changes() for vpn in vpns]
            work = asyncio.create_task(asyncio.to_thread(_change_users, directory, number, added, revoked))
            await asyncio.gather(*(_talk(vpn, choose.uniform(0, 0.5)) for vpn in vpns))
            process.close()
            await work
            process = exits.enter_context(serving(directory, f"udp:127.0.0.1:{port}", keepalive=QUICK))
            for change in changes:
                await asyncio.wait_for(_up_again(change), 90)
            assert [vpn.info.address for vpn in vpns] == addresses
            users = {user.name: user.revoked for user in store.users()}
            assert users == {name: name in revoked for name in added}
            for vpn in vpns:
                await _reach(vpn)
    store.close()


async def test_an_address_outlives_a_server_that_is_killed_right_after_it_was_given(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state")
    with contextlib.ExitStack() as stack:
        # However busy the disk is.
        process = stack.enter_context(serving(tmp_path / "state", noting=60.0))
        alice = joining(store, "alice", places(process)["udp"], tmp_path)
        bob = joining(store, "bob", places(process)["udp"], tmp_path)
        async with alice:
            async with bob:
                process.close()
            addresses = alice.info.address, bob.info.address
        assert addresses == ("10.8.0.2/24", "10.8.0.3/24")
        assert [str(store.lease(name)[0]) for name in ("alice", "bob")] == ["10.8.0.2", "10.8.0.3"]
    store.close()


async def test_without_descriptors_who_is_connected_stays_so(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state")
    with serving(tmp_path / "state", "127.0.0.1:0") as process:
        ports = places(process)
        async with joining(store, "alice", ports["udp"], tmp_path) as alice:
            used = len(os.listdir(f"/proc/{process.pid}/fd"))
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 8, hard))
            with contextlib.ExitStack() as crowd:
                for _ in range(40):
                    crowd.enter_context(socket.create_connection(("127.0.0.1", ports["tcp"]), timeout=10))
                await wait_for_line(process, '"event": "accept_failed"')
                await alice.ping("10.8.0.1", timeout=20)
            async with joining(store, "bob", ports["tcp"], tmp_path, "tcp") as bob:
                await bob.ping("10.8.0.1", timeout=20)
            await alice.ping("10.8.0.1", timeout=20)
    store.close()


async def test_a_disk_that_takes_no_more_costs_nobody_the_connection(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state")
    with serving(tmp_path / "state") as process:
        port = places(process)["udp"]
        bob_later = joining(store, "bob", port, tmp_path)
        async with joining(store, "alice", port, tmp_path) as alice:
            _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, hard))
            # Something to account for.
            await alice.ping("10.8.0.1", timeout=20)
            await wait_for_line(process, '"event": "store_failed"')
            await wait_for_line(process, '"event": "status_failed"')
            await alice.ping("10.8.0.1", timeout=20)
            async with bob_later as bob:
                await bob.ping("10.8.0.1", timeout=20)
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
                await wait_for_line(process, '"event": "store_written"')
                await wait_for_line(process, '"event": "status_written"')
            await alice.ping("10.8.0.1", timeout=20)
    remotes = [row[0] for name in ("alice", "bob") for row in store.sessions(name)]
    assert len(remotes) == 2
    store.close()


async def test_a_database_that_is_locked_costs_nobody_the_connection(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state")
    with serving(tmp_path / "state") as process:
        port = places(process)["udp"]
        bob_later = joining(store, "bob", port, tmp_path)
        with contextlib.closing(sqlite3.connect(tmp_path / "state" / DATABASE)) as other:
            async with joining(store, "alice", port, tmp_path) as alice:
                other.execute("BEGIN EXCLUSIVE")
                await wait_for_line(process, '"event": "store_failed"')
                async with bob_later as bob:
                    await bob.ping("10.8.0.1", timeout=20)
                    await alice.ping("10.8.0.1", timeout=20)
                    other.rollback()
                    await wait_for_line(process, '"event": "store_written"')
                await asyncio.to_thread(store.revoke_user, "alice")
                with pytest.raises(AuthError, match="revoked"):
                    await asyncio.wait_for(alice.wait_closed(), 20)
    store.close()


async def test_a_revocation_made_while_the_server_was_down_counts(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state")
    port = lasting_port()
    with serving(tmp_path / "state", f"udp:127.0.0.1:{port}", keepalive=QUICK) as process:
        async with joining(store, "alice", port, tmp_path) as alice:
            process.close()
            store.revoke_user("alice")
            with serving(tmp_path / "state", f"udp:127.0.0.1:{port}") as process:
                with pytest.raises(AuthError, match="revoked"):
                    await asyncio.wait_for(alice.wait_closed(), 90)
                await wait_for_line(process, '"event": "refused"')
    store.close()


def _change_users(directory: Path, number: int, added: set[str], revoked: set[str]) -> None:
    """As `ginnel user` does, beside the server."""
    with contextlib.closing(open_store(directory)) as store:
        store.add_user(f"u{number}")
        added.add(f"u{number}")
        if number % 2:
            store.revoke_user(f"u{number}")
            revoked.add(f"u{number}")


async def _talk(vpn: Vpn, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                await vpn.ping("10.8.0.1", timeout=5)


async def _reach(vpn: Vpn) -> None:
    """One echo request may be lost with a tunnel that is made anew."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(TimeoutError):
                await vpn.ping("10.8.0.1", timeout=2)
                return


async def _up_again(changes: Any) -> None:
    async for change in changes:
        if isinstance(change, Up):
            return
