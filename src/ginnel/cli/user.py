"""``ginnel user``: who may connect to this machine's server."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from ginnel.cli.output import Output
from ginnel.errors import ConfigError, DeviceError, UnreachableError
from ginnel.server.directory import state_directory
from ginnel.server.status import size

if TYPE_CHECKING:
    from ginnel.server.authority import Issued
    from ginnel.server.store import Store, User

DIRECTORY = click.option(
    "--dir", "directory", metavar="DIR", type=click.Path(path_type=Path), help="Where the server keeps its state."
)
OUTPUT = click.option(
    "-o", "output", metavar="FILE", type=click.Path(path_type=Path), help="Write the client's file there (mode 0600)."
)
DAYS = click.option("--days", type=click.IntRange(1, 3650), default=825, show_default=True, help="How long it is good.")


@click.group(name="user")
def command() -> None:
    """Say who may connect, and make their files."""


@command.command()
@click.argument("name")
@DIRECTORY
@OUTPUT
@DAYS
@click.option("--password", is_flag=True, help="Ask for a password, needed beside the file (or read it from stdin).")
@click.option("--public", metavar="HOST[:PORT]", help="How the server is reached, where it has not been told.")
def add(name: str, directory: Path | None, output: Path | None, days: int, password: bool, public: str | None) -> None:
    """Add a user, and print the file that any OpenVPN client from 2.6 on opens."""
    with _Opened(directory, make=True) as store, _Delivery(store, name, output, public, password=password) as delivery:
        store.check_free(name)
        asked = _ask() if password else None
        store.add_user(name, days=days, password=asked, deliver=delivery.take)


@command.command()
@click.argument("name")
@DIRECTORY
@OUTPUT
@DAYS
@click.option("--public", metavar="HOST[:PORT]", help="How the server is reached, where it has not been told.")
def renew(name: str, directory: Path | None, output: Path | None, days: int, public: str | None) -> None:
    """Make a user a new file. The one before it opens nothing any longer."""
    with _Opened(directory) as store:
        user = store.user(name)
        has_password = user is not None and user.has_password
        with _Delivery(store, name, output, public, password=has_password, renews=True) as delivery:
            store.renew_user(name, days=days, deliver=delivery.take)
    _tell_server(directory)


@command.command(name="set")
@click.argument("name")
@DIRECTORY
@click.option("--address", metavar="ADDR|none", help="The inner IPv4 address that is always the user's.")
@click.option("--address6", metavar="ADDR|none", help="The inner IPv6 address that is always the user's.")
@click.option(
    "--network", "networks", metavar="CIDR|none", multiple=True, help="A network behind the user. Again for more."
)
def set_user(
    name: str, directory: Path | None, address: str | None, address6: str | None, networks: tuple[str, ...]
) -> None:
    """Give a user fixed addresses, and the networks that are reached through her. What isn't named stays as it is.

    It counts from the next connection on.
    """
    if address is None and address6 is None and not networks:
        raise ConfigError("nothing to set", instead="give --address, --address6 or --network")
    try:
        fixed = ... if address is None else None if address == "none" else IPv4Address(address)
        fixed6 = ... if address6 is None else None if address6 == "none" else IPv6Address(address6)
        behind = [] if networks == ("none",) else [ip_network(network) for network in networks]
    except ValueError as error:
        instead = "write ADDR, networks like 192.0.2.0/24, or none"
        raise ConfigError(str(error), instead=instead) from None
    with _Opened(directory) as store:
        store.set_user(name, address=fixed, address6=fixed6, networks=behind if networks else ...)


@command.command(name="password")
@click.argument("name")
@DIRECTORY
@click.option("--remove", is_flag=True, help="Ask her for none any longer.")
def set_password(name: str, directory: Path | None, remove: bool) -> None:
    """Ask for the password that a user needs beside her file. It counts from her next login on."""
    with _Opened(directory) as store:
        store.check_valid(name)
        store.set_password(name, None if remove else _ask())
    if not remove:
        instead = f"where it has not, add that, or make a new one: ginnel user renew {name}"
        print(f"{name}'s client asks for it if her file has the line auth-user-pass; {instead}", file=sys.stderr)


@command.command()
@click.argument("name")
@DIRECTORY
def revoke(name: str, directory: Path | None) -> None:
    """Turn a user away, at once and for ever, with every file that was ever made for her."""
    with _Opened(directory) as store:
        new = store.revoke_user(name)
    _tell_server(directory)
    print(f"{name} {'is revoked' if new else 'was revoked before'}", file=sys.stderr)


@command.command()
@DIRECTORY
@click.option(
    "-o", "output", metavar="FILE", type=click.Path(path_type=Path), help="Write it there, whole (mode 0644)."
)
def crl(directory: Path | None, output: Path | None) -> None:
    """Print the list of the certificates that were taken back, for others that trust the same authority.

    It is signed now, and good for 180 days.
    """
    with _Opened(directory) as store, Output(output, 0o644, replaces=lambda text: X509_CRL in text) as written:
        written.write(store.revocation_list())


@command.command(name="list")
@DIRECTORY
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_users(directory: Path | None, as_json: bool) -> None:
    """List the users."""
    with _Opened(directory) as store:
        users, ends = store.users(), store.expiring(datetime.now(UTC))
        renewals = {user.name: store.renewal(user.name) for user in users}
    known = {user.name for user in users}
    for what, until, instead in ends:
        if what not in known:
            print(f"warning: {what} ends on {_day(until)}; {instead}", file=sys.stderr)
    if as_json:
        print(json.dumps([_fields(user) for user in users]))
        return
    for user in users:
        print(f"{user.name:24} {_state(user, renewals[user.name])}")


@command.command()
@click.argument("name")
@DIRECTORY
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, directory: Path | None, as_json: bool) -> None:
    """Show a user and the last connections."""
    with _Opened(directory) as store:
        user = store.user(name)
        if user is None:
            raise ConfigError(f"there is no user {name}", instead="see: ginnel user list")
        sessions, renewal = store.sessions(name), store.renewal(name)
        lease = (user.address, user.address6) if user.address or user.address6 else store.lease(name)
    running = _is_running(state_directory(directory))
    if as_json:
        keys = ("remote", "began", "ended", "rx", "tx", "reason")
        rows = [dict(zip(keys, row, strict=True)) for row in sessions]
        held = dict(zip(("lease", "lease6"), (each and str(each) for each in lease), strict=True))
        print(json.dumps({**_fields(user), **held, "sessions": rows}))
        return
    print(f"{user.name}: {_state(user, renewal)}")
    fixed = " (fixed)" if user.address or user.address6 else ""
    print(f"  addresses {', '.join(str(each) for each in lease if each is not None) or 'none yet'}{fixed}")
    if user.routes:
        print(f"  networks  {', '.join(user.routes)}")
    for remote, began, ended, rx, tx, reason in sessions:
        if ended is not None:
            end = f"until {_date(ended)}: {reason}"
        else:
            end = "connected" if running else "until the server was killed"
        print(f"  {_date(began)} from {remote}, {size(rx)} in, {size(tx)} out, {end}")


class _Opened:
    """The store, closed at the end. Imported late: ``--help`` needs none of its libraries."""

    def __init__(self, directory: Path | None, *, make: bool = False) -> None:
        from ginnel.server.store import open_store

        self._store = open_store(state_directory(directory), make=make)

    def __enter__(self) -> Store:
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()


class _Delivery:
    """A user's file on its way: whole at its place at the end of the block, or not there at all."""

    def __init__(
        self,
        store: Store,
        name: str,
        output: Path | None,
        public: str | None,
        *,
        password: bool,
        renews: bool = False,
    ) -> None:
        """Raises ConfigError for a ``public`` that cannot be, and for an ``output`` that is no file's place. Whoever
        ``renews`` replaces the user's file of before, and no other's."""
        from ginnel.server.client_file import remotes

        self._path = output
        self._output = Output(output, 0o600, replaces=lambda text: renews and _names(text) == name)
        listeners, known = store.listeners()
        self._places, self._warning = remotes(listeners, public or known)
        # Before a transaction, in which nothing else is asked of the store.
        self._identity, self._wrap_key = store.identity, store.make_wrap_key(name)
        self._password = password
        self._until = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._output.__exit__(kind, *rest)
        if kind is None and self._warning is not None:
            print(f"warning: {self._warning}", file=sys.stderr)
        if kind is None and self._path is not None:
            print(f"{self._path} opens in any OpenVPN client from 2.6 on; good until {self._until}", file=sys.stderr)

    def take(self, issued: Issued) -> None:
        """Raises ConfigError."""
        from ginnel.server.client_file import client_file

        self._until = _day(issued.expires)
        self._output.write(client_file(self._identity, issued, self._wrap_key, self._places, password=self._password))


def _names(text: str) -> str | None:
    """Whose client file it is, by its certificate."""
    from cryptography import x509

    found = re.search(r"<cert>(.*?)</cert>", text, re.DOTALL)
    with contextlib.suppress(ValueError, IndexError):
        if found is not None:
            subject = x509.load_pem_x509_certificate(found[1].encode()).subject
            return str(subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
    return None


def _ask() -> str:
    """Twice on a terminal; elsewhere it is the first line of stdin. Raises ConfigError."""
    if sys.stdin.isatty():
        try:
            return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
        except (SystemExit, click.Abort, UnicodeDecodeError) as error:
            # What is said next begins a line.
            print(file=sys.stderr)
            if isinstance(error, UnicodeDecodeError):
                raise ConfigError("the password is not UTF-8 text") from None
            raise
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError:
        raise ConfigError("the password on stdin is not text in this locale's encoding") from None
    password = line.removesuffix("\n")
    if not password:
        raise ConfigError("no password on stdin", instead="write it there, or run this on a terminal")
    return password


def _state(user: User, renewal: str) -> str:
    left = user.expires - datetime.now(UTC)
    if user.revoked:
        return "revoked"
    if left < timedelta(0):
        return f"expired on {_day(user.expires)}; {renewal}"
    soon = f", in {left.days} days; {renewal}" if left < timedelta(days=30) else ""
    return f"good until {_day(user.expires)}{soon}{', with a password' if user.has_password else ''}"


def _fields(user: User) -> dict[str, Any]:
    return {
        "name": user.name,
        "serial": f"{user.serial:x}",
        "revoked": user.revoked,
        "expires": user.expires.isoformat(),
        "password": user.has_password,
        "address": None if user.address is None else str(user.address),
        "address6": None if user.address6 is None else str(user.address6),
        "networks": list(user.routes),
    }


def _tell_server(directory: Path | None) -> None:
    """A server looks by itself, too, within half a second."""
    from ginnel.server.control import ask

    with contextlib.suppress(UnreachableError, DeviceError):
        ask(state_directory(directory), {"command": "look"})


def _is_running(directory: Path) -> bool:
    from ginnel.server.control import ask

    try:
        ask(directory, {"command": "status"})
    except (UnreachableError, DeviceError):
        return False
    return True


def _day(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d}"


def _date(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


X509_CRL = "-----BEGIN X509 CRL-----"
