//! What is lost, and how fast it is sent again: RACK-TLP (RFC 8985), proportional rate reduction
//! (RFC 6937), and NewReno for peers without SACK (RFC 6582).

use crate::netstack::tcp::bbr::Bbr;
use crate::netstack::tcp::delivery::Sample;
use crate::netstack::tcp::rtt::Rtt;
use crate::netstack::tcp::scoreboard::{Scoreboard, Sent};
use crate::netstack::tcp::sequence::Position;
use crate::{Nanos, SECOND};

/// The state of loss detection and recovery of one sender.
pub struct Recovery {
    sack: bool,
    rack: Rack,
    episode: Option<Episode>,
    probe: Option<Probe>,
    /// Acknowledgements that say nothing new; each stands for a segment that left the path.
    duplicates: u64,
    /// Up to where duplicates are echoes of what was sent again.
    settled: Position,
    undo: Option<Undo>,
}

/// The most recently sent segment that arrived, and how much later others may.
#[derive(Default)]
struct Rack {
    time: Nanos,
    end: Position,
    rtt: Nanos,
    /// The highest position that arrived.
    highest: Position,
    reordering: bool,
    /// The reordering window in quarters of the least RTT; grows with what was sent twice in vain.
    quarters: u64,
    grown_until: Position,
    calm: u32,
}

/// From a loss until everything sent before it was noticed has arrived.
struct Episode {
    end: Position,
    timeout: bool,
    flight: u64,
    arrived: u64,
    sent: u64,
    window: u64,
}

/// A tail loss probe that is out.
struct Probe {
    end: Position,
    repeated: bool,
}

/// What to go back to where a loss turns out to be none.
struct Undo {
    /// The time of the first retransmission.
    at: Option<Nanos>,
}

/// What an acknowledgement says.
#[derive(Default)]
pub struct Report {
    /// How far it moves the left edge.
    pub advanced: u64,
    /// Bytes that are newly known to have arrived.
    pub arrived: u64,
    /// It says nothing new although something is out.
    pub duplicate: bool,
    /// What arrived twice ends here.
    pub twice: Option<Position>,
    /// When the segment it answers was sent, by its timestamp.
    pub echo: Option<Nanos>,
    pub oldest_rtt: Option<Nanos>,
    pub newest_rtt: Option<Nanos>,
    pub sample: Sample,
    /// Whether the first segment had been sent again.
    pub after_repeat: bool,
    /// Something arrived that was sent more than once.
    pub ambiguous: bool,
}

impl Recovery {
    pub fn new(sack: bool) -> Recovery {
        Recovery {
            sack,
            rack: Rack { quarters: 1, ..Rack::default() },
            episode: None,
            probe: None,
            duplicates: 0,
            settled: 0,
            undo: None,
        }
    }

    pub fn set_sack(&mut self, sack: bool) {
        self.sack = sack;
    }

    /// The congestion window as it is while something is lost.
    pub fn window(&self, bbr: &Bbr) -> u64 {
        match &self.episode {
            Some(episode) if !episode.timeout => episode.window,
            _ => bbr.window(),
        }
    }

    /// Bytes that are still on the path.
    pub fn flight(&self, board: &Scoreboard, most_payload: u64) -> u64 {
        board.flight().saturating_sub(self.duplicates * most_payload)
    }

    /// Notes that a segment arrived.
    pub fn arrived(&mut self, sent: &Sent, now: Nanos, least_rtt: Option<Nanos>, report: &mut Report) {
        report.arrived += sent.len();
        let rtt = now.saturating_sub(sent.time);
        if sent.repeated {
            report.ambiguous = true;
            // Which of the two arrived? The later cannot have been so quick (RFC 8985, 6.2 step 2).
            if least_rtt.is_some_and(|least| rtt < least) {
                return;
            }
        } else {
            report.oldest_rtt = report.oldest_rtt.max(Some(rtt));
            report.newest_rtt = Some(report.newest_rtt.map_or(rtt, |newest| newest.min(rtt)));
            self.rack.reordering |= sent.end < self.rack.highest;
        }
        self.rack.highest = self.rack.highest.max(sent.end);
        if (sent.time, sent.end) > (self.rack.time, self.rack.end) {
            (self.rack.time, self.rack.end, self.rack.rtt) = (sent.time, sent.end, rtt);
        }
    }

    /// Draws the conclusions of an acknowledgement up to `una`. Returns when to look again for losses.
    pub fn react(
        &mut self,
        now: Nanos,
        report: &Report,
        (una, next): (Position, Position),
        (board, bbr, rtt): (&mut Scoreboard, &mut Bbr, &Rtt),
        most_payload: u64,
    ) -> Option<Nanos> {
        self.undo_if_spurious(report, board, bbr);
        self.hear_twice(report, next);
        self.end_probe(report, una);
        if self.episode.as_ref().is_some_and(|episode| una >= episode.end) {
            self.end_episode(una);
        }
        let again = if self.sack {
            self.detect(now, board, rtt, most_payload)
        } else {
            self.count_duplicates(report, una, board);
            None
        };
        if board.has_lost() && self.episode.is_none() {
            self.begin(next, board, bbr, false, most_payload);
        }
        self.reduce_in_proportion(report, board, bbr, most_payload);
        again
    }

    /// Looks for losses again after a while. Returns when to do so next.
    pub fn look_again(
        &mut self,
        now: Nanos,
        next: Position,
        (board, bbr, rtt): (&mut Scoreboard, &mut Bbr, &Rtt),
        most_payload: u64,
    ) -> Option<Nanos> {
        let again = self.detect(now, board, rtt, most_payload);
        if board.has_lost() && self.episode.is_none() {
            self.begin(next, board, bbr, false, most_payload);
        }
        self.reduce_in_proportion(&Report::default(), board, bbr, most_payload);
        again
    }

    /// The retransmission timer has run out.
    pub fn time_out(&mut self, next: Position, board: &mut Scoreboard, bbr: &mut Bbr, most_payload: u64) {
        let again = self.episode.as_ref().is_some_and(|episode| episode.timeout);
        board.lose_all();
        self.probe = None;
        self.duplicates = 0;
        if again {
            bbr.collapse();
        } else {
            self.episode = None;
            self.begin(next, board, bbr, true, most_payload);
        }
    }

    /// Notes that bytes were sent, `repeated` or new.
    pub fn sent(&mut self, now: Nanos, bytes: u64, repeated: bool) {
        if let Some(episode) = &mut self.episode {
            episode.sent += bytes;
        }
        if repeated && let Some(undo) = &mut self.undo {
            undo.at.get_or_insert(now);
        }
    }

    /// How long after the last segment a probe is due; `None` where none helps.
    pub fn probe_after(&self, board: &Scoreboard, rtt: &Rtt) -> Option<Nanos> {
        let useful = self.sack && self.probe.is_none() && self.episode.is_none() && !board.has_sacked();
        let smoothed = rtt.smoothed().filter(|_| useful && !board.is_empty())?;
        // A lone segment's acknowledgement may be delayed.
        let slack = if board.count() == 1 { DELAYED_ACKNOWLEDGEMENT } else { LEAST_SLACK };
        Some(2 * smoothed + slack)
    }

    pub fn probed(&mut self, end: Position, repeated: bool) {
        self.probe = Some(Probe { end, repeated });
    }

    fn begin(&mut self, next: Position, board: &Scoreboard, bbr: &mut Bbr, timeout: bool, most_payload: u64) {
        let flight = self.flight(board, most_payload);
        self.undo = Some(Undo { at: None });
        let before = bbr.window();
        bbr.lose();
        if timeout {
            bbr.collapse();
        }
        self.probe = None;
        // The first retransmission does not wait (RFC 6937, 3).
        let window = flight + most_payload;
        let flight = flight.max(before.min(flight + most_payload));
        self.episode = Some(Episode { end: next, timeout, flight, arrived: 0, sent: 0, window });
    }

    fn end_episode(&mut self, una: Position) {
        self.episode = None;
        self.duplicates = 0;
        self.settled = una;
        self.rack.calm += 1;
        if self.rack.calm >= CALM {
            self.rack.quarters = 1;
        }
    }

    /// RFC 3522: the acknowledgement answers the segment as it was sent first.
    fn undo_if_spurious(&mut self, report: &Report, board: &mut Scoreboard, bbr: &mut Bbr) {
        if report.advanced == 0 || self.episode.is_none() {
            return;
        }
        let Some(undo) = self.undo.take() else { return };
        let (Some(at), Some(echo)) = (undo.at, report.echo) else { return };
        if report.after_repeat && echo + ECHO_STEP <= at {
            board.pardon();
            bbr.undo();
            self.episode = None;
            self.rack.reordering = true;
        }
    }

    /// What arrived twice was sent again too early (RFC 8985, 6.2 step 4).
    fn hear_twice(&mut self, report: &Report, next: Position) {
        if let Some(end) = report.twice
            && end > self.rack.grown_until
        {
            self.rack.quarters = (self.rack.quarters + 1).min(MOST_QUARTERS);
            self.rack.grown_until = next;
            self.rack.calm = 0;
        }
    }

    fn end_probe(&mut self, report: &Report, una: Position) {
        let Some(probe) = &self.probe else { return };
        if una < probe.end {
            return;
        }
        let in_vain = report.twice == Some(probe.end) || report.duplicate && report.advanced == 0;
        if !probe.repeated || in_vain || una > probe.end {
            self.probe = None;
        }
    }

    fn detect(&mut self, now: Nanos, board: &mut Scoreboard, rtt: &Rtt, most_payload: u64) -> Option<Nanos> {
        let certain = self.episode.is_some() || board.has_sacked_many(most_payload);
        let window = if certain && !self.rack.reordering {
            0
        } else {
            let quarter = rtt.least().unwrap_or(self.rack.rtt) / 4;
            (self.rack.quarters * quarter).min(rtt.smoothed().unwrap_or(Nanos::MAX))
        };
        board.lose_overdue(now, (self.rack.time, self.rack.end), self.rack.rtt + window)
    }

    fn count_duplicates(&mut self, report: &Report, una: Position, board: &mut Scoreboard) {
        if report.advanced > 0 {
            self.duplicates = 0;
            if self.episode.as_ref().is_some_and(|episode| !episode.timeout) {
                board.lose_first();
            }
        } else if report.duplicate {
            self.duplicates = (self.duplicates + 1).min(board.count() as u64);
            if self.duplicates == DUPLICATES && self.episode.is_none() && una > self.settled {
                board.lose_first();
            }
        }
    }

    fn reduce_in_proportion(&mut self, report: &Report, board: &Scoreboard, bbr: &Bbr, most_payload: u64) {
        let flight = self.flight(board, most_payload);
        let Some(episode) = self.episode.as_mut().filter(|episode| !episode.timeout) else { return };
        let duplicate = if report.duplicate && !self.sack { most_payload } else { 0 };
        let arrived = report.arrived + duplicate;
        episode.arrived += arrived;
        let target = bbr.window();
        let allowance = if flight > target {
            let share = u128::from(episode.arrived) * u128::from(target) / u128::from(episode.flight.max(1));
            (share as u64).saturating_sub(episode.sent)
        } else {
            let bound = episode.arrived.saturating_sub(episode.sent).max(arrived) + most_payload;
            bound.min(target - flight)
        };
        let first = if episode.sent == 0 { most_payload } else { 0 };
        episode.window = flight + allowance.max(first);
    }
}

const DUPLICATES: u64 = 3;
const DELAYED_ACKNOWLEDGEMENT: Nanos = SECOND / 5;
const LEAST_SLACK: Nanos = SECOND / 500;
const MOST_QUARTERS: u64 = 16;
const CALM: u32 = 16;
/// Timestamps count milliseconds: two that are equal may be in either order.
const ECHO_STEP: Nanos = SECOND / 1000;
