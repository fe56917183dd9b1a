"""``ginnel user`` as it is typed: files that are whole or not there, and users who have them or don't exist."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509

import ginnel
from ginnel.cli.serve import warn
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.server import Listen
from ginnel.server.store import Store, open_store
from tests.test_egress import until

PUBLIC = ("--public", "vpn.example.net")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(tmp_path / "state")) as store:
        store.set_listeners(["udp 127.0.0.1:1194"], None)
        yield store


def user(store_path: Path, *words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command, rest = words[0], words[1:]
    line = [sys.executable, "-m", "ginnel", "user", command, "--dir", store_path / "state", *rest]
    return subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload,no-any-return]


def refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 2, done
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--public", "two words"), "--public"),
        (("--public", "host:99999"), "--public"),
        (("--public", "host:0"), "--public"),
        (("--public", "host:"), "--public"),
        (("--public", "a..b"), "--public"),
        (("--public", 'x"; evil'), "--public"),
        (("--public", "::"), "--public"),
        (("-o", "nowhere/alice.ovpn"), "No such file"),
        (("-o", "."), "directory"),
    ],
)
def test_who_gets_no_file_is_no_user(store: Store, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    refused(user(tmp_path, "add", "alice", *options, cwd=tmp_path), words)
    assert store.users() == []
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_full_disk_leaves_the_user_and_the_file_of_before(store: Store, tmp_path: Path) -> None:
    for command in ("add", "renew"):
        if command == "renew":
            store.add_user("alice")
        before = store.users()
        with open("/dev/full", "w") as full:
            line = [sys.executable, "-m", "ginnel", "user", command, "--dir", tmp_path / "state", "alice"]
            done = subprocess.run(list(map(str, line)), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 6, done
        assert done.stderr == "ginnel: nothing was changed; stdout: No space left on device\n"
        assert store.users() == before


@pytest.mark.parametrize("words", [["user", "list"], ["user", "list", "--json"], ["user", "show", "alice"], ["--help"]])
def test_what_can_not_be_printed_is_one_line_and_no_trace(store: Store, tmp_path: Path, words: list[str]) -> None:
    store.add_user("alice")
    directory = ["--dir", str(tmp_path / "state")] if words[0] == "user" else []
    with open("/dev/full", "w") as full:
        line = [sys.executable, "-m", "ginnel", *words, *directory]
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 6, done
    assert done.stderr == "ginnel: this system: No space left on device\n"
    # Who has read enough is told nothing, as by any other program.
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(("key", "status"), [(b"\x03", 130), (b"\x04", 2), (b"\xff\n", 2)])
def test_who_is_asked_for_a_password_and_leaves_has_added_nobody(
    store: Store, tmp_path: Path, key: bytes, status: int
) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        line = [sys.executable, "-m", "ginnel", "user", "add", "alice", "--password", "--dir", str(tmp_path / "state")]
        os.execv(line[0], line)
    shown = b""
    while not shown.endswith(b": "):
        shown += os.read(terminal, 4096)
    os.write(terminal, key)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
    os.close(terminal)
    assert store.users() == []


def test_who_listens_to_nothing_gets_no_user(store: Store, tmp_path: Path) -> None:
    line = f"exec {sys.executable} -m ginnel user add alice --dir {tmp_path / 'state'} >&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "ginnel: stdout: Bad file descriptor; nothing was changed\n")
    assert store.users() == []


def test_a_loopback_address_in_a_file_is_said(store: Store, tmp_path: Path) -> None:
    done = user(tmp_path, "add", "alice")
    assert "remote 127.0.0.1 1194 udp" in done.stdout
    assert "no other machine reaches" in done.stderr
    assert user(tmp_path, "renew", "alice", *PUBLIC).stderr == ""


def test_a_renewal_that_fails_takes_nothing_back(store: Store, tmp_path: Path) -> None:
    issued = store.add_user("alice")
    refused(user(tmp_path, "renew", "alice", "-o", tmp_path / "no" / "file"), "No such file")
    assert not store.is_revoked(issued.serial)
    kept = store.user("alice")
    assert kept is not None
    assert kept.serial == issued.serial


def test_a_file_is_the_users_alone_and_replaces_the_one_before(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "alice.ovpn"
    assert user(tmp_path, "add", "alice", "-o", file, *PUBLIC).returncode == 0
    first = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert user(tmp_path, "renew", "alice", "-o", file).returncode == 0
    assert file.read_text() != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alice.ovpn", "state"]


def test_no_other_file_is_lost(store: Store, tmp_path: Path) -> None:
    file, empty, notes = tmp_path / "alice.ovpn", tmp_path / "mktemp", tmp_path / "notes"
    notes.write_text("of mine")
    empty.touch()
    assert user(tmp_path, "add", "alice", "-o", file, *PUBLIC).returncode == 0
    assert user(tmp_path, "add", "bob", "-o", empty, *PUBLIC).returncode == 0
    before = file.read_text(), notes.read_text()
    for words in (("add", "carol", "-o"), ("renew", "bob", "-o"), ("crl", "-o")):
        for there in (file, notes):
            refused(user(tmp_path, *words, there), f"{there} is there already, and would be lost; name another file")
    refused(user(tmp_path, "renew", "alice", "-o", notes), "is there already")
    assert (file.read_text(), notes.read_text()) == before
    assert [user.name for user in store.users()] == ["alice", "bob"]
    assert user(tmp_path, "renew", "bob", "-o", empty, *PUBLIC).returncode == 0


def test_the_list_of_the_revoked_is_handed_out(store: Store, tmp_path: Path) -> None:
    kept, revoked = store.add_user("alice"), store.add_user("bob")
    store.revoke_user("bob")
    file = tmp_path / "crl.pem"
    file.write_text(store.revocation_list())
    assert user(tmp_path, "crl", "-o", file).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o644, "servers that have given up their rights read it"
    shown = x509.load_pem_x509_crl(user(tmp_path, "crl").stdout.encode())
    for crl in (x509.load_pem_x509_crl(file.read_bytes()), shown):
        assert [entry.serial_number for entry in crl] == [revoked.serial]
        assert crl.get_revoked_certificate_by_serial_number(kept.serial) is None
    refused(user(tmp_path, "crl", "-o", tmp_path / "no" / "crl.pem"), "No such file")


def test_what_is_no_file_is_not_replaced_by_one(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(user(tmp_path, "add", "alice", "-o", tmp_path / "pipe"), "is no file")
    refused(user(tmp_path, "crl", "-o", tmp_path / "pipe"), "is no file")
    assert (tmp_path / "pipe").is_fifo()
    assert store.users() == []


def test_revoked_is_for_ever(store: Store, tmp_path: Path) -> None:
    issued = store.add_user("alice")
    assert user(tmp_path, "revoke", "alice").returncode == 0
    refused(user(tmp_path, "renew", "alice"), "was revoked")
    refused(user(tmp_path, "add", "alice"), "was revoked")
    assert store.is_revoked(issued.serial)


def test_a_revocation_keeps_its_date(store: Store, tmp_path: Path) -> None:
    serials = [store.add_user(name).serial for name in ("alice", "bob")]
    store.revoke_user("alice")
    with sqlite3.connect(tmp_path / "state" / "server.db") as database:
        database.execute("UPDATE certificates SET revoked = revoked - 86400")
    store.revoke_user("alice")
    store.revoke_user("bob")
    crl = x509.load_pem_x509_crl(store.revocation_list().encode())
    entries = [crl.get_revoked_certificate_by_serial_number(serial) for serial in serials]
    first, second = (entry.revocation_date_utc for entry in entries if entry is not None)
    assert second - first >= timedelta(days=1)


async def test_what_is_shown_of_a_user_is_true_here_and_now(store: Store, tmp_path: Path) -> None:
    store.add_user("alice")
    first = store.begin_session("alice", "192.0.2.1:4")
    store.end_session(first, "left")
    store.begin_session("alice", "192.0.2.1:5")
    assert store.settle(20)
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / "server.db", isolation_level=None)) as database:
        database.execute("UPDATE sessions SET began = 1700000000, seen = 1700000000, rx = 2500000")
        database.execute("UPDATE sessions SET ended = 1700003600 WHERE ended IS NOT NULL")

    def shown() -> list[str]:
        return user(tmp_path, "show", "alice", env={**os.environ, "TZ": "XYZ-5"}).stdout.splitlines()[2:]

    began = "2023-11-15 03:13"
    ended = f"  {began} from 192.0.2.1:4, 2.5 MB in, 0 B out, until 2023-11-15 04:13: left"
    lost = f"  {began} from 192.0.2.1:5, 2.5 MB in, 0 B out, until the server was killed"
    assert shown() == [lost, ended]
    store.set_lease("alice", IPv4Address("10.8.0.5"), None)
    assert store.settle(20)
    fields = json.loads(user(tmp_path, "show", "alice", "--json").stdout)
    assert (fields["lease"], fields["lease6"], fields["address"]) == ("10.8.0.5", None, None)
    async with ginnel.serve(tmp_path / "state", ginnel.ServerConfig(listen=Listen.parse("127.0.0.1:0"))):
        store.prepare()
        store.begin_session("alice", "192.0.2.1:6")
        assert await asyncio.to_thread(store.settle, 20)
        now, *rest = await asyncio.to_thread(shown)
        assert now.endswith("from 192.0.2.1:6, 0 B in, 0 B out, connected")
        assert [line.split(", ")[-1] for line in rest] == [
            f"until {began}: the server was killed",
            "until 2023-11-15 04:13: left",
        ]


async def test_who_has_expired_is_named_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ginnel.cli.serve.DAY", 0.001)
    for name in ("alice", "bob"):
        store.add_user(name, days=7)
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / "server.db", isolation_level=None)) as database:
        database.execute("UPDATE users SET expires = 1700000000 WHERE name = 'alice'")

    def told() -> list[str]:
        return [f"{record.fields['what']} {record.event}" for record in caplog.records]  # type: ignore[attr-defined]

    warnings = asyncio.create_task(warn(store))
    await until(lambda: told().count("bob expires") >= 3)
    warnings.cancel()
    assert told().count("alice expired") == 1


def test_before_the_first_start_the_port_is_a_guess_that_is_said(tmp_path: Path) -> None:
    done = user(tmp_path, "add", "alice", "--public", "vpn.example.net")
    assert done.returncode == 0
    assert "no server has run here yet" in done.stderr
    assert "remote vpn.example.net 1194 udp" in done.stdout
    done = user(tmp_path, "add", "bob", "--public", "[2001:db8::1]:443")
    assert done.stderr == ""
    assert "remote 2001:db8::1 443 udp" in done.stdout


def test_a_start_without_a_name_forgets_the_one_before_and_says_so(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = ["udp 192.0.2.9:1194"]
    for name, public in (("alice", "vpn.example.net"), ("bob", None), ("carol", None)):
        store.set_listeners(places, public)
        assert f"remote {public or '192.0.2.9'} 1194 udp" in user(tmp_path, "add", name).stdout
    store.set_listeners(["udp 192.0.2.8:1194"], None)
    told = [getattr(record, "fields", {}).get("was") for record in caplog.records]
    assert told == ["vpn.example.net"]
    before = store.version()
    store.set_listeners(["udp 192.0.2.8:1194"], None)
    assert store.version() == before, "a start that changes nothing needs no room on a disk"


def test_a_listener_on_all_of_ipv6_is_named_by_an_ipv6_address(store: Store, tmp_path: Path) -> None:
    store.set_listeners(["udp [::]:1194"], None)
    lines = (
        "link add d0 type veth peer name d1",
        "link set d1 up",
        "link set d0 up",
        "address add 192.0.2.9/24 dev d0",
        "address add 2001:db8::9/64 dev d0 nodad",
        "route add default dev d0",
        "route add ::/0 dev d0",
    )
    script = "".join(f"ip {line}; " for line in lines)
    line = f"{script}exec {sys.executable} -m ginnel user add alice --dir {tmp_path / 'state'}"
    done = subprocess.run(["unshare", "--net", "sh", "-ec", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "remote 2001:db8::9 1194 udp" in done.stdout


def test_a_password_is_changed_and_taken_away(store: Store, tmp_path: Path) -> None:
    store.add_user("alice", password="first")
    began = time.time()
    word = "second ‘word’"
    parent, child = pty.openpty()
    line = [sys.executable, "-m", "ginnel", "user", "password", "--dir", str(tmp_path / "state"), "alice"]
    with subprocess.Popen(line, stdin=child, stdout=child, stderr=child, start_new_session=True) as process:
        os.close(child)
        shown = b""
        for _ in range(2):
            while not shown.endswith(b": "):
                shown += os.read(parent, 4096)
            os.write(parent, f"{word}\n".encode())
            shown = b""
        assert process.wait(30) == 0
    os.close(parent)
    assert store.check_password("alice", word)
    assert not store.check_password("alice", "first")
    alice = store.user("alice")
    assert alice is not None
    assert began <= alice.password_since <= time.time(), "tokens of before count no more"
    assert user(tmp_path, "password", "alice", "--remove").returncode == 0
    (row,) = json.loads(user(tmp_path, "list", "--json").stdout)
    assert row["password"] is False
    refused(user(tmp_path, "password", "bob"), "no user bob")


def test_a_password_comes_from_stdin_where_there_is_no_terminal(store: Store, tmp_path: Path) -> None:
    done = user(tmp_path, "add", "alice", "--password", *PUBLIC, input="with space \n")
    assert (done.returncode, done.stderr) == (0, "")
    assert store.check_password("alice", "with space ")
    for said in ("", "\n"):
        refused(user(tmp_path, "add", "bob", "--password", *PUBLIC, input=said), "no password on stdin")
    # It is not asked for in vain.
    refused(user(tmp_path, "add", "alice", "--password", *PUBLIC, input="other\n"), "already")
    # Under a locale without letters a byte that is none comes through as half a character.
    for said, words, locale in (
        ("p\xffw\n", "other than printable characters", "C"),
        ("x" * 4096, "more than 4095 bytes", "C.UTF-8"),
    ):
        done = user(tmp_path, "password", "alice", input=said, encoding="latin-1", env={**os.environ, "LC_ALL": locale})
        refused(done, words)
    assert [user.name for user in store.users()] == ["alice"]


def test_its_file_is_read_by_our_own_client(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "alice.ovpn"
    user(tmp_path, "add", "alice", "-o", file, *PUBLIC)
    (remote,) = read_ovpn(file).remotes
    assert (remote.host, remote.port, remote.proto) == ("vpn.example.net", 1194, "udp")
