//! Connections that are over but whose last acknowledgement may have been lost (RFC 9293, 3.3.2).

use std::collections::{HashMap, VecDeque};

use crate::netstack::segment::{Segment, Tuple};
use crate::{Nanos, SECOND};

/// What is kept of a connection: enough to acknowledge its FIN again.
#[derive(Clone, Copy, Debug)]
pub struct Remains {
    pub sequence: u32,
    pub acknowledgement: u32,
    pub window: u16,
}

/// What to do with a segment whose tuple is in TIME-WAIT.
pub enum Verdict {
    /// Send the acknowledgement again.
    Acknowledge(Remains),
    /// A new connection on the old tuple: it may begin, the old one is forgotten.
    Reopened,
    Ignore,
}

/// The connections in TIME-WAIT, the oldest first. At most [`LIMIT`].
#[derive(Default)]
pub struct TimeWait {
    table: HashMap<Tuple, (Remains, Nanos)>,
    order: VecDeque<(Nanos, Tuple)>,
}

impl TimeWait {
    /// Adds a connection. Returns whether an older one had to make room before its time.
    pub fn insert(&mut self, now: Nanos, tuple: Tuple, remains: Remains) -> bool {
        self.expire(now);
        let crowded = self.order.len() >= LIMIT;
        if crowded {
            self.forget_oldest();
        }
        self.table.insert(tuple, (remains, now + DURATION));
        self.order.push_back((now + DURATION, tuple));
        crowded
    }

    pub fn contains(&mut self, now: Nanos, tuple: &Tuple) -> bool {
        self.expire(now);
        self.table.contains_key(tuple)
    }

    /// What a segment for `tuple` means; `None` when the tuple is not here.
    pub fn receive(&mut self, now: Nanos, tuple: &Tuple, segment: &Segment) -> Option<Verdict> {
        self.expire(now);
        let remains = self.table.get(tuple)?.0;
        // RFC 1337: a reset must not end TIME-WAIT early.
        if segment.rst {
            return Some(Verdict::Ignore);
        }
        let newer = (segment.sequence.wrapping_sub(remains.acknowledgement) as i32) > 0;
        if segment.syn && !segment.ack && newer {
            self.table.remove(tuple);
            return Some(Verdict::Reopened);
        }
        Some(Verdict::Acknowledge(remains))
    }

    pub fn count(&self) -> usize {
        self.table.len()
    }

    fn expire(&mut self, now: Nanos) {
        while self.order.front().is_some_and(|(expires, _)| *expires <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((expires, tuple)) = self.order.pop_front() {
            // A tuple that was used again has a younger entry behind this one.
            if self.table.get(&tuple).is_some_and(|(_, at)| *at == expires) {
                self.table.remove(&tuple);
            }
            if self.order.is_empty() {
                self.table.shrink_to_fit();
                self.order.shrink_to_fit();
            }
        }
    }
}

const LIMIT: usize = 4096;
const DURATION: Nanos = 60 * SECOND;
