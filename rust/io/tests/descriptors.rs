//! Many writers and many readers on the descriptor that a program is given: nothing is lost, repeated, torn or out
//! of order, either way.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread;

use ginnel_core::device::{Device, End, Kind, Side};
use ginnel_core::packet::Pool;
use ginnel_io::link::{Link, join, pair};
use rustix::io::Errno;

const WRITERS: usize = 8;
const READERS: usize = 8;
/// Fewer than a queue of the device holds, and a socket.
const ON_THEIR_WAY: usize = 200;
const QUEUE: usize = 500;

/// How many packets in all, each way: a hundred thousand, or GINNEL_PACKETS.
fn total() -> usize {
    std::env::var("GINNEL_PACKETS").map_or(100_000, |text| text.parse().expect("a number of packets"))
}

/// What all threads see: how often each packet was read, and how many are on their way.
struct Field {
    seen: Vec<Vec<AtomicU8>>,
    on_their_way: AtomicUsize,
    done: AtomicBool,
}

/// Where packets are written and read, one at a time. A packet or none, if none waits.
trait Packets: Sync {
    fn write(&self, packet: &[u8]);
    fn read(&self) -> Option<Vec<u8>>;
}

struct Interface {
    end: End,
    pool: std::sync::Arc<Pool>,
}

impl Packets for Interface {
    fn write(&self, packet: &[u8]) {
        assert_eq!(self.end.send(&mut vec![self.pool.local().packet_from(packet)]), Ok(1));
    }

    fn read(&self) -> Option<Vec<u8>> {
        let mut packets = Vec::new();
        self.end.receive(&mut packets, 1).unwrap();
        packets.first().map(|packet| packet.to_vec())
    }
}

struct Program(OwnedFd);

impl Packets for Program {
    fn write(&self, packet: &[u8]) {
        assert_eq!(rustix::io::write(&self.0, packet), Ok(packet.len()));
    }

    fn read(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 128];
        match rustix::io::read(&self.0, &mut buffer) {
            Ok(len) => Some(buffer[..len].to_vec()),
            Err(errno) => {
                assert_eq!(errno, Errno::AGAIN);
                None
            }
        }
    }
}

#[test]
fn each_packet_once_whole_and_in_its_writers_order_both_ways() {
    let pool = Pool::new(8192);
    let device = Device::new(Kind::Tun, 1500, QUEUE);
    let interface = Interface { end: device.attach(Side::Interface).unwrap(), pool: pool.clone() };
    device.set_up(true);
    let (ours, theirs) = pair().unwrap();
    join(device.attach(Side::Application).unwrap(), ours, &pool).unwrap();
    rustix::io::ioctl_fionbio(&theirs, true).unwrap();
    let program = Program(theirs);
    cross(&interface, &program);
    cross(&program, &interface);
    let (sent, received) = (device.statistics().sent, device.statistics().received);
    for counted in [sent, received] {
        let all = (total() / WRITERS * WRITERS) as u64;
        assert_eq!((counted.packets, counted.dropped, counted.errors), (all, 0, 0));
    }
}

/// No thread stands between: that is a wake-up less for whoever sleeps there.
#[test]
fn a_packet_lies_before_the_program_when_its_write_returns() {
    let pool = Pool::new(8);
    let device = Device::new(Kind::Tun, 1500, QUEUE);
    let interface = Interface { end: device.attach(Side::Interface).unwrap(), pool: pool.clone() };
    device.set_up(true);
    let (ours, theirs) = pair().unwrap();
    let link = Link::start(device, Side::Application, &pool).unwrap();
    link.add(ours, false).unwrap();
    // Asked twice, the link's thread has seen to what the first left it.
    assert!(link.gone().is_empty() && link.gone().is_empty());
    rustix::io::ioctl_fionbio(&theirs, true).unwrap();
    let program = Program(theirs);
    for number in 0..10_000 {
        interface.write(&packet(0, number));
        assert_eq!(program.read().map(|read| content(&read)), Some((0, number)));
    }
}

fn cross(from: &dyn Packets, to: &dyn Packets) {
    let each = total() / WRITERS;
    let field = Field {
        seen: (0..WRITERS).map(|_| (0..each).map(|_| AtomicU8::new(0)).collect()).collect(),
        on_their_way: AtomicUsize::new(0),
        done: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| read(to, &field));
        }
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let field = &field;
                scope.spawn(move || write(from, field, writer, each))
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        while field.on_their_way.load(Ordering::SeqCst) > 0 && !field.done.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        field.done.store(true, Ordering::SeqCst);
    });
    assert!(field.seen.iter().flatten().all(|times| times.load(Ordering::Relaxed) == 1));
}

/// Paced by the readers.
fn write(to: &dyn Packets, field: &Field, writer: usize, count: usize) {
    for number in 0..count {
        while field.on_their_way.fetch_add(1, Ordering::SeqCst) >= ON_THEIR_WAY {
            field.on_their_way.fetch_sub(1, Ordering::SeqCst);
            if field.done.load(Ordering::SeqCst) {
                return;
            }
            thread::yield_now();
        }
        to.write(&packet(writer, number));
    }
}

/// Dropped, everybody stops: also when a check has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn read(from: &dyn Packets, field: &Field) {
    let _stop = Stop(&field.done);
    let mut last = [None; WRITERS];
    while !field.done.load(Ordering::SeqCst) {
        let Some(packet) = from.read() else {
            thread::yield_now();
            continue;
        };
        let (writer, number) = content(&packet);
        assert!(last[writer] < Some(number), "writer {writer}: {number} after {:?}", last[writer]);
        last[writer] = Some(number);
        field.seen[writer][number].fetch_add(1, Ordering::Relaxed);
        field.on_their_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Of a length and a content that both follow from its writer and number.
fn packet(writer: usize, number: usize) -> Vec<u8> {
    let mut packet = vec![number as u8; 16 + number % 48];
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
