//! A fair queue: what waits for a slow way leaves by turns, a flow after the other.
//!
//! Flows take turns by bytes (deficit round robin), and one that has just begun, or sends little, comes first; each
//! flow's own queue is kept short by CoDel, which drops from the front once packets have waited too long for too
//! long. Source: RFC 8290 (FQ-CoDel) and RFC 8289 (CoDel), their constants included. Unlike there, each flow has a
//! queue of its own for as long as it has packets, and none is marked instead of dropped.

use std::collections::VecDeque;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::{HashMap, HashMapExt};

use crate::packet::Packet;
use crate::{Nanos, SECOND};

/// The memory that queues share. Each may have as much as is left, and so the more of them are long, the shorter
/// all are; [`LEAST`] is everybody's.
pub struct Budget {
    used: AtomicUsize,
    bytes: usize,
}

/// Packets that wait.
pub struct FairQueue {
    flows: HashMap<u32, Flow>,
    /// Flows that have begun, and those that have had a turn.
    new: VecDeque<u32>,
    old: VecDeque<u32>,
    len: usize,
    /// Bytes of memory that its packets take.
    footprint: usize,
    budget: Arc<Budget>,
}

struct Flow {
    packets: VecDeque<(Packet, Nanos)>,
    bytes: usize,
    /// What it may still send in its turn.
    credit: i64,
    codel: CoDel,
}

impl FairQueue {
    pub fn new(budget: Arc<Budget>) -> FairQueue {
        FairQueue {
            flows: HashMap::new(),
            new: VecDeque::new(),
            old: VecDeque::new(),
            len: 0,
            footprint: 0,
            budget,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes a packet of a flow in. What has to go for it is moved to the end of `dropped`: of the flow with most
    /// bytes, the oldest.
    pub fn push(&mut self, flow: u32, packet: Packet, now: Nanos, dropped: &mut Vec<Packet>) {
        let footprint = packet.footprint();
        if self.len > 0 && self.footprint + footprint > self.limit() {
            self.drop_from_longest(dropped);
        }
        self.footprint += footprint;
        self.budget.used.fetch_add(footprint, Ordering::Relaxed);
        let waiting = self.flows.entry(flow).or_insert_with(|| {
            self.new.push_back(flow);
            Flow { packets: VecDeque::new(), bytes: 0, credit: QUANTUM, codel: CoDel::default() }
        });
        waiting.bytes += packet.len();
        waiting.packets.push_back((packet, now));
        self.len += 1;
    }

    /// The packet whose turn it is. Those that have waited too long are moved to the end of `dropped`.
    pub fn pop(&mut self, now: Nanos, dropped: &mut Vec<Packet>) -> Option<Packet> {
        loop {
            let is_new = !self.new.is_empty();
            let number = *if is_new { self.new.front() } else { self.old.front() }?;
            let flow = self.flows.get_mut(&number)?;
            if flow.credit <= 0 {
                flow.credit += QUANTUM;
                self.pass_on(is_new);
                continue;
            }
            let before = dropped.len();
            let packet = flow.pop(now, dropped);
            flow.credit -= packet.as_ref().map_or(0, Packet::len) as i64;
            self.forget(&dropped[before..]);
            match packet {
                Some(packet) => {
                    self.forget(slice::from_ref(&packet));
                    return Some(packet);
                }
                // One that would begin anew at once, packet by packet, would always come first.
                None if is_new && !self.old.is_empty() => self.pass_on(is_new),
                None => {
                    self.flows.remove(&number);
                    if is_new {
                        self.new.pop_front()
                    } else {
                        self.old.pop_front()
                    };
                }
            }
        }
    }

    /// Everything, in no order.
    pub fn drain(&mut self) -> Vec<Packet> {
        self.new.clear();
        self.old.clear();
        let packets: Vec<Packet> =
            self.flows.drain().flat_map(|(_, flow)| flow.packets).map(|(packet, _)| packet).collect();
        self.forget(&packets);
        packets
    }

    /// The most that its packets may take now.
    fn limit(&self) -> usize {
        let free = self.budget.bytes.saturating_sub(self.budget.used.load(Ordering::Relaxed));
        (self.footprint + free / 2).clamp(LEAST, MOST)
    }

    fn forget(&mut self, gone: &[Packet]) {
        let footprint: usize = gone.iter().map(Packet::footprint).sum();
        self.len -= gone.len();
        self.footprint -= footprint;
        self.budget.used.fetch_sub(footprint, Ordering::Relaxed);
    }

    fn pass_on(&mut self, is_new: bool) {
        let from = if is_new { &mut self.new } else { &mut self.old };
        if let Some(number) = from.pop_front() {
            self.old.push_back(number);
        }
    }

    /// Several at once, half of them at most, so that the longest is not looked for at every packet (RFC 8290, 4.1).
    fn drop_from_longest(&mut self, dropped: &mut Vec<Packet>) {
        let Some(longest) = self.flows.values_mut().max_by_key(|flow| flow.bytes) else { return };
        let before = dropped.len();
        let most = longest.packets.len().div_ceil(2).min(MOST_DROPPED);
        for (packet, _) in longest.packets.drain(..most) {
            longest.bytes -= packet.len();
            dropped.push(packet);
        }
        self.forget(&dropped[before..]);
    }
}

impl Flow {
    fn pop(&mut self, now: Nanos, dropped: &mut Vec<Packet>) -> Option<Packet> {
        loop {
            let (packet, since) = self.packets.pop_front()?;
            self.bytes -= packet.len();
            let waited = now.saturating_sub(since);
            // A last packet is let go however long it has waited: nothing is behind it.
            if !self.codel.drops(waited, self.bytes < QUANTUM as usize, now) {
                return Some(packet);
            }
            dropped.push(packet);
        }
    }
}

/// One flow's controlled delay.
#[derive(Default)]
struct CoDel {
    /// When packets will have waited too long for a whole interval.
    due: Option<Nanos>,
    dropping: bool,
    next_drop: Nanos,
    count: u32,
    last_count: u32,
}

impl CoDel {
    /// Whether the packet that was just taken, after waiting so long, is to be dropped.
    fn drops(&mut self, waited: Nanos, is_short: bool, now: Nanos) -> bool {
        let is_late = self.is_late(waited, is_short, now);
        if !is_late {
            self.dropping = false;
            return false;
        }
        if self.dropping {
            let drops = now >= self.next_drop;
            if drops {
                self.count += 1;
                self.next_drop += control_law(self.count);
            }
            return drops;
        }
        self.dropping = true;
        // One that was dropping until a moment ago goes on where it was.
        let recently = now.saturating_sub(self.next_drop) < 16 * INTERVAL;
        let since = self.count.saturating_sub(self.last_count);
        self.count = if recently && since > 1 { since } else { 1 };
        self.last_count = self.count;
        self.next_drop = now + control_law(self.count);
        true
    }

    fn is_late(&mut self, waited: Nanos, is_short: bool, now: Nanos) -> bool {
        if waited < TARGET || is_short {
            self.due = None;
            return false;
        }
        let due = *self.due.get_or_insert(now + INTERVAL);
        now >= due
    }
}

/// The time to the next drop, the shorter the more there were.
fn control_law(count: u32) -> Nanos {
    (INTERVAL as f64 / f64::from(count).sqrt()) as Nanos
}

impl Budget {
    /// As many bytes for all queues that share it.
    pub fn new(bytes: usize) -> Arc<Budget> {
        Arc::new(Budget { used: AtomicUsize::new(0), bytes })
    }
}

/// Bytes of a turn.
const QUANTUM: i64 = 1514;
const TARGET: Nanos = SECOND / 200;
const INTERVAL: Nanos = SECOND / 10;

/// What a queue may take of memory, however little is left, and however much: a thousand packets.
const LEAST: usize = 64 << 10;
const MOST: usize = 2 << 20;
/// Packets that are dropped at once.
const MOST_DROPPED: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{LocalPool, Pool};
    use crate::seeded::Seeded;

    const MILLISECOND: Nanos = SECOND / 1000;

    /// A packet whose first byte is its flow's number, and the next four its own.
    fn packet(pool: &mut LocalPool, flow: u8, number: u32, len: usize) -> Packet {
        let mut packet = pool.packet(len);
        packet[0] = flow;
        packet[1..5].copy_from_slice(&number.to_be_bytes());
        packet
    }

    fn number(packet: &Packet) -> u32 {
        u32::from_be_bytes(*packet[1..].first_chunk().unwrap())
    }

    #[test]
    fn a_flow_that_begins_comes_before_a_long_queue() {
        let (mut pool, mut queue) = (Pool::new(64).local(), FairQueue::new(Budget::new(MOST * 4)));
        let mut none = Vec::new();
        (0..500).for_each(|each| queue.push(1, packet(&mut pool, 1, each, 1400), 0, &mut none));
        assert_eq!(queue.pop(0, &mut none).unwrap()[0], 1);
        queue.push(2, packet(&mut pool, 2, 0, 84), 0, &mut none);
        let flows: Vec<u8> = (0..4).map(|_| queue.pop(0, &mut none).unwrap()[0]).collect();
        assert!(flows[..3].contains(&2), "{flows:?}");
        assert!(none.is_empty());
    }

    #[test]
    fn flows_share_by_bytes_and_keep_their_order() {
        let (mut pool, mut queue) = (Pool::new(64).local(), FairQueue::new(Budget::new(MOST * 4)));
        for each in 0..500 {
            queue.push(1, packet(&mut pool, 1, each, 1400), 0, &mut Vec::new());
            queue.push(2, packet(&mut pool, 2, each, 200), 0, &mut Vec::new());
        }
        let (mut bytes, mut next) = ([0; 3], [0; 3]);
        for _ in 0..400 {
            let packet = queue.pop(0, &mut Vec::new()).unwrap();
            let flow = usize::from(packet[0]);
            assert_eq!(number(&packet), next[flow]);
            next[flow] += 1;
            bytes[flow] += packet.len();
        }
        assert!(bytes[1].abs_diff(bytes[2]) <= 2 * QUANTUM as usize, "{bytes:?}");
    }

    #[test]
    fn a_full_queue_drops_the_oldest_of_the_longest() {
        let (mut pool, mut queue) = (Pool::new(64).local(), FairQueue::new(Budget::new(0)));
        let full = (LEAST / packet(&mut pool, 0, 0, 1400).footprint()) as u32;
        let mut dropped = Vec::new();
        (1..full).for_each(|each| queue.push(1, packet(&mut pool, 1, each, 1400), 0, &mut dropped));
        queue.push(2, packet(&mut pool, 2, 0, 84), 0, &mut dropped);
        assert!(dropped.is_empty());
        queue.push(2, packet(&mut pool, 2, 1, 84), 0, &mut dropped);
        let gone: Vec<_> = dropped.iter().map(|packet| (packet[0], number(packet))).collect();
        assert_eq!(gone, (1..=gone.len() as u32).map(|each| (1, each)).collect::<Vec<_>>());
        assert_eq!(
            (gone.len(), queue.len()),
            (full.div_ceil(2).min(16) as usize, full as usize + 1 - gone.len())
        );
    }

    #[test]
    fn the_more_queues_are_long_the_shorter_all_are() {
        let (mut pool, budget) = (Pool::new(64).local(), Budget::new(4 * MOST));
        let mut queues: Vec<_> = (0..40).map(|_| FairQueue::new(budget.clone())).collect();
        let mut dropped = Vec::new();
        for queue in &mut queues {
            (0..2000).for_each(|each| queue.push(1, packet(&mut pool, 1, each, 1400), 0, &mut dropped));
            assert!((LEAST - 40_000..=MOST).contains(&queue.footprint), "{}", queue.footprint);
        }
        assert!(queues[0].footprint > MOST - 40_000, "one alone may have all that a queue may");
        let all: usize = queues.iter().map(|queue| queue.footprint).sum();
        assert_eq!(budget.used.load(Ordering::Relaxed), all);
        assert!(all <= 4 * MOST + 40 * LEAST, "{all}");
        queues.iter_mut().for_each(|queue| drop(queue.drain()));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    /// A bulk flow faster than the way: what waits is dropped from the front until the wait is short.
    #[test]
    fn a_standing_queue_is_cut_down_and_a_burst_is_not() {
        let (mut pool, mut queue) = (Pool::new(2000).local(), FairQueue::new(Budget::new(MOST * 4)));
        let (mut dropped, mut now) = (Vec::new(), 0);
        (0..200).for_each(|each| queue.push(1, packet(&mut pool, 1, each, 1400), now, &mut dropped));
        // A burst that is gone within an interval loses nothing.
        for _ in 0..200 {
            now += MILLISECOND / 3;
            queue.pop(now, &mut dropped).unwrap();
        }
        assert!(dropped.is_empty() && queue.is_empty());
        // One packet a millisecond leaves; one comes for each, behind a hundred that stand there.
        (0..100).for_each(|each| queue.push(1, packet(&mut pool, 1, each, 1400), now, &mut dropped));
        for each in 0..5000 {
            now += MILLISECOND;
            queue.push(1, packet(&mut pool, 1, each, 1400), now, &mut dropped);
            queue.pop(now, &mut dropped).unwrap();
        }
        assert!(queue.len() < 20, "{} wait", queue.len());
        assert!((80..=110).contains(&dropped.len()), "{} dropped", dropped.len());
    }

    #[test]
    fn whatever_comes_is_let_go_or_dropped_once() {
        let (mut pool, mut now) = (Pool::new(2000).local(), 0);
        for seed in 0..50 {
            let mut random = Seeded(seed);
            let budget = Budget::new(random.below(600_000));
            let mut queue = FairQueue::new(budget.clone());
            let (mut came, mut went, mut dropped) = (0, 0, Vec::new());
            for each in 0..3000 {
                now += random.below(3_000_000) as Nanos;
                if random.below(5) < 3 {
                    let flow = random.below(8) as u8;
                    let len = 5 + random.below(1400);
                    came += 1;
                    queue.push(flow.into(), packet(&mut pool, flow, each, len), now, &mut dropped);
                } else {
                    went += usize::from(queue.pop(now, &mut dropped).is_some());
                }
                assert_eq!(came, went + dropped.len() + queue.len(), "seed {seed}");
            }
            while queue.pop(now, &mut dropped).is_some() {
                went += 1;
            }
            assert!(
                queue.is_empty() && queue.flows.is_empty() && queue.old.is_empty() && queue.new.is_empty()
            );
            assert_eq!(came, went + dropped.len(), "seed {seed}");
            assert_eq!((queue.footprint, budget.used.load(Ordering::Relaxed)), (0, 0));
        }
    }
}
