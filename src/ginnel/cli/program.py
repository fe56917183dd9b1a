"""The subcommands of ``ginnel``: one file each, imported when it is asked for.

Whatever goes wrong ends as one line on stderr and a status that scripts can rely on (``errors``).
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import signal
import sys
import traceback
from typing import TextIO

import click

from ginnel.errors import ConfigError, DeviceError, GinnelError


class _Commands(click.Group):
    """The subcommands, each in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _load(cmd_name) if cmd_name in _SUMMARIES else None

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


def run(arguments: list[str]) -> int:
    """Carries out a command line and returns its exit status."""
    verbose = 0
    try:
        with cli.make_context("ginnel", list(arguments)) as ctx:
            try:
                status = cli.invoke(ctx)
            finally:
                verbose = ctx.obj or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.Abort:
        return _fail("there was no answer; nothing was changed", ConfigError.exit_status)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return ConfigError.exit_status
    except click.UsageError as error:
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return _fail(f"{error.format_message()}{hint}", ConfigError.exit_status)
    except click.ClickException as error:
        return _fail(error.format_message(), ConfigError.exit_status)
    except GinnelError as error:
        if verbose:
            traceback.print_exc()
        return _fail(str(error), error.exit_status)
    except BrokenPipeError:
        # Who reads has seen enough: as it ends any program that doesn't ask.
        _silence(sys.stdout)
        return 128 + signal.SIGPIPE
    except OSError as error:
        # Of what nobody has foreseen: a disk that takes no more of what is printed, mostly.
        if verbose:
            traceback.print_exc()
        where = error.filename or "this system"
        return _fail(f"{where}: {error.strerror or error}", DeviceError.exit_status)
    except (MemoryError, RuntimeError) as error:
        # Python's own words for a thread that the system refuses.
        if isinstance(error, RuntimeError) and str(error) != "can't start new thread":
            raise
        if verbose:
            traceback.print_exc()
        what = "memory" if isinstance(error, MemoryError) else "room for another thread"
        return _fail(f"this system has no {what} left; see `ulimit -a`", DeviceError.exit_status)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    for stream, line in ((sys.stdout, ""), (sys.stderr, f"ginnel: {message}\n")):
        try:
            if stream is not None:
                stream.write(line)
                stream.flush()
        except OSError:
            # A full disk, or nobody who reads: the status stands.
            _silence(stream)
    return status


def _silence(stream: TextIO) -> None:
    """Python flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@functools.cache
def _load(name: str) -> click.Command:
    command = importlib.import_module(f"ginnel.cli.{name}").command
    assert isinstance(command, click.Command)
    return _complete(command)


def _complete(command: click.Command) -> click.Command:
    """The same command, which takes -v also after its name, and is listed with a whole sentence."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            # Click cuts it at the line's end.
            each.short_help = each.short_help or _first_sentence(each.help or "")
            _complete(each)
    else:
        command.params.append(
            click.Option(["-v", "--verbose"], count=True, hidden=True, expose_value=False, callback=_add_verbose)
        )
    return command


def _first_sentence(text: str) -> str:
    return " ".join(re.split(r"(?<=\.)\s", text, maxsplit=1)[0].split())


def _add_verbose(ctx: click.Context, parameter: click.Parameter, count: int) -> None:
    root = ctx.find_root()
    ctx.obj = root.obj = (root.obj or 0) + count


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
