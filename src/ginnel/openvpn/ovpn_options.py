"""What each supported option of an ``.ovpn`` file comes to.

A function of ``TAKERS`` takes a statement whose number of values is right and puts values into the
`Draft`. It raises ConfigError, which need not say the file, line and option: the reader knows them.
"""

from __future__ import annotations

import re

from ginnel.errors import ConfigError
from ginnel.openvpn import ovpn_login, ovpn_remote, ovpn_trust
from ginnel.openvpn.config import DEFAULT_DATA_CIPHERS
from ginnel.openvpn.data_format import (
    COMPRESSING,
    DATA_CIPHERS,
    FRAMINGS,
    MAC_SIZES,
    NEVER_COMPRESSED,
    MssFix,
    normal_cipher,
)
from ginnel.openvpn.directives import DIRECTIVES, names
from ginnel.openvpn.ovpn_draft import MAX_INT, Draft, Taker, number, one_of
from ginnel.openvpn.ovpn_lexer import Statement
from ginnel.openvpn.push import PullFilter
from ginnel.openvpn.push_options import DHCP_OPTIONS, NO_NAMES, complaint
from ginnel.openvpn.push_values import Inactive
from ginnel.openvpn.words import escape, quote
from ginnel.openvpn.wrap import DIGESTS


def _number(name: str, least: int, most: int) -> Taker:
    """Extra values are warned about: stock has a use for them on servers only."""

    def take(draft: Draft, statement: Statement) -> None:
        draft.values[name] = number(statement.words[0], least, most)
        if len(statement.words) > 1:
            draft.warn(f"the second value of {statement.name} has no effect in a client")

    return take


def _flag(name: str, value: object = True) -> Taker:
    def take(draft: Draft, statement: Statement) -> None:
        draft.values[name] = value

    return take


def _choice(name: str) -> Taker:
    """The choices are the directive's form."""

    def take(draft: Draft, statement: Statement) -> None:
        choices = DIRECTIVES[statement.name].text.split("|")
        draft.values[name] = one_of(statement.words[0], *choices)

    return take


def _client(draft: Draft, statement: Statement) -> None:
    draft.pull = draft.pull or statement.name in ("client", "pull")
    draft.tls_client = draft.tls_client or statement.name in ("client", "tls-client")


def _mode(draft: Draft, statement: Statement) -> None:
    if statement.words[0] == "server":
        raise ConfigError("mode server is a server's", instead="take the file that was made for the client")
    one_of(statement.words[0], "p2p")


def _connect_retry(draft: Draft, statement: Statement) -> None:
    shortest = number(statement.words[0], 0, 0xFFFF)
    longest = number(statement.words[1], 0, MAX_INT) if len(statement.words) > 1 else 300
    draft.values["connect_retry"] = (shortest, max(shortest, longest))


def _connect_retry_max(draft: Draft, statement: Statement) -> None:
    draft.values["connect_retry_max"] = number(statement.words[0], 0, MAX_INT) or None


def _resolv_retry(draft: Draft, statement: Statement) -> None:
    word = statement.words[0]
    draft.values["resolv_retry"] = None if word == "infinite" else number(word, 0, MAX_INT)


def _exit_notify(draft: Draft, statement: Statement) -> None:
    draft.values["explicit_exit_notify"] = number((*statement.words, "1")[0], 0, MAX_INT)


def _setenv(draft: Draft, statement: Statement) -> None:
    name, value = (*statement.words, "")[:2]
    match name:
        case "GENERIC_CONFIG":
            raise ConfigError("this file is a template for many users", instead="ask for the file made for you")
        case "PUSH_PEER_INFO" if not value:
            draft.values["push_peer_info"] = True
        case "SERVER_POLL_TIMEOUT" if value:
            draft.values["connect_timeout"] = number(value, 0, MAX_INT)
        case "REMOTE_RANDOM_HOSTNAME" if not value:
            draft.warn("names are resolved as they are written")
        case _:
            draft.forgive_all = draft.forgive_all or (name, value) == ("FORWARD_COMPATIBLE", "1")
            draft.setenv[name] = value


def _data_ciphers(draft: Draft, statement: Statement) -> None:
    chosen: list[str] = []
    dropped: list[str] = []
    listed = statement.words[0].replace("DEFAULT", ":".join(DEFAULT_DATA_CIPHERS)).split(":")
    for text in filter(None, listed):
        name = normal_cipher(text.removeprefix("?"))
        if name in DATA_CIPHERS:
            chosen.append(name)
        elif text.startswith("?") or re.fullmatch(OTHER_CIPHERS, name):
            dropped.append(name)
        else:
            raise ConfigError(f"{escape(text)!r} is no cipher", instead="choose from " + ", ".join(DATA_CIPHERS))
    if not chosen:
        raise ConfigError(
            f"none of {escape(statement.words[0])!r} is supported",
            instead="add " + ", ".join(DATA_CIPHERS[:2]),
        )
    if dropped:
        draft.warn(f"{escape(', '.join(dropped))} left out as not supported; {', '.join(chosen)} remain")
    _warn_of_none(draft, chosen)
    draft.values["data_ciphers"] = tuple(dict.fromkeys(chosen))


def _cipher(draft: Draft, statement: Statement) -> None:
    """Stock ignores it where ciphers are negotiated, and so since 2.6 nearly always."""
    name = _known_cipher(statement.words[0])
    if name not in DATA_CIPHERS:
        draft.warn(f"{name} is not supported, and has no effect: the cipher is negotiated from data-ciphers")


def _fallback(draft: Draft, statement: Statement) -> None:
    name = _known_cipher(statement.words[0])
    if name in DATA_CIPHERS:
        _warn_of_none(draft, [name])
        draft.values["cipher"] = name
    else:
        draft.values.pop("cipher", None)
        draft.warn(f"{name} is not supported: a server that negotiates no cipher can't be used")


def _warn_of_none(draft: Draft, ciphers: list[str]) -> None:
    if "none" in ciphers:
        draft.warn("with the cipher none everybody on the way reads what passes the tunnel")


def _known_cipher(text: str) -> str:
    name = normal_cipher(text)
    if name not in DATA_CIPHERS and not re.fullmatch(OTHER_CIPHERS, name):
        raise ConfigError(f"{escape(text)!r} is no cipher", instead="choose from " + ", ".join(DATA_CIPHERS))
    return name


def _auth(draft: Draft, statement: Statement) -> None:
    name = normal_cipher(statement.words[0]).removeprefix("RSA-")
    if name not in (*DIGESTS, "none"):
        raise ConfigError(
            f"the digest {escape(statement.words[0])!r} is not supported", instead="use " + ", ".join(MAC_SIZES)
        )
    draft.values["auth"] = name


def _compression(draft: Draft, statement: Statement) -> None:
    framing = " ".join([statement.name, *statement.words])
    if framing == "compress migrate":
        return
    if framing not in FRAMINGS:
        raise ConfigError(f"{escape(statement.words[0])!r} is no kind of compression", instead="remove the line")
    draft.values["compression"] = framing
    if framing in COMPRESSING:
        draft.warn(f"{NEVER_COMPRESSED}; remove the line here and on the server")
    else:
        draft.warn("nothing is compressed; packets only carry the mark of that")


def _allow_compression(draft: Draft, statement: Statement) -> None:
    if one_of(statement.words[0], "no", "asym", "yes") != "no":
        draft.warn("nothing is compressed either way")


def _keepalive(draft: Draft, statement: Statement) -> None:
    ping, restart = (number(word, 1, MAX_PING) for word in statement.words)
    if restart < 2 * ping:
        raise ConfigError(
            f"the second value must be at least twice the first, {2 * ping}", instead="write: keepalive 10 60"
        )
    draft.values |= {"ping": ping, "ping_restart": restart, "ping_exit": 0}


def _ping_timeout(draft: Draft, statement: Statement) -> None:
    value = number(statement.words[0], 0, MAX_PING)
    exits = statement.name == "ping-exit"
    draft.values |= {"ping_restart": 0 if exits else value, "ping_exit": value if exits else 0}


def _inactive(draft: Draft, statement: Statement) -> None:
    seconds, size = (number(word, 0, MAX_INT) for word in (*statement.words, "0")[:2])
    draft.values["inactive"] = Inactive(seconds, size)


def _max_packet_size(draft: Draft, statement: Statement) -> None:
    size = number(statement.words[0], MIN_CONTROL, 2048)
    draft.values |= {"max_packet_size": size, "mssfix": MssFix(size, "mtu")}


def _mssfix(draft: Draft, statement: Statement) -> None:
    match statement.words:
        case ():
            draft.values["mssfix"] = None
        case (size,):
            draft.values["mssfix"] = MssFix(_mss_size(size))
        case (size, "mtu" | "fixed" as mode):
            draft.values["mssfix"] = MssFix(_mss_size(size), mode)
        case (_, other):
            one_of(other, "mtu", "fixed")


def _mss_size(text: str) -> int:
    size = number(text, 0, 0xFFFF)
    if 0 < size < MIN_CONTROL:
        raise ConfigError(f"{size} is too small", instead=f"write 0 to switch it off, or at least {MIN_CONTROL}")
    return size


def _dev(draft: Draft, statement: Statement) -> None:
    draft.dev = statement.words[0]


def _dev_type(draft: Draft, statement: Statement) -> None:
    draft.dev_type = one_of(statement.words[0], "tun", "tap")


def _local(draft: Draft, statement: Statement) -> None:
    if statement.name == "route" and statement.words[0] == "net_gateway":
        draft.warn("net_gateway is reached as before, and has no effect")
        return
    if statement.name == "route" and statement.words[0] in ("vpn_gateway", "remote_host"):
        draft.warn(f"a route to {statement.words[0]} is set with --tun alone: without, no route of this machine's is")
    text = " ".join([statement.name, *map(quote, statement.words)])
    reason = complaint(text)
    if reason is None:
        draft.local.append(text)
        match statement.words:
            case ("server", _, "transport", "DoH"):
                draft.warn("it is not asked, as DoH is not supported")
            case ("server", _, "dnssec", "yes"):
                draft.warn("it is asked with --tun alone, where systemd-resolved validates its answers")
        return
    if statement.name == "route" and reason.endswith(NO_NAMES) and statement.words[2:3] == ("net_gateway",):
        draft.warn(f"{reason}: it is reached through the tunnel like all else")
        return
    if statement.name == "dhcp-option" and statement.words[0] not in DHCP_OPTIONS:
        draft.warn(f"{reason}, and has no effect")
        return
    raise ConfigError(reason, instead=f"write: {statement.name} {DIRECTIVES[statement.name].text}")


def _pull_filter(draft: Draft, statement: Statement) -> None:
    match statement.words:
        case ("accept" | "ignore" | "reject" as action, prefix):
            draft.append("pull_filters", PullFilter(action, prefix))
        case (other, _):
            one_of(other, "accept", "ignore", "reject")


def _forgive(draft: Draft, statement: Statement) -> None:
    draft.forgiven.update(word.removeprefix("--") for word in statement.words)


MAX_PING = 86400
# TLS_CHANNEL_MTU_MIN
MIN_CONTROL = 154
OTHER_CIPHERS = (
    "NONE|(AES|ARIA|CAMELLIA)-(128|192|256)-(CBC|CFB|CFB1|CFB8|OFB|GCM|CCM)"
    "|(BF|CAST5|DES|DES-EDE|DES-EDE3|DESX|IDEA|RC2|RC2-40|RC2-64|RC5|SEED|SM4)-(CBC|CFB|CFB1|CFB8|OFB)"
)
TAKERS: dict[str, Taker] = {
    **ovpn_remote.TAKERS,
    **ovpn_login.TAKERS,
    **ovpn_trust.TAKERS,
    "client": _client,
    "pull": _client,
    "tls-client": _client,
    "mode": _mode,
    "remote-random": _flag("remote_random"),
    "float": _flag("floats"),
    "connect-retry": _connect_retry,
    "connect-retry-max": _connect_retry_max,
    "connect-timeout": _number("connect_timeout", 0, MAX_INT),
    "server-poll-timeout": _number("connect_timeout", 0, MAX_INT),
    "resolv-retry": _resolv_retry,
    "explicit-exit-notify": _exit_notify,
    "auth-nocache": _flag("auth_nocache"),
    "push-peer-info": _flag("push_peer_info"),
    "setenv": _setenv,
    "cipher": _cipher,
    "data-ciphers": _data_ciphers,
    "ncp-ciphers": _data_ciphers,
    "data-ciphers-fallback": _fallback,
    "auth": _auth,
    "compress": _compression,
    "comp-lzo": _compression,
    "allow-compression": _allow_compression,
    "reneg-sec": _number("reneg_sec", 0, MAX_INT),
    "hand-window": _number("hand_window", 1, MAX_INT),
    "tran-window": _number("tran_window", 1, MAX_INT),
    "tls-timeout": _number("tls_timeout", 1, MAX_INT),
    "keepalive": _keepalive,
    "ping": _number("ping", 0, MAX_PING),
    "ping-restart": _ping_timeout,
    "ping-exit": _ping_timeout,
    "tun-mtu": _number("tun_mtu", 100, 0xFFFF),
    "tun-mtu-max": _number("tun_mtu_max", 100, 0xFFFF),
    "max-packet-size": _max_packet_size,
    "mssfix": _mssfix,
    "inactive": _inactive,
    "session-timeout": _number("session_timeout", 0, MAX_INT),
    "dev": _dev,
    "dev-type": _dev_type,
    **dict.fromkeys(
        names(
            "topology ifconfig ifconfig-ipv6 route route-ipv6 route-gateway route-metric "
            "redirect-gateway redirect-private block-ipv6 dhcp-option dns"
        ),
        _local,
    ),
    "pull-filter": _pull_filter,
    "route-nopull": _flag("route_nopull"),
    "route-noexec": _flag("route_noexec"),
    "route-table": _number("route_table", 0, MAX_INT),
    "ifconfig-noexec": _flag("ifconfig_noexec"),
    "ignore-unknown-option": _forgive,
    "verb": _number("verb", 0, MAX_INT),
}
