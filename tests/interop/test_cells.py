"""The cells of the table, each against stock OpenVPN, and the page that is made of them."""

from __future__ import annotations

import re

import pytest

from ginnel.errors import UnreachableError
from tests.harness import office
from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.profile import LOGIN
from tests.harness.server import StockServer
from tests.harness.tun_client import Machine
from tests.interop.cells import CELLS, Cell
from tests.interop.page import PAGE, ROWS, page, runs

IN_USER_SPACE = [cell for cell in CELLS if not cell.machine]
ON_THE_MACHINE = [cell for cell in CELLS if cell.machine]


@pytest.mark.parametrize("cell", IN_USER_SPACE, ids=[cell.name for cell in IN_USER_SPACE])
def test_cell(network: Network, ordinary_env: Environment, cell: Cell) -> None:
    profile = cell.make_profile()
    text = profile.client_file()
    for option in cell.without.split():
        text = re.sub(rf"^(<{option}>\n.*?^</{option}>|{option}( .*?)?$)\n", "", text, count=1, flags=re.M | re.S)
    with (
        StockServer(network, profile) as server,
        GinnelClient(
            network,
            ordinary_env,
            text,
            *(["--timeout", "2"] if cell.fails and cell.fails[0] is UnreachableError else []),
            login=LOGIN if cell.login else None,
            files=cell.files(),
        ) as client,
    ):
        if cell.fails is not None:
            status, line = client.fail()
            assert status == cell.fails[0].exit_status, line  # type: ignore[attr-defined]
            assert cell.fails[1] in line
            return
        up = client.wait_up()
        for key, value in cell.up.items():
            assert str(up[key]).startswith(value), up
        assert client.curl(cell.page) == office.PAGE.decode()
        assert server.wait_log(cell.server)
        client.stop()


@pytest.mark.parametrize("cell", ON_THE_MACHINE, ids=[cell.name for cell in ON_THE_MACHINE])
def test_cell_on_the_machine(network: Network, machine: Machine, cell: Cell) -> None:
    profile = cell.make_profile()
    with StockServer(network, profile), machine.start(profile, "--dev", "tun0") as client:
        client.wait_next("up")
        for command, shown in cell.machine:
            said = client.run(*command.split())
            assert re.fullmatch(shown, said.strip(), re.S), said
        assert client.run("curl", "--silent", "--show-error", "--max-time", "30", cell.page) == office.PAGE.decode()
        client.stop()


def test_the_page_is_the_tables() -> None:
    assert PAGE.read_text() == page(), "run: make interop"


def test_what_the_page_names_is_run() -> None:
    assert [row.test for row in ROWS if not runs(row.test)] == []
