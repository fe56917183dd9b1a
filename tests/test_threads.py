"""How many threads a data plane is given."""

import os
import subprocess
import sys

import pytest

from ginnel.errors import ConfigError
from ginnel.threads import for_handshakes, for_many_peers, for_one_peer

CODE = "from ginnel.threads import *; print(for_one_peer(), for_many_peers(queues=True))"


def test_they_are_as_many_as_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GINNEL_THREADS", "1")
    assert for_one_peer() == for_many_peers(queues=True) == {"lanes": 1, "apart": False}
    assert for_handshakes() == 0
    monkeypatch.setenv("GINNEL_THREADS", "2")
    assert for_handshakes() == 1
    monkeypatch.setenv("GINNEL_THREADS", "3")
    assert for_handshakes() == 2
    assert for_one_peer() == for_many_peers(queues=False) == {"lanes": 1, "apart": False}
    assert for_many_peers(queues=True) == {"lanes": 3, "apart": False}
    monkeypatch.setenv("GINNEL_THREADS", "8")
    assert for_one_peer() == {"lanes": 1, "apart": True}
    assert for_many_peers(queues=False) == for_many_peers(queues=True) == {"lanes": 4, "apart": True}
    monkeypatch.setenv("GINNEL_THREADS", "512")
    assert for_many_peers(queues=True)["lanes"] == 8


def test_only_processors_that_it_may_use_count() -> None:
    one = {"lanes": 1, "apart": False}
    environment = {name: value for name, value in os.environ.items() if name != "GINNEL_THREADS"}
    command = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), sys.executable, "-c", CODE]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said == f"{one} {one}\n"


@pytest.mark.parametrize("text", ["", "0", "-1", "many", "1.5"])
def test_what_is_no_number_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GINNEL_THREADS", text)
    with pytest.raises(ConfigError, match="write a number from 1"):
        for_one_peer()
