"""Sessions in one process, on virtual time, over a wire that loses and damages what it carries.

`Pair` joins a client and a server session, and their data channels if asked to; `Crowd` joins many
clients and one server's endpoint. All that happens
follows from the seed: the wire decides by the ordinal of a datagram, never by its content, as what
TLS sends differs from run to run. `Pair.trace` is therefore the same again for the same seed.

`check_device` holds any device against the contract of `ginnel.device.base`.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ginnel.openvpn import events
from ginnel.openvpn.client import ClientSettings
from ginnel.openvpn.endpoint import Endpoint, Limits, MakePolicy
from ginnel.openvpn.events import Event, Path, Report
from ginnel.openvpn.policy import Policy, SessionSettings
from ginnel.openvpn.server import ServerSettings
from ginnel.openvpn.session import Session
from ginnel.openvpn.tls import TlsContext, TlsSettings
from ginnel.openvpn.tls_crypt_v2 import USER, ClientKey, Metadata, ServerKey, TlsCryptV2, TlsCryptV2Server
from ginnel.openvpn.wrap import NoWrap, StaticKey, TlsAuth, TlsCrypt, Wrap
from ginnel.testing.devices import check_device as check_device
from ginnel.testing.devices import device_cases as device_cases

if TYPE_CHECKING:
    from ginnel._core import DataChannel

WrapName = Literal["none", "tls-auth", "tls-crypt", "tls-crypt-v2"]
FOREVER = datetime(2120, 1, 1, tzinfo=UTC)


@dataclass
class FakeClock:
    """Time that passes when it is told to."""

    now: float = 1000.0

    def advance_to(self, time: float) -> None:
        """Goes forward only."""
        self.now = max(self.now, time)


@dataclass(frozen=True)
class Decision:
    """What a wire did with one datagram: copies at these delays, each damaged or not."""

    ordinal: int
    copies: tuple[tuple[float, bool], ...]


@dataclass
class NoisyWire:
    """Decides what becomes of each datagram. Rates are probabilities, ``delay`` is in seconds.

    A reordered datagram takes up to ``lateness`` seconds longer. ``decisions`` records the last
    thousand.
    """

    seed: int = 0
    drop: float = 1 / 16
    reorder: float = 1 / 8
    corrupt: float = 1 / 32
    duplicate: float = 1 / 16
    delay: float = 0.02
    lateness: float = 0.2
    decisions: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._ordinal = 0

    @classmethod
    def quiet(cls, delay: float = 0.02) -> NoisyWire:
        """A wire that only takes its time."""
        return cls(drop=0, reorder=0, corrupt=0, duplicate=0, delay=delay)

    def carry(self, datagram: bytes) -> list[tuple[float, bytes]]:
        """The copies that arrive, each with the seconds it takes."""
        # Every datagram takes the same number of draws, so that one's fate doesn't move the next one's.
        draws = [self._random.random() for _ in range(DRAWS)]
        dropped, doubled = draws[0] < self.drop, draws[1] < self.duplicate
        copies, arrivals = [], []
        for at in (2, 2 + DRAWS_A_COPY)[: 0 if dropped else 1 + doubled]:
            late, lateness, damaged, place, bit = draws[at : at + DRAWS_A_COPY]
            delay = self.delay + (lateness * self.lateness if late < self.reorder else 0.0)
            corrupted = damaged < self.corrupt
            copies.append((delay, corrupted))
            arrivals.append((delay, _flip(datagram, place, bit) if corrupted else datagram))
        if len(self.decisions) < MAX_RECORD:
            self.decisions.append(Decision(self._ordinal, tuple(copies)))
        self._ordinal += 1
        return arrivals


class Authority:
    """A certificate authority with Ed25519 keys made from its seed, valid from 2020 to 2120.

    ``issue`` gives certificate and key as PEM; the same arguments give the same certificate again.
    """

    def __init__(self, name: str = "Test CA", seed: int = 0) -> None:
        self._random = random.Random(f"{name} {seed}")
        self._key = self._make_key()
        self._name = _name(name)
        certificate = self._sign(self._name, self._key.public_key(), ca=True, usage=None, until=FOREVER)
        self.pem = certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(
        self,
        common_name: str,
        usage: Literal["server", "client"] | None,
        *,
        until: datetime = FOREVER,
    ) -> tuple[str, str]:
        """``usage`` None makes a certificate that doesn't say what it is for."""
        key = self._make_key()
        certificate = self._sign(_name(common_name), key.public_key(), ca=False, usage=usage, until=until)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode(), secret.decode()

    def _make_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._random.randbytes(32))

    def _sign(
        self, subject: x509.Name, key: Ed25519PublicKey, *, ca: bool, usage: str | None, until: datetime
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(self._random.getrandbits(127) | 1 << 126)
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        if usage is not None:
            role = ExtendedKeyUsageOID.SERVER_AUTH if usage == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
            builder = builder.add_extension(SIGNS_ONLY, critical=True)
            builder = builder.add_extension(x509.ExtendedKeyUsage([role]), critical=False)
        return builder.sign(self._key, None)


def matching_settings(
    wrap: WrapName = "none", *, tls: str = "1.3", auth: str = "SHA256"
) -> tuple[ClientSettings, ServerSettings]:
    """Settings of a client and a server that fit together; change them by `dataclasses.replace`."""
    contexts = _contexts(tls)
    static = StaticKey(bytes(range(256)))
    wraps: tuple[Wrap, Wrap] = (NoWrap(), NoWrap())
    if wrap == "tls-auth":
        wraps = TlsAuth(static, auth, 1), TlsAuth(static, auth, 0)
    elif wrap == "tls-crypt":
        wraps = TlsCrypt(static), TlsCrypt(static)
    elif wrap == "tls-crypt-v2":
        server_key = ServerKey(bytes(range(128)))
        client_key = ClientKey(static, server_key.wrap(static, Metadata(USER, b"client")))
        wraps = TlsCryptV2(client_key), TlsCryptV2Server(server_key)
    return (
        ClientSettings(tls=contexts[0], wrap=wraps[0], auth=auth),
        ServerSettings(tls=contexts[1], wrap=wraps[1], auth=auth),
    )


class Side:
    """One session with its path to the other, and its data channel if it has one."""

    def __init__(self, name: Literal["client", "server"], session: Session, channel: DataChannel | None) -> None:
        self.name = name
        self.session = session
        self.channel = channel
        self.events: list[Event] = []
        self.packets: list[bytes] = []
        """Inner packets that arrived."""

    def first(self, kind: type[Event]) -> Event | None:
        """The first event of this kind so far."""
        return next((event for event in self.events if isinstance(event, kind)), None)

    @property
    def established(self) -> bool:
        return self.first(events.Established) is not None

    @property
    def closed(self) -> events.Closed | None:
        event = self.first(events.Closed)
        return event if isinstance(event, events.Closed) else None


class Pair:
    """A client and a server on one wire, on virtual time."""

    def __init__(
        self,
        client: Policy,
        server: Policy,
        wire: NoisyWire | None = None,
        *,
        data: bool = False,
        seed: int = 0,
    ) -> None:
        """``data`` gives each side a data channel, which needs the compiled core."""
        self.clock = FakeClock()
        self.wire = wire or NoisyWire.quiet()
        self.trace: list[tuple[float, str, str]] = []
        self._random = random.Random(seed)
        self._arrivals: list[tuple[float, int, Side, bytes]] = []
        self._sent = 0
        self.client = self._side("client", client, data)
        self.server = self._side("server", server, data)
        self._settle()

    @property
    def now(self) -> float:
        return self.clock.now

    def run_until(self, condition: Callable[[], bool], limit: float) -> None:
        """Lets time pass until the condition holds. Raises TimeoutError after ``limit`` seconds of it,
        and when nothing would ever happen again."""
        end = self.now + limit
        self._settle()
        while not condition():
            next_time = self._next_time()
            if next_time is None or next_time > end:
                raise TimeoutError(f"not so within {limit:g} s; wire seed {self.wire.seed}")
            self._step(next_time)

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        self._settle()
        while (next_time := self._next_time()) is not None and next_time <= end:
            self._step(next_time)
        self.clock.advance_to(end)

    def send_packet(self, side: Side, packet: bytes) -> None:
        """Sends an inner packet through a side's data channel."""
        if side.channel is None:
            raise ValueError("this pair has no data channels")
        self._put(side, side.channel.send_packet(packet, self.now))

    def _side(self, name: Literal["client", "server"], policy: Policy, data: bool) -> Side:
        channel: DataChannel | None = None
        if data:
            from ginnel._core import DataChannel

            channel = DataChannel()
        path = PATHS["server" if name == "client" else "client"]
        session = Session(policy, path=path, random=self._random.randbytes, now=self.now)
        return Side(name, session, channel)

    def _next_time(self) -> float | None:
        times = [self._arrivals[0][0]] if self._arrivals else []
        for side in (self.client, self.server):
            for source in (side.session, side.channel):
                if source is not None and (time := source.get_timer()) is not None:
                    times.append(time)
        return min(times, default=None)

    def _step(self, time: float) -> None:
        self.clock.advance_to(time)
        while self._arrivals and self._arrivals[0][0] <= self.now:
            _, _, side, datagram = heapq.heappop(self._arrivals)
            self._deliver(side, datagram)
        for side in (self.client, self.server):
            timer = side.session.get_timer()
            if timer is not None and timer <= self.now:
                self.trace.append((self.now, side.name, "timer"))
                side.session.handle_timer(self.now)
            if side.channel is not None and (due := side.channel.get_timer()) is not None and due <= self.now:
                self._put(side, side.channel.handle_timer(self.now))
                self._report(side)
        self._settle()

    def _deliver(self, side: Side, datagram: bytes) -> None:
        path = PATHS["server" if side is self.client else "client"]
        if side.channel is None:
            side.session.receive_datagram(datagram, path, self.now)
        else:
            side.packets += side.channel.receive_datagram(datagram, path, self.now)
            self._report(side)
        self._flush(side)

    def _settle(self) -> None:
        self._flush(self.client)
        self._flush(self.server)

    def _flush(self, side: Side) -> None:
        while True:
            datagrams = side.session.datagrams_to_send(self.now)
            for datagram, _ in datagrams:
                self.trace.append((self.now, side.name, f"opcode {datagram[0] >> 3} key {datagram[0] & 7}"))
            self._put(side, datagrams)
            event = side.session.next_event()
            if event is None:
                break
            side.events.append(event)
            if side.channel is not None:
                self._carry_out(side, side.channel, event)
                self._report(side)

    def _put(self, side: Side, datagrams: list[tuple[bytes, Path]]) -> None:
        other = self.server if side is self.client else self.client
        for datagram, _ in datagrams:
            for delay, copy in self.wire.carry(datagram):
                self._sent += 1
                heapq.heappush(self._arrivals, (self.now + delay, self._sent, other, copy))

    def _report(self, side: Side) -> None:
        if side.channel is None:
            return
        for kind, *values in side.channel.events():
            if kind == "control":
                side.session.receive_datagram(values[0], values[1], self.now)
            else:
                side.session.data_event(REPORTS[kind](*values), self.now)

    def _carry_out(self, side: Side, channel: DataChannel, event: Event) -> None:
        match event:
            case events.NewPeer(peer, path, peer_id):
                channel.new_peer(peer, path, peer_id, self.now)
                channel.set_routes(peer, ["0.0.0.0/0", "::/0"], None)
            case events.SetPeer(peer, ping, ping_restart, mss, framing):
                channel.set_peer(peer, ping, ping_restart, mss, self.now, framing)
            case events.DelPeer(peer):
                channel.del_peer(peer)
            case events.NewKey(peer, handle, key_id, cipher, encrypt, decrypt, auth, epochs):
                channel.new_key(peer, handle, key_id, cipher, encrypt, decrypt, auth=auth, epochs=epochs)
            case events.DelKey(peer, handle):
                channel.del_key(peer, handle)
            case events.Swap(peer, handle):
                channel.swap(peer, handle)
            case events.SendDataMessage(peer, data):
                self._put(side, channel.send_data_message(peer, data, self.now))
            case events.CountBytes(peer):
                counted = channel.peer_statistics(peer)
                total = counted["rx_bytes"] + counted["tx_bytes"]
                side.session.data_event(events.BytesCounted(peer, total), self.now)
            case _:
                pass


class Crowd:
    """Many clients and the `Endpoint` of one server, on one wire and virtual time."""

    def __init__(
        self,
        settings: SessionSettings,
        make_policy: MakePolicy,
        wire: NoisyWire | None = None,
        *,
        limits: Limits | None = None,
        seed: int = 0,
    ) -> None:
        """Where the settings say ``elsewhere``, TLS takes up to a second."""
        self.clock = FakeClock()
        self.wire = wire or NoisyWire.quiet()
        self.clients: dict[Path, Side] = {}
        self.server_events: list[tuple[int, Event]] = []
        self._random = random.Random(seed)
        self._agenda: list[tuple[float, int, Path | None, Path, bytes | Callable[[], None]]] = []
        self._entries = 0
        self.endpoint = Endpoint(
            settings, make_policy, random=self._random.randbytes, unix_time=UNIX_TIME, now=self.now, limits=limits
        )

    @property
    def now(self) -> float:
        return self.clock.now

    def join(self, policy: Policy, path: Path | None = None) -> Side:
        """A new client, at a path of its own if none is given; it takes the place of one that was there."""
        number = len(self.clients)
        path = path or (0, f"192.0.2.{number % 250}", 1024 + number)
        session = Session(policy, path=PATHS["server"], random=self._random.randbytes, now=self.now)
        side = self.clients[path] = Side("client", session, None)
        self._flush(path)
        return side

    def run_until(self, condition: Callable[[], bool], limit: float) -> None:
        """As `Pair.run_until`."""
        end = self.now + limit
        self._flush(None)
        while not condition():
            if not self._agenda or self._agenda[0][0] > end:
                raise TimeoutError(f"not so within {limit:g} s; wire seed {self.wire.seed}")
            self._step()

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        for path in (None, *self.clients):
            self._flush(path)
        while self._agenda and self._agenda[0][0] <= end:
            self._step()
        self.clock.advance_to(end)

    def inject(self, datagram: bytes, path: Path) -> list[tuple[bytes, Path]]:
        """Gives the endpoint a datagram at once, and returns what it sends, which goes nowhere."""
        self.endpoint.receive_datagram(datagram, path, self.now)
        return self.endpoint.datagrams_to_send(self.now)

    def _step(self) -> None:
        """The next thing on the agenda: a datagram for the client at a path, or from there for the endpoint
        (None); an empty one stands for a timer. Or something to do at the endpoint."""
        time, _, path, origin, datagram = heapq.heappop(self._agenda)
        self.clock.advance_to(time)
        party = self._party(path)
        if callable(datagram):
            datagram()
        elif datagram:
            party.receive_datagram(datagram, origin, self.now)
        elif (due := party.get_timer()) is None or due > self.now:
            return
        else:
            party.handle_timer(self.now)
        self._flush(path)

    def _party(self, path: Path | None) -> Session | Endpoint:
        return self.endpoint if path is None else self.clients[path].session

    def _flush(self, path: Path | None) -> None:
        for datagram, to in self._party(path).datagrams_to_send(self.now):
            target, origin = (to, PATHS["server"]) if path is None else (None, path)
            for delay, copy in self.wire.carry(datagram):
                self._schedule(self.now + delay, target, origin, copy)
        if path is None:
            while (entry := self.endpoint.next_event()) is not None:
                self.server_events.append(entry)
                if isinstance(entry[1], events.Compute):
                    self._compute(entry[0], entry[1].run)
        else:
            side = self.clients[path]
            while (event := side.session.next_event()) is not None:
                side.events.append(event)
        if (timer := self._party(path).get_timer()) is not None:
            self._schedule(timer, path, PATHS["server"], b"")

    def _compute(self, peer: int, run: Callable[[], None]) -> None:
        session = self.endpoint.session(peer)
        if session is not None:
            at_once, delay = self._random.random() < 0.5, self._random.random()
            if at_once:
                run()

            def computed() -> None:
                if not at_once:
                    run()
                self.endpoint.computed(peer, session, self.now)

            self._schedule(self.now + delay, None, PATHS["server"], computed)

    def _schedule(self, time: float, target: Path | None, origin: Path, datagram: bytes | Callable[[], None]) -> None:
        if target is None or target in self.clients:
            self._entries += 1
            heapq.heappush(self._agenda, (time, self._entries, target, origin, datagram))


@cache
def _contexts(version: str) -> tuple[TlsContext, TlsContext]:
    authority = Authority()
    server, client = authority.issue("server", "server"), authority.issue("client", "client")
    theirs = TlsSettings(ca=authority.pem, cert=server[0], key=server[1], remote_cert_tls="client", version_max=version)
    ours = TlsSettings(ca=authority.pem, cert=client[0], key=client[1], remote_cert_tls="server", version_max=version)
    return TlsContext(ours, server=False), TlsContext(theirs, server=True)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _flip(datagram: bytes, place: float, bit: float) -> bytes:
    """Inverts one bit; where depends on the two fractions."""
    damaged = bytearray(datagram)
    damaged[int(place * len(damaged))] ^= 1 << int(bit * 8)
    return bytes(damaged)


SIGNS_ONLY = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
UNIX_TIME = 1.7e9
DRAWS_A_COPY = 5
DRAWS = 2 + 2 * DRAWS_A_COPY
MAX_RECORD = 1000
PATHS: dict[str, Path] = {"client": (0, "192.0.2.1", 40000), "server": (0, "192.0.2.2", 1194)}
REPORTS: dict[str, Callable[..., Report]] = {
    "data_message": events.DataMessage,
    "float": events.PeerFloat,
    "expired": events.PeerExpired,
    "key_limit": events.KeyLimit,
    "closed": events.PathClosed,
}
