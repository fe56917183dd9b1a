"""What a server changes of what it pushed, and whom it can tell."""

from __future__ import annotations

from ginnel.openvpn import events
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.push_emit import emit_update
from tests.sessions import PUSH, Case, OldClientPolicy, establish, make_pair


def update(pair: Case, *options: str) -> PushReply | None:
    """What the client has after that."""
    assert pair.server_policy.update(PushReply.parse(options))
    pair.run_for(1)
    found = [event for event in pair.client.events if isinstance(event, events.Reconfigured)]
    return found[-1].push if found else None


def test_what_is_added_and_taken_away_reaches_the_client() -> None:
    pair = establish(make_pair())
    changed = update(pair, *PUSH[:2], "route 10.99.0.0 255.255.0.0", "dhcp-option DNS 9.9.9.9")
    assert changed is not None
    assert [str(route.network) for route in changed.routes] == ["10.99.0.0/16"]
    assert list(map(str, changed.dhcp_dns)) == ["9.9.9.9"]
    assert changed.ifconfig == PushReply.parse(PUSH).ifconfig
    without = update(pair, *PUSH[:2])
    assert without is not None
    assert (without.routes, without.dhcp_dns) == ((), ())
    assert pair.client.closed is None


def test_nothing_is_sent_where_nothing_changed() -> None:
    pair = establish(make_pair())
    assert update(pair, *PUSH) is None


def test_a_long_update_arrives_in_several_messages() -> None:
    pair = establish(make_pair())
    routes = [f"route 10.99.{number}.0 255.255.255.0" for number in range(200)]
    changed = update(pair, *PUSH[:2], *routes)
    assert changed is not None
    assert len(changed.routes) == 200


def test_a_client_that_did_not_announce_it_is_told_nothing() -> None:
    pair = establish(make_pair(policy=OldClientPolicy))
    assert not pair.server_policy.update(PushReply.parse(PUSH[:2]))


def test_a_changed_name_has_all_of_its_options() -> None:
    before, after = ["route a", "route b", "dns x"], ["route b", "route c"]
    assert emit_update(before, after) == ["PUSH_UPDATE,-dns,route b,route c"]
    assert emit_update(before, before) == []
