"""One negotiation: the reliability layer, TLS and key-method 2 under one key id.

The rules (OpenVPN ``ssl.c``, tls_process_state). Both sides send a reset as packet 0 and speak TLS
once it is acknowledged. The client sends its key message first, the server answers with its own.
A side is done when it has both and every packet of its own is acknowledged. From then on the same
TLS connection carries control messages, each a record of text with a closing NUL.

=========  ======================  =======================  ==========================
state      left when               client does              server does
=========  ======================  =======================  ==========================
RESET      our reset has its ACK   sends its key message    nothing
EXCHANGE   the peer's key message  nothing                  checks it, sends its own
           is there
SETTLE     all packets have ACKs   nothing                  nothing
ACTIVE     never                   messages                 messages
=========  ======================  =======================  ==========================

Roles differ in who sends its key message first and nothing else; what stands in the messages is
`Exchange`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from ginnel.errors import LocalProtocolError
from ginnel.openvpn import keys
from ginnel.openvpn.keys import KeyMessage
from ginnel.openvpn.packets import ControlPacket, Header, Opcode, resend_wrapped_key
from ginnel.openvpn.reliability import AckQueue, ReceiveWindow, SendWindow
from ginnel.openvpn.tls import TlsConnection


class State(Enum):
    RESET = "reset"
    EXCHANGE = "exchange"
    SETTLE = "settle"
    ACTIVE = "active"


class Exchange(Protocol):
    """A role's part in a negotiation."""

    def key_message(self) -> KeyMessage | None:
        """Ours: a client's at the start, a server's after `check_key_message`. A client that has to ask its user
        first says None, and calls `Session.go_on` when it knows."""

    def check_key_message(self, message: KeyMessage, tls: TlsConnection) -> None:
        """Takes the peer's. Raises RemoteProtocolError to end the session."""


class Handshake:
    """One key id's negotiation. Every method that takes ``now`` may raise RemoteProtocolError."""

    def __init__(
        self,
        header: Header,
        tls: TlsConnection,
        exchange: Exchange,
        *,
        server: bool,
        timeout: float,
        now: float,
        opened: bool = False,
        wrapped_key_size: int = 0,
        elsewhere: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """``header`` is that of our reset; ``timeout`` the first one before a packet is sent again.
        ``opened``: both resets were exchanged and acknowledged already. ``wrapped_key_size``: how much
        longer P_CONTROL_WKC_V1 makes a packet. ``elsewhere`` takes each step of TLS's handshake for somebody to
        compute; `computed` is called after that."""
        self.key_id = header.key_id
        self.started = now
        self.state = State.RESET
        self.tls = tls
        self.heard = False
        self.last_heard = now
        self.retransmitted = 0
        self._session_id = header.session_id
        self._exchange = exchange
        self._server = server
        self._send = SendWindow(timeout, int(opened))
        self._receive = ReceiveWindow(int(opened))
        self._wrapped_key_size = wrapped_key_size
        self._resend_wrapped_key = False
        self._acks = AckQueue()
        self._ours: KeyMessage | None = None
        self._theirs: KeyMessage | None = None
        self._early_messages: list[bytes] = []
        self._elsewhere = elsewhere
        # Somebody else has TLS for a while, and what it came to.
        self._computing = False
        self._failure: Exception | None = None
        if not opened:
            self._send.push(header.opcode, b"", now)

    @property
    def settled(self) -> bool:
        """Nothing of ours is on its way."""
        return self._send.empty and not self._computing and not self.tls.pending_output

    def receive(self, packet: ControlPacket, now: float) -> bool:
        """Takes a packet with our key id from our peer. False if it is outside of the window."""
        self.heard = True
        self.last_heard = now
        self._send.acknowledge(packet.acks)
        fits = True
        if packet.packet_id is not None:
            fits = self._receive.receive(packet.packet_id, packet.payload)
            if fits:
                self._acks.add(packet.packet_id)
        self._advance()
        return fits

    def computed(self) -> None:
        """The step of TLS that was computed elsewhere is done."""
        self._computing = False
        if self._failure is not None:
            raise self._failure
        self._advance()

    def go_on(self) -> None:
        """The key message is known by now."""
        self._advance()

    def peer_is_done(self) -> None:
        """The peer began the next negotiation, so it has all of ours, even if its last ACKs got lost."""
        if self.state is State.SETTLE:
            self._send.clear()
            self._advance()

    def write_last_message(self, message: bytes) -> None:
        """The same for one after which there is little time to send it again."""
        self._send.hurry(LAST_TIMEOUT)
        self.write_message(message)

    def write_message(self, message: bytes) -> None:
        """Sends a control message, when the negotiation is done if it isn't."""
        if self.state is State.ACTIVE:
            self.tls.write(message + b"\0")
            self.tls.step()
        else:
            self._early_messages.append(message)

    def read_messages(self) -> list[bytes]:
        """The control messages that came, without their NUL; what has none is dropped, as in stock."""
        messages: list[bytes] = []
        while self.state is State.ACTIVE and (record := self.tls.read()) is not None:
            messages += record.split(b"\0")[:-1]
        return messages

    def take_packet(self, peer_session_id: bytes | None, chunk: int, max_acks: int, now: float) -> ControlPacket | None:
        """The next packet to send now, with up to ``chunk`` bytes of TLS; None when there is none."""
        if self.state is not State.RESET and not self._computing:
            while self.tls.pending_output and self._send.room > 0:
                if self._owes_wrapped_key:
                    first = max(chunk - self._wrapped_key_size, MIN_CHUNK)
                    self._send.push(Opcode.CONTROL_WKC_V1, self.tls.take_output(first), now)
                else:
                    self._send.push(Opcode.CONTROL_V1, self.tls.take_output(chunk), now)
        if self._owes_wrapped_key and self._acks.due:
            # Not an ACK: nobody would send that again, and the server can't read on without the key.
            self._send.push(Opcode.CONTROL_WKC_V1, b"", now)
        entry = self._send.take_due(now)
        if entry is not None:
            self.retransmitted += entry.tries > 1
            # Before the peer's first packet there is nothing to acknowledge, nor anyone to name.
            acks = self._acks.take(min(max_acks, PIGGYBACKED_ACKS))
            header = Header(entry.opcode, self.key_id, self._session_id)
            return ControlPacket(header, acks, peer_session_id if acks else None, entry.packet_id, entry.payload)
        if self._acks.due:
            header = Header(Opcode.ACK_V1, self.key_id, self._session_id)
            return ControlPacket(header, self._acks.take(max_acks), peer_session_id, None)
        return None

    def get_timer(self) -> float | None:
        return self._send.get_timer()

    def data_keys(self, peer_session_id: bytes, *, exported: bool) -> tuple[bytes, bytes]:
        """Encrypt and decrypt keys, 128 bytes each, once the state is ACTIVE."""
        if exported:
            material = keys.exported_keys(self.tls)
        else:
            if self._ours is None or self._theirs is None:
                raise LocalProtocolError("data keys before the key messages")
            ours, theirs = (self._ours, self._session_id), (self._theirs, peer_session_id)
            client, server = (theirs, ours) if self._server else (ours, theirs)
            material = keys.prf_keys(client[0], server[0], client[1], server[1])
        return keys.direct(material, server=self._server)

    def _advance(self) -> None:
        """Takes every step of the table that can be taken."""
        if self._computing:
            return
        self._feed()
        if self.state is State.RESET:
            if not self._send.empty:
                return
            self.state = State.EXCHANGE
            self._feed()
        if self.state is State.EXCHANGE and not self._server and self._ours is None:
            self._write_key_message()
        if self._elsewhere is not None and self.tls.computes:
            self._computing = True
            self._elsewhere(self._compute)
            return
        self.tls.step()
        if self.state is State.EXCHANGE and (record := self.tls.read()) is not None:
            self._theirs = KeyMessage.parse(record, from_server=not self._server)
            self._exchange.check_key_message(self._theirs, self.tls)
            if self._server:
                self._write_key_message()
                self.tls.step()
            self.state = State.SETTLE
        if self.state is State.SETTLE and self.settled:
            self.state = State.ACTIVE
            for message in self._early_messages:
                self.tls.write(message + b"\0")
            self._early_messages.clear()
            self._feed()
            self.tls.step()

    def _feed(self) -> None:
        """Gives TLS what came, where somebody reads it there. Else it fills the window, behind which nothing is
        acknowledged: so a peer that owes us its ACKs can't pile up more than that."""
        while self._is_read and (payload := self._receive.take_next()) is not None:
            if self.key_id == 0 and self._receive.next_id == 1:
                self._read_reset(payload)
            else:
                self.tls.feed(payload)

    @property
    def _is_read(self) -> bool:
        if self.state is State.RESET:
            return self._receive.next_id == 0
        # TLS itself has answers to some records, which nobody asks of it.
        return self.state is not State.SETTLE and self.tls.pending_output < MAX_UNSENT

    def _compute(self) -> None:
        """In a thread that is not ours. What goes wrong is raised in ours."""
        try:
            self.tls.step()
        except Exception as error:
            self._failure = error

    def _read_reset(self, payload: bytes) -> None:
        if not self._server and self._wrapped_key_size:
            self._resend_wrapped_key = resend_wrapped_key(payload)

    @property
    def _owes_wrapped_key(self) -> bool:
        return self._resend_wrapped_key and self._send.next_id == 1

    def _write_key_message(self) -> None:
        message = self._exchange.key_message()
        if message is not None:
            self.tls.write(message.emit())
            # What a login takes is nobody's any more, and keys take no more than this.
            self._ours = KeyMessage(message.random1, message.random2, message.pre_master)


PIGGYBACKED_ACKS = 4
LAST_TIMEOUT = 0.1
MAX_UNSENT = 64 * 1024
# However large a wrapped key is, some of TLS goes along with it, as in stock.
MIN_CHUNK = 16
