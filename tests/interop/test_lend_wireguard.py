"""Stock wireguard-go on lent devices: another program, in Go, multithreaded, that watches netlink to come up."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.harness.environment import Environment
from tests.harness.lent import Lent
from tests.harness.network import Namespace
from tests.harness.process import run


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """One in which an ordinary user may make /run/wireguard/*.sock, and nothing of it is seen outside."""
    with Namespace(without_tun=True) as namespace:
        make = "mount -t tmpfs none /run && mkdir -m 0777 /run/wireguard"
        run(["nsenter", f"--mount=/proc/{namespace.pid}/ns/mnt", "sh", "-ec", make])
        yield namespace


def test_two_of_them_ping(namespace: Namespace, ordinary_env: Environment) -> None:
    keys = [X25519PrivateKey.generate() for _ in range(2)]
    sides = []
    for number, own in enumerate(keys):
        other = keys[1 - number].public_key().public_bytes_raw().hex()
        # One begins. Of two that begin at once each refuses the other's answer, and both try again at once.
        endpoint = f"endpoint=127.0.0.1:{PORTS[1]}\n" if number == 0 else ""
        settings = (
            f"set=1\nprivate_key={own.private_bytes_raw().hex()}\nlisten_port={PORTS[number]}\npublic_key={other}\n"
            f"{endpoint}replace_allowed_ips=true\nallowed_ip=10.9.0.0/24\n"
            "allowed_ip=fd09::/64\n\n"
        )
        actions = [
            ["up", f"10.9.0.{number + 1}", f"fd09::{number + 1}"],
            ["configure", f"/run/wireguard/wg{number}.sock", settings],
            ["ping", f"10.9.0.{2 - number}", 100],
            ["ping6", f"fd09::{2 - number}"],
        ]
        sides.append(["sh", "-c", START.format(number, number + 1), actions])
    with (
        Lent(namespace, ordinary_env, sides[0][:-1], actions=sides[0][-1]) as first,
        Lent(namespace, ordinary_env, sides[1][:-1], actions=sides[1][-1]) as second,
    ):
        for side in (first, second):
            side.wait_done("configure", 30)
            side.wait_done("ping")
            side.wait_done("ping6")
        for number, side in enumerate((first, second)):
            assert f"wg{number} UNKNOWN 10.9.0.{number + 1}/24 fd09::{number + 1}/64" in [
                " ".join(line.split()) for line in side.process.out.all()
            ]
            assert side.process.stop(signal.SIGTERM) == 128 + signal.SIGTERM
            assert side.wait_done("end") == {"done": "end", "left": [], "left_behind": 1}


PORTS = (51820, 51821)
START = """
WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD=1 wireguard-go -f wg{0} &
until [ -S /run/wireguard/wg{0}.sock ]; do sleep 0.05; done
ip address add 10.9.0.{1}/24 dev wg{0}
ip address add fd09::{1}/64 dev wg{0}
ip link set wg{0} up
echo "$(ip -br address show dev wg{0})"
wait
"""
