"""Stock OpenVPN 2.6 clients at our server: the cells of wraps, ciphers and transports that can break, and logins
that must be refused with a reason in the log."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from ginnel.openvpn.tls_crypt_v2 import ServerKey, TlsCryptV2Server
from ginnel.openvpn.wrap import NoWrap, StaticKey, TlsAuth, TlsCrypt
from ginnel.server import Listen
from tests.harness.network import CLIENT6, SERVER6, Network
from tests.harness.people import People
from tests.harness.pki import Authority, static_key
from tests.harness.process import parse_event
from tests.interop.test_serve import UP, echo, event, serving, stock_client

CELLS = [
    # Both add to a packet: long ones must still fit, and TCP has no room to spare in its length.
    ("tcp", "tls-auth", "CHACHA20-POLY1305"),
    ("tcp", "tls-crypt", "AES-128-GCM"),
    ("tcp", "none", "AES-256-CBC"),
    # With HMAC and padding around each packet, and the digest that tls-auth has too.
    ("udp", "tls-auth", "AES-256-CBC"),
    ("udp", "tls-crypt", "AES-192-GCM"),
    ("udp", "fallback", "AES-256-GCM"),
]


@pytest.mark.parametrize(("proto", "wrap", "cipher"), CELLS)
def test_cells(network: Network, monkeypatch: pytest.MonkeyPatch, proto: str, wrap: str, cipher: str) -> None:
    # On several threads; what stands in `test_serve` is on as many as this machine has processors.
    monkeypatch.setenv("GINNEL_THREADS", "4")
    people = People()
    people.add("alice")
    key = static_key()
    static = StaticKey.parse(key)
    settings: dict[str, Any] = {
        "none": NoWrap(),
        "tls-auth": TlsAuth(static, "SHA512", 0),
        "tls-crypt": TlsCrypt(static),
        "fallback": TlsCryptV2Server(ServerKey.parse(people.identity.tls_crypt_v2), fallback=TlsCrypt(static)),
    }
    tag = {"none": None, "fallback": "tls-crypt"}.get(wrap, wrap)
    block = f"<{tag}>\n{key}</{tag}>\n" if tag else ""
    lines = [f"data-ciphers {cipher}", "auth SHA512", *(["key-direction 1"] if tag == "tls-auth" else [])]
    config = {"wrap": settings[wrap], "auth": "SHA512", "data_ciphers": (cipher,)}
    with serving(network, people, **config) as server:
        with stock_client(network, people, "alice", *lines, "reneg-sec 3", proto=proto, wrap=block) as client:
            client.wait_line(UP, 30)
            # The client renegotiates with bytes on their way.
            for _ in range(2):
                seen = len(client.out)
                echo(network)
                client.wait_line("Control Channel: TLS", 30, seen)
            echo(network, "fd67:696e:6e65:6c::1")
        assert event(server, "connected")["cipher"] == cipher
        if wrap == "fallback":
            with stock_client(network, people, "alice", *lines, proto=proto) as client:
                client.wait_line(UP, 30)


def test_who_has_no_wrap_or_anothers_is_not_answered(network: Network) -> None:
    people, strangers = People(), People()
    people.add("alice")
    strangers.add("alice")
    key = strangers.client_file("alice").partition("<tls-crypt-v2>")
    blocks = ["", f"<tls-crypt>\n{static_key()}</tls-crypt>\n", key[1] + key[2]]
    with serving(network, people) as server:
        for block in blocks:
            words = ("hand-window 3", "connect-retry-max 1")
            with stock_client(network, people, "alice", *words, wrap=block) as client:
                client.wait_line("TLS key negotiation failed to occur within 3 seconds", 30)
        assert server.running
        assert len(server.out) == 1, str(server)


@pytest.mark.parametrize("proto", ["udp", "tcp"])
def test_outer_ipv6(network: Network, proto: str) -> None:
    people = People()
    people.add("alice")
    place = Listen.parse(f"{proto}:[{SERVER6}]:1194")
    with serving(network, people, listen=place, reneg_sec=4) as server:
        with stock_client(network, people, "alice", proto=f"{proto}6", server=SERVER6) as client:
            client.wait_line(UP, 30)
            echo(network)
            client.wait_line("Control Channel: TLS", 30, len(client.out))
            echo(network, "fd67:696e:6e65:6c::1")
        assert event(server, "connected")["remote"].startswith(f"[{CLIENT6}]:")


def test_an_older_tls(network: Network) -> None:
    people = People()
    people.add("alice")
    with serving(network, people, reneg_sec=4) as server:
        with stock_client(network, people, "alice", "tls-version-max 1.2") as client:
            client.wait_line(UP, 30)
            client.wait_line("Control Channel: TLSv1.2", 30, len(client.out))
            echo(network)
        assert event(server, "connected")["tls"] == "TLSv1.2"


@pytest.mark.parametrize("whose", ["another authority's", "a server's"])
def test_a_certificate_that_is_no_clients_of_ours_is_refused_and_said(network: Network, whose: str) -> None:
    people = People()
    people.add("alice")
    authority, server_too = (
        (Authority("Elsewhere CA"), False) if whose == "another authority's" else (people.authority, True)
    )
    people.users["alice"].identity = authority.issue("alice", server=server_too)
    with serving(network, people) as server, stock_client(network, people, "alice") as client:
        reason = event(server, "failed", 30)["reason"]
        assert reason.startswith("the client's certificate")
        assert ("made for another purpose" if server_too else "issuer") in reason
        client.wait_line("Received fatal SSL alert", 20)
        assert not any('"connected"' in line for line in server.out.all())


def test_an_expired_certificate_is_refused_and_said(network: Network) -> None:
    people = People()
    people.add("alice", days=-1)
    with serving(network, people) as server, stock_client(network, people, "alice") as client:
        failed = event(server, "failed", 30)
        assert "expired on" in failed["reason"]
        assert "CN=alice" in failed["reason"]
        assert failed["remote"].startswith("192.0.2.2:")
        client.wait_line("expired", 10)


def test_a_user_name_that_is_not_the_certificates_is_refused_and_said(network: Network) -> None:
    people = People()
    people.add("alice", "secret")
    people.add("bob", "terces")
    with serving(network, people) as server:
        # Known to the server already: a client with alice's certificate and bob's user name and password.
        people.users["bob"].identity = people.users["alice"].identity
        with stock_client(network, people, "bob") as client:
            client.wait_line("AUTH_FAILED,wrong user name or password", 30)
        refused = event(server, "refused")
        assert (refused["name"], refused["username"]) == ("alice", "bob")
        client.wait(10)
        assert [line for line in server.out.all() if '"failed"' in line] == []


def test_a_second_login_is_refused_until_the_first_is_gone(network: Network) -> None:
    people = People()
    people.add("alice")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(network, people, keepalive=(1, 5)))
        # TCP, which stays where it is when the address to leave from is another.
        first = stack.enter_context(stock_client(network, people, "alice", proto="tcp"))
        first.wait_line(UP, 30)
        network.client.ip("address add 192.0.2.88/24 dev eth0", "route change 192.0.2.0/24 dev eth0 src 192.0.2.88")
        try:
            other = stack.enter_context(stock_client(network, people, "alice"))
            refused = event(server, "refused", 30)
            assert refused["reason"].startswith("alice is logged in already, from 192.0.2.2:")
            other.wait_line("already logged in elsewhere", 10)
            # It is told to try again, and does.
            first.close()
            other.wait_line(UP, 60)
            assert server.out.wait(lambda line: '"connected"' in line and "192.0.2.88:" in line, 10), str(server)
            remotes = [parse_event(line)["remote"] for line in server.out.all() if '"event": "connected"' in line]
            assert [remote.partition(":")[0] for remote in remotes] == ["192.0.2.2", "192.0.2.88"]
        finally:
            network.client.ip("route change 192.0.2.0/24 dev eth0 src 192.0.2.2", "address del 192.0.2.88/24 dev eth0")


def test_a_network_behind_a_client_may_send_through_it(network: Network) -> None:
    people = People()
    people.add("alice", routes=("10.99.0.0/24",))
    with serving(network, people), stock_client(network, people, "alice") as client:
        client.wait_line(UP, 30)
        network.client.ip("address add 10.99.0.1/32 dev lo")
        try:
            with network.client.socket() as sock:
                sock.settimeout(20)
                sock.bind(("10.99.0.1", 0))
                sock.connect(("10.8.0.1", 7))
                sock.sendall(b"from behind")
                assert sock.recv(20) == b"from behind"
        finally:
            network.client.ip("address del 10.99.0.1/32 dev lo")
