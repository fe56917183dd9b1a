//! The segments that are out: which arrived, which are lost, which were sent again.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use crate::Nanos;
use crate::netstack::tcp::delivery::Stamp;
use crate::netstack::tcp::ranges::Ranges;
use crate::netstack::tcp::sequence::Position;

/// One segment, as it was sent last.
#[derive(Clone, Debug)]
pub struct Sent {
    pub start: Position,
    pub end: Position,
    pub time: Nanos,
    pub repeated: bool,
    pub stamp: Stamp,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Flying,
    Lost,
    Sacked,
}

/// The segments that are not acknowledged, in order and without gaps. Each has a number that grows.
#[derive(Default)]
pub struct Scoreboard {
    segments: VecDeque<Sent>,
    /// The number of the first segment.
    first: u64,
    /// When which segment was sent, the oldest first. Entries of segments that arrived, are taken
    /// for lost or were sent again are skipped when they come to the front.
    order: VecDeque<(Nanos, u64)>,
    lost: BTreeSet<u64>,
    sacked: Ranges,
    /// Bytes in segments that are neither lost nor known to have arrived.
    flight: u64,
    /// Bytes that were taken for lost, since the beginning.
    lost_bytes: u64,
}

impl Sent {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    fn range(&self) -> Range<Position> {
        self.start..self.end
    }
}

impl Scoreboard {
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub fn count(&self) -> usize {
        self.segments.len()
    }

    pub fn flight(&self) -> u64 {
        self.flight
    }

    pub fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    pub fn has_sacked(&self) -> bool {
        !self.sacked.is_empty()
    }

    pub fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Whether the peer holds so many pieces beyond a gap that reordering is unlikely (RFC 8985, 6.2).
    pub fn has_sacked_many(&self, most_payload: u64) -> bool {
        let (Some(first), Some(last)) = (self.sacked.first(), self.sacked.last()) else { return false };
        self.sacked.len() >= DUPLICATES || last.end - first.start >= DUPLICATES as u64 * most_payload
    }

    pub fn push(&mut self, range: Range<Position>, now: Nanos, stamp: Stamp) {
        self.order.push_back((now, self.first + self.segments.len() as u64));
        self.flight += range.end - range.start;
        let Range { start, end } = range;
        self.segments.push_back(Sent { start, end, time: now, repeated: false, stamp, state: State::Flying });
    }

    /// Takes out what lies before `to`, and tells `arrived` what was not known to have arrived.
    pub fn acknowledge(&mut self, to: Position, mut arrived: impl FnMut(&Sent)) {
        while let Some(front) = self.segments.front_mut()
            && front.start < to
        {
            let state = front.state;
            if front.end > to {
                if state == State::Flying {
                    self.flight -= to - front.start;
                }
                front.start = to;
                break;
            }
            match state {
                State::Flying => self.flight -= front.len(),
                State::Lost => {
                    self.lost.remove(&self.first);
                }
                State::Sacked => {}
            }
            if state != State::Sacked {
                arrived(front);
            }
            self.segments.pop_front();
            self.first += 1;
        }
        self.sacked.forget_below(to);
        while self.order.front().is_some_and(|(_, number)| *number < self.first) {
            self.order.pop_front();
        }
    }

    /// Notes that `range` has arrived, and tells `arrived` the segments it completes.
    pub fn sack(&mut self, range: Range<Position>, mut arrived: impl FnMut(&Sent)) {
        let mut fresh = Vec::new();
        self.sacked.add(range, |part| fresh.push(part));
        for part in fresh {
            let from = self.segments.partition_point(|sent| sent.end <= part.start);
            for index in from..self.segments.len() {
                let sent = &mut self.segments[index];
                if sent.start >= part.end {
                    break;
                }
                if sent.state == State::Sacked || !self.sacked.covers(&sent.range()) {
                    continue;
                }
                match std::mem::replace(&mut sent.state, State::Sacked) {
                    State::Flying => self.flight -= sent.len(),
                    _ => {
                        self.lost.remove(&(self.first + index as u64));
                    }
                }
                arrived(sent);
            }
        }
    }

    /// Takes for lost what was sent before `newest` and is `patience` old. Returns when the next will be.
    pub fn lose_overdue(&mut self, now: Nanos, newest: (Nanos, Position), patience: Nanos) -> Option<Nanos> {
        while let Some(&(time, number)) = self.order.front() {
            if let Some(sent) = self.get(number)
                && sent.state == State::Flying
                && sent.time == time
            {
                if (time, sent.end) >= newest {
                    return None;
                }
                if time + patience > now {
                    return Some(time + patience);
                }
                self.lose(number);
            }
            self.order.pop_front();
        }
        None
    }

    /// Takes the first segment for lost. Returns whether it was not already.
    pub fn lose_first(&mut self) -> bool {
        let flying = self.segments.front().is_some_and(|sent| sent.state == State::Flying);
        if flying {
            self.lose(self.first);
        }
        flying
    }

    /// Takes everything for lost that is not known to have arrived. A peer whose first missing
    /// byte is one that it said it had has thrown it away (RFC 2018, 8): then nothing is known.
    pub fn lose_all(&mut self) {
        if self.segments.front().is_some_and(|sent| sent.state == State::Sacked) {
            self.segments.iter_mut().for_each(|sent| sent.state = State::Lost);
            self.sacked.clear();
        }
        for (number, sent) in (self.first..).zip(&mut self.segments) {
            if sent.state != State::Sacked {
                sent.state = State::Lost;
                self.lost.insert(number);
            }
        }
        self.order.clear();
        self.flight = 0;
    }

    /// Takes back every loss: what was missing has only been late.
    pub fn pardon(&mut self) {
        for number in std::mem::take(&mut self.lost) {
            let sent = &mut self.segments[(number - self.first) as usize];
            sent.state = State::Flying;
            self.flight += sent.len();
        }
        self.sort();
    }

    /// The first segment to send again.
    pub fn first_lost(&self) -> Option<(u64, Sent)> {
        let number = *self.lost.first()?;
        self.get(number).map(|sent| (number, sent.clone()))
    }

    /// The last segment, if nothing says that it arrived.
    pub fn last(&self) -> Option<(u64, Sent)> {
        let sent = self.segments.back().filter(|sent| sent.state != State::Sacked)?;
        Some((self.first + self.segments.len() as u64 - 1, sent.clone()))
    }

    pub fn is_first(&self, number: u64) -> bool {
        number == self.first
    }

    pub fn front(&self) -> Option<&Sent> {
        self.segments.front()
    }

    /// Notes that a segment was sent again.
    pub fn repeat(&mut self, number: u64, now: Nanos, stamp: Stamp) {
        let Some(sent) = self.segments.get_mut((number - self.first) as usize) else { return };
        sent.time = now;
        sent.repeated = true;
        sent.stamp = stamp;
        if sent.state == State::Lost {
            self.lost.remove(&number);
            sent.state = State::Flying;
            self.flight += sent.len();
        }
        self.order.push_back((now, number));
    }

    /// Cuts segments into pieces of at most `most` bytes. What was longer is lost.
    pub fn split(&mut self, most: u64) {
        let whole = std::mem::take(&mut self.segments);
        self.lost.clear();
        for mut sent in whole {
            let mut start = sent.start;
            if sent.len() > most && sent.state == State::Flying {
                sent.state = State::Lost;
                self.flight -= sent.len();
            }
            while start < sent.end {
                let end = sent.end.min(start + most);
                if sent.state == State::Lost {
                    self.lost.insert(self.first + self.segments.len() as u64);
                }
                self.segments.push_back(Sent { start, end, ..sent.clone() });
                start = end;
            }
        }
        self.sort();
    }

    fn lose(&mut self, number: u64) {
        let sent = &mut self.segments[(number - self.first) as usize];
        sent.state = State::Lost;
        self.flight -= sent.len();
        self.lost_bytes += sent.len();
        self.lost.insert(number);
    }

    fn get(&self, number: u64) -> Option<&Sent> {
        self.segments.get(number.checked_sub(self.first)? as usize)
    }

    fn sort(&mut self) {
        let flying = (self.first..).zip(&self.segments).filter(|(_, sent)| sent.state == State::Flying);
        let mut order: Vec<_> = flying.map(|(number, sent)| (sent.time, number)).collect();
        order.sort_unstable();
        self.order = order.into();
    }
}

const DUPLICATES: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten segments of 100 bytes, a microsecond apart.
    fn board() -> Scoreboard {
        let mut board = Scoreboard::default();
        (0..10).for_each(|at| board.push(at * 100..at * 100 + 100, at * 1000, Stamp::default()));
        board
    }

    #[test]
    fn a_gap_is_lost_once_it_is_old_enough() {
        let mut board = board();
        let mut arrived = Vec::new();
        board.acknowledge(100, |sent| arrived.push(sent.start));
        board.sack(300..550, |sent| arrived.push(sent.start));
        board.sack(550..600, |sent| arrived.push(sent.start));
        assert_eq!((arrived, board.flight()), (vec![0, 300, 400, 500], 600));
        assert_eq!(board.lose_overdue(6_000, (5_000, 600), 5_000), Some(7_000));
        assert_eq!(board.first_lost().map(|(number, sent)| (number, sent.start)), Some((1, 100)));
        assert_eq!(board.lose_overdue(9_000, (5_000, 600), 5_000), None);
        assert_eq!(board.flight(), 400);
        board.repeat(1, 9_000, Stamp::default());
        board.repeat(2, 9_000, Stamp::default());
        assert!(!board.has_lost() && board.flight() == 600);
        // Sent again after the newest that arrived: not lost a second time.
        assert_eq!(board.lose_overdue(90_000, (5_000, 600), 5_000), None);
        assert_eq!(board.lose_overdue(90_000, (10_000, 1000), 5_000), None);
        assert!(board.has_lost());
    }

    #[test]
    fn a_peer_that_threw_away_what_it_had_gets_it_again() {
        let mut board = board();
        board.sack(0..1000, |_| {});
        board.lose_all();
        assert_eq!(board.first_lost().map(|(_, sent)| sent.start), Some(0));
        assert!(!board.has_sacked());
    }

    #[test]
    fn pieces_keep_what_was_known() {
        let mut board = board();
        board.push(1000..1040, 10_000, Stamp::default());
        board.sack(500..600, |_| {});
        board.split(40);
        assert_eq!((board.count(), board.flight()), (31, 40));
        assert_eq!(board.first_lost().map(|(_, sent)| sent.len()), Some(40));
        board.pardon();
        assert_eq!(board.flight(), 940);
        board.acknowledge(1040, |_| {});
        assert_eq!((board.flight(), board.is_empty()), (0, true));
    }
}
