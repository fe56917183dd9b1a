"""Each file of `tests/profiles` connects to a stock server that asks for what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.harness import office
from tests.harness.client import GinnelClient
from tests.harness.environment import Environment
from tests.harness.network import SERVER, Network
from tests.harness.profile import COMMON_KEYS, LOGIN, Profile
from tests.harness.proxy import Proxies
from tests.harness.server import StockServer
from tests.harness.shapes import NAMES, SERVER_KEY, fill

NO_CERTIFICATE = ("verify-client-cert none", "username-as-common-name")
TLS_CRYPT_V2 = f"<tls-crypt-v2>\n{SERVER_KEY.emit()}</tls-crypt-v2>"
PLAIN = Profile(wrap="none")
SERVERS = {
    "provider": Profile(wrap="tls-auth", digest="SHA512", password=True, server_options=NO_CERTIFICATE),
    "provider-tcp": Profile(transport="tcp", password=True, server_options=(*NO_CERTIFICATE, "auth-gen-token")),
    "company": replace(PLAIN, server_options=(TLS_CRYPT_V2,)),
    "access-server": Profile(transport="tcp", wrap="tls-auth", digest="SHA1", password=True),
    "firewall": Profile(wrap="tls-auth"),
    "router": replace(PLAIN, cipher="AES-128-GCM", server_options=("comp-lzo no",)),
    "old-router": replace(PLAIN, keys=COMMON_KEYS.bare, server_options=("comp-lzo",)),
    "appliance": Profile(password=True, keepalive=(1, 3)),
    "nas": replace(PLAIN, password=True, server_options=(*NO_CERTIFICATE, "auth SHA512")),
    "windows": Profile(password=True, server_options=NO_CERTIFICATE),
    "mobile": replace(PLAIN, cipher="AES-128-GCM"),
    "connections": PLAIN,
    "fingerprint": replace(PLAIN, fingerprint=True, keys=COMMON_KEYS.self_signed),
    "linux": Profile(wrap="tls-auth", digest="SHA1"),
    "encrypted-key": PLAIN,
}
# The one file that asks for a code as well can't be answered without a terminal: without that line.
CODE = 'static-challenge "Enter Authenticator Code" 1\n'


@pytest.mark.parametrize("name", NAMES)
def test_a_file_connects(network: Network, ordinary_env: Environment, name: str) -> None:
    shape, profile = fill(name, SERVER), SERVERS[name]
    login = LOGIN if "\nauth-user-pass\n" in shape.text else None
    text = shape.text.replace(CODE, "")
    with (
        Proxies(network.server, SERVER),
        StockServer(network, profile) as server,
        GinnelClient(network, ordinary_env, text, login=login, files=shape.files) as client,
    ):
        up = client.wait_next("up")
        assert up["transport"] == profile.transport
        assert up["cipher"] == profile.cipher
        assert client.curl("http://wiki.office/") == office.PAGE.decode()
        if "auth-nocache" in shape.text:
            # There is no terminal: what was read once must be there again.
            server.kill()
            client.wait_next("reconnecting")
            server.start()
            client.wait_next("up", 30)
            assert client.curl("http://wiki.office/") == office.PAGE.decode()
        client.stop()
