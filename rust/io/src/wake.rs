//! Wake-ups: of loops through an eventfd, of threads that sleep through a futex.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use ginnel_core::queue::Wake;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::thread::futex;

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

    /// Sleeps until it is woken, the time is up or a signal comes.
    pub fn wait(&self, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let _ = poll(&mut [PollFd::new(&self.descriptor, PollFlags::IN)], timeout.as_ref());
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

/// What a loop is woken by. While it is awake anyway, that costs no system call.
pub struct Bell {
    waker: Waker,
    state: AtomicU8,
}

impl Bell {
    /// Of a loop that is awake.
    pub fn new() -> io::Result<Bell> {
        Ok(Bell { waker: Waker::new()?, state: AtomicU8::new(AWAKE) })
    }

    /// The loop is about to sleep. `false`: it was woken since it was last [`Bell::answer`]ed, and has to look again.
    pub fn may_sleep(&self) -> bool {
        self.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Whether it was woken since it was last [`Bell::answer`]ed.
    pub fn is_woken(&self) -> bool {
        self.state.load(Ordering::SeqCst) == WOKEN
    }

    /// The loop is awake, and looks at everything from here on: forgets all wake-ups so far.
    pub fn answer(&self) {
        self.state.store(AWAKE, Ordering::SeqCst);
    }

    /// The descriptor was readable: it no longer is.
    pub fn clear(&self) {
        self.waker.clear();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

impl Wake for Bell {
    fn wake(&self) {
        if self.state.swap(WOKEN, Ordering::SeqCst) == ASLEEP {
            self.waker.wake();
        }
    }
}

/// Where threads sleep until something has changed.
#[derive(Default)]
pub struct Gate {
    changes: AtomicU32,
    sleepers: AtomicU32,
}

impl Gate {
    /// How often something has changed so far. Ask before you look at what may have changed.
    pub fn changes(&self) -> u32 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Sleeps until there were more changes than `seen`, or the time is up, or for no reason. A signal
    /// ends it with `Interrupted`.
    pub fn wait(&self, seen: u32, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let slept = futex::wait(&self.changes, futex::Flags::PRIVATE, seen, timeout.as_ref());
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        match slept {
            Ok(()) | Err(Errno::AGAIN | Errno::TIMEDOUT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Wake for Gate {
    fn wake(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _ = futex::wake(&self.changes, futex::Flags::PRIVATE, i32::MAX as u32);
        }
    }
}

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const WOKEN: u8 = 2;
