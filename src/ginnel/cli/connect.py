"""``ginnel connect``: a connection in user space, with gateways into it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from ginnel.cli import ended, endings
from ginnel.cli.prompt import Asker, completed
from ginnel.cli.reporter import Reporter
from ginnel.cli.tunnel import Machine, Tunnel, held
from ginnel.cli.values import Seconds
from ginnel.device.capture import File as CaptureFile
from ginnel.errors import ConfigError, GinnelError
from ginnel.gateways.forward import Forward, Target
from ginnel.gateways.http_proxy import HttpProxy
from ginnel.gateways.relay import Address, Listener
from ginnel.gateways.socks5 import Login, Socks5Gateway
from ginnel.openvpn.config import AuthUserPass, ClientConfig
from ginnel.openvpn.ovpn_file import read_login, read_ovpn
from ginnel.vpn import Change, Down, Info, OpenUrl, Reconnecting, State, Up, Vpn

log = logging.getLogger("ginnel")


@click.command(name="connect")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.ovpn")
@click.option("--socks", metavar="[ADDR:]PORT|unix:PATH", help="Serve SOCKS5 here; loopback without ADDR.")
@click.option("--http", metavar="[ADDR:]PORT|unix:PATH", help="Serve an HTTP proxy here; loopback without ADDR.")
@click.option(
    "--socks-auth",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The user and password that clients of --socks and --http must give, a line each.",
)
@click.option(
    "-L",
    "forwards",
    metavar="[ADDR:]PORT:HOST:PORT",
    multiple=True,
    help="Lead a local port to a host and port inside the tunnel. May be given again.",
)
@click.option(
    "--capture", metavar="FILE.pcapng", type=click.Path(path_type=Path), help="Write all packets of the tunnel there."
)
@click.option("--tun", is_flag=True, help="Use a device of the kernel's: every program goes through it. Takes root.")
@click.option(
    "--dev", metavar="NAME", help="The name of that device; without it the file's, or the next free tunN or tapN."
)
@click.option("--kill-switch", is_flag=True, help="With --tun: nothing leaves past the tunnel, also while it is down.")
@click.option(
    "--auth-user-pass",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The user and password for the server, a line each.",
)
@click.option(
    "--timeout",
    metavar="S",
    type=Seconds(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="How long the first connection may take, in seconds.",
)
@click.option("--open", "opens", is_flag=True, help="Open a browser when the server wants a login there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line on stdout for each event.")
@click.pass_context
def command(
    ctx: click.Context,
    file: Path,
    socks: str | None,
    http: str | None,
    socks_auth: Path | None,
    forwards: tuple[str, ...],
    capture: Path | None,
    tun: bool,
    dev: str | None,
    kill_switch: bool,
    auth_user_pass: Path | None,
    timeout: float,
    opens: bool,
    as_json: bool,
) -> int:
    """Connect to the OpenVPN server that FILE.ovpn names, without root.

    Nothing of this machine's network changes. Programs reach the other side through --socks and
    --http, and through the ports given with -L; names are resolved there. With --tun every program
    does, by addresses, routes and name servers of this machine, which are put back at the end. Runs
    until SIGINT, SIGTERM or SIGHUP; SIGUSR1 connects anew.
    """
    verbose = ctx.obj or 0
    reporter = Reporter(as_json, verbose=bool(verbose), live=True)
    try:
        tunnel = Tunnel.parse(tun, dev, kill_switch, bool(socks or http or forwards))
        config = _with_login(read_ovpn(file), auth_user_pass)
        _set_up_logging(reporter, verbose, config.verb)
        for warning in config.warnings:
            log.warning("%s:%d: %s", file, warning.line, warning.text)
        plan = Plan(
            config=config,
            timeout=timeout,
            socks=Address.parse(socks) if socks else None,
            http=Address.parse(http) if http else None,
            gateway_login=_gateway_login(socks, http, socks_auth),
            forwards=tuple(Target.parse(text) for text in forwards),
            # Before any right is given up.
            capture=CaptureFile(capture) if capture else None,
            opens=opens,
        )
        if tunnel is None:
            asyncio.run(_connect(plan, reporter, None))
        else:
            with held(tunnel, config) as machine:
                asyncio.run(_connect(plan, reporter, machine))
        reporter.event("down")
    except GinnelError as error:
        reporter.event("error", code=error.exit_status, message=str(error))
        raise
    finally:
        ended()
        reporter.flush_all()
    return 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asks for, parsed."""

    config: ClientConfig
    timeout: float
    socks: Address | None
    http: Address | None
    gateway_login: Login | None
    forwards: tuple[Target, ...]
    capture: CaptureFile | None
    opens: bool


async def _connect(plan: Plan, reporter: Reporter, machine: Machine | None) -> None:
    # By now all rights are given up that will be.
    reporter.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in endings():
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        listeners = _Listeners(
            socks=stack.enter_context(contextlib.closing(Listener(plan.socks))) if plan.socks else None,
            http=stack.enter_context(contextlib.closing(Listener(plan.http))) if plan.http else None,
            forwards=[
                (stack.enter_context(contextlib.closing(Listener(target.address))), target) for target in plan.forwards
            ],
        )
        options: dict[str, Any] = {
            "ask": Asker(),
            "timeout": plan.timeout,
            "capture": plan.capture,
        }
        vpn = Vpn(plan.config, **options) if machine is None else machine.vpn(**options)
        loop.add_signal_handler(signal.SIGUSR1, vpn.reconnect)
        # Stock writes its counters then; here it would be the end.
        loop.add_signal_handler(signal.SIGUSR2, log.warning, "SIGUSR2 does nothing here")
        if machine is None:
            session = loop.create_task(_hold(vpn, plan, reporter, listeners))
        else:
            session = loop.create_task(_hold_device(machine, vpn, plan, reporter))
        stopped = loop.create_task(stop.wait())
        try:
            await asyncio.wait({session, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            session.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await session
        if machine is not None:
            machine.end_as_asked()


@dataclass(frozen=True, slots=True)
class _Listeners:
    """What listens before there is anything to serve."""

    socks: Listener | None
    http: Listener | None
    forwards: list[tuple[Listener, Target]]


async def _hold(vpn: Vpn, plan: Plan, reporter: Reporter, listeners: _Listeners) -> None:
    gateways = _gateway_fields(listeners)
    changes = vpn.changes()
    reports = asyncio.get_running_loop().create_task(_report(changes, plan, reporter, gateways, vpn))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(reports.cancel)
        for line in _openness(plan, listeners):
            reporter.say(line)
        await stack.enter_async_context(vpn)
        if listeners.socks is not None:
            stack.push_async_callback(Socks5Gateway(vpn.stack, listeners.socks, plan.gateway_login).aclose)
        if listeners.http is not None:
            stack.push_async_callback(HttpProxy(vpn.stack, listeners.http, plan.gateway_login).aclose)
        for listener, target in listeners.forwards:
            stack.push_async_callback(Forward(vpn.stack, listener, target).aclose)
        if sys.stderr.isatty():
            stack.callback(_show(vpn).cancel)
        await vpn.wait_closed()


async def _hold_device(machine: Machine, vpn: Vpn, plan: Plan, reporter: Reporter) -> None:
    changes = vpn.changes()
    device = {"device": machine.device}
    reports = asyncio.get_running_loop().create_task(_report(changes, plan, reporter, device, None))
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(reports.cancel)
        reporter.say(f"the tunnel's device is {machine.device}")
        await stack.enter_async_context(vpn)
        if sys.stderr.isatty():
            stack.callback(_show(vpn).cancel)
        await vpn.wait_closed()


def _show(vpn: Vpn) -> asyncio.Task[None]:
    from ginnel.cli.live import live_line  # rich takes long to import, and 2 MB

    return asyncio.get_running_loop().create_task(live_line(vpn))


async def _report(
    changes: AsyncIterator[Change], plan: Plan, reporter: Reporter, gateways: dict[str, Any], vpn: Vpn | None
) -> None:
    """``vpn``: one whose gateways are given names."""
    async for change in changes:
        match change:
            case Up(info):
                reporter.event("up", **_described(info), **gateways)
                reporter.say(_sentence(info))
            case Reconnecting(error, delay):
                reporter.event("reconnecting", message=str(error), delay=round(delay, 3))
                reporter.say(f"{error}; trying again" + (f" in {delay:.1f} s" if delay else ""))
            case OpenUrl(url):
                reporter.event("open_url", url=url)
                reporter.say(f"the server wants you to log in at {url}")
                if plan.opens:
                    # A browser in the terminal would hold it up until it is left.
                    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
            case Down():
                # What comes of it is said when all is put back.
                pass
        if vpn is not None and gateways and vpn.state is State.UP and not vpn.stack.has_dns:
            log.warning("the tunnel gave no DNS server: its other side is reached by addresses, not by names")


def _described(info: Info) -> dict[str, Any]:
    return {
        "address": info.address,
        "address6": info.address6,
        "server": info.server,
        "proxy": info.proxy,
        "transport": info.transport,
        "cipher": info.cipher,
        "tls": info.tls,
        "handshake": round(info.handshake, 4),
    }


def _sentence(info: Info) -> str:
    addresses = " and ".join(address for address in (info.address, info.address6) if address)
    proxy = f" by the proxy {info.proxy}" if info.proxy else ""
    return (
        f"up: {addresses or 'no address'} through {info.server}{proxy} ({info.transport}), "
        f"{info.cipher}, {info.tls}, in {info.handshake * 1000:.0f} ms"
    )


def _gateway_fields(listeners: _Listeners) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if listeners.socks is not None:
        fields["socks"] = str(listeners.socks.address)
    if listeners.http is not None:
        fields["http"] = str(listeners.http.address)
    if listeners.forwards:
        fields["forwards"] = [
            {"listen": str(listener.address), "host": target.host, "port": target.port}
            for listener, target in listeners.forwards
        ]
    return fields


def _openness(plan: Plan, listeners: _Listeners) -> list[str]:
    lines = []
    for name, proxy in (("SOCKS5", listeners.socks), ("HTTP proxy", listeners.http)):
        if proxy is None:
            continue
        if proxy.address.path is not None:
            who = "for you alone"
        elif plan.gateway_login is not None:
            who = "with a password"
        else:
            who = "open to every user of this machine; unix:PATH or --socks-auth closes it"
        lines.append(f"{name} on {proxy.address} ({who})")
    for listener, target in listeners.forwards:
        where = f"{listener.address} leads to {target.host} port {target.port}"
        who = "every user of this machine" if listener.address.is_private else "everyone who reaches it"
        lines.append(where if listener.address.path else f"{where} (open to {who})")
    if not lines:
        lines.append("nothing leads into the tunnel: --socks PORT, --http PORT or -L PORT:HOST:PORT would")
    return lines


def _gateway_login(socks: str | None, http: str | None, path: Path | None) -> Login | None:
    if path is not None:
        if socks is None and http is None:
            raise ConfigError("--socks-auth without --socks or --http", instead="add --socks [ADDR:]PORT")
        username, password = read_login(str(path))
        if password is None:
            raise ConfigError(f"{path} has no password", instead="write it in line 2")
        return Login(username, password)
    for name, where in (("SOCKS", socks), ("an HTTP proxy", http)):
        if where is not None and not Address.parse(where).is_private:
            raise ConfigError(
                f"{name} on {where} would be open to everyone who reaches this machine",
                instead="add --socks-auth FILE, or listen on loopback",
            )
    return None


def _with_login(config: ClientConfig, path: Path | None) -> ClientConfig:
    """The command line's login counts more than the file's, and the file's more than the environment's."""
    if path is not None:
        config = replace(config, auth_user_pass=AuthUserPass(*read_login(str(path)), str(path)))
    if config.auth_user_pass is not None:
        return replace(config, auth_user_pass=completed(config.auth_user_pass))
    return config


def _set_up_logging(reporter: Reporter, verbose: int, verb: int) -> None:
    level = logging.WARNING
    if verbose == 1 or verb > _TALKATIVE:
        level = logging.INFO
    if verbose > 1:
        level = logging.DEBUG
    logging.basicConfig(level=level, handlers=[reporter])
    logging.getLogger("asyncio").setLevel(logging.WARNING)


# OpenVPN's own default is 1, and nearly every file says 3; both mean an ordinary user's log.
_TALKATIVE = 3
