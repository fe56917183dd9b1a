"""``server.toml``: what it sets, what it refuses and where."""

from __future__ import annotations

import asyncio
import re
import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

import pytest

import ginnel
from ginnel.errors import AuthError, ConfigError
from ginnel.openvpn.ovpn_file import read_ovpn
from ginnel.openvpn.server import Refusal
from ginnel.server import Listen, Publish, ServerConfig
from ginnel.server.directory import scratch
from ginnel.server.server_file import FIELDS, read_server_file
from tests.harness.process import Process, parse_event, run
from tests.test_server_admission import House

ROUTE = "route 10.3.0.0 255.255.0.0"
ALL = """
network = "10.9.0.0/20"
network6 = false
topology = "net30"
routes = ["192.0.2.0/24", "2001:db8::/64"]
redirect_gateway = false
dns = ["10.9.0.1"]
push = ["dhcp-option DOMAIN example.org"]
client_to_client = true
duplicate_cn = true
takeover = true
max_clients = 20
connect_freq = [10, 60]
connect_freq_initial = [200, 10.0]
keepalive = [5, 30]
reneg_sec = 0
hand_window = 20
token_lifetime = false
tun_mtu = 1400
auth_program = "/bin/true"
connected = ["/bin/echo", "up"]
disconnected = ["/bin/true"]

[user.alice]
routes = ["10.1.0.0/16", "fd00:1::/64"]
push = ["dhcp-option DNS 10.9.0.7"]
"""


def read(tmp_path: Path, text: str) -> ServerConfig:
    (tmp_path / "server.toml").write_text(text)
    return read_server_file(tmp_path / "server.toml", ServerConfig(public="kept"))


def variables(path: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in Path(path).read_text().splitlines())


def test_every_key_counts(tmp_path: Path) -> None:
    config = read(tmp_path, ALL)
    assert {line.partition(" ")[0] for line in ALL.partition("[user")[0].split("\n") if line} == set(FIELDS)
    default = ServerConfig()
    assert all(getattr(config, key) != getattr(default, key) for key in FIELDS)
    assert config.public == "kept"
    assert (config.network, config.network6) == (IPv4Network("10.9.0.0/20"), None)
    assert config.routes == (ip_network("192.0.2.0/24"), IPv6Network("2001:db8::/64"))
    assert (config.dns, config.redirect_gateway) == ((IPv4Address("10.9.0.1"),), None)
    assert (config.auth_program, config.token_lifetime) == (("/bin/true",), None)
    assert read_server_file(tmp_path / "nothing", default) is default


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_clients = 1\nmax_clients = 2\n", "server.toml:2: "),
        ("\nclients = 1", "server.toml:2: clients is not known; write one of auth_program, "),
        ("listen = []", "server.toml:1: listen is no key of this file; give --listen"),
        ("# x\n\nmax_clients = 0", "server.toml:3: max_clients is a whole number"),
        ("max_clients = true", "server.toml:1: max_clients is a whole number"),
        ("client_to_client = 1", "server.toml:1: client_to_client is true or false"),
        ('network = "fd00::/64"', "server.toml:1: network is an IPv4 network"),
        ('network = "10.8.0.1/24"', "server.toml:1: network is no network: .*host bits"),
        ("network = 5", "server.toml:1: network is an IPv4 network"),
        ("# x\nnetwork = '10.8.0.0/31'", "server.toml:2: 10.8.0.0/31 has no room for clients"),
        (
            "network = '127.0.0.0/24'",
            "server.toml:1: network has addresses that no client can have, those in 127.0.0.0/8",
        ),
        ("network = '0.0.0.0/0'", "server.toml:1: network has addresses that no client can have"),
        ("network6 = 'ff02::/64'", "server.toml:1: network6 has addresses that no client can have, those in ff00::/8"),
        ("network6 = 'fe80::/64'", "server.toml:1: network6 has addresses that no client can have"),
        ("keepalive = [10, 100_000_000_000]", "server.toml:1: keepalive is a whole number from 1 to 2147483647"),
        ("network6 = true", "server.toml:1: network6 is an IPv6 network, or false"),
        ('routes = "10.1.0.0/16"', "server.toml:1: routes is a list of networks"),
        ("tun_mtu = 68", "server.toml:1: tun_mtu is a number of bytes from 100 to 65535"),
        ("keepalive = [60, 10]", "server.toml:1: keepalive needs a second number .* twice the first"),
        ('auth_program = "/nope"', "server.toml:1: auth_program names /nope, where no program is"),
        ('auth_program = "/etc/passwd"', "server.toml:1: auth_program names /etc/passwd, which can't be run"),
        ("\n[users.alice]", r"server.toml:2: users is not known; write one of .* or \[user.NAME\]"),
        ("connect_freq = [1]", "server.toml:1: connect_freq is a number and the seconds"),
        ('push = ["rm -rf"]', "server.toml:1: push "),
        ('redirect_gateway = ["no such"]', "server.toml:1: redirect_gateway "),
        ('auth_program = "check"', "server.toml:1: auth_program is a program"),
        ("user = 1", "server.toml:1: user is no table"),
        ('push = []\n[user.alice]\npush = ["x y"]', "server.toml:3: push "),
        ('[user."a.b"]\nnetwork = "10.0.0.0/8"', "server.toml:2: network is not known; write one of push, routes"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, text)


def test_what_editors_and_people_write(tmp_path: Path) -> None:
    config = read(tmp_path, "\ufeffredirect_gateway = true\n")
    assert config.redirect_gateway == ("def1",)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"network": 5}, "network is an IPv4 network"),
        ({"network": "10.8.0.0/31"}, "10.8.0.0/31 has no room"),
        ({"network6": "fd00::/127"}, "fd00::/127 has no room"),
        ({"listen": "127.0.0.1:0"}, r'listen is a list: \["127.0.0.1:1194"\]'),
        ({"listen": ["127.0.0.1"]}, "listen '127.0.0.1' is no place to listen; write ADDR:PORT"),
        ({"listen": [5]}, "listen is a list"),
        ({"publish": ["80"]}, "publish '80' publishes nothing; write PORT:USER:PORT"),
        ({"public": "two words"}, "public is a host, or HOST:PORT"),
        ({"max_clients": 0}, "max_clients is a whole number from 1 to 2147483647"),
        ({"hand_window": 0}, "hand_window is a number of seconds above 0"),
        ({"auth": "MD9"}, "auth is one of SHA1, "),
        ({"data_ciphers": ["ROT13"]}, "data_ciphers is a list of some of AES-256-GCM"),
        ({"connected": "/bin/true"}, "connected is an asynchronous function, or None"),
        ({"wrap": "x"}, "wrap is a NoWrap, TlsAuth, TlsCrypt or TlsCryptV2Server, or None"),
        ({"authenticate": lambda login: True}, "authenticate is an asynchronous function, or None"),
    ],
)
def test_a_program_is_told_what_is_wrong_as_the_file_is(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}"):
        ServerConfig(**given)


def test_a_program_gives_what_the_file_may_have() -> None:
    config = ServerConfig(
        listen=["tcp:127.0.0.1:0", Listen("udp", "::1", 0)],  # type: ignore[arg-type]
        network="10.9.0.0/24",  # type: ignore[arg-type]
        network6=False,  # type: ignore[arg-type]
        routes=["192.0.2.0/24"],  # type: ignore[arg-type]
        redirect_gateway=False,  # type: ignore[arg-type]
        token_lifetime=False,
        publish=["8080:alice:80"],  # type: ignore[arg-type]
    )
    assert config.listen == (Listen("tcp", "127.0.0.1", 0), Listen("udp", "::1", 0))
    assert (config.network, config.network6) == (IPv4Network("10.9.0.0/24"), None)
    assert (config.routes, config.redirect_gateway) == ((IPv4Network("192.0.2.0/24"),), None)
    assert (config.token_lifetime, config.publish) == (None, (Publish(8080, "alice", 80),))


async def test_a_user_is_pushed_what_is_hers_and_what_the_program_adds(tmp_path: Path) -> None:
    program = tmp_path / "connect"
    program.write_text('#!/bin/sh\nenv > "$0.env"\necho "push \\"route 10.3.0.0 255.255.0.0\\"" > "$1"\n')
    program.chmod(0o755)
    house = House()
    config = read(tmp_path, f'connected = "{program}"\n[user.alice]\nroutes = ["10.1.0.0/16", "fd00:1::/64"]')
    house.admission.use(config)
    own = ["route 10.1.0.0 255.255.0.0", "route-ipv6 fd00:1::/64"]
    info = {"IV_VER": "2.6.3", "IV_EVIL": "x\ny", "PATH": "/tmp"} | {
        f"IV_{number}": "x" * 9999 for number in range(500)
    }
    options = (await house.enter(house.login("alice", 1, "secret", peer_info=info))).options()
    assert [option for option in options if option in own] == own
    assert "route 10.3.0.0 255.255.0.0" in options
    environment = variables(f"{program}.env")
    wanted = {
        "script_type": "client-connect",
        "common_name": "alice",
        "username": "alice",
        "trusted_ip": "192.0.2.1",
        "trusted_port": "4001",
        "ifconfig_pool_remote_ip": "10.8.0.2",
        "ifconfig_pool_remote_ip6": "fd67:696e:6e65:6c::2",
        "IV_VER": "2.6.3",
    }
    assert wanted.items() <= environment.items()
    assert "IV_EVIL" not in environment
    assert environment["PATH"] != "/tmp"
    options = (await house.enter(house.login("bob", 2))).options()
    assert "route 10.3.0.0 255.255.0.0" in options
    assert not set(own) & set(options)


async def test_a_program_that_goes_elsewhere_finds_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the server's directory was named from where it started."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.toml").write_text(f'connected = ["/bin/sh", "-c", "cd / && echo \'push \\"{ROUTE}\\"\' > $0"]')
    house = House()
    house.admission.use(read_server_file(Path("server.toml"), ServerConfig()))
    assert ROUTE in (await house.enter(house.login("bob", 1))).options()
    with scratch(Path("state")) as folder:
        assert folder.is_absolute()


@pytest.mark.parametrize(
    ("script", "refusal"),
    [
        ("exit 1", Refusal("")),
        ('echo disable > "$1"', Refusal("")),
        ('echo "iroute 10.0.0.0 255.0.0.0" > "$1"', Refusal("try again later", backoff=30)),
        ('echo "push \\"no such option\\"" > "$1"', Refusal("")),
    ],
)
async def test_a_program_that_refuses_or_fails_lets_nobody_in(tmp_path: Path, script: str, refusal: Refusal) -> None:
    program = tmp_path / "connect"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    house = House()
    house.admission.use(read(tmp_path, f'connected = "{program}"'))
    assert await house.ask(house.login("bob", 1)) == refusal


async def test_ginnel_serve_takes_what_its_file_says(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    program = tmp_path / "told"
    program.write_text('#!/bin/sh\n[ "$common_name" = mallory ] && exit 1\nenv > "$0.$script_type"\n')
    program.chmod(0o755)
    text = f'network = "10.9.0.0/24"\nconnected = "{program}"\ndisconnected = "{program}"\n'
    ginnel_ = [sys.executable, "-m", "ginnel"]
    (state / "server.toml").write_text(text + "max_clients = 0\n")
    serve = [*ginnel_, "serve", "--json", "--dir", state, "--listen", "udp:127.0.0.1:0"]
    with Process(serve) as process:
        assert process.wait(30) == 2
        assert f"{state / 'server.toml'}:4: max_clients" in process.err.all()[-1]
    (state / "server.toml").write_text(text)
    with Process(serve) as process:
        assert parse_event(process.wait_line('"event": "up"', 30))["address"] == "10.9.0.1"
        for name in ("alice", "mallory"):
            add = [*ginnel_, "user", "add", name, "--dir", state, "-o", tmp_path / f"{name}.ovpn"]
            await asyncio.to_thread(run, add)
        with pytest.raises(AuthError):
            await ginnel.connect(read_ovpn(tmp_path / "mallory.ovpn"), timeout=30).__aenter__()
        async with ginnel.connect(read_ovpn(tmp_path / "alice.ovpn"), timeout=30) as alice:
            assert alice.info.address == "10.9.0.3/24"
            await alice.ping("10.9.0.1", timeout=20)
        process.wait_line('"event": "disconnected"', 30)
        assert process.stop() == 0
    gone = variables(f"{program}.client-disconnect")
    assert (gone["common_name"], gone["ifconfig_pool_remote_ip"]) == ("alice", "10.9.0.3")
    assert int(gone["bytes_received"]) > 0
    assert variables(f"{program}.client-connect")["common_name"] == "alice"


def test_the_documentation_shows_every_key(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/serve.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    # Its programs are nobody's here.
    read(tmp_path, re.sub(r'"/usr/local/bin/\w+"', '"/bin/true"', text))
    shown = set(re.findall(r"^(\w+) = ", text.partition("[user")[0], re.MULTILINE))
    assert shown == set(FIELDS)
