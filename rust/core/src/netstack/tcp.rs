//! TCP. The one file that knows smoltcp's sockets and interfaces; the rest of the stack sees
//! [`Transport`].
//!
//! smoltcp looks at every socket of a set for every segment, so each connection has an interface
//! and a set of its own, and our flow table decides who sees a segment. Checksums are verified
//! before, by dispatch.

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    HardwareAddress, IpAddress, IpEndpoint, IpListenEndpoint, IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket,
    TcpSeqNumber,
};

use crate::netstack::budget::Share;
use crate::netstack::ip;
use crate::netstack::outbox::Outbox;
use crate::netstack::segment::{Segment, Tuple};
use crate::netstack::timewait::Remains;
use crate::{Nanos, SECOND};

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Our SYN is out.
    Connecting,
    /// A SYN came in, and ours is out.
    Accepting,
    /// Bytes may flow at least one way, or wait for their acknowledgement.
    Open,
    /// Both sides have ended; only the peer may not know yet.
    Lingering,
    /// Over. Bytes that came in may still wait to be read.
    Gone,
}

/// What is fixed when a connection begins.
pub struct Parameters {
    pub tuple: Tuple,
    pub share: Share,
    /// The longest IP packet, at least 68.
    pub mtu: usize,
    /// Unpredictable: the initial sequence number comes from it.
    pub seed: u64,
}

/// One TCP connection: segments on one side, bytes on the other.
pub trait Transport: Sized {
    /// A connection to open: the first [`Transport::output`] sends the SYN.
    fn connect(parameters: &Parameters, now: Nanos) -> Self;

    /// A connection that the SYN in the first [`Transport::input`] opens.
    fn accept(parameters: &Parameters, now: Nanos) -> Self;

    /// Takes a received IP packet, whose segment has been checked to be for this connection.
    fn input(&mut self, now: Nanos, packet: &[u8], segment: &Segment, out: &mut Outbox);

    /// Emits at most one packet. Returns whether it did.
    fn output(&mut self, now: Nanos, out: &mut Outbox) -> bool;

    /// When [`Transport::output`] will have something to do without anything coming in.
    fn deadline(&mut self, now: Nanos) -> Option<Nanos>;

    fn phase(&self) -> Phase;

    /// Lets `take` read received bytes that lie in one piece; it returns how many are done with.
    fn read<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R>;

    /// How many received bytes wait to be read.
    fn readable(&self) -> usize;

    fn has_peer_finished(&self) -> bool;

    /// Whether the peer has ended its side and all its bytes have been read.
    fn is_drained(&self) -> bool {
        self.has_peer_finished() && self.readable() == 0
    }

    /// Lets `fill` write bytes to send into free space in one piece; it returns how many.
    fn write<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R>;

    /// How many bytes can be written.
    fn writable(&self) -> usize;

    /// Whether the peer owes an acknowledgement, or one will be owed as soon as it can be sent for.
    fn is_waiting(&self) -> bool;

    /// Ends our side after the bytes written so far.
    fn finish(&mut self);

    /// Ends the connection with a reset.
    fn reset(&mut self, now: Nanos, out: &mut Outbox);

    /// Takes a lower MTU from now on.
    fn lower_mtu(&mut self, now: Nanos, mtu: usize);

    /// The sequence number of our SYN, once it is sent.
    fn initial_sequence(&self) -> Option<u32>;

    /// What TIME-WAIT needs, once the peer's FIN has been acknowledged in [`Phase::Lingering`].
    fn remains(&self) -> Option<Remains>;

    /// Takes the counts since the last call: segments sent, retransmissions among them.
    fn take_counts(&mut self) -> (u64, u64);
}

/// A [`Transport`] on smoltcp.
pub struct Connection {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    mtu: usize,
    seed: u64,
    sent: Sent,
    /// The number that acknowledges the peer's FIN, once that has come in.
    peer_finished: Option<u32>,
    acknowledged: u32,
}

/// What went out, read from the packets: smoltcp shows no sequence numbers.
#[derive(Default)]
struct Sent {
    initial: Option<u32>,
    next: u32,
    acknowledgement: u32,
    window: u16,
    segments: u64,
    retransmits: u64,
}

impl Connection {
    fn new(parameters: &Parameters, now: Nanos) -> Connection {
        let Share { receive, send } = parameters.share;
        // Zeroed memory of this size comes untouched from the system: it costs what is used of it.
        let mut socket = Socket::new(SocketBuffer::new(vec![0; receive]), SocketBuffer::new(vec![0; send]));
        socket.set_nagle_enabled(false);
        socket.set_congestion_control(CongestionControl::Cubic);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Connection {
            interface: interface(parameters.mtu, parameters.seed, now),
            sockets,
            handle,
            mtu: parameters.mtu,
            seed: parameters.seed,
            sent: Sent::default(),
            peer_finished: None,
            acknowledged: 0,
        }
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn receive(&mut self, now: Nanos, packet: &[u8], out: &mut Outbox) {
        let mut port =
            Port { incoming: Some(packet), out, sent: &mut self.sent, mtu: self.mtu, forced: true };
        self.interface.poll_ingress_single(instant(now), &mut port, &mut self.sockets);
    }

    fn poll(&mut self, now: Nanos, out: &mut Outbox, forced: bool) -> bool {
        let mut port = Port { incoming: None, out, sent: &mut self.sent, mtu: self.mtu, forced };
        self.interface.poll_egress(instant(now), &mut port, &mut self.sockets)
            == PollResult::SocketStateChanged
    }

    /// Hands smoltcp an acknowledgement of many segments in steps of one.
    ///
    /// Its congestion window grows by a segment for each acknowledgement, whatever that covers,
    /// and a peer that acknowledges once a batch would keep us at a fraction of the path. Only
    /// while more waits to be sent than the window lets out.
    fn split_acknowledgement(&mut self, now: Nanos, packet: &[u8], segment: &Segment, out: &mut Outbox) {
        let step = self.mtu as u32;
        let covered = segment.acknowledgement.wrapping_sub(self.acknowledged);
        let flight = self.sent.next.wrapping_sub(self.acknowledged);
        let queued = self.socket().send_queue() as u32;
        let pure = segment.len == 0 && segment.ack && !segment.rst && packet.len() <= LONGEST_HEADERS;
        if !pure || covered > flight || covered <= 2 * step || queued <= flight {
            return;
        }
        let mut copy = [0; LONGEST_HEADERS];
        let copy = &mut copy[..packet.len()];
        copy.copy_from_slice(packet);
        let pieces = (covered / step).min(MOST_PIECES);
        for piece in 1..pieces {
            let number = self.acknowledged.wrapping_add(covered / pieces * piece);
            TcpPacket::new_unchecked(&mut copy[ip_header_len(packet)..])
                .set_ack_number(TcpSeqNumber(number as i32));
            self.receive(now, copy, out);
        }
    }
}

impl Transport for Connection {
    fn connect(parameters: &Parameters, now: Nanos) -> Connection {
        let mut connection = Connection::new(parameters, now);
        let Tuple { local, remote } = parameters.tuple;
        let socket = connection.sockets.get_mut::<Socket>(connection.handle);
        socket
            .connect(
                connection.interface.context(),
                IpEndpoint::new(remote.ip().into(), remote.port()),
                IpListenEndpoint { addr: Some(local.ip().into()), port: local.port() },
            )
            .expect("a new socket, addresses of one family, ports that are not 0");
        connection
    }

    fn accept(parameters: &Parameters, now: Nanos) -> Connection {
        let mut connection = Connection::new(parameters, now);
        let local = parameters.tuple.local;
        connection
            .socket_mut()
            .listen(IpListenEndpoint { addr: Some(local.ip().into()), port: local.port() })
            .expect("a new socket, a port that is not 0");
        connection
    }

    fn input(&mut self, now: Nanos, packet: &[u8], segment: &Segment, out: &mut Outbox) {
        if segment.ack && self.phase() == Phase::Open {
            self.split_acknowledgement(now, packet, segment, out);
        }
        self.receive(now, packet, out);
        let finished = matches!(
            self.socket().state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if finished && self.peer_finished.is_none() {
            self.peer_finished = Some(segment.sequence.wrapping_add(segment.len));
        }
        if segment.ack && !segment.rst {
            let advance = segment.acknowledgement.wrapping_sub(self.acknowledged);
            if advance <= self.sent.next.wrapping_sub(self.acknowledged) {
                self.acknowledged = segment.acknowledgement;
            }
        }
    }

    fn output(&mut self, now: Nanos, out: &mut Outbox) -> bool {
        let first = self.sent.initial.is_none();
        let emitted = self.poll(now, out, false);
        if first && let Some(initial) = self.sent.initial {
            self.acknowledged = initial;
        }
        emitted
    }

    fn deadline(&mut self, now: Nanos) -> Option<Nanos> {
        let at = self.interface.poll_at(instant(now), &self.sockets)?;
        Some(at.total_micros().max(0) as Nanos * MICROSECOND)
    }

    fn phase(&self) -> Phase {
        match self.socket().state() {
            State::SynSent => Phase::Connecting,
            State::SynReceived => Phase::Accepting,
            // A reset of a half-open connection takes the socket back here: no connection is left.
            State::Listen | State::Closed => Phase::Gone,
            State::TimeWait => Phase::Lingering,
            _ => Phase::Open,
        }
    }

    fn read<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        self.socket_mut().recv(|bytes| take(bytes)).ok()
    }

    fn readable(&self) -> usize {
        self.socket().recv_queue()
    }

    fn has_peer_finished(&self) -> bool {
        self.peer_finished.is_some()
    }

    fn write<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        self.socket_mut().send(fill).ok()
    }

    fn writable(&self) -> usize {
        let socket = self.socket();
        if socket.may_send() { socket.send_capacity() - socket.send_queue() } else { 0 }
    }

    fn is_waiting(&self) -> bool {
        let socket = self.socket();
        match socket.state() {
            State::Closed | State::Listen | State::TimeWait => false,
            State::Established | State::CloseWait => socket.send_queue() > 0,
            // In FIN-WAIT-2 the peer may be gone for good, and nothing of ours would tell.
            _ => true,
        }
    }

    fn finish(&mut self) {
        let socket = self.socket_mut();
        socket.close();
        socket.set_keep_alive(Some(KEEP_ALIVE));
    }

    fn reset(&mut self, now: Nanos, out: &mut Outbox) {
        self.socket_mut().abort();
        self.poll(now, out, true);
    }

    fn lower_mtu(&mut self, now: Nanos, mtu: usize) {
        let local = self.socket().local_endpoint().map(|local| local.addr.version());
        let mtu = mtu.max(if local == Some(IpVersion::Ipv6) { LEAST_MTU_IPV6 } else { LEAST_MTU_IPV4 });
        if mtu < self.mtu {
            self.mtu = mtu;
            self.interface = interface(mtu, self.seed, now);
        }
    }

    fn initial_sequence(&self) -> Option<u32> {
        self.sent.initial
    }

    fn remains(&self) -> Option<Remains> {
        let Sent { next, acknowledgement, window, .. } = self.sent;
        let remains = Remains { sequence: next, acknowledgement, window };
        (self.peer_finished == Some(acknowledgement)).then_some(remains)
    }

    fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.sent.segments), std::mem::take(&mut self.sent.retransmits))
    }
}

impl Sent {
    /// Gives a bare acknowledgement the highest sequence number sent.
    ///
    /// After a timeout smoltcp acknowledges with the number it has gone back to, which lies before
    /// the peer's window. A peer that refuses what is outside its window never learns of the
    /// acknowledgement, and two such peers after an outage would retransmit to each other for ever.
    fn correct(&self, packet: &mut [u8]) {
        let start = ip_header_len(packet);
        let tcp = TcpPacket::new_unchecked(&packet[start..]);
        let bare = tcp.ack() && !tcp.rst() && tcp.segment_len() == 0;
        if !bare || self.next.wrapping_sub(tcp.seq_number().0 as u32) as i32 <= 0 || self.initial.is_none() {
            return;
        }
        let ends: (IpAddress, IpAddress) = if start == ip::IPV6_HEADER {
            let ip = Ipv6Packet::new_unchecked(&*packet);
            (ip.src_addr().into(), ip.dst_addr().into())
        } else {
            let ip = Ipv4Packet::new_unchecked(&*packet);
            (ip.src_addr().into(), ip.dst_addr().into())
        };
        let mut tcp = TcpPacket::new_unchecked(&mut packet[start..]);
        tcp.set_seq_number(TcpSeqNumber(self.next as i32));
        tcp.fill_checksum(&ends.0, &ends.1);
    }

    /// Reads an emitted packet: an IP header without options, and TCP.
    fn note(&mut self, packet: &[u8]) {
        let tcp = TcpPacket::new_unchecked(&packet[ip_header_len(packet)..]);
        let (sequence, len) = (tcp.seq_number().0 as u32, tcp.segment_len() as u32);
        let end = sequence.wrapping_add(len);
        if tcp.ack() {
            self.acknowledgement = tcp.ack_number().0 as u32;
            self.window = tcp.window_len();
        }
        if self.initial.is_none() {
            self.initial = Some(sequence);
            self.next = end;
        } else if len > 0 {
            self.segments += 1;
            let new = end.wrapping_sub(self.next) as i32 > 0;
            self.retransmits += u64::from(!new);
            self.next = if new { end } else { self.next };
        }
    }
}

/// The device as one connection sees it: at most one packet comes in, packets go to the outbox.
struct Port<'a> {
    incoming: Option<&'a [u8]>,
    out: &'a mut Outbox,
    sent: &'a mut Sent,
    mtu: usize,
    /// Emits even where the device has no room.
    forced: bool,
}

struct Received<'a>(&'a [u8]);

struct Emitted<'a> {
    out: &'a mut Outbox,
    sent: &'a mut Sent,
}

impl phy::Device for Port<'_> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Emitted<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Emitted<'_>)> {
        let packet = self.incoming.take()?;
        Some((Received(packet), Emitted { out: self.out, sent: self.sent }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Emitted<'_>> {
        let may = self.forced || self.out.has_room();
        may.then_some(Emitted { out: self.out, sent: self.sent })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        Shape(self.mtu).capabilities()
    }
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

impl phy::TxToken for Emitted<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.out.emit(len, |buffer| {
            let result = fill(buffer);
            self.sent.correct(buffer);
            self.sent.note(buffer);
            result
        })
    }
}

/// What an interface is made for: it asks a device for its capabilities only then.
struct Shape(usize);

impl phy::Device for Shape {
    type RxToken<'t> = Received<'t>;
    type TxToken<'t> = Emitted<'t>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Emitted<'_>)> {
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<Emitted<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.0;
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

fn interface(mtu: usize, seed: u64, now: Nanos) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut interface = Interface::new(config, &mut Shape(mtu), instant(now));
    // Dispatch has compared the addresses; the interface need not know ours.
    interface.set_any_ip(true);
    interface
}

fn ip_header_len(packet: &[u8]) -> usize {
    match packet[0] >> 4 {
        4 => usize::from(Ipv4Packet::new_unchecked(packet).header_len()),
        _ => ip::IPV6_HEADER,
    }
}

fn instant(now: Nanos) -> Instant {
    Instant::from_micros((now / MICROSECOND) as i64)
}

const MICROSECOND: Nanos = SECOND / 1_000_000;
const KEEP_ALIVE: Duration = Duration::from_secs(75);
const LONGEST_HEADERS: usize = 120;
const MOST_PIECES: u32 = 64;
/// No path asks for less (RFC 1191, 7.1; RFC 8200, 5): below it a forged report would make tiny segments.
const LEAST_MTU_IPV4: usize = 576;
const LEAST_MTU_IPV6: usize = 1280;
