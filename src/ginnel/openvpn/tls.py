"""TLS on memory buffers: one configuration, its connections, the exporter.

OpenSSL brings its own randomness and reads the clock for certificates; nothing else in this package
does. `TlsContext` is the parsed configuration, made once; ``connect()`` makes one negotiation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cryptography import x509
from OpenSSL import SSL, crypto

from ginnel.errors import ConfigError, RemoteProtocolError
from ginnel.openvpn import certificates
from ginnel.openvpn.tls_settings import KeyPasswordError as KeyPasswordError
from ginnel.openvpn.tls_settings import TlsSettings as TlsSettings
from ginnel.openvpn.tls_settings import VerifyName as VerifyName
from ginnel.openvpn.tls_settings import configure


class TlsError(RemoteProtocolError):
    """TLS with the peer failed. ``retry`` is False where the next attempt would fail the same way."""

    def __init__(self, message: str, *, retry: bool) -> None:
        self.retry = retry
        super().__init__(message)


class TlsContext:
    """One role's parsed certificates and rules. Raises ConfigError for what OpenSSL doesn't take, and
    `KeyPasswordError` where the private key needs another password."""

    def __init__(self, settings: TlsSettings, *, server: bool) -> None:
        self.server = server
        self._settings = settings
        self._rules = certificates.Rules(settings)
        self._context, self._anchored = self._make(settings)

    def renew_crl(self, crl: str | frozenset[int]) -> None:
        """The negotiations from now on look at these revocations. Raises ConfigError, and all is as before."""
        settings = replace(self._settings, crl=crl)
        rules = certificates.Rules(settings)
        self._context, self._anchored = self._make(settings)
        self._settings, self._rules = settings, rules

    def _make(self, settings: TlsSettings) -> tuple[SSL.Context, bool]:
        verified = not self.server or settings.client_certificate
        context = SSL.Context(SSL.TLS_METHOD)
        anchored = configure(context, settings)
        if verified and not anchored and not settings.peer_fingerprints:
            raise ConfigError("neither ca nor peer-fingerprint is given: the peer could be anyone")
        mode = SSL.VERIFY_PEER
        if verified:
            mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        context.set_verify(mode, self._verify)
        return context, anchored

    @property
    def own_certificate(self) -> x509.Certificate | None:
        """What the peer is shown of us, None for nothing."""
        return SSL.Connection(self._context, None).get_certificate(as_cryptography=True)

    def connect(self) -> TlsConnection:
        return TlsConnection(SSL.Connection(self._context, None), server=self.server)

    def _verify(self, connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, ok: int) -> bool:
        """OpenSSL's callback, once or more a certificate, from the authority to the peer: its own verdict
        first, then our rules. Without an authority its verdict says nothing, as in stock."""
        verdict: _Verdict = connection.get_app_data()
        complaint = None
        if not ok and self._anchored:
            if error == certificates.NO_CRL:
                return True
            complaint = certificates.describe(error, certificate.to_cryptography())
        elif depth == 0 or self._rules.look_at_issuers:
            complaint = self._refuse(certificate.to_cryptography(), depth, verdict)
        verdict.complaint = verdict.complaint or complaint
        return complaint is None

    def _refuse(self, certificate: x509.Certificate, depth: int, verdict: _Verdict) -> str | None:
        complaint = self._rules.refuse_revoked(certificate)
        if depth == 1:
            verdict.issuer_seen = True
            complaint = complaint or self._rules.refuse_issuer(certificate)
        elif depth == 0:
            verdict.name, verdict.serial = self._rules.name(certificate), certificate.serial_number
            complaint = complaint or self._rules.refuse(certificate, verdict.name, issuer_seen=verdict.issuer_seen)
        return complaint


@dataclass(slots=True)
class _Verdict:
    """What was found out about one connection's certificates. ``name`` and ``serial`` are the peer's."""

    complaint: str | None = None
    issuer_seen: bool = False
    name: str | None = None
    serial: int | None = None


class TlsConnection:
    """One TLS connection. Bytes go in by `feed` and come out by `take_output`; `step` moves it on."""

    def __init__(self, connection: SSL.Connection, *, server: bool) -> None:
        self._connection = connection
        self._verdict = _Verdict()
        connection.set_app_data(self._verdict)
        self._peer = "client" if server else "server"
        self._output = b""
        self._unsent: list[bytes] = []
        # Whether OpenSSL may find something to do: asking it costs an exception each time that it does not.
        self._fed = not server
        self.established = False
        if server:
            connection.set_accept_state()
        else:
            connection.set_connect_state()

    def feed(self, data: bytes) -> None:
        if data:
            self._connection.bio_write(data)
            self._fed = True

    def write(self, data: bytes) -> None:
        """Sends plain text as one record, after the handshake if that isn't over."""
        self._unsent.append(data)

    def step(self) -> None:
        """Goes on with the handshake, and writes what waits for its end. Raises `TlsError`."""
        if not self._unsent if self.established else not self._fed:
            return
        try:
            if not self.established:
                self._connection.do_handshake()
                self.established = True
            while self._unsent:
                self._connection.send(self._unsent[0])
                del self._unsent[0]
        except SSL.WantReadError:
            self._fed = False
        except SSL.Error as error:
            raise self._explain(error) from None
        finally:
            self._drain()

    @property
    def computes(self) -> bool:
        """`step` will take a while: it has more of the handshake to look at."""
        return self._fed and not self.established

    def read(self) -> bytes | None:
        """The plain text of the next record, None while there is none. Raises `TlsError`."""
        if not self.established or not self._fed:
            return None
        try:
            return self._connection.recv(MAX_RECORD)
        except SSL.WantReadError:
            self._fed = False
        except SSL.Error as error:
            raise self._explain(error) from None
        finally:
            # What came may have to be answered: with an alert, say.
            self._drain()
        return None

    @property
    def pending_output(self) -> int:
        """How many bytes there are for the peer."""
        return len(self._output)

    def take_output(self, size: int) -> bytes:
        """Up to so many bytes for the peer; fewer only when there are no more."""
        part, self._output = self._output[:size], self._output[size:]
        return part

    def export(self, label: bytes, size: int) -> bytes:
        """Keying material as in RFC 5705, without a context."""
        return self._connection.export_keying_material(label, size)

    @property
    def version(self) -> str:
        return self._connection.get_protocol_version_name()

    @property
    def cipher(self) -> str:
        return self._connection.get_cipher_name() or ""

    @property
    def peer_common_name(self) -> str:
        """The peer's name as ``x509-username-field`` has it, by default the last CN; "" without a certificate."""
        return self._verdict.name or ""

    @property
    def peer_serial(self) -> int | None:
        """The number of the peer's certificate, None without one."""
        return self._verdict.serial

    def _drain(self) -> None:
        try:
            while len(part := self._connection.bio_read(MAX_OUTPUT)) == MAX_OUTPUT:
                self._output += part
        except SSL.WantReadError:
            return
        self._output += part

    def _explain(self, error: SSL.Error) -> TlsError:
        if self._verdict.complaint is not None:
            return TlsError(f"the {self._peer}'s certificate {self._verdict.complaint}", retry=False)
        if isinstance(error, SSL.ZeroReturnError | SSL.SysCallError):
            return TlsError(f"the {self._peer} closed the TLS connection", retry=True)
        entries: Sequence[tuple[str, str, str]] = error.args[0] if error.args else []
        reason = entries[-1][2] if entries else "unknown reason"
        for word, meaning in ALERTS.items():
            if word in reason:
                return TlsError(f"TLS with the {self._peer} failed: {meaning} ({reason})", retry=False)
        return TlsError(f"TLS with the {self._peer} failed: {reason}", retry=True)


MAX_RECORD = 16 * 1024
MAX_OUTPUT = 8 * 1024
ALERTS = {
    "unknown ca": "the peer doesn't trust our certificate's CA",
    "bad certificate": "the peer refused our certificate",
    "unsupported certificate": "the peer refused our certificate",
    "certificate revoked": "our certificate is revoked",
    "certificate expired": "our certificate expired",
    "certificate unknown": "the peer refused our certificate",
    "certificate required": "the peer asks for a certificate, and we have none",
    "peer did not return a certificate": "the peer sent no certificate",
    "handshake failure": "the two sides share no TLS cipher, curve or certificate type",
    "no shared cipher": "the two sides share no TLS cipher",
    "no suitable key share": "the two sides share no group",
    "no suitable signature algorithm": "the two sides share no signature algorithm",
    "protocol version": "the two sides share no TLS version",
    "unsupported protocol": "the two sides share no TLS version",
    "insufficient security": "the peer asks for a higher security level",
}
