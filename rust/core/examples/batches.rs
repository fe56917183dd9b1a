//! How many packets a second two threads move through a device in batches, and how that compares to
//! copying the same bytes as often as they are copied there: in by one thread, out by the other.
//!
//! The three take turns, and of each the median counts: a thread that has no processor for a moment keeps the other waiting.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use ginnel_core::device::{Device, Kind, Side};
use ginnel_core::packet::Pool;

const ROUNDS: usize = 9;
const PACKETS: usize = 1_000_000;
const BATCH: usize = 64;
const LEN: usize = 1400;
const QUEUE: usize = 500;

/// A name, and a run: packets a second.
type Way = (&'static str, fn() -> f64);

fn main() {
    let ways: [Way; 3] = [
        ("moved", || through_the_device(false)),
        ("copied", || through_the_device(true)),
        ("memcpy", by_memcpy),
    ];
    let mut rates = ways.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for ((_, run), rates) in ways.iter().zip(&mut rates) {
            rates.push(run());
        }
    }
    for ((name, _), rates) in ways.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        println!("{name} {:.0}", rates[ROUNDS / 2]);
    }
}

/// Packets a second. With `copy` their bytes are written and read too.
fn through_the_device(copy: bool) -> f64 {
    let pool = Pool::new(8192);
    let device = Device::new(Kind::Tun, 1500, QUEUE);
    let application = device.attach(Side::Application).expect("a free end");
    let interface = device.attach(Side::Interface).expect("a free end");
    device.set_up(true);
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut pool, mut batch, source) = (pool.local(), Vec::with_capacity(BATCH), [0x45; LEN]);
            while !stop.load(Ordering::Relaxed) {
                if interface.outgoing().room() < BATCH {
                    thread::yield_now();
                    continue;
                }
                for _ in 0..BATCH {
                    let mut packet = pool.packet(LEN);
                    if copy {
                        packet.copy_from_slice(&source)
                    } else {
                        packet[0] = 0x45
                    }
                    batch.push(packet);
                }
                interface.send(&mut batch).expect("the device is up");
            }
        });
        let (mut pool, mut batch, mut target) = (pool.local(), Vec::with_capacity(BATCH), [0; LEN]);
        let mut received = 0;
        while received < PACKETS {
            match application.receive(&mut batch, BATCH).expect("the device is there") {
                0 => thread::yield_now(),
                count => received += count,
            }
            for packet in &batch {
                if copy {
                    target.copy_from_slice(packet);
                    std::hint::black_box(&target);
                }
            }
            pool.recycle_all(batch.drain(..));
        }
        stop.store(true, Ordering::Relaxed);
    });
    PACKETS as f64 / began.elapsed().as_secs_f64()
}

/// The same with nothing but the two copies, through a ring about as long as the device's queue.
fn by_memcpy() -> f64 {
    let ring: Vec<_> = (0..QUEUE.div_ceil(BATCH)).map(|_| Mutex::new(vec![[0u8; LEN]; BATCH])).collect();
    let (written, read) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let batches = PACKETS / BATCH;
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let source = [0x45; LEN];
            for number in 0..batches {
                while number - read.load(Ordering::Acquire) == ring.len() {
                    thread::yield_now();
                }
                for slot in ring[number % ring.len()].lock().expect("no panic").iter_mut() {
                    slot.copy_from_slice(std::hint::black_box(&source));
                }
                written.store(number + 1, Ordering::Release);
            }
        });
        let mut target = [0; LEN];
        for number in 0..batches {
            while written.load(Ordering::Acquire) == number {
                thread::yield_now();
            }
            for slot in ring[number % ring.len()].lock().expect("no panic").iter() {
                target.copy_from_slice(std::hint::black_box(slot));
                std::hint::black_box(&target);
            }
            read.store(number + 1, Ordering::Release);
        }
    });
    (batches * BATCH) as f64 / began.elapsed().as_secs_f64()
}
