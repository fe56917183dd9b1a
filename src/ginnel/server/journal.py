"""Log lines that programs can read: an event's name, and its fields as NAME=VALUE."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ginnel.openvpn.cookies import Limiter
from ginnel.openvpn.words import escape

log = logging.getLogger("ginnel.server")


def tell(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Logs an event. The record has it as ``record.event``, and the fields as ``record.fields``. Never raises: a
    handler of somebody's that fails is no reason to lose a client, or to keep one who was revoked."""
    shown = {name: value for name, value in fields.items() if value is not None}
    with contextlib.suppress(Exception):
        log.log(level, "%s", _Line(event, shown), extra={"event": event, "fields": shown})


@dataclass(frozen=True, slots=True)
class _Line:
    """The text, for those handlers that have a use for it."""

    event: str
    fields: Mapping[str, Any]

    def __str__(self) -> str:
        return " ".join([self.event, *(f"{name}={_word(value)}" for name, value in self.fields.items())])


class Rarely:
    """An event that others can cause as often as they like: told at most so many times in `PERIOD` seconds, and how
    many times it has happened (``times``) since it was told last."""

    def __init__(self, event: str, *, level: int = logging.WARNING, most: int = 1) -> None:
        self._event = event
        self._level = level
        self._limiter = Limiter(most, PERIOD)
        self._times = 0

    def tell(self, **fields: Any) -> None:
        self._times += 1
        if self._limiter.allow(time.monotonic()):
            tell(self._event, level=self._level, times=self._times if self._times > 1 else None, **fields)
            self._times = 0


class RarelyEach:
    """The same for each of many who can cause it, a user or a place: none keeps another's lines out. Of more than
    `MAX_KNOWN` those are forgotten who were told of longest ago."""

    def __init__(self, event: str, *, level: int = logging.INFO, most: int) -> None:
        self._event = event
        self._level = level
        self._most = most
        self._known: OrderedDict[str, Rarely] = OrderedDict()

    def tell(self, who: str, **fields: Any) -> None:
        rarely = self._known.setdefault(who, Rarely(self._event, level=self._level, most=self._most))
        self._known.move_to_end(who)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        rarely.tell(**fields)


def _word(value: Any) -> str:
    text = escape(str(value))
    quoted = text.replace('"', '\\"')
    return f'"{quoted}"' if " " in text or '"' in text or not text else text


PERIOD = 60.0
MAX_KNOWN = 4096
