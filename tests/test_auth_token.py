"""Tokens: stock's layout, and what makes one count no more."""

from __future__ import annotations

import base64
import os

import pytest

from ginnel.openvpn.auth_token import PREFIX, AuthTokens, is_token, session_of

# OpenVPN, tests/unit_tests/openvpn/test_auth_token.c: now0key0, and "test user name" with a key of zeros.
STOCK = "SESS_ID_AT_0123456789abcdefAAAAAAAAAAAAAAAAAAAAAE5JsQJOVfo8jnI3RL3tBaR5NkE4yPfcylFUHmHSc5Bu"
USER = "test user name"


def test_a_token_is_stocks_to_the_byte() -> None:
    session = base64.b64decode("0123456789abcdef")
    tokens = AuthTokens(bytes(32), lambda size: session)
    assert tokens.first(USER, 0) == STOCK


def test_a_token_is_later_than_the_one_before_it_even_within_a_second() -> None:
    tokens = AuthTokens(os.urandom(32), os.urandom)
    token = tokens.first(USER, 5000.1)
    for now in (5000.2, 5000.3, 4990.0):
        following = tokens.renew(token, USER, now)
        assert following is not None
        assert session_of(following)[2] > session_of(token)[2]
        token = following


def test_a_token_is_renewed_in_time_and_ends_with_its_lifetime() -> None:
    tokens = AuthTokens(os.urandom(32), os.urandom, lifetime=1000, renewal=300)
    token = tokens.first(USER, 5000)
    assert tokens.renew(token, USER, 5600) is None
    # A clock that was set back a little.
    assert tokens.renew(token, USER, 4700) is not None
    assert tokens.renew(token, USER, 4699) is None
    later = tokens.renew(token, USER, 5599)
    assert later is not None
    assert later != token
    assert later[: len(PREFIX) + 16] == token[: len(PREFIX) + 16]
    last = tokens.renew(later, USER, 6000)
    assert last is not None
    assert tokens.renew(last, USER, 6001) is None


def test_a_token_is_for_one_user_and_one_secret() -> None:
    tokens = AuthTokens(os.urandom(32), os.urandom)
    token = tokens.first(USER, 5000)
    assert tokens.renew(token, "another", 5001) is None
    assert AuthTokens(os.urandom(32), os.urandom).renew(token, USER, 5001) is None


@pytest.mark.parametrize("position", range(len(PREFIX), len(STOCK)))
def test_no_byte_of_a_token_can_be_changed(position: int) -> None:
    tokens = AuthTokens(bytes(32), os.urandom)
    other = "B" if STOCK[position] != "B" else "C"
    assert tokens.renew(STOCK[:position] + other + STOCK[position + 1 :], USER, 0) is None


@pytest.mark.parametrize("size", range(len(PREFIX), len(STOCK) + 5))
def test_every_length_but_one_is_no_token(size: int) -> None:
    text = (STOCK + "AAAAA")[:size]
    assert is_token(text) == (size == len(STOCK))
    assert (AuthTokens(bytes(32), os.urandom).renew(text, USER, 0) is not None) == (size == len(STOCK))
