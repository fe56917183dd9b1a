"""How many threads a data plane is given, and a server's handshakes.

A plane's peers are spread over lanes. Each lane has one thread, or two that are apart, one for each way: they carry
more where there are processors for them, and where there are not one does the same with less work (docs/benchmarks.md).
"""

from __future__ import annotations

import os
from typing import TypedDict

from ginnel._core import processors
from ginnel.errors import ConfigError


class Threads(TypedDict):
    """What :class:`ginnel._core.DataPlane` takes."""

    lanes: int
    apart: bool


def for_one_peer() -> Threads:
    """Raises ConfigError if GINNEL_THREADS is no number."""
    return {"lanes": 1, "apart": _allowed() >= ENOUGH}


def for_many_peers(*, queues: bool) -> Threads:
    """``queues``: the device has one for each lane. Otherwise one lane reads it and hands the others what is theirs,
    which takes a sixth of their speed where processors are short.

    Raises ConfigError if GINNEL_THREADS is no number.
    """
    allowed = _allowed()
    if allowed < ENOUGH:
        return {"lanes": allowed if queues else 1, "apart": False}
    return {"lanes": min(allowed // 2, MOST_LANES), "apart": True}


def for_handshakes() -> int:
    """How many compute TLS beside Python's own: none where there is one processor, as they would wait for each other.

    Raises ConfigError if GINNEL_THREADS is no number.
    """
    return min(MOST_FOR_HANDSHAKES, _allowed() - 1)


def _allowed() -> int:
    """What the environment says, or else as many as there are processors for this process."""
    text = os.environ.get("GINNEL_THREADS")
    if text is None:
        return processors()
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"GINNEL_THREADS is '{text}'", option="GINNEL_THREADS", instead="write a number from 1")
    return int(text)


#: As many threads as it takes for two that are apart: the others are Python's and the stack's, or other programs'.
ENOUGH = 4
MOST_LANES = 8
#: All else of a handshake is Python's, on one thread: more than these would never be busy.
MOST_FOR_HANDSHAKES = 2
