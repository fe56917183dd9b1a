//! How many packets a second two threads move through a device in batches, and how that compares to
//! copying the same bytes as often as they are copied there: in at one end, out at the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use ginnel_core::device::{Device, Kind, Side};
use ginnel_core::packet::Pool;

const PACKETS: usize = 4_000_000;
const BATCH: usize = 64;
const LEN: usize = 1400;
const QUEUE: usize = 500;

fn main() {
    let moved = through_the_device(false);
    let copied = through_the_device(true);
    let memcpy = by_memcpy();
    println!("moved {moved:.0}");
    println!("copied {copied:.0}");
    println!("memcpy {memcpy:.0}");
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

/// The same with nothing but the two copies, through a ring as large as the device's queue.
fn by_memcpy() -> f64 {
    let (source, mut target) = ([0x45; LEN], [0; LEN]);
    let mut ring = vec![[0u8; LEN]; QUEUE];
    let began = Instant::now();
    for number in 0..PACKETS {
        let slot = &mut ring[number % QUEUE];
        slot.copy_from_slice(std::hint::black_box(&source));
        target.copy_from_slice(std::hint::black_box(slot));
        std::hint::black_box(&target);
    }
    PACKETS as f64 / began.elapsed().as_secs_f64()
}
