"""Who is let in: tokens, second logins, and what a store that fails means."""

from __future__ import annotations

import asyncio
import errno
import tempfile
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from ginnel.errors import AuthError, ConfigError
from ginnel.openvpn.auth_token import AuthTokens
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.server import ClientLogin, Refusal, Verdict
from ginnel.server import Client, ServerConfig
from ginnel.server.admission import Admission
from ginnel.server.clients import Clients
from tests.harness.people import People
from tests.harness.process import no_descriptors

# A program that decides later, with 1 or 0.
DEFERRED = '(sleep 0.1; printf {} > "$auth_control_file") & exit 2'


class House:
    """An admission, and what it says."""

    def __init__(self, **config: Any) -> None:
        self.people = People()
        self.people.add("alice", "secret")
        self.people.add("bob")
        self.clients = Clients()
        self.displaced: list[str] = []
        self.verdicts: asyncio.Queue[Verdict] = asyncio.Queue()
        self.admission = Admission(
            ServerConfig(**config),
            self.people,
            self.clients,
            is_tcp=lambda number: False,
            displace=lambda name, peer: self.displaced.append(name),
            count=lambda peer: None,
            decide=lambda peer, verdict: self.verdicts.put_nowait(verdict),
            inform=lambda peer, text: None,
        )

    def login(self, name: str, peer: int = 0, password: str = "", **changes: Any) -> ClientLogin:
        serial = self.people.users[name].serial
        path = (0, f"192.0.2.{peer}", 4000 + peer)
        username = name if password else ""
        return replace(ClientLogin(peer, path, name, serial, username, password, {}, again=False), **changes)

    async def ask(self, login: ClientLogin) -> Verdict:
        verdict = self.admission.gate(login)
        return await asyncio.wait_for(self.verdicts.get(), 20) if verdict is None else verdict

    async def enter(self, login: ClientLogin) -> PushReply:
        verdict = await self.ask(login)
        assert isinstance(verdict, PushReply), verdict
        self.clients[login.peer].session = 1
        return verdict


async def test_a_token_stands_in_for_the_password_and_an_older_one_is_used_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House()
    began = time.monotonic()
    tokens = []
    first = await house.enter(house.login("alice", 1, "secret"))
    assert first.auth_token is not None
    tokens.append(first.auth_token)
    for step in (1, 2):
        monkeypatch.setattr(time, "monotonic", lambda step=step: began + 1800 * step)
        # The wall clock is set back, and forward.
        monkeypatch.setattr(time, "time", lambda step=step: 1e9 * step)
        reply = await house.ask(house.login("alice", 1, tokens[-1], again=True))
        assert isinstance(reply, PushReply)
        assert reply.auth_token is not None
        tokens.append(reply.auth_token)
    assert len(set(tokens)) == 3
    assert isinstance(await house.ask(house.login("alice", 1, tokens[1], again=True)), PushReply)
    stolen = await house.ask(house.login("alice", 2, tokens[0]))
    assert stolen == Refusal("SESSION: token expired")
    assert "used before" in caplog.text
    assert tokens[0] not in caplog.text


@pytest.mark.parametrize("wrong", ["another user's", "another server's", "too old"])
async def test_tokens_that_are_refused(wrong: str) -> None:
    house = House()
    house.people.add("carol", "other")
    key = bytes(32) if wrong == "another server's" else house.people.identity.token_key
    made = time.time() - (3 * 3600 if wrong == "too old" else 0)
    whose = "carol" if wrong == "another user's" else "alice"
    token = AuthTokens(key, bytes).first(f"{whose}\0alice\0000.0", made)
    assert await house.ask(house.login("alice", 1, token)) == Refusal("SESSION: token expired")


async def test_a_token_of_before_the_password_was_changed_counts_no_more(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    first = await house.enter(house.login("alice", 1, "secret"))
    alice = house.people.users["alice"]
    # By a clock that goes wrong.
    alice.password, alice.password_since = "new", 5.0
    assert first.auth_token is not None
    for again in (True, False):
        refusal = await house.ask(house.login("alice", 1, first.auth_token, again=again))
        assert refusal == Refusal("SESSION: token expired")
    assert "the password was changed" in caplog.text


async def test_a_token_of_now_counts(caplog: pytest.LogCaptureFixture) -> None:
    """As the ones above are made, but for what is wrong with them."""
    house = House()
    token = AuthTokens(house.people.identity.token_key, bytes).first("alice\0alice\0000.0", time.time())
    assert isinstance(await house.ask(house.login("alice", 1, token)), PushReply)


async def test_tokens_outlive_the_server_and_those_that_were_replaced_do_not() -> None:
    house = House()
    first = await house.enter(house.login("alice", 1, "secret"))
    assert first.auth_token is not None
    house.admission.forget(1)
    second = await house.enter(house.login("alice", 1, first.auth_token))
    assert second.auth_token is not None
    house.admission.forget(1)
    reply = await house.enter(house.login("alice", 1, second.auth_token))
    after = House()
    after.people = house.people
    after.admission = Admission(
        ServerConfig(),
        house.people,
        Clients(),
        is_tcp=lambda number: False,
        displace=lambda name, peer: None,
        count=lambda peer: None,
        decide=lambda peer, verdict: None,
        inform=lambda peer, text: None,
    )
    assert reply.auth_token is not None
    assert isinstance(after.admission.gate(house.login("alice", 1, first.auth_token)), Refusal)
    assert isinstance(after.admission.gate(house.login("alice", 1, reply.auth_token)), PushReply)


async def test_a_fixed_address_is_kept_for_its_user(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    house.people.add("carol")
    carol = house.people.users["carol"]
    await house.enter(house.login("bob", 1))
    carol.address = house.clients[1].address
    told = "another client still has the address that is fixed for this user"
    assert await house.ask(house.login("carol", 2)) == Refusal(told, backoff=30)
    assert "bob has an address that is fixed for carol" in caplog.text
    house.admission.forget(1)
    await house.enter(house.login("bob", 3))
    assert house.clients[3].address != carol.address
    await house.enter(house.login("carol", 4))
    assert house.clients[4].address == carol.address
    carol.address = IPv4Address("192.0.2.1")
    assert isinstance(await house.ask(house.login("carol", 4)), Refusal)
    assert "192.0.2.1, which is fixed for carol, is none of 10.8.0.0/24's" in caplog.text


async def test_a_second_login_is_refused_while_the_first_is_alive_elsewhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House(keepalive=(10, 60))
    await house.enter(house.login("bob", 1))
    refusal = await house.ask(house.login("bob", 2))
    assert refusal == Refusal("already logged in elsewhere", backoff=15)
    assert "bob is logged in already, from 192.0.2.1:4001" in caplog.text
    assert house.displaced == ["bob"]
    # Nothing is heard of the first any longer.
    house.clients[1].heard -= 16
    await house.enter(house.login("bob", 2))
    assert house.displaced == ["bob", "bob"]


@pytest.mark.parametrize("config", [{"takeover": True}, {"duplicate_cn": True}])
async def test_a_second_login_is_let_in_where_that_is_configured(config: dict[str, bool]) -> None:
    house = House(**config)
    await house.enter(house.login("bob", 1))
    await house.enter(house.login("bob", 2))


async def test_who_was_told_to_go_comes_back_from_anywhere() -> None:
    house = House()
    await house.enter(house.login("bob", 1))
    house.clients[1].leaving = True
    await house.enter(house.login("bob", 2))


async def test_a_client_that_begins_anew_at_its_address_replaces_itself() -> None:
    house = House()
    await house.enter(house.login("bob", 1))
    await house.enter(house.login("bob", 2, path=(0, "192.0.2.1", 999)))


async def test_who_is_revoked_while_others_are_asked_stays_out() -> None:
    house = House()

    async def authenticate(login: ClientLogin) -> None:
        house.people.revoke("alice")

    house.admission.use(replace(ServerConfig(), authenticate=authenticate))
    assert await house.ask(house.login("alice", 1, "secret")) == Refusal("the certificate is revoked")
    assert house.clients == {}


async def test_a_user_of_several_sessions_is_found_by_name_while_there_is_one() -> None:
    house = House(duplicate_cn=True)
    for peer, name in enumerate(("bob", "alice", "bob")):
        await house.enter(house.login(name, peer, "secret" if name == "alice" else ""))
    assert [client.peer for client in house.clients.named("bob")] == [0, 2]
    house.admission.forget(0)
    assert [client.peer for client in house.clients.named("bob")] == [2]
    house.admission.forget(2)
    assert house.clients.named("bob") == []
    assert list(house.clients) == [1]


async def test_what_goes_wrong_here_keeps_newcomers_waiting_and_throws_nobody_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(token_lifetime=None)
    await house.enter(house.login("alice", 1, "secret"))
    later = Refusal("try again later", backoff=30)

    async def asks() -> tuple[Verdict, Verdict]:
        again = await house.ask(house.login("alice", 1, "secret", again=True))
        return again, await house.ask(house.login("alice", 2, "secret"))

    def fail(name: str, password: str) -> bool:
        raise ConfigError("the database is locked")

    with monkeypatch.context() as broken:
        broken.setattr(house.people, "check_password", fail)
        assert await asks() == (PushReply(), later)
    gone = tmp_path / "gone"
    gone.touch(0o700)
    house.admission.use(replace(ServerConfig(), auth_program=(str(gone),)))
    gone.unlink()
    caplog.clear()
    assert await asks() == (PushReply(), later)
    assert {record.event for record in caplog.records} == {"undecided"}  # type: ignore[attr-defined]
    assert f"the program that checks logins, {gone}, does not run: No such file" in caplog.text

    async def broken_hook(login: ClientLogin) -> None:
        raise RuntimeError("the directory is down")

    house.admission.use(replace(ServerConfig(), authenticate=broken_hook))
    assert await asks() == (PushReply(), later)
    assert "nobody can decide: the directory is down" in caplog.text
    house.admission.use(replace(ServerConfig(), auth_program=("/bin/true",)))
    with no_descriptors():
        assert await asks() == (PushReply(), later)
    with monkeypatch.context() as full:
        # No folder can be made there.
        full.setattr(tempfile, "tempdir", str(gone))
        assert await asks() == (PushReply(), later)
    assert isinstance((await asks())[0], PushReply)
    house.admission.use(replace(ServerConfig(), auth_program=("/bin/false",)))
    assert await house.ask(house.login("alice", 1, "secret", again=True)) == Refusal("")


async def test_who_is_refused_after_all_has_ended_no_other_session() -> None:
    house = House()
    await house.enter(house.login("bob", 1))

    async def connected(client: Client) -> None:
        assert client.address == house.clients[1].address
        raise AuthError("not today", "not today")

    house.admission.use(replace(ServerConfig(takeover=True), connected=connected))
    assert await house.ask(house.login("bob", 2)) == Refusal("not today")
    house.admission.forget(2)
    assert house.displaced == ["bob"], "by the first of the two alone"
    house.admission.use(ServerConfig(takeover=True))
    await house.enter(house.login("alice", 3, "secret"))
    assert house.clients[3].address != house.clients[1].address
    await house.enter(house.login("bob", 4))
    assert house.clients[4].address == house.clients[1].address
    house.admission.forget(1)
    house.people.add("carol")
    await house.enter(house.login("carol", 5))
    assert house.clients[5].address != house.clients[4].address


async def test_passwords_can_not_be_guessed_one_after_the_other(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House()
    house.people.add("carol", "other")
    for number in range(10):
        assert await house.ask(house.login("alice", number, f"guess {number}")) == Refusal(
            "wrong user name or password"
        )
    wait = Refusal("too many wrong passwords; try again later")
    assert await house.ask(house.login("alice", 11, "secret")) == wait
    assert "too many wrong passwords for alice" in caplog.text
    await house.enter(house.login("carol", 12, "other"))
    for number in range(21):
        house.people.add(f"u{number}", "word")
        refusal = await house.ask(house.login(f"u{number}", 13, "guess"))
        assert (refusal == wait) == (number >= 20)
    await house.enter(house.login("u20", 14, "word"))
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 301)
    await house.enter(house.login("alice", 15, "secret"))


async def test_passwords_that_come_at_a_time_are_no_more_guesses_and_right_ones_none() -> None:
    house = House(client_certificate=False)
    for number in range(30):
        house.people.add(f"u{number}", "word")
    guesses = [replace(house.login("alice", number, f"guess {number}"), name="") for number in range(60)]
    assert {house.admission.gate(login) for login in guesses} == {None}
    verdicts = [await asyncio.wait_for(house.verdicts.get(), 20) for _ in guesses]
    assert verdicts.count(Refusal("wrong user name or password")) == 10
    place = (0, "198.51.100.1", 4000)
    right = [replace(house.login(f"u{number}", 100 + number, "word"), name="", path=place) for number in range(30)]
    assert {house.admission.gate(login) for login in right} == {None}
    assert all([isinstance(await asyncio.wait_for(house.verdicts.get(), 20), PushReply) for _ in right])


async def test_who_has_no_certificate_does_not_learn_who_is_a_user(caplog: pytest.LogCaptureFixture) -> None:
    house = House(client_certificate=False)
    house.people.revoke("bob")
    for name in ("alice", "bob", "nobody"):
        told = []
        for number in range(11):
            login = ClientLogin(number, (0, f"192.0.2.{number}", 4000), "", None, name, "guess", {}, again=False)
            # Nobody is refused at once: to look at a password takes its time.
            assert house.admission.gate(login) is None
            told.append(await asyncio.wait_for(house.verdicts.get(), 20))
        wrong, wait = Refusal("wrong user name or password"), Refusal("too many wrong passwords; try again later")
        assert told == [wrong] * 10 + [wait]
    for reason in (
        "the password is wrong",
        "the user is revoked",
        "unknown user",
        "too many wrong passwords for nobody",
    ):
        assert f'reason="{reason}"' in caplog.text


async def test_who_is_refused_again_and_again_fills_no_log_and_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    for number in range(100):
        await house.ask(house.login("alice", 1, "secret", username=f"x{number}"))
    house.people.revoke("bob")
    await house.ask(house.login("bob", 2))
    told = [record.fields["name"] for record in caplog.records if getattr(record, "event", None) == "refused"]  # type: ignore[attr-defined]
    assert told == ["alice"] * 20 + ["bob"]


@pytest.mark.parametrize(
    ("program", "hook", "refusal"),
    [
        ("exit 0", None, None),
        (DEFERRED.format(1), None, None),
        (DEFERRED.format(0), None, Refusal("")),
        (DEFERRED.format(1), AuthError("no", "come back on Monday"), Refusal("come back on Monday")),
        (DEFERRED.format(1), True, None),
        (DEFERRED.format(1), False, Refusal("")),
        (DEFERRED.format(1), "alice", Refusal("")),
        (DEFERRED.format(0), AuthError("is not asked", "is not asked"), Refusal("")),
        ("exit 7", None, Refusal("")),
    ],
)
async def test_all_who_are_asked_must_accept(tmp_path: Path, program: str, hook: Any, refusal: Refusal | None) -> None:
    """Password, program and hook, each of which may take its time; at the first login and in renegotiations."""
    file = tmp_path / "check"
    file.write_text(f"#!/bin/sh\n{program}\n")
    file.chmod(0o755)

    async def authenticate(login: ClientLogin) -> Any:
        await asyncio.sleep(0)
        if isinstance(hook, Exception):
            raise hook
        return hook

    house = House(token_lifetime=None)
    await house.enter(house.login("alice", 1, "secret"))
    changes = {"auth_program": (str(file),), "authenticate": authenticate}
    house.admission.use(replace(ServerConfig(takeover=True, token_lifetime=None), **changes))  # type: ignore[arg-type]
    for login in (house.login("alice", 1, "secret", again=True), house.login("alice", 2, "secret")):
        verdict = await house.ask(login)
        assert verdict == refusal if refusal is not None else isinstance(verdict, PushReply)
        wrong = await house.ask(replace(login, password="wrong"))
        assert wrong == Refusal("wrong user name or password"), "whatever the others say"


async def test_what_strangers_call_themselves_begins_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    evil = "x\nrefused name=admin\x1b[2J\u2028y"
    house.people.users[evil] = house.people.users.pop("bob")
    del house.people.users[evil]
    login = replace(house.login("alice", 1), name=evil, username=evil)
    assert isinstance(await house.ask(login), Refusal)
    (record,) = [record for record in caplog.records if getattr(record, "event", None) == "refused"]
    assert record.getMessage().isprintable()
    assert record.getMessage().splitlines() == [record.getMessage()]


async def test_no_address_is_free_for_now() -> None:
    house = House(network=IPv4Network("10.8.0.0/29"), network6=None)
    for number in range(5):
        house.people.add(f"u{number}")
        await house.enter(house.login(f"u{number}", number + 1))
    refusal = await house.ask(house.login("bob", 9))
    assert isinstance(refusal, Refusal)
    assert refusal.backoff > 0


async def test_who_is_connected_stays_so_when_the_store_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    await house.enter(house.login("bob", 1))

    def fail(name: str) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(house.people, "user", fail)
    assert isinstance(await house.ask(house.login("bob", 1, again=True)), PushReply)
    refusal = await house.ask(house.login("alice", 2, "secret"))
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.backoff > 0) == ("try again later", True)
