//! Segments that come in (RFC 9293, 3.10.7).

use crate::Nanos;
use crate::SECOND;
use crate::netstack::segment::Segment;
use crate::netstack::tcp::connection::{Agreed, Connection, KEEP_ALIVE, State};
use crate::netstack::tcp::options::Options;
use crate::netstack::tcp::receiver::SHIFT;
use crate::netstack::tcp::sender::Acknowledgement;
use crate::netstack::tcp::sequence::{FIRST, Numbering, Position, SYN};

impl Connection {
    pub(super) fn receive(&mut self, now: Nanos, packet: &[u8], segment: &Segment) {
        let options = Options::parse(&packet[segment.options.clone()]);
        match self.state {
            State::Closed => {}
            State::Listen => {
                if segment.syn && !segment.ack && !segment.rst {
                    self.take_syn(now, segment, &options);
                    self.state = State::SynReceived;
                }
            }
            State::SynSent => self.receive_in_syn_sent(now, segment, &options),
            State::SynReceived | State::Synchronized => {
                self.receive_in_window(now, packet, segment, &options)
            }
        }
    }

    fn receive_in_syn_sent(&mut self, now: Nanos, segment: &Segment, options: &Options) {
        let sent = self.sender.next() > SYN;
        let number = self.sender.numbering.wire(FIRST);
        if segment.ack && (!sent || segment.acknowledgement != number) {
            if !segment.rst {
                self.refusal = Some(segment.acknowledgement);
            }
        } else if segment.rst {
            if segment.ack {
                self.close();
            }
        } else if segment.syn {
            self.take_syn(now, segment, options);
            if segment.ack {
                self.state = State::Synchronized;
                self.acknowledge(now, segment, options, FIRST, SYN);
            } else {
                // Both have begun at once: ours goes out again, as an answer.
                self.state = State::SynReceived;
            }
            self.receiver.demand();
        }
    }

    /// Learns from the peer's SYN how it numbers and what it can do.
    fn take_syn(&mut self, now: Nanos, segment: &Segment, options: &Options) {
        self.receiver.numbering = Numbering::new(segment.sequence);
        let default = if self.tuple.local.is_ipv6() { DEFAULT_PAYLOAD_IPV6 } else { DEFAULT_PAYLOAD_IPV4 };
        let most_payload = options.most_payload.map_or(default, |most| usize::from(most).max(LEAST_PAYLOAD));
        self.agreed = Agreed {
            timestamps: options.timestamps.is_some(),
            sack: options.sack_permitted,
            shift: options.window_shift,
            most_payload,
        };
        if self.agreed.shift.is_some() {
            self.receiver.scale(SHIFT);
        }
        self.sender.set_sack(self.agreed.sack);
        self.set_most_payload();
        self.clock.recent = options.timestamps.map(|timestamps| (timestamps.value, now));
        // The window of a SYN is never scaled.
        self.sender.set_window(FIRST, u64::from(segment.window), SYN);
        self.receiver.demand();
    }

    fn receive_in_window(&mut self, now: Nanos, packet: &[u8], segment: &Segment, options: &Options) {
        let next = self.receiver.next();
        let mut start = self.receiver.numbering.position(segment.sequence, next);
        let end = start.saturating_add(u64::from(segment.len));
        if self.is_old_by_timestamp(now, segment, options) {
            return self.answer(now, segment);
        }
        if end < self.receiver.acknowledged() || start > self.receiver.edge().max(next) {
            if !segment.rst {
                self.answer(now, segment);
            }
            return;
        }
        if segment.rst {
            return self.take_reset(now, start);
        }
        if segment.syn {
            // The SYN that made us what we are may come again, or with the acknowledgement of ours.
            if self.state == State::SynReceived && start == SYN {
                start = FIRST;
            } else {
                return self.challenge(now);
            }
        }
        if !segment.ack || !self.take_acknowledgement(now, segment, options, start) {
            return;
        }
        self.note_timestamp(now, options, start);
        let finished = self.receiver.is_finished();
        if segment.len > 0 && (!finished || end <= next) {
            let payload = &packet[segment.payload.clone()];
            self.receiver.take(now, start, payload, segment.fin, self.sender.round_trip());
        }
        if self.receiver.is_finished() && !finished {
            self.lingers = self.sender.is_fin_sent();
        }
        self.watch(now);
    }

    /// Returns whether the rest of the segment counts.
    fn take_acknowledgement(
        &mut self,
        now: Nanos,
        segment: &Segment,
        options: &Options,
        start: Position,
    ) -> bool {
        let una = self.sender.una();
        let number = self.sender.numbering.position(segment.acknowledgement, una);
        if self.state == State::SynReceived {
            if number <= una || number > self.sender.next() {
                self.refusal = Some(segment.acknowledgement);
                return false;
            }
            self.state = State::Synchronized;
        }
        // RFC 5961, 5: too new or too old to come from the peer.
        if number > self.sender.next() || number + self.sender.largest_window().max(LEAST_WINDOW) < una {
            self.challenge(now);
            return false;
        }
        if number >= una {
            self.acknowledge(now, segment, options, number, start);
        }
        true
    }

    fn acknowledge(
        &mut self,
        now: Nanos,
        segment: &Segment,
        options: &Options,
        number: Position,
        sequence: Position,
    ) {
        let shift = if segment.syn { 0 } else { self.agreed.shift.unwrap_or(0) };
        let echo = options.timestamps.filter(|_| self.agreed.timestamps);
        let sacks = if self.agreed.sack { options.sacks() } else { &[] };
        self.sender.acknowledge(
            now,
            &Acknowledgement {
                number,
                window: u64::from(segment.window) << shift,
                sequence,
                sacks,
                echo: echo.and_then(|timestamps| self.clock.time(now, timestamps.echo)),
                bare: segment.len == 0,
            },
        );
    }

    /// RFC 7323, 5: a segment from before the sequence numbers wrapped.
    fn is_old_by_timestamp(&self, now: Nanos, segment: &Segment, options: &Options) -> bool {
        let (Some((recent, at)), Some(timestamps)) = (self.clock.recent, options.timestamps) else {
            return false;
        };
        let older = (timestamps.value.wrapping_sub(recent) as i32) < 0;
        self.agreed.timestamps && older && !segment.rst && now < at + TIMESTAMP_LASTS
    }

    fn note_timestamp(&mut self, now: Nanos, options: &Options, start: Position) {
        if let Some(timestamps) = options.timestamps
            && self.agreed.timestamps
            && start <= self.receiver.acknowledged()
        {
            self.clock.recent = Some((timestamps.value, now));
        }
    }

    /// RFC 5961, 3: only a reset with exactly the next number is the peer's for certain.
    fn take_reset(&mut self, now: Nanos, start: Position) {
        if start == self.receiver.next() {
            self.close();
        } else if start > self.receiver.next() {
            self.challenge(now);
        }
    }

    /// Answers a segment that is not in the window. One with data is no answer to an answer.
    fn answer(&mut self, now: Nanos, segment: &Segment) {
        let data = segment.len > 0 && !segment.syn;
        if data {
            let next = self.receiver.next();
            let start = self.receiver.numbering.position(segment.sequence, next);
            if start < next {
                // Counts as come twice.
                let payload = segment.len.saturating_sub(u32::from(segment.fin));
                self.receiver.repeated(start..start + u64::from(payload));
            }
            self.receiver.demand();
        } else {
            self.challenge(now);
        }
    }

    fn challenge(&mut self, now: Nanos) {
        if self.answers.take(now) {
            self.receiver.demand();
        }
    }

    /// A peer that is to finish is asked from time to time whether it is still there.
    fn watch(&mut self, now: Nanos) {
        let waits = self.sender.is_fin_acknowledged() && !self.receiver.is_finished();
        self.keep_alive = waits.then_some(now + KEEP_ALIVE);
    }
}

/// What a peer takes that says nothing (RFC 9293, 3.7.1).
const DEFAULT_PAYLOAD_IPV4: usize = 536;
const DEFAULT_PAYLOAD_IPV6: usize = 1220;
/// A peer that asks for less would have us send little but headers.
const LEAST_PAYLOAD: usize = 64;
const LEAST_WINDOW: u64 = 65_535;
const TIMESTAMP_LASTS: Nanos = 24 * 24 * 3600 * SECOND;
