"""A server's keys, users, leases and accounts: one SQLite database in its directory.

Every method is a transaction: a process that is killed leaves what was there before or after it.
Several processes may use a store at once: the server, and ``ginnel user`` beside it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from types import EllipsisType
from typing import Any, NoReturn

from cryptography import x509

from ginnel.errors import ConfigError
from ginnel.openvpn.tls_crypt_v2 import Metadata, ServerKey
from ginnel.server import authority
from ginnel.server.authority import Authority, Issued
from ginnel.server.easyrsa import Imported
from ginnel.server.journal import tell
from ginnel.server.notes import Notes
from ginnel.server.passwords import hash_password, verify_password
from ginnel.server.pool import Pool

Deliver = Callable[[Issued], None]
"""Takes a new certificate to where it belongs; what it raises leaves everything as it was."""

WARN_DAYS = 30
USER_DAYS = 825
"""How long a user's certificate is good, unless asked otherwise."""


@dataclass(frozen=True)
class Identity:
    """The server's own keys and certificates, in PEM. See `ginnel.server.records.Identity`."""

    name: str
    ca: str
    cert: str
    key: str
    tls_crypt_v2: str
    token_key: bytes

    def __repr__(self) -> str:
        return f"Identity(name={self.name!r})"


@dataclass(frozen=True)
class User:
    """A user, with the serial number and the end of the certificate that counts."""

    name: str
    serial: int
    revoked: bool
    expires: datetime
    address: IPv4Address | None
    address6: IPv6Address | None
    routes: tuple[str, ...]
    has_password: bool
    password_since: float


def open_store(directory: Path, imported: Imported | None = None, *, make: bool = True) -> Store:
    """The store in ``directory``, which is made where there is none: with keys of its own, or the imported ones.

    Raises ConfigError for a directory that is another user's or that others may read, or that cannot be used; without
    ``make`` for one where there is no store.
    """
    path = directory / DATABASE
    try:
        if not make and not path.exists():
            _raise_nothing_in(directory)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid != os.geteuid():
            what = f"{directory} belongs to another user, number {status.st_uid}, and holds a server's keys"
            raise ConfigError(what, instead=f"run this as that user: sudo -u '#{status.st_uid}' …")
        if status.st_mode & 0o077:
            raise ConfigError(
                f"{directory} can be read by others, and holds keys", instead=f"run: chmod 700 {directory}"
            )
        # Nobody else reads it, from its first byte on; SQLite gives its other files the same mode.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}; the server keeps its keys and users there") from None
    return Store(path, imported, make=make)


def _raise_nothing_in(directory: Path) -> NoReturn:
    raise ConfigError(f"no server has its state in {directory}", instead="name its directory with --dir")


class Store:
    """See `ginnel.server.records.Store`. What the database refuses is a ConfigError, except in what a
    running server tells it (`set_lease`, `account`, `begin_session`, `end_session`): that is written later."""

    def __init__(self, path: Path, imported: Imported | None = None, *, make: bool = True) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._notes = Notes(path, BUSY)
        # Of what is noted and not yet written: a client may come back before that.
        self._leases: dict[str, tuple[IPv4Address | None, IPv6Address | None]] = {}
        with self._refusals():
            self._database = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
            try:
                self._open(imported, make=make)
            except BaseException:
                self._database.close()
                raise

    def _open(self, imported: Imported | None, *, make: bool) -> None:
        if not make and not self._is_made():
            _raise_nothing_in(self._path.parent)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        made = not self._is_made() and self._make(imported)
        if imported is not None and not made:
            instead = "import into another directory, with --dir"
            raise ConfigError(f"{self._path.parent} has keys and users already", instead=instead)
        self._authority = Authority(self._texts()["ca"], self._texts()["ca_key"])
        self._sessions = itertools.count(self._last_session() + 1)
        self._identity = self._read_identity()

    def prepare(self) -> None:
        """For a server that is about to run, and has the directory for itself: the sessions of one that was killed
        end when they were last counted, and a server's certificate that ends soon is made anew."""
        with self._refusals():
            last = self._last_session()
        self._sessions = itertools.count(last + 1)
        statement = "UPDATE sessions SET ended = seen, reason = ? WHERE ended IS NULL AND id <= ?"
        self._notes.add(statement, ("the server was killed", last))
        try:
            with self._refusals():
                self._renew_server()
        except ConfigError as error:
            # With a disk that is full it runs all the same.
            tell("store_failed", level=logging.ERROR, reason=str(error))

    @property
    def identity(self) -> Identity:
        """Asked for while a server runs, too, and then whatever the disk is like."""
        return self._identity

    def _read_identity(self) -> Identity:
        texts = self._texts()
        pem = {name: texts[name] for name in ("name", "ca", "cert", "key", "tls_crypt_v2")}
        return Identity(**pem, token_key=bytes.fromhex(texts["token_key"]))

    def user(self, name: str) -> User | None:
        rows = self._query(f"{USERS} WHERE name = ?", name)
        return _user(rows[0]) if rows else None

    def users(self) -> list[User]:
        return [_user(row) for row in self._query(f"{USERS} ORDER BY name")]

    def check_free(self, name: str) -> None:
        """Raises ConfigError for what is no name, and for the name of anybody who is or was a user."""
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name for a user", instead="write up to 63 letters, digits and _.@-")
        user = self.user(name)
        if user is not None and user.revoked:
            raise ConfigError(f"{name} was revoked, and stays so", instead="take another name")
        if user is not None:
            raise ConfigError(f"there is a user {name} already", instead=f"write: ginnel user renew {name}")

    def check_valid(self, name: str) -> None:
        """Raises ConfigError for who is no user, or no longer."""
        if self._known(name).revoked:
            raise ConfigError(f"{name} was revoked, and stays so", instead="add a user with another name")

    def add_user(
        self, name: str, *, days: int = USER_DAYS, password: str | None = None, deliver: Deliver | None = None
    ) -> Issued:
        """A certificate for a new user, who is one only if ``deliver`` takes it. Raises ConfigError as `check_free`
        does, and what ``deliver`` raises."""
        self.check_free(name)
        hashed = None if password is None else hash_password(password)
        with self._refusals(), self._transaction():
            # Another process may have been quicker.
            self.check_free(name)
            issued = self._issue(name, days)
            self._database.execute(
                "INSERT INTO users (name, serial, expires, password) VALUES (?, ?, ?, ?)",
                (name, f"{issued.serial:x}", issued.expires.timestamp(), hashed),
            )
            if deliver is not None:
                deliver(issued)
        return issued

    def renew_user(self, name: str, *, days: int = USER_DAYS, deliver: Deliver | None = None) -> Issued:
        """A new certificate; all those before it are taken back if ``deliver`` takes the new one.

        Raises ConfigError for a user who was revoked, and what ``deliver`` raises.
        """
        with self._refusals(), self._transaction():
            self.check_valid(name)
            self._revoke_certificates(name)
            issued = self._issue(name, days)
            self._database.execute(
                "UPDATE users SET serial = ?, expires = ? WHERE name = ?",
                (f"{issued.serial:x}", issued.expires.timestamp(), name),
            )
            if deliver is not None:
                deliver(issued)
        return issued

    def revoke_user(self, name: str) -> bool:
        """Takes every certificate back that the user ever had; nobody else is given the name. Whether that is new."""
        with self._refusals(), self._transaction():
            if self._known(name).revoked:
                return False
            self._revoke_certificates(name)
            self._database.execute("UPDATE users SET revoked = 1 WHERE name = ?", (name,))
        return True

    def set_password(self, name: str, password: str | None) -> None:
        """What the user needs beside the file from the next login on, also who has a token; None for nothing."""
        hashed = None if password is None else hash_password(password)
        with self._refusals(), self._transaction():
            self.check_valid(name)
            statement = "UPDATE users SET password = ?, password_since = ? WHERE name = ?"
            self._database.execute(statement, (hashed, time.time(), name))

    def set_user(
        self,
        name: str,
        *,
        address: IPv4Address | EllipsisType | None = ...,
        address6: IPv6Address | EllipsisType | None = ...,
        networks: Sequence[IPv4Network | IPv6Network] | EllipsisType = ...,
    ) -> None:
        """Fixed addresses, None for any, and the networks behind the user; ``...`` leaves what is there.
        Raises ConfigError for another user's, and for what doesn't fit the inner addresses of the server's last
        start."""
        changes: dict[str, str | None] = {}
        for column, own in (("address", address), ("address6", address6)):
            if own is not ...:
                changes[column] = None if own is None else str(own)
        if networks is not ...:
            changes["routes"] = " ".join(map(str, networks))
        with self._refusals(), self._transaction():
            self.check_valid(name)
            behind = () if networks is ... else networks
            if (pool := self._inner()) is not None:
                pool.check([own for own in (address, address6) if not isinstance(own, EllipsisType | None)], behind)
            self._check_taken(name, (address, address6), behind)
            for column, text in changes.items():
                self._database.execute(f"UPDATE users SET {column} = ? WHERE name = ?", (text, name))

    def expiring(self, now: datetime, days: int = WARN_DAYS) -> list[tuple[str, datetime, str]]:
        """What ends within so many days, or has ended: whose, when, and what to do."""
        ends = [("the authority", self._authority.expires, "a new server in another directory, and new files for all")]
        cert = x509.load_pem_x509_certificate(self.identity.cert.encode())
        instead = "start the server anew" if self._authority.can_sign else "one from the authority's own easy-rsa"
        ends.append(("the server's certificate", cert.not_valid_after_utc, instead))
        ends += [(user.name, user.expires, self.renewal(user.name)) for user in self.users() if not user.revoked]
        return [item for item in ends if item[1] < now + timedelta(days=days)]

    def renewal(self, name: str) -> str:
        """Where a user's next certificate comes from, as advice."""
        can_sign = self._authority.can_sign
        return f"ginnel user renew {name}" if can_sign else "a new one from the authority's own easy-rsa"

    def make_wrap_key(self, name: str | None = None) -> str:
        """A tls-crypt-v2 key for a client, in PEM. With the user's name in it a server opens no session for who was
        revoked."""
        key = ServerKey.parse(self.identity.tls_crypt_v2)
        metadata = Metadata.made_at(time.time()) if name is None else Metadata.of_user(name)
        return key.make_client_key(metadata, os.urandom).emit()

    @property
    def can_sign(self) -> bool:
        """Whether the authority's key is here."""
        return self._authority.can_sign

    def check_password(self, name: str, password: str) -> bool:
        rows = self._query("SELECT password FROM users WHERE name = ?", name)
        return verify_password(rows[0][0] if rows else None, password)

    def is_revoked(self, serial: int) -> bool:
        """Where certificates are made here, one that nobody here knows of counts as little as one that was taken
        back. An authority whose key is elsewhere makes others."""
        rows = self._query("SELECT revoked FROM certificates WHERE serial = ?", f"{serial:x}")
        return rows[0][0] is not None if rows else self._authority.can_sign

    def revocation_list(self) -> str:
        """The certificates that were taken back, in PEM, signed now: a CRL for others, as this server looks them up.
        Raises ConfigError where the authority's key is elsewhere."""
        statement = "SELECT serial, revoked FROM certificates WHERE revoked IS NOT NULL ORDER BY revoked, serial"
        revoked = [(int(serial, 16), datetime.fromtimestamp(at, UTC)) for serial, at in self._query(statement)]
        return self._authority.revocation_list(revoked, authority.now())

    def version(self) -> int:
        """Counted by whoever changes users or keys; what a server notes of its clients does not count."""
        rows = self._query("SELECT value FROM texts WHERE key = 'changes'")
        return int(rows[0][0]) if rows else 0

    def fixed_addresses(self) -> set[IPv4Address | IPv6Address]:
        select = "SELECT {0} FROM users WHERE {0} IS NOT NULL AND NOT revoked"
        statement = f"{select.format('address')} UNION ALL {select.format('address6')}"
        return {_address(text) for (text,) in self._query(statement)}

    def lease(self, name: str) -> tuple[IPv4Address | None, IPv6Address | None]:
        if name in self._leases:
            return self._leases[name]
        rows = self._query("SELECT address, address6 FROM leases WHERE name = ?", name)
        address, address6 = rows[0] if rows else (None, None)
        return _address(address), _address(address6)

    def set_lease(self, name: str, address: IPv4Address | None, address6: IPv6Address | None) -> None:
        self._leases[name] = address, address6
        values = (name, *(None if each is None else str(each) for each in (address, address6)))
        self._notes.add("INSERT OR REPLACE INTO leases (name, address, address6) VALUES (?, ?, ?)", values)

    def shown_tokens(self) -> dict[bytes, int]:
        return dict(self._query("SELECT session, made FROM tokens ORDER BY rowid"))

    def show_token(self, session: bytes, made: int) -> None:
        self._notes.add("INSERT OR REPLACE INTO tokens (session, made) VALUES (?, ?)", (session, made))
        # Until it is written, a server that is killed would take the one before it again.
        statement = "DELETE FROM tokens WHERE rowid <= (SELECT max(rowid) FROM tokens) - ?"
        self._notes.add(statement, (MAX_TOKENS,), hurry=True)

    def begin_session(self, name: str, remote: str) -> int:
        session = next(self._sessions)
        now = time.time()
        statement = "INSERT INTO sessions (id, name, remote, began, seen) VALUES (?, ?, ?, ?, ?)"
        self._notes.add(statement, (session, name, remote, now, now))
        self._notes.add("DELETE FROM sessions WHERE id <= ?", (session - MAX_SESSIONS,))
        return session

    def account(self, session: int, rx: int, tx: int) -> None:
        self._notes.add("UPDATE sessions SET rx = ?, tx = ?, seen = ? WHERE id = ?", (rx, tx, time.time(), session))

    def end_session(self, session: int, reason: str) -> None:
        self._notes.add("UPDATE sessions SET ended = ?, reason = ? WHERE id = ?", (time.time(), reason, session))

    def sessions(self, name: str) -> list[tuple[str, float, float | None, int, int, str | None]]:
        """The last hundred of a user: remote, began and ended (seconds since 1970), bytes from and to
        the client, why it ended."""
        columns = "remote, began, ended, rx, tx, reason"
        return self._query(f"SELECT {columns} FROM sessions WHERE name = ? ORDER BY id DESC LIMIT 100", name)

    def set_listeners(self, listeners: Sequence[str], public: str | None) -> None:
        """Where the server awaits its clients (``udp 0.0.0.0:1194``), and what client files name, as of this start:
        a name of before is forgotten, which is told."""
        before = self.listeners()
        if before == (list(listeners), public):
            # A server starts where the disk is full, too.
            return
        with self._refusals(), self._transaction():
            self._set_text("listeners", "\n".join(listeners))
            self._set_text("public", public or "")
        if before[1] is not None and public is None:
            instead = "start with --public, or give it to ginnel user add"
            tell("public_forgotten", level=logging.WARNING, was=before[1], instead=instead)

    def listeners(self) -> tuple[list[str], str | None]:
        """What `set_listeners` was told last."""
        with self._refusals():
            texts = self._texts()
        return texts.get("listeners", "").splitlines(), texts.get("public") or None

    def set_inner(self, pool: Pool) -> None:
        """Which addresses clients have, as of this start; who was given others before is named."""
        text = " ".join(map(str, (pool.network, pool.network6 or "-", pool.topology)))
        if self._texts().get("inner") != text:
            with self._refusals(), self._transaction():
                self._set_text("inner", text)
        for user in (user for user in self.users() if not user.revoked):
            try:
                fixed = [own for own in (user.address, user.address6) if own is not None]
                pool.check(fixed, map(ip_network, user.routes))
            except ConfigError as error:
                tell("unfit", level=logging.WARNING, name=user.name, reason=str(error))

    def imported_wrap(self) -> tuple[str, str] | None:
        """``tls-crypt`` or ``tls-auth``, and its key: what the files of imported users have."""
        with self._refusals():
            texts = self._texts()
        return (texts["wrap"], texts["wrap_key"]) if "wrap" in texts else None

    def settle(self, timeout: float = 2.0) -> bool:
        """Waits until what a server told it is written; whether it is. Not for a disk that takes nothing."""
        return not self._notes.failing and self._notes.settle(timeout)

    def close(self) -> None:
        """Writes what is left, within two seconds. Idempotent."""
        self._notes.close(2.0)
        with self._lock:
            self._database.close()

    # Inside a transaction, or about to be.

    def _inner(self) -> Pool | None:
        """What `set_inner` was told last; None where no server has run."""
        match self._texts().get("inner", "").split():
            case [network, network6, "subnet" | "net30" as topology]:
                return Pool(IPv4Network(network), None if network6 == "-" else IPv6Network(network6), topology)
        return None

    def _is_made(self) -> bool:
        """Without a transaction, which a full disk refuses: who only reads needs none."""
        # In this order: another process may make all of it between the two.
        ((tables,),) = self._database.execute("SELECT count(*) FROM sqlite_master")
        ((version,),) = self._database.execute("PRAGMA user_version")
        if version not in (0, SCHEMA_VERSION) or (tables and not version):
            what = f"{self._path} was written by another version of ginnel"
            raise ConfigError(what, instead="run that one, or begin anew with another --dir")
        return bool(version)

    def _make(self, imported: Imported | None) -> bool:
        """Whether it was made now, and not by another process meanwhile."""
        with self._transaction():
            if self._is_made():
                return False
            if (self._path.parent / CRL).exists():
                raise ConfigError(
                    f"{self._path} is empty, and {CRL} beside it is of a server that had keys and users",
                    instead=f"put a copy of it back; without {CRL} it begins with new keys, which no client's file has",
                )
            for statement in SCHEMA:
                self._database.execute(statement)
            self._make_keys(imported)
            self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        return True

    def _make_keys(self, imported: Imported | None) -> None:
        now = authority.now()
        name = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname())[:40] or "server"
        if imported is None:
            own, own_key = Authority.create(f"ginnel {name}", now)
        else:
            own, own_key = Authority(imported.ca, imported.ca_key), imported.ca_key
        if imported is not None and imported.server is not None:
            name, certificate, key = imported.server
        else:
            issued = own.issue(name, "server", now, authority.AUTHORITY_DAYS)
            certificate, key = issued.certificate, issued.key
        texts = {
            "name": name,
            "ca": own.certificate,
            "ca_key": own_key,
            "cert": certificate,
            "key": key,
            "tls_crypt_v2": ServerKey(os.urandom(128)).emit(),
            "token_key": os.urandom(32).hex(),
        }
        for text, value in texts.items():
            self._set_text(text, value)
        if imported is not None:
            self._take_over(imported)

    def _take_over(self, imported: Imported) -> None:
        if imported.wrap is not None:
            self._set_text("wrap", imported.wrap[0])
            self._set_text("wrap_key", imported.wrap[1])
        for certificate in imported.certificates:
            at = None if certificate.revoked is None else certificate.revoked.timestamp()
            self._record(certificate.serial, certificate.name, at)
        for user in filter(lambda user: NAME.fullmatch(user.name), imported.users):
            statement = "INSERT INTO users (name, serial, expires, revoked) VALUES (?, ?, ?, ?)"
            values = (user.name, f"{user.serial:x}", user.expires.timestamp(), user.revoked)
            self._database.execute(statement, values)

    def _renew_server(self) -> None:
        """An imported authority may live longer than its server's certificate."""
        texts, now = self._texts(), authority.now()
        ends = x509.load_pem_x509_certificate(texts["cert"].encode()).not_valid_after_utc
        if self._authority.can_sign and ends < min(now + timedelta(days=WARN_DAYS), self._authority.expires):
            issued = self._authority.issue(texts["name"], "server", now, authority.AUTHORITY_DAYS)
            with self._transaction():
                self._set_text("cert", issued.certificate)
                self._set_text("key", issued.key)
            self._identity = self._read_identity()

    def _last_session(self) -> int:
        ((last,),) = self._database.execute("SELECT coalesce(max(id), 0) FROM sessions")
        return int(last)

    def _issue(self, name: str, days: int) -> Issued:
        issued = self._authority.issue(name, "client", authority.now(), days)
        self._record(issued.serial, name, None)
        return issued

    def _record(self, serial: int, name: str, revoked: float | None) -> None:
        statement = "INSERT INTO certificates (serial, name, revoked) VALUES (?, ?, ?)"
        self._database.execute(statement, (f"{serial:x}", name, revoked))

    def _revoke_certificates(self, name: str) -> None:
        """Those that were taken back before keep their date."""
        statement = "UPDATE certificates SET revoked = ? WHERE name = ? AND revoked IS NULL"
        self._database.execute(statement, (authority.now().timestamp(), name))

    def _check_taken(self, name: str, addresses: Sequence[object], networks: Sequence[Any]) -> None:
        for other in self.users():
            if other.name == name or other.revoked:
                continue
            taken = [own for own in addresses if own is not None and own in (other.address, other.address6)]
            taken += [own for own in networks if any(_overlap(own, ip_network(known)) for known in other.routes)]
            if taken:
                instead = f"see: ginnel user show {other.name}"
                raise ConfigError(f"{taken[0]} is {other.name}'s already", instead=instead)

    def _set_text(self, key: str, value: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO texts (key, value) VALUES (?, ?)", (key, value))

    def _texts(self) -> dict[str, str]:
        return dict(self._database.execute("SELECT key, value FROM texts"))

    # The database.

    def _known(self, name: str) -> User:
        user = self.user(name)
        if user is None:
            raise ConfigError(f"there is no user {name}", instead="see: ginnel user list")
        return user

    def _query(self, statement: str, *values: object) -> list[Any]:
        try:
            with self._lock:
                return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self._refuse(error)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute(COUNT_CHANGE)
                # A disk that is full may show only here.
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            self._refuse(error)

    def _refuse(self, error: sqlite3.Error) -> NoReturn:
        instead = "; is the disk full, or another program at it?" if isinstance(error, sqlite3.OperationalError) else ""
        raise ConfigError(f"{self._path}: {error}{instead}") from None


def _user(row: tuple[Any, ...]) -> User:
    name, serial, revoked, expires, address, address6, routes, has_password, since = row
    return User(
        name=name,
        serial=int(serial, 16),
        revoked=bool(revoked),
        expires=datetime.fromtimestamp(expires, UTC),
        address=_address(address),
        address6=_address(address6),
        routes=tuple(routes.split()),
        has_password=bool(has_password),
        password_since=float(since),
    )


def _address(text: str | None) -> Any:
    return None if text is None else ip_address(text)


def _overlap(one: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    return one.version == other.version and int(one[0]) <= int(other[-1]) and int(other[0]) <= int(one[-1])


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}")
DATABASE = "server.db"
# Written beside it by a server that runs, and by nobody else.
CRL = "crl.pem"
#: Seconds that another process's transaction is waited for.
BUSY = 2.0
MAX_SESSIONS = 100_000
MAX_TOKENS = 10_000
COUNT_CHANGE = "INSERT INTO texts (key, value) VALUES ('changes', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1"
USERS = (
    "SELECT name, serial, revoked, expires, address, address6, routes, password IS NOT NULL, password_since FROM users"
)
#: Of the tables below; another number is another program's.
SCHEMA_VERSION = 2
SCHEMA = (
    "CREATE TABLE texts (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE users (name TEXT PRIMARY KEY, serial TEXT NOT NULL, revoked INTEGER DEFAULT 0, "
    "expires REAL NOT NULL, address TEXT, address6 TEXT, routes TEXT DEFAULT '', password TEXT, "
    "password_since REAL DEFAULT 0)",
    # Few have one, and each login asks who.
    "CREATE INDEX users_by_address ON users (address) WHERE address IS NOT NULL",
    "CREATE INDEX users_by_address6 ON users (address6) WHERE address6 IS NOT NULL",
    # All that were ever made or imported, with the name in each; when it was taken back, in seconds since 1970.
    "CREATE TABLE certificates (serial TEXT PRIMARY KEY, name TEXT NOT NULL, revoked REAL)",
    "CREATE INDEX certificates_by_name ON certificates (name)",
    "CREATE TABLE leases (name TEXT PRIMARY KEY, address TEXT, address6 TEXT)",
    # When the token was made that each of their sessions showed last.
    "CREATE TABLE tokens (session BLOB PRIMARY KEY, made INTEGER NOT NULL)",
    "CREATE TABLE sessions (id INTEGER PRIMARY KEY, name TEXT NOT NULL, remote TEXT NOT NULL, "
    "began REAL NOT NULL, seen REAL NOT NULL, ended REAL, rx INTEGER DEFAULT 0, tx INTEGER DEFAULT 0, reason TEXT)",
)
