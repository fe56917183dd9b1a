"""Who we say we are over several attempts, and the server's questions in between."""

import base64
import gc
from types import FunctionType, ModuleType

import pytest

from ginnel.errors import AuthError, UnreachableError
from ginnel.openvpn import events
from ginnel.openvpn.login import Credentials, Login, StaticChallenge
from ginnel.openvpn.server import ServerPolicy
from tests.sessions import PUSH, Case, closing, establish, keys_of, make_pair

# As a terminal in Latin-1 gives it.
LATIN = b"gr\xfc\xdf".decode(errors="surrogateescape")
CHALLENGE = "CRV1:R,E:b64state==:Ym9i:Enter the code: 6 digits"


def answered(login: Login, *answers: str) -> Login:
    for text in answers:
        prompt = login.prompt
        assert prompt is not None
        login.answer(prompt, text)
    assert login.prompt is None
    return login


def waiting(login: Login | None = None) -> Case:
    """A client whose server hasn't answered its push request."""
    pair = make_pair(login=login)
    pair.server_policy.silent = True
    pair.run_for(1)
    return pair


def test_what_is_missing_is_asked_for_and_a_password_is_hidden() -> None:
    login = Login()
    assert login.prompt == events.Prompt("username", "User", echo=True)
    login.answer(login.prompt, "bob")
    assert login.prompt == events.Prompt("password", "Password for bob", echo=False)
    login.answer(login.prompt, "secret")
    assert (login.prompt, login.credentials) == (None, Credentials("bob", "secret"))
    assert Login(wanted=False).credentials is None


@pytest.mark.parametrize(
    ("form", "typed", "password"),
    [
        ("scrv1", "123456", "SCRV1:c2VjcmV0:MTIzNDU2"),
        ("scrv1", LATIN, "SCRV1:c2VjcmV0:Z3L83w=="),
        ("concat", "123456", "secret123456"),
    ],
    ids=["scrv1", "what is no UTF-8", "concat"],
)
def test_a_static_challenge_is_answered_anew_for_each_login(form: str, typed: str, password: str) -> None:
    challenge = StaticChallenge("Code?", False, form)  # type: ignore[arg-type]
    login = Login("bob", "secret", static_challenge=challenge)
    assert login.prompt == events.Prompt("challenge", "Code?", echo=False)
    assert answered(login, typed).credentials == Credentials("bob", password)
    login.accepted()
    assert login.prompt == events.Prompt("challenge", "Code?", echo=False)


def test_a_dynamic_challenge_is_asked_and_its_answer_logs_in() -> None:
    login = Login("bob", "secret")
    assert login.refused(CHALLENGE)
    assert login.prompt == events.Prompt("challenge", "Enter the code: 6 digits", echo=True)
    assert answered(login, "123456").credentials == Credentials("bob", "CRV1::b64state==::123456")
    login.accepted()
    assert login.credentials == Credentials("bob", "secret")


@pytest.mark.parametrize("reason", ["CRV1:", "CRV1:R:x:!!:text", "CRV1:R:x:/w==:text", "CRV1:R:Ym9i:text"])
def test_a_broken_challenge_is_a_refusal(reason: str) -> None:
    login = Login("bob", "secret", retry="nointeract")
    assert not login.refused(reason)
    assert login.prompt is None


def test_a_token_counts_until_it_is_refused_and_the_password_after_that() -> None:
    login = Login("bob", "secret", static_challenge=StaticChallenge("Code?", True))
    answered(login, "1")
    login.take_token("SESS_ID_1", None)
    login.accepted()
    assert (login.prompt, login.credentials) == (None, Credentials("bob", "SESS_ID_1"))
    login.take_token("SESS_ID_2", base64.b64encode(b"robert").decode())
    assert login.credentials == Credentials("robert", "SESS_ID_2")
    assert login.refused("SESSION: expired")
    assert login.prompt is not None
    assert answered(login, "2").credentials == Credentials("bob", "SCRV1:c2VjcmV0:Mg==")


def test_auth_retry_says_what_a_refusal_leads_to() -> None:
    assert not Login("bob", "x").refused("")
    same = Login("bob", "x", retry="nointeract")
    assert same.refused("")
    assert same.credentials == Credentials("bob", "x")
    other = Login("bob", "x", retry="interact")
    assert other.refused("")
    assert answered(other, "eve", "y").credentials == Credentials("eve", "y")


def test_auth_nocache_forgets_what_was_typed_and_leaves_what_was_given() -> None:
    given = Login("bob", "x", nocache=True)
    given.accepted()
    assert given.credentials == Credentials("bob", "x")
    typed = answered(Login("bob", nocache=True), "x")
    typed.accepted()
    assert typed.prompt == events.Prompt("password", "Password for bob", echo=False)
    assert typed.credentials == Credentials("bob", "")


def test_what_a_file_has_by_now_counts_until_the_user_was_asked_instead() -> None:
    login = Login("bob", "x", retry="interact")
    login.renew("bob", "y")
    assert login.credentials == Credentials("bob", "y")
    login.renew("eve", None)
    assert login.credentials == Credentials("eve", "y")
    assert login.refused("")
    login.renew("bob", "z")
    assert answered(login, "eve", "w").credentials == Credentials("eve", "w")


@pytest.mark.parametrize("token", [False, True])
def test_a_renegotiation_asks_for_what_auth_nocache_forgot(token: bool) -> None:
    seen = []

    def verify(username: str, password: str, common_name: str) -> None:
        seen.append((username, password))

    login = answered(Login("bob", nocache=True), "x")
    push = [*PUSH, "auth-token SESS_ID_1"] if token else PUSH
    pair = establish(make_pair(login=login, server={"verify": verify}, push=push))
    for answer in ("y", "z"):
        pair.client.session.renegotiate(pair.now)
        pair.run_for(2)
        if token:
            assert seen.pop() == ("bob", "SESS_ID_1")
            continue
        assert seen.pop() == ("bob", "x" if answer == "y" else "y")
        asked = [event for event in pair.client.events if isinstance(event, events.Prompt)]
        assert len(asked) == (1 if answer == "y" else 2)
        pair.client_policy.respond(asked[-1], answer, pair.now)
        pair.run_for(2)
        assert seen[-1] == ("bob", answer)
    assert len(keys_of(pair.client)) == len(keys_of(pair.server)) == 3


@pytest.mark.parametrize("nocache", [True, False])
def test_auth_nocache_leaves_no_copy_of_what_was_typed(nocache: bool) -> None:
    secret = f"hunter{len('22')}"
    login = answered(Login("bob", nocache=nocache), secret)
    pair = establish(make_pair(login=login))
    found = secret in reachable(login, pair.client.session)
    assert found == (not nocache)


def reachable(*roots: object) -> set[str]:
    """The texts that the objects lead to, not through modules, classes or the other side."""
    seen: set[int] = set()
    texts: set[str] = set()
    left = list(roots)
    while left:
        item = left.pop()
        if id(item) in seen or isinstance(item, ModuleType | type | FunctionType | ServerPolicy | Case):
            continue
        seen.add(id(item))
        if isinstance(item, str):
            texts.add(item)
        left += gc.get_referents(item)
    return texts


def test_a_renegotiation_for_which_nobody_answers_ends_the_session() -> None:
    pair = establish(make_pair(login=answered(Login("bob", nocache=True), "x")))
    pair.client.session.renegotiate(pair.now)
    closed = closing(pair, pair.client)
    assert closed.retry
    assert "didn't finish making new keys" in str(closed.error)


def test_a_session_leaves_the_next_one_what_it_learnt() -> None:
    login = Login("bob", "secret")
    pair = establish(make_pair(push=[*PUSH, "auth-token SESS_ID_1"], login=login))
    assert login.credentials == Credentials("bob", "SESS_ID_1")
    pair.say("AUTH_FAILED,SESSION: expired")
    assert closing(pair, pair.client).retry
    assert login.credentials == Credentials("bob", "secret")


def test_a_challenge_ends_the_session_for_another_attempt_and_is_not_in_the_error() -> None:
    login = Login("bob", "secret")
    pair = waiting(login)
    pair.say(f"AUTH_FAILED,{CHALLENGE}")
    closed = closing(pair, pair.client)
    assert isinstance(closed.error, AuthError)
    assert closed.retry
    assert "b64state" not in str(closed.error)
    assert login.prompt is not None


@pytest.mark.parametrize(("typed", "sent"), [("42 é", "NDIgw6k="), (LATIN, "Z3L83w==")], ids=["UTF-8", "Latin-1"])
def test_a_question_in_the_session_is_answered_there(typed: str, sent: str) -> None:
    pair = waiting()
    pair.say("AUTH_PENDING,timeout 60", "INFO_PRE,CR_TEXT:R,E:Your code:")
    pair.run_for(1)
    assert events.Prompt("challenge", "Your code:", echo=True) in pair.client.events
    pair.client_policy.respond(events.Prompt("challenge", "Your code:", echo=True), typed, pair.now)
    pair.run_for(1)
    assert f"CR_RESPONSE,{sent}" in pair.server_policy.heard


@pytest.mark.parametrize(
    ("message", "url"),
    [
        ("INFO_PRE,WEB_AUTH::https://login.example/x?a=b:c", "https://login.example/x?a=b:c"),
        ("INFO_PRE,WEB_AUTH:hidden,proxy:https://login.example/", "https://login.example/"),
        ("INFO,OPEN_URL:http://login.example/", "http://login.example/"),
        ("INFO_PRE,OPEN_URL:file:///etc/passwd", None),
        ("INFO_PRE,OPEN_URL:javascript:alert(1)", None),
    ],
)
def test_an_address_to_open_is_one_of_the_web(message: str, url: str | None) -> None:
    pair = waiting()
    pair.say(message)
    pair.run_for(1)
    opened = [event.url for event in pair.client.events if isinstance(event, events.OpenUrl)]
    assert opened == ([] if url is None else [url])


@pytest.mark.parametrize(
    ("message", "retry", "advance", "keeps"),
    [
        ("RESTART", True, "stay", False),
        ("RESTART,[P]", True, "stay", True),
        ("RESTART,[N]maintenance", True, "address", False),
        ("HALT,[P]go away", False, "address", True),
        ("AUTH_FAILED,TEMP[advance remote]:full", True, "remote", True),
        ("AUTH_FAILED,TEMP[backoff 3,advance addr]", True, "address", True),
    ],
)
def test_where_to_go_when_the_server_sends_us_away(message: str, retry: bool, advance: str, keeps: bool) -> None:
    login = Login("bob", "secret")
    pair = establish(make_pair(push=[*PUSH, "auth-token SESS_ID_1"], login=login))
    pair.say(message)
    closed = closing(pair, pair.client)
    assert isinstance(closed.error, UnreachableError | AuthError)
    assert (closed.retry, closed.advance) == (retry, advance)
    assert (login.credentials == Credentials("bob", "SESS_ID_1")) == keeps


def test_a_change_of_a_live_tunnel() -> None:
    pair = establish(make_pair())
    pair.say("PUSH_UPDATE,route 10.99.0.0 255.255.0.0,tun-mtu 1200")
    pair.run_for(1)
    changed = pair.client.first(events.Reconfigured)
    assert isinstance(changed, events.Reconfigured)
    assert [str(route.network) for route in changed.push.routes] == ["10.99.0.0/16"]
    assert changed.push.address is not None
    sizes = [event.mss for event in pair.client.events if isinstance(event, events.SetPeer)]
    assert sizes[-1] == 1160
    pair.say("PUSH_UPDATE,cipher AES-128-GCM")
    closed = closing(pair, pair.client)
    assert closed.retry
    assert "cipher" in str(closed.error)


def test_a_session_lasts_as_long_as_the_server_allows() -> None:
    pair = establish(make_pair(push=[*PUSH, "session-timeout 100"]))
    closed = closing(pair, pair.client)
    assert not closed.retry
    assert 1090 < pair.now < 1110


def test_a_pushed_mtu_past_our_own_limit_is_left_out_and_told() -> None:
    pair = establish(make_pair(push=[*PUSH, "tun-mtu 9000"]))
    up = pair.client.first(events.Established)
    assert isinstance(up, events.Established)
    assert up.push.tun_mtu is None
    notices = [event.text for event in pair.client.events if isinstance(event, events.Notice)]
    assert any("tun-mtu-max" in text for text in notices)


@pytest.mark.parametrize(
    ("form", "login", "answer", "password"),
    [
        ("scrv1", ("cuser", "cpassword"), "challenge_response", "SCRV1:Y3Bhc3N3b3Jk:Y2hhbGxlbmdlX3Jlc3BvbnNl"),
        ("concat", ("c1user", "c1password"), "0123456", "c1password0123456"),
    ],
)
def test_openvpns_own_static_challenges(form: str, login: tuple[str, str], answer: str, password: str) -> None:
    challenge = StaticChallenge("Please enter token PIN", False, form)  # type: ignore[arg-type]
    ours = answered(Login(*login, static_challenge=challenge), answer)
    assert ours.credentials == Credentials(login[0], password)


def test_openvpns_own_dynamic_challenge() -> None:
    ours = Login("UT", "x")
    assert ours.refused("CRV1:R,E:Om01u7Fh4LrGBS7uh0SWmzwabUiGiW6l:Y3Ix:Please enter token PIN")
    assert ours.prompt == events.Prompt("challenge", "Please enter token PIN", echo=True)
    answered(ours, "challenge_response")
    assert ours.credentials == Credentials("cr1", "CRV1::Om01u7Fh4LrGBS7uh0SWmzwabUiGiW6l::challenge_response")
