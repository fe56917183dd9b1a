import pytest

from ginnel.openvpn.packets import Opcode
from ginnel.openvpn.reliability import AckQueue, ReceiveWindow, SendWindow


def sent(window: SendWindow, now: float) -> list[int]:
    ids = []
    while (entry := window.take_due(now)) is not None:
        ids.append(entry.packet_id)
    return ids


@pytest.fixture
def window() -> SendWindow:
    window = SendWindow(timeout=2.0)
    for _ in range(6):
        window.push(Opcode.CONTROL_V1, b"", 0.0)
    return window


def test_six_packets_may_be_on_their_way_counted_from_the_oldest(window: SendWindow) -> None:
    assert window.room == 0
    assert sent(window, 0.0) == [0, 1, 2, 3, 4, 5]
    window.acknowledge((1, 2, 3))
    assert window.room == 0
    window.acknowledge((0,))
    assert window.room == 4


def test_a_packet_is_sent_again_after_two_seconds_then_twice_as_long(window: SendWindow) -> None:
    sent(window, 0.0)
    window.acknowledge((1, 2, 3, 4, 5)[:0])
    times = []
    now = 0.0
    for _ in range(4):
        timer = window.get_timer()
        assert timer is not None
        now = timer
        times.append(now)
        assert sent(window, now) == [0, 1, 2, 3, 4, 5]
    assert times == [2.0, 6.0, 14.0, 30.0]


def test_three_later_acks_bring_a_packet_back_early(window: SendWindow) -> None:
    sent(window, 0.0)
    window.acknowledge((1, 2))
    assert sent(window, 0.1) == []
    window.acknowledge((3,))
    assert sent(window, 0.1) == [0]
    assert sent(window, 0.1) == []


def test_an_ack_for_what_was_never_sent_changes_nothing(window: SendWindow) -> None:
    sent(window, 0.0)
    window.acknowledge((6, 7, 100, 0xFFFFFFFF))
    assert sent(window, 0.1) == []
    assert window.room == 0


def test_packets_come_out_in_order_and_once() -> None:
    window = ReceiveWindow()
    assert window.receive(1, b"b")
    assert window.take_next() is None
    assert window.receive(0, b"a")
    assert window.receive(1, b"other")
    assert [window.take_next() for _ in range(3)] == [b"a", b"b", None]
    assert window.receive(0, b"again")
    assert window.take_next() is None


def test_the_thirteenth_packet_ahead_is_not_acknowledged() -> None:
    window = ReceiveWindow()
    assert window.receive(11, b"")
    assert not window.receive(12, b"")


def test_acks_go_out_once_as_new_and_then_along_with_others() -> None:
    acks = AckQueue()
    for packet_id in range(6):
        acks.add(packet_id)
    assert acks.take(4) == (0, 1, 2, 3)
    assert acks.due
    assert acks.take(8) == (4, 5, 0, 1, 2, 3)
    assert not acks.due
    acks.add(5)
    assert acks.take(4) == (5, 4, 0, 1)


def test_over_eight_waiting_acks_are_left_out() -> None:
    acks = AckQueue()
    for packet_id in range(20):
        acks.add(packet_id)
    assert acks.take(8) == tuple(range(8))
    assert not acks.due
