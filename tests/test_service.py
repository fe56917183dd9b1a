"""Devices with a name: opened, shown and set from other processes, and free again whoever dies."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import multiprocessing
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address, ip_interface, ip_network
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import pytest

import ginnel.device
from ginnel.device import Service, create
from ginnel.device.address import Address, Route
from ginnel.device.directory import Claim, Directory, claim_name
from ginnel.device.forge import Datagram, Echo
from ginnel.device.service import MAX_CLIENTS, MAX_REQUEST, Holder
from ginnel.errors import ConfigError, DeviceError
from tests.harness.pcapng import CaptureFile

T = TypeVar("T")
OWN, THEIRS = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
PACKET = Datagram(THEIRS, 1234, OWN, 7).emit()


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for devices of this test alone."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "ginnel"


@pytest.fixture
async def device() -> AsyncIterator[Service]:
    async with create("tun0", addresses=["10.0.0.1/24", "fd00::1/64"]) as made:
        yield made


async def other(call: Callable[..., T], *arguments: Any, **more: Any) -> T:
    """What another process would do: a call that waits for the device's owner."""
    return await asyncio.to_thread(call, *arguments, **more)


def restrict(path: Path, mode: int) -> None:
    path.chmod(mode)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def refused(code: int, text: str, call: Callable[..., object], *arguments: Any, **more: Any) -> None:
    with pytest.raises(DeviceError, match=text) as caught:
        await other(call, *arguments, **more)
    assert caught.value.errno == code
    assert "\n" not in str(caught.value)
    # The reason stands in the line once.
    assert str(caught.value).count(os.strerror(code)) == 1


async def test_packets_go_both_ways(device: Service) -> None:
    async with await device.stack.open_datagram(port=7) as datagrams:
        with await other(ginnel.device.open, "tun0") as end:
            assert (end.name, end.kind, end.mtu) == ("tun0", "tun", 1500)
            end.write(PACKET)
            data, address = await datagrams.recvfrom()
            assert (data, address) == (b"", ("10.0.0.2", 1234))
            await datagrams.sendto(b"hello", address)
            assert (await other(end.read, 20)).endswith(b"hello")


async def test_the_descriptor_is_read_and_written_as_dev_net_tun_is(device: Service) -> None:
    async with await device.stack.open_datagram(port=7) as datagrams:
        end = await other(ginnel.device.open, "tun0")
        descriptor = end.open_fd()
        assert end.closed
        assert not os.get_inheritable(descriptor)
        assert os.write(descriptor, PACKET) == len(PACKET)
        await datagrams.recvfrom()
        reading = asyncio.create_task(other(os.read, descriptor, 65_536))
        await datagrams.sendto(b"hello", ("10.0.0.2", 1234))
        assert (await reading).endswith(b"hello")
        await other(ginnel.device.delete, "tun0")
        assert await other(os.read, descriptor, 65_536) == b""
        os.close(descriptor)


async def test_show_says_what_there_is(device: Service) -> None:
    with await other(ginnel.device.open, "tun0") as end:
        end.write(PACKET)
        shown = await other(ginnel.device.show, "tun0")
        # The packet may still be on its way.
        deadline = time.monotonic() + 20
        while shown["statistics"]["rx_packets"] < 1:
            assert time.monotonic() < deadline
            shown = await other(ginnel.device.show, "tun0")
        assert (shown["name"], shown["kind"], shown["state"], shown["mtu"]) == ("tun0", "tun", "up", 1500)
        assert shown["addresses"] == ["10.0.0.1/24", "fd00::1/64"]
        assert shown["application"] == [{"queue": 0, "pid": os.getpid(), "program": shown["interface"]["program"]}]
        assert shown["interface"]["pid"] == os.getpid()
        assert await other(ginnel.device.list_devices) == [await other(ginnel.device.show, "tun0")]
    while shown["application"]:
        assert time.monotonic() < deadline
        shown = await other(ginnel.device.show, "tun0")


async def test_what_is_set_elsewhere_is_set(device: Service) -> None:
    await other(ginnel.device.set_mtu, "tun0", 1400)
    await other(ginnel.device.set_up, "tun0", False)
    await other(ginnel.device.add_address, "tun0", "10.1.0.1/16")
    assert (device.interface.mtu, device.interface.up) == (1400, False)
    assert (await other(ginnel.device.show, "tun0"))["addresses"][-1] == "10.1.0.1/16"
    for mtu in (67, 1 << 70, -1):
        await refused(errno.EINVAL, f"MTU {mtu} is outside", ginnel.device.set_mtu, "tun0", mtu)
    await refused(errno.EEXIST, "10.1.0.1/16", ginnel.device.add_address, "tun0", "10.1.0.1/16")
    await refused(errno.EINVAL, "write one as", ginnel.device.add_address, "tun0", "10.1.0.400")


async def test_a_device_is_up_if_it_has_an_address_unless_told() -> None:
    for addresses, up, expected in [([], None, False), ([], True, True), (["10.0.0.1/24"], False, False)]:
        async with create("tun0", addresses=addresses, up=up) as device:
            assert device.interface.up is expected


async def test_deleting_ends_the_owner_and_the_program(device: Service, runtime: Path) -> None:
    end = await other(ginnel.device.open, "tun0")
    waiting = asyncio.create_task(other(end.read))
    await other(ginnel.device.delete, "tun0")
    await device.wait_deleted()
    assert await waiting == b""
    end.close()


async def test_a_device_has_one_program_unless_they_share(device: Service) -> None:
    end = await other(ginnel.device.open, "tun0")
    await refused(errno.EBUSY, rf"tun0 is held by .+ \(pid {os.getpid()}\)", ginnel.device.open, "tun0")
    await refused(errno.EBUSY, "held by", ginnel.device.open, "tun0", share=True)
    end.close()
    ends = [await other(ginnel.device.open, "tun0", share=True) for _ in range(3)]
    assert len((await other(ginnel.device.show, "tun0"))["application"]) == 3
    await refused(errno.EBUSY, "held by", ginnel.device.open, "tun0")
    for each in ends:
        each.close()
    (await other(ginnel.device.open, "tun0")).close()


async def test_a_program_that_is_about_to_end_is_waited_for(device: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ginnel.device.service.DYING", 20)
    first = await other(ginnel.device.open, "tun0")
    opening = asyncio.create_task(other(ginnel.device.open, "tun0"))
    await other(ginnel.device.show, "tun0")
    first.close()
    (await opening).close()


async def test_names(device: Service, runtime: Path) -> None:
    await refused(errno.EEXIST, "there is a device tun0 already", claim_name, "tun0")
    await refused(errno.ENODEV, "there is no device tun1", ginnel.device.open, "tun1")
    for name in ("", ".", "..", "a/b", "a" * 16, "tun 0", "tün0", "%s", "%d%d", "x\n"):
        await refused(errno.EINVAL, "is no name for a device", claim_name, name)
        await refused(errno.EINVAL, "is no name for a device", ginnel.device.show, name)
    with claim_name("tun%d") as next_one, claim_name("tun%d") as another, claim_name("tun0.lock") as odd:
        assert (next_one.name, another.name, odd.name) == ("tun1", "tun2", "tun0.lock")
    async with create("tap%d", kind="tap") as tap:
        assert tap.name == "tap0"
        assert [shown["name"] for shown in await other(ginnel.device.list_devices)] == ["tap0", "tun0"]
        assert len((await other(ginnel.device.show, "tap0"))["mac"]) == 17
    assert sorted(os.listdir(runtime)) == ["tun0.lock", "tun0.socket"]


async def test_nothing_is_left_behind(runtime: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        async with create("tun%d", addresses=["10.0.0.1/24"]) as device:
            assert device.name == "tun0"
            (await other(ginnel.device.open, "tun0")).close()
    assert os.listdir(runtime) == []
    # What is left of the last one goes with its object.
    del device
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


async def test_the_place_is_for_this_user_alone(device: Service, runtime: Path) -> None:
    assert mode_of(runtime) == 0o700
    assert {mode_of(runtime / file) for file in os.listdir(runtime)} == {0o600}
    restrict(runtime, 0o750)
    await refused(errno.EPERM, "not yours alone", ginnel.device.open, "tun0")
    await refused(errno.EPERM, "not yours alone", claim_name, "tun1")
    restrict(runtime, 0o700)
    (await other(ginnel.device.open, "tun0")).close()


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path, runtime: Path) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    runtime.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError):
        claim_name("tun0")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_place_that_is_no_use_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc")
    for use in (lambda: claim_name("tun0"), ginnel.device.list_devices):
        with pytest.raises(DeviceError, match=r"^devices cannot be kept in /proc/ginnel; set XDG_RUNTIME_DIR to .*$"):
            use()
    # One that is there and takes no files: /proc/self/fd is our own, and private.
    (tmp_path / "ginnel").mkdir(0o700)
    script = f"""
import os, resource
os.environ["XDG_RUNTIME_DIR"] = {str(tmp_path)!r}
from ginnel.device.directory import Directory
with Directory() as directory:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    for use in (lambda: directory.claim("tun0"), directory.names):
        try:
            use()
        except OSError as error:
            print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("DeviceError devices cannot be kept in") == 2, done.stdout


async def test_a_long_runtime_directory_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("long" * 30) / ("deep" * 30)
    deep.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    async with create("tun0"):
        (await other(ginnel.device.open, "tun0")).close()


async def test_a_device_with_very_much_to_show_is_shown(device: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of each a few more than are shown.
    monkeypatch.setattr("ginnel.device.interface.MAX_ADDRESSES", 310)
    monkeypatch.setattr("ginnel.device.interface.MAX_ROUTES", 510)
    interface = device.interface
    far, gateway = "2001:db8:1234:5678:9abc:def0:1234", ip_address("2001:db8:1234:5678:9abc:def0:1234:ffff")
    # Two it has already.
    for number in range(1, 309):
        interface.add_address(Address(ip_interface(f"{far}:{number:x}/128")))
    for number in range(510):
        interface.add_route(Route(ip_network(f"{far}:{number:x}/128"), gateway, 1 << 31, 77))
    programs = [interface.attach() for _ in range(256)]
    for _, number in programs:
        device.holders[number] = Holder(number, "長" * 40)
    for add in (
        lambda: interface.add_address(Address(ip_interface("fd00::9/128"))),
        lambda: interface.add_route(Route(ip_network("fd09::/16"))),
    ):
        with pytest.raises(DeviceError) as caught:
            add()
        assert caught.value.errno == errno.ENOBUFS
    shown = await other(ginnel.device.show, "tun0")
    assert (shown["address_count"], shown["route_count"]) == (310, 510)
    assert (len(shown["addresses"]), len(shown["routes"]), len(shown["application"])) == (300, 500, 256)
    assert shown["routes"][0].endswith("metric 2147483648 table 77")
    for sock, _ in programs:
        sock.close()


# One after the other, with ten seconds for each, it would be two minutes.
@pytest.mark.timeout(60)
async def test_owners_that_do_not_answer_are_listed_as_such_and_hold_nobody_up(device: Service) -> None:
    def silent(name: str) -> tuple[Claim, socket.socket]:
        claim = claim_name(name)
        return claim, claim.listen()

    stopped = [silent(f"stuck{number}") for number in range(12)]
    try:
        found = await other(ginnel.device.list_devices)
    finally:
        for claim, listener in stopped:
            listener.close()
            claim.release()
    silent_ones = [shown["name"] for shown in found if shown["state"] == "not answering"]
    assert silent_ones == sorted(f"stuck{number}" for number in range(12))
    assert [shown["name"] for shown in found if shown["state"] == "up"] == ["tun0"]


async def test_requests_of_any_content_do_no_harm(device: Service) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    values = [None, True, -1, 1 << 70, 1.5, "", "x" * 100, [], {}, "fd00::2%x", "fd00::2%x/64", 0, 65_536]
    keys = ["do", "up", "mtu", "address", "timeout", "port", "packet_info", "share"]
    verbs = ["show", "set", "ping", "datagrams", "SHOW", None, [], {}]
    fixed = [b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * MAX_REQUEST, b'{"do":' * 600, b" " * (MAX_REQUEST + 1)]
    fixed += [
        b'{"do":"ping","address":"10.0.0.9","timeout":NaN}',
        b'{"do":"ping","address":"10.0.0.9","timeout":-1e999}',
    ]
    fixed += [b'{"do":"set","mtu":' + b"9" * 4000 + b"}"]

    def attack() -> None:
        with Directory() as directory:
            for number in range(400):
                with directory.connect("tun0") as sock:
                    if number < len(fixed):
                        message = fixed[number]
                    elif number % 2:
                        message = chance.randbytes(chance.randrange(1, 200))
                    else:
                        request = {chance.choice(keys): chance.choice(values) for _ in range(3)}
                        message = json.dumps({**request, "do": chance.choice(verbs), "timeout": 0}).encode()
                    sock.send(message)
                    answer = sock.recv(1 << 17)
                    assert not message or isinstance(json.loads(answer), dict)
                    assert b"NaN" not in message or json.loads(answer)["errno"] == errno.EINVAL

    await other(attack)
    assert (await other(ginnel.device.show, "tun0"))["name"] == "tun0"


async def test_descriptors_that_a_client_sends_are_not_kept(device: Service) -> None:
    def send() -> None:
        with Directory() as directory, directory.connect("tun0") as sock, open("/dev/null") as file:
            for _ in range(50):
                socket.send_fds(sock, [b'{"do":"show"}'], [file.fileno()])
                assert json.loads(sock.recv(1 << 17))["name"] == "tun0"

    before = len(os.listdir("/proc/self/fd"))
    await other(send)
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


async def test_clients_that_hang_on_are_bounded(device: Service) -> None:
    def hang_on() -> list[socket.socket]:
        with Directory() as directory:
            return [directory.connect("tun0") for _ in range(MAX_CLIENTS)]

    held = await other(hang_on)
    for _ in range(20):
        await refused(errno.EBUSY, "try again in a moment", ginnel.device.show, "tun0")
    for sock in held:
        sock.close()
    deadline = time.monotonic() + 20
    while True:
        try:
            await other(ginnel.device.show, "tun0")
            break
        except DeviceError:
            assert time.monotonic() < deadline


async def test_the_stack_is_used_from_elsewhere(device: Service) -> None:
    sock, port = await other(ginnel.device.named.open_datagrams, "tun0", 7)
    assert port == 7
    with await other(ginnel.device.open, "tun0") as end, sock:
        end.write(PACKET)
        message = await other(sock.recv, 100)
        assert message == bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 2]) + struct.pack("!H", 1234)
        sock.send(message + b"back")
        assert (await other(end.read, 20)).endswith(b"back")
    assert await other(ginnel.device.named.ping, "tun0", "10.0.0.9", 0.01) is None
    await refused(errno.EINVAL, "no address", ginnel.device.named.ping, "tun0", "host.example", 0.01)
    await refused(errno.EINVAL, "leave %eth0 out", ginnel.device.named.ping, "tun0", "fe80::1%eth0", 0.01)
    await other(ginnel.device.set_up, "tun0", False)
    await refused(errno.ENETDOWN, "tun0 is down", ginnel.device.named.ping, "tun0", "10.0.0.9", 0.01)


async def test_a_capture_of_a_named_device(tmp_path: Path) -> None:
    path = tmp_path / "tun0.pcapng"
    async with create("tun0", addresses=["10.0.0.1/24"], capture=path):
        with await other(ginnel.device.open, "tun0") as end:
            end.write(Echo(THEIRS, OWN, 1, 1).emit())
            sent = await other(end.read, 20)
    found = CaptureFile(path)
    assert found.name == "tun0"
    assert [(packet.direction, packet.data) for packet in found.packets] == [
        ("in", Echo(THEIRS, OWN, 1, 1).emit()),
        ("out", sent),
    ]
    with pytest.raises(ConfigError, match="cannot write"):
        async with create("tun0", capture=tmp_path):
            pass


def own(name: str, ready: Any) -> None:
    """A process that owns a device until it is killed."""

    async def main() -> None:
        async with create(name, addresses=["10.0.0.1/24"]) as device:
            ready.send(None)
            await device.wait_deleted()

    asyncio.run(main())


def use(name: str, ready: Any) -> None:
    """A process that pings the stack behind a device until it is killed, and says when the device has ended."""
    request = Echo(THEIRS, OWN, 1, 1).emit()
    with ginnel.device.open(name) as end:
        end.write(request)
        assert end.read(20)
        ready.send("open")
        while end.read():
            end.write(request)
        ready.send("ended")


def test_whoever_is_killed_the_next_open_works(runtime: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ginnel.device", "tests.test_service"])

    def start(target: Callable[[str, Any], None]) -> tuple[BaseProcess, Any]:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=target, args=("tun0", theirs), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def expect(said: Any, word: str | None) -> None:
        assert said.poll(30)
        assert said.recv() == word

    owner: BaseProcess | None = None
    kills, open_files = 0, set()
    while kills < 200:
        if owner is None:
            owner, said = start(own)
            expect(said, None)
        program, said = start(use)
        expect(said, "open")
        time.sleep(chance.random() * 0.005)
        victims = chance.choice([[program], [owner], [owner, program], [program, owner]])
        for victim in victims:
            victim.kill()
            kills += 1
        for victim in victims:
            victim.join(30)
            assert victim.exitcode is not None
        if owner in victims:
            owner = None
            if program not in victims:
                expect(said, "ended")
        else:
            assert owner is not None
            open_files.add(len(os.listdir(f"/proc/{owner.pid}/fd")))
        program.join(30)
        assert program.exitcode is not None
        said.close()
    if owner is not None:
        owner.kill()
        owner.join(30)
    assert max(open_files) <= min(open_files) + 4
    with claim_name("tun0"):
        pass
    assert list(runtime.iterdir()) == []
