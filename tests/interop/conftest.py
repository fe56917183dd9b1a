"""A network and an office, made once a module and gone after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.network import Network
from tests.harness.server import Office


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as network, Office(network.server):
        yield network
