//! What a thread of the data plane does: a lane's way in, its way out, or both by turns.
//!
//! Two threads carry more where there are processors for them. Where there are not, one does it with less
//! work: what comes while it has something else to do comes in larger batches.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ginnel_core::Nanos;
use rustix::event::{Timespec, epoll};

use crate::inner::{Sink, Source};
use crate::prompt::Place;
use crate::pump::Shared;
use crate::pump::inward::Inward;
use crate::pump::outward::Outward;
use crate::wake::Waker;

pub struct Turns {
    shared: Arc<Shared>,
    /// Its number among the threads, and what ends its sleep.
    thread: usize,
    wake: Arc<Waker>,
    epoll: Arc<OwnedFd>,
    inward: Option<Inward>,
    outward: Option<Outward>,
    followed: u64,
    timer: Option<Nanos>,
    place: Option<Place>,
}

impl Turns {
    /// A thread's turns, without a way yet.
    pub fn new(shared: &Arc<Shared>, thread: usize, wake: &Arc<Waker>) -> io::Result<Turns> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        epoll::add(&epoll, &**wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        Ok(Turns {
            shared: shared.clone(),
            thread,
            wake: wake.clone(),
            epoll,
            inward: None,
            outward: None,
            followed: 0,
            timer: None,
            place: None,
        })
    }

    /// Does a lane's way in, too.
    pub fn with_inward(mut self, lane: usize, sink: Sink) -> Turns {
        self.inward = Some(Inward::new(&self.shared, lane, sink, &self.epoll));
        self
    }

    /// Does a lane's way out, too; without a `source` it sends what other threads hand over.
    pub fn with_outward(mut self, lane: usize, source: Option<Source>) -> io::Result<Turns> {
        if let Some(source) = &source {
            source.set_reader(self.wake.clone());
            if let Some(descriptor) = source.descriptor() {
                let data = epoll::EventData::new_u64(DEVICE);
                epoll::add(&self.epoll, descriptor, data, epoll::EventFlags::IN)?;
            }
        }
        let outward = Outward::new(&self.shared, lane, source)?;
        // A socket that is read by this thread, too, is in its own epoll only once.
        let data = epoll::EventData::new_u64(ROOM);
        epoll::add(&self.epoll, outward.room(), data, epoll::EventFlags::IN)?;
        self.outward = Some(outward);
        Ok(self)
    }

    /// Works until it is told to stop.
    pub fn run(mut self) {
        let mut ready = Vec::with_capacity(READY);
        self.place = Place::take(self.shared.now());
        while !self.shared.is_stopped() {
            self.follow();
            let now = self.keep_time();
            self.publish();
            self.rest(now);
            self.wait(now, &mut ready);
            for event in ready.drain(..) {
                match (event.data.u64(), &mut self.inward, &mut self.outward) {
                    (WAKE, inward, outward) => {
                        self.wake.clear();
                        inward.iter_mut().for_each(Inward::receive_handed);
                        outward.iter_mut().for_each(Outward::look);
                    }
                    (DEVICE, _, Some(outward)) => outward.look_at_device(&self.epoll),
                    (ROOM, _, Some(outward)) => outward.flush_ready(),
                    (number, Some(inward), outward) => {
                        inward.serve(number, event.flags);
                        // What came in was answered, most likely, before the kernel's device had taken all of it.
                        outward.iter_mut().filter(|outward| outward.has_device()).for_each(Outward::look);
                    }
                    _ => {}
                }
            }
            if let Some(outward) = self.outward.as_mut().filter(|outward| outward.has_work()) {
                outward.send_batch();
            }
        }
        self.follow();
        self.inward.iter_mut().for_each(Inward::forget_all);
        self.outward.iter_mut().for_each(Outward::forget_all);
        self.publish();
    }

    /// Follows changes of the table of sockets, and writes what was queued before them.
    fn follow(&mut self) {
        let table = self.shared.changed(&mut self.followed);
        self.outward.iter_mut().for_each(Outward::send_queued);
        let Some(table) = table else { return };
        self.inward.iter_mut().for_each(|inward| inward.follow(&table));
        self.outward.iter_mut().for_each(|outward| outward.follow(&table));
        self.shared.follow(self.thread, self.followed);
    }

    fn keep_time(&mut self) -> Nanos {
        let now = self.shared.now();
        self.place.iter_mut().for_each(|place| place.keep(now));
        let expiry = self.inward.as_mut().and_then(|inward| inward.keep_time(now));
        let ping = self.outward.as_mut().and_then(|outward| outward.keep_time(now));
        self.timer = expiry.into_iter().chain(ping).min();
        now
    }

    /// Tells what the last turn has counted, and then what it has seen.
    fn publish(&mut self) {
        self.inward.iter_mut().for_each(Inward::publish);
        self.outward.iter_mut().for_each(Outward::publish);
        self.shared.tell();
    }

    /// Lets a bulk of single datagrams gather, where nothing else is to be done.
    fn rest(&mut self, now: Nanos) {
        let is_idle = !self.outward.as_ref().is_some_and(Outward::has_work);
        if let Some(rest) = self.inward.as_mut().filter(|_| is_idle).and_then(|inward| inward.rest(now)) {
            thread::sleep(rest);
        }
    }

    fn wait(&self, now: Nanos, ready: &mut Vec<epoll::Event>) {
        let timeout = if self.outward.as_ref().is_some_and(Outward::has_work) {
            Some(Duration::ZERO)
        } else {
            // Rounded up to the clock that epoll has, or the last millisecond would be spun through.
            let left = self.timer.map(|timer| timer.saturating_sub(now));
            left.map(|left| Duration::from_millis(left.div_ceil(1_000_000)))
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // Interrupted or not, the next turn looks at everything.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(ready), timeout.as_ref());
    }
}

/// The event that stands for the thread's own waker; sockets have their numbers.
const WAKE: u64 = u64::MAX;
/// The one that stands for the kernel's device.
const DEVICE: u64 = u64::MAX - 1;
/// The one that stands for sockets that have room again.
const ROOM: u64 = u64::MAX - 2;

/// Sockets served in a turn.
const READY: usize = 64;
