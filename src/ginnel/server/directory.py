"""Where a server keeps its state."""

from __future__ import annotations

import os
from pathlib import Path


def state_directory(given: Path | None) -> Path:
    """The one that was given, else the user's own (XDG Base Directory Specification)."""
    if given is not None:
        return given
    base = os.environ.get("XDG_STATE_HOME", "")
    # A relative path there is to be ignored, says the specification.
    return (Path(base) if base.startswith("/") else Path.home() / ".local/state") / "ginnel"
