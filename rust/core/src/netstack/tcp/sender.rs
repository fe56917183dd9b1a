//! The sending half of a connection: what is queued, what is out, and what may go next.

use std::ops::Range;

use crate::Nanos;
use crate::SECOND;
use crate::netstack::budget::{Budget, CHUNK};
use crate::netstack::tcp::bbr::{Bbr, Heard};
use crate::netstack::tcp::buffer::Buffer;
use crate::netstack::tcp::delivery::Delivery;
use crate::netstack::tcp::recovery::{Recovery, Report};
use crate::netstack::tcp::rtt::Rtt;
use crate::netstack::tcp::scoreboard::Scoreboard;
use crate::netstack::tcp::sequence::{FIRST, Numbering, Position, SYN};

pub struct Sender {
    pub numbering: Numbering,
    buffer: Buffer,
    /// The first position that is not acknowledged.
    una: Position,
    /// The first that was never sent.
    next: Position,
    /// Behind the last byte written: where the FIN stands, once the program has finished.
    end: Position,
    finished: bool,
    /// Up to where the peer takes bytes, and the segment that said so.
    edge: Position,
    edge_from: (Position, Position),
    largest_window: u64,
    most_payload: u64,
    board: Scoreboard,
    recovery: Recovery,
    bbr: Bbr,
    delivery: Delivery,
    /// When the next segment may go, by the pace.
    release: Nanos,
    rtt: Rtt,
    timers: Timers,
    persist_backoff: u32,
    pub counts: Counts,
}

/// What a sender has done since it was last asked, and how often it had to wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub segments: u64,
    pub repeats: u64,
    pub timeouts: u64,
    pub probes: u64,
}

#[derive(Default)]
struct Timers {
    retransmit: Option<Nanos>,
    /// The tail loss probe, and whether it is due and waits to be sent.
    probe: Option<Nanos>,
    probe_due: bool,
    reorder: Option<Nanos>,
    persist: Option<Nanos>,
    persist_due: bool,
}

/// A segment to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    New(Range<Position>),
    Again(u64, Range<Position>),
    /// One without data from before the peer's window, which it has to answer.
    WindowProbe,
}

/// What a received acknowledgement says.
pub struct Acknowledgement<'a> {
    pub number: Position,
    pub window: u64,
    /// Where the segment that carried it begins.
    pub sequence: Position,
    pub sacks: &'a [(u32, u32)],
    /// When the segment that it answers was sent.
    pub echo: Option<Nanos>,
    /// Whether nothing but an acknowledgement came.
    pub bare: bool,
}

impl Sender {
    pub fn new(budget: Budget, initial: u32, most_payload: usize) -> Sender {
        let most_payload = most_payload as u64;
        Sender {
            numbering: Numbering::new(initial),
            buffer: Buffer::new(budget),
            una: SYN,
            next: SYN,
            end: FIRST,
            finished: false,
            edge: FIRST,
            edge_from: (0, 0),
            largest_window: 0,
            most_payload,
            board: Scoreboard::default(),
            recovery: Recovery::new(false),
            bbr: Bbr::new(most_payload, initial.into()),
            delivery: Delivery::default(),
            release: 0,
            rtt: Rtt::default(),
            timers: Timers::default(),
            persist_backoff: 0,
            counts: Counts::default(),
        }
    }

    pub fn una(&self) -> Position {
        self.una
    }

    pub fn next(&self) -> Position {
        self.next
    }

    pub fn round_trip(&self) -> Option<Nanos> {
        self.rtt.smoothed()
    }

    pub fn largest_window(&self) -> u64 {
        self.largest_window
    }

    pub fn set_sack(&mut self, sack: bool) {
        self.recovery.set_sack(sack);
    }

    /// Sets the longest payload of a segment. What is out and longer has not fit the path.
    pub fn set_most_payload(&mut self, most: usize) {
        let most = most as u64;
        if most < self.most_payload {
            self.board.split(most);
        }
        self.most_payload = most;
        self.bbr.set_most_payload(most);
    }

    /// Takes the window of a segment that has passed as new enough.
    pub fn set_window(&mut self, number: Position, window: u64, sequence: Position) {
        self.edge_from = (sequence, number);
        self.largest_window = self.largest_window.max(window);
        self.edge = number + window;
        if self.edge > self.next {
            self.timers.persist = None;
            self.timers.persist_due = false;
            self.persist_backoff = 0;
        }
    }

    /// Bytes that are queued or out.
    pub fn queued(&self) -> usize {
        (self.end - self.una.clamp(FIRST, self.end)) as usize
    }

    pub fn is_finished(&self) -> bool {
        self.finished
    }

    pub fn is_fin_sent(&self) -> bool {
        self.next > self.end
    }

    pub fn is_fin_acknowledged(&self) -> bool {
        self.una > self.end
    }

    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// How many more bytes can be written.
    pub fn room(&self) -> usize {
        if self.finished {
            return 0;
        }
        let free = self.buffer.budget().free();
        let wanted = (2 * self.bbr.window() as usize).clamp(LEAST_QUEUE, MOST_QUEUE);
        let most = wanted.min(LEAST_QUEUE.max(self.queued() / 2 + free / 2));
        most.saturating_sub(self.queued()).min(self.buffer.room(self.end))
    }

    pub fn write<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        let room = self.room();
        if room == 0 {
            return None;
        }
        let space = self.buffer.space(self.end)?;
        let most = space.len().min(room);
        let (count, result) = fill(&mut space[..most]);
        self.end += count.min(most) as u64;
        Some(result)
    }

    /// Copies the bytes of a segment.
    pub fn copy(&self, from: Position, into: &mut [u8]) {
        self.buffer.copy(from, into);
    }

    /// Where the bytes of a segment lie, and whether a FIN follows them.
    pub fn content(&self, range: &Range<Position>) -> (Range<Position>, bool) {
        let end = range.end.min(self.end);
        (range.start.max(FIRST).min(end)..end, range.end > self.end)
    }

    /// Forgets all bytes: the connection is over.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.board = Scoreboard::default();
        self.timers = Timers::default();
        self.finished = true;
        self.una = self.end;
    }

    pub fn acknowledge(&mut self, now: Nanos, said: &Acknowledgement) {
        let before = (self.una, self.flight(), self.board.lost_bytes());
        let mut report = Report {
            advanced: said.number.saturating_sub(self.una),
            after_repeat: self.board.front().is_some_and(|sent| sent.repeated),
            echo: said.echo,
            ..Report::default()
        };
        self.advance(now, said.number, &mut report);
        self.take_sacks(now, said, &mut report);
        let edge = self.edge;
        if (said.sequence, said.number) >= self.edge_from {
            self.set_window(said.number, said.window, said.sequence);
        }
        let idle = report.advanced == 0 && said.number == self.una;
        report.duplicate = idle && said.bare && self.edge == edge && !self.board.is_empty();
        self.sample(now, &report);
        if self.board.is_empty() && report.advanced == 0 {
            return;
        }
        let state = (&mut self.board, &mut self.bbr, &self.rtt);
        self.timers.reorder =
            self.recovery.react(now, &report, (self.una, self.next), state, self.most_payload);
        self.hear(now, &report, before);
        if report.advanced > 0 {
            self.timers.retransmit = (!self.board.is_empty()).then(|| now + self.rtt.timeout());
            self.timers.probe_due = false;
        }
        if report.advanced > 0 || report.arrived > 0 {
            self.arm_probe(now);
        }
    }

    /// Does what is due.
    pub fn expire(&mut self, now: Nanos) {
        let timers = &mut self.timers;
        let due = |timer: &mut Option<Nanos>| timer.take_if(|at| *at <= now).is_some();
        timers.persist_due |= due(&mut timers.persist);
        if due(&mut timers.probe) {
            timers.probe_due = true;
            timers.retransmit = Some(now + self.rtt.timeout());
        }
        let (reorder, retransmit) = (due(&mut timers.reorder), due(&mut timers.retransmit));
        if reorder {
            let state = (&mut self.board, &mut self.bbr, &self.rtt);
            self.timers.reorder = self.recovery.look_again(now, self.next, state, self.most_payload);
        }
        if retransmit && !self.board.is_empty() {
            self.time_out(now);
        }
    }

    pub fn deadline(&self) -> Option<Nanos> {
        let Timers { retransmit, probe, reorder, persist, .. } = self.timers;
        let paced = self.una > SYN && self.unpaced().is_some();
        let release = paced.then(|| self.release.saturating_sub(BURST));
        [retransmit, probe, reorder, persist, release].into_iter().flatten().min()
    }

    /// What to send next, if anything may be sent.
    pub fn plan(&self, now: Nanos) -> Option<Plan> {
        let paced = self.release > now + BURST && !self.timers.probe_due && self.una > SYN;
        if paced { None } else { self.unpaced() }
    }

    /// What to send next but for the pace.
    fn unpaced(&self) -> Option<Plan> {
        if self.next == SYN {
            return Some(Plan::New(SYN..FIRST));
        }
        let (flight, window) = (self.flight(), self.recovery.window(&self.bbr));
        if let Some((number, sent)) = self.board.first_lost() {
            // What holds everything else up does not wait for the window (RFC 6582, 3.2).
            let may = self.board.is_first(number) || flight + sent.len() <= window;
            return may.then_some(Plan::Again(number, sent.start..sent.end));
        }
        if self.una == SYN {
            return None;
        }
        let fresh = self.fresh();
        if self.timers.probe_due {
            let last = || self.board.last().map(|(number, sent)| Plan::Again(number, sent.start..sent.end));
            return fresh.map(Plan::New).or_else(last);
        }
        match fresh {
            Some(range) => {
                let may = flight == 0 || flight + (range.end - range.start) <= window;
                (may && self.board.count() < self.most_out()).then_some(Plan::New(range))
            }
            None => (self.timers.persist_due && self.board.is_empty()).then_some(Plan::WindowProbe),
        }
    }

    /// Notes that nothing more can be sent now, and sees to it that this ends.
    pub fn rest(&mut self, now: Nanos) {
        let waits = self.next > SYN && self.next < self.end + u64::from(self.finished);
        if !waits {
            if !self.board.has_lost() && self.flight() < self.bbr.window() {
                self.delivery.limit(self.flight());
            }
            return;
        }
        if self.fresh().is_none()
            && self.board.is_empty()
            && self.timers.persist.is_none()
            && !self.timers.persist_due
        {
            self.timers.persist = Some(now + self.persist_interval());
        }
    }

    /// Notes that a segment goes out.
    pub fn sent(&mut self, now: Nanos, plan: &Plan) {
        let probe = std::mem::take(&mut self.timers.probe_due);
        match plan {
            Plan::New(range) => {
                let stamp = self.delivery.stamp(now, self.flight());
                self.board.push(range.clone(), now, stamp);
                self.next = range.end;
                self.note_sent(now, range, false);
                self.timers.retransmit.get_or_insert(now + self.rtt.timeout());
            }
            Plan::Again(number, range) => {
                if self.board.is_first(*number) {
                    self.timers.retransmit = Some(now + self.rtt.timeout());
                }
                let stamp = self.delivery.stamp(now, self.flight());
                self.board.repeat(*number, now, stamp);
                self.note_sent(now, range, true);
                self.timers.retransmit.get_or_insert(now + self.rtt.timeout());
            }
            Plan::WindowProbe => {}
        }
        if self.timers.persist_due {
            self.timers.persist_due = false;
            self.persist_backoff = (self.persist_backoff + 1).min(MOST_BACKOFF);
            self.timers.persist = Some(now + self.persist_interval());
        }
        if probe {
            self.counts.probes += 1;
            self.recovery.probed(self.next, matches!(plan, Plan::Again(..)));
            self.timers.probe = None;
        } else {
            self.arm_probe(now);
        }
    }

    fn flight(&self) -> u64 {
        self.recovery.flight(&self.board, self.most_payload)
    }

    /// The next piece that was never sent, if the peer's window takes it: a whole segment, all
    /// there is, half of what the peer ever took (RFC 9293, 3.8.6.2.1), or what a probe may.
    fn fresh(&self) -> Option<Range<Position>> {
        let fin = u64::from(self.finished);
        let end = (self.next + self.most_payload).min(self.end);
        let all = end.max(self.next) == self.end;
        let end = if all { self.end + fin } else { end };
        if end <= self.next {
            return None;
        }
        if end <= self.edge {
            return Some(self.next..end);
        }
        let usable = self.edge.saturating_sub(self.next);
        let worth = usable >= self.largest_window / 2 || self.timers.persist_due;
        (usable > 0 && worth).then(|| self.next..self.edge.min(end))
    }

    fn most_out(&self) -> usize {
        2 * (self.bbr.window() / self.most_payload) as usize + SMALL_SEGMENTS
    }

    fn advance(&mut self, now: Nanos, number: Position, report: &mut Report) {
        if report.advanced == 0 {
            return;
        }
        let least = self.rtt.least();
        let (recovery, delivery) = (&mut self.recovery, &mut self.delivery);
        self.board.acknowledge(number, |sent| {
            delivery.arrived(now, sent.len(), sent.time, &sent.stamp, &mut report.sample);
            recovery.arrived(sent, now, least, report);
        });
        self.una = number;
        if self.una >= self.end {
            self.buffer.clear();
        } else {
            self.buffer.release(self.una.max(FIRST));
        }
    }

    /// RFC 2018, and RFC 2883 for a first block that tells of what arrived twice.
    fn take_sacks(&mut self, now: Nanos, said: &Acknowledgement, report: &mut Report) {
        let least = self.rtt.least();
        let position = |wire| self.numbering.position(wire, said.number);
        let blocks: Vec<_> = said.sacks.iter().map(|(start, end)| position(*start)..position(*end)).collect();
        for (at, block) in blocks.iter().enumerate() {
            let inside = |outer: &Range<_>| outer.start <= block.start && block.end <= outer.end;
            if at == 0 && (block.end <= said.number || blocks.get(1).is_some_and(inside)) {
                report.twice = (block.start < block.end).then_some(block.end);
            } else if self.una <= block.start && block.start < block.end && block.end <= self.next {
                let (recovery, delivery) = (&mut self.recovery, &mut self.delivery);
                self.board.sack(block.clone(), |sent| {
                    delivery.arrived(now, sent.len(), sent.time, &sent.stamp, &mut report.sample);
                    recovery.arrived(sent, now, least, report);
                });
            }
        }
    }

    fn sample(&mut self, now: Nanos, report: &Report) {
        let by_time = report.oldest_rtt.filter(|_| !report.ambiguous);
        let by_echo = || report.echo.filter(|_| report.advanced > 0).map(|echo| now.saturating_sub(echo));
        if let Some(rtt) = by_time.or_else(by_echo).filter(|rtt| *rtt <= LONGEST_SAMPLE) {
            self.rtt.sample(now, rtt);
        }
    }

    fn hear(&mut self, now: Nanos, report: &Report, (una, flight, lost): (Position, u64, u64)) {
        if una == SYN {
            return;
        }
        self.bbr.hear(&Heard {
            now,
            arrived: report.arrived,
            lost: self.board.lost_bytes() - lost,
            flight_before: flight,
            flight: self.flight(),
            rtt: report.newest_rtt,
            smoothed: self.rtt.smoothed(),
            rate: self.delivery.rate(&report.sample, self.rtt.least()),
            delivered: self.delivery.delivered(),
            delivered_before: report.sample.delivered_before(),
        });
    }

    fn time_out(&mut self, now: Nanos) {
        self.counts.timeouts += 1;
        self.rtt.back_off();
        if self.una == SYN {
            self.board.lose_all();
        } else {
            self.recovery.time_out(self.next, &mut self.board, &mut self.bbr, self.most_payload);
        }
        self.timers = Timers { retransmit: Some(now + self.rtt.timeout()), ..Timers::default() };
    }

    fn note_sent(&mut self, now: Nanos, range: &Range<Position>, again: bool) {
        if let Some(pace) = self.bbr.pace() {
            let time = u128::from(range.end - range.start) * u128::from(SECOND) / u128::from(pace);
            self.release = self.release.max(now.saturating_sub(CREDIT)) + time as Nanos;
        }
        self.recovery.sent(now, range.end - range.start, again);
        if range.start > SYN {
            self.counts.segments += 1;
            self.counts.repeats += u64::from(again);
        }
    }

    fn arm_probe(&mut self, now: Nanos) {
        let after = self.recovery.probe_after(&self.board, &self.rtt);
        let before_timeout = |at: &Nanos| self.timers.retransmit.is_none_or(|timeout| *at < timeout);
        self.timers.probe = after.map(|after| now + after).filter(before_timeout);
    }

    fn persist_interval(&self) -> Nanos {
        (self.rtt.timeout() << self.persist_backoff).min(LONGEST_PERSIST)
    }
}

const LEAST_QUEUE: usize = 4 * CHUNK;
const MOST_QUEUE: usize = 8 << 20;
/// Segments that may be out beyond what full ones would be: small ones cost as much to remember.
const SMALL_SEGMENTS: usize = 64;
/// What may go ahead of the pace: timers are no finer.
const BURST: Nanos = SECOND / 1000;
/// What may be made up for that a busy machine has let pass.
const CREDIT: Nanos = SECOND / 200;
const LONGEST_SAMPLE: Nanos = 120 * SECOND;
const LONGEST_PERSIST: Nanos = 60 * SECOND;
const MOST_BACKOFF: u32 = 10;
