//! The loop of a network stack, round by round: packets on one side, sockets on the other.

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
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::datagrams::{ASSOCIATION, DATAGRAM, LONGEST_DATAGRAM};
use super::{Guest, Told};
use crate::splice::{Datagrams, HEADER, Moved, Splice};
use crate::wake::Bell;

/// A stack, its device and its sockets.
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
    pub(super) epoll: Arc<OwnedFd>,
    origin: Instant,
    pub(super) running: bool,
    /// Whether the device was up when it was looked at last.
    was_up: bool,
    /// When the thread looks again if nothing wakes it; `None`: never.
    planned: Option<Nanos>,
    wake: Arc<Bell>,
    told: Arc<Told>,
}

impl Loop {
    /// `epoll` is what a thread sleeps on, `wake` what ends its sleep.
    pub(super) fn new(
        end: End,
        budget: usize,
        pool: &Arc<Pool>,
        (epoll, wake): (Arc<OwnedFd>, Arc<Bell>),
        told: Arc<Told>,
    ) -> io::Result<Loop> {
        epoll::add(&*epoll, &*wake, EventData::new_u64(WAKE), EventFlags::IN)?;
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
            planned: Some(0),
            wake,
            told,
        })
    }

    /// Does a bounded part of what there is to do, and waits for nothing.
    pub(super) fn round(&mut self) {
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

    pub(super) fn now(&self) -> Nanos {
        // From one second on: a limit's first fill lies at 0.
        SECOND + self.origin.elapsed().as_nanos() as Nanos
    }

    /// Takes note of what the thread was woken for.
    pub(super) fn note(&mut self, ready: &mut Vec<epoll::Event>) {
        for event in ready.drain(..) {
            let (flags, token) = (event.flags, event.data.u64());
            if token == WAKE {
                self.wake.clear();
            } else if token & GUEST == GUEST {
                self.guest.take_if(|guest| !guest.turn(token & !GUEST, flags));
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

    /// How long the thread may sleep from now on.
    pub(super) fn plan(&mut self) -> Option<Timespec> {
        self.planned = self.due();
        // Rounded up, so that the timer is due when the wait is over.
        let millis = self.planned?.saturating_sub(self.now()).div_ceil(MILLISECOND);
        Some(Timespec { tv_sec: (millis / 1000) as i64, tv_nsec: (millis % 1000 * MILLISECOND) as i64 })
    }

    pub(super) fn has_guest(&self) -> bool {
        self.guest.is_some()
    }

    /// Whether there is something to do before the thread looks again by itself. Said once.
    pub(super) fn is_due_early(&mut self) -> bool {
        let due = self.due();
        let early = due.is_some_and(|due| self.planned.is_none_or(|planned| due < planned));
        if early {
            self.planned = due;
        }
        early || !self.running
    }

    /// When there is something to do although nothing happens.
    fn due(&self) -> Option<Nanos> {
        let stalled = !self.out.has_room();
        let sending = !self.sending.is_empty() && !stalled;
        let looped = self.stack.has_looped();
        let busy = self.more_incoming || sending || looped || self.stack.touched_len() > 0;
        if busy { Some(0) } else { self.stack.next_timer() }
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
        self.told.extend(|events| self.stack.take_events(events));
    }

    pub(super) fn take_in(&mut self, mut guest: Box<dyn Guest>) -> Result<(), Failure> {
        if self.guest.is_some() {
            return Err(Failure::InUse);
        }
        guest.move_in(&self.epoll, GUEST).map_err(|_| Failure::NoBuffers)?;
        self.guest = Some(guest);
        Ok(())
    }

    /// Resets the flows. Every program sees its socket end.
    pub(super) fn end(&mut self) {
        let now = self.now();
        for splice in self.stack.end_all(now, Failure::NoDevice, &mut self.out) {
            splice.close(Some(Failure::NoDevice));
        }
        self.finish_round();
    }

    pub(super) fn attach(&mut self, flow: FlowId, socket: OwnedFd) -> Result<(), Failure> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let splice = Splice::new(socket);
        self.stack.attach(flow, splice).map_err(|_| Failure::NoSuch)?;
        let attached = self.stack.flow_mut(flow).and_then(|flow| flow.attachment.as_ref());
        if let Some(splice) = attached
            && epoll::add(&*self.epoll, splice, EventData::new_u64(flow), flags).is_err()
        {
            let now = self.now();
            drop(self.stack.abort(now, flow, &mut self.out));
            return Err(Failure::NoBuffers);
        }
        Ok(())
    }
}

impl Drop for Loop {
    /// Also after a panic: who lent a hand goes on alone.
    fn drop(&mut self) {
        self.guest.take().into_iter().for_each(Guest::move_out);
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

pub(super) const BATCH: usize = 256;
const MILLISECOND: Nanos = SECOND / 1000;
const WAKE: u64 = u64::MAX;
/// In a guest's tokens.
const GUEST: u64 = DATAGRAM | ASSOCIATION;
