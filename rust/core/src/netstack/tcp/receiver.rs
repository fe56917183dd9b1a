//! The receiving half of a connection: bytes in and out of order, the window, and when to acknowledge.

use std::ops::Range;

use crate::netstack::budget::{Budget, CHUNK};
use crate::netstack::tcp::buffer::Buffer;
use crate::netstack::tcp::options::MOST_SACKS;
use crate::netstack::tcp::ranges::Ranges;
use crate::netstack::tcp::sequence::{FIRST, Numbering, Position};
use crate::{Nanos, SECOND};

pub struct Receiver {
    pub numbering: Numbering,
    buffer: Buffer,
    /// The first byte that was not read, and the first that has not come.
    read: Position,
    next: Position,
    /// Up to where the peer may send.
    edge: Position,
    /// What was acknowledged last.
    acknowledged: Position,
    capacity: usize,
    shift: u8,
    fin: Option<Position>,
    finished: bool,
    /// What came beyond a gap, and where the pieces that came last begin.
    pending: Ranges,
    recent: [Position; MOST_SACKS],
    twice: Option<Range<Position>>,
    due: Due,
    unacknowledged: usize,
    /// The longest payload that came.
    longest: usize,
    prompt: u32,
    round: (Nanos, Position),
}

/// When an acknowledgement is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Not,
    At(Nanos),
    Now,
}

impl Receiver {
    pub fn new(budget: Budget) -> Receiver {
        Receiver {
            numbering: Numbering::new(0),
            buffer: Buffer::new(budget),
            read: FIRST,
            next: FIRST,
            edge: FIRST + FIRST_WINDOW as u64,
            acknowledged: FIRST,
            capacity: FIRST_WINDOW,
            shift: 0,
            fin: None,
            finished: false,
            pending: Ranges::default(),
            recent: [0; MOST_SACKS],
            twice: None,
            due: Due::Not,
            unacknowledged: 0,
            longest: LEAST_LONGEST,
            prompt: PROMPT,
            round: (0, FIRST),
        }
    }

    pub fn next(&self) -> Position {
        self.next
    }

    pub fn edge(&self) -> Position {
        self.edge
    }

    pub fn acknowledged(&self) -> Position {
        self.acknowledged
    }

    /// The peer scales its reading of our window.
    pub fn scale(&mut self, shift: u8) {
        self.shift = shift;
    }

    /// Whether the peer has sent its FIN and everything before it has come.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    pub fn readable(&self) -> usize {
        (self.next - u64::from(self.finished) - self.read) as usize
    }

    pub fn read<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        let end = self.read + self.readable() as u64;
        if self.read == end {
            return None;
        }
        let piece = self.buffer.piece(self.read, end);
        let (count, result) = take(piece);
        self.read += count.min(piece.len()) as u64;
        if self.read == end && self.pending.is_empty() {
            self.buffer.clear();
        } else {
            self.buffer.release(self.read);
        }
        Some(result)
    }

    /// Takes the payload of a segment that begins at `start` and touches the window.
    pub fn take(
        &mut self,
        now: Nanos,
        start: Position,
        payload: &[u8],
        fin: bool,
        round_trip: Option<Nanos>,
    ) {
        let end = start + payload.len() as u64;
        if end + u64::from(fin) <= self.next {
            self.twice = (start < end).then_some(start..end);
            self.due = Due::Now;
            return;
        }
        let limit = self.fin.unwrap_or(self.edge).min(self.edge);
        let (from, to) = (start.max(self.next), end.min(limit));
        if start < from.min(end) {
            self.twice = Some(start..from.min(end));
        }
        if fin && to == end && self.fin.is_none() && self.pending.last().is_none_or(|last| last.end <= end) {
            self.fin = Some(end);
            self.due = Due::Now;
        }
        if from < to {
            self.longest = self.longest.max(payload.len().min(LONGEST_COUNTED));
            self.store(now, from, &payload[(from - start) as usize..(to - start) as usize]);
            self.adapt(now, round_trip);
        } else if !payload.is_empty() {
            self.due = Due::Now;
        }
        if self.fin == Some(self.next) && !self.finished {
            self.finished = true;
            self.next += 1;
            self.due = Due::Now;
        }
    }

    /// Notes that something came that had come before.
    pub fn repeated(&mut self, range: Range<Position>) {
        self.twice = (range.start < range.end).then_some(range);
    }

    /// An acknowledgement is to be sent at once.
    pub fn demand(&mut self) {
        self.due = Due::Now;
    }

    /// Whether an acknowledgement is to be sent now.
    pub fn is_due(&self, now: Nanos) -> bool {
        match self.due {
            Due::Not => self.wants_update(),
            Due::At(at) => at <= now || self.wants_update(),
            Due::Now => true,
        }
    }

    /// Whether the acknowledgement has to go without data: one that tells of a gap.
    pub fn is_due_alone(&self) -> bool {
        self.due == Due::Now && (!self.pending.is_empty() || self.twice.is_some())
    }

    pub fn deadline(&self) -> Option<Nanos> {
        match self.due {
            Due::At(at) => Some(at),
            _ => None,
        }
    }

    /// The window for the header of a segment that goes out now.
    pub fn window(&mut self, is_scaled: bool) -> u16 {
        self.edge = self.offer();
        let shift = if is_scaled { self.shift } else { 0 };
        ((self.edge.saturating_sub(self.next)) >> shift).min(u64::from(u16::MAX)) as u16
    }

    /// Notes that everything so far is acknowledged.
    pub fn acknowledge(&mut self) {
        self.acknowledged = self.next;
        self.due = Due::Not;
        self.unacknowledged = 0;
        self.prompt = self.prompt.saturating_sub(1);
    }

    /// The pieces beyond gaps, the latest first; before them what came twice (RFC 2018, 4; RFC 2883).
    pub fn take_sacks(&mut self) -> ([(Position, Position); MOST_SACKS], usize) {
        let mut blocks = [(0, 0); MOST_SACKS];
        let mut count = 0;
        let mut put = |range: Range<Position>| {
            let block = (range.start, range.end);
            if count < MOST_SACKS && !blocks[..count].contains(&block) {
                blocks[count] = block;
                count += 1;
            }
        };
        self.twice.take().into_iter().for_each(&mut put);
        self.recent.iter().filter_map(|start| self.pending.around(*start)).for_each(&mut put);
        (blocks, count)
    }

    fn store(&mut self, now: Nanos, start: Position, bytes: &[u8]) {
        let whole = start..start + bytes.len() as u64;
        let in_order = start == self.next;
        if !in_order && self.pending.len() >= MOST_PENDING && self.pending.is_apart(&whole) {
            self.due = Due::Now;
            return;
        }
        let mut written = self.buffer.write(start, bytes);
        if written == 0 && in_order && self.read == self.next {
            // What lies beyond the gap holds the floor that is kept for what comes next.
            self.pending.clear();
            self.buffer.clear();
            written = self.buffer.write(start, bytes);
        }
        let range = start..start + written as u64;
        if range.is_empty() {
            self.due = Due::Now;
            return;
        }
        if in_order {
            self.unacknowledged += written;
            let gaps = !self.pending.is_empty();
            self.next = range.end;
            self.join();
            self.schedule(now, gaps);
        } else {
            let mut fresh = false;
            self.pending.add(range.clone(), |_| fresh = true);
            if !fresh {
                self.twice = Some(range.clone());
            }
            self.note_recent(range.start);
            self.due = Due::Now;
        }
    }

    /// Moves on over what had come before its turn.
    fn join(&mut self) {
        if let Some(first) = self.pending.first()
            && first.start <= self.next
        {
            self.next = self.next.max(first.end);
            self.pending.forget_below(self.next);
        }
    }

    fn note_recent(&mut self, start: Position) {
        let place = self.pending.around(start);
        let same = |other: &Position| *other == start || self.pending.around(*other) == place;
        let at = self.recent.iter().position(same).unwrap_or(MOST_SACKS - 1);
        self.recent[..=at].rotate_right(1);
        self.recent[0] = start;
    }

    /// RFC 9293, 3.8.6.3: every second segment at once, others a little later.
    fn schedule(&mut self, now: Nanos, gaps: bool) {
        if gaps || self.prompt > 0 || self.unacknowledged >= 2 * self.longest {
            self.due = Due::Now;
        } else if self.due == Due::Not {
            self.due = Due::At(now + DELAY);
        }
    }

    /// Twice what was read within the last round trip: the peer's window may double once more.
    fn adapt(&mut self, now: Nanos, round_trip: Option<Nanos>) {
        let (began, read) = self.round;
        if now < began + round_trip.unwrap_or(UNKNOWN_ROUND_TRIP).max(LEAST_ROUND_TRIP) {
            return;
        }
        let wanted = 2 * (self.read - read) as usize + SPARE_SEGMENTS * self.longest;
        if wanted > self.capacity && began > 0 {
            let most = MOST_CAPACITY.min(self.capacity + self.buffer.budget().free() / 4);
            self.capacity = wanted.min(most).max(self.capacity);
        }
        self.round = (now, self.read);
    }

    /// Up to where the peer may send now: never less than before, and not a little more
    /// (RFC 9293, 3.8.6.2.2).
    fn offer(&self) -> Position {
        let free = self.capacity.saturating_sub(self.readable());
        // What is offered may all come at once, and to every connection.
        let free = free.min(self.buffer.budget().free() / 2 + CHUNK);
        let edge = self.next + free as u64;
        let step = self.longest.min(self.capacity / 2) as u64;
        if edge >= self.edge + step { edge } else { self.edge.max(self.next) }
    }

    /// Whether the window has opened so far that the peer ought to know.
    fn wants_update(&self) -> bool {
        let (known, offer) = (self.edge.saturating_sub(self.next), self.offer().saturating_sub(self.next));
        let closed = known < self.longest as u64;
        !self.finished && offer > known && (closed || offer >= 2 * known)
    }
}

/// How far our windows are scaled, so that [`MOST_CAPACITY`] can be said.
pub const SHIFT: u8 = 8;
/// What a header without scaling can say.
const FIRST_WINDOW: usize = u16::MAX as usize;
const MOST_CAPACITY: usize = 8 << 20;
const MOST_PENDING: usize = 256;
const LEAST_LONGEST: usize = 536;
/// Merged segments of a local device are no measure of what the path carries.
const LONGEST_COUNTED: usize = 9000;
const SPARE_SEGMENTS: usize = 16;
/// Acknowledgements at the beginning that are not delayed: the peer's window is small then.
const PROMPT: u32 = 16;
const DELAY: Nanos = SECOND / 25;
const UNKNOWN_ROUND_TRIP: Nanos = SECOND / 10;
const LEAST_ROUND_TRIP: Nanos = SECOND / 1000;
