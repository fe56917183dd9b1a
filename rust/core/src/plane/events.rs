//! What a plane reports, in bounded queues.
//!
//! Control packets of peers, of paths that we have written to, and of strangers wait apart, so that
//! a flood from one sort cannot crowd out another's; strangers pass a limiter too.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

use crate::plane::Path;
use crate::plane::guard::Holder;
use crate::{Nanos, SECOND};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Control { data: Box<[u8]>, path: Path },
    DataMessage { peer: u32, data: Box<[u8]> },
    Float { peer: u32, path: Path },
    Expired { peer: u32 },
    KeyLimit { peer: u32, handle: u64 },
    Closed { path: Path, errno: i32 },
    DeviceClosed { errno: i32 },
}

/// Whose path a control packet came on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Peer,
    Contacted,
    Stranger,
}

#[derive(Default)]
pub struct Events {
    reports: VecDeque<Event>,
    messages: usize,
    control: [ControlQueue; 3],
    strangers: Limiters,
    contacted: Recent<Path>,
    authentic: Recent<[u8; MARK]>,
    signalled: bool,
}

impl Events {
    /// So many packets of strangers with one key are queued within so long, and no more.
    pub fn limit_strangers(&mut self, most: u64, period: Nanos, now: Nanos) {
        let interval = (period / most.max(1)).max(1);
        let fresh = Limiter { tokens: most, refilled: now, burst: most, interval };
        self.strangers = Limiters { fresh, ..Limiters::default() };
    }

    /// Queues a control packet; false if it must be dropped. `holder` is a stranger's.
    pub fn control(&mut self, origin: Origin, holder: &Holder, data: &[u8], path: Path, now: Nanos) -> bool {
        let queue = &mut self.control[origin as usize];
        if !queue.takes(data) || origin == Origin::Stranger && !self.strangers.admits(holder, now) {
            return false;
        }
        queue.push(data, path);
        true
    }

    /// Queues a data message; false if it must be dropped.
    pub fn message(&mut self, peer: u32, data: &[u8]) -> bool {
        if self.messages == MAX_MESSAGES {
            return false;
        }
        self.messages += 1;
        self.reports.push_back(Event::DataMessage { peer, data: data.into() });
        true
    }

    /// Queues a report of which each command allows only so many: these are never dropped.
    pub fn report(&mut self, event: Event) {
        self.reports.push_back(event);
    }

    /// Whether a report that a peer can cause at will may be queued.
    pub fn has_room(&self) -> bool {
        self.reports.len() < MAX_REPORTS
    }

    pub fn contacted(&mut self, path: Path) {
        self.contacted.insert(path);
    }

    pub fn is_contacted(&self, path: &Path) -> bool {
        self.contacted.contains(path)
    }

    /// Whether an authentic packet comes for the first time. Whoever sends one again makes it anew; the same once more
    /// is a recording, of which each counts once.
    pub fn is_new(&mut self, datagram: &[u8]) -> bool {
        // Behind opcode and session id: the tag itself, or the packet id and the tag's first bytes.
        let Some(mark) = datagram.get(9..).and_then(|rest| rest.first_chunk()) else { return true };
        let is_new = !self.authentic.contains(mark);
        self.authentic.insert(*mark);
        is_new
    }

    pub fn take(&mut self) -> Vec<Event> {
        self.signalled = false;
        self.messages = 0;
        let control = self.control.iter_mut().flat_map(|queue| {
            queue.bytes = 0;
            queue.events.drain(..)
        });
        self.reports.drain(..).chain(control).collect()
    }

    pub fn signal(&mut self) -> bool {
        let waiting = !self.reports.is_empty() || self.control.iter().any(|queue| !queue.events.is_empty());
        let signal = waiting && !self.signalled;
        self.signalled |= waiting;
        signal
    }
}

#[derive(Default)]
struct ControlQueue {
    events: VecDeque<Event>,
    bytes: usize,
}

impl ControlQueue {
    fn takes(&self, data: &[u8]) -> bool {
        self.events.len() < MAX_CONTROL && self.bytes + data.len() <= MAX_CONTROL_BYTES
    }

    fn push(&mut self, data: &[u8], path: Path) {
        self.bytes += data.len();
        self.events.push_back(Event::Control { data: data.into(), path });
    }
}

/// One for each key, so that whoever has one keeps out nobody with another. Keys are the server's to give: there are as
/// many as it gave, of which between one and two generations are known.
#[derive(Default)]
struct Limiters {
    fresh: Limiter,
    young: HashMap<Holder, Limiter>,
    old: HashMap<Holder, Limiter>,
}

impl Limiters {
    fn admits(&mut self, holder: &Holder, now: Nanos) -> bool {
        if !self.young.contains_key(holder) {
            let limiter = self.old.remove(holder).unwrap_or(self.fresh);
            if self.young.len() == GENERATION {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.insert(*holder, limiter);
        }
        self.young.get_mut(holder).is_some_and(|limiter| limiter.admits(now))
    }
}

/// A token bucket: stock's `--connect-freq-initial 100 10`.
#[derive(Clone, Copy)]
struct Limiter {
    tokens: u64,
    refilled: Nanos,
    burst: u64,
    interval: Nanos,
}

impl Limiter {
    fn admits(&mut self, now: Nanos) -> bool {
        let earned = now.saturating_sub(self.refilled) / self.interval;
        self.refilled += earned * self.interval;
        self.tokens = self.tokens.saturating_add(earned).min(self.burst);
        let admitted = self.tokens > 0;
        self.tokens -= u64::from(admitted);
        admitted
    }
}

impl Default for Limiter {
    fn default() -> Limiter {
        Limiter { tokens: BURST, refilled: 0, burst: BURST, interval: TOKEN_INTERVAL }
    }
}

/// The last ones that were put there, between one and two generations of them.
struct Recent<T> {
    young: HashSet<T>,
    old: HashSet<T>,
}

impl<T: Eq + Hash> Recent<T> {
    fn insert(&mut self, item: T) {
        if self.young.len() == GENERATION && !self.young.contains(&item) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(item);
    }

    fn contains(&self, item: &T) -> bool {
        self.young.contains(item) || self.old.contains(item)
    }
}

impl<T> Default for Recent<T> {
    fn default() -> Recent<T> {
        Recent { young: HashSet::new(), old: HashSet::new() }
    }
}

const MAX_MESSAGES: usize = 256;
const MAX_REPORTS: usize = 4096;
/// Several handshakes' flights: a peer has at most 12 control packets on their way.
const MAX_CONTROL: usize = 1024;
const MAX_CONTROL_BYTES: usize = 2 << 20;
const BURST: u64 = 100;
const TOKEN_INTERVAL: Nanos = SECOND / 10;
const GENERATION: usize = 2048;
const MARK: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::guard::ANYBODY;

    fn path(port: u16) -> Path {
        Path { socket: 0, address: ([192, 0, 2, 1], port).into() }
    }

    #[test]
    fn the_limit_of_strangers_can_be_set() {
        let mut events = Events::default();
        events.limit_strangers(500, SECOND, 0);
        let admitted = |events: &mut Events, now| {
            (0..600).filter(|&port| events.control(Origin::Stranger, &ANYBODY, b"x", path(port), now)).count()
        };
        assert_eq!(admitted(&mut events, 0), 500);
        events.take();
        assert_eq!(admitted(&mut events, SECOND / 2), 250);
    }

    #[test]
    fn strangers_are_limited_and_crowd_nobody_out() {
        let mut events = Events::default();
        let taken = |events: &mut Events, origin, count, now| {
            (0..count).filter(|_| events.control(origin, &ANYBODY, b"x", path(1), now)).count()
        };
        assert_eq!(taken(&mut events, Origin::Stranger, 5000, 50 * SECOND), 100);
        assert_eq!(taken(&mut events, Origin::Stranger, 50, 51 * SECOND), 10);
        assert_eq!(taken(&mut events, Origin::Contacted, 5000, 51 * SECOND), MAX_CONTROL);
        assert_eq!(taken(&mut events, Origin::Peer, 5000, 51 * SECOND), MAX_CONTROL);
        assert_eq!(events.take().len(), 110 + 2 * MAX_CONTROL);
        assert_eq!(taken(&mut events, Origin::Peer, 1, 51 * SECOND), 1);
    }

    #[test]
    fn whoever_has_a_key_keeps_out_nobody_with_another() {
        let mut events = Events::default();
        let mut taken = |key: u8, count| {
            (0..count).filter(|_| events.control(Origin::Stranger, &[key; 16], b"x", path(1), 0)).count()
        };
        assert_eq!([taken(1, 500), taken(2, 500), taken(1, 1)], [100, 100, 0]);
        let mut limiters = Limiters::default();
        for key in 0..10 * GENERATION {
            let mut holder = ANYBODY;
            holder[..8].copy_from_slice(&key.to_be_bytes());
            assert!(limiters.admits(&holder, 0));
        }
        assert!(limiters.young.len() + limiters.old.len() <= 2 * GENERATION);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut events = Events::default();
        let taken =
            (0..1000).filter(|_| events.control(Origin::Peer, &ANYBODY, &[0; 60_000], path(1), 0)).count();
        assert_eq!(taken, MAX_CONTROL_BYTES / 60_000);
    }

    #[test]
    fn one_signal_until_they_are_taken() {
        let mut events = Events::default();
        assert!(!events.signal());
        events.report(Event::Expired { peer: 1 });
        assert!(events.signal() && !events.signal());
        events.report(Event::Expired { peer: 2 });
        assert!(!events.signal());
        assert_eq!(events.take(), [Event::Expired { peer: 1 }, Event::Expired { peer: 2 }]);
        assert!(!events.signal());
    }

    #[test]
    fn a_recording_counts_once() {
        let mut events = Events::default();
        let packet = |tag: u8| [&[7 << 3; 9][..], &[tag; 40]].concat();
        assert!(events.is_new(&packet(1)) && events.is_new(&packet(2)));
        assert!(!events.is_new(&packet(1)) && !events.is_new(&packet(2)));
        assert!(events.is_new(b"short") && events.is_new(b"short"));
    }

    #[test]
    fn contacted_paths_are_kept_for_a_generation() {
        let mut events = Events::default();
        events.contacted(path(1));
        (2..GENERATION as u16 + 2).for_each(|port| events.contacted(path(port)));
        assert!(events.is_contacted(&path(1)));
        (1..=GENERATION as u16).for_each(|port| events.contacted(path(port + 10_000)));
        assert!(!events.is_contacted(&path(1)));
        assert!(events.contacted.young.len() + events.contacted.old.len() <= 2 * GENERATION);
    }
}
