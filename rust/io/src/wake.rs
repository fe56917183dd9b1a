//! Wake-ups through an eventfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ginnel_core::queue::{Readiness, Wake};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// A descriptor that is readable once it has been woken, until it is [`Waker::clear`]ed.
/// Waking never blocks and never fails: a counter that is full is readable already.
pub struct Waker {
    descriptor: OwnedFd,
}

impl Waker {
    pub fn new() -> io::Result<Waker> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker { descriptor })
    }

    /// Forgets all wake-ups so far.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.descriptor, &mut [0u8; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Wake for Waker {
    fn wake(&self) {
        let _ = rustix::io::write(&self.descriptor, &1u64.to_ne_bytes());
    }
}

impl Readiness for Waker {
    fn set(&self) {
        self.wake();
    }

    fn clear(&self) {
        Waker::clear(self);
    }
}

/// Waits until a descriptor is readable or the time is up. A signal ends it with `Interrupted`.
pub fn wait_readable(descriptor: impl AsFd, timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], timeout.as_ref())?;
    Ok(())
}
