"""The client's policy: its first packet, its credentials, the push request, and the server's messages."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from ginnel.errors import AuthError, RemoteProtocolError, UnreachableError
from ginnel.openvpn import keys
from ginnel.openvpn.keys import KeyMessage, Proto
from ginnel.openvpn.push import PullFilter, PushCollector, PushReply
from ginnel.openvpn.session import Session, SessionSettings, Timer, Tunnel
from ginnel.openvpn.tls import TlsConnection
from ginnel.openvpn.wrap import TlsAuth


@dataclass(frozen=True)
class Credentials:
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class MssFix:
    """``mssfix SIZE [mtu|fixed]``: the largest UDP payload, IP packet with its headers ("mtu"), or
    inner packet ("fixed") that a TCP segment may lead to. Size 0 switches it off."""

    size: int
    mode: Literal["payload", "mtu", "fixed"] = "payload"


@dataclass(frozen=True, kw_only=True)
class ClientSettings(SessionSettings):
    """A client's configuration; each value is the option of the same name.

    ``auth`` and ``fallback_cipher`` matter to old servers only. ``ping``, ``ping_restart`` and
    ``ping_exit`` (seconds; at most one of the latter two) hold unless the server pushes others.
    ``extra_peer_info`` are pairs like ("UV_ID", "7"). ``auth_retry``: try again after AUTH_FAILED.
    ``export_keys``: tell the server that we can take data keys from TLS's exporter.
    """

    credentials: Credentials | None = None
    data_ciphers: tuple[str, ...] = ("AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305")
    fallback_cipher: str | None = None
    auth: str = "SHA1"
    tap: bool = False
    tun_mtu: int = 1500
    tun_mtu_max: int = 1600
    mssfix: MssFix | None = None
    explicit_exit_notify: int = 0
    ping: int = 0
    ping_restart: int = 120
    ping_exit: int = 0
    pull_filters: tuple[PullFilter, ...] = ()
    route_nopull: bool = False
    auth_retry: bool = False
    gui_version: str = "ginnel"
    extra_peer_info: tuple[tuple[str, str], ...] = ()
    export_keys: bool = True


class ClientPolicy:
    """One connection of a client. See `session.Policy`."""

    server = False

    def __init__(self, settings: ClientSettings, *, unix_time: float, peer: int = 0) -> None:
        """``unix_time`` is the wall clock's time now, ``peer`` the number for the data plane."""
        self.settings = settings
        self.unix_time = unix_time
        self.peer = peer
        self._pushes = PushCollector(settings.pull_filters)
        self._token: Credentials | None = None
        self._server_options = ""

    def attach(self, session: Session, random: Callable[[int], bytes]) -> None:
        self._session = session
        self._random = random

    def reneg_sec(self) -> float:
        return self.settings.reneg_sec

    # Exchange.

    def key_message(self) -> KeyMessage:
        settings = self.settings
        direction = settings.wrap.direction if isinstance(settings.wrap, TlsAuth) else None
        options = keys.options_string(
            server=False,
            tap=settings.tap,
            tcp=settings.tcp,
            tun_mtu=settings.tun_mtu,
            auth=settings.auth,
            key_direction=direction,
            tls_auth=isinstance(settings.wrap, TlsAuth),
        )
        info = keys.peer_info(
            proto=OUR_PROTO if settings.export_keys else OUR_PROTO & ~Proto.TLS_KEY_EXPORT,
            ciphers=settings.data_ciphers,
            mtu=settings.tun_mtu_max,
            gui_version=settings.gui_version,
            extra=settings.extra_peer_info,
        )
        message = replace(KeyMessage.make(self._random, server=False, options=options), peer_info=info)
        who = self._token or settings.credentials
        return message if who is None else replace(message, username=who.username, password=who.password)

    def check_key_message(self, message: KeyMessage, tls: TlsConnection) -> None:
        self._server_options = message.options

    # Policy.

    def negotiated(self, now: float) -> None:
        self._session.set_timer(Timer.PUSH_WINDOW, now + self.settings.hand_window)
        self._request_push(now)

    def handle_timer(self, timer: Timer, now: float) -> None:
        silent = now - self._session.last_heard >= self.settings.hand_window
        if timer is Timer.PUSH_REQUEST and not silent:
            self._request_push(now)
        else:
            text = f"the server sent no push reply within {self.settings.hand_window:g} s"
            self._session.finish(UnreachableError(text), retry=True)

    def handle_message(self, text: str, now: float) -> None:
        command, _, rest = text.partition(",")
        match command:
            case "PUSH_REPLY":
                self._take_push(text, now)
            case "AUTH_FAILED":
                self._fail_auth(rest)
            case "AUTH_PENDING":
                self._wait_for_auth(rest, now)
            case "INFO" | "INFO_PRE":
                self._session.notice(f"the server says: {rest}")
            case "RESTART":
                reason = _after_flags(rest)
                error = UnreachableError(_with("the server asks to connect again", reason))
                self._session.finish(error, retry=True)
            case "HALT":
                reason = _after_flags(rest)
                error = UnreachableError(_with("the server ended the session", reason))
                self._session.finish(error, retry=False)
            case _:
                self._session.notice(f"the server sent a message that is not known: {command[:40]}")

    def _request_push(self, now: float) -> None:
        self._session.send_message("PUSH_REQUEST")
        self._session.set_timer(Timer.PUSH_REQUEST, now + PUSH_REQUEST_INTERVAL)

    def _take_push(self, text: str, now: float) -> None:
        reply = self._pushes.add(text)
        if reply is None:
            return
        self._take_token(reply)
        if self._session.tunnel is not None:
            return
        self._session.set_timer(Timer.PUSH_REQUEST, None)
        self._session.set_timer(Timer.PUSH_WINDOW, None)
        for option, reason in reply.ignored:
            self._session.notice(f"pushed option without effect: {option}: {reason}")
        if self.settings.route_nopull:
            reply = _without_routes(reply)
        self._session.open_tunnel(self._tunnel(reply), reply, now)

    def _take_token(self, reply: PushReply) -> None:
        if reply.auth_token is None:
            return
        who = self._token or self.settings.credentials
        username = "" if who is None else who.username
        if reply.auth_token_user is not None:
            try:
                username = base64.b64decode(reply.auth_token_user, validate=True).decode()
            except (binascii.Error, ValueError):
                self._session.notice("pushed option without effect: auth-token-user: is not base64")
        self._token = Credentials(username, reply.auth_token)

    def _tunnel(self, reply: PushReply) -> Tunnel:
        """Raises RemoteProtocolError for what the server wants and we can't do."""
        if reply.compression not in HARMLESS_COMPRESSION:
            raise RemoteProtocolError(f"the server asks for {reply.compression!r}, which is not supported")
        unsupported = ", ".join(sorted(set(reply.protocol_flags) - SUPPORTED_FLAGS))
        if unsupported:
            raise RemoteProtocolError(f"the server asks for {unsupported}, which is not supported")
        settings = self.settings
        ping_exit = settings.ping_exit if reply.ping_exit is None else reply.ping_exit
        ping_restart = settings.ping_restart if reply.ping_restart is None else reply.ping_restart
        if reply.ping_restart is not None and reply.ping_exit is None:
            ping_exit = 0
        exit_notify = reply.explicit_exit_notify
        return Tunnel(
            cipher=self._choose_cipher(reply),
            exported=reply.exported_keys,
            peer_id=reply.peer_id,
            ping=settings.ping if reply.ping is None else reply.ping,
            ping_restart=ping_exit or ping_restart,
            ping_exit=ping_exit > 0,
            mss=self._mss(reply),
            cc_exit="cc-exit" in reply.protocol_flags,
            exit_notify=settings.explicit_exit_notify if exit_notify is None else exit_notify,
            dyn_tls_crypt="dyn-tls-crypt" in reply.protocol_flags,
        )

    def _choose_cipher(self, reply: PushReply) -> str:
        """The pushed cipher, or an old server's own, if it is one of ours (``ssl_ncp.c``)."""
        theirs = reply.cipher or keys.option(self._server_options, "cipher")
        if theirs is None:
            theirs = self.settings.fallback_cipher
            if theirs is not None:
                return theirs
            raise RemoteProtocolError("the server names no data cipher; set data-ciphers-fallback to its own")
        if theirs.upper() not in self.settings.data_ciphers:
            ours = ":".join(self.settings.data_ciphers)
            raise RemoteProtocolError(f"the server's data cipher {theirs!r} is not in data-ciphers ({ours})")
        return theirs.upper()

    def _mss(self, reply: PushReply) -> int:
        """The TCP MSS over IPv4 (``mss.c``, frame_calculate_mssfix), with a default as in ``options.c``."""
        settings = self.settings
        fix = settings.mssfix
        if fix is None:
            fix = MssFix(1492, "mtu") if settings.tun_mtu == 1500 else MssFix(settings.tun_mtu, "fixed")
        if fix.size == 0:
            return 0
        size = fix.size
        if fix.mode != "fixed":
            size -= (1 if reply.peer_id is None else 4) + AEAD_OVERHEAD + (2 if settings.tcp else 0)
        if fix.mode == "mtu":
            size -= (40 if ":" in self._session.path[1] else 20) + (20 if settings.tcp else 8)
        if reply.tun_mtu is not None:
            size = min(size, reply.tun_mtu)
        return max(size - 40, 0)

    def _fail_auth(self, rest: str) -> None:
        """``AUTH_FAILED[,REASON]``, or ``AUTH_FAILED,TEMP[backoff N,advance …]:REASON``."""
        if rest.startswith("TEMP"):
            flags, reason = _split_flags(rest[4:])
            match = re.search(r"(?:^|,)backoff ([0-9]{1,6})(?:,|$)", flags)
            reason = reason.removeprefix(":")
            text = _with("the server refuses logins for now", reason)
            delay = float(match[1]) if match else 0.0
            self._session.finish(AuthError(text, reason), retry=True, delay=delay)
            return
        error = AuthError(_with("the server refused the login", rest), rest)
        self._session.finish(error, retry=self.settings.auth_retry or self._token is not None)

    def _wait_for_auth(self, rest: str, now: float) -> None:
        """``AUTH_PENDING[,timeout N]``: someone has to approve the login first."""
        match = re.search(r"(?:^|,)timeout ([0-9]{1,6})(?:,|$)", rest)
        wanted = float(match[1]) if match else self.settings.hand_window
        timeout = min(wanted, max(self.settings.reneg_sec / 2, self.settings.hand_window))
        if self._session.tunnel is None:
            self._session.set_timer(Timer.PUSH_WINDOW, now + timeout)
            self._session.notice(f"the login waits for approval, for up to {timeout:g} s")


def _split_flags(text: str) -> tuple[str, str]:
    """``[FLAGS]REST`` into both."""
    if text.startswith("[") and "]" in text:
        flags, _, rest = text[1:].partition("]")
        return flags, rest
    return "", text


def _after_flags(text: str) -> str:
    return _split_flags(text)[1].strip()


def _with(text: str, reason: str) -> str:
    return f"{text}: {reason}" if reason else text


def _without_routes(reply: PushReply) -> PushReply:
    """``route-nopull``."""
    return replace(
        reply,
        routes=(),
        routes_ipv6=(),
        redirect_gateway=None,
        redirect_private=None,
        block_ipv6=False,
        dhcp_dns=(),
        dns_profiles=(),
        search_domains=(),
    )


PUSH_REQUEST_INTERVAL = 5.0
# Packet id and tag of an AEAD cipher.
AEAD_OVERHEAD = 4 + 16
HARMLESS_COMPRESSION = (None, "compress migrate")
SUPPORTED_FLAGS = {"cc-exit", "tls-ekm", "dyn-tls-crypt"}
OUR_PROTO = (
    Proto.DATA_V2
    | Proto.REQUEST_PUSH
    | Proto.TLS_KEY_EXPORT
    | Proto.AUTH_PENDING_KW
    | Proto.CC_EXIT_NOTIFY
    | Proto.AUTH_FAIL_TEMP
    | Proto.DYN_TLS_CRYPT
    | Proto.DNS_OPTION_V2
)
