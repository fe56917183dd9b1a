//! One connection: its states, and what the program asks of it.

use crate::netstack::budget::Floor;
use crate::netstack::ip;
use crate::netstack::limit::Limit;
use crate::netstack::outbox::Outbox;
use crate::netstack::segment::{Segment, Tuple};
use crate::netstack::tcp::options::{TIMESTAMPS_LEN, Timestamps};
use crate::netstack::tcp::receiver::Receiver;
use crate::netstack::tcp::sender::{Counts, Sender};
use crate::netstack::tcp::sequence::SYN;
use crate::netstack::tcp::{Parameters, Phase, Transport};
use crate::netstack::timewait::Remains;
use crate::{Nanos, SECOND};

/// A [`Transport`].
pub struct Connection {
    pub(super) tuple: Tuple,
    pub(super) state: State,
    pub(super) mtu: usize,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) clock: Clock,
    pub(super) agreed: Agreed,
    /// Resets of the peer's segments that are to be sent: their sequence number.
    pub(super) refusal: Option<u32>,
    /// Answers to segments that may be forged, or may be answers themselves.
    pub(super) answers: Limit,
    /// Whether our FIN was out when the peer's came: then TIME-WAIT is ours.
    pub(super) lingers: bool,
    /// When the peer is asked whether it is still there.
    pub(super) keep_alive: Option<Nanos>,
    taken: Counts,
    // Last, so that it goes back after the buffers.
    _floor: Floor,
}

/// The states that the two halves do not tell by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Listen,
    SynSent,
    SynReceived,
    /// Both SYNs are acknowledged: how far the FINs are, the halves know.
    Synchronized,
    Closed,
}

/// What both sides have agreed on in their SYNs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Agreed {
    pub timestamps: bool,
    pub sack: bool,
    /// How far the peer's windows are shifted; `None` where neither's are.
    pub shift: Option<u8>,
    pub most_payload: usize,
}

/// The timestamps of one connection (RFC 7323).
pub(super) struct Clock {
    offset: u32,
    /// The peer's timestamp to echo, and when it came.
    pub recent: Option<(u32, Nanos)>,
}

impl Clock {
    pub fn timestamps(&self, now: Nanos) -> Timestamps {
        Timestamps { value: self.value(now), echo: self.recent.map_or(0, |(value, _)| value) }
    }

    /// When a value was ours.
    pub fn time(&self, now: Nanos, value: u32) -> Option<Nanos> {
        let age = self.value(now).wrapping_sub(value);
        (now / TICK).checked_sub(u64::from(age)).map(|ticks| ticks * TICK)
    }

    fn value(&self, now: Nanos) -> u32 {
        self.offset.wrapping_add((now / TICK) as u32)
    }
}

impl Connection {
    fn new(parameters: Parameters, now: Nanos, state: State) -> Connection {
        let Parameters { tuple, floor, mtu, seed } = parameters;
        let budget = floor.budget().clone();
        let mut connection = Connection {
            tuple,
            state,
            mtu,
            sender: Sender::new(budget.clone(), seed as u32, 0),
            receiver: Receiver::new(budget),
            clock: Clock { offset: (seed >> 32) as u32, recent: None },
            agreed: Agreed { most_payload: usize::MAX, ..Agreed::default() },
            refusal: None,
            answers: Limit::starting(ANSWERS_A_SECOND, now),
            lingers: false,
            keep_alive: None,
            taken: Counts::default(),
            _floor: floor,
        };
        connection.set_most_payload();
        connection
    }

    /// The longest payload there can be in our packets, without options.
    pub(super) fn own_most_payload(&self) -> usize {
        self.mtu.saturating_sub(ip::header_len(self.tuple.local.ip()) + HEADER)
    }

    pub(super) fn set_most_payload(&mut self) {
        let options = if self.agreed.timestamps { TIMESTAMPS_LEN } else { 0 };
        let most = self.own_most_payload().min(self.agreed.most_payload).saturating_sub(options);
        self.sender.set_most_payload(most.max(1));
    }

    /// Ends everything but what waits to be read.
    pub(super) fn close(&mut self) {
        self.state = State::Closed;
        self.sender.clear();
        self.keep_alive = None;
    }

    /// Whether the connection is over although nothing went wrong.
    fn is_complete(&self) -> bool {
        self.receiver.is_finished() && self.sender.is_fin_acknowledged()
    }
}

impl Transport for Connection {
    fn connect(parameters: Parameters, now: Nanos) -> Connection {
        Connection::new(parameters, now, State::SynSent)
    }

    fn accept(parameters: Parameters, now: Nanos) -> Connection {
        Connection::new(parameters, now, State::Listen)
    }

    fn input(&mut self, now: Nanos, packet: &[u8], segment: &Segment) {
        self.receive(now, packet, segment);
    }

    fn output(&mut self, now: Nanos, out: &mut Outbox) -> bool {
        self.transmit(now, out)
    }

    fn deadline(&self, now: Nanos) -> Option<Nanos> {
        if self.plan(now).is_some() {
            return Some(now);
        }
        [self.sender.deadline(), self.receiver.deadline(), self.keep_alive].into_iter().flatten().min()
    }

    fn phase(&self) -> Phase {
        match self.state {
            State::SynSent => Phase::Connecting,
            State::Listen | State::SynReceived => Phase::Accepting,
            State::Closed => Phase::Gone,
            State::Synchronized if !self.is_complete() => Phase::Open,
            State::Synchronized if self.lingers => Phase::Lingering,
            State::Synchronized => Phase::Gone,
        }
    }

    fn read<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        self.receiver.read(take)
    }

    fn readable(&self) -> usize {
        self.receiver.readable()
    }

    fn has_peer_finished(&self) -> bool {
        self.receiver.is_finished()
    }

    fn write<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        if self.state == State::Synchronized { self.sender.write(fill) } else { None }
    }

    fn writable(&self) -> usize {
        if self.state == State::Synchronized { self.sender.room() } else { 0 }
    }

    fn is_waiting(&self) -> bool {
        match self.phase() {
            Phase::Gone | Phase::Lingering => false,
            Phase::Connecting | Phase::Accepting => true,
            // In FIN-WAIT-2 the peer may be gone for good, and nothing of ours would tell.
            Phase::Open => self.sender.queued() > 0 || self.sender.is_finished(),
        }
    }

    fn finish(&mut self) {
        self.sender.finish();
    }

    fn reset(&mut self, _now: Nanos, out: &mut Outbox) {
        let known = matches!(self.state, State::SynReceived | State::Synchronized);
        if known && self.phase() != Phase::Gone {
            self.emit_reset(self.sender.numbering.wire(self.sender.next()), out);
        }
        self.close();
    }

    fn lower_mtu(&mut self, mtu: usize) {
        let least = if self.tuple.local.is_ipv6() { LEAST_MTU_IPV6 } else { LEAST_MTU_IPV4 };
        let mtu = mtu.max(least);
        if mtu < self.mtu {
            self.mtu = mtu;
            self.set_most_payload();
        }
    }

    fn initial_sequence(&self) -> Option<u32> {
        (self.sender.next() > SYN).then(|| self.sender.numbering.wire(SYN))
    }

    fn remains(&self) -> Option<Remains> {
        let told = self.receiver.acknowledged() == self.receiver.next();
        (self.phase() == Phase::Lingering && told).then(|| Remains {
            sequence: self.sender.numbering.wire(self.sender.next()),
            acknowledgement: self.receiver.numbering.wire(self.receiver.next()),
            window: 0,
        })
    }

    fn take_counts(&mut self) -> (u64, u64) {
        let Counts { segments, repeats, .. } = self.sender.counts;
        let taken = std::mem::replace(&mut self.taken, self.sender.counts);
        (segments - taken.segments, repeats - taken.repeats)
    }
}

/// A TCP header without options.
pub(super) const HEADER: usize = 20;
pub(super) const KEEP_ALIVE: Nanos = 75 * SECOND;
const TICK: Nanos = SECOND / 1000;
const ANSWERS_A_SECOND: u64 = 10;
/// No path asks for less (RFC 1191, 7.1; RFC 8200, 5): below it a forged report would make tiny segments.
const LEAST_MTU_IPV4: usize = 576;
const LEAST_MTU_IPV6: usize = 1280;
