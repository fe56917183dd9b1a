//! Connections to others' addresses that nobody has decided on yet.

use std::collections::{HashMap, VecDeque};

use crate::netstack::budget::Floor;
use crate::netstack::clients::{Slots, Source};
use crate::netstack::segment::Tuple;
use crate::netstack::slab::Slab;
use crate::{Nanos, SECOND};

/// A SYN that has not been answered.
pub struct Arrival {
    pub tuple: Tuple,
    pub packet: Box<[u8]>,
    pub source: Source,
    /// What the connection will need, if it is reserved.
    pub floor: Option<Floor>,
}

/// The arrivals, and how many connections of each source are undecided or half open: at most
/// [`MOST_EACH`], and [`MOST`] of all.
pub struct Arrivals {
    slab: Slab<Arrival>,
    tuples: HashMap<Tuple, u64>,
    /// The oldest first. One that was decided on is passed over.
    order: VecDeque<(Nanos, u64)>,
    unopened: Slots<Source>,
}

impl Arrivals {
    pub fn new() -> Arrivals {
        Arrivals {
            slab: Slab::new(),
            tuples: HashMap::new(),
            order: VecDeque::new(),
            unopened: Slots::new(MOST, MOST_EACH),
        }
    }

    pub fn count(&self) -> usize {
        self.slab.count()
    }

    pub fn find(&self, tuple: &Tuple) -> Option<u64> {
        self.tuples.get(tuple).copied()
    }

    /// Keeps a SYN. `None` where there are too many.
    pub fn add(&mut self, now: Nanos, tuple: Tuple, source: Source, packet: &[u8]) -> Option<u64> {
        if packet.len() > LONGEST_SYN || !self.unopened.take(source) {
            return None;
        }
        let id = self.slab.insert_with(|_| Arrival { tuple, packet: packet.into(), source, floor: None });
        self.tuples.insert(tuple, id);
        self.order.push_back((now + PATIENCE, id));
        Some(id)
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut Arrival> {
        self.slab.get_mut(id)
    }

    /// Takes one out. It still counts for its source until [`Arrivals::opened`].
    pub fn take(&mut self, id: u64) -> Option<Arrival> {
        let arrival = self.slab.remove(id)?;
        self.tuples.remove(&arrival.tuple);
        if self.slab.count() == 0 {
            self.order.clear();
        } else if self.order.len() > 2 * MOST {
            let slab = &self.slab;
            self.order.retain(|(_, id)| slab.get(*id).is_some());
        }
        Some(arrival)
    }

    /// A connection of `source` is open, or gone.
    pub fn opened(&mut self, source: Source) {
        self.unopened.free(source);
    }

    pub fn next_timer(&self) -> Option<Nanos> {
        self.order.front().map(|(at, _)| *at)
    }

    /// The next one that nobody has decided on in time.
    pub fn expired(&mut self, now: Nanos) -> Option<u64> {
        while self.next_timer().is_some_and(|at| at <= now) {
            let (_, id) = self.order.pop_front()?;
            if self.slab.get(id).is_some() {
                return Some(id);
            }
        }
        None
    }
}

const MOST: usize = 1024;
const MOST_EACH: usize = 128;
/// Both headers with all their options. Data in a SYN is for who has a cookie of ours; nobody has.
const LONGEST_SYN: usize = 160;
/// Longer than a connection to anywhere takes to fail.
const PATIENCE: Nanos = 150 * SECOND;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_were_decided_on_leave_nothing_while_one_stays_undecided() {
        let mut arrivals = Arrivals::new();
        let source = Source::Client(1);
        let tuple =
            |port: u16| Tuple { local: ([192, 0, 2, 1], 80).into(), remote: ([10, 8, 0, 2], port).into() };
        arrivals.add(0, tuple(1), source, b"syn").unwrap();
        for now in 0..10_000 {
            let id = arrivals.add(now, tuple(2), source, b"syn").unwrap();
            arrivals.take(id);
            arrivals.opened(source);
            assert!(arrivals.order.len() <= 2 * MOST + 1);
        }
        assert_eq!(arrivals.count(), 1);
    }
}
