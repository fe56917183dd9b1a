"""The ``ginnel`` command: one file a subcommand, imported when it is asked for.

Whatever goes wrong ends as one line on stderr and a status that scripts can rely on (``errors``).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType
from typing import TextIO

import click

from ginnel.errors import ConfigError, DeviceError, GinnelError


class _Commands(click.Group):
    """The subcommands, each in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _SUMMARIES:
            return None
        command = importlib.import_module(f"ginnel.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_SUMMARIES.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ginnel", message="ginnel %(version)s")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; traces with errors. Twice: everything.")
@click.pass_context
def cli(ctx: click.Context, verbose: int) -> None:
    """A VPN from end to end in Python, in user space, without root."""
    ctx.obj = verbose


def main() -> None:
    """The program ``ginnel``."""
    # From here on a signal is a wish to end, also while modules are still being imported.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    try:
        status = cli.main(arguments, prog_name="ginnel", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Abort:
        return 0
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return _fail(f"{error.format_message()}{hint}", ConfigError.exit_status)
    except click.ClickException as error:
        return _fail(error.format_message(), ConfigError.exit_status)
    except GinnelError as error:
        if _is_verbose(arguments):
            raise
        return _fail(str(error), error.exit_status)
    except OSError as error:
        # Of what nobody has foreseen: a disk that takes no more of what is printed, mostly.
        if _is_verbose(arguments):
            raise
        if sys.stdout is not None:
            _silence(sys.stdout)
        where = error.filename or "this system"
        return _fail(f"{where}: {error.strerror or error}", DeviceError.exit_status)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    try:
        print(f"ginnel: {message}", file=sys.stderr, flush=True)
    except OSError:
        # A full disk, or nobody who reads: the status stands.
        _silence(sys.stderr)
    return status


def _silence(stream: TextIO) -> None:
    """Python flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_verbose(arguments: list[str]) -> bool:
    return bool(arguments) and arguments[0] in ("-v", "-vv", "--verbose")


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


_SUMMARIES = {
    "bench": "Compare the speed of tunnels on this machine.",
    "check": "Say what will become of a client file, option by option.",
    "connect": "Connect to an OpenVPN server, in user space.",
    "device": "Make, list, show, set and delete devices with a name.",
    "echo": "Send datagrams through a device and have them sent back.",
    "ping": "Send echo requests through a device.",
    "kick": "End a user's sessions at a running server.",
    "lend": "Run a program on a TUN device in user space.",
    "pong": "Answer echo requests at a device's application end.",
    "serve": "Serve OpenVPN clients, without root.",
    "status": "Show the clients of a running server.",
    "user": "Say who may connect to the server, and make their files.",
}
