"""A server's policy: has the login decided, chooses the cipher, answers the push request.

Who may come in, and with which options, its owner decides (`Gate`), at once or later: until then the
client's requests are not answered. A renegotiation is put before it again; the keys that come of it are in
use while that is decided, and a refusal ends the session.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ginnel.errors import AuthError, GinnelError, RemoteProtocolError
from ginnel.openvpn import keys
from ginnel.openvpn.data_format import AEAD_CIPHERS, FRAMINGS, DataFormat, MssFix
from ginnel.openvpn.events import Path
from ginnel.openvpn.keys import KeyMessage, Proto
from ginnel.openvpn.policy import SessionSettings, Timer, Tunnel
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.push_emit import emit_messages, emit_update
from ginnel.openvpn.session import Session
from ginnel.openvpn.tls import TlsConnection
from ginnel.openvpn.wrap import TlsAuth

Verify = Callable[[str, str, str], str | None]
"""From user name, password and the certificate's common name to None, or the reason of a refusal."""


@dataclass(frozen=True, slots=True)
class ClientLogin:
    """Who wants to come in.

    ``name`` and ``serial`` are the certificate's common name and number ("" and None without one).
    ``again``: in a renegotiation. ``peer_info`` is what the client says of itself.
    """

    peer: int
    path: Path
    name: str
    serial: int | None
    username: str
    password: str = field(repr=False)
    peer_info: Mapping[str, str]
    again: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """``reason`` is what the client is told, "" for nothing. ``backoff``: it may try again in so many seconds; 0:
    it need not try again."""

    reason: str
    backoff: int = 0


Verdict = PushReply | Refusal
Gate = Callable[[ClientLogin], Verdict | None]
"""Decides about a login: the options for this client, a refusal, or None: `ServerPolicy.decide` comes later. For
a renegotiation the token in the options counts alone."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings(SessionSettings):
    """What a server's sessions have in common.

    ``ping`` and ``ping_restart`` are the clients'; the server itself waits twice as long, as with
    stock's ``keepalive``. Without ``verify`` the certificate alone decides, where no `Gate` does.
    """

    verify: Verify | None = None
    data_ciphers: tuple[str, ...] = ("AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305")
    auth: str = "SHA1"
    tun_mtu: int = 1500
    mssfix: MssFix = field(default=MssFix(1492, "mtu"))
    ping: int = 10
    ping_restart: int = 60


class ServerPolicy:
    """One client's connection. See `policy.Policy`."""

    server = True
    why_silent = ""

    def __init__(
        self,
        settings: ServerSettings,
        push: PushReply | Gate,
        *,
        unix_time: float,
        peer: int = 0,
        peer_id: int = 0,
    ) -> None:
        """``push`` is what this client gets, without what is negotiated: cipher, keys, peer id, pings."""
        self.settings = settings
        self.unix_time = unix_time
        self.peer = peer
        self._gate = _fixed(settings, push) if isinstance(push, PushReply) else push
        self._peer_id = peer_id
        self._first: ClientLogin | None = None
        self._proto = Proto(0)
        self._theirs: KeyMessage | None = None
        self._cipher: str | None = None
        self._decided = False
        # The client was told to wait.
        self._is_pending = False
        self._answered = float("-inf")
        self._messages: list[str] = []
        self._reply: PushReply | None = None

    def attach(self, session: Session, random: Callable[[int], bytes]) -> None:
        self._session = session
        self._random = random

    def reneg_sec(self) -> float:
        """Up to a tenth less than asked for, as in stock, so that many clients don't come at once."""
        reneg_sec = self.settings.reneg_sec
        return reneg_sec - reneg_sec / 10 * int.from_bytes(self._random(2), "big") / 0x10000

    # Will of the owner.

    def decide(self, verdict: Verdict, now: float) -> None:
        """What became of a login for which the gate gave None. For a session that is not over."""
        if self._session.tunnel is not None:
            self._decide_again(verdict, now)
        elif not self._decided:
            self._decided = True
            self._session.set_timer(Timer.PUSH_WINDOW, None)
            if isinstance(verdict, Refusal):
                self._refuse(verdict, now)
            else:
                self._admit(verdict, now)

    def update(self, push: PushReply) -> bool:
        """Changes what was pushed (PUSH_UPDATE). False for a client that can't take that: it needs a new session."""
        if self._reply is None or Proto.PUSH_UPDATE not in self._proto:
            return False
        changed = replace(push, **{name: getattr(self._reply, name) for name in NEGOTIATED})
        for message in emit_update(self._reply.options(), changed.options()):
            self._session.send_message(message)
        self._reply = changed
        return True

    def tell(self, text: str) -> None:
        """Words for the client's user while the login waits: ``OPEN_URL:…``, ``CR_TEXT:…``."""
        self._session.send_message(f"INFO_PRE,{text}")

    def restart(self, now: float, text: str = "", *, next_server: bool = False) -> None:
        """Asks the client to connect again, and ends the session; ``text`` says why."""
        self._dismiss("RESTART", "[N]" * next_server, text, now)

    def halt(self, now: float, text: str = "") -> None:
        """Tells the client to stop, and ends the session."""
        self._dismiss("HALT", "", text, now)

    def expel(self, now: float, reason: str) -> None:
        """Tells the client that its login counts no more, and ends the session. Its data stops at once."""
        self._refuse(Refusal(reason), now)

    @property
    def path(self) -> Path:
        """Where the client is."""
        return self._session.path

    # Exchange.

    def key_message(self) -> KeyMessage:
        settings = self.settings
        direction = settings.wrap.direction if isinstance(settings.wrap, TlsAuth) else None
        options = keys.options_string(
            server=True,
            tap=False,
            tcp=settings.tcp,
            tun_mtu=settings.tun_mtu,
            auth=settings.auth,
            key_direction=direction,
            tls_auth=isinstance(settings.wrap, TlsAuth),
        )
        return KeyMessage.make(self._random, server=True, options=options)

    def check_key_message(self, message: KeyMessage, tls: TlsConnection) -> None:
        """The first login is decided when the negotiation is done: only then is there a way to tell."""
        login = ClientLogin(
            peer=self.peer,
            path=self._session.path,
            name=tls.peer_common_name,
            serial=tls.peer_serial,
            username=message.username,
            password=message.password,
            peer_info=keys.parse_peer_info(message.peer_info),
            again=self._first is not None,
        )
        self._theirs = message
        if self._first is None:
            self._first, self._proto = login, keys.parse_proto(login.peer_info)
            return
        first = self._first
        if (login.name, login.serial) != (first.name, first.serial):
            raise RemoteProtocolError("the client has another certificate in a renegotiation")
        pushed = None if self._reply is None else self._reply.auth_token_user
        if login.username != first.username and base64.b64encode(login.username.encode()).decode() != pushed:
            raise RemoteProtocolError("the client has another user name in a renegotiation")
        verdict = self._ask(login)
        if verdict is not None:
            self._decide_again(verdict, self._session.last_heard)

    # Policy.

    def negotiated(self, now: float) -> None:
        theirs, login = self._theirs, self._first
        if theirs is None or login is None:
            raise RemoteProtocolError("the client sent no key message")
        self._cipher = keys.negotiate_cipher(self.settings.data_ciphers, login.peer_info, theirs.options)
        if self._cipher is None:
            self._refuse(Refusal("Data channel cipher negotiation failed (no shared cipher)"), now)
            return
        most, wanted = login.peer_info.get("IV_MTU", ""), self.settings.tun_mtu
        if most.isascii() and most.isdigit() and len(most) < 6 and int(most) < wanted:
            self._session.notice(f"the client takes an MTU of {most} at most; add to its file: tun-mtu-max {wanted}")
        verdict = self._ask(login)
        if verdict is not None:
            self.decide(verdict, now)
            return
        # Most logins are decided in a moment, and nobody need hear of that.
        self._session.set_timer(Timer.PUSH_WINDOW, now + MOMENT)

    def handle_timer(self, timer: Timer, now: float) -> None:
        """PUSH_WINDOW: nobody has decided, yet or in time."""
        if self._is_pending:
            self.decide(Refusal("the login was not approved in time"), now)
            return
        self._is_pending = True
        window = self.settings.hand_window
        self._session.set_timer(Timer.PUSH_WINDOW, now + window)
        timed = Proto.AUTH_PENDING_KW in self._proto
        self._session.send_message(f"AUTH_PENDING,timeout {window:.0f}" if timed else "AUTH_PENDING")

    def handle_message(self, text: str, now: float) -> None:
        if text != "PUSH_REQUEST":
            self._session.notice(f"the client sent a message that is not known: {text[:40]}")
        elif self._messages and now >= self._answered + PUSH_REPLY_INTERVAL:
            self._answer(now)

    def _ask(self, login: ClientLogin) -> Verdict | None:
        if not (login.username.isprintable() and login.password.isprintable()):
            return Refusal("control characters in the user name or password")
        return self._gate(login)

    def _admit(self, push: PushReply, now: float) -> None:
        assert self._first is not None
        assert self._cipher is not None
        proto = self._proto
        reply = self._reply = self._complete(push, proto, self._cipher)
        self._messages = emit_messages(reply.options())
        data_format = self._data_format(self._cipher, reply)
        settings = self.settings
        tunnel = Tunnel(
            data_format=data_format,
            exported=reply.exported_keys,
            peer_id=reply.peer_id,
            ping=settings.ping,
            ping_restart=2 * settings.ping_restart,
            ping_exit=False,
            mss=data_format.mss(
                settings.mssfix,
                peer_id=reply.peer_id is not None,
                tcp=settings.tcp,
                ipv6=":" in self._session.path[1],
                tap=False,
            ),
            cc_exit="cc-exit" in reply.protocol_flags,
            exit_notify=0,
            dyn_tls_crypt="dyn-tls-crypt" in reply.protocol_flags,
        )
        self._session.open_tunnel(tunnel, reply, now)
        if Proto.REQUEST_PUSH in proto:
            self._answer(now)

    def _decide_again(self, verdict: Verdict, now: float) -> None:
        """In a renegotiation: a new token, or the end."""
        if isinstance(verdict, Refusal):
            self._refuse(verdict, now)
        elif verdict.auth_token is not None:
            for message in PushReply(auth_token=verdict.auth_token).emit():
                self._session.send_message(message)

    def _answer(self, now: float) -> None:
        self._answered = now
        for message in self._messages:
            self._session.send_message(message)

    def _complete(self, push: PushReply, proto: Proto, cipher: str) -> PushReply:
        """Adds what is negotiated (``push.c``, prepare_push_reply)."""
        exported = Proto.TLS_KEY_EXPORT in proto
        cc_exit = Proto.CC_EXIT_NOTIFY in proto
        flags = ["cc-exit", *(["tls-ekm"] if exported else [])] if cc_exit else []
        if Proto.DYN_TLS_CRYPT in proto:
            flags.append("dyn-tls-crypt")
        if Proto.DATA_EPOCH in proto and Proto.DATA_V2 in proto and cipher in AEAD_CIPHERS:
            flags.append("aead-epoch")
        return replace(
            push,
            cipher=cipher,
            peer_id=self._peer_id if Proto.DATA_V2 in proto else None,
            ping=self.settings.ping,
            ping_restart=self.settings.ping_restart,
            protocol_flags=tuple(flags),
            key_derivation="tls-ekm" if exported and not cc_exit else None,
        )

    def _data_format(self, cipher: str, reply: PushReply) -> DataFormat:
        framing = FRAMINGS.get(reply.compression, "")
        if cipher not in AEAD_CIPHERS:
            return DataFormat(cipher, self.settings.auth, framing=framing)
        return DataFormat(cipher, epochs="aead-epoch" in reply.protocol_flags, framing=framing)

    def _refuse(self, refusal: Refusal, now: float) -> None:
        """Clients that don't know of ``TEMP`` end at AUTH_FAILED; told to restart they try again."""
        reason = refusal.reason
        message = f"AUTH_FAILED,{reason}" if reason else "AUTH_FAILED"
        if refusal.backoff:
            known = Proto.AUTH_FAIL_TEMP in self._proto
            message = f"AUTH_FAILED,TEMP[backoff {refusal.backoff}]:{reason}" if known else f"RESTART,{reason}"
        self._session.send_message(message)
        error = AuthError(f"the client's login is refused: {reason}", reason)
        self._session.cut()
        self._session.finish_settled(error, retry=False, within=FAREWELL, now=now)

    def _dismiss(self, command: str, flags: str, text: str, now: float) -> None:
        self._session.send_message(f"{command},{flags}{text}" if flags or text else command)
        error = GinnelError(text) if text else None
        self._session.finish_settled(error, retry=False, within=FAREWELL, now=now)


def _fixed(settings: ServerSettings, push: PushReply) -> Gate:
    """The same options for everyone whom ``verify`` lets in."""

    def decide(login: ClientLogin) -> Verdict:
        refusal = None if settings.verify is None else settings.verify(login.username, login.password, login.name)
        return push if refusal is None else Refusal(refusal)

    return decide


# What an update leaves alone.
NEGOTIATED = ("cipher", "peer_id", "ping", "ping_restart", "protocol_flags", "key_derivation", "auth_token")
# Stock answers no sooner again, as requests may be on their way while the answer is.
PUSH_REPLY_INTERVAL = 30.0
# Seconds after which a client is told that its login waits.
MOMENT = 2.0
# Time for a last message to be sent again and acknowledged.
FAREWELL = 5.0
