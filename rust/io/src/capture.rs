//! Packets on their way through a device, written to a pcapng file.
//!
//! Whoever moves a packet leaves a copy in a bounded buffer, as the file will have it; a thread
//! writes the buffer out. Neither waits for the other: what finds no room, or no space on the disk,
//! is counted and noted in the file. Format: draft-ietf-opsawg-pcapng.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
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

/// What a capture sees, until it is closed.
enum Watched {
    Memory(Arc<Device>),
    Kernel(Arc<Observers>),
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
    /// Packets that passed and are not in the file.
    pub lost: u64,
}

impl Capture {
    /// Begins a capture in an empty file. `name` is the interface's.
    pub fn start(mut file: File, kind: Kind, name: &str) -> io::Result<Capture> {
        file.write_all(&header(kind, name))?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { running: true, ..State::default() }),
            wake: Condvar::new(),
            failed: Waker::new()?,
        });
        let writer = Writer { file, shared: shared.clone() };
        let thread = thread::Builder::new().name("ginnel-capture".into()).spawn(move || writer.run())?;
        Ok(Capture { shared, thread: Mutex::new(Some(thread)), watched: Mutex::default() })
    }

    /// Notes every packet of a device from now on, until the capture is closed.
    pub fn observe(&self, device: &Arc<Device>) {
        device.set_observers(self.tap(Direction::Outbound), self.tap(Direction::Inbound));
        lock(&self.watched).push(Watched::Memory(device.clone()));
    }

    /// The same for a device of the kernel's.
    pub fn observe_kernel(&self, observers: &Arc<Observers>) {
        observers.set(self.tap(Direction::Outbound), self.tap(Direction::Inbound));
        lock(&self.watched).push(Watched::Kernel(observers.clone()));
    }

    /// Notes one packet.
    pub fn note(&self, packet: &[u8], direction: Direction) {
        self.shared.note(&[packet], 0, direction);
    }

    pub fn statistics(&self) -> Statistics {
        self.shared.lock().statistics
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
                Watched::Memory(device) => device.set_observers(None, None),
                Watched::Kernel(observers) => observers.set(None, None),
            }
        }
        let Some(thread) = lock(&self.thread).take() else { return };
        self.shared.lock().running = false;
        self.shared.wake.notify_one();
        let _ = thread.join();
    }

    fn tap(&self, direction: Direction) -> Option<Arc<dyn Observer>> {
        Some(Arc::new(Tap { shared: self.shared.clone(), direction }))
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
    direction: Direction,
}

impl Observer for Tap {
    fn pushed(&self, packets: &[Packet], dropped: u64) {
        self.shared.note(packets, dropped, self.direction);
    }
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    failed: Waker,
}

#[derive(Default)]
struct State {
    /// Blocks that wait to be written.
    blocks: Vec<u8>,
    /// Packets that the device dropped, or that found no room here, since the last block.
    missing: u64,
    statistics: Statistics,
    failure: Option<i32>,
    running: bool,
    asleep: bool,
}

impl Shared {
    fn note<P: AsRef<[u8]>>(&self, packets: &[P], dropped: u64, direction: Direction) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let mut state = self.lock();
        state.statistics.packets += packets.len() as u64;
        for packet in packets {
            let packet = packet.as_ref();
            if state.blocks.len() + packet.len() + PACKET_OVERHEAD > MAX_WAITING {
                state.statistics.lost += 1;
                state.missing += 1;
                continue;
            }
            let missing = std::mem::take(&mut state.missing);
            packet_block(&mut state.blocks, packet, time, direction, missing);
        }
        state.statistics.dropped += dropped;
        state.missing += dropped;
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
            if state.blocks.is_empty() {
                let statistics = state.statistics;
                drop(state);
                let _ = self.append(&statistics_block(statistics));
                return;
            }
            std::mem::swap(&mut blocks, &mut state.blocks);
            drop(state);
            if let Err((error, lost)) = self.append(&blocks) {
                self.note_failure(&error, lost);
            }
            blocks.clear();
        }
    }

    /// Whole blocks only: half of one would spoil the file. On an error, how many are not there.
    fn append(&mut self, blocks: &[u8]) -> Result<(), (io::Error, u64)> {
        let start = self.file.stream_position();
        let mut written = 0;
        while written < blocks.len() {
            match self.write(&blocks[written..]) {
                Ok(count) => written += count,
                Err(error) => {
                    let (whole, lost) = split(blocks, written);
                    if let Ok(start) = start {
                        let _ = self.file.set_len(start + whole as u64);
                        let _ = self.file.seek(SeekFrom::Start(start + whole as u64));
                    }
                    return Err((error, lost));
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

    fn note_failure(&self, error: &io::Error, count: u64) {
        let mut state = self.shared.lock();
        state.statistics.lost += count;
        state.missing += count;
        if state.failure.is_none() {
            state.failure = Some(error.raw_os_error().unwrap_or(libc::EIO));
            self.shared.failed.wake();
        }
    }
}

/// Where the last block ends that lies within the first `written` bytes, and how many follow it.
fn split(blocks: &[u8], written: usize) -> (usize, u64) {
    let (mut start, mut whole, mut lost) = (0, 0, 0);
    while let Some(len) = blocks.get(start + 4..start + 8) {
        start += u32::from_ne_bytes(len.try_into().expect("4 bytes")) as usize;
        if start <= written { whole = start } else { lost += 1 }
    }
    (whole, lost)
}

/// Section header and interface description.
fn header(kind: Kind, name: &str) -> Vec<u8> {
    let mut blocks = Vec::new();
    block(&mut blocks, SECTION_HEADER, |body| {
        body.extend(BYTE_ORDER.to_ne_bytes());
        body.extend(1u16.to_ne_bytes());
        body.extend(0u16.to_ne_bytes());
        body.extend(u64::MAX.to_ne_bytes());
        option(body, SECTION_APPLICATION, b"ginnel");
        option(body, END, b"");
    });
    let link_type: u16 = match kind {
        Kind::Tun => LINKTYPE_RAW,
        Kind::Tap => LINKTYPE_ETHERNET,
    };
    block(&mut blocks, INTERFACE_DESCRIPTION, |body| {
        body.extend(link_type.to_ne_bytes());
        body.extend(0u16.to_ne_bytes());
        body.extend(0u32.to_ne_bytes());
        option(body, INTERFACE_NAME, name.as_bytes());
        option(body, INTERFACE_TIME_RESOLUTION, &[9]);
        option(body, END, b"");
    });
    blocks
}

/// Enhanced packet. `missing`: packets between the block before and this one that are not in the file.
fn packet_block(blocks: &mut Vec<u8>, packet: &[u8], time: u64, direction: Direction, missing: u64) {
    block(blocks, ENHANCED_PACKET, |body| {
        body.extend(0u32.to_ne_bytes());
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

fn statistics_block(statistics: Statistics) -> Vec<u8> {
    let mut blocks = Vec::new();
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    block(&mut blocks, INTERFACE_STATISTICS, |body| {
        body.extend(0u32.to_ne_bytes());
        timestamp(body, time);
        for (code, count) in [
            (STATISTICS_RECEIVED, statistics.packets + statistics.dropped),
            (STATISTICS_DROPPED, statistics.dropped),
            (STATISTICS_LOST, statistics.lost),
            (STATISTICS_DELIVERED, statistics.packets - statistics.lost),
        ] {
            option(body, code, &count.to_ne_bytes());
        }
        option(body, END, b"");
    });
    blocks
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
