"""How a stock server and its user get to know each other: codes, tokens, and logins elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import office
from tests.harness.client import GinnelClient, program_folder, wait_until
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.profile import COMMON_KEYS, LOGIN, Profile
from tests.harness.server import StockServer
from tests.harness.shapes import KEY_PASSWORD, encrypt
from tests.interop.test_terminal import read_to_end, read_until

USER_ALONE = ("verify-client-cert none", "username-as-common-name")


def come_back(server: StockServer, client: GinnelClient) -> None:
    """Lets the client lose its server, and find it again."""
    client.wait_next("up")
    server.kill()
    client.wait_next("reconnecting")
    server.start()
    client.wait_next("up", 30)


def script(folder: Path, text: str) -> Path:
    file = folder / "ask"
    file.write_text(f'#!/bin/sh\n{{ read -r user; read -r word; }} < "$1"\n{text}\n')
    file.chmod(0o755)
    folder.chmod(0o755)
    return file


@contextmanager
def at_a_terminal(
    network: Network, env: Environment, profile: Profile
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    ours, theirs = os.openpty()
    with program_folder(profile) as folder:
        program = subprocess.Popen(
            network.client.command([env.ginnel, "connect", folder / "office.ovpn"], ordinary=True, cwd=folder),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={"PATH": "/usr/bin:/bin", "TERM": "dumb", "LANG": "C.UTF-8"},
        )
        os.close(theirs)
        try:
            yield ours, program
        finally:
            program.kill()
            program.wait()
            os.close(ours)


@pytest.mark.parametrize("form", ["scrv1", "concat"])
def test_user_password_and_code_are_asked_for_and_the_secret_is_hidden(
    network: Network, ordinary_env: Environment, tmp_path: Path, form: str
) -> None:
    wanted = {"scrv1": "SCRV1:c2VjcmV0:MTIzNDU2", "concat": "secret123456"}[form]
    check = script(tmp_path, f'[ "$user" = alice ] && [ "$word" = {wanted} ]')
    options = (f"auth-user-pass-verify {check} via-file",)
    client = ("auth-user-pass", f'static-challenge "Your code" 1 {form}')
    profile = Profile(server_options=options, client_options=client)
    with StockServer(network, profile), at_a_terminal(network, ordinary_env, profile) as (terminal, program):
        seen = read_until(terminal, "User: ")
        os.write(terminal, b"alice\n")
        seen += read_until(terminal, "Password for alice: ")
        os.write(terminal, b"secret\n")
        seen += read_until(terminal, "Your code: ")
        os.write(terminal, b"123456\n")
        seen += read_until(terminal, "up: 10.8.0.")
        program.send_signal(signal.SIGINT)
        seen += read_to_end(terminal)
        assert program.wait(10) == 0
    assert "123456" in seen
    assert "secret" not in seen


@pytest.mark.parametrize("nocache", [True, False])
def test_what_was_typed_is_asked_for_again_with_auth_nocache(
    network: Network, ordinary_env: Environment, nocache: bool
) -> None:
    options = ("auth-nocache",) if nocache else ()
    profile = Profile(password=True, keepalive=(1, 3), client_options=options)
    with (
        StockServer(network, profile) as server,
        at_a_terminal(network, ordinary_env, profile) as (terminal, program),
    ):
        read_until(terminal, "User: ")
        os.write(terminal, f"{LOGIN[0]}\n".encode())
        read_until(terminal, f"Password for {LOGIN[0]}: ")
        os.write(terminal, f"{LOGIN[1]}\n".encode())
        read_until(terminal, "up: 10.8.0.")
        server.kill()
        server.start()
        seen = ""
        if nocache:
            seen = read_until(terminal, f"Password for {LOGIN[0]}: ")
            os.write(terminal, f"{LOGIN[1]}\n".encode())
        seen += read_until(terminal, "up: 10.8.0.")
        assert seen.count("Password") == nocache
        program.send_signal(signal.SIGINT)
        read_to_end(terminal)
        assert program.wait(10) == 0


@pytest.mark.parametrize("options", [(), ("auth-nocache",)])
def test_a_login_from_the_environment(network: Network, ordinary_env: Environment, options: tuple[str, ...]) -> None:
    """An encrypted key's password as well. There is no terminal."""
    profile = Profile(password=True, keepalive=(1, 3), client_options=options)
    key = COMMON_KEYS.ca_signed.client.key
    text = profile.client_file().replace(key.rstrip("\n"), encrypt(key).rstrip("\n"))
    env = dict(zip(("GINNEL_USERNAME", "GINNEL_PASSWORD"), LOGIN, strict=True)) | {"GINNEL_KEY_PASSWORD": KEY_PASSWORD}
    with StockServer(network, profile) as server, GinnelClient(network, ordinary_env, text, env=env) as client:
        come_back(server, client)
        assert client.curl("http://wiki.office/") == office.PAGE.decode()
        client.stop()


@pytest.mark.parametrize(("retry", "times"), [("none", 1), ("nointeract", 2)])
def test_auth_retry(network: Network, ordinary_env: Environment, tmp_path: Path, retry: str, times: int) -> None:
    """The first login is refused, the same again is not."""
    check = script(tmp_path, f"echo x >> {tmp_path}/tries; [ $(wc -l < {tmp_path}/tries) = 2 ]")
    (tmp_path / "tries").touch()
    options = ("auth-user-pass", f"auth-retry {retry}")
    profile = Profile(server_options=(f"auth-user-pass-verify {check} via-file",), client_options=options)
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile, login=LOGIN) as client:
        if times == 1:
            assert client.fail()[0] == 4
        else:
            assert client.curl("http://wiki.office/") == office.PAGE.decode()
            client.stop()
    assert (tmp_path / "tries").read_text().count("x") == times


def test_auth_retry_interact(network: Network, ordinary_env: Environment) -> None:
    profile = Profile(password=True, client_options=("auth-retry interact",))
    with StockServer(network, profile), at_a_terminal(network, ordinary_env, profile) as (terminal, program):
        for password in ("a guess", LOGIN[1]):
            read_until(terminal, "User: ")
            os.write(terminal, f"{LOGIN[0]}\n".encode())
            read_until(terminal, f"Password for {LOGIN[0]}: ")
            os.write(terminal, f"{password}\n".encode())
        read_until(terminal, "up: 10.8.0.")
        program.send_signal(signal.SIGINT)
        read_to_end(terminal)
        assert program.wait(10) == 0


def test_a_signal_at_the_question_ends_it(network: Network, ordinary_env: Environment) -> None:
    profile = Profile(client_options=("auth-user-pass",))
    with at_a_terminal(network, ordinary_env, profile) as (terminal, program):
        read_until(terminal, "User: ")
        os.write(terminal, b"alice\n")
        read_until(terminal, "Password for alice: ")
        program.send_signal(signal.SIGTERM)
        read_to_end(terminal)
        assert program.wait(10) == 0


def test_a_token_takes_the_place_of_a_password_that_works_once(
    network: Network, ordinary_env: Environment, tmp_path: Path
) -> None:
    used = tmp_path / "used"
    check = script(tmp_path, f"[ ! -e {used} ] && touch {used}")
    secret = tmp_path / "token-secret"
    subprocess.run(["openvpn", "--genkey", "auth-token", secret], check=True, timeout=20)
    options = (
        f"auth-user-pass-verify {check} via-file",
        "auth-gen-token 600",
        f"auth-gen-token-secret {secret}",
    )
    profile = Profile(server_options=options, client_options=("auth-user-pass",), keepalive=(1, 3))
    with (
        StockServer(network, profile) as server,
        GinnelClient(network, ordinary_env, profile, login=LOGIN) as client,
    ):
        come_back(server, client)
        assert client.curl("http://wiki.office/") == office.PAGE.decode()
        client.stop()


def test_a_token_is_renewed(network: Network, ordinary_env: Environment, tmp_path: Path) -> None:
    """At each renegotiation, in a message of its own."""
    used = tmp_path / "used"
    check = script(tmp_path, f"[ ! -e {used} ] && touch {used}")
    options = (f"auth-user-pass-verify {check} via-file", "auth-gen-token 600 120", "reneg-sec 2 2")
    profile = Profile(server_options=options, client_options=("auth-user-pass", "reneg-sec 0"))
    with (
        StockServer(network, profile) as server,
        GinnelClient(network, ordinary_env, profile, login=LOGIN) as client,
    ):
        client.wait_up()
        wait_until(lambda: sum("auth-tokenSESS_ID" in line for line in server.log) >= 3, 30, lambda: server.log)
        assert client.curl("http://wiki.office/") == office.PAGE.decode()
        assert [event["event"] for event in client.events] == ["up"]
        client.stop()


def test_an_expired_token_makes_way_for_the_password(
    network: Network, ordinary_env: Environment, tmp_path: Path
) -> None:
    secret = tmp_path / "token-secret"
    subprocess.run(["openvpn", "--genkey", "auth-token", secret], check=True, timeout=20)
    options = ("auth-gen-token 1", f"auth-gen-token-secret {secret}", "verb 4")
    profile = Profile(password=True, server_options=options, keepalive=(1, 3))
    with (
        StockServer(network, profile) as server,
        GinnelClient(network, ordinary_env, profile, login=LOGIN) as client,
    ):
        come_back(server, client)
        assert server.wait_log("expired")
        assert client.curl("http://wiki.office/") == office.PAGE.decode()
        client.stop()


def test_a_refusal_has_the_servers_reason(network: Network, ordinary_env: Environment, tmp_path: Path) -> None:
    check = script(tmp_path, 'echo "your account is locked" > "$auth_failed_reason_file"; exit 1')
    profile = Profile(server_options=(f"auth-user-pass-verify {check} via-file",), client_options=("auth-user-pass",))
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile, login=LOGIN) as client:
        status, line = client.fail()
    assert status == 4
    assert "your account is locked" in line


def test_a_login_in_the_browser(network: Network, ordinary_env: Environment, tmp_path: Path) -> None:
    check = script(
        tmp_path,
        'printf "60\\nopenurl\\nOPEN_URL:https://login.example/x\\n" > "$auth_pending_file"\n'
        f'( while [ ! -e {tmp_path}/approved ]; do sleep 0.1; done; echo 1 > "$auth_control_file" ) '
        ">/dev/null 2>&1 &\nexit 2",
    )
    profile = Profile(server_options=(f"auth-user-pass-verify {check} via-file",), client_options=("auth-user-pass",))
    with StockServer(network, profile), GinnelClient(network, ordinary_env, profile, login=LOGIN) as client:
        assert client.wait_next("open_url")["url"] == "https://login.example/x"
        (tmp_path / "approved").touch()
        client.wait_up()
        assert client.curl("http://wiki.office/") == office.PAGE.decode()
        client.stop()
