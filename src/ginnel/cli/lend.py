"""``ginnel lend``: a program that wants /dev/net/tun, on a device in user space."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import click

from ginnel.device.address import Address as InterfaceAddress
from ginnel.device.address import parse_address
from ginnel.device.interface import Interface, Interfaces
from ginnel.device.lend import LentProgram, Node
from ginnel.device.lend.launch import become_subreaper, kill_orphans
from ginnel.device.lend.node import TUN
from ginnel.device.lend.seen import Seen
from ginnel.errors import ConfigError, GinnelError
from ginnel.gateways.relay import Address, Listener
from ginnel.gateways.socks5 import Socks5Gateway
from ginnel.stack import Stack
from ginnel.stack.sockets import DatagramSocket, Flow

log = logging.getLogger("ginnel")


@click.command(name="lend", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--node",
    metavar="PATH",
    type=click.Path(readable=False, path_type=Path),
    default=TUN,
    show_default=True,
    help="What the program opens. Any other path than /dev/net/tun is attached when it is opened, as on the BSDs.",
)
@click.option("--socks", metavar="[ADDR:]PORT|unix:PATH", help="Serve SOCKS5 into what the program connects to.")
@click.option(
    "--dns", metavar="ADDR", multiple=True, help="A DNS server on the other side, for the names SOCKS is given."
)
@click.option(
    "--address",
    "addresses",
    metavar="ADDR/LEN",
    multiple=True,
    help="For a program that finds its device configured: of each from the start, which is up. May be given again.",
)
@click.option("--device", "name", metavar="NAME", help="What others find the device by, see `ginnel device`.")
@click.option("--capture", metavar="FILE.pcapng", type=click.Path(path_type=Path), help="Write all packets there.")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- PROGRAM [ARG]...")
@click.pass_context
def command(
    ctx: click.Context,
    node: Path,
    socks: str | None,
    dns: tuple[str, ...],
    addresses: tuple[str, ...],
    name: str | None,
    capture: Path | None,
    program: tuple[str, ...],
) -> int:
    """Run PROGRAM on a TUN or TAP device in user space, without root.

    The program sees /dev/net/tun, and configures the device as it always does; the other end is a network stack,
    which --socks leads into. Nothing of this machine's network changes. Ends when the program does, with its exit
    status; 125 to 127 when it could not be lent to, run, or found.
    """
    _set_up_logging(ctx.obj or 0)
    if not node.is_absolute():
        raise ConfigError(f"--node {node} is no absolute path", option="node", instead=f"write {node.absolute()}")
    _refuse_background(program)
    for server in dns:
        _check_server(server)
    given = tuple(map(_parse_address, addresses))
    twice = next((own.interface for own in given if given.count(own) > 1), None)
    if twice is not None:
        raise ConfigError(f"--address {twice} is given twice", option="address")
    if not _is_somewhere(program[0]):
        return _fail(f"{program[0]}: {os.strerror(errno.ENOENT)}", 127)
    plan = Plan(program, Node(node), _gateway(socks), tuple(dns), given, name, capture)
    # Should the process die that looks after the program's orphans, they are ours to end.
    become_subreaper()
    try:
        return asyncio.run(_lend(plan))
    except GinnelError as error:
        return _fail(str(error), 125)
    except OSError as error:
        # Of the program: everything else is one of ours.
        if error.filename != program[0]:
            raise
        return _fail(f"{program[0]}: {error.strerror}", 127 if error.errno == errno.ENOENT else 126)
    finally:
        kill_orphans()


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asks for, parsed."""

    program: tuple[str, ...]
    node: Node
    socks: Address | None
    dns: tuple[str, ...]
    addresses: tuple[InterfaceAddress, ...]
    name: str | None
    capture: Path | None

    def configure(self, interface: Interface) -> None:
        """As whoever makes a kernel's device for a program does."""
        for address in self.addresses:
            interface.add_address(address)
        if self.addresses:
            interface.set_up(True)


async def _lend(plan: Plan) -> int:
    async with contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(contextlib.closing(Listener(plan.socks))) if plan.socks else None
        interfaces = Interfaces(first_index=_FIRST_INDEX)
        interfaces.on_create.append(plan.configure)
        seen = await stack.enter_async_context(Seen(interfaces, plan.program[0], plan.name, plan.capture))
        stack.push_async_callback(interfaces.aclose)
        if listener is not None:
            stack.push_async_callback(Socks5Gateway(_Outlet(interfaces, plan.dns), listener).aclose)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        _say(_openness(plan, listener))
        program = await stack.enter_async_context(LentProgram(plan.program, interfaces, plan.node, signal_mask=before))
        # A deleted device ends its owner. Most programs see their descriptor end; OpenVPN reads on and on.
        seen.on_delete = lambda: asyncio.get_running_loop().call_later(GRACE, program.send_signal, signal.SIGTERM)
        _pass_signals_on(program)
        status = await program.wait()
    if program.left_behind:
        how = _FOREGROUND.get(Path(plan.program[0]).name, "a lent program has to stay in the foreground")
        left = f"left {program.left_behind} of its processes behind, which were ended too"
        _say(f"{plan.program[0]} ended and {left}: {how}")
    return status


class _Outlet:
    """The stack of the interface that is up, whichever it is at the time: programs make theirs anew."""

    def __init__(self, interfaces: Interfaces, dns: tuple[str, ...]) -> None:
        self._interfaces = interfaces
        self._dns = dns
        self._stacks: WeakKeyDictionary[Flow, Stack] = WeakKeyDictionary()

    async def connect_flow(self, host: str, port: int, *, timeout: float | None = None) -> Flow:
        stack = self._stack()
        flow = await stack.connect_flow(host, port, timeout=timeout)
        self._stacks[flow] = stack
        return flow

    async def open_datagram(self) -> DatagramSocket:
        return await self._stack().open_datagram()

    def attach(self, flow: Flow, sock: socket.socket) -> None:
        self._stacks[flow].attach(flow, sock)

    def abort(self, flow: Flow) -> None:
        self._stacks[flow].abort(flow)

    def _stack(self) -> Stack:
        interface = next((own for own in self._interfaces if own.up and own.addresses), None)
        if interface is None:
            raise OSError(errno.ENETUNREACH, "the program has set no interface up yet")
        # Without a server a name is not resolved at all: asking this machine's would tell it what is looked for.
        interface.stack.set_dns(self._dns)
        return interface.stack


def _pass_signals_on(program: LentProgram) -> None:
    """What we are sent is meant for the program, and how it ends is ours to follow.

    What comes from the terminal has reached the program already, which is in the same process group, now that it is
    there.
    """

    def wait() -> None:
        while True:
            received = signal.sigwaitinfo(_PASSED_ON)
            if received.si_code != _SI_KERNEL:
                program.send_signal(received.si_signo)

    threading.Thread(target=wait, name="signals", daemon=True).start()


def _openness(plan: Plan, listener: Listener | None) -> str:
    lent = f"{plan.node.path} is lent to {plan.program[0]}"
    if listener is None:
        return lent
    if listener.address.path is not None:
        who = "for you alone"
    else:
        who = "open to every user of this machine; unix:PATH closes it"
    names = "" if plan.dns else "; addresses only: --dns ADDR names a server on the other side that resolves names"
    return f"{lent}; SOCKS5 on {listener.address} ({who}){names}"


def _parse_address(text: str) -> InterfaceAddress:
    try:
        return parse_address(text)
    except ValueError as error:
        raise ConfigError(f"--address: {error}", option="address") from None


def _check_server(text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"--dns {text} is no address", option="dns", instead="write an IP address") from None


def _gateway(socks: str | None) -> Address | None:
    if socks is None:
        return None
    address = Address.parse(socks)
    if not address.is_private:
        raise ConfigError(
            f"SOCKS on {socks} would be open to everyone who reaches this machine",
            instead="listen on loopback, or on unix:PATH",
        )
    return address


def _is_somewhere(program: str) -> bool:
    """What has no path is looked for, and nothing is lent to what is not there; of a path the system says more."""
    return "/" in program or any(os.path.lexists(Path(folder) / program) for folder in os.get_exec_path())


def _refuse_background(program: tuple[str, ...]) -> None:
    """OpenVPN with --daemon would leave the supervisor's sight."""
    if Path(program[0]).name == "openvpn" and "--daemon" in program:
        raise ConfigError("a lent program has to stay in the foreground", option="daemon", instead="leave --daemon out")


def _say(text: str) -> None:
    print(f"ginnel: {text}", file=sys.stderr, flush=True)


def _fail(message: str, status: int) -> int:
    _say(message)
    return status


def _set_up_logging(verbose: int) -> None:
    level = (logging.WARNING, logging.DEBUG)[min(verbose, 1)]
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


# Seconds that a program has to end by itself when its device is deleted.
GRACE = 2.0
# How a program stays in the foreground.
_FOREGROUND = {"openvpn": "leave `daemon` out of its file", "wireguard-go": "add -f"}
# Far from the system's own, so that a number never means two interfaces.
_FIRST_INDEX = 1 << 20
_PASSED_ON = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGWINCH,
)
# The terminal's, not some process's.
_SI_KERNEL = 0x80
