"""A network and an office, and the client's side as a machine, made once a module and gone after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.network import Network
from tests.harness.server import Office
from tests.harness.tun_client import Machine


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as network, Office(network.server):
        yield network


@pytest.fixture(scope="module")
def machine(network: Network) -> Iterator[Machine]:
    with Machine(network) as machine:
        yield machine
