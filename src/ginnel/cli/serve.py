"""``ginnel serve``: a server, without root."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import resource
import signal
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click

from ginnel.cli import ended, endings, routed
from ginnel.cli.reporter import Reporter
from ginnel.cli.values import check_device
from ginnel.errors import ConfigError, DeviceError, GinnelError
from ginnel.gateways.egress import may_ping
from ginnel.gateways.relay import Address, Listener
from ginnel.network import rights
from ginnel.server.client_file import remotes, split_host
from ginnel.server.config import Listen, Publish, ServerConfig
from ginnel.server.crl import RevocationList
from ginnel.server.directory import state_directory
from ginnel.server.easyrsa import Imported, read_pki
from ginnel.server.exporter import Exporter
from ginnel.server.inner import Routed
from ginnel.server.journal import tell
from ginnel.server.monitor import Monitor
from ginnel.server.pool import Pool
from ginnel.server.running import opened, running
from ginnel.server.server_file import SERVER_FILE, PushedToUsers, read_server_file
from ginnel.server.store import Store


@click.command(name="serve")
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where its state is kept; ~/.local/state/ginnel without it.",
)
@click.option(
    "--listen",
    "places",
    metavar="[udp:|tcp:]ADDR:PORT",
    multiple=True,
    help="Await clients here, over UDP and TCP. May be given again. Port 1194 of every address without it.",
)
@click.option("--public", metavar="HOST[:PORT]", help="What client files name: how this machine is reached.")
@click.option("--tun", is_flag=True, help="Use a device of the kernel's, which forwards and hides clients. Takes root.")
@click.option("--dev", metavar="NAME", help="The name of that device; without it the next free tunN.")
@click.option("--allow", metavar="CIDR", multiple=True, help="A private network that clients may reach from here.")
@click.option("--publish", metavar="PORT:USER:PORT", multiple=True, help="Lead a port of this machine to a client's.")
@click.option("--metrics", metavar="[ADDR:]PORT|unix:PATH", help="Serve counters for Prometheus, at /metrics.")
@click.option(
    "--import",
    "pki",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Begin with the keys and users of easy-rsa's folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line on stdout for each event.")
@click.pass_context
def command(
    ctx: click.Context,
    directory: Path | None,
    places: tuple[str, ...],
    public: str | None,
    tun: bool,
    dev: str | None,
    allow: tuple[str, ...],
    publish: tuple[str, ...],
    metrics: str | None,
    pki: Path | None,
    as_json: bool,
) -> int:
    """Serve OpenVPN clients, stock ones too, without root; with --tun by the kernel's routing, which takes it.

    Makes its own keys at the first start; `ginnel user add NAME` makes a client's file. Runs until SIGINT, SIGTERM or
    SIGHUP.
    """
    _raise_descriptors()
    verbose = ctx.obj or 0
    reporter = Reporter(as_json, verbose=bool(verbose))
    _set_up_logging(reporter, verbose)
    try:
        if public is not None:
            split_host(public)
        exported = None if metrics is None else Address.parse(metrics)
        config = ServerConfig(
            listen=tuple(place for text in places for place in Listen.parse(text)),
            public=public,
            allow=tuple(map(_network, allow)),
            publish=tuple(map(Publish.parse, publish)),
        )
        if dev is not None and not tun:
            raise ConfigError("--dev is for a kernel's device", instead="add --tun, or leave it out")
        if dev is not None:
            check_device(dev)
        # Root's own, as a rule, and so before root is given up.
        imported = None if pki is None else read_pki(pki)
        if not tun:
            directory = state_directory(directory)
            config = read_server_file(directory / SERVER_FILE, config)
            asyncio.run(_serve(config, directory, imported, reporter, None, exported))
        else:
            directory, user = routed.place(directory)
            with routed.held(user, dev) as (helper, device):
                config = read_server_file(directory / SERVER_FILE, config)
                # There is nobody at the inner address who would know names.
                config = config if config.dns is not None else replace(config, dns=())
                inner = Routed(config, helper, device)
                asyncio.run(_serve(config, directory, imported, reporter, inner, exported))
        reporter.event("down")
    except GinnelError as error:
        reporter.event("error", code=error.exit_status, message=str(error))
        raise
    finally:
        ended()
        reporter.flush_all()
    return 0


async def _serve(
    config: ServerConfig,
    directory: Path,
    imported: Imported | None,
    reporter: Reporter,
    inner: Routed | None,
    exported: Address | None,
) -> None:
    reporter.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in endings():
        loop.add_signal_handler(number, stop.set)
    # Stock's, that recipes for it send; here they would be its end.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        loop.add_signal_handler(number, partial(tell, "signal", name=number.name, reason=NO_SIGNAL))
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(directory, imported))
        _tell_imported(store, imported)
        _tell_nobody(store, config)
        listener = None if exported is None else stack.enter_context(contextlib.closing(Listener(exported)))
        if inner is not None:
            ended = inner.helper_descriptor
            loop.add_reader(ended, stop.set)
            stack.callback(loop.remove_reader, ended)
        server = await stack.enter_async_context(running(store, directory, config, inner))
        stack.push_async_callback(Monitor(server, directory).aclose)
        if store.can_sign:
            stack.push_async_callback(RevocationList(store, directory).aclose)
        if listener is not None:
            stack.push_async_callback(Exporter(server, listener).aclose)
        pool = server.pool
        listen = [str(place) for place in server.places]
        _tell_dialed_inside(listen, config.public, pool)
        reporter.event(
            "up",
            address=str(pool.address),
            address6=None if pool.address6 is None else str(pool.address6),
            server=store.identity.name,
            listen=listen,
            directory=str(directory),
            **({} if inner is None else {"device": inner.device}),
            **({} if listener is None else {"metrics": str(listener.address)}),
            **({"publish": [str(published) for published in config.publish]} if config.publish else {}),
        )
        if inner is None and not may_ping():
            tell("no_ping", level=logging.WARNING, reason=NO_PING)
        warnings = asyncio.create_task(warn(store))
        stack.callback(warnings.cancel)
        reporter.say(f"serving on {', '.join(listen)}; state in {directory}")
        if listener is not None:
            reporter.say(f"counters for Prometheus at /metrics on {listener.address}")
        for published in config.publish:
            reporter.say(f"port {published.port} of every address leads to {published.user}'s port {published.target}")
        await stop.wait()
        if inner is not None and inner.helper_ended:
            raise DeviceError(errno.EIO, rights.ENDED)


async def warn(store: Store) -> None:
    """Says every day what ends soon, and once what has ended."""
    ended: set[tuple[str, datetime]] = set()
    while True:
        with contextlib.suppress(GinnelError):
            for what, until, instead in await asyncio.to_thread(store.expiring, datetime.now(UTC)):
                if (what, until) in ended:
                    continue
                event = "expires"
                if until <= datetime.now(UTC):
                    event = "expired"
                    ended.add((what, until))
                tell(event, level=logging.WARNING, what=what, on=until.astimezone().date(), instead=instead)
        await asyncio.sleep(DAY)


def _tell_imported(store: Store, imported: Imported | None) -> None:
    if imported is None:
        return
    users = store.users()
    tell("imported", users=len(users), revoked=sum(user.revoked for user in users), wrap=(imported.wrap or (None,))[0])
    for what in imported.left_out:
        tell("not_imported", level=logging.WARNING, what=what)
    taken = {user.name for user in users}
    for name in (user.name for user in imported.users if user.name not in taken):
        tell("not_imported", level=logging.WARNING, what=f"{name}, which is no name for a user here")


def _tell_nobody(store: Store, config: ServerConfig) -> None:
    """What is published or pushed of somebody who is no user, or not yet."""
    named: list[tuple[str, str, int | None]] = [
        ("publish_nobody", published.user, published.port) for published in config.publish
    ]
    if isinstance(config.connected, PushedToUsers):
        named += [("push_nobody", name, None) for name in config.connected.users]
    for event, name, port in named:
        user = store.user(name)
        if user is None or user.revoked:
            what = "is no user here" if user is None else "is revoked"
            tell(event, level=logging.WARNING, port=port, name=name, reason=what)


def _tell_dialed_inside(listen: list[str], public: str | None, pool: Pool) -> None:
    """A client that leads its packets to the server into the tunnel has no tunnel."""
    with contextlib.suppress(ConfigError):
        for host in {host for _, host, _ in remotes(listen, public)[0]}:
            with contextlib.suppress(ValueError):
                if pool.overlaps(ipaddress.ip_network(host)):
                    tell("dialed_inside", level=logging.WARNING, host=host, reason=DIALED_INSIDE)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(f"--allow {text}: {error}", option="allow", instead="write ADDR/BITS") from None


def _raise_descriptors() -> None:
    """Each connection of a client's that leaves takes one; the soft limit is for programs that know no better."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _set_up_logging(reporter: Reporter, verbose: int) -> None:
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[reporter])
    logging.getLogger("asyncio").setLevel(logging.WARNING)


NO_PING = (
    "the system lets this user send no echo requests: clients' pings to others stay unanswered, all else works; "
    "root may run: sysctl -w net.ipv4.ping_group_range='0 2147483647'"
)
DIALED_INSIDE = (
    "clients dial it, and it is an inner address, too: those on a kernel's device lose the server when they are in; "
    "set another network in server.toml"
)
NO_SIGNAL = "it does nothing here; `ginnel status` shows the clients, and a start anew reads server.toml"
DAY = 86400.0
