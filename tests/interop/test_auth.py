"""Who may connect, and what a user is told who may not: an exit status and one line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.harness import office
from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.pki import Authority, self_signed, static_key
from tests.harness.profile import COMMON_KEYS, LOGIN, Profile
from tests.harness.server import StockServer

PASSWORD = Profile(password=True)
FINGERPRINT = Profile(fingerprint=True, keys=COMMON_KEYS.self_signed)


@pytest.mark.parametrize("profile", [Profile(), FINGERPRINT], ids=["ca", "peer-fingerprint"])
def test_certificates(network: Network, ordinary_env: Environment, profile: Profile) -> None:
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile) as client:
        assert client.curl("http://wiki.office/") == office.PAGE.decode()
        client.stop()


def test_password(network: Network, ordinary_env: Environment) -> None:
    with StockServer(network, PASSWORD), GinnelClient(network, ordinary_env, PASSWORD, login=LOGIN) as client:
        assert client.curl("http://wiki.office/") == office.PAGE.decode()
        client.stop()


def test_wrong_password(network: Network, ordinary_env: Environment) -> None:
    login = (LOGIN[0], "guess")
    with StockServer(network, PASSWORD), GinnelClient(network, ordinary_env, PASSWORD, login=login) as client:
        status, line = client.fail()
    assert status == 4
    assert "guess" not in line


def test_wrong_authority(network: Network, ordinary_env: Environment) -> None:
    ours = Profile().with_keys(ca=Authority("Another CA").certificate)
    with StockServer(network, Profile()), GinnelClient(network, ordinary_env, ours) as client:
        status, line = client.fail()
    assert status == 5
    assert "certificate" in line


def test_server_with_a_client_certificate(network: Network, ordinary_env: Environment) -> None:
    """Another client of the same authority must not be taken for the server (remote-cert-tls)."""
    theirs = Profile().with_keys(server=Profile().keys.client)
    with StockServer(network, theirs), GinnelClient(network, ordinary_env, Profile()) as client:
        status, _ = client.fail()
    assert status == 5


def test_wrong_name(network: Network, ordinary_env: Environment) -> None:
    ours = replace(Profile(), client_options=("verify-x509-name another name",))
    with StockServer(network, Profile()), GinnelClient(network, ordinary_env, ours) as client:
        status, _ = client.fail()
    assert status == 5


def test_wrong_fingerprint(network: Network, ordinary_env: Environment) -> None:
    ours = FINGERPRINT.with_keys(server=self_signed("server", server=True))
    with StockServer(network, FINGERPRINT), GinnelClient(network, ordinary_env, ours) as client:
        status, line = client.fail()
    assert status == 5
    assert "fingerprint" in line


def test_our_certificate_is_refused(network: Network, ordinary_env: Environment) -> None:
    stranger = Authority("Another CA").issue("client")
    ours = Profile(tls="1.3").with_keys(client=stranger)
    with StockServer(network, Profile()), GinnelClient(network, ordinary_env, ours, "--timeout", "5") as client:
        status, _ = client.fail()
    assert status in (3, 5)


@pytest.mark.parametrize("wrap", ["tls-auth", "tls-crypt"])
def test_wrong_static_key(network: Network, ordinary_env: Environment, wrap: str) -> None:
    """The server does not answer, so this can't be told from a server that is not there."""
    theirs = replace(Profile(), wrap=wrap)
    ours = theirs.with_keys(static=static_key())
    with StockServer(network, theirs), GinnelClient(network, ordinary_env, ours, "--timeout", "3") as client:
        status, line = client.fail()
    assert status == 3
    assert "192.0.2.1" in line


def test_unreachable(network: Network, ordinary_env: Environment) -> None:
    with GinnelClient(network, ordinary_env, Profile(), "--timeout", "2") as client:
        status, line = client.fail()
    assert status == 3
    assert "192.0.2.1" in line


def test_unknown_host(network: Network, ordinary_env: Environment) -> None:
    text = Profile().client_file().replace("remote 192.0.2.1", "remote no-such-host.invalid")
    with GinnelClient(network, ordinary_env, text, "--timeout", "2") as client:
        status, line = client.fail()
    assert status == 3
    assert "no-such-host.invalid" in line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("remot 192.0.2.1 1194", "remote"),
        ("<tls-crypt>", "tls-crypt"),
        ("http-proxy 192.0.2.9 8080", "http-proxy"),
        ("\0\1\2\3", ""),
    ],
    ids=["misspelt", "unterminated", "unsupported", "junk"],
)
def test_bad_file(network: Network, ordinary_env: Environment, line: str, said: str) -> None:
    with GinnelClient(network, ordinary_env, f"{Profile(wrap='none').client_file()}{line}\n") as client:
        status, error = client.fail()
    assert status == 2
    assert said in error
    assert "office.ovpn:" in error


def test_taken_port(network: Network, ordinary_env: Environment) -> None:
    taken = network.client.socket()
    with taken, StockServer(network, Profile()):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with GinnelClient(network, ordinary_env, Profile(), socks=port) as client:
            status, line = client.fail()
    assert status == 6
    assert port in line
