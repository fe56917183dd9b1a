"""What monitors of stock OpenVPN read, of a stock client at a stock server and at ours."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.harness.client import wait_until
from tests.harness.network import Network
from tests.harness.process import run
from tests.harness.profile import Profile
from tests.harness.server import StockClient, StockServer
from tests.interop.test_serve_cli import connected, serving

# What a field looks like, so that those of two servers can be compared; the first that fits.
SHAPES = {
    "time": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d",
    "place": r"[\d.]+:\d+",
    "address": r"[\d.]+\.[\d.]+",
    "address6": r"[0-9a-f]*:[0-9a-f:]+",
    "seconds": r"1\d{9}",
    "number": r"\d+",
}


def test_the_status_file_is_stocks_field_by_field(network: Network, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "state/openvpn-status.log"
    profile = Profile(server_options=(f"status {theirs} 1", "status-version 3"))
    with StockServer(network, profile), StockClient(network, profile):
        wait_until(lambda: "\nROUTING_TABLE\t" in _read(theirs), 20, lambda: _read(theirs))
        stocks = _read(theirs)
    with serving(network, tmp_path):
        run([sys.executable, "-m", "ginnel", "user", "add", "alice", "--dir", ours.parent, "-o", tmp_path / "file"])
        with connected(network, tmp_path / "file"):
            wait_until(lambda: "\nROUTING_TABLE\t" in _read(ours), 20, lambda: _read(ours))
            assert _shape(_read(ours)) == _shape(stocks)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _shape(status: str) -> list[list[str]]:
    lines = [line.split("\t") for line in status.splitlines()]
    # The program's name, and the user's.
    lines[0][1:] = [""]
    names = next(line[1] for line in lines if line[0] == "CLIENT_LIST")
    shape = [["name" if field == names else _kind(field) for field in line] for line in lines]
    # In the order of a hash of stock's.
    routes = [place for place, line in enumerate(shape) if line[0] == "ROUTING_TABLE"]
    for place, line in zip(routes, sorted(shape[place] for place in routes), strict=True):
        shape[place] = line
    return shape


def _kind(field: str) -> str:
    return next((kind for kind, pattern in SHAPES.items() if re.fullmatch(pattern, field)), field)
