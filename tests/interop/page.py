"""`docs/interop.md`: the cells, and the tests that need more than options.

``make interop`` writes the page anew.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.interop.cells import CELLS, Cell
from tests.interop.rows import Row
from tests.interop.server_rows import SERVER_ROWS, SUBJECT

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"


ROWS = [
    Row(
        "transports",
        "UDP, IPv4; every wrap × AES-128-GCM, AES-256-GCM, ChaCha20 × TLS 1.2, 1.3 × PRF, exporter",
        "each moves bytes of the other's packets or keys",
        "test_matrix::test_cell",
    ),
    Row("transports", "UDP, IPv6", "another family, a smaller payload", "test_matrix::test_outer_ipv6"),
    Row(
        "transports",
        "TCP, IPv4 and IPv6, each wrap",
        "lengths in front, packets in pieces",
        "test_transports::test_tcp",
    ),
    Row(
        "transports",
        "the server goes and comes back, TCP",
        "a closed connection is no silence",
        "test_transports::test_tcp_comes_back_when_the_server_does",
        "connects again",
    ),
    Row(
        "transports",
        "http-proxy, Basic and Digest",
        "two requests on one connection, digests over the target",
        "test_transports::test_http_proxy",
    ),
    Row(
        "transports",
        "http-proxy with a wrong login",
        "the guess must not be shown, nor tried again",
        "test_transports::test_wrong_login_of_a_proxy",
        "ends with status 4",
    ),
    Row(
        "transports",
        "socks-proxy over TCP, with a login",
        "its login is not HTTP's",
        "test_transports::test_socks_proxy",
    ),
    Row(
        "transports",
        "socks-proxy over UDP; the proxy ends and comes back",
        "each datagram has a header of the proxy's, for which mssfix leaves room; only a connection tells of the end",
        "test_transports::test_socks_proxy_over_udp",
    ),
    Row(
        "transports",
        "two remotes, UDP and TCP; nothing listens at the first",
        "how long the first is waited for",
        "test_transports::test_the_second_remote_when_nothing_listens_at_the_first",
    ),
    Row(
        "transports",
        "server-poll-timeout; a name with a dead family, UDP and TCP",
        "the system's favourite may be the dead one",
        "test_ways::test_a_name_with_a_dead_family",
    ),
    Row(
        "transports",
        "remote-random, two of three remotes dead",
        "whichever comes first",
        "test_ways::test_a_remote_of_several_wherever_it_comes",
    ),
    Row(
        "transports",
        "connect-retry, connect-retry-max; nobody is there",
        "how often, and how long between",
        "test_ways::test_connect_retry_max",
        "ends with status 3 after as many attempts",
    ),
    Row(
        "transports",
        "resolv-retry infinite; a name that is known later",
        "a machine may start before its network",
        "test_ways::test_a_name_that_nobody_knows_yet",
    ),
    Row(
        "transports",
        "resolv-retry 0; a name that nobody knows",
        "must not go on for ever",
        "test_ways::test_a_name_for_which_nobody_waits",
        "ends with status 3: “… cannot resolve …”",
    ),
    Row(
        "transports",
        "local (an address, a name) and lport",
        "bound before connecting",
        "test_transports::test_where_the_socket_is_bound",
    ),
    Row(
        "transports",
        "our own address changes",
        "nothing else would notice for a long time",
        "test_transports::test_another_address_of_our_own_is_noticed_at_once",
        "connects again",
    ),
    Row(
        "transports",
        "a router on the way changes our port (float)",
        "the server must find the client by its peer id",
        "test_float::test_a_router_forgets_us",
        "the stream goes on",
    ),
    Row(
        "transports",
        "float: the server answers from another address, and moves",
        "as one with several addresses may; only who proves that it was asked is followed",
        "test_float::test_a_server_that_answers_from_elsewhere_and_moves",
        "connects; without float it does not",
    ),
    Row(
        "transports",
        "paths narrower than the tunnel's packets",
        "packets vanish without a word",
        "test_mtu::test_both_ways",
    ),
    Row(
        "wrapping",
        "tls-auth: SHA1, SHA256, SHA512, with key-direction and without; SHA512-256, SHA3-384, BLAKE2, RIPEMD160, MD5",
        "which half of the key is whose",
        "test_matrix::test_tls_auth",
    ),
    Row(
        "wrapping",
        "tls-crypt-v2, force-cookie and allow-noncookie, keys small and large",
        "a key too long for the packet is sent again when the server asks (RESEND_WKC)",
        "test_wraps::test_our_client_at_a_stock_server",
    ),
    Row(
        "wrapping",
        "dyn-tls-crypt, renegotiated every 3 s",
        "both sides must change wraps at the same packet",
        "test_wraps::test_our_client_at_a_stock_server_that_renegotiates_every_three_seconds",
    ),
    Row(
        "wrapping",
        "another static key",
        "looks as if nobody were there",
        "test_auth::test_wrong_static_key",
        "ends with status 3",
    ),
    Row(
        "data",
        "AES-CBC with SHA1, SHA256, SHA384, SHA512 and none; AES-192-GCM; none",
        "offsets of the parts",
        "test_data_formats::test_ciphers",
    ),
    Row(
        "data",
        "data-ciphers-fallback; the server negotiates no cipher",
        "none is pushed: both sides must know theirs",
        "test_data_formats::test_a_server_that_negotiates_no_cipher",
    ),
    Row("data", "AES-CBC over TCP", "lengths in front of blocks", "test_data_formats::test_cbc_over_tcp"),
    Row(
        "data",
        "no peer id (P_DATA_V1), CBC and GCM, UDP and TCP",
        "a header of one byte",
        "test_data_formats::test_without_a_peer_id",
    ),
    Row(
        "data",
        "comp-lzo [yes, adaptive, no], compress [stub, stub-v2, migrate, lzo, lz4, lz4-v2]; pushed or in the file",
        "a byte more, before or after the packet; nothing is ever compressed by us (VORACLE)",
        "test_data_formats::test_framings",
    ),
    Row(
        "data",
        "comp-lzo at one side alone, and not pushed",
        "nothing passes: stock and ginnel say so in the log",
        "test_data_formats::test_a_framing_that_one_side_alone_has_is_said",
        "says what to write",
    ),
    Row(
        "data",
        "a server that compresses (allow-compression yes)",
        "what comes compressed must not be taken for anything else",
        "test_data_formats::test_what_comes_compressed_is_dropped_and_said",
        "what is compressed is dropped, counted and said; the rest comes through",
    ),
    Row(
        "data",
        "mssfix, mtu, fixed, 0; GCM, CBC, TCP",
        "the two sides must come to the same number",
        "test_data_formats::test_mssfix_is_stocks",
    ),
    Row(
        "push",
        "name servers: dns server, dhcp-option DNS6",
        "two languages for one thing",
        "test_matrix::test_pushed_name_servers",
    ),
    Row(
        "login",
        "certificates, or peer-fingerprint without an authority",
        "two ways of trust",
        "test_auth::test_certificates",
    ),
    Row(
        "login",
        "another authority, another fingerprint, another name",
        "must not be taken",
        "test_auth::test_wrong_authority",
        "ends with status 5",
    ),
    Row(
        "login",
        "a client's certificate at the server",
        "must not be taken (remote-cert-tls)",
        "test_auth::test_server_with_a_client_certificate",
        "ends with status 5",
    ),
    Row("login", "user and password", "key-method 2's fields", "test_auth::test_password"),
    Row(
        "login",
        "a wrong password",
        "the guess must not be shown",
        "test_auth::test_wrong_password",
        "ends with status 4",
    ),
    Row(
        "login",
        "refused with a reason",
        "the user must read it",
        "test_login::test_a_refusal_has_the_servers_reason",
        "ends with status 4: “… your account is locked …”",
    ),
    Row(
        "login",
        "auth-retry none and nointeract; the first login is refused",
        "the same again, or the end",
        "test_login::test_auth_retry",
        "ends with status 4; connects at the second",
    ),
    Row(
        "login",
        "auth-retry interact; the first login is refused",
        "the user is to be asked again",
        "test_login::test_auth_retry_interact",
        "asks again, and connects",
    ),
    Row(
        "login",
        "from the environment, an encrypted key's password too; the server goes and comes back",
        "there is no terminal to ask on, with auth-nocache or without",
        "test_login::test_a_login_from_the_environment",
        "connects again",
    ),
    Row(
        "login",
        "auth-nocache and a typed password; the server goes and comes back",
        "forgotten, it must be asked for",
        "test_login::test_what_was_typed_is_asked_for_again_with_auth_nocache",
        "asks, and connects again",
    ),
    Row(
        "login",
        "static-challenge, scrv1 and concat",
        "two encodings of one answer",
        "test_login::test_user_password_and_code_are_asked_for_and_the_secret_is_hidden",
    ),
    Row(
        "login",
        "a password that works once, auth-gen-token, the server restarts",
        "the token must take its place",
        "test_login::test_a_token_takes_the_place_of_a_password_that_works_once",
        "connects again",
    ),
    Row(
        "login",
        "auth-gen-token that is renewed at each renegotiation",
        "an old token is refused after a while",
        "test_login::test_a_token_is_renewed",
        "stays up",
    ),
    Row(
        "login",
        "a token that has expired",
        "the password counts again",
        "test_login::test_an_expired_token_makes_way_for_the_password",
        "connects again",
    ),
    Row(
        "login",
        "deferred by a script, OPEN_URL",
        "the wait must not count as silence",
        "test_login::test_a_login_in_the_browser",
    ),
    Row(
        "login",
        "CRV1, then CR_TEXT, by the management interface",
        "a refusal that is none; an answer within a session",
        "test_questions::test_a_challenge_and_then_a_question",
    ),
    Row(
        "login",
        "WEB_AUTH, by the management interface",
        "another form of address than OPEN_URL",
        "test_questions::test_a_login_on_the_web",
    ),
    Row(
        "login",
        "AUTH_FAILED,TEMP with backoff",
        "a refusal that is none: no password is wrong",
        "test_questions::test_a_server_that_is_busy_for_a_moment",
        "waits as long as it says, then connects",
    ),
    Row(
        "login",
        "AUTH_FAILED,TEMP with advance no, addr, remote",
        "where to go next is the server's to say",
        "test_ways::test_a_busy_server_sends_us_on",
        "goes where it says",
    ),
    Row(
        "staying up",
        "renegotiation under traffic, from either side, UDP and TCP",
        "data with the old key, the new key, both",
        "test_renegotiation::test_under_traffic",
        "no byte is lost",
    ),
    Row(
        "staying up",
        "the server is killed and comes back",
        "nobody says goodbye",
        "test_restart::test_killed_and_restarted",
        "connects again",
    ),
    Row(
        "staying up",
        "the same, with a stream open",
        "the same address again",
        "test_restart::test_a_stream_lives_on",
        "the stream goes on",
    ),
    Row(
        "staying up",
        "the server ends in order (RESTART)",
        "no need to wait for silence",
        "test_restart::test_server_says_restart",
        "connects again",
    ),
    Row(
        "staying up",
        "inactive, session-timeout and ping-exit, pushed",
        "which of them are an error",
        "test_ends::test_what_is_pushed_ends_it",
        "ends: with status 0, 0 and 3",
    ),
    Row(
        "staying up",
        "the server ends the session for good (HALT)",
        "must not connect again",
        "test_ends::test_halt",
        "ends with status 3: “… the office is closed …”",
    ),
    Row(
        "staying up",
        "we end (explicit-exit-notify, cc-exit)",
        "the server would keep our address until it hears nothing",
        "test_signals::test_when_up",
        "the server knows at once",
    ),
    Row(
        "staying up",
        "the server is revoked while we are connected (crl-verify, a list or a folder)",
        "a list that was read once knows nothing of it",
        "test_restart::test_a_server_that_was_revoked_meanwhile",
        "ends with status 5: “… revoked …”",
    ),
    Row(
        "the kernel's device",
        "every program of the machine; redirect-gateway def1 ipv6, the server's own address drawn in",
        "the tunnel's own packets must stay outside",
        "test_tun::test_every_program_is_inside",
        "connects; all is put back",
    ),
    Row(
        "the kernel's device",
        "seven of cipher × transport × wrap, on one thread and several, megabytes both ways",
        "long packets are cut and joined, and each cipher has its own way through them",
        "test_tun_matrix::test_bytes_arrive_both_ways",
    ),
    Row(
        "the kernel's device",
        "dev tap",
        "the kernel's neighbours are on the other side",
        "test_tun::test_an_ethernet_tunnel_on_a_device_of_the_kernels",
        "connects; all is put back",
    ),
    Row(
        "the kernel's device",
        "topology net30 and p2p",
        "an address without a network, routes by another end",
        "test_tun::test_a_point_to_point_topology",
        "connects; all is put back",
    ),
    Row(
        "the kernel's device",
        "another address after a reconnection",
        "the device must stay (persist-tun)",
        "test_tun::test_a_new_address_comes_to_the_same_device",
        "connects again, same device",
    ),
    Row(
        "the kernel's device",
        "another router while it is up, and none for a while",
        "the server would be looked for in the tunnel",
        "test_tun::test_the_way_to_the_server_follows_the_machines_routes",
        "goes on",
    ),
    Row(
        "the kernel's device",
        "a server that moves to where the tunnel leads: by its name",
        "its name and its address are to be found while all is drawn in",
        "test_tun_names::test_a_server_that_moves_is_found_past_the_tunnel",
        "connects again",
    ),
    Row(
        "the kernel's device",
        "a server that moves with float, in the handshake too; with --kill-switch and without",
        "what goes there must not go into the tunnel, and nothing else may go there",
        "test_tun_elsewhere::test_a_server_that_moves_is_followed",
        "connects; nothing of other programs leaves",
    ),
    Row(
        "the kernel's device",
        "a SOCKS proxy whose relay is elsewhere; with --kill-switch and without",
        "only the proxy's answer says where datagrams go",
        "test_tun_elsewhere::test_a_relay_elsewhere_than_its_proxy",
        "connects; nothing of other programs leaves",
    ),
    Row(
        "the kernel's device",
        "systemd-resolved, openresolv, resolvconf",
        "each is told in its own way, and each way back is its own",
        "test_tun_names::test_who_keeps_the_name_servers_is_asked",
        "names of the office are known, and then all is as it was",
    ),
    Row(
        "the kernel's device",
        "dns server for some domains, on other ports",
        "not every way knows these",
        "test_tun_names::test_name_servers_for_some_names",
        "asked where it can be, or a line says so",
    ),
    Row(
        "the kernel's device",
        "--kill-switch while the server is away, with a route of a hostile network (TunnelVision)",
        "programs send whatever the tunnel does",
        "test_tun::test_the_kill_switch_holds_while_it_reconnects",
        "nothing leaves but to the server",
    ),
    Row(
        "the kernel's device",
        "--kill-switch, the session killed",
        "nobody is left to close it",
        "test_tun::test_the_kill_switch_outlives_a_killed_session",
        "nothing leaves until it is connected again",
    ),
    Row(
        "the kernel's device",
        "SIGINT, SIGTERM, SIGKILL of the session, the helper or both, at nine stages of start and end",
        "what is changed last is forgotten first",
        "test_tun_signals::test_all_comes_back",
        "all is put back, by the next run where nobody is left",
    ),
    Row(
        "the kernel's device",
        "the journal after SIGKILL of both",
        "what was changed is known only there",
        "test_tun::test_a_next_run_puts_back_what_killed_ones_left",
        "the next run puts all back",
    ),
    Row(
        "the kernel's device",
        "the session's rights",
        "it talks to the network",
        "test_tun::test_the_session_has_no_rights_left",
        "none is left",
    ),
    Row(
        "files",
        "a file of each shape in `tests/profiles`",
        "quoting, CRLF, blocks, files beside it",
        "test_profiles::test_a_file_connects",
    ),
    Row(
        "files",
        "certificates, keys, passwords and cipher names that OpenSSL does not take",
        "`ginnel check` must say what stock says when it starts",
        "test_differential::test_what_openssl_does_not_take_is_refused_by_both_before_they_connect",
        "both refuse them",
    ),
    Row(
        "files",
        "every option that stock takes or refuses",
        "what one takes the other refuses",
        "test_differential::test_stock_and_ginnel_agree_or_the_difference_is_listed",
        "as listed in `check.md`",
    ),
    *SERVER_ROWS,
]


def page() -> str:
    lines = [*INTRODUCTION, ""]
    for subject in SUBJECTS:
        lines += [
            f"## {subject[0].upper()}{subject[1:]}",
            "",
            "| what | set | why it can break | result |",
            "|---|---|---|---|",
        ]
        for entry in (*ROWS, *CELLS):
            if entry.subject == subject:
                lines.append(f"| {entry.name} | {_set(entry)} | {entry.why} | {entry.result} |")
        lines.append("")
    return "\n".join(lines)


def _set(entry: Cell | Row) -> str:
    """Both sides' options, or the test that has them."""
    if isinstance(entry, Row):
        return f"`{entry.test}`"
    sides = []
    for side, options in (("server", entry.theirs), ("client", entry.ours)):
        if options:
            shown = [f"`{option}`" for option in options[:2]]
            more = [f"and {len(options) - 2} more"] if len(options) > 2 else []
            sides.append(f"{side}: {', '.join(shown + more)}")
    if entry.without:
        sides.append(f"client without {', '.join(f'`{option}`' for option in entry.without.split())}")
    return "; ".join(sides) or "–"


def runs(test: str) -> bool:
    """Whether there is such a test."""
    module, name = test.split("::")
    return hasattr(importlib.import_module(f"tests.interop.{module}"), name)


SUBJECTS = [
    "transports",
    "wrapping",
    "TLS",
    "certificates",
    "data",
    "push",
    "login",
    "staying up",
    "the kernel's device",
    "files",
    SUBJECT,
]
INTRODUCTION = """\
# With stock OpenVPN

What `ginnel connect` is tried with, against a stock OpenVPN 2.6 server in a network namespace of its own: made by
`make interop` of the table that the tests run, and held to it by a test. Chosen by what can break.

“Connects” means that a page came through the tunnel, found by its name. What must fail does so with the exit status and
the words given. Where a test is named, it is in `tests/interop` and needs more than options.

What OpenVPN 2.6 does not have can't be tried with it: PUSH_UPDATE and epoch keys are of 2.7. They are tried with
ginnel's own server, and held to OpenVPN's published values (`tests/vectors/SOURCES.md`). What `connect --tun` does to a
machine is in `tests/interop/test_tun.py`. Stock clients at `ginnel serve` come last.

OpenVPN 3, which phones have, is not in Debian. Its own `ovpncli` (3.12, built of its repository) was tried at
`ginnel serve` by hand on 2026-11-29: UDP and TCP, subnet and net30, no wrap, tls-auth, tls-crypt and tls-crypt-v2,
AES-GCM and ChaCha20 with epoch keys, password and token, IPv4 and IPv6 inside, renegotiation begun by it, kicked (it
comes back), revoked (it ends with the reason). Where the server begins renegotiations more often than each two minutes,
no data comes through after the second: it sends with the first key for a minute, which by then is nobody's.
""".splitlines()


if __name__ == "__main__":
    PAGE.write_text(page())
