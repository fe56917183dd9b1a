"""A server's endpoint: strangers, cookies, limits, and many sessions at once."""

from dataclasses import replace
from typing import Any

import pytest

from ginnel.openvpn.client import ClientPolicy, ClientSettings
from ginnel.openvpn.endpoint import Limits
from ginnel.openvpn.events import Path
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.server import ServerPolicy
from ginnel.testing import UNIX_TIME, Crowd, NoisyWire, Side, WrapName, matching_settings

PUSH = PushReply.parse(["ifconfig 10.8.0.2 255.255.255.0", "topology subnet"])
WRAPS: list[WrapName] = ["none", "tls-auth", "tls-crypt", "tls-crypt-v2"]
HOME: Path = (0, "198.51.100.1", 4711)


class House(Crowd):
    """A crowd whose clients' settings are at hand."""

    client: ClientSettings
    policies: dict[int, ServerPolicy]

    def enter(self, path: Path | None = None) -> Side:
        return self.join(ClientPolicy(self.client, unix_time=UNIX_TIME), path)

    def count(self, *names: str) -> tuple[int, ...]:
        statistics = self.endpoint.statistics()
        return tuple(statistics[name] for name in names)


def make_house(
    wrap: WrapName = "tls-crypt", wire: NoisyWire | None = None, *, limits: Limits | None = None, **server: Any
) -> House:
    client, settings = matching_settings(wrap)
    settings = replace(settings, **server)
    policies = {}

    def make_policy(*, peer: int, path: Path, unix_time: float) -> ServerPolicy:
        policies[peer] = ServerPolicy(settings, PUSH, unix_time=unix_time, peer=peer, peer_id=peer)
        return policies[peer]

    house = House(settings, make_policy, wire, limits=limits)
    house.client = client
    house.policies = policies
    return house


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_client_gets_in_without_anything_being_kept_of_its_first_packet(wrap: WrapName) -> None:
    house = make_house(wrap)
    side = house.enter()
    house.run_for(0.03)
    assert house.count("answered", "created", "sessions") == (1, 0, 0)
    house.run_until(lambda: side.established, 5)
    assert house.count("created", "sessions", "negotiating") == (1, 1, 0)
    assert side.session.statistics()["replayed"] == 0
