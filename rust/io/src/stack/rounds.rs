//! The loop of a network stack: one thread, one epoll, packets on one side and sockets on the other.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use ginnel_core::device::End;
use ginnel_core::netstack::flows::FlowId;
use ginnel_core::netstack::outbox::Outbox;
use ginnel_core::netstack::{Failure, Settled, Stack};
use ginnel_core::packet::{Packet, Pool};
use ginnel_core::queue::Wake;
use ginnel_core::{Nanos, SECOND};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::datagrams::{ASSOCIATION, DATAGRAM, LONGEST_DATAGRAM};
use super::{Guest, Shared, lock};
use crate::splice::{Datagrams, HEADER, Moved, Splice};
use crate::wake::Waker;

/// What the thread owns.
pub(super) struct Loop {
    pub(super) stack: Stack<Splice, Datagrams>,
    /// `None` once the device is gone.
    pub(super) end: Option<End>,
    pub(super) out: Outbox,
    /// Another loop, which reads what is written to the device.
    guest: Option<Box<dyn Guest>>,
    incoming: Vec<Packet>,
    /// The queue may hold more than was taken from it.
    more_incoming: bool,
    /// UDP ports and associations, by their tokens, that have more to send.
    pub(super) sending: VecDeque<u64>,
    /// The same, for looking up.
    pub(super) is_sending: HashSet<u64>,
    pub(super) message: Box<[u8]>,
    pub(super) epoll: OwnedFd,
    origin: Instant,
    pub(super) running: bool,
    /// Whether the device was up when it was looked at last.
    was_up: bool,
    wake: Arc<Waker>,
    shared: Arc<Shared>,
}

impl Loop {
    pub(super) fn new(
        end: End,
        budget: usize,
        pool: &Arc<Pool>,
        wake: Arc<Waker>,
        shared: Arc<Shared>,
    ) -> io::Result<Loop> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let woken: Arc<dyn Wake> = wake.clone();
        end.incoming().set_reader(Some(woken.clone()));
        end.outgoing().set_writer(Some(woken));
        Ok(Loop {
            stack: Stack::new(end.device().kind(), budget, end.device().mtu() as usize, Box::new(random)),
            was_up: false,
            end: Some(end),
            out: Outbox::new(pool.local()),
            guest: None,
            incoming: Vec::with_capacity(BATCH),
            more_incoming: true,
            sending: VecDeque::new(),
            is_sending: HashSet::new(),
            message: vec![0; HEADER + LONGEST_DATAGRAM].into_boxed_slice(),
            epoll,
            origin: Instant::now(),
            running: true,
            wake,
            shared,
        })
    }

    pub(super) fn run(&mut self) {
        let mut ready = Vec::with_capacity(BATCH);
        while self.running {
            self.wait(&mut ready);
            self.shared.calls.take().into_iter().for_each(|call| call(self));
            let now = self.now();
            self.learn_room(now);
            self.receive(now);
            self.stack.input_looped(now, &mut self.out);
            self.stack.expire(now, &mut self.out);
            self.send_datagrams(now);
            // Those that are touched again meanwhile have their turn in the next round.
            for _ in 0..self.stack.touched_len() {
                match self.stack.next_touched() {
                    Some(flow) => self.serve(now, flow),
                    None => break,
                }
            }
            self.finish_round();
        }
    }

    pub(super) fn now(&self) -> Nanos {
        // From one second on: a limit's first fill lies at 0.
        SECOND + self.origin.elapsed().as_nanos() as Nanos
    }

    /// Waits until something happens, and notes what did.
    fn wait(&mut self, ready: &mut Vec<epoll::Event>) {
        let timeout = self.patience();
        ready.clear();
        if epoll::wait(&self.epoll, spare_capacity(ready), timeout.as_ref()).is_err() {
            return;
        }
        for event in ready.drain(..) {
            let (flags, token) = (event.flags, event.data.u64());
            if token == WAKE {
                self.wake.clear();
            } else if token == GUEST {
                self.have_guest_turn();
            } else if token & (DATAGRAM | ASSOCIATION) != 0 {
                self.note_sending(token);
            } else {
                if let Some(flow) = self.stack.flow_mut(token)
                    && let Some(splice) = &mut flow.attachment
                {
                    splice.note(flags);
                }
                self.stack.touch(token);
            }
        }
    }

    fn have_guest_turn(&mut self) {
        let ended = self.guest.take_if(|guest| !guest.turn());
        if let Some(guest) = ended {
            let _ = epoll::delete(&self.epoll, guest.readiness());
        }
        // What it has woken us to is looked at in this round.
        self.wake.clear();
    }

    fn patience(&self) -> Option<Timespec> {
        let stalled = !self.out.has_room();
        let sending = !self.sending.is_empty() && !stalled;
        let looped = self.stack.has_looped();
        let busy = self.more_incoming || sending || looped || self.stack.touched_len() > 0;
        let wait = if busy { 0 } else { self.stack.next_timer()?.saturating_sub(self.now()) };
        // Rounded up, so that the timer is due when the wait is over.
        let millis = wait.div_ceil(MILLISECOND);
        Some(Timespec { tv_sec: (millis / 1000) as i64, tv_nsec: (millis % 1000 * MILLISECOND) as i64 })
    }

    /// Looks again whether the device has room, if somebody waits for that.
    fn learn_room(&mut self, now: Nanos) {
        let Some(end) = &self.end else { return };
        self.stack.set_mtu(end.device().mtu() as usize);
        let was_up = std::mem::replace(&mut self.was_up, end.device().is_up());
        if self.was_up && !was_up {
            self.stack.announce_addresses(&mut self.out);
        }
        if self.stack.is_waiting_for_room() || !self.sending.is_empty() {
            self.stack.flush(now, &mut self.out, end);
            if self.out.has_room() {
                self.stack.resume();
            }
        }
    }

    /// Tells the stations on the link which addresses are ours. While the device is down nobody would hear.
    pub(super) fn announce(&mut self) {
        if self.was_up {
            self.stack.announce_addresses(&mut self.out);
        }
    }

    fn receive(&mut self, now: Nanos) {
        let Some(end) = &self.end else { return };
        match end.receive(&mut self.incoming, BATCH) {
            Ok(count) => self.more_incoming = count == BATCH,
            Err(_) => {
                self.more_incoming = false;
                self.end = None;
                for splice in self.stack.end_all(now, Failure::NoDevice, &mut self.out) {
                    splice.close(Some(Failure::NoDevice));
                }
            }
        }
        for packet in self.incoming.drain(..) {
            self.stack.input(now, &packet, &mut self.out);
            self.out.pool().recycle(packet);
        }
    }

    /// Moves a flow's bytes, then its packets.
    fn serve(&mut self, now: Nanos, id: FlowId) {
        let Some(flow) = self.stack.flow_mut(id) else { return };
        let moved = match &mut flow.attachment {
            Some(splice) => splice.pump(&mut flow.transport),
            None => Moved::All,
        };
        match moved {
            Moved::Broken => return self.break_off(now, id),
            Moved::Part => self.stack.touch(id),
            Moved::All => {}
        }
        if let Some(Settled::Over { failure, attachment: Some(splice) }) =
            self.stack.settle(now, id, &mut self.out)
        {
            // Whoever sees the socket end must find the event that says why.
            self.publish();
            splice.close(failure);
        }
    }

    /// Ends a flow whose program is gone.
    fn break_off(&mut self, now: Nanos, id: FlowId) {
        let splice = self.stack.abandon(now, id, Failure::Reset, &mut self.out);
        self.publish();
        if let Some(splice) = splice {
            splice.close(None);
        }
    }

    fn finish_round(&mut self) {
        let now = self.now();
        if let Some(end) = &self.end {
            self.stack.flush(now, &mut self.out, end);
        }
        self.publish();
    }

    fn publish(&mut self) {
        let mut events = lock(&self.shared.events);
        let was_empty = events.is_empty();
        self.stack.take_events(&mut events);
        if was_empty && !events.is_empty() {
            self.shared.ready.wake();
        }
    }

    pub(super) fn take_in(&mut self, guest: Box<dyn Guest>) -> Result<(), Failure> {
        if self.guest.is_some() {
            return Err(Failure::InUse);
        }
        epoll::add(&self.epoll, guest.readiness(), EventData::new_u64(GUEST), EventFlags::IN)
            .map_err(|_| Failure::NoBuffers)?;
        self.guest = Some(guest);
        Ok(())
    }

    pub(super) fn attach(&mut self, flow: FlowId, socket: OwnedFd) -> Result<(), Failure> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let splice = Splice::new(socket);
        self.stack.attach(flow, splice).map_err(|_| Failure::NoSuch)?;
        let attached = self.stack.flow_mut(flow).and_then(|flow| flow.attachment.as_ref());
        if let Some(splice) = attached
            && epoll::add(&self.epoll, splice, EventData::new_u64(flow), flags).is_err()
        {
            let now = self.now();
            drop(self.stack.abort(now, flow, &mut self.out));
            return Err(Failure::NoBuffers);
        }
        Ok(())
    }
}

impl Drop for Loop {
    /// Also after a panic: nobody is left waiting, and every program sees its socket end.
    fn drop(&mut self) {
        // Calls that were not answered drop their senders, which tells the callers.
        self.shared.calls.end();
        self.guest.take().into_iter().for_each(Guest::move_out);
        if std::thread::panicking() {
            return;
        }
        let now = self.now();
        for splice in self.stack.end_all(now, Failure::NoDevice, &mut self.out) {
            splice.close(Some(Failure::NoDevice));
        }
        self.finish_round();
    }
}

/// A random number from the system.
fn random() -> u64 {
    let mut bytes = [0u8; 8];
    loop {
        // SAFETY: the buffer is ours and as long as is said.
        let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        // So few bytes come whole, or not at all when a signal came first.
        if count == bytes.len() as isize {
            return u64::from_ne_bytes(bytes);
        }
    }
}

const BATCH: usize = 256;
const MILLISECOND: Nanos = SECOND / 1000;
const WAKE: u64 = u64::MAX;
const GUEST: u64 = u64::MAX - 1;
