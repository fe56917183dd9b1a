"""A server's policy: checks the login, chooses the cipher, answers the push request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ginnel.errors import AuthError, RemoteProtocolError
from ginnel.openvpn import keys
from ginnel.openvpn.data_format import AEAD_CIPHERS, FRAMINGS, DataFormat
from ginnel.openvpn.keys import KeyMessage, Proto
from ginnel.openvpn.push import PushReply
from ginnel.openvpn.push_emit import emit_messages
from ginnel.openvpn.session import Session, SessionSettings, Timer, Tunnel
from ginnel.openvpn.tls import TlsConnection
from ginnel.openvpn.wrap import TlsAuth

Verify = Callable[[str, str, str], str | None]
"""From user name, password and the certificate's common name to None, or the reason of a refusal."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings(SessionSettings):
    """What a server's sessions have in common.

    ``ping`` and ``ping_restart`` are the clients'; the server itself waits twice as long, as with
    stock's ``keepalive``. ``mss`` as in `events.SetPeer`. Without ``verify`` the certificate alone
    decides.
    """

    verify: Verify | None = None
    data_ciphers: tuple[str, ...] = ("AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305")
    auth: str = "SHA1"
    tun_mtu: int = 1500
    mss: int = 1400
    ping: int = 10
    ping_restart: int = 60


class ServerPolicy:
    """One client's connection. See `session.Policy`."""

    server = True

    def __init__(
        self,
        settings: ServerSettings,
        push: PushReply,
        *,
        unix_time: float,
        peer: int = 0,
        peer_id: int = 0,
    ) -> None:
        """``push`` is what this client gets, without what is negotiated: cipher, keys, peer id, pings."""
        self.settings = settings
        self.unix_time = unix_time
        self.peer = peer
        self._push = push
        self._peer_id = peer_id
        self._refusal: str | None = None
        self._theirs: KeyMessage | None = None
        self._answered = float("-inf")
        self._messages: list[str] = []

    def attach(self, session: Session, random: Callable[[int], bytes]) -> None:
        self._session = session
        self._random = random

    def reneg_sec(self) -> float:
        """Up to a tenth less than asked for, as in stock, so that many clients don't come at once."""
        reneg_sec = self.settings.reneg_sec
        return reneg_sec - reneg_sec / 10 * int.from_bytes(self._random(2), "big") / 0x10000

    # Will of the owner.

    def restart(self, now: float, text: str = "", *, next_server: bool = False) -> None:
        """Asks the client to connect again, and ends the session."""
        self._dismiss("RESTART", "[N]" * next_server + text, now)

    def halt(self, now: float, text: str = "") -> None:
        """Tells the client to stop, and ends the session."""
        self._dismiss("HALT", text, now)

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
        """A refused client is told so when the negotiation is done: only then is there a way to."""
        self._theirs = message
        verify = self.settings.verify
        if verify is None or self._refusal is not None:
            return
        if not (message.username.isprintable() and message.password.isprintable()):
            self._refusal = "control characters in the user name or password"
        else:
            self._refusal = verify(message.username, message.password, tls.peer_common_name)
        if self._refusal is not None and self._session.tunnel is not None:
            raise RemoteProtocolError("the client's login is refused in a renegotiation")

    # Policy.

    def negotiated(self, now: float) -> None:
        theirs = self._theirs
        if theirs is None:
            raise RemoteProtocolError("the client sent no key message")
        info = keys.parse_peer_info(theirs.peer_info)
        proto = keys.parse_proto(info)
        cipher = keys.negotiate_cipher(self.settings.data_ciphers, info, theirs.options)
        if cipher is None:
            self._refusal = self._refusal or "Data channel cipher negotiation failed (no shared cipher)"
        if self._refusal is not None or cipher is None:
            self._refuse(self._refusal or "", now)
            return
        reply = self._complete(proto, cipher)
        self._messages = emit_messages(reply.options())
        tunnel = Tunnel(
            data_format=self._data_format(cipher, reply),
            exported=reply.exported_keys,
            peer_id=reply.peer_id,
            ping=self.settings.ping,
            ping_restart=2 * self.settings.ping_restart,
            ping_exit=False,
            mss=self.settings.mss,
            cc_exit="cc-exit" in reply.protocol_flags,
            exit_notify=0,
            dyn_tls_crypt="dyn-tls-crypt" in reply.protocol_flags,
        )
        self._session.open_tunnel(tunnel, reply, now)
        if Proto.REQUEST_PUSH in proto:
            self._answer(now)

    def handle_timer(self, timer: Timer, now: float) -> None:
        """A server sets none of these."""

    def handle_message(self, text: str, now: float) -> None:
        if text != "PUSH_REQUEST":
            self._session.notice(f"the client sent a message that is not known: {text[:40]}")
        elif self._messages and now >= self._answered + PUSH_REPLY_INTERVAL:
            self._answer(now)

    def _answer(self, now: float) -> None:
        self._answered = now
        for message in self._messages:
            self._session.send_message(message)

    def _complete(self, proto: Proto, cipher: str) -> PushReply:
        """Adds what is negotiated (``push.c``, prepare_push_reply)."""
        exported = Proto.TLS_KEY_EXPORT in proto
        cc_exit = Proto.CC_EXIT_NOTIFY in proto
        flags = ["cc-exit", *(["tls-ekm"] if exported else [])] if cc_exit else []
        if Proto.DYN_TLS_CRYPT in proto:
            flags.append("dyn-tls-crypt")
        if Proto.DATA_EPOCH in proto and Proto.DATA_V2 in proto and cipher in AEAD_CIPHERS:
            flags.append("aead-epoch")
        return replace(
            self._push,
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

    def _refuse(self, reason: str, now: float) -> None:
        self._session.send_message(f"AUTH_FAILED,{reason}" if reason else "AUTH_FAILED")
        error = AuthError(f"the client's login is refused: {reason}", reason)
        self._session.finish_settled(error, retry=False, within=FAREWELL, now=now)

    def _dismiss(self, command: str, text: str, now: float) -> None:
        self._session.send_message(f"{command},{text}" if text else command)
        self._session.finish_settled(None, retry=False, within=FAREWELL, now=now)


# Stock answers no sooner again, as requests may be on their way while the answer is.
PUSH_REPLY_INTERVAL = 30.0
# Time for a last message to be sent again and acknowledged.
FAREWELL = 5.0
