//! Connections to others' addresses that nobody has decided on yet.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use crate::netstack::segment::Tuple;
use crate::netstack::slab::Slab;
use crate::{Nanos, SECOND};

/// A SYN that has not been answered.
pub struct Arrival {
    pub tuple: Tuple,
    pub packet: Box<[u8]>,
}

/// The arrivals, and how many connections of each source are undecided or half open: at most
/// [`MOST_EACH`], and [`MOST`] of all.
#[derive(Default)]
pub struct Arrivals {
    slab: Slab<Arrival>,
    tuples: HashMap<Tuple, u64>,
    /// The oldest first. One that was decided on is passed over.
    order: VecDeque<(Nanos, u64)>,
    sources: HashMap<IpAddr, usize>,
    unopened: usize,
}

impl Arrivals {
    pub fn count(&self) -> usize {
        self.slab.count()
    }

    pub fn find(&self, tuple: &Tuple) -> Option<u64> {
        self.tuples.get(tuple).copied()
    }

    /// Keeps a SYN. `None` where there are too many.
    pub fn add(&mut self, now: Nanos, tuple: Tuple, packet: &[u8]) -> Option<u64> {
        let each = self.sources.get(&tuple.remote.ip()).copied().unwrap_or(0);
        if each >= MOST_EACH || self.unopened >= MOST || packet.len() > LONGEST_SYN {
            return None;
        }
        *self.sources.entry(tuple.remote.ip()).or_default() += 1;
        self.unopened += 1;
        let id = self.slab.insert_with(|_| Arrival { tuple, packet: packet.into() });
        self.tuples.insert(tuple, id);
        self.order.push_back((now + PATIENCE, id));
        Some(id)
    }

    /// Takes one out. It still counts for its source until [`Arrivals::opened`].
    pub fn take(&mut self, id: u64) -> Option<Arrival> {
        let arrival = self.slab.remove(id)?;
        self.tuples.remove(&arrival.tuple);
        if self.slab.count() == 0 {
            self.order.clear();
        }
        Some(arrival)
    }

    /// A connection of `source` is open, or gone.
    pub fn opened(&mut self, source: IpAddr) {
        self.unopened -= 1;
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
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
