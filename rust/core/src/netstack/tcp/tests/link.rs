//! Two connections, a clock, and a wire each way that does what wires do.

use std::collections::{BTreeMap, BinaryHeap};

use crate::netstack::budget::Budget;
use crate::netstack::outbox::Outbox;
use crate::netstack::segment::{self, Segment, Tuple};
use crate::netstack::tcp::{Connection, Parameters, Transport};
use crate::netstack::{ip, tcp::Phase};
use crate::packet::{Packet, Pool};
pub use crate::seeded::Seeded;
use crate::{Nanos, SECOND};

pub const MILLI: Nanos = SECOND / 1000;
pub const BUDGET: usize = 64 << 20;

/// What one direction of the path does. Probabilities are in millionths.
#[derive(Clone, Copy)]
pub struct Path {
    pub delay: Nanos,
    /// Bytes a second.
    pub rate: u64,
    pub queue: usize,
    pub loss: u64,
    pub reorder: u64,
    pub duplicate: u64,
    pub corrupt: u64,
}

pub const UNLIMITED: u64 = u64::MAX;
pub const CLEAN: Path = Path {
    delay: 25 * MILLI,
    rate: UNLIMITED,
    queue: usize::MAX,
    loss: 0,
    reorder: 0,
    duplicate: 0,
    corrupt: 0,
};

pub struct Wire {
    pub path: Path,
    random: Seeded,
    free_at: Nanos,
    /// What is on its way, by when it arrives.
    pub flying: BTreeMap<(Nanos, u64), Vec<u8>>,
    leaving: BinaryHeap<std::cmp::Reverse<(Nanos, usize)>>,
    queued: usize,
    count: u64,
}

impl Wire {
    fn new(path: Path, seed: u64) -> Wire {
        Wire {
            path,
            random: Seeded(seed),
            free_at: 0,
            flying: BTreeMap::new(),
            leaving: BinaryHeap::new(),
            queued: 0,
            count: 0,
        }
    }

    /// True once in a million for each of `millionths`.
    fn happens(&mut self, millionths: u64) -> bool {
        self.random.next() % 1_000_000 < millionths
    }

    fn carry(&mut self, now: Nanos, packet: &[u8]) {
        let path = self.path;
        if self.happens(path.loss) {
            return;
        }
        while let Some(std::cmp::Reverse((at, len))) = self.leaving.peek().copied()
            && at <= now
        {
            self.leaving.pop();
            self.queued -= len;
        }
        let mut leaves = now;
        if path.rate != UNLIMITED {
            if self.queued + packet.len() > path.queue {
                return;
            }
            leaves = self.free_at.max(now) + packet.len() as u64 * SECOND / path.rate;
            self.free_at = leaves;
            self.queued += packet.len();
            self.leaving.push(std::cmp::Reverse((leaves, packet.len())));
        }
        let copies = 1 + usize::from(self.happens(path.duplicate));
        for _ in 0..copies {
            let late = if self.happens(path.reorder) { self.random.next() % (5 * MILLI) } else { 0 };
            let mut bytes = packet.to_vec();
            if self.happens(path.corrupt) {
                let at = self.random.next() as usize % bytes.len();
                bytes[at] ^= 1 << (self.random.next() % 8);
            }
            self.count += 1;
            self.flying.insert((leaves + path.delay + late, self.count), bytes);
        }
    }
}

/// Sees every packet that goes out, with its end; `false` loses it.
type Filter = Box<dyn FnMut(usize, &[u8]) -> bool>;

pub struct Pair {
    pub now: Nanos,
    pub ends: [Connection; 2],
    pub wires: [Wire; 2],
    pub budgets: [Budget; 2],
    pub filter: Filter,
    out: Outbox,
    pub began: Nanos,
}

impl Pair {
    pub fn new(path: Path, seed: u64) -> Pair {
        Pair::with_seeds(path, seed, (seed, seed + 1))
    }

    /// The lower halves of the seeds are the initial sequence numbers.
    pub fn with_seeds(path: Path, seed: u64, seeds: (u64, u64)) -> Pair {
        println!("seed {seed}");
        let budgets = [Budget::new(BUDGET), Budget::new(BUDGET)];
        let now = SECOND;
        let parameters = |side: usize, seed| {
            let ends = ["10.0.0.1:1000".parse().unwrap(), "10.0.0.2:2000".parse().unwrap()];
            let tuple = Tuple { local: ends[side], remote: ends[1 - side] };
            Parameters { tuple, floor: budgets[side].floor().unwrap(), mtu: 1500, seed }
        };
        let ends = [
            Connection::connect(parameters(0, seeds.0), now),
            Connection::accept(parameters(1, seeds.1), now),
        ];
        let wires = [Wire::new(path, seed ^ 0xaaaa), Wire::new(path, seed ^ 0x5555)];
        let mut out = Outbox::new(Pool::new(64).local());
        out.take(&mut Vec::new());
        Pair { now, ends, wires, budgets, filter: Box::new(|_, _| true), out, began: now }
    }

    pub fn packets(&mut self, side: usize) -> Vec<Packet> {
        while self.ends[side].output(self.now, &mut self.out) {}
        let mut packets = Vec::new();
        self.out.take(&mut packets);
        packets
    }

    /// Has both send what they have.
    pub fn flush(&mut self) {
        for side in 0..2 {
            for packet in self.packets(side) {
                if (self.filter)(side, &packet) {
                    self.wires[side].carry(self.now, &packet);
                }
            }
        }
    }

    /// Hands a packet to one end, as dispatch would.
    pub fn input(&mut self, side: usize, packet: &[u8]) {
        if let Some(segment) = parse(packet) {
            self.ends[side].input(self.now, packet, &segment);
        }
    }

    /// Goes to the next moment at which something happens. `false` when nothing ever will.
    pub fn step(&mut self) -> bool {
        self.step_until(Nanos::MAX)
    }

    /// As [`Pair::step`], but not past `limit`.
    pub fn step_until(&mut self, limit: Nanos) -> bool {
        self.flush();
        let arrivals = self.wires.iter().filter_map(|wire| wire.flying.keys().next().map(|(at, _)| *at));
        let timers = self.ends.iter().filter_map(|end| end.deadline(self.now));
        let Some(at) = arrivals.chain(timers).min().filter(|at| *at <= limit) else { return false };
        self.now = self.now.max(at);
        for side in 0..2 {
            while let Some(entry) = self.wires[side].flying.first_entry()
                && entry.key().0 <= self.now
            {
                let packet = entry.remove();
                self.input(1 - side, &packet);
            }
        }
        true
    }

    pub fn connect(&mut self) {
        while self.ends.iter().any(|end| end.phase() != Phase::Open) {
            assert!(self.step(), "no connection");
            assert!(self.now < 1000 * SECOND, "no connection in a long time");
        }
        self.began = self.now;
    }

    pub fn run_for(&mut self, time: Nanos) {
        let end = self.now + time;
        while self.step_until(end) {}
        self.now = self.now.max(end);
    }

    pub fn write(&mut self, side: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() && self.ends[side].writable() > 0 {
            let rest = &bytes[done..];
            let written = self.ends[side].write(|space| {
                let count = space.len().min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                (count, count)
            });
            done += written.expect("room was promised");
        }
        done
    }

    pub fn read(&mut self, side: usize, into: &mut Vec<u8>) {
        while self.ends[side].readable() > 0 {
            self.ends[side].read(|bytes| {
                into.extend_from_slice(bytes);
                (bytes.len(), ())
            });
        }
    }

    /// Carries `data[side]` from each side to the other and compares every byte. Returns the time taken.
    pub fn transfer(&mut self, data: [&[u8]; 2]) -> Nanos {
        let start = self.now;
        let mut sent = [0, 0];
        let mut got = [Vec::new(), Vec::new()];
        loop {
            for side in 0..2 {
                sent[side] += self.write(side, &data[side][sent[side]..]);
                self.read(side, &mut got[1 - side]);
            }
            if got[0].len() >= data[0].len() && got[1].len() >= data[1].len() {
                break;
            }
            assert!(self.step(), "stuck at {} and {}", got[0].len(), got[1].len());
            assert!(self.now < start + 10_000 * SECOND, "slow: {} and {}", got[0].len(), got[1].len());
        }
        assert!(got[0] == data[0] && got[1] == data[1], "bytes differ");
        self.now - start
    }

    /// Ends both sides, and checks that all memory is given back.
    pub fn finish(mut self) {
        self.ends[0].finish();
        self.ends[1].finish();
        while self.ends.iter().any(|end| !matches!(end.phase(), Phase::Lingering | Phase::Gone)) {
            assert!(self.step(), "no end");
        }
        let Pair { ends, budgets, .. } = self;
        drop(ends);
        assert_eq!((budgets[0].used(), budgets[1].used()), (0, 0));
    }

    pub fn timeouts(&self, side: usize) -> u64 {
        self.ends[side].sender.counts.timeouts
    }
}

pub fn parse(packet: &[u8]) -> Option<Segment> {
    let header = ip::parse(packet).ok()?;
    segment::parse(&header, &packet[..header.payload.end]).ok()
}

pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Seeded(seed);
    (0..len.div_ceil(8)).flat_map(|_| random.next().to_ne_bytes()).take(len).collect()
}
