"""Stock OpenVPN 2.6 clients at our server with a token in the place of a password: theirs, an old one, another's."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from tests.harness.client import wait_until
from tests.harness.network import Network
from tests.harness.people import People
from tests.interop.test_serve import UP, echo, event, serving, stock_client

TOLD = ">PASSWORD:Auth-Token:"
REFUSED = "AUTH_FAILED,SESSION: token expired"


def test_a_token_counts_until_the_next_one_and_for_its_user_alone(network: Network) -> None:
    people = People()
    people.add("alice", "secret")
    people.add("bob", "terces")
    with serving(network, people, token_lifetime=600, reneg_sec=60) as server:
        used, latest = _tokens(network, people)
        event(server, "disconnected")
        # When she is gone, from another client: as with stock, a token is no session's.
        with stock_client(network, people, "alice", password=latest) as client:
            client.wait_line(UP, 30)
            echo(network)
        for name, token, reason in [
            ("alice", used, "the token was used before, and has been replaced"),
            ("bob", latest, "the token is not valid or no longer, or the password was changed since"),
            ("alice", latest[:-4] + "AAAA", "the token is not valid or no longer, or the password was changed since"),
        ]:
            seen = len(server.out)
            with stock_client(network, people, name, password=token) as client:
                client.wait_line(REFUSED, 30)
            assert server.out.wait(lambda line, reason=reason: "refused" in line and reason in line, 10, seen), token


def test_a_token_whose_lifetime_is_over_makes_way_for_the_password(network: Network) -> None:
    people = People()
    people.add("alice", "secret")
    with serving(network, people, token_lifetime=3, reneg_sec=2) as server:
        with stock_client(network, people, "alice") as client:
            client.wait_line(UP, 30)
            seen = len(client.out)
            client.wait_line(REFUSED, 30)
            client.wait_line(UP, 30, seen)
        assert event(server, "refused")["reason"].startswith("the token is not valid or no longer")


def _tokens(network: Network, people: People) -> tuple[str, str]:
    """Two that a client of alice's gets, one after the other: at its first login, and for that at its second."""
    with tempfile.TemporaryDirectory(prefix="ginnel-tokens-") as made:
        place = Path(made) / "management"
        with stock_client(network, people, "alice", f"management {place} unix", "management-hold") as client:
            wait_until(place.exists, 10, lambda: client)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(30)
                sock.connect(str(place))
                lines = sock.makefile()
                # It waits, so that nothing it tells is missed.
                sock.sendall(b"hold off\nhold release\n")
                first = next(line for line in lines if line.startswith(TOLD))
                client.wait_line(UP, 30)
                sock.sendall(b"signal SIGUSR1\n")
                second = next(line for line in lines if line.startswith(TOLD) and line != first)
                client.wait_line("SIGUSR1", 10)
                lines.close()
    return first.removeprefix(TOLD).rstrip(), second.removeprefix(TOLD).rstrip()
