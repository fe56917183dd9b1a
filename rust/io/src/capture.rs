//! Packets on their way through a device, written to a pcapng file.
//!
//! Whoever moves a packet leaves a copy in a bounded buffer, as the file will have it; a thread
//! writes the buffer out. Neither waits for the other: what finds no room, or no space on the disk,
//! is counted and noted in the file. Format: draft-ietf-opsawg-pcapng.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use ginnel_core::device::{Device, Kind};
use ginnel_core::packet::Packet;
use ginnel_core::queue::{Observer, Wake};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::tun::Observers;
use crate::wake::Waker;

/// A capture that is being written.
pub struct Capture {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    watched: Mutex<Vec<Watched>>,
}

/// What a capture sees, until it is closed. What is gone before needs no end.
enum Watched {
    Memory(Weak<Device>),
    Kernel(Weak<Observers>),
}

impl Watched {
    fn is_there(&self) -> bool {
        match self {
            Watched::Memory(device) => device.strong_count() > 0,
            Watched::Kernel(observers) => observers.strong_count() > 0,
        }
    }
}

/// Where a packet goes, as its interface sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Inbound = 1,
    Outbound = 2,
}

/// What a capture has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Packets that passed.
    pub packets: u64,
    /// Packets that the device dropped.
    pub dropped: u64,
    /// Those among them that it had taken before: they are among `packets`, too.
    dropped_later: u64,
    /// Packets that passed and are not in the file.
    pub lost: u64,
}

impl Capture {
    /// Begins a capture in an empty file. `name` is that of the first interface, whose number is 0.
    pub fn start(mut file: File, kind: Kind, name: &str) -> io::Result<Capture> {
        let first = Interface::new(kind, name);
        file.write_all(&[section_header(), first.description()].concat())?;
        let interfaces = vec![first];
        let shared = Arc::new(Shared {
            state: Mutex::new(State { running: true, interfaces, ..State::default() }),
            wake: Condvar::new(),
            failed: Waker::new()?,
        });
        let writer = Writer { file, shared: shared.clone(), described: 1 };
        let thread = thread::Builder::new().name("ginnel-capture".into()).spawn(move || writer.run())?;
        Ok(Capture { shared, thread: Mutex::new(Some(thread)), watched: Mutex::default() })
    }

    /// Notes every packet of a device from now on, until the capture is closed. With a `name` as an interface of
    /// this name: one that is described already, or another one.
    pub fn observe(&self, device: &Arc<Device>, name: Option<&str>) {
        let interface = name.map_or(0, |name| self.shared.lock().interface(device.kind(), name));
        device
            .set_observers(self.tap(interface, Direction::Outbound), self.tap(interface, Direction::Inbound));
        self.watch(Watched::Memory(Arc::downgrade(device)));
    }

    /// The same for a device of the kernel's, as the first interface.
    pub fn observe_kernel(&self, observers: &Arc<Observers>) {
        observers.set(self.tap(0, Direction::Outbound), self.tap(0, Direction::Inbound));
        self.watch(Watched::Kernel(Arc::downgrade(observers)));
    }

    /// Notes one packet of the first interface.
    pub fn note(&self, packet: &[u8], direction: Direction) {
        self.shared.note(0, &[packet], 0, direction);
    }

    /// Of all interfaces together.
    pub fn statistics(&self) -> Statistics {
        self.shared.lock().interfaces.iter().fold(Statistics::default(), |sum, interface| Statistics {
            packets: sum.packets + interface.statistics.packets,
            dropped: sum.dropped + interface.statistics.dropped,
            dropped_later: sum.dropped_later + interface.statistics.dropped_later,
            lost: sum.lost + interface.statistics.lost,
        })
    }

    /// The errno of the first write that failed. The capture goes on when writing succeeds again.
    pub fn failure(&self) -> Option<i32> {
        self.shared.failed.clear();
        self.shared.lock().failure
    }

    /// Readable when [`Capture::failure`] has something to say.
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.shared.failed.as_fd()
    }

    /// Writes what is left and ends. Idempotent.
    pub fn close(&self) {
        for watched in lock(&self.watched).drain(..) {
            match watched {
                Watched::Memory(device) => {
                    device.upgrade().inspect(|device| device.set_observers(None, None));
                }
                Watched::Kernel(observers) => {
                    observers.upgrade().inspect(|observers| observers.set(None, None));
                }
            }
        }
        let Some(thread) = lock(&self.thread).take() else { return };
        self.shared.lock().running = false;
        self.shared.wake.notify_one();
        let _ = thread.join();
    }

    fn watch(&self, what: Watched) {
        let mut watched = lock(&self.watched);
        watched.retain(Watched::is_there);
        watched.push(what);
    }

    fn tap(&self, interface: usize, direction: Direction) -> Option<Arc<dyn Observer>> {
        Some(Arc::new(Tap { shared: self.shared.clone(), interface, direction }))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.close();
    }
}

/// One direction of a device.
struct Tap {
    shared: Arc<Shared>,
    interface: usize,
    direction: Direction,
}

impl Observer for Tap {
    fn pushed(&self, packets: &[Packet], dropped: u64) {
        self.shared.note(self.interface, packets, dropped, self.direction);
    }

    fn lost(&self, count: u64) {
        let statistics = &mut self.shared.lock().interfaces[self.interface].statistics;
        statistics.dropped += count;
        statistics.dropped_later += count;
    }
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    failed: Waker,
}

#[derive(Default)]
struct State {
    interfaces: Vec<Interface>,
    /// Blocks that wait to be written.
    blocks: Vec<u8>,
    failure: Option<i32>,
    running: bool,
    asleep: bool,
}

/// What the file says of an interface.
struct Interface {
    kind: Kind,
    name: String,
    /// Packets that the device dropped, or that found no room here, since its last block.
    missing: u64,
    statistics: Statistics,
}

impl State {
    /// The number of the interface of this kind and name, which is new or known. Past very many names the last.
    fn interface(&mut self, kind: Kind, name: &str) -> usize {
        let of_kind = |interface: &Interface| interface.kind == kind;
        if let Some(known) = self.interfaces.iter().position(|each| of_kind(each) && each.name == name) {
            return known;
        }
        match self.interfaces.iter().rposition(of_kind) {
            Some(last) if self.interfaces.len() >= MAX_INTERFACES => last,
            _ => {
                self.interfaces.push(Interface::new(kind, name));
                self.interfaces.len() - 1
            }
        }
    }
}

impl Shared {
    fn note<P: AsRef<[u8]>>(&self, interface: usize, packets: &[P], dropped: u64, direction: Direction) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let mut state = self.lock();
        let State { interfaces, blocks, .. } = &mut *state;
        let Interface { missing, statistics, .. } = &mut interfaces[interface];
        statistics.packets += packets.len() as u64;
        for packet in packets {
            let packet = packet.as_ref();
            if blocks.len() + packet.len() + PACKET_OVERHEAD > MAX_WAITING {
                statistics.lost += 1;
                *missing += 1;
                continue;
            }
            packet_block(blocks, interface, packet, time, direction, std::mem::take(missing));
        }
        statistics.dropped += dropped;
        *missing += dropped;
        if state.asleep && !state.blocks.is_empty() {
            state.asleep = false;
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

struct Writer {
    file: File,
    shared: Arc<Shared>,
    /// As many interfaces the file knows.
    described: usize,
}

impl Writer {
    fn run(mut self) {
        let mut blocks = Vec::new();
        loop {
            let mut state = self.shared.lock();
            while state.blocks.is_empty() && state.running {
                state.asleep = true;
                state = self.shared.wake.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            state.asleep = false;
            let descriptions: Vec<Vec<u8>> =
                state.interfaces[self.described..].iter().map(Interface::description).collect();
            if state.blocks.is_empty() {
                let statistics: Vec<Vec<u8>> =
                    state.interfaces.iter().enumerate().map(|(number, each)| each.summary(number)).collect();
                drop(state);
                if self.describe(descriptions).is_ok() {
                    let _ = self.append(&statistics.concat());
                }
                return;
            }
            std::mem::swap(&mut blocks, &mut state.blocks);
            drop(state);
            let described = self.describe(descriptions).map_err(|error| (error, &blocks[..]));
            if let Err((error, lost)) = described.and_then(|()| self.append(&blocks)) {
                self.note_failure(&error, lost);
            }
            blocks.clear();
        }
    }

    /// Whole blocks only: half of one would spoil the file. On an error, those that are not there.
    fn append<'a>(&mut self, blocks: &'a [u8]) -> Result<(), (io::Error, &'a [u8])> {
        let start = self.file.stream_position();
        let mut written = 0;
        while written < blocks.len() {
            match self.write(&blocks[written..]) {
                Ok(count) => written += count,
                Err(error) => {
                    let whole = whole_blocks(blocks, written);
                    if let Ok(start) = start {
                        let _ = self.file.set_len(start + whole as u64);
                        let _ = self.file.seek(SeekFrom::Start(start + whole as u64));
                    }
                    return Err((error, &blocks[whole..]));
                }
            }
        }
        Ok(())
    }

    /// Waits for whoever reads a pipe, but not once the capture is closed.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.shared.lock().running => {
                    poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], Some(&LOOK_AGAIN))?;
                }
                result => return result,
            }
        }
    }

    /// What an interface is comes before its packets.
    fn describe(&mut self, descriptions: Vec<Vec<u8>>) -> io::Result<()> {
        for description in descriptions {
            self.append(&description).map_err(|(error, _)| error)?;
            self.described += 1;
        }
        Ok(())
    }

    fn note_failure(&self, error: &io::Error, lost: &[u8]) {
        let mut state = self.shared.lock();
        for block in each_block(lost) {
            let interface = &mut state.interfaces[interface_of(block)];
            interface.statistics.lost += 1;
            interface.missing += 1;
        }
        if state.failure.is_none() {
            state.failure = Some(error.raw_os_error().unwrap_or(libc::EIO));
            self.shared.failed.wake();
        }
    }
}

/// How many bytes the blocks have that lie within the first `written` bytes.
fn whole_blocks(blocks: &[u8], written: usize) -> usize {
    let ends = each_block(blocks).scan(0, |end, block| {
        *end += block.len();
        Some(*end)
    });
    ends.take_while(|&end| end <= written).last().unwrap_or(0)
}

fn each_block(mut blocks: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (block, rest) = blocks.split_at_checked(number_at(blocks, 4)?)?;
        blocks = rest;
        Some(block)
    })
}

/// The interface of a packet's block.
fn interface_of(block: &[u8]) -> usize {
    number_at(block, 8).unwrap_or(0)
}

fn number_at(blocks: &[u8], place: usize) -> Option<usize> {
    let bytes = blocks.get(place..place + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().expect("4 bytes")) as usize)
}

fn section_header() -> Vec<u8> {
    let mut blocks = Vec::new();
    block(&mut blocks, SECTION_HEADER, |body| {
        body.extend(BYTE_ORDER.to_ne_bytes());
        body.extend(1u16.to_ne_bytes());
        body.extend(0u16.to_ne_bytes());
        body.extend(u64::MAX.to_ne_bytes());
        option(body, SECTION_APPLICATION, b"ginnel");
        option(body, END, b"");
    });
    blocks
}

impl Interface {
    fn new(kind: Kind, name: &str) -> Interface {
        Interface { kind, name: name.to_owned(), missing: 0, statistics: Statistics::default() }
    }

    /// Interface description.
    fn description(&self) -> Vec<u8> {
        let mut blocks = Vec::new();
        let link_type: u16 = match self.kind {
            Kind::Tun => LINKTYPE_RAW,
            Kind::Tap => LINKTYPE_ETHERNET,
        };
        block(&mut blocks, INTERFACE_DESCRIPTION, |body| {
            body.extend(link_type.to_ne_bytes());
            body.extend(0u16.to_ne_bytes());
            body.extend(0u32.to_ne_bytes());
            option(body, INTERFACE_NAME, self.name.as_bytes());
            option(body, INTERFACE_TIME_RESOLUTION, &[9]);
            option(body, END, b"");
        });
        blocks
    }

    /// Interface statistics. Received is whatever was written to the device.
    fn summary(&self, number: usize) -> Vec<u8> {
        let mut blocks = Vec::new();
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let Statistics { packets, dropped, dropped_later, lost } = self.statistics;
        block(&mut blocks, INTERFACE_STATISTICS, |body| {
            body.extend((number as u32).to_ne_bytes());
            timestamp(body, time);
            for (code, count) in [
                (STATISTICS_RECEIVED, packets + dropped - dropped_later),
                (STATISTICS_DROPPED, dropped),
                (STATISTICS_LOST, lost),
                (STATISTICS_DELIVERED, packets - lost),
            ] {
                option(body, code, &count.to_ne_bytes());
            }
            option(body, END, b"");
        });
        blocks
    }
}

/// Enhanced packet. `missing`: packets between the interface's block before and this one that are not in the file.
fn packet_block(
    blocks: &mut Vec<u8>,
    interface: usize,
    packet: &[u8],
    time: u64,
    direction: Direction,
    missing: u64,
) {
    block(blocks, ENHANCED_PACKET, |body| {
        body.extend((interface as u32).to_ne_bytes());
        timestamp(body, time);
        body.extend((packet.len() as u32).to_ne_bytes());
        body.extend((packet.len() as u32).to_ne_bytes());
        body.extend(packet);
        pad(body);
        option(body, PACKET_FLAGS, &(direction as u32).to_ne_bytes());
        if missing > 0 {
            option(body, PACKET_DROP_COUNT, &missing.to_ne_bytes());
        }
        option(body, END, b"");
    });
}

fn block(blocks: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = blocks.len();
    blocks.extend(kind.to_ne_bytes());
    blocks.extend([0; 4]);
    body(blocks);
    let len = (blocks.len() - start + 4) as u32;
    blocks[start + 4..start + 8].copy_from_slice(&len.to_ne_bytes());
    blocks.extend(len.to_ne_bytes());
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_ne_bytes());
    body.extend((value.len() as u16).to_ne_bytes());
    body.extend(value);
    pad(body);
}

/// Every block begins at a multiple of four, and so does what is padded in it.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

fn timestamp(body: &mut Vec<u8>, time: u64) {
    body.extend(((time >> 32) as u32).to_ne_bytes());
    body.extend((time as u32).to_ne_bytes());
}

/// A lock whose poison is ignored: no invariant spans a panic here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Bytes that wait for the disk at most.
const MAX_WAITING: usize = 16 << 20;
/// How long a pipe that is full goes unwatched by one who may close the capture.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Interfaces that a file describes.
const MAX_INTERFACES: usize = 1024;
/// A packet's block without the packet.
const PACKET_OVERHEAD: usize = 64;

const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const END: u16 = 0;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_TIME_RESOLUTION: u16 = 9;
const PACKET_FLAGS: u16 = 2;
const PACKET_DROP_COUNT: u16 = 4;
const STATISTICS_RECEIVED: u16 = 4;
const STATISTICS_DROPPED: u16 = 5;
const STATISTICS_LOST: u16 = 7;
const STATISTICS_DELIVERED: u16 = 8;
const LINKTYPE_ETHERNET: u16 = 1;
const LINKTYPE_RAW: u16 = 101;
