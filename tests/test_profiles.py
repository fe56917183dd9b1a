"""Each file of `tests/profiles` is read, and means what its author meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ginnel.openvpn import settings
from ginnel.openvpn.config import AuthUserPass, ClientConfig, HttpProxy, Remote
from ginnel.openvpn.data_format import MssFix
from ginnel.openvpn.login import StaticChallenge
from ginnel.openvpn.ovpn_file import read_ovpn, report_ovpn
from ginnel.openvpn.push import PullFilter
from ginnel.openvpn.tls import VerifyName
from ginnel.openvpn.tls_crypt_v2 import TlsCryptV2
from ginnel.openvpn.wrap import NoWrap, TlsAuth, TlsCrypt
from tests.harness.profile import LOGIN
from tests.harness.shapes import KEY_PASSWORD, NAMES, fill

HOST = "vpn.example.org"
UDP = (Remote(HOST),)
MEANINGS: dict[str, dict[str, Any]] = {
    "provider": {
        "remotes": (Remote(HOST, 1193), Remote(HOST, 1194), Remote(HOST, 443, "tcp")),
        "remote_random": True,
        "mssfix": MssFix(1450),
        "ping": 15,
        "ping_restart": 0,
        "reneg_sec": 0,
        "connect_timeout": 4,
        "auth_user_pass": AuthUserPass(),
        "wrap": (TlsAuth, "SHA512", 1),
    },
    "provider-tcp": {
        "remotes": (Remote(HOST, 1194, "tcp"),),
        "auth_nocache": True,
        "verify_x509_name": VerifyName("server", "name-prefix"),
        "data_ciphers": ("AES-256-GCM", "CHACHA20-POLY1305"),
        "pull_filters": (PullFilter("ignore", "auth-token"),),
        "wrap": (TlsCrypt,),
    },
    "company": {"remotes": UDP, "wrap": (TlsCryptV2,), "push_peer_info": True, "setenv": (("UV_ASSET", "laptop-17"),)},
    "access-server": {
        "remotes": (Remote(HOST, 1194, "tcp", HttpProxy(HOST, 3128, "carol", "proxy pass")),),
        "static_challenge": StaticChallenge("Enter Authenticator Code", True),
        "auth_user_pass": AuthUserPass(),
        "push_peer_info": True,
        "reneg_sec": 604800,
        "wrap": (TlsAuth, "SHA1", 1),
    },
    "firewall": {
        "remotes": (Remote(HOST, 1194, "udp4"),),
        "verify_x509_name": VerifyName("server", "name"),
        "cipher": "AES-256-GCM",
        "ca": None,
        "cert": None,
        "explicit_exit_notify": 1,
        "wrap": (TlsAuth, "SHA256", 1),
    },
    "router": {"remotes": UDP, "compression": "comp-lzo no", "ping": 15, "ping_restart": 60, "wrap": (NoWrap,)},
    "old-router": {"remotes": UDP, "compression": "comp-lzo", "cipher": "AES-256-CBC", "remote_cert_ku": None},
    "appliance": {
        "remotes": UDP,
        "ca": None,
        "cert": None,
        "auth_user_pass": AuthUserPass(*LOGIN),
        "auth_nocache": True,
        "auth_retry": "nointeract",
        "explicit_exit_notify": 2,
        "wrap": (TlsCrypt,),
    },
    "nas": {"remotes": UDP, "auth": "SHA512", "reneg_sec": 0, "cert": None, "auth_user_pass": AuthUserPass()},
    "windows": {"remotes": UDP, "auth_user_pass": AuthUserPass(*LOGIN), "wrap": (TlsCrypt,)},
    "mobile": {
        "remotes": UDP,
        "data_ciphers": ("AES-128-GCM", "AES-256-GCM"),
        "connect_timeout": 10,
        "connect_retry": (2, 30),
        "connect_retry_max": 3,
        "tls_version_max": "1.2",
        "cert_profile": "legacy",
        "peer_info": (("IV_SSO", "webauth"),),
    },
    "connections": {
        "remotes": (
            Remote(HOST, 1193, "tcp", own=(("connect_timeout", 3),)),
            Remote(HOST, 1194, "udp", own=(("mssfix", MssFix(1300)), ("explicit_exit_notify", 1))),
        ),
        "connect_retry": (1, 2),
    },
    "fingerprint": {"remotes": UDP, "ca": None},
    "linux": {"remotes": UDP, "wrap": (TlsAuth, "SHA1", 1), "data_ciphers": ("AES-256-GCM",)},
    "encrypted-key": {"remotes": UDP, "key_password": KEY_PASSWORD},
}


def read(name: str, folder: Path) -> ClientConfig:
    shape = fill(name, HOST)
    for file, content in shape.files.items():
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "a.ovpn").write_bytes(shape.text.encode())
    return read_ovpn(folder / "a.ovpn")


@pytest.mark.parametrize("name", NAMES)
def test_what_a_file_means(name: str, tmp_path: Path) -> None:
    config = read(name, tmp_path)
    for field, meant in MEANINGS[name].items():
        value = getattr(config, field)
        if field == "wrap":
            kind, *rest = meant
            assert isinstance(value, kind)
            assert [getattr(value, part) for part in ("digest", "direction")[: len(rest)]] == rest
        else:
            assert value == meant, field
    assert report_ovpn(tmp_path / "a.ovpn").config == config
    settings.tls_context(config)
