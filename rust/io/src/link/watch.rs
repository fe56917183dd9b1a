//! Where a link's thread waits for its descriptors: an epoll of its own, or that of a stack which does the link's work.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

/// An epoll, and what is added to each token there.
#[derive(Clone)]
pub struct Watch {
    pub epoll: Arc<OwnedFd>,
    pub mark: u64,
}

impl Watch {
    /// An epoll of one's own.
    pub fn new() -> Result<Watch, Errno> {
        Ok(Watch { epoll: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?), mark: 0 })
    }

    /// Says from now on when the descriptor is readable.
    pub fn add(&self, descriptor: impl AsFd, token: u64) -> Result<(), Errno> {
        epoll::add(&*self.epoll, descriptor, EventData::new_u64(token | self.mark), EventFlags::IN)
    }

    /// Says when it is writable, too, or no more.
    pub fn want_room(&self, descriptor: impl AsFd, token: u64, room: bool) {
        let flags = if room { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        let _ = epoll::modify(&*self.epoll, descriptor, EventData::new_u64(token | self.mark), flags);
    }

    pub fn forget(&self, descriptor: impl AsFd) {
        let _ = epoll::delete(&*self.epoll, descriptor);
    }
}
