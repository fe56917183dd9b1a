"""The rows of `docs/interop.md` on stock clients at our server."""

from __future__ import annotations

from tests.interop.rows import Row

SUBJECT = "stock clients at our server"

SERVER_ROWS = [
    Row(
        SUBJECT,
        "UDP, TCP × topology subnet, net30 × certificate, + password, + token; tls-crypt-v2",
        "each has its own push, and the login comes again with each renegotiation",
        "test_serve::test_stock_clients_connect",
    ),
    Row(
        SUBJECT,
        "no wrap, tls-auth, tls-crypt; a key of tls-crypt where a file has none of tls-crypt-v2",
        "first packets that look different, of which one is answered with a cookie",
        "test_serve::test_other_wraps",
    ),
    Row(
        SUBJECT,
        "seven of transport × wrap × cipher, on several threads",
        "long packets still have to fit; AES-CBC has a digest of its own beside tls-auth's; a wrap says nothing of "
        "ciphers, so that the other products are left out",
        "test_serve_cells::test_cells",
    ),
    Row(
        SUBJECT,
        "UDP and TCP over IPv6, TLS 1.2 (data keys by PRF are a client's before 2.6: tried between our own sessions)",
        "another family's length, another handshake",
        "test_serve_cells::test_outer_ipv6",
    ),
    Row(
        SUBJECT,
        "a stream while keys change every two seconds, UDP, TCP, begun by either side (100 changes in `make soak`)",
        "packets of the old key are on their way",
        "test_serve::test_a_stream_goes_on_while_keys_change",
        "no byte is missing",
    ),
    Row(
        SUBJECT,
        "float: the client's address changes",
        "its packets come from elsewhere",
        "test_serve::test_renegotiation_under_traffic_and_float",
        "goes on",
    ),
    Row(
        SUBJECT,
        "redirect-gateway, with what is outside allowed and not",
        "everything goes through the server's own sockets",
        "test_serve::test_all_traffic_goes_through_the_server_where_it_is_allowed",
        "reached, or not",
    ),
    Row(
        SUBJECT,
        "a network behind a client (iroute)",
        "sources that are not the client's address",
        "test_serve_cells::test_a_network_behind_a_client_may_send_through_it",
        "reached",
    ),
    Row(
        SUBJECT,
        "login by a program, pushed options of one user",
        "a login that waits, and a push of more than one kind",
        "test_serve_cli::test_a_stock_client_is_let_in_by_a_program_and_pushed_what_is_hers",
    ),
    Row(
        SUBJECT,
        "the server restarts (RESTART), and a client is kicked",
        "what ends the one client has the other come back",
        "test_serve::test_a_restart_brings_clients_back",
        "connects again",
    ),
    Row(
        SUBJECT,
        "a user is revoked while she is connected",
        "keys that are good until they end",
        "test_serve::test_revocation_ends_a_live_session",
        "ends with AUTH_FAILED",
    ),
    Row(
        SUBJECT,
        "a second client with the same file, from the same address",
        "two machines would throw each other out for ever",
        "test_serve::test_who_is_replaced_ends_and_the_newcomer_stays",
        "the first ends (HALT), the second stays",
    ),
    Row(
        SUBJECT,
        "a wrong password, a revoked and an unknown certificate, no common cipher",
        "the reason has to reach the client",
        "test_serve::test_refusals_have_a_reason",
        "AUTH_FAILED and the reason",
    ),
    Row(
        SUBJECT,
        "an expired certificate",
        "only OpenSSL knows",
        "test_serve_cells::test_an_expired_certificate_is_refused_and_said",
        "refused, and a line in the log",
    ),
    Row(
        SUBJECT,
        "a certificate of another authority, or a server's",
        "whoever has a server's key must not be a client (remote-cert-tls)",
        "test_serve_cells::test_a_certificate_that_is_no_clients_of_ours_is_refused_and_said",
        "refused, and a line in the log",
    ),
    Row(
        SUBJECT,
        "a token after its session, a token that was replaced, another user's",
        "as with stock a token is no session's: whoever has the latest is in",
        "test_serve_tokens::test_a_token_counts_until_the_next_one_and_for_its_user_alone",
        "connects; the others are refused, and a line in the log",
    ),
    Row(
        SUBJECT,
        "a token whose lifetime is over",
        "the client has to go back to its password by itself",
        "test_serve_tokens::test_a_token_whose_lifetime_is_over_makes_way_for_the_password",
        "refused, and connects again",
    ),
    Row(
        SUBJECT,
        "users of Debian's easy-rsa, whose folder was imported; one was revoked there, one is here",
        "their files are of another server, and so is the list of the revoked",
        "test_serve_easyrsa::test_users_of_an_easy_rsa_keep_their_files_and_who_was_revoked_stays_out",
        "connects; AUTH_FAILED for the revoked",
    ),
    Row(
        SUBJECT,
        "the status file, format 3, beside a stock server's",
        "monitors count columns",
        "test_serve_monitors::test_the_status_file_is_stocks_field_by_field",
        "the same lines, fields and order",
    ),
    Row(
        SUBJECT,
        "a user's name that is not the certificate's",
        "somebody else's file",
        "test_serve_cells::test_a_user_name_that_is_not_the_certificates_is_refused_and_said",
        "refused, and a line in the log",
    ),
    Row(
        SUBJECT,
        "a second login of one user",
        "two of one address",
        "test_serve_cells::test_a_second_login_is_refused_until_the_first_is_gone",
        "refused until the first is gone",
    ),
    Row(
        SUBJECT,
        "no wrap, or another's",
        "strangers must not learn that somebody is there",
        "test_serve_cells::test_who_has_no_wrap_or_anothers_is_not_answered",
        "not answered",
    ),
    Row(
        SUBJECT,
        "serve --tun: what is public and what is allowed, ports that are published, any end",
        "the kernel's routing and nftables do the work",
        "test_serve_tun::test_clients_reach_what_is_public_and_what_is_allowed",
        "reached, or not; all is put back",
    ),
]
