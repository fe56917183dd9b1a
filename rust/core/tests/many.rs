//! Many writers and many readers on one device: nothing is lost, repeated, torn or out of order.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use ginnel_core::device::{Device, End, Kind, Side};
use ginnel_core::packet::{LocalPool, Packet, Pool};

const WRITERS: usize = 8;
const READERS: usize = 8;
const BATCH: usize = 64;
const QUEUE: usize = 500;

/// What all threads see: how often each packet was read, and how many are on their way.
struct Field {
    seen: Vec<Vec<AtomicU8>>,
    on_their_way: AtomicUsize,
    done: AtomicBool,
}

/// How many packets in all: a million, or GINNEL_PACKETS.
fn total() -> usize {
    std::env::var("GINNEL_PACKETS").map_or(1_000_000, |text| text.parse().expect("a number of packets"))
}

#[test]
fn each_packet_once_whole_and_in_its_writers_order() {
    let pool = Pool::new(8192);
    let device = Device::new(Kind::Tun, 1500, QUEUE);
    let application = device.attach(Side::Application).unwrap();
    let interface = device.attach(Side::Interface).unwrap();
    device.set_up(true);
    let each = total() / WRITERS;
    let field = Field {
        seen: (0..WRITERS).map(|_| (0..each).map(|_| AtomicU8::new(0)).collect()).collect(),
        on_their_way: AtomicUsize::new(0),
        done: AtomicBool::new(false),
    };
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| read(&application, &field, pool.local()));
        }
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (interface, field, pool) = (&interface, &field, pool.local());
                scope.spawn(move || write(interface, field, writer, each, pool))
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        while field.on_their_way.load(Ordering::SeqCst) > 0 && !field.done.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        field.done.store(true, Ordering::SeqCst);
    });
    println!("{:.1} million packets a second", total() as f64 / 1e6 / began.elapsed().as_secs_f64());
    assert!(field.seen.iter().flatten().all(|times| times.load(Ordering::Relaxed) == 1));
    let counted = device.statistics().sent;
    assert_eq!((counted.packets, counted.dropped, counted.errors), ((each * WRITERS) as u64, 0, 0));
}

/// Paced by the readers: never more on their way than the queue holds.
fn write(end: &End, field: &Field, writer: usize, count: usize, mut pool: LocalPool) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut number = 0;
    while number < count && !field.done.load(Ordering::SeqCst) {
        let wanted = BATCH.min(count - number);
        if field.on_their_way.fetch_add(wanted, Ordering::SeqCst) + wanted > QUEUE {
            field.on_their_way.fetch_sub(wanted, Ordering::SeqCst);
            thread::yield_now();
            continue;
        }
        batch.extend((number..number + wanted).map(|number| packet(&mut pool, writer, number)));
        assert_eq!(end.send(&mut batch), Ok(wanted));
        number += wanted;
    }
}

/// Dropped, everybody stops: also when a check has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn read(end: &End, field: &Field, mut pool: LocalPool) {
    let _stop = Stop(&field.done);
    let mut last = [None; WRITERS];
    let mut batch = Vec::with_capacity(BATCH);
    while !field.done.load(Ordering::SeqCst) {
        let count = end.receive(&mut batch, BATCH).unwrap();
        if count == 0 {
            thread::yield_now();
        }
        for packet in &batch {
            let (writer, number) = content(packet);
            assert!(last[writer] < Some(number), "writer {writer}: {number} after {:?}", last[writer]);
            last[writer] = Some(number);
            field.seen[writer][number].fetch_add(1, Ordering::Relaxed);
        }
        field.on_their_way.fetch_sub(count, Ordering::SeqCst);
        pool.recycle_all(batch.drain(..));
    }
}

/// Of a length and a content that both follow from its writer and number.
fn packet(pool: &mut LocalPool, writer: usize, number: usize) -> Packet {
    let mut packet = pool.packet(16 + number % 48);
    packet.fill(number as u8);
    packet[0] = 0x45;
    packet[1] = writer as u8;
    packet[2..6].copy_from_slice(&(number as u32).to_be_bytes());
    packet
}

fn content(packet: &[u8]) -> (usize, usize) {
    let number = u32::from_be_bytes(packet[2..6].try_into().unwrap()) as usize;
    assert_eq!(packet.len(), 16 + number % 48);
    assert!(packet[6..].iter().all(|&byte| byte == number as u8));
    (packet[1].into(), number)
}
