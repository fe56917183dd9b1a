//! Where a data plane's inner packets come from and go to.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ginnel_core::device::{End, Kind};
use ginnel_core::packet::{LocalPool, Packet};
use ginnel_core::queue::Wake;
use rustix::io::Errno;

use crate::tun::{Observers, Tun, TunCounters};

/// The application end of a device.
pub enum Inner {
    Memory(End),
    Kernel(Box<Tun>),
}

impl Inner {
    pub fn kind(&self) -> Kind {
        match self {
            Inner::Memory(end) => end.device().kind(),
            Inner::Kernel(tun) => tun.kind(),
        }
    }

    /// The descriptor that tells of packets, if they don't come with a wake-up.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Inner::Memory(_) => None,
            Inner::Kernel(tun) => Some(tun.as_fd()),
        }
    }

    /// Who is woken when packets wait.
    pub fn set_reader(&self, wake: Arc<dyn Wake>) {
        if let Inner::Memory(end) = self {
            end.incoming().set_reader(Some(wake));
        }
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
            Inner::Memory(end) => Ok(end.receive(packets, limit).unwrap_or(0) == limit),
            Inner::Kernel(tun) => tun.receive(packets, limit, pool),
        }
    }

    /// Gives all of `packets` to the device, and the buffers back. Returns how many it had no room for.
    pub fn send(&mut self, packets: &mut Vec<Packet>, pool: &mut LocalPool) -> u64 {
        let dropped = match self {
            Inner::Memory(end) => {
                let _ = end.send(packets);
                packets.len() as u64
            }
            Inner::Kernel(tun) => {
                tun.send(packets);
                0
            }
        };
        pool.recycle_all(packets.drain(..));
        dropped
    }

    /// Who sees what goes through a kernel's device; a device in memory has its own.
    pub fn observers(&self) -> Option<Arc<Observers>> {
        match self {
            Inner::Memory(_) => None,
            Inner::Kernel(tun) => Some(tun.observers().clone()),
        }
    }

    pub fn take_counters(&mut self) -> TunCounters {
        match self {
            Inner::Memory(_) => TunCounters::default(),
            Inner::Kernel(tun) => tun.take_counters(),
        }
    }
}
