"""Log lines that programs can read: an event's name, and its fields as NAME=VALUE."""

from __future__ import annotations

import logging
from typing import Any

from ginnel.openvpn.words import escape

log = logging.getLogger("ginnel.server")


def tell(event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Logs an event. The record has it as ``record.event``, and the fields as ``record.fields``."""
    shown = {name: value for name, value in fields.items() if value is not None}
    text = " ".join([event, *(f"{name}={_word(value)}" for name, value in shown.items())])
    log.log(level, "%s", text, extra={"event": event, "fields": shown})


def _word(value: Any) -> str:
    text = escape(str(value))
    quoted = text.replace('"', '\\"')
    return f'"{quoted}"' if " " in text or '"' in text or not text else text
