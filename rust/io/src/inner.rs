//! Where a data plane's inner packets come from and go to.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ginnel_core::device::{End, Kind};
use ginnel_core::packet::{LocalPool, Packet};
use ginnel_core::queue::Wake;
use rustix::io::Errno;

use crate::tun::{Observers, Tun, TunCounters, TunReader, TunWriter};

/// The application end of a device.
pub enum Inner {
    Memory(Arc<End>),
    /// One queue at least, and at most as many as there are lanes.
    Kernel(Vec<Tun>),
}

/// A thread's side of it that takes packets from there.
pub enum Source {
    Memory(Arc<End>),
    Kernel(Box<TunReader>),
}

/// A thread's side of it that gives packets to it.
pub enum Sink {
    Memory(Arc<End>),
    Kernel(Box<TunWriter>),
}

impl Inner {
    pub fn memory(end: End) -> Inner {
        Inner::Memory(Arc::new(end))
    }

    pub fn kind(&self) -> Kind {
        match self {
            Inner::Memory(end) => end.device().kind(),
            Inner::Kernel(queues) => queues[0].kind(),
        }
    }

    /// A lane's source. There may be fewer than lanes.
    pub fn source(&self, lane: usize) -> Option<Source> {
        match self {
            Inner::Memory(end) => (lane == 0).then(|| Source::Memory(end.clone())),
            Inner::Kernel(queues) => queues.get(lane).map(|tun| Source::Kernel(Box::new(tun.reader()))),
        }
    }

    /// A lane's sink. To which queue a flow's packets are written tells the kernel where those back belong.
    pub fn sink(&self, lane: usize) -> Sink {
        match self {
            Inner::Memory(end) => Sink::Memory(end.clone()),
            Inner::Kernel(queues) => Sink::Kernel(Box::new(queues[lane % queues.len()].writer())),
        }
    }

    /// Who sees what goes through a kernel's device; a device in memory has its own.
    pub fn observers(&self) -> Option<Arc<Observers>> {
        match self {
            Inner::Memory(_) => None,
            Inner::Kernel(queues) => Some(queues[0].observers().clone()),
        }
    }
}

impl Source {
    /// The descriptor that tells of packets, if they don't come with a wake-up.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Source::Memory(_) => None,
            Source::Kernel(tun) => Some(tun.as_fd()),
        }
    }

    /// Who is woken when packets wait.
    pub fn set_reader(&self, wake: Arc<dyn Wake>) {
        if let Source::Memory(end) = self {
            end.incoming().set_reader(Some(wake));
        }
    }

    /// Whether who writes there may wait for room, and packets are better left there.
    pub fn holds_back(&self) -> bool {
        matches!(self, Source::Memory(_))
    }

    /// Takes about `limit` of the packets that wait. Returns whether more may. An error of the
    /// kernel's device is for good.
    pub fn receive(
        &mut self,
        packets: &mut Vec<Packet>,
        limit: usize,
        pool: &mut LocalPool,
    ) -> Result<bool, Errno> {
        match self {
            Source::Memory(end) => Ok(end.receive(packets, limit).unwrap_or(0) == limit),
            Source::Kernel(tun) => tun.receive(packets, limit, pool),
        }
    }

    pub fn take_counters(&mut self) -> TunCounters {
        match self {
            Source::Memory(_) => TunCounters::default(),
            Source::Kernel(tun) => tun.take_counters(),
        }
    }
}

impl Sink {
    /// Gives all of `packets` to the device, and the buffers back. Returns how many it had no room for.
    pub fn send(&mut self, packets: &mut Vec<Packet>, pool: &mut LocalPool) -> u64 {
        let dropped = match self {
            Sink::Memory(end) => {
                let _ = end.send(packets);
                packets.len() as u64
            }
            Sink::Kernel(tun) => {
                tun.send(packets);
                0
            }
        };
        pool.recycle_all(packets.drain(..));
        dropped
    }

    pub fn take_counters(&mut self) -> TunCounters {
        match self {
            Sink::Memory(_) => TunCounters::default(),
            Sink::Kernel(tun) => tun.take_counters(),
        }
    }
}
