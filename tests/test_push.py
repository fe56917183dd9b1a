from dataclasses import replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ginnel._core import Device
from ginnel.errors import ConfigError, RemoteProtocolError
from ginnel.openvpn.push import PullFilter, PushCollector, PushReply
from ginnel.openvpn.push_emit import BUNDLE_SIZE
from ginnel.openvpn.push_values import DnsServer, Ifconfig, IfconfigIpv6, Inactive, Route, RouteIpv6
from ginnel.openvpn.words import quote, split_words
from ginnel.stack import Stack
from ginnel.vpn import configure

REPLY = (
    "PUSH_REPLY,route 10.77.0.0 255.255.0.0,route 10.1.2.3,route 10.9.0.0 255.255.0.0 net_gateway 5,"
    "route-ipv6 fd00:77::/64,route-ipv6 fd00:78::/64 fd00::1 7,route-gateway 10.8.0.1,topology subnet,"
    "redirect-gateway def1 ipv6,dhcp-option DNS 10.8.0.1,dhcp-option DNS6 fd00::53,"
    "dhcp-option DOMAIN example.org,"
    "dns server 1 address 10.8.0.2 [fd00::2]:5353,dns server 1 resolve-domains a.example b.example,"
    "dns server -3 address 10.8.0.3:53,dns server -3 dnssec optional,dns server -3 transport DoT,"
    "dns search-domains x.example,block-ipv6,ping 10,ping-restart 120,explicit-exit-notify,tun-mtu 1400,"
    "ifconfig-ipv6 fd00::1000/64 fd00::1,ifconfig 10.8.0.2 255.255.255.0,peer-id 7,cipher aes-256-gcm,"
    "protocol-flags cc-exit tls-ekm,auth-token SESS_ID_x,auth-token-user Ym9i,sndbuf 0,shaper 9,frobnicate 1 2,"
    "inactive 600 1000,session-timeout 86400,rcvbuf 393216,setenv-safe SITE 'Main office',echo hello world,"
    "dhcp-option WINS 10.8.0.5,dhcp-option PROXY_HTTP proxy.example 3128,route vpn_gateway"
)


def parse(*options: str) -> PushReply:
    return PushReply.parse(options)


def test_a_reply_as_servers_send_it() -> None:
    reply = PushCollector().add(REPLY)
    assert reply is not None
    assert reply.routes == (
        Route(IPv4Network("10.77.0.0/16")),
        Route(IPv4Network("10.1.2.3/32")),
        Route(IPv4Network("10.9.0.0/16"), "net_gateway", 5),
        Route("vpn_gateway"),
    )
    assert reply.routes_ipv6 == (
        RouteIpv6(IPv6Network("fd00:77::/64")),
        RouteIpv6(IPv6Network("fd00:78::/64"), IPv6Address("fd00::1"), 7),
    )
    assert reply.address == IPv4Interface("10.8.0.2/24")
    assert reply.address6 == IPv6Interface("fd00::1000/64")
    assert reply.route_gateway == IPv4Address("10.8.0.1")
    assert reply.redirect_gateway == ("def1", "ipv6")
    assert reply.dhcp_dns == (ip_address("10.8.0.1"), ip_address("fd00::53"))
    assert reply.search_domains == ("example.org", "x.example")
    assert reply.dns_profiles == (
        DnsServer(-3, ((ip_address("10.8.0.3"), 53),), dnssec="optional", transport="DoT"),
        DnsServer(1, ((ip_address("10.8.0.2"), 0), (ip_address("fd00::2"), 5353)), ("a.example", "b.example")),
    )
    assert (reply.ping, reply.ping_restart, reply.ping_exit) == (10, 120, None)
    assert (reply.explicit_exit_notify, reply.tun_mtu, reply.peer_id) == (1, 1400, 7)
    assert (reply.cipher, reply.exported_keys, reply.block_ipv6) == ("AES-256-GCM", True, True)
    assert (reply.auth_token, reply.auth_token_user) == ("SESS_ID_x", "Ym9i")
    assert reply.ignored == (("shaper 9", "has no effect here"), ("frobnicate 1 2", "is not known"))
    assert (reply.inactive, reply.session_timeout) == (Inactive(600, 1000), 86400)
    assert (reply.sndbuf, reply.rcvbuf) == (0, 393216)
    assert (reply.setenv_safe, reply.echo) == ((("SITE", "Main office"),), ("hello world",))
    assert reply.dhcp_options == (("WINS", "10.8.0.5"), ("PROXY_HTTP", "proxy.example", "3128"))


@pytest.mark.parametrize(
    ("options", "servers"),
    [
        (["dhcp-option DNS 10.0.0.1"], ["10.0.0.1:53"]),
        (["dhcp-option DNS 10.0.0.1", "dns server 0 address 10.0.0.2"], ["10.0.0.2:53"]),
        (
            ["dns server 1 address 10.0.0.1", "dns server 0 address 10.0.0.2:5353 fd00::2"],
            ["10.0.0.2:5353 fd00::2:53", "10.0.0.1:53"],
        ),
        (
            ["dhcp-option DNS 10.0.0.1", "dns server 0 address 10.0.0.2", "dns server 0 resolve-domains a.example"],
            ["10.0.0.2:53 a.example", "10.0.0.1:53"],
        ),
        (["dns server 0 address 10.0.0.2", "dns server 0 resolve-domains a b"], ["10.0.0.2:53 a b"]),
        (["dns server 0 address 10.0.0.2", "dns server 0 transport DoT", "dhcp-option DNS 10.0.0.1"], ["10.0.0.2:853"]),
    ],
)
def test_who_is_asked_for_which_names(options: list[str], servers: list[str]) -> None:
    found = parse(*options).name_servers
    assert [" ".join([*(f"{ip}:{port}" for ip, port in entry.addresses), *entry.domains]) for entry in found] == servers


@pytest.mark.parametrize(
    ("options", "ours", "address"),
    [
        (["ifconfig 10.8.0.2 255.255.255.0", "topology subnet"], {}, "10.8.0.2/24"),
        (["ifconfig 10.8.0.2 10.8.0.1"], {}, "10.8.0.2/32"),
        (["ifconfig 10.8.0.2 255.255.255.0"], {"topology": "subnet"}, "10.8.0.2/24"),
        (["topology net30", "ifconfig 10.8.0.2 10.8.0.1"], {"topology": "subnet"}, "10.8.0.2/32"),
        # An Ethernet has a mask, and stock pushes no topology for it.
        (["ifconfig 10.8.0.2 255.255.255.0"], {"tap": True}, "10.8.0.2/24"),
        (["topology net30", "ifconfig 10.8.0.2 255.255.255.0"], {"tap": True}, "10.8.0.2/24"),
    ],
)
def test_what_the_second_word_of_ifconfig_is(options: list[str], ours: dict[str, Any], address: str) -> None:
    assert str(PushReply.parse(options, **ours).address) == address


@pytest.mark.parametrize("second", ["10.8.0.1", "0.0.0.255", "255.0.255.0"])
@pytest.mark.parametrize("ours", [{"topology": "subnet"}, {"tap": True}])
def test_an_address_whose_netmask_is_none_has_no_effect_and_the_rest_has(second: str, ours: dict[str, Any]) -> None:
    reply = PushReply.parse([f"ifconfig 10.8.0.2 {second}", "ping 5"], **ours)
    assert (reply.address, reply.ping) == (None, 5)
    assert reply.ignored == ((f"ifconfig 10.8.0.2 {second}", f"{second} is no netmask"),)


@pytest.mark.parametrize(
    "bad",
    [
        "ifconfig 10.8.0.2",
        "ifconfig 10.8.0.256 255.255.255.0",
        "ifconfig-ipv6 fd00::1/129 fd00::2",
        "route",
        "route example.org 255.255.255.0",
        "route 10.0.0.0 255.0.255.0",
        "route 10.0.0.0 0.0.0.255",
        "route 10.0.0.0 24",
        "route 10.0.0.0 255.0.0.0 gateway",
        "route 10.0.0.0 255.0.0.0 10.0.0.1 -1",
        "route-ipv6 10.0.0.0/8",
        "topology ring",
        "dhcp-option DNS ::ffff:1::2",
        "dhcp-option DOMAIN a_b!c",
        "dhcp-option DOMAIN office;reboot",
        "dhcp-option DOMAIN $(reboot)",
        "dhcp-option DOMAIN -v",
        "dhcp-option WINS fd00::1",
        "dhcp-option DNS6 10.0.0.1",
        "dhcp-option PROXY_HTTP proxy.example",
        "dhcp-option SURPRISE 1",
        "ifconfig fd00::1 fd00::2",
        "ifconfig-ipv6 10.8.0.2/24 10.8.0.1",
        "route fd00::/64",
        "route 10.0.0.0 255.0.0.0 fd00::1",
        "route-ipv6 fd00::/64 10.0.0.1",
        "route-gateway fd00::1",
        "dns server 1 address 1.1.1.1 1.1.1.2 1.1.1.3 1.1.1.4 1.1.1.5 1.1.1.6 1.1.1.7 1.1.1.8 1.1.1.9",
        "ifconfig 0.0.0.0 255.255.255.0",
        "ifconfig 224.0.0.1 255.255.255.0",
        "ifconfig-ipv6 ::1/64 fd00::2",
        "ifconfig-ipv6 fe80::1%lo/64 fd00::2",
        "dhcp-option DNS fe80::1%lo",
        "dhcp-option DOMAIN a..b",
        "dhcp-option DOMAIN ..example",
        f"dhcp-option DOMAIN {'x' * 64}.example",
        f"dhcp-option DOMAIN {'x.' * 127}x",
        "inactive",
        "inactive 1 -1",
        "session-timeout soon",
        "setenv-safe a=b c",
        "block-ipv6 please",
        "sndbuf -1",
        "dns server 200 address 1.2.3.4",
        "dns server 1 address 1.2.3.4:99999",
        "dns server 1 address",
        "dns server 1 dnssec maybe",
        "ping x",
        "ping -1",
        "ping 99999999999999999999",
        "tun-mtu 99",
        'route "10.0.0.0',
        "route 10.0.0.0\\x",
    ],
)
def test_a_bad_option_is_refused_with_a_reason_and_the_rest_counts(bad: str) -> None:
    reply = parse("ping 7", bad, "peer-id 3")
    assert (reply.ping, reply.peer_id) == (7, 3)
    ((option, reason),) = reply.ignored
    assert option == bad
    assert reason
    assert reply == parse("ping 7", "peer-id 3").__class__(ping=7, peer_id=3, ignored=reply.ignored)


@pytest.mark.parametrize("wrong", ["peer-id 16777216", "key-derivation prf", "cipher", "comp-lzo no yes"])
def test_what_data_cannot_pass_without_is_more_than_ignored(wrong: str) -> None:
    reply = parse("ping 7", *["frobnicate"] * 200, wrong)
    assert (reply.ping, reply.wrong and reply.wrong[0]) == (7, wrong)


@pytest.mark.parametrize(
    ("options", "flags", "ignored"),
    [
        (["redirect-gateway def1 bypass-dhcp NEW"], ("def1", "bypass-dhcp"), ["redirect-gateway NEW"]),
        (["redirect-gateway def2"], (), ["redirect-gateway def2"]),
        (["redirect-gateway def1", "redirect-gateway ipv6 def1"], ("def1", "ipv6"), []),
    ],
)
def test_known_flags_count_and_add_up(options: list[str], flags: tuple[str, ...], ignored: list[str]) -> None:
    reply = parse(*options)
    assert reply.redirect_gateway == flags
    assert [option for option, _ in reply.ignored] == ignored
    private = parse(*(option.replace("gateway", "private") for option in options))
    assert (private.redirect_private, private.redirect_gateway) == (flags, None)


def test_one_wrong_value_of_several_is_left_out_singly() -> None:
    reply = parse("dns search-domains a.example b`c .d.example", "dns server 1 address 1.2.3.4 x [fd00::1]:5353")
    assert reply.search_domains == ("a.example", "d.example")
    assert reply.dns_profiles == (DnsServer(1, ((ip_address("1.2.3.4"), 0), (ip_address("fd00::1"), 5353))),)
    assert [option for option, _ in reply.ignored] == ["dns search-domains b`c", "dns server 1 address x"]


@pytest.mark.parametrize("line", ["dns server 1 resolve-domains b`c", "dns server 1 transport DoQ", None])
def test_a_server_whose_limits_are_not_understood_is_not_asked_at_all(line: str | None) -> None:
    """It would be asked for what it isn't for, or in plain."""
    reply = parse("dns server 1 address 10.0.0.1", *([line] if line else []), "dns server 2 resolve-domains x.example")
    assert [server.priority for server in reply.dns_profiles] == ([] if line else [1])
    assert ("dns server 2", "has no address") in reply.ignored
    assert len(reply.ignored) == (3 if line else 1)


NAMES = st.lists(st.sampled_from("abAZ09-_.$%é\\ "), max_size=70).map("".join) | st.text("ab.", max_size=300)
ADDRESSES = st.ip_addresses() | st.sampled_from(["0.0.0.0", "127.0.0.1", "224.0.0.1", "::", "ff02::1", "fe80::1%lo"])


async def test_whatever_is_taken_fits_the_stack_and_its_resolver() -> None:
    """What they raise would go nowhere, in the midst of a packet's arrival."""
    async with Stack(Device("tun", 1500, 16).attach("interface")) as stack:

        @given(NAMES, ADDRESSES, st.integers(0, 128), st.sampled_from(["tun", "tap"]))
        def take(name: str, address: object, bits: int, dev_type: str) -> None:
            texts = [f"dhcp-option DOMAIN {name}", f"dns search-domains x {name}", f"dhcp-option DNS {address}"]
            texts += [f"dns server 1 address {address} [{address}]:5353", f"dns server 1 resolve-domains {name}"]
            texts += [f"ifconfig {address} 255.255.255.0", f"ifconfig-ipv6 {address}/{bits} {address}"]
            reply = PushReply.parse([*texts, f"route-gateway {address}"], tap=dev_type == "tap")
            configure(stack, reply, PushReply(), dev_type)

        take()


def test_control_characters_and_tokens_do_not_reach_a_log() -> None:
    reply = parse("evil \x1b[2J\n", "ping \x07", "auth-token a b", "auth-token secret")
    shown = repr(reply)
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "secret" not in shown
    assert reply.ignored[0][0] == "evil \\x1b[2J\\n"
    assert reply.ignored[2][0] == "auth-token …"


@pytest.mark.parametrize("option", ["auth-token {}", '"auth-token" {}', "\\auth-token {} b", "  auth-token-user {}"])
def test_a_token_is_not_in_what_is_said_of_it(option: str) -> None:
    """Neither where it is refused nor where it is wrong."""
    text = option.format("c2VjcmV0")
    with pytest.raises(RemoteProtocolError, match="auth-token ….*rejects") as caught:
        PushCollector([PullFilter("reject", "")]).add(f"PUSH_REPLY,{text}")
    assert "c2VjcmV0" not in str(caught.value)
    assert "c2VjcmV0" not in repr(replace(parse(text), auth_token_user=None))


def test_messages_are_joined_until_the_last() -> None:
    collector = PushCollector()
    assert collector.add("PUSH_REPLY,ping 5,push-continuation 2") is None
    reply = collector.add("PUSH_REPLY,peer-id 1,push-continuation 1")
    assert reply == PushReply(ping=5, peer_id=1)
    assert collector.add("PUSH_REPLY") == PushReply()


def test_a_reply_without_end_is_refused() -> None:
    collector = PushCollector()
    message = "PUSH_REPLY," + "echo x," * 130 + "push-continuation 2"
    for _ in range(256 * 1024 // len(message)):
        assert collector.add(message) is None
    with pytest.raises(RemoteProtocolError, match="longer than"):
        collector.add(message)


def test_pull_filters_decide_by_the_first_that_fits() -> None:
    filters = [
        PullFilter("accept", "route 10."),
        PullFilter("ignore", "route "),
        PullFilter("reject", "block"),
    ]
    reply = PushCollector(filters).add("PUSH_REPLY,route 10.0.0.0 255.0.0.0, route 192.0.2.1,ping 3")
    assert reply == PushReply(ping=3, routes=(Route(IPv4Network("10.0.0.0/8")),))
    with pytest.raises(RemoteProtocolError, match="block-ipv6"):
        PushCollector(filters).add("PUSH_REPLY,block-ipv6")


def test_an_update_replaces_removes_and_adds() -> None:
    collector = PushCollector([PullFilter("ignore", "route 10.66.")])
    collector.add(
        "PUSH_REPLY,route 10.1.0.0 255.255.0.0,route 10.2.0.0 255.255.0.0,dhcp-option DNS 10.0.0.1,"
        "dns search-domains a.example,ifconfig 10.8.0.2 255.255.255.0,ping 5,block-ipv6"
    )
    update = "PUSH_UPDATE,route 10.3.0.0 255.255.0.0,route 10.4.0.0 255.255.0.0,route 10.66.0.1,-block-ipv6,"
    assert collector.update(update + "push-continuation 2") is None
    reply = collector.update("PUSH_UPDATE,-?dns,?sndbuf 7,ifconfig 10.8.0.9 255.255.255.0,push-continuation 1")
    assert reply == PushReply(
        routes=(Route(IPv4Network("10.3.0.0/16")), Route(IPv4Network("10.4.0.0/16"))),
        dhcp_dns=(ip_address("10.0.0.1"),),
        ifconfig=Ifconfig(IPv4Address("10.8.0.9"), IPv4Address("255.255.255.0")),
        ping=5,
    )
    again = collector.update("PUSH_UPDATE,tun-mtu 1300")
    assert again is not None
    assert (again.routes, again.tun_mtu) == (reply.routes, 1300)


@pytest.mark.parametrize("text", ["ping 3", "-cipher", "surprise", "-", "?-route"])
def test_an_update_of_what_cannot_change_is_refused(text: str) -> None:
    collector = PushCollector()
    collector.add("PUSH_REPLY,ping 5")
    if text == "?-route":
        assert collector.update("PUSH_UPDATE," + text) == PushReply(ping=5)
        return
    with pytest.raises(RemoteProtocolError, match="new connection"):
        collector.update("PUSH_UPDATE," + text)


ipv4s = st.ip_addresses(v=4)
ipv6s = st.ip_addresses(v=6)
seconds = st.none() | st.integers(0, 100_000)
metrics = st.none() | st.integers(0, 1000)
domains = st.from_regex(r"[a-z0-9][a-z0-9-]{0,9}(\.[a-z]{2,5})?", fullmatch=True)
hosts4 = ipv4s.filter(lambda address: address.packed[0] not in (0, 127, *range(224, 256)))
hosts6 = st.ip_addresses(v=6, network="2000::/3")
words = st.text(
    st.characters(exclude_characters=",", exclude_categories=["C", "Z"], include_characters=" "),
    min_size=1,
    max_size=30,
)
routes = st.builds(
    Route,
    st.builds(lambda address, bits: IPv4Network((address, bits), strict=False), ipv4s, st.integers(0, 32))
    | st.sampled_from(["vpn_gateway", "remote_host"]),
    st.none() | ipv4s | st.sampled_from(["vpn_gateway", "net_gateway"]),
    metrics,
)
routes_ipv6 = st.builds(
    RouteIpv6,
    st.builds(lambda address, bits: IPv6Network((address, bits), strict=False), ipv6s, st.integers(0, 128)),
    st.none() | ipv6s,
    metrics,
)
profiles = st.lists(
    st.builds(
        DnsServer,
        st.integers(-128, 127),
        st.lists(st.tuples(ipv4s | ipv6s, st.integers(0, 65535)), min_size=1, max_size=3).map(tuple),
        st.lists(domains, max_size=3).map(tuple),
        st.none() | st.sampled_from(["yes", "no", "optional"]),
        st.none() | st.sampled_from(["plain", "DoT", "DoH"]),
        st.none() | domains,
    ).filter(lambda server: server != DnsServer(server.priority)),
    max_size=3,
    unique_by=lambda server: server.priority,
).map(lambda servers: tuple(sorted(servers, key=lambda server: server.priority)))
flags = st.none() | st.lists(st.sampled_from(["def1", "local", "ipv6", "!ipv4"]), unique=True).map(tuple)


def is_netmask(address: IPv4Address) -> bool:
    return "01" not in f"{int(address):032b}"


netmasks = st.integers(0, 32).map(lambda bits: IPv4Network((0, bits)).netmask)
replies = st.builds(
    PushReply,
    ifconfig=st.none() | st.builds(Ifconfig, hosts4, ipv4s | netmasks),
    ifconfig_ipv6=st.none() | st.builds(IfconfigIpv6, hosts6, st.integers(0, 128), ipv6s),
    topology=st.none() | st.sampled_from(["net30", "p2p", "subnet"]),
    route_gateway=st.none() | ipv4s | st.just("dhcp"),
    route_metric=metrics,
    routes=st.lists(routes, max_size=40).map(tuple),
    routes_ipv6=st.lists(routes_ipv6, max_size=5).map(tuple),
    redirect_gateway=flags,
    redirect_private=flags,
    block_ipv6=st.booleans(),
    dhcp_dns=st.lists(ipv4s | ipv6s, max_size=3).map(tuple),
    dns_profiles=profiles,
    search_domains=st.lists(domains, max_size=3).map(tuple),
    tun_mtu=st.none() | st.integers(100, 65535),
    ping=seconds,
    ping_restart=seconds,
    ping_exit=seconds,
    inactive=st.none() | st.builds(Inactive, st.integers(0, 1000), st.integers(0, 1 << 40)),
    session_timeout=seconds,
    sndbuf=seconds,
    rcvbuf=seconds,
    block_outside_dns=st.booleans(),
    register_dns=st.booleans(),
    dhcp_options=st.lists(
        st.sampled_from([("WINS", "10.0.0.9"), ("DISABLE-NBT",), ("PROXY_HTTP", "proxy.example", "8080")]), max_size=2
    ).map(tuple),
    setenv_safe=st.lists(st.tuples(st.sampled_from("AB"), words), max_size=2, unique_by=lambda pair: pair[0]).map(
        tuple
    ),
    echo=st.lists(st.sampled_from(["", "hello", "hello world"]), max_size=2).map(tuple),
    explicit_exit_notify=seconds,
    peer_id=st.none() | st.integers(0, 0xFFFFFF),
    cipher=st.none() | st.sampled_from(["AES-256-GCM", "none"]),
    protocol_flags=st.lists(st.sampled_from(["cc-exit", "tls-ekm"]), unique=True).map(tuple),
    key_derivation=st.none() | st.just("tls-ekm"),
    compression=st.none() | st.sampled_from(["comp-lzo no", "compress stub-v2", "compress"]),
    auth_token=st.none() | words,
    auth_token_user=st.none() | words,
).filter(lambda reply: reply.topology != "subnet" or reply.ifconfig is None or is_netmask(reply.ifconfig.remote))


# A reply has forty parts, which take a busy machine a while to draw.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(replies)
def test_what_is_emitted_is_parsed_again_in_messages_of_stocks_size(reply: PushReply) -> None:
    collector = PushCollector()
    *firsts, last = reply.emit()
    assert all(len(message) < BUNDLE_SIZE for message in [*firsts, last])
    assert [collector.add(message) for message in firsts] == [None] * len(firsts)
    assert collector.add(last) == reply


@given(st.lists(st.text(max_size=40), max_size=5))
def test_any_text_is_a_reply(options: list[str]) -> None:
    reply = PushReply.parse(options)
    assert PushReply.parse(reply.options()) == PushReply(
        **{name: getattr(reply, name) for name in PushReply.__dataclass_fields__ if name not in ("ignored", "wrong")}
    )


@given(st.lists(words | st.just(""), max_size=5))
def test_quoting_is_undone_by_splitting(items: list[str]) -> None:
    assert split_words(" ".join(map(quote, items))) == items


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a  b\tc", ["a", "b", "c"]),
        ('"a b" c', ["a b", "c"]),
        ("'a \\ b' c", ["a \\ b", "c"]),
        ("a\\ b", ["a b"]),
        ("a\\\\b", ["a\\b"]),
        ('"a\\"b"', ['a"b']),
        ("a #b c", ["a"]),
        ("a b;c", ["a", "b;c"]),
        ('""', [""]),
    ],
)
def test_words_split_as_stock_splits_them(text: str, expected: list[str]) -> None:
    assert split_words(text) == expected


def test_a_comma_cannot_be_pushed() -> None:
    with pytest.raises(ConfigError, match="comma"):
        PushReply(auth_token="a,b").emit()
