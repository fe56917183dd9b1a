"""A server's keys and users: what is kept, who may read it, and what a kill leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest
from cryptography import x509

from ginnel.errors import ConfigError
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.server.authority import Authority, Issued
from ginnel.server.client_file import client_file, remotes, split_host
from ginnel.server.pool import Pool
from ginnel.server.store import Store, open_store
from tests.harness.client import wait_until


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "state")


def ginnel(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ginnel", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_first_start_makes_keys_that_only_the_owner_reads(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    one = open_store(directory)
    one.add_user("alice")
    for path in [directory, *directory.iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path
    again = open_store(directory)
    assert again.identity == one.identity
    assert one.identity.key not in repr(one.identity)
    assert [user.name for user in again.users()] == ["alice"]


def test_a_directory_that_others_read_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        open_store(tmp_path)


def test_a_directory_of_another_user_is_refused(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="belongs to another user.*sudo -u"):
        open_store(tmp_path / "state")


def test_certificates_verify_by_openssl(store: Store, tmp_path: Path) -> None:
    issued = store.add_user("alice")
    (tmp_path / "ca").write_text(store.identity.ca + store.revocation_list())
    for text, purpose in ((store.identity.cert, "sslserver"), (issued.certificate, "sslclient")):
        (tmp_path / "cert").write_text(text)
        verify = ["openssl", "verify", "-crl_check", "-purpose", purpose, "-CAfile", tmp_path / "ca", tmp_path / "cert"]
        subprocess.run(verify, check=True, capture_output=True)


def test_a_revoked_user_is_on_the_list_and_another_process_hears(store: Store, tmp_path: Path) -> None:
    issued = store.add_user("alice")
    other = open_store(tmp_path / "state")
    before = other.version()
    store.revoke_user("alice")
    assert other.version() != before
    assert other.is_revoked(issued.serial)
    user = other.user("alice")
    assert user is not None
    assert user.revoked
    crl = x509.load_pem_x509_crl(other.revocation_list().encode())
    assert crl.get_revoked_certificate_by_serial_number(issued.serial) is not None


def test_a_renewed_user_has_another_certificate_and_the_old_one_is_taken_back(store: Store) -> None:
    first = store.add_user("alice", days=1)
    second = store.renew_user("alice", days=800)
    user = store.user("alice")
    assert user is not None
    assert user.serial == second.serial
    assert not user.revoked
    assert store.is_revoked(first.serial)
    assert not store.is_revoked(second.serial)
    assert user.expires - datetime.now(UTC) > timedelta(days=799)


def test_passwords_are_kept_as_hashes(store: Store) -> None:
    store.add_user("alice", password="correct horse")
    store.add_user("bob")
    assert store.check_password("alice", "correct horse")
    for name, password in (("alice", "wrong"), ("bob", ""), ("bob", "nobody's password"), ("nobody", "x")):
        assert not store.check_password(name, password)
    database = b"".join(path.read_bytes() for path in store._path.parent.iterdir())
    assert b"correct horse" not in database


def test_every_certificate_that_a_user_ever_had_is_taken_back(store: Store) -> None:
    serials = [store.add_user("alice").serial]
    for _ in range(3):
        serials.append(store.renew_user("alice").serial)
        assert [store.is_revoked(serial) for serial in serials] == [True] * (len(serials) - 1) + [False]
    bob = store.add_user("bob")
    store.revoke_user("alice")
    assert all(map(store.is_revoked, serials))
    assert not store.is_revoked(bob.serial)
    assert store.is_revoked(bob.serial + 1), "nobody here knows of this one"
    listed = x509.load_pem_x509_crl(store.revocation_list().encode())
    assert {entry.serial_number for entry in listed} == set(serials)


def test_a_store_of_another_version_is_left_alone(store: Store, tmp_path: Path) -> None:
    store.close()
    for version in (0, 99):
        with contextlib.closing(sqlite3.connect(tmp_path / "state" / "server.db")) as database:
            database.execute(f"PRAGMA user_version = {version}")
        with pytest.raises(ConfigError, match="another version"):
            open_store(tmp_path / "state")


def test_an_emptied_store_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    """As a full disk or a broken copy leaves it: with new keys every client would be locked out, without a word."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    (directory / "server.db").touch(mode=0o600)
    # A first start that was killed at its beginning leaves no more than this.
    open_store(directory).close()
    # What a server that runs has written.
    (directory / "crl.pem").touch()
    (directory / "server.db").write_bytes(b"")
    for end in ("-wal", "-shm"):
        directory.joinpath(f"server.db{end}").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"server\.db is empty, and crl\.pem beside it"):
        open_store(directory)


def test_who_only_looks_changes_nothing(store: Store, tmp_path: Path) -> None:
    before = store.version()
    open_store(tmp_path / "state").close()
    assert store.version() == before
    for command in (["list"], ["show", "alice"], ["revoke", "alice"]):
        done = ginnel("user", *command, "--dir", tmp_path / "none")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
        assert "no server has its state" in done.stderr
    assert not (tmp_path / "none").exists()
    # As a process leaves it that was killed in between, or met a full disk.
    (tmp_path / "none").mkdir(mode=0o700)
    (tmp_path / "none" / "server.db").touch()
    assert "no server has its state" in ginnel("user", "list", "--dir", tmp_path / "none").stderr
    assert (tmp_path / "none" / "server.db").stat().st_size == 0


def test_a_user_whom_another_process_adds_meanwhile_is_there_already(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_store(tmp_path / "state")
    under_way = threading.Event()
    refused: list[str] = []

    def add() -> None:
        with pytest.raises(ConfigError) as caught:
            other.add_user("alice", password="x")
        refused.append(str(caught.value))

    def deliver(_: Issued) -> None:
        thread.start()
        assert under_way.wait(30)

    # The other one has looked by then, and waits for its turn.
    monkeypatch.setattr("ginnel.server.store.hash_password", lambda _: under_way.set() or "hash")
    thread = threading.Thread(target=add)
    store.add_user("alice", deliver=deliver)
    thread.join(30)
    assert refused == ["there is a user alice already; write: ginnel user renew alice"]


def test_many_processes_begin_one_store_and_add_a_user_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from ginnel.errors import ConfigError\n"
        "from ginnel.server.store import open_store\n"
        "sys.stdin.read(1)\n"
        "store = open_store(Path(sys.argv[1]))\n"
        "try: store.add_user('alice'); print('added')\n"
        "except ConfigError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "state")]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    said = sorted(process.communicate(timeout=60) for process in started)
    assert [out for out, _ in said] == ["added\n"] + [
        "there is a user alice already; write: ginnel user renew alice\n"
    ] * 3, said


@pytest.mark.parametrize("name", ["", "../x", "a b", "a\nb", "a/b", "-x", "x" * 64, "ä", "a\0"])
def test_names_that_could_do_harm_are_refused(store: Store, name: str) -> None:
    with pytest.raises(ConfigError, match="no name"):
        store.add_user(name)


def test_what_a_server_writes_down_is_there_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ginnel.server.store.MAX_TOKENS", 3)
    store.set_lease("alice", IPv4Address("10.8.0.5"), None)
    session = store.begin_session("alice", "192.0.2.1 port 4")
    store.account(session, 10, 20)
    store.end_session(session, "left")
    for number in range(1, 6):
        store.show_token(bytes(11) + bytes([number]), number)
    store.show_token(bytes(11) + b"\3", 9)
    assert store.lease("alice") == (IPv4Address("10.8.0.5"), None)
    assert store.settle(20)
    other = open_store(tmp_path / "state")
    assert other.lease("alice") == (IPv4Address("10.8.0.5"), None)
    assert other.lease("bob") == (None, None)
    # The ones that were shown longest ago make way.
    assert other.shown_tokens() == {bytes(11) + bytes([number]): made for number, made in ((4, 4), (5, 5), (3, 9))}
    ((remote, began, ended, rx, tx, reason),) = other.sessions("alice")
    assert (remote, rx, tx, reason) == ("192.0.2.1 port 4", 10, 20, "left")
    assert ended is not None
    assert ended >= began


def test_what_is_written_down_waits_for_company_and_not_for_long(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ginnel.server.notes.REST", 3600)
    other = open_store(tmp_path / "state")
    store.begin_session("alice", "first")
    wait_until(lambda: len(other.sessions("alice")) == 1, 20, lambda: other.sessions("alice"))
    # A token that has been replaced must not be good again after a kill.
    store.begin_session("alice", "second")
    for made in range(1, 6):
        store.show_token(bytes(12), made)
        wait_until(lambda made=made: other.shown_tokens() == {bytes(12): made}, 20, other.shown_tokens)  # type: ignore[misc]
    assert [session[0] for session in other.sessions("alice")] == ["second", "first"]
    store.begin_session("alice", "third")
    assert store.settle(20)
    assert [session[0] for session in other.sessions("alice")] == ["third", "second", "first"]


def test_a_locked_database_holds_no_server_up(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ginnel.server.store.BUSY", 0.05)
    monkeypatch.setattr("ginnel.server.notes.RETRY", 0.05)
    other = open_store(tmp_path / "state")
    other.add_user("alice")
    with store._transaction():
        session = other.begin_session("alice", "x")
        other.account(session, 2, 3)
        assert not other.settle(0.5)
        assert other.user("alice") is not None
        with pytest.raises(ConfigError, match="locked"):
            other.add_user("bob")
    # As long as its last attempt has failed it waits for nothing.
    wait_until(lambda: other.settle(1), 20, lambda: other.settle(0))
    ((_, _, ended, rx, tx, _),) = store.sessions("alice")
    assert (ended, rx, tx) == (None, 2, 3)
    events = [getattr(record, "event", None) for record in caplog.records]
    assert events.count("store_failed") == 1


def test_what_cannot_be_written_is_bounded(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ginnel.server.store.BUSY", 0.01)
    monkeypatch.setattr("ginnel.server.notes.RETRY", 0.01)
    monkeypatch.setattr("ginnel.server.notes.MAX_NOTES", 10)
    other = open_store(tmp_path / "state")
    with store._transaction():
        for number in range(100):
            other.set_lease(f"u{number}", IPv4Address("10.8.0.5"), None)
    wait_until(lambda: other.settle(1), 20, lambda: other.settle(0))
    kept = [number for number in range(100) if store.lease(f"u{number}")[0] is not None]
    assert kept[-1] == 99
    assert len(kept) <= 20


def test_sessions_of_a_server_that_was_killed_have_an_end(store: Store, tmp_path: Path) -> None:
    after = open_store(tmp_path / "state")
    lost = store.begin_session("alice", "x")
    store.account(lost, 1, 2)
    assert store.settle(20)
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / "server.db", isolation_level=None)) as database:
        database.execute("UPDATE sessions SET seen = 1700000000")
    after.prepare()
    after.begin_session("alice", "y")
    assert after.settle(20)
    assert after.sessions("alice")[1][2] == 1700000000
    assert [(row[0], row[2] is None, row[5]) for row in after.sessions("alice")] == [
        ("y", True, None),
        ("x", False, "the server was killed"),
    ]


def test_users_outlive_kills(store: Store, tmp_path: Path) -> None:
    """Killed at random while it adds users: all that it said it had added are there, and the store is sound."""
    script = (
        "import sys; from pathlib import Path; from ginnel.server.store import open_store\n"
        "store = open_store(Path(sys.argv[1]))\n"
        "for number in range(100000):\n"
        "    store.add_user(f'{sys.argv[2]}-{number}'); print(number, flush=True)\n"
    )
    told = 0
    for attempt in range(8):
        command = [sys.executable, "-c", script, str(tmp_path / "state"), f"u{attempt}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                told += 1
                if int(line) >= attempt:
                    os.kill(process.pid, signal.SIGKILL)
                    break
            told += len(process.stdout.readlines())
    users = open_store(tmp_path / "state").users()
    assert len(users) >= told
    assert len({user.serial for user in users}) == len(users)


def test_a_client_file_says_where_and_with_what(store: Store, tmp_path: Path) -> None:
    issued = store.add_user("alice")
    places, warning = remotes(["udp 192.0.2.9:1194", "tcp [2001:db8::9]:443"], "vpn.example.com")
    assert warning is None
    path = tmp_path / "alice.ovpn"
    path.write_text(client_file(store.identity, issued, store.make_wrap_key(), places, password=False))
    config = read_ovpn(path)
    assert [(each.host, each.port, each.proto[:3]) for each in config.remotes] == [
        ("vpn.example.com", 1194, "udp"),
        ("vpn.example.com", 443, "tcp"),
    ]
    accepted = subprocess.run(
        ["openvpn", "--config", str(path), "--show-pkcs11-ids", "x"], capture_output=True, text=True, check=False
    )
    assert "Options error" not in accepted.stdout


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("a.example", "a.example", None),
        ("a:1", "a", 1),
        ("[2001:db8::1]:5", "2001:db8::1", 5),
        ("2001:db8::1", "2001:db8::1", None),
    ],
)
def test_a_public_name_may_have_a_port(text: str, host: str, port: int | None) -> None:
    assert split_host(text) == (host, port)


@pytest.mark.parametrize(
    "text", ["", "a b", "a:x", ":5", "a:", "a:0", "a:65536", "[2001:db8::1]443", "[2001:db8::1]:", "[]", "[a"]
)
def test_a_public_name_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        split_host(text)


def test_ginnel_user_from_first_to_last(tmp_path: Path) -> None:
    directory, file = tmp_path / "state", tmp_path / "alice.ovpn"
    added = ginnel("user", "add", "alice", "--dir", directory, "-o", file, "--public", "vpn.example.com")
    assert added.returncode == 0, added.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_ovpn(file).remotes[0].host == "vpn.example.com"
    again = ginnel("user", "add", "alice", "--dir", directory, "--public", "x.example")
    assert again.returncode == 2
    assert "already" in again.stderr
    assert again.stderr.count("\n") == 1
    assert "good until" in ginnel("user", "list", "--dir", directory).stdout
    assert ginnel("user", "revoke", "alice", "--dir", directory).returncode == 0
    assert "revoked" in ginnel("user", "show", "alice", "--dir", directory).stdout
    unknown = ginnel("user", "revoke", "bob", "--dir", directory)
    assert unknown.returncode == 2
    assert "no user bob" in unknown.stderr


def test_fixed_addresses_and_networks_are_one_users(store: Store, tmp_path: Path) -> None:
    directory = tmp_path / "state"
    store.add_user("alice")
    store.add_user("bob")
    words = ("--address", "10.8.0.77", "--address6", "fd67::77", "--network", "192.168.5.0/24")
    assert ginnel("user", "set", "alice", "--dir", directory, *words).returncode == 0
    alice = store.user("alice")
    assert alice is not None
    assert (str(alice.address), str(alice.address6), alice.routes) == ("10.8.0.77", "fd67::77", ("192.168.5.0/24",))
    assert "192.168.5.0/24" in ginnel("user", "show", "alice", "--dir", directory).stdout
    assert set(map(str, store.fixed_addresses())) == {"10.8.0.77", "fd67::77"}
    for option, value in (("--address", "10.8.0.77"), ("--network", "192.168.0.0/16"), ("--network", "192.168.5.9/24")):
        refused = ginnel("user", "set", "bob", "--dir", directory, option, value)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert ginnel("user", "set", "alice", "--dir", directory).returncode == 2
    assert ginnel("user", "set", "alice", "--dir", directory, "--address", "none").returncode == 0
    alice = store.user("alice")
    assert alice is not None
    assert (alice.address, str(alice.address6), alice.routes) == (None, "fd67::77", ("192.168.5.0/24",))
    assert ginnel("user", "set", "bob", "--dir", directory, "--address", "10.8.0.77").returncode == 0


def test_what_is_fixed_fits_the_inner_addresses(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store.add_user("alice")
    # Nobody knows them before the first start, which says it.
    store.set_user("alice", address=IPv4Address("10.9.0.9"), networks=[IPv4Network("10.8.0.2/32")])
    store.set_inner(Pool(IPv4Network("10.8.0.0/24"), IPv6Network("fd67::/64"), "subnet"))
    (record,) = caplog.records
    assert (record.event, record.fields["name"]) == ("unfit", "alice")  # type: ignore[attr-defined]
    assert "10.9.0.9 is none of the inner addresses" in caplog.text
    store.set_user("alice", address=IPv4Address("10.8.0.9"), address6=IPv6Address("fd67::9"), networks=[])
    alice = store.user("alice")
    for address in ("10.9.0.9", "10.8.0.0", "10.8.0.1", "10.8.0.255", "127.0.0.1"):
        with pytest.raises(ConfigError, match=f"{address} is none of the inner addresses that clients have; take one"):
            store.set_user("alice", address=IPv4Address(address))
    for address in ("fd68::9", "fd67::", "fd67::1"):
        with pytest.raises(ConfigError, match=f"{address} is none of the inner addresses"):
            store.set_user("alice", address6=IPv6Address(address))
    for network in ("10.8.0.2/32", "10.8.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "fd67::5/128", "::/0"):
        with pytest.raises(ConfigError, match=f"{network} overlaps the inner addresses"):
            store.set_user("alice", networks=[ip_network(network)])
    assert store.user("alice") == alice
    store.set_user("alice", networks=[IPv4Network("192.168.5.0/24")])


def test_an_authority_that_has_ended_signs_nothing_and_says_so_in_one_line() -> None:
    now = datetime.now(UTC)
    ended, _ = Authority.create("Old", now - timedelta(days=20 * 365))
    with pytest.raises(
        ConfigError, match=r"ended on \d{4}-\d\d-\d\d, and signs nothing any longer; begin a new server"
    ):
        ended.issue("alice", "client", now, 30)


def test_what_ends_soon_is_said_before(store: Store, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    store.add_user("alice", days=29)
    store.add_user("bob", days=31)
    store.add_user("carol", days=5)
    store.revoke_user("carol")
    assert [what for what, _, _ in store.expiring(now)] == ["alice"]
    assert [what for what, _, _ in store.expiring(now + timedelta(days=3640))][:2] == [
        "the authority",
        "the server's certificate",
    ]
    assert "in 28 days" in ginnel("user", "list", "--dir", tmp_path / "state").stdout
