"""What options take, beyond click's own."""

from __future__ import annotations

import errno
import math
import os
from typing import Any

import click

from ginnel.device.address import check_name
from ginnel.errors import ConfigError, DeviceError


class Seconds(click.FloatRange):
    """A number of seconds. ``nan`` is in every range, for it is neither below nor above it, and is no time."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return seconds


def check_device(name: str) -> None:
    """Raises ConfigError for what ``--dev`` can't name."""
    try:
        check_name(name)
    except DeviceError as error:
        raise of_the_command_line(error) from None


def of_the_command_line(error: DeviceError) -> ConfigError:
    """What the system would call an invalid argument, as the mistake in a command line that it is there."""
    return ConfigError(str(error).removesuffix(f": {os.strerror(errno.EINVAL)}"))
