//! Whose turn it is at a stack's loop: its own thread's, or that of who asks something of it.
//!
//! Who asks, and finds nobody at it, does it himself, and what follows from it: a packet that he sends leaves without
//! a thread being woken first. Otherwise it waits for the thread, which does it before anything else, so that nobody
//! waits for more than a round, however busy the stack is.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::yield_now;
use std::time::Instant;

use ginnel_core::device::{Device, Side};
use ginnel_core::queue::{Queue, Wake};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll;

use super::lookout::Lookout;
use super::rounds::{BATCH, Loop};
use crate::calls::Calls;
use crate::wake::Bell;

/// A loop, and who may be at it.
pub(super) struct Turns {
    /// `None` once it has ended.
    inner: Mutex<Option<Loop>>,
    calls: Calls<Loop>,
    epoll: Arc<OwnedFd>,
    wake: Arc<Bell>,
    /// The device, and who reads what the loop sends there.
    device: Arc<Device>,
    reader: Side,
}

impl Turns {
    /// A loop at the device's other end than `reader`; `epoll` and `wake` are what its thread sleeps on.
    pub(super) fn new(
        inner: Loop,
        (epoll, wake): (Arc<OwnedFd>, Arc<Bell>),
        (device, reader): (Arc<Device>, Side),
    ) -> Turns {
        let calls = Calls::new(wake.clone());
        Turns { inner: Mutex::new(Some(inner)), calls, epoll, wake, device, reader }
    }

    /// Has the loop do something and waits for what comes of it. `None` once it has ended.
    pub(super) fn call<R: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Loop) -> R + Send + 'static,
    ) -> Option<R> {
        match self.inner.try_lock() {
            Ok(inner) => self.take_turn(inner, what),
            Err(TryLockError::WouldBlock) => self.calls.call(what),
            // Who was at it has panicked: the thread sees to the rest.
            Err(TryLockError::Poisoned(_)) => {
                self.wake.wake();
                None
            }
        }
    }

    fn take_turn<R>(
        &self,
        mut held: MutexGuard<'_, Option<Loop>>,
        what: impl FnOnce(&mut Loop) -> R,
    ) -> Option<R> {
        let inner = held.as_mut()?;
        // Who is woken may be ahead of us on this processor, and so may the thread be, for the answer.
        self.outgoing().hold();
        let result = what(inner);
        inner.round();
        let is_due_early = inner.is_due_early();
        drop(held);
        self.outgoing().release();
        if is_due_early {
            self.wake.wake();
        }
        Some(result)
    }

    /// What the thread does until the loop is told to stop.
    pub(super) fn run(&self) {
        let _ending = Ending(self);
        let mut ready = Vec::with_capacity(BATCH);
        let mut patience = Some(AT_ONCE);
        let mut lookout = Lookout::new(Instant::now());
        let mut has_guest = false;
        loop {
            ready.clear();
            if has_guest && patience != Some(AT_ONCE) {
                self.wait(&mut lookout, &mut ready, patience);
            } else {
                self.sleep(&mut ready, patience);
            }
            self.wake.answer();
            let Ok(mut held) = self.inner.lock() else { return };
            let Some(inner) = held.as_mut() else { return };
            inner.note(&mut ready);
            // What that has woken us to is looked at in this round.
            self.wake.answer();
            self.calls.take().into_iter().for_each(|call| call(inner));
            inner.round();
            if !inner.running {
                return inner.end();
            }
            patience = inner.plan();
            // A program at a socket pair, which is woken for each packet as the thread is.
            has_guest = inner.has_guest();
            drop(held);
            // Who held it may not be at it again for a while.
            self.outgoing().release();
        }
    }

    /// Looks out for something to do first, where that pays, then sleeps.
    fn wait(&self, lookout: &mut Lookout, ready: &mut Vec<epoll::Event>, patience: Option<Timespec>) {
        lookout.begin(Instant::now());
        let mut found = false;
        while !found && lookout.is_patient(Instant::now()) {
            // Whoever else wants the processor.
            yield_now();
            let _ = epoll::wait(&self.epoll, spare_capacity(ready), Some(&AT_ONCE));
            found = !ready.is_empty() || self.wake.is_woken();
        }
        if !found {
            self.sleep(ready, patience);
        }
        lookout.end(Instant::now());
    }

    fn sleep(&self, ready: &mut Vec<epoll::Event>, patience: Option<Timespec>) {
        let patience = if self.wake.may_sleep() { patience } else { Some(AT_ONCE) };
        // Interrupted or not, the round looks at everything.
        let _ = epoll::wait(&self.epoll, spare_capacity(ready), patience.as_ref());
    }

    fn outgoing(&self) -> &Queue {
        self.device.incoming(self.reader)
    }
}

/// The end of the thread, also by a panic: nobody is left waiting, and every program sees its socket end.
struct Ending<'a>(&'a Turns);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        // Calls that were not answered drop their senders, which tells the callers.
        self.0.calls.end();
        let inner = self.0.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        drop(inner);
        self.0.outgoing().release();
    }
}

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
