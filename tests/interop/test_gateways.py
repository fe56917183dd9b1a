"""Every way in that ``ginnel connect`` opens: SOCKS on a port and on a path, a forwarded port."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator

import pytest

from tests.harness import office
from tests.harness.client import GinnelClient, curl
from tests.harness.environment import Environment
from tests.harness.network import Network
from tests.harness.pcapng import CaptureFile
from tests.harness.process import run
from tests.harness.profile import Profile
from tests.harness.server import StockServer

PORT = 18080


@pytest.fixture(scope="module")
def profile(network: Network) -> Iterator[Profile]:
    profile = Profile()
    with StockServer(network, profile):
        yield profile


@pytest.fixture
def client(network: Network, ordinary_env: Environment, profile: Profile) -> Iterator[GinnelClient]:
    with GinnelClient(network, ordinary_env, profile, "-L", f"{PORT}:wiki.office:80") as client:
        client.wait_up()
        yield client


@pytest.mark.parametrize("host", ["wiki.office", "four.office", "six.office", office.ADDRESS, f"[{office.ADDRESS6}]"])
def test_socks(client: GinnelClient, host: str) -> None:
    assert client.curl(f"http://{host}/") == office.PAGE.decode()


def test_outside_there_is_no_way_in(client: GinnelClient) -> None:
    with pytest.raises(AssertionError, match="status 7"):
        curl(client.network.client, f"http://{office.ADDRESS}/")


def test_upload(client: GinnelClient) -> None:
    file = client.folder / "upload"
    file.write_bytes(office.body(3_000_000))
    answer = client.curl("--upload-file", str(file), "http://files.office/upload")
    assert answer == office.body_hash(3_000_000)


def test_forwarded_port(client: GinnelClient) -> None:
    (forward,) = client.wait_up()["forwards"]
    assert forward == {"listen": f"127.0.0.1:{PORT}", "host": "wiki.office", "port": 80}
    assert curl(client.network.client, f"http://127.0.0.1:{PORT}/") == office.PAGE.decode()


def test_socks_on_a_path(network: Network, ordinary_env: Environment, profile: Profile) -> None:
    with GinnelClient(network, ordinary_env, profile, socks="unix:gate") as client:
        client.wait_up()
        path = client.folder / "gate"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        proxy = f"socks5h://localhost{path}"
        assert curl(network.client, "--proxy", proxy, "http://wiki.office/") == office.PAGE.decode()
        client.stop()
        assert not path.exists()


def test_unknown_name_and_closed_port(client: GinnelClient) -> None:
    for url in ("http://nobody.office/", "http://wiki.office:81/"):
        # curl's status for a SOCKS reply that refuses.
        with pytest.raises(AssertionError, match="status 97"):
            client.curl(url)
    assert client.curl("http://wiki.office/") == office.PAGE.decode()


def test_json_is_one_object_a_line(client: GinnelClient) -> None:
    client.stop()
    events = [json.loads(line) for line in client.process.out.all()]
    assert [event["event"] for event in events] == ["up", "down"]
    assert events[0]["transport"] == "udp"
    assert events[0]["address"].startswith("10.8.0.")
    assert events[0]["address6"].startswith("fd08::")


def test_a_capture_of_the_tunnel(network: Network, ordinary_env: Environment, profile: Profile) -> None:
    with GinnelClient(network, ordinary_env, profile, "--capture", "office.pcapng") as client:
        client.wait_up()
        assert client.curl(f"http://{office.ADDRESS}/") == office.PAGE.decode()
        client.stop()
        file = client.folder / "office.pcapng"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        requests = [packet.direction for packet in CaptureFile(file).packets if b"GET /" in packet.data]
        assert requests == ["out"]
        words = ["-Y", "http or tcp.analysis.lost_segment", "-T", "fields", "-e", "http.request.method"]
        fields = run(["tshark", "-r", file, *words, "-e", "http.response.code", "-e", "tcp.analysis.lost_segment"])
    assert [line.split() for line in fields.splitlines()] == [["GET"], ["200"]]


def test_a_capture_that_cannot_be_written_is_said_before_anything_is_done(
    network: Network, ordinary_env: Environment, profile: Profile
) -> None:
    with GinnelClient(network, ordinary_env, profile, "--capture", "no/folder/x.pcapng") as client:
        assert client.process.wait(30) == 2
        assert "cannot write no/folder/x.pcapng: No such file or directory" in str(client.process)
