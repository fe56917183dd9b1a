"""What lent programs are told over NETLINK_ROUTE, and what they change by it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import random
import socket
import struct

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ginnel.device.address import parse_address
from ginnel.device.interface import Interfaces
from ginnel.device.lend.netlink import NetlinkSocket
from ginnel.device.lend.rtnetlink import RouteNetlink

INDEX = 1 << 20
PORT = 4711
REQUEST, ACK, DUMP, CREATE, EXCL, REPLACE = 1, 4, 0x300, 0x400, 0x200, 0x100
NEWLINK, DELLINK, GETLINK, SETLINK, NEWADDR, DELADDR, GETADDR = 16, 17, 18, 19, 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE, GETNEIGH = 24, 25, 26, 30
LAYOUTS = {NEWLINK: ifinfmsg, NEWADDR: ifaddrmsg, NEWROUTE: rtmsg}


@pytest.fixture
async def interfaces():
    made = Interfaces(first_index=INDEX)
    made.create("ours0")
    yield made
    await made.aclose()


@pytest.fixture
async def routes(interfaces):
    made = RouteNetlink(interfaces)
    yield made
    made.close()


def request(layout, kind, flags=ACK, attributes=(), **fields):
    message = layout()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = list(attributes)
    message["header"]["type"] = kind
    message["header"]["flags"] = flags | REQUEST
    message["header"]["sequence_number"] = 99
    message.encode()
    return bytes(message.data)


def link(kind, flags=ACK, attributes=(), index=INDEX, **fields):
    return request(ifinfmsg, kind, flags, attributes, index=index, **fields)


def address(kind, text, flags=ACK, index=INDEX, peer=None):
    own = ipaddress.ip_interface(text)
    attributes = [["IFA_LOCAL", str(own.ip)], ["IFA_ADDRESS", peer or str(own.ip)]]
    family = socket.AF_INET if own.version == 4 else socket.AF_INET6
    return request(ifaddrmsg, kind, flags, attributes, family=family, prefixlen=own.network.prefixlen, index=index)


def route(kind, text, flags=ACK | CREATE, gateway=None, index=None, metric=None, table=254):
    destination = ipaddress.ip_network(text)
    attributes = []
    if destination.prefixlen:
        attributes.append(["RTA_DST", str(destination.network_address)])
    for name, value in (("RTA_GATEWAY", gateway), ("RTA_OIF", index), ("RTA_PRIORITY", metric)):
        if value is not None:
            attributes.append([name, value])
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    return request(
        rtmsg, kind, flags, attributes, family=family, dst_len=destination.prefixlen, table=table, type=1, proto=3
    )


def messages(answers):
    """(type, flags, sequence, port, message) of each."""
    for datagram in answers:
        while datagram:
            length, *header = struct.unpack_from("=IHHII", datagram)
            assert 16 <= length <= len(datagram)
            yield (*header, datagram[:length])
            datagram = datagram[length + -length % 4 :]


def code(routes, data):
    """The errno that a request is acknowledged with, 0 for success."""
    ((kind, _, sequence, port, message),) = messages(routes.answer(data, PORT))
    assert (kind, sequence, port) == (2, 99, PORT)
    return errno.errorcode.get(-struct.unpack_from("=i", message, 16)[0], 0)


def decoded(routes, data):
    found = []
    for kind, _, sequence, port, message in messages(routes.answer(data, PORT)):
        assert (sequence, port) == (99, PORT)
        if kind in LAYOUTS:
            parsed = LAYOUTS[kind](message)
            parsed.decode()
            found.append(parsed)
    return found


async def test_a_link_is_configured(routes, interfaces):
    interface = interfaces.get("ours0")
    attributes = [["IFLA_MTU", 1400], ["IFLA_TXQLEN", 77]]
    assert code(routes, link(NEWLINK, attributes=attributes)) == 0
    assert (interface.mtu, interface.queue_length, interface.up) == (1400, 77, False)


async def test_a_queue_has_the_kernels_limits(routes, interfaces):
    interface = interfaces.get("ours0")
    for length, answer in ((0, 0), (524_288, 0), (524_289, "ERANGE"), (0xFFFFFFFF, "ERANGE")):
        assert code(routes, link(NEWLINK, attributes=[["IFLA_TXQLEN", length]])) == answer
    assert interface.queue_length == 524_288


async def test_what_nobody_thought_of_is_an_errno_and_the_next_request_is_answered(routes, interfaces):
    def stumble():
        raise ZeroDivisionError

    interfaces.get("ours0").on_change.append(stumble)
    assert code(routes, link(NEWLINK, attributes=[["IFLA_MTU", 1400]])) == "EIO"
    assert code(routes, link(GETLINK, 0, index=INDEX + 9)) == "ENODEV"


async def test_a_namespace_has_no_number_here(routes):
    """`ip addr` asks for those that have a name; the descriptor is the program's, and would be another of ours."""
    data = struct.pack("=IHHII", 28, 90, REQUEST, 99, 0) + bytes(4) + struct.pack("=HHI", 8, 3, 6)
    ((kind, _, sequence, port, message),) = messages(routes.answer(data, PORT))
    assert (kind, sequence, port) == (88, 99, PORT)
    assert message[20:] == struct.pack("=HHi", 8, 1, -1)


async def test_up_and_down(routes, interfaces):
    interface = interfaces.get("ours0")
    for flags, change, up in ((1, 1, True), (0, 1, False), (1, 0, True), (0, 0x40, True)):
        body = struct.pack("=BxHiII", 0, 0, INDEX, flags, change)
        assert code(routes, struct.pack("=IHHII", 32, NEWLINK, REQUEST | ACK, 99, 0) + body) == 0
        assert interface.up is up


async def test_what_a_link_refuses(routes, interfaces):
    assert code(routes, link(NEWLINK, attributes=[["IFLA_MTU", 60]])) == "EINVAL"
    assert code(routes, link(NEWLINK, attributes=[["IFLA_IFNAME", "other"]])) == "ENOTSUP"
    assert code(routes, link(NEWLINK, flags=ACK | CREATE | EXCL)) == "EEXIST"
    assert code(routes, link(NEWLINK, index=1, attributes=[["IFLA_MTU", 1400]])) == "EPERM"
    assert code(routes, link(NEWLINK, index=INDEX + 9)) == "ENODEV"
    assert code(routes, link(NEWLINK, flags=ACK | CREATE, index=0, attributes=[["IFLA_IFNAME", "new"]])) == "ENODEV"
    assert code(routes, request(rtmsg, 88)) == "ENOTSUP"


async def test_addresses_become_the_stacks(routes, interfaces):
    interface = interfaces.get("ours0")
    assert code(routes, address(NEWADDR, "10.0.0.1/24")) == 0
    assert code(routes, address(NEWADDR, "fd00::1/64")) == 0
    assert code(routes, address(NEWADDR, "10.1.0.1/32", peer="10.1.0.2")) == 0
    assert code(routes, address(NEWADDR, "10.0.0.1/24", ACK | CREATE | EXCL)) == "EEXIST"
    assert code(routes, address(NEWADDR, "10.0.0.1/24", ACK | CREATE | REPLACE)) == 0
    assert {str(own.interface) for own in interface.addresses} == {"10.0.0.1/24", "fd00::1/64", "10.1.0.1/32"}
    assert code(routes, address(DELADDR, "10.0.0.9/24")) == "EADDRNOTAVAIL"
    assert code(routes, address(DELADDR, "10.0.0.1/24")) == 0
    assert code(routes, address(NEWADDR, "10.0.0.1/24", index=1)) == "EPERM"
    shown = decoded(routes, request(ifaddrmsg, GETADDR, DUMP))
    assert [(own.get_attr("IFA_LOCAL"), own.get_attr("IFA_ADDRESS")) for own in shown if own["index"] == INDEX] == [
        (None, "fd00::1"),
        ("10.1.0.1", "10.1.0.2"),
    ]
    assert any(own["index"] == 1 for own in shown), "the kernel's are missing"


async def test_dumps_hold_the_kernels_and_ours(routes, interfaces):
    interfaces.create("tap", "tun")
    answers = list(messages(routes.answer(link(GETLINK, DUMP, index=0), PORT)))
    assert answers[-1][0] == 3
    assert all(flags & 2 for _, flags, *_ in answers)
    names = [own.get_attr("IFLA_IFNAME") for own in decoded(routes, link(GETLINK, DUMP, index=0))]
    assert {"lo", "ours0", "tap"} <= set(names)
    (one,) = decoded(routes, link(GETLINK, 0, index=0, attributes=[["IFLA_IFNAME", "ours0"]]))
    assert (one["index"], one.get_attr("IFLA_MTU")) == (INDEX, 1500)
    (kernels,) = decoded(routes, link(GETLINK, 0, index=1))
    assert kernels.get_attr("IFLA_IFNAME") == "lo"
    assert code(routes, link(GETLINK, 0, index=INDEX + 9)) == "ENODEV"
    assert max(map(len, routes.answer(link(GETLINK, DUMP, index=0), PORT))) <= 4096


async def test_routes(routes, interfaces):
    interface = interfaces.get("ours0")
    interface.add_address(parse_address("10.0.0.1/24"))
    interface.set_up(True)
    assert code(routes, route(NEWROUTE, "10.9.0.0/16", gateway="10.0.0.2")) == 0
    assert code(routes, route(NEWROUTE, "fd09::/32", index=INDEX)) == 0
    assert code(routes, route(NEWROUTE, "10.9.0.0/16", gateway="10.0.0.2")) == "EEXIST"
    assert code(routes, route(NEWROUTE, "10.9.0.0/16", ACK | CREATE | REPLACE, gateway="10.0.0.3")) == 0
    assert code(routes, route(NEWROUTE, "10.8.0.0/16", index=INDEX + 9)) == "ENODEV"
    assert [str(own.destination) for own in interface.routes] == ["fd09::/32", "10.9.0.0/16"]
    shown = {
        (own.get_attr("RTA_DST"), own.get_attr("RTA_GATEWAY"))
        for own in decoded(routes, request(rtmsg, GETROUTE, DUMP, family=0))
        if own.get_attr("RTA_OIF") == INDEX
    }
    assert shown == {("10.0.0.0", None), ("10.9.0.0", "10.0.0.3"), ("fd09::", None)}
    (found,) = decoded(routes, route(GETROUTE, "10.9.1.1/32", 0))
    assert (found.get_attr("RTA_OIF"), found.get_attr("RTA_GATEWAY")) == (INDEX, "10.0.0.3")
    assert found.get_attr("RTA_PREFSRC") == "10.0.0.1"
    (found,) = decoded(routes, route(GETROUTE, "127.0.0.1/32", 0))
    assert found.get_attr("RTA_OIF") == 1
    assert code(routes, route(DELROUTE, "10.9.0.0/16", gateway="10.0.0.2")) == "ESRCH"
    assert code(routes, route(DELROUTE, "10.9.0.0/16")) == 0
    # As OpenVPN takes an IPv6 route away: zeros for "no gateway".
    assert code(routes, route(DELROUTE, "fd09::/32", gateway="::", index=INDEX)) == 0
    assert not interface.routes


async def test_a_route_keeps_its_table(routes, interfaces):
    """One for marked packets or the like is not the way of all."""
    interface = interfaces.get("ours0")
    interface.add_address(parse_address("10.0.0.1/24"))
    interface.set_up(True)
    main = route(NEWROUTE, "0.0.0.0/0", index=INDEX)
    other = route(NEWROUTE, "0.0.0.0/0", gateway="10.0.0.2", index=INDEX, table=100)
    assert code(routes, other) == 0
    assert code(routes, other) == "EEXIST"
    assert code(routes, main) == 0
    shown = {
        (own.get_attr("RTA_TABLE"), own.get_attr("RTA_GATEWAY"))
        for own in decoded(routes, request(rtmsg, GETROUTE, DUMP, family=2))
        if own.get_attr("RTA_OIF") == INDEX and not own["dst_len"]
    }
    assert shown == {(100, "10.0.0.2"), (254, None)}
    assert code(routes, route(DELROUTE, "0.0.0.0/0")) == 0
    assert [own.table for own in interface.routes] == [100]
    assert code(routes, route(DELROUTE, "0.0.0.0/0", table=100)) == 0
    assert not interface.routes


async def test_the_route_of_an_address_is_removed_and_comes_again_with_it(routes, interfaces):
    """``ip route flush dev ours0`` takes each route away that it was shown."""
    interface = interfaces.get("ours0")
    interface.add_address(parse_address("10.0.0.1/24"))
    interface.set_up(True)

    def shown():
        found = decoded(routes, request(rtmsg, GETROUTE, DUMP, family=0))
        return [own.get_attr("RTA_DST") for own in found if own.get_attr("RTA_OIF") == INDEX]

    assert shown() == ["10.0.0.0"]
    assert code(routes, route(DELROUTE, "10.0.0.0/24", index=INDEX)) == 0
    assert shown() == []
    assert code(routes, route(DELROUTE, "10.0.0.0/24", index=INDEX)) == "ESRCH"
    interfaces.get("ours0").set_up(False)
    interfaces.get("ours0").set_up(True)
    assert shown() == ["10.0.0.0"], "set up again it has its network again"
    assert code(routes, route(DELROUTE, "10.0.0.0/24", index=INDEX)) == 0
    assert code(routes, address(DELADDR, "10.0.0.1/24")) == 0
    assert code(routes, address(NEWADDR, "10.0.0.1/24")) == 0
    assert shown() == ["10.0.0.0"]


async def test_more_answers_than_are_kept_are_an_error_and_no_half_dump(routes, monkeypatch):
    monkeypatch.setattr("ginnel.device.lend.rtnetlink._MOST_ANSWERS", 3)
    answers = routes.answer(link(GETLINK, DUMP, index=0) * 20, PORT)
    found = [kind for kind, *_ in messages(answers)]
    assert 1 <= found.count(3) <= 3
    assert found.count(2) == 20 - found.count(3)


async def test_routes_elsewhere_are_remembered_and_not_set(routes):
    """Through the kernel's loopback, which is there whoever runs this."""
    text = "198.51.100.7/32"
    before = kernel_routes()
    assert code(routes, route(NEWROUTE, text, index=1)) == 0
    assert code(routes, route(NEWROUTE, text, index=1)) == "EEXIST"
    assert code(routes, route(NEWROUTE, text, ACK | CREATE | REPLACE, index=1)) == 0
    shown = [own.get_attr("RTA_DST") for own in decoded(routes, request(rtmsg, GETROUTE, DUMP, family=0))]
    assert shown.count("198.51.100.7") == 1
    assert kernel_routes() == before
    assert code(routes, route(DELROUTE, text)) == 0
    assert code(routes, route(DELROUTE, text)) == "ESRCH"


async def test_the_kernels_route_is_hidden_and_not_removed(routes):
    before = kernel_routes()
    local = next(own for own in decoded(routes, request(rtmsg, GETROUTE, DUMP, family=2)) if own["table"] == 255)
    length, text = local["dst_len"], local.get_attr("RTA_DST")
    take = route(DELROUTE, f"{text}/{length}", table=255, index=local.get_attr("RTA_OIF"))
    assert code(routes, take) == 0
    assert (text, length) not in [
        (own.get_attr("RTA_DST"), own["dst_len"]) for own in decoded(routes, request(rtmsg, GETROUTE, DUMP, family=2))
    ]
    assert code(routes, take) == "ESRCH"
    assert kernel_routes() == before


class Heard:
    def __init__(self, groups, heard):
        self.groups, self._heard = groups, heard

    def tell(self, message):
        self._heard.append((self.groups, struct.unpack_from("=H", message, 4)[0]))


async def test_changes_are_announced_to_their_groups(routes, interfaces):
    heard = []
    for bit in range(12):
        routes.listeners.add(Heard(1 << bit, heard))
    interface = interfaces.get("ours0")
    interface.set_up(True)
    assert heard == [(1, NEWLINK)]
    heard.clear()
    code(routes, address(NEWADDR, "10.0.0.1/24"))
    code(routes, route(NEWROUTE, "fd09::/32", index=INDEX))
    assert {(0x10, NEWADDR), (0x400, NEWROUTE)} <= set(heard)
    heard.clear()
    assert code(routes, link(DELLINK)) == 0
    assert (1, DELLINK) in heard
    assert not list(interfaces)


@contextlib.contextmanager
def netlink_socket(routes, groups=0):
    ours, theirs = NetlinkSocket.make(routes, PORT, socket.SOCK_RAW)
    ours.groups = groups
    ours.serve(lambda: None)
    with theirs:
        theirs.setblocking(False)
        yield theirs
        ours.close()


async def read_until_an_error(program):
    """How many messages came before it, its errno and the sequence number that it answers."""
    count = 0
    while True:
        for kind, _, sequence, _, message in messages([await asyncio.get_running_loop().sock_recv(program, 1 << 17)]):
            if kind == 2 and (failed := struct.unpack_from("=i", message, 16)[0]):
                return count, -failed, sequence
            count += 1


async def test_who_does_not_read_announcements_hears_that_some_are_lost(routes, interfaces, monkeypatch):
    monkeypatch.setattr("ginnel.device.lend.netlink._MOST_WAITING", 100)
    interface = interfaces.get("ours0")
    with netlink_socket(routes, groups=1) as program:
        sent = 4000
        for number in range(sent):
            interface.set_mtu(1000 + number % 2)
        count, failed, sequence = await read_until_an_error(program)
        assert (failed, sequence) == (errno.ENOBUFS, 0)
        assert 100 <= count < sent
        interface.set_mtu(1234)
        (kind, *_, message), *rest = messages([await asyncio.get_running_loop().sock_recv(program, 1 << 17)])
        assert (kind, rest) == (NEWLINK, [])
        assert struct.pack("=I", 1234) in message


async def test_who_asks_and_does_not_read_is_never_kept_waiting_and_hears_that_answers_are_lost(routes, monkeypatch):
    monkeypatch.setattr("ginnel.device.lend.netlink._MOST_WAITING", 100)
    loop = asyncio.get_running_loop()
    with netlink_socket(routes) as program:
        sent = 5000
        for number in range(sent):
            asked = link(SETLINK, attributes=[["IFLA_MTU", 1400]])
            await asyncio.wait_for(loop.sock_sendall(program, asked[:8] + struct.pack("=I", number) + asked[12:]), 60)
        count, failed, sequence = await read_until_an_error(program)
        assert failed == errno.ENOBUFS
        assert 100 <= count <= sequence < sent
        await loop.sock_sendall(program, link(GETLINK, 0, index=INDEX + 9))
        assert await read_until_an_error(program) == (sent - 1 - sequence, errno.ENODEV, 99)


async def test_several_in_a_datagram_and_zeros_behind(routes):
    pair = address(NEWADDR, "10.0.0.1/24") + address(NEWADDR, "10.0.0.1/24") + bytes(40)
    assert [kind for kind, *_ in messages(routes.answer(pair, PORT))] == [2, 2]
    assert routes.answer(bytes(16), PORT) == []
    assert routes.answer(b"", PORT) == []


def samples():
    return [
        link(NEWLINK, attributes=[["IFLA_MTU", 1400], ["IFLA_IFNAME", "ours0"], ["IFLA_ADDRESS", "02:00:00:00:00:01"]]),
        link(NEWLINK, attributes=[["IFLA_TXQLEN", 77]]),
        link(GETLINK, 0, attributes=[["IFLA_IFNAME", "ours0"]]),
        link(GETLINK, DUMP),
        address(NEWADDR, "10.0.0.1/24", peer="10.0.0.2"),
        address(DELADDR, "fd00::1/64"),
        request(ifaddrmsg, GETADDR, DUMP),
        route(NEWROUTE, "10.9.0.0/16", gateway="10.0.0.2", index=INDEX, metric=7),
        route(NEWROUTE, "198.51.100.7/32", index=1),
        route(NEWROUTE, "fd09::/32", index=INDEX),
        route(DELROUTE, "fd09::/32", gateway="fd00::1"),
        route(GETROUTE, "10.9.1.1/32", 0),
        request(rtmsg, GETROUTE, DUMP),
        request(rtmsg, GETNEIGH, DUMP),
        link(DELLINK, index=INDEX + 1),
    ]


async def test_truncated_at_every_byte(routes):
    """As the sender cut it, and with a length that says so: an answer, an error or nothing."""
    for whole in samples():
        for cut in range(len(whole)):
            assert routes.answer(whole[:cut], PORT) == []
            if cut >= 16:
                answers = list(messages(routes.answer(struct.pack("=I", cut) + whole[4:cut], PORT)))
                assert len(answers) <= 2 or answers[-1][0] == 3


async def test_an_attribute_that_is_cut(routes):
    whole = link(NEWLINK, attributes=[["IFLA_IFNAME", "ours0"]])
    assert code(routes, struct.pack("=I", 38) + whole[4:38]) == "EINVAL"


async def test_anything_may_come(routes, caplog):
    seed = int(os.environ.get("GINNEL_SEED", random.randrange(1 << 32)))
    print(f"GINNEL_SEED={seed}")
    chance = random.Random(seed)
    valid = samples()
    for _ in range(3000):
        data = bytearray(chance.choice(valid))
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(4, len(data))] = chance.choice([0, 1, 255, chance.randrange(256)])
        list(messages(routes.answer(bytes(data), PORT)))
    assert not [record for record in caplog.records if record.exc_info], "answered, but nobody thought of it"


def kernel_routes():
    with open("/proc/net/route") as file:
        return file.read()
