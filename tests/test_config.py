"""The rules between a configuration's values, and what its repr may show."""

from dataclasses import replace

import pytest

from ginnel.errors import ConfigError
from ginnel.openvpn.config import AuthUserPass, ClientConfig, Remote
from ginnel.openvpn.wrap import StaticKey, TlsAuth, TlsCrypt

CONFIG = ClientConfig(remotes=(Remote("vpn.example.org"),), ca="CA", cert="CERT", key="KEY")


@pytest.mark.parametrize(
    ("changes", "option", "message"),
    [
        ({"remotes": ()}, "remote", "no remote"),
        ({"ca": None}, "ca", "the server could be anyone"),
        ({"key": None}, "cert", "cert without key"),
        ({"cert": None}, "key", "key without cert"),
        ({"cert": None, "key": None}, "auth-user-pass", "who we are"),
        ({"tls_version_min": "1.3", "tls_version_max": "1.2"}, "tls-version-max", "less than"),
        ({"ping_exit": 60}, "ping-exit", "exclude each other"),
        ({"data_ciphers": ()}, "data-ciphers", "empty"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_write(
    changes: dict[str, object], option: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        replace(CONFIG, **changes)  # type: ignore[arg-type]
    assert caught.value.option == option
    assert caught.value.instead


@pytest.mark.parametrize(
    "changes",
    [
        {"ca": None, "peer_fingerprints": ("00:" * 31 + "00",)},
        {"cert": None, "key": None, "auth_user_pass": AuthUserPass()},
        {"tls_version_min": "1.2", "tls_version_max": "1.2"},
        {"ping_exit": 60, "ping_restart": 0},
    ],
)
def test_what_makes_sense(changes: dict[str, object]) -> None:
    replace(CONFIG, **changes)  # type: ignore[arg-type]


def test_no_secret_is_in_a_repr() -> None:
    key = StaticKey(b"\xab" * 256)
    for wrap in (TlsAuth(key), TlsCrypt(key)):
        config = replace(CONFIG, key="PRIVATE", wrap=wrap, auth_user_pass=AuthUserPass("alice", "hunter2 of hers"))
        shown = repr(config)
        assert "alice" in shown
        for secret in ("PRIVATE", "hunter2", "abab", r"\xab"):
            assert secret not in shown


def test_what_is_missing_of_a_login() -> None:
    assert AuthUserPass().incomplete
    assert AuthUserPass("alice").incomplete
    assert not AuthUserPass("alice", "x").incomplete


def test_peer_info_has_the_users_own_names_only_where_they_were_asked_for() -> None:
    config = replace(CONFIG, setenv=(("UV_ID", "7"), ("IV_SSO", "webauth"), ("PATH", "/bin")))
    assert config.peer_info == (("IV_SSO", "webauth"),)
    assert replace(config, push_peer_info=True).peer_info == (("IV_SSO", "webauth"), ("UV_ID", "7"))
