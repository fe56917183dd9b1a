"""What all tests share. Those in ``interop`` and those with a ``namespace`` take root: for network namespaces."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from tests.harness.environment import Environment, ordinary_environment

# How long an example takes says how busy the machine is.
settings.register_profile("ginnel", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ginnel")

# A shell's job in the background ignores SIGINT, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ordinary_env() -> Environment:
    """ginnel from its wheel, where a user without any right can run it."""
    return ordinary_environment()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if "interop" in item.path.parts or "namespace" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="makes network namespaces, which takes root"))
