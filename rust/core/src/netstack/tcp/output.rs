//! Segments that go out.

use std::ops::Range;

use smoltcp::wire::IpProtocol;

use crate::Nanos;
use crate::checksum::Sum;
use crate::netstack::ip;
use crate::netstack::outbox::Outbox;
use crate::netstack::tcp::connection::{Connection, HEADER, KEEP_ALIVE, State};
use crate::netstack::tcp::options::Writer;
use crate::netstack::tcp::receiver::SHIFT;
use crate::netstack::tcp::sender::Plan;
use crate::netstack::tcp::sequence::{FIRST, Position, SYN};

/// The next packet.
pub(super) enum Next {
    Refusal(u32),
    Segment(Plan),
    Acknowledgement,
    KeepAlive,
}

impl Connection {
    pub(super) fn transmit(&mut self, now: Nanos, out: &mut Outbox) -> bool {
        if !out.has_room() {
            return false;
        }
        self.sender.expire(now);
        let Some(next) = self.plan(now) else {
            if self.state == State::Synchronized {
                self.sender.rest(now);
            }
            return false;
        };
        match next {
            Next::Refusal(sequence) => {
                self.refusal = None;
                self.emit(sequence, RST, &Writer::default(), None, out);
            }
            Next::Segment(plan) => self.emit_segment(now, &plan, out),
            Next::Acknowledgement => self.emit_acknowledgement(now, self.sender.next(), out),
            Next::KeepAlive => {
                self.keep_alive = Some(now + KEEP_ALIVE);
                self.emit_acknowledgement(now, self.sender.una() - 1, out);
            }
        }
        true
    }

    /// What would go out now.
    pub(super) fn plan(&self, now: Nanos) -> Option<Next> {
        if let Some(sequence) = self.refusal {
            return Some(Next::Refusal(sequence));
        }
        match self.state {
            State::Listen | State::Closed => None,
            State::SynSent => self.sender.plan(now).map(Next::Segment),
            State::SynReceived => {
                // An acknowledgement that is due goes with our SYN.
                let again = || self.receiver.is_due(now).then_some(Next::Acknowledgement);
                self.sender.plan(now).map(Next::Segment).or_else(again)
            }
            State::Synchronized if self.receiver.is_due_alone() => Some(Next::Acknowledgement),
            State::Synchronized => {
                let acknowledgement = || self.receiver.is_due(now).then_some(Next::Acknowledgement);
                let keep_alive = || self.keep_alive.filter(|at| *at <= now).map(|_| Next::KeepAlive);
                self.sender.plan(now).map(Next::Segment).or_else(acknowledgement).or_else(keep_alive)
            }
        }
    }

    pub(super) fn emit_reset(&mut self, sequence: u32, out: &mut Outbox) {
        self.emit(sequence, RST | ACK, &Writer::default(), None, out);
    }

    fn emit_segment(&mut self, now: Nanos, plan: &Plan, out: &mut Outbox) {
        match plan {
            Plan::WindowProbe => self.emit_acknowledgement(now, self.sender.una() - 1, out),
            Plan::New(range) | Plan::Again(_, range) if range.start == SYN => self.emit_syn(now, out),
            Plan::New(range) | Plan::Again(_, range) => {
                let (bytes, fin) = self.sender.content(range);
                let last = range.end >= self.sender.next() || fin;
                let flags = ACK | if fin { FIN } else { 0 } | if last && !bytes.is_empty() { PSH } else { 0 };
                let options = self.options(now, false);
                self.emit(self.sender.numbering.wire(range.start), flags, &options, Some(bytes), out);
                self.receiver.acknowledge();
            }
        }
        self.sender.sent(now, plan);
    }

    fn emit_syn(&mut self, now: Nanos, out: &mut Outbox) {
        let answers = self.state == State::SynReceived;
        let mut options = Writer::default();
        options.most_payload(self.own_most_payload().min(usize::from(u16::MAX)) as u16);
        if !answers || self.agreed.sack {
            options.sack_permitted();
        }
        if !answers || self.agreed.timestamps {
            options.timestamps(self.clock.timestamps(now));
        }
        if !answers || self.agreed.shift.is_some() {
            options.window_shift(SHIFT);
        }
        let flags = SYN_FLAG | if answers { ACK } else { 0 };
        self.emit(self.sender.numbering.wire(SYN), flags, &options, None, out);
        self.receiver.acknowledge();
    }

    fn emit_acknowledgement(&mut self, now: Nanos, from: Position, out: &mut Outbox) {
        // After our SYN alone, the peer may have lost our answer.
        if self.state == State::SynReceived {
            return self.emit_syn(now, out);
        }
        let options = self.options(now, true);
        self.emit(self.sender.numbering.wire(from.max(SYN)), ACK, &options, None, out);
        self.receiver.acknowledge();
    }

    fn options(&mut self, now: Nanos, alone: bool) -> Writer {
        let mut options = Writer::default();
        if self.agreed.timestamps {
            options.timestamps(self.clock.timestamps(now));
        }
        if alone {
            let (blocks, count) = self.receiver.take_sacks();
            if self.agreed.sack {
                options.sacks(&blocks[..count], |position| self.receiver.numbering.wire(position));
            }
        }
        options
    }

    /// Writes a packet: the one place where headers are made.
    fn emit(
        &mut self,
        sequence: u32,
        flags: u8,
        options: &Writer,
        bytes: Option<Range<Position>>,
        out: &mut Outbox,
    ) {
        let (source, destination) = (self.tuple.local.ip(), self.tuple.remote.ip());
        let window = match flags & (SYN_FLAG | RST) {
            0 => self.receiver.window(self.agreed.shift.is_some()),
            SYN_FLAG => self.receiver.window(false),
            _ => 0,
        };
        let number = if flags & ACK != 0 { self.receiver.numbering.wire(self.receiver.next()) } else { 0 };
        let header = HEADER + options.len();
        let bytes = bytes.unwrap_or(FIRST..FIRST);
        let len = header + (bytes.end - bytes.start) as usize;
        ip::emit(out, source, destination, IpProtocol::Tcp, len, |segment| {
            segment[0..2].copy_from_slice(&self.tuple.local.port().to_be_bytes());
            segment[2..4].copy_from_slice(&self.tuple.remote.port().to_be_bytes());
            segment[4..8].copy_from_slice(&sequence.to_be_bytes());
            segment[8..12].copy_from_slice(&number.to_be_bytes());
            segment[12] = (header as u8 / 4) << 4;
            segment[13] = flags;
            segment[14..16].copy_from_slice(&window.to_be_bytes());
            segment[16..20].fill(0);
            segment[HEADER..header].copy_from_slice(options.bytes());
            self.sender.copy(bytes.start, &mut segment[header..]);
            let sum = Sum::pseudo_header(source, destination, IpProtocol::Tcp.into(), len);
            let checksum = sum.with(segment).finish();
            segment[16..18].copy_from_slice(&checksum);
        });
    }
}

const FIN: u8 = 1;
const SYN_FLAG: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
