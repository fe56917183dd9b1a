"""Forged packets, and the programs that try a device out."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Iterator

import pytest

from ginnel.device import DeviceEnd, MemoryDevice
from ginnel.device.echo import (
    Answered,
    Asked,
    DatagramProbe,
    EchoProbe,
    Pace,
    Packets,
    Probe,
    answer_datagram,
    answer_echo,
    ask,
    respond,
)
from ginnel.device.ethernet import EthernetEnd
from ginnel.device.forge import Datagram, Echo, checksum, parse
from ginnel.errors import DeviceError

V4 = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
V6 = (bytes.fromhex("fd00" + "00" * 13 + "01"), bytes.fromhex("fd00" + "00" * 13 + "02"))
NETWORKS = [("10.0.0.1", ["10.0.0.2", "10.0.0.3", "10.0.0.4"]), ("fd00::1", ["fd00::2", "fd00::3", "fd00::4"])]


@pytest.fixture(params=["tun", "tap"])
def device(request: pytest.FixtureRequest) -> Iterator[MemoryDevice]:
    with MemoryDevice(request.param) as made:
        made.set_up(True)
        yield made


def packets(device: MemoryDevice, end: DeviceEnd) -> Packets:
    return EthernetEnd(end) if device.kind == "tap" else end


@pytest.mark.parametrize("addresses", [V4, V6])
@pytest.mark.parametrize("size", [0, 1, 2, 57, 1400, 65_000])
def test_what_is_emitted_is_parsed_again(addresses: tuple[bytes, bytes], size: int) -> None:
    payload = random.Random(size).randbytes(size)
    for carried in (Echo(*addresses, 1, 65_535, payload), Datagram(addresses[0], 7, addresses[1], 65_535, payload)):
        assert parse(carried.emit()) == carried
        assert parse(carried.emit() + b"padding of a short frame") == carried


@pytest.mark.parametrize("addresses", [V4, V6])
def test_a_packet_with_any_bit_wrong_is_not_taken_for_another(addresses: tuple[bytes, bytes]) -> None:
    for carried in (Echo(*addresses, 5, 6, b"text"), Datagram(addresses[0], 7, addresses[1], 8, b"text")):
        sound = carried.emit()
        for bit in range(len(sound) * 8):
            damaged = bytearray(sound)
            damaged[bit // 8] ^= 0x80 >> bit % 8
            found = parse(bytes(damaged))
            # In IPv6, traffic class, flow label and hop limit are under no checksum.
            assert found is None or (len(addresses[0]) == 16 and found == carried)


def test_a_packet_cut_anywhere_is_no_packet() -> None:
    for addresses in (V4, V6):
        whole = Datagram(addresses[0], 7, addresses[1], 8, b"text").emit()
        for length in range(len(whole)):
            assert parse(whole[:length]) is None


def test_a_datagram_may_have_no_checksum_in_ipv4_alone() -> None:
    for addresses, taken in ((V4, True), (V6, False)):
        whole = bytearray(Datagram(addresses[0], 7, addresses[1], 8, b"text").emit())
        whole[-6:-4] = b"\0\0"
        assert (parse(bytes(whole)) is not None) == taken


def test_a_sum_of_zero_is_sent_as_its_other_form() -> None:
    found = [Datagram(V4[0], 7, V4[1], port, b"").emit()[26:28] for port in range(1, 65_536)]
    assert b"\0\0" not in found
    assert b"\xff\xff" in found


def test_checksum() -> None:
    # The example of RFC 1071, section 3.
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == bytes.fromhex("220d")
    assert checksum(b"\x01") == checksum(b"\x01\x00")


@pytest.mark.parametrize(("address", "sources"), NETWORKS)
@pytest.mark.parametrize("what", ["echo", "datagram"])
def test_several_sources_are_answered_each_to_itself(
    device: MemoryDevice, address: str, sources: list[str], what: str
) -> None:
    answer: Callable[[bytes], tuple[bytes, str] | None] = answer_echo
    probe: Probe = EchoProbe(sources, address, 100)
    if what == "datagram":
        answer, probe = functools.partial(answer_datagram, port=7), DatagramProbe(sources, address, 7, 100)
    answered, asked = Answered(), Asked(sources)
    responder = threading.Thread(target=respond, args=(packets(device, device.application), answer, answered))
    responder.start()
    replies: list[tuple[str, int]] = []
    try:
        ask(
            packets(device, device.interface),
            probe,
            Pace(count=50, interval=0, timeout=20),
            asked,
            lambda source, number, seconds: replies.append((source, number)),
        )
    finally:
        device.close()
        responder.join(20)
    assert sorted(replies) == sorted((source, number) for source in sources for number in range(1, 51))
    seen = asked.describe()
    assert (seen["sent"], seen["received"], seen["lost"], seen["duplicates"]) == (150, 150, 0, 0)
    assert seen["sources"] == {source: {"sent": 50, "received": 50} for source in sources}
    assert 0 < seen["latency"]["min"] <= seen["latency"]["median"] <= seen["latency"]["max"]
    assert answered.describe() == {
        "answered": 150,
        "other": answered.other,
        "refused": 0,
        "sources": dict.fromkeys(sources, 50),
    }


class Wire:
    """Answers requests as told, without a device."""

    def __init__(self, *answers: Callable[[Echo], list[bytes]]) -> None:
        self._answers = list(answers)
        self._coming: list[bytes] = []

    def read(self, timeout: float | None = None) -> bytes:
        if self._coming:
            return self._coming.pop(0)
        raise TimeoutError

    def write(self, packet: bytes) -> int:
        asked = parse(packet)
        assert isinstance(asked, Echo)
        self._coming += self._answers.pop(0)(asked)
        return len(packet)


def test_what_is_lost_comes_twice_or_is_for_somebody_else_is_counted_as_that() -> None:
    good = Echo.reply
    wire = Wire(
        lambda asked: [],
        lambda asked: [good(asked).emit(), good(asked).emit()],
        lambda asked: [asked.emit(), b"\x45 nonsense", good(Echo(*V4, 1, 1, b"not ours")).emit()],
        lambda asked: [good(asked).emit()[:-1] + b"?"],
        lambda asked: [good(asked).emit()],
    )
    probe = EchoProbe(["10.0.0.2"], "10.0.0.1", 10)
    seen = Asked(probe.sources)
    ask(wire, probe, Pace(count=5, interval=0, timeout=0.01), seen)
    assert (seen.sent, seen.received, seen.duplicates, seen.other) == ([5], [2], 1, 4)
    assert seen.describe()["lost"] == 3


def test_the_end_of_the_device_ends_both() -> None:
    with MemoryDevice() as device:
        device.set_up(True)
        end = device.application
        device.interface.close()
        answered = Answered()
        respond(end, answer_echo, answered)
        assert answered.answered == 0


def test_asking_says_that_the_device_has_ended() -> None:
    class Ended(Wire):
        def read(self, timeout: float | None = None) -> bytes:
            return b""

    probe = EchoProbe(["10.0.0.2"], "10.0.0.1", 10)
    with pytest.raises(DeviceError, match="ended"):
        ask(Ended(lambda asked: []), probe, Pace(1, 1, 1), Asked(probe.sources))


def test_requests_to_groups_and_replies_are_not_answered() -> None:
    for destination in (bytes([224, 0, 0, 1]), b"\xff" * 4):
        assert answer_echo(Echo(V4[0], destination, 1, 1).emit()) is None
    assert answer_echo(Echo(V6[0], bytes.fromhex("ff02" + "00" * 13 + "01"), 1, 1).emit()) is None
    assert answer_echo(Echo(*V4, 1, 1, b"", True).emit()) is None
    assert answer_datagram(Datagram(V4[0], 7, V4[1], 8).emit(), 7) is None


def test_nobody_is_made_to_believe_that_its_address_is_taken() -> None:
    with MemoryDevice("tap") as device:
        device.set_up(True)
        end = EthernetEnd(device.application)
        probe = bytes.fromhex(
            "ffffffffffff020000000001 0806 0001080006040001 020000000001 00000000 000000000000 0a000001"
        )
        announcement = probe[:28] + V4[0] + probe[32:]
        solicitation = (
            bytes.fromhex(
                "3333ff000001020000000001 86dd 6000000000183aff"
                "00000000000000000000000000000000 ff0200000000000000000001ff000001 8700 0000 00000000"
            )
            + V6[0]
        )
        for frame in (probe, announcement, solicitation):
            device.interface.write(frame)
            assert end.read(20) is None
        assert device.interface.read_batch(9) == []


@pytest.mark.parametrize("packet", [Echo(*V4, 1, 1).emit(), Echo(*V6, 1, 1).emit()], ids=["v4", "v6"])
def test_a_request_for_an_address_that_is_lost_is_made_again(packet: bytes) -> None:
    with MemoryDevice("tap") as device:
        device.set_up(True)
        end, other = EthernetEnd(device.application), EthernetEnd(device.interface)
        end.write(packet)
        assert device.interface.read(0)
        reader = threading.Thread(target=respond, args=(end, answer_echo, Answered()))
        reader.start()
        while (found := other.read(20)) is None:
            pass
        assert found == packet
        device.close()
        reader.join(20)


def test_an_address_that_nobody_has_is_asked_for_three_times_and_what_waited_is_counted() -> None:
    with MemoryDevice("tap") as device:
        device.set_up(True)
        end = EthernetEnd(device.application)
        for number in range(20):
            end.write(Echo(*V4, 1, number).emit())
        with pytest.raises(TimeoutError):
            end.read(2.5)
        assert [frame[12:14] for frame in device.interface.read_batch(99)] == [b"\x08\x06"] * 3
        assert end.dropped == 20
        with pytest.raises(TimeoutError):
            end.read(0.6)
        assert device.interface.read_batch(99) == []


def test_more_neighbours_than_are_asked_for_are_counted() -> None:
    with MemoryDevice("tap", queue=2000) as device:
        device.set_up(True)
        end = EthernetEnd(device.application)
        for number in range(1030):
            end.write(Echo(V4[0], bytes([10, 1, number >> 8, number & 255]), 1, 1).emit())
        assert len(device.interface.read_batch(2000)) == 1024
        assert end.dropped == 6


def test_who_reads_does_not_hear_that_an_answer_was_refused() -> None:
    """The interface went down after it had asked."""
    with MemoryDevice("tap") as device:
        device.set_up(True)
        end, other = EthernetEnd(device.application), EthernetEnd(device.interface)
        other.write(Echo(*V4, 1, 1).emit())
        device.set_up(False)
        assert end.read(20) is None
        assert end.dropped == 1


def test_frames_of_any_content_do_no_harm() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with MemoryDevice("tap") as device:
        device.set_up(True)
        end = EthernetEnd(device.application)
        for _ in range(5000):
            kind = chance.choice([b"\x08\x06", b"\x08\x00", b"\x86\xdd", chance.randbytes(2)])
            start = chance.choice([b"", b"\x45", b"\x60\0\0\0", bytes.fromhex("000108000604000100")])
            device.interface.write(b"\xff" * 12 + kind + start + chance.randbytes(chance.randrange(90)))
            packet = end.read(20)
            assert packet != b""
            if packet:
                answer_echo(packet)
            device.interface.read_batch(9)
