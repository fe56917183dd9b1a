"""The client's policy: its first packet, its credentials, the push request, and the server's messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from ginnel.errors import AuthError, RemoteProtocolError, UnreachableError
from ginnel.openvpn import events, keys
from ginnel.openvpn.certificates import out_of_date
from ginnel.openvpn.data_format import (
    AEAD_CIPHERS,
    COMPRESSING,
    FRAMINGS,
    NEVER_COMPRESSED,
    TCP_IP,
    DataFormat,
    MssFix,
    normal_cipher,
)
from ginnel.openvpn.events import Framing, Prompt
from ginnel.openvpn.keys import KeyMessage, Proto
from ginnel.openvpn.login import Login, base64_text
from ginnel.openvpn.policy import SessionSettings, Timer, Tunnel
from ginnel.openvpn.push import PullFilter, PushCollector, PushReply
from ginnel.openvpn.push_values import Inactive, Topology
from ginnel.openvpn.session import Session
from ginnel.openvpn.tls import TlsConnection
from ginnel.openvpn.tls_crypt_v2 import TlsCryptV2
from ginnel.openvpn.words import escape
from ginnel.openvpn.wrap import TlsAuth


@dataclass(frozen=True, kw_only=True)
class ClientSettings(SessionSettings):
    """A client's configuration; each value is the option of the same name.

    ``auth`` and ``fallback_cipher`` matter to old servers only. ``ping``, ``ping_restart`` and
    ``ping_exit`` (seconds; at most one of the latter two) hold unless the server pushes others.
    ``extra_peer_info`` are pairs like ("UV_ID", "7").
    ``export_keys``: tell the server that we can take data keys from TLS's exporter. ``relay_header``: the bytes
    that a relay on the way wants before each datagram.
    """

    data_ciphers: tuple[str, ...] = ("AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305")
    fallback_cipher: str | None = None
    auth: str = "SHA1"
    framing: Framing = ""
    tap: bool = False
    topology: Topology | None = None
    tun_mtu: int = 1500
    tun_mtu_max: int = 1600
    mssfix: MssFix | None = None
    explicit_exit_notify: int = 0
    ping: int = 0
    ping_restart: int = 120
    ping_exit: int = 0
    pull_filters: tuple[PullFilter, ...] = ()
    route_nopull: bool = False
    session_timeout: int = 0
    inactive: Inactive = field(default=Inactive(0))
    gui_version: str = "ginnel"
    extra_peer_info: tuple[tuple[str, str], ...] = ()
    export_keys: bool = True
    relay_header: int = 0


class ClientPolicy:
    """One connection of a client. See `policy.Policy`."""

    server = False

    def __init__(
        self, settings: ClientSettings, login: Login | None = None, *, unix_time: float, peer: int = 0
    ) -> None:
        """``login`` is shared with the policies before and after this one. ``unix_time`` is the wall
        clock's time now, ``peer`` the number for the data plane."""
        self._login = login or Login(wanted=False)
        self._credentials = self._login.credentials
        self.settings = settings
        self.unix_time = unix_time
        self.peer = peer
        self._pushes = PushCollector(settings.pull_filters, topology=settings.topology, tap=settings.tap)
        self._server_options = ""
        self._asked: Prompt | None = None
        self._pending = 0.0

    def attach(self, session: Session, random: Callable[[int], bytes]) -> None:
        self._session = session
        self._random = random

    def reneg_sec(self) -> float:
        return self.settings.reneg_sec

    @property
    def why_silent(self) -> str:
        # Stock drops whom it does not take, without a word.
        own = self.settings.tls.own_certificate
        if own is not None and (why := out_of_date(own, self.unix_time)) is not None:
            return f" (our certificate {why})"
        cases = []
        if isinstance(self.settings.wrap, TlsCryptV2):
            cases.append("for a user who was revoked")
        if self._login.credentials is None:
            cases.append("where the server wants a password, and the file has no auth-user-pass")
        return f" (nor does it {', or '.join(cases)})" if cases else ""

    # Exchange.

    def key_message(self) -> KeyMessage | None:
        if self._session.tunnel is not None and self._login.forgetful and not self._remember():
            return None
        who = self._credentials
        if self._login.forgetful:
            self._credentials = None
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
            framing=settings.framing,
        )
        info = keys.peer_info(
            proto=OUR_PROTO if settings.export_keys else OUR_PROTO & ~Proto.TLS_KEY_EXPORT,
            ciphers=settings.data_ciphers,
            mtu=settings.tun_mtu_max,
            gui_version=settings.gui_version,
            extra=settings.extra_peer_info,
        )
        message = replace(KeyMessage.make(self._random, server=False, options=options), peer_info=info)
        return message if who is None else replace(message, username=who.username, password=who.password)

    def check_key_message(self, message: KeyMessage, tls: TlsConnection) -> None:
        self._server_options = message.options

    # Policy.

    def negotiated(self, now: float) -> None:
        self._session.set_timer(Timer.PUSH_WINDOW, now + self.settings.hand_window)
        self._request_push(now)

    def handle_timer(self, timer: Timer, now: float) -> None:
        window = self.settings.hand_window
        if timer is Timer.PUSH_REQUEST and now - self._session.last_heard < window:
            self._request_push(now)
            return
        text = f"the server sent no push reply within {window:g} s"
        if timer is Timer.PUSH_REQUEST:
            text = f"nothing heard from the server for {window:g} s, before it sent a push reply"
        elif self._pending:
            text = f"nobody approved the login within {self._pending:g} s"
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
            case "PUSH_UPDATE":
                self._take_update(text)
            case "INFO" | "INFO_PRE":
                self._take_info(rest)
            case "RESTART" | "HALT":
                self._dismissed(command, rest)
            case _:
                self._session.notice(f"the server sent a message that is not known: {command[:40]}")

    # Will of the user.

    def respond(self, prompt: Prompt, text: str, now: float) -> None:
        """Answers a `Prompt` that came in the course of the session: of the server's the latest."""
        if prompt != self._asked:
            self._session.answered()
            self._session.send_message(f"CR_RESPONSE,{base64_text(text)}")
            return
        self._asked = None
        self._login.answer(prompt, text)
        self._session.go_on(now)

    def _remember(self) -> bool:
        """Takes for a renegotiation what was forgotten when the tunnel was up (``auth-nocache``), as far as it
        need not be asked for."""
        prompt = self._login.prompt
        if prompt is not None:
            if prompt != self._asked:
                self._asked = prompt
                self._session.tell(prompt)
            return False
        self._credentials = self._login.credentials
        self._login.accepted()
        return True

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
        reply = self._mind(reply)
        self._session.open_tunnel(self._tunnel(reply), reply, now)
        self._login.accepted()

    def _take_update(self, text: str) -> None:
        tunnel = self._session.tunnel
        if tunnel is None:
            raise RemoteProtocolError("the server sent PUSH_UPDATE before there was a tunnel")
        try:
            reply = self._pushes.update(text)
        except RemoteProtocolError as error:
            self._session.finish(error, retry=True, advance="stay")
            return
        if reply is not None:
            reply = self._mind(reply)
            self._session.change_tunnel(replace(tunnel, mss=self._mss(reply, tunnel.data_format)))
            self._session.tell(events.Reconfigured(reply))

    def _mind(self, reply: PushReply) -> PushReply:
        """What our own configuration leaves of it; what has no effect is told."""
        limit = self.settings.tun_mtu_max
        if reply.tun_mtu is not None and reply.tun_mtu > limit:
            reason = f"is more than tun-mtu-max, which is {limit}"
            reply = replace(reply, tun_mtu=None, ignored=(*reply.ignored, (f"tun-mtu {reply.tun_mtu}", reason)))
        for option, reason in reply.ignored:
            self._session.notice(f"pushed option without effect: {option}: {reason}")
        for option in _without_effect(reply):
            self._session.notice(f"pushed option without effect: {option}")
        if reply.compression in COMPRESSING:
            self._session.notice(f"the server pushed {reply.compression}: {NEVER_COMPRESSED}")
        return _without_routes(reply) if self.settings.route_nopull else reply

    def _take_token(self, reply: PushReply) -> None:
        if reply.auth_token is None:
            return
        try:
            self._login.take_token(reply.auth_token, reply.auth_token_user)
        except ValueError as error:
            self._session.notice(f"pushed option without effect: auth-token-user: {error}")
        self._credentials = self._login.credentials

    def _tunnel(self, reply: PushReply) -> Tunnel:
        """Raises RemoteProtocolError for what the server wants and we can't do."""
        if reply.wrong is not None:
            raise RemoteProtocolError("the server pushed what can't be used: {}: {}".format(*reply.wrong))
        unsupported = ", ".join(escape(flag) for flag in sorted(set(reply.protocol_flags) - SUPPORTED_FLAGS))
        if unsupported:
            raise RemoteProtocolError(f"the server asks for {unsupported}, which is not supported")
        data_format = self._data_format(reply)
        settings = self.settings
        ping_exit = settings.ping_exit if reply.ping_exit is None else reply.ping_exit
        ping_restart = settings.ping_restart if reply.ping_restart is None else reply.ping_restart
        if reply.ping_restart is not None and reply.ping_exit is None:
            ping_exit = 0
        inactive = reply.inactive or settings.inactive
        exit_notify = reply.explicit_exit_notify
        return Tunnel(
            data_format=data_format,
            exported=reply.exported_keys,
            peer_id=reply.peer_id,
            ping=settings.ping if reply.ping is None else reply.ping,
            ping_restart=ping_exit or ping_restart,
            ping_exit=ping_exit > 0,
            mss=self._mss(reply, data_format),
            inactive=inactive.seconds,
            inactive_bytes=inactive.size,
            session_timeout=settings.session_timeout if reply.session_timeout is None else reply.session_timeout,
            cc_exit="cc-exit" in reply.protocol_flags,
            exit_notify=settings.explicit_exit_notify if exit_notify is None else exit_notify,
            dyn_tls_crypt="dyn-tls-crypt" in reply.protocol_flags,
        )

    def _data_format(self, reply: PushReply) -> DataFormat:
        """Raises RemoteProtocolError for a format that we don't have, or that the configuration doesn't name."""
        if reply.compression not in FRAMINGS:
            raise RemoteProtocolError(f"the server asks for {reply.compression!r}, which is not supported")
        cipher = self._choose_cipher(reply)
        framing = self.settings.framing if reply.compression is None else FRAMINGS[reply.compression]
        if reply.compression is None:
            self._compare_framing(framing)
        if cipher not in AEAD_CIPHERS:
            return DataFormat(cipher, self.settings.auth, framing=framing)
        epochs = "aead-epoch" in reply.protocol_flags
        if epochs and reply.peer_id is None:
            raise RemoteProtocolError("the server asks for aead-epoch without a peer-id")
        return DataFormat(cipher, epochs=epochs, framing=framing)

    def _compare_framing(self, framing: Framing) -> None:
        """Where nothing is pushed of it, both files must say the same, or nothing passes; stock warns, too."""
        theirs = self._server_options.split(",")
        if theirs[0] != "V4" or ("comp-lzo" in theirs) == (framing != ""):
            return
        if framing:
            self._session.notice(
                "the server has no compression, and the file has: remove comp-lzo, or compress, from it"
            )
        else:
            self._session.notice("the server has compression, which it doesn't push: add to the file: comp-lzo no")

    def _choose_cipher(self, reply: PushReply) -> str:
        """The pushed cipher, or an old server's own, if it is one of ours, else for an old server the fallback
        (``ssl_ncp.c``)."""
        settings = self.settings
        theirs = reply.cipher or keys.option(self._server_options, "cipher")
        if theirs is not None and normal_cipher(theirs) in settings.data_ciphers:
            return normal_cipher(theirs)
        if reply.cipher is None and settings.fallback_cipher is not None:
            return settings.fallback_cipher
        if theirs is None:
            raise RemoteProtocolError("the server names no data cipher; set data-ciphers-fallback to its own")
        ours = ":".join(settings.data_ciphers)
        raise RemoteProtocolError(f"the server's data cipher {theirs!r} is not in data-ciphers ({ours})")

    def _mss(self, reply: PushReply, data_format: DataFormat) -> int:
        """The TCP MSS over IPv4, with a default as in ``options.c``."""
        settings = self.settings
        fix = settings.mssfix
        if fix is None:
            fix = MssFix(1492, "mtu") if settings.tun_mtu == 1500 else MssFix(settings.tun_mtu, "fixed")
        if settings.relay_header and fix.size and fix.mode != "fixed":
            fix = replace(fix, size=fix.size - settings.relay_header)
        ipv6 = ":" in self._session.path[1]
        mss = data_format.mss(fix, peer_id=reply.peer_id is not None, tcp=settings.tcp, ipv6=ipv6, tap=settings.tap)
        return mss if reply.tun_mtu is None else min(mss, reply.tun_mtu - TCP_IP)

    def _fail_auth(self, rest: str) -> None:
        """``AUTH_FAILED[,REASON]``, or ``AUTH_FAILED,TEMP[backoff N,advance …]:REASON``."""
        if rest.startswith("TEMP"):
            flags, reason = _split_flags(rest[4:])
            match = re.search(r"(?:^|,)backoff ([0-9]{1,6})(?:,|$)", flags)
            reason = reason.removeprefix(":")
            text = _with("the server refuses logins for now", reason)
            delay = float(match[1]) if match else 0.0
            self._session.finish(AuthError(text, reason), retry=True, delay=delay, advance=_advance(flags))
            return
        if rest.startswith(NO_CIPHER):
            ours = ":".join(self.settings.data_ciphers)
            text = f"the server takes none of our data ciphers ({ours}); add one of its own to data-ciphers"
            self._session.finish(RemoteProtocolError(text), retry=False)
            return
        error = AuthError(_with("the server refused the login", "" if rest.startswith("CRV1:") else rest), rest)
        self._session.finish(error, retry=self._login.refused(rest), advance="stay")

    def _wait_for_auth(self, rest: str, now: float) -> None:
        """``AUTH_PENDING[,timeout N]``: someone has to approve the login first."""
        match = re.search(r"(?:^|,)timeout ([0-9]{1,6})(?:,|$)", rest)
        wanted = float(match[1]) if match else self.settings.hand_window
        timeout = min(wanted, max(self.settings.reneg_sec / 2, self.settings.hand_window))
        if self._session.tunnel is None:
            self._session.set_timer(Timer.PUSH_WINDOW, now + timeout)
            self._pending = timeout
            self._session.ask(events.AuthPending(timeout))

    def _take_info(self, text: str) -> None:
        """``INFO``: words for the user, or what a login still needs (``doc/management-notes.txt``)."""
        kind, _, rest = text.partition(":")
        match kind:
            case "WEB_AUTH" | "OPEN_URL":
                url = rest.partition(":")[2] if kind == "WEB_AUTH" else rest
                if re.match(r"https?://[^/\s]", url):
                    self._session.ask(events.OpenUrl(url))
                else:
                    self._session.notice(f"the server wants an address opened that is none of the web's: {url[:80]}")
            case "CR_TEXT":
                flags, _, question = rest.partition(":")
                wanted = flags.split(",")
                if "R" in wanted:
                    self._session.ask(events.Prompt("challenge", question, "E" in wanted))
                else:
                    self._session.notice(f"the server says: {question}")
            case _:
                self._session.notice(f"the server says: {text}")

    def _dismissed(self, command: str, rest: str) -> None:
        """``RESTART`` and ``HALT``, each with ``[FLAGS]REASON``: P keeps the login, N goes to the next server."""
        flags, reason = _split_flags(rest)
        if "P" not in flags:
            self._login.forget()
        advance: events.Advance = "address" if "N" in flags else "stay"
        if command == "RESTART":
            error = UnreachableError(_with("the server asks to connect again", reason.strip()))
            self._session.finish(error, retry=True, advance=advance)
        else:
            error = UnreachableError(_with("the server ended the session", reason.strip()))
            self._session.finish(error, retry=False)


def _split_flags(text: str) -> tuple[str, str]:
    """``[FLAGS]REST`` into both."""
    if text.startswith("[") and "]" in text:
        flags, _, rest = text[1:].partition("]")
        return flags, rest
    return "", text


def _advance(flags: str) -> events.Advance:
    match = re.search(r"(?:^|,)advance (no|addr|remote)(?:,|$)", flags)
    where: dict[str, events.Advance] = {"no": "stay", "addr": "address", "remote": "remote"}
    return where[match[1]] if match else "stay"


def _with(text: str, reason: str) -> str:
    return f"{text}: {reason}" if reason else text


def _without_effect(reply: PushReply) -> Iterator[str]:
    """What is understood, and left to others."""
    for name, size in (("sndbuf", reply.sndbuf), ("rcvbuf", reply.rcvbuf)):
        if size:
            yield f"{name} {size}: the sockets have the sizes of ginnel and the system"
    for kind in dict.fromkeys(kind for kind, *_ in reply.dhcp_options):
        yield f"dhcp-option {kind}: of these options name servers and domains alone are used"


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
# An AUTH_FAILED that has nothing against the login (ssl_ncp.c).
NO_CIPHER = "Data channel cipher negotiation failed"
SUPPORTED_FLAGS = {"cc-exit", "tls-ekm", "dyn-tls-crypt", "aead-epoch"}
OUR_PROTO = (
    Proto.DATA_V2
    | Proto.REQUEST_PUSH
    | Proto.TLS_KEY_EXPORT
    | Proto.AUTH_PENDING_KW
    | Proto.CC_EXIT_NOTIFY
    | Proto.AUTH_FAIL_TEMP
    | Proto.DYN_TLS_CRYPT
    | Proto.DATA_EPOCH
    | Proto.DNS_OPTION_V2
    | Proto.PUSH_UPDATE
)
