//! The loop of a bridge: one thread that carries frames between the ends of TAP devices.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use ginnel_core::Nanos;
use ginnel_core::bridge::{Bridge, Loop as Closed, PortCounters, PortId, Way};
use ginnel_core::device::{End, Kind};
use ginnel_core::netstack::ethernet::Mac;
use ginnel_core::packet::{LocalPool, MAX_LEN, Packet, Pool};
use ginnel_core::queue::Wake;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::calls::Calls;
use crate::packet_file::{BUFFER, PacketFile};
use crate::prompt::take_short_turns;
use crate::wake::Waker;

/// A bridge on a thread of its own.
pub struct Switch {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    calls: Calls<Loop>,
    /// Readable while a port was closed, and nobody has asked which.
    ready: Waker,
}

/// What a bridge tells of itself.
pub struct Snapshot {
    /// Each port: its number, whether it is closed for now, its counters.
    pub ports: Vec<(PortId, bool, PortCounters)>,
    /// Stations, their ports, nanoseconds since each was heard.
    pub stations: Vec<(Mac, PortId, Nanos)>,
    /// Stations that had to make room for others.
    pub crowded: u64,
}

impl Switch {
    /// Starts a bridge without ports.
    pub fn start(most_stations: usize, ageing: Nanos, random: u64, pool: &Arc<Pool>) -> io::Result<Switch> {
        let wake = Arc::new(Waker::new()?);
        let shared = Arc::new(Shared { calls: Calls::new(wake.clone()), ready: Waker::new()? });
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        let mut inner = Loop {
            epoll,
            bridge: Bridge::new(most_stations, ageing, random),
            ports: BTreeMap::new(),
            incoming: Vec::with_capacity(BATCH),
            pool: pool.local(),
            origin: Instant::now(),
            busy: false,
            running: true,
            wake,
            shared: shared.clone(),
        };
        let thread = thread::Builder::new().name("ginnel-bridge".into()).spawn(move || {
            take_short_turns();
            inner.run();
        })?;
        Ok(Switch { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Joins an end of a TAP device, which is held until the port is removed.
    pub fn add(&self, end: End) -> Result<PortId, Errno> {
        if end.device().kind() != Kind::Tap {
            return Err(Errno::INVAL);
        }
        self.shared.calls.call(move |inner| inner.add(Joined::Memory(end))).ok_or(Errno::BADFD)?
    }

    /// Joins a descriptor of frames, such as a kernel's TAP device has, which is held until the port is removed.
    pub fn add_file(&self, file: Arc<PacketFile>) -> Result<PortId, Errno> {
        self.shared.calls.call(move |inner| inner.add(Joined::File(file))).ok_or(Errno::BADFD)?
    }

    /// Removes a port, and gives its end back. `false`: there is none of this number.
    pub fn remove(&self, port: PortId) -> bool {
        self.shared.calls.call(move |inner| inner.remove(port)).unwrap_or(false)
    }

    /// `None` once it is closed.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.shared.calls.call(|inner| {
            let now = inner.now();
            let Loop { bridge, .. } = inner;
            Snapshot { ports: bridge.ports(now), stations: bridge.stations(now), crowded: bridge.crowded() }
        })
    }

    /// The ports that were closed because they lead back to the bridge, since the last call.
    pub fn loops(&self) -> Vec<Closed> {
        let take = |inner: &mut Loop| {
            inner.shared.ready.clear();
            inner.bridge.take_loops()
        };
        self.shared.calls.call(take).unwrap_or_default()
    }

    /// Readable while [`Switch::loops`] has something to say.
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.shared.ready.as_fd()
    }

    /// Gives all ends back and ends the thread. Idempotent.
    pub fn close(&self) {
        let Some(thread) = lock(&self.thread).take() else { return };
        let _ = self.shared.calls.call(|inner| inner.running = false);
        let _ = thread.join();
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the thread owns.
struct Loop {
    epoll: OwnedFd,
    bridge: Bridge,
    ports: BTreeMap<PortId, Port>,
    incoming: Vec<Packet>,
    pool: LocalPool,
    origin: Instant,
    /// A port may have more than was taken from it.
    busy: bool,
    running: bool,
    wake: Arc<Waker>,
    shared: Arc<Shared>,
}

struct Port {
    end: Joined,
    /// Whether frames may wait there. An end in memory is asked in each round, which costs nothing.
    waits: bool,
    /// Frames that leave in this round.
    outgoing: Vec<Packet>,
}

enum Joined {
    Memory(End),
    File(Arc<PacketFile>),
}

impl Joined {
    /// Takes frames that wait. Returns how many; an error is for good.
    fn receive(&self, frames: &mut Vec<Packet>, pool: &mut LocalPool) -> Result<usize, Errno> {
        let file = match self {
            Joined::Memory(end) => return end.receive(frames, BATCH).map_err(|_| Errno::BADFD),
            Joined::File(file) => file,
        };
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        for count in 0..BATCH {
            match file.read(&mut buffer)? {
                None => return Ok(count),
                // The other side of a socket is gone.
                Some([]) => return Err(Errno::BADFD),
                Some(frame) => frames.push(pool.packet_from(&frame[..frame.len().min(MAX_LEN)])),
            }
        }
        Ok(BATCH)
    }

    /// Gives frames away, and leaves those that find no room, or a device that is down.
    fn send(&self, frames: &mut Vec<Packet>, pool: &mut LocalPool) {
        match self {
            Joined::Memory(end) => drop(end.send(frames)),
            Joined::File(file) => {
                let (taken, left) = frames.drain(..).partition(|frame| file.write(frame).is_ok());
                pool.recycle_all(Vec::into_iter(taken));
                *frames = left;
            }
        }
    }
}

impl Loop {
    fn run(&mut self) {
        let mut ready = Vec::with_capacity(BATCH);
        while self.running {
            let patience = self.busy.then_some(Timespec { tv_sec: 0, tv_nsec: 0 });
            // Interrupted or not, the next turn looks at everything.
            let _ = epoll::wait(&self.epoll, spare_capacity(&mut ready), patience.as_ref());
            for event in ready.drain(..) {
                match event.data.u64() {
                    WAKE => self.wake.clear(),
                    port => self.ports.get_mut(&port).into_iter().for_each(|port| port.waits = true),
                }
            }
            self.shared.calls.take().into_iter().for_each(|call| call(self));
            self.turn();
        }
    }

    fn add(&mut self, end: Joined) -> Result<PortId, Errno> {
        if self.ports.len() == MOST_PORTS {
            return Err(Errno::NOSPC);
        }
        let port = self.bridge.add_port();
        let watched = match &end {
            Joined::Memory(end) => {
                let wake: Arc<dyn Wake> = self.wake.clone();
                end.incoming().set_reader(Some(wake));
                Ok(())
            }
            Joined::File(file) => {
                epoll::add(&self.epoll, &**file, epoll::EventData::new_u64(port), epoll::EventFlags::IN)
            }
        };
        if let Err(errno) = watched {
            self.bridge.remove_port(port);
            return Err(errno);
        }
        self.ports.insert(port, Port { end, waits: true, outgoing: Vec::new() });
        self.busy = true;
        Ok(port)
    }

    fn remove(&mut self, port: PortId) -> bool {
        self.bridge.remove_port(port);
        let removed = self.ports.remove(&port);
        if let Some(Port { end: Joined::File(file), .. }) = &removed {
            let _ = epoll::delete(&self.epoll, &**file);
        }
        removed.is_some()
    }

    fn now(&self) -> Nanos {
        self.origin.elapsed().as_nanos() as Nanos
    }

    /// Takes a batch from every port, and hands each port what is for it.
    fn turn(&mut self) {
        let now = self.now();
        self.busy = false;
        let numbers: Vec<PortId> = self.ports.keys().copied().collect();
        for &number in &numbers {
            let Some(port) = self.ports.get_mut(&number) else { continue };
            if matches!(port.end, Joined::File(_)) && !port.waits {
                continue;
            }
            match port.end.receive(&mut self.incoming, &mut self.pool) {
                Ok(count) => {
                    port.waits = count == BATCH;
                    self.busy |= port.waits;
                }
                // Its device is gone.
                Err(_) => drop(self.remove(number)),
            }
            let mut incoming = std::mem::take(&mut self.incoming);
            incoming.drain(..).for_each(|frame| self.forward(now, number, frame));
            self.incoming = incoming;
        }
        for (number, port) in &mut self.ports {
            if port.outgoing.is_empty() {
                continue;
            }
            let all: (u64, u64) = totals(&port.outgoing);
            // Down, or gone: none is taken, and all stay.
            port.end.send(&mut port.outgoing, &mut self.pool);
            let left = totals(&port.outgoing);
            self.bridge.sent(*number, all.0 - left.0, all.1 - left.1, left.0);
            self.pool.recycle_all(port.outgoing.drain(..));
        }
    }

    fn forward(&mut self, now: Nanos, from: PortId, frame: Packet) {
        match self.bridge.forward(now, from, &frame) {
            Way::One(to) => match self.ports.get_mut(&to) {
                Some(port) if self.bridge.may_leave(now, to) => port.outgoing.push(frame),
                _ => self.pool.recycle(frame),
            },
            Way::Flood => {
                for (to, port) in &mut self.ports {
                    if *to != from && self.bridge.may_leave(now, *to) {
                        port.outgoing.push(self.pool.packet_from(&frame));
                    }
                }
                self.pool.recycle(frame);
            }
            Way::Drop => {
                self.pool.recycle(frame);
                if self.bridge.has_loops() {
                    self.shared.ready.wake();
                }
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.shared.calls.end();
    }
}

/// Frames and bytes.
fn totals(frames: &[Packet]) -> (u64, u64) {
    (frames.len() as u64, frames.iter().map(|frame| frame.len() as u64).sum())
}

/// A lock whose poison is ignored: no invariant spans a panic here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The event that stands for the thread's own waker; ports have their numbers.
const WAKE: u64 = u64::MAX;
const BATCH: usize = 256;
const MOST_PORTS: usize = 1024;
