//! A lane's way out: from the device to the sockets.
//!
//! A socket that takes nothing more has a backlog of its own, and delays nobody else. What is read here and is for
//! a peer of another lane is handed to that one.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ginnel_core::Nanos;
use ginnel_core::flow::flow_hash;
use ginnel_core::packet::{LocalPool, Packet};
use ginnel_core::plane::{Datagram, Sealed};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::inner::Source;
use crate::pump::member::Member;
use crate::pump::{Counters, Shared, Table};
use crate::socket::SocketCounters;
use crate::udp::Sender;

pub struct Outward {
    shared: Arc<Shared>,
    lane: usize,
    /// Where it reads packets; others are handed over by other threads.
    source: Option<Source>,
    has_failed: bool,
    members: BTreeMap<u64, Member>,
    /// How many of them wait for room, and the epoll that tells when they have it.
    blocked: usize,
    room: OwnedFd,
    /// How many of them are streams.
    streams: usize,
    /// Those that packets were held back for in this turn.
    held: Vec<u64>,
    /// What tells flows apart.
    seed: u32,
    /// The number of the next socket that is not known yet.
    newest: u64,
    pool: LocalPool,
    sender: Sender,
    packets: Vec<Packet>,
    /// Packets for other lanes.
    elsewhere: Vec<Vec<Packet>>,
    datagrams: Vec<Datagram>,
    counters: Counters,
    /// Packets may wait at the device, or from other threads.
    waits: bool,
}

impl Outward {
    pub fn new(shared: &Arc<Shared>, lane: usize, source: Option<Source>) -> io::Result<Outward> {
        Ok(Outward {
            shared: shared.clone(),
            lane,
            source,
            has_failed: false,
            members: BTreeMap::new(),
            blocked: 0,
            room: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            streams: 0,
            held: Vec::new(),
            seed: RandomState::default().hash_one(lane) as u32,
            newest: 0,
            pool: shared.pool.local(),
            sender: Sender::new(),
            packets: Vec::with_capacity(BATCH),
            elsewhere: shared.lanes.iter().map(|_| Vec::new()).collect(),
            datagrams: Vec::with_capacity(BATCH),
            counters: Counters::default(),
            waits: true,
        })
    }

    /// Readable when sockets have room that had none.
    pub fn room(&self) -> &OwnedFd {
        &self.room
    }

    /// Follows a change of the table of sockets.
    pub fn follow(&mut self, table: &Table) {
        let removed: Vec<u64> =
            self.members.keys().filter(|number| !table.contains_key(number)).copied().collect();
        removed.into_iter().for_each(|number| self.forget(number));
        // One that failed meanwhile is in the table still, but not among the new ones.
        for (&number, socket) in table.range(self.newest..) {
            self.newest = number + 1;
            self.streams += usize::from(socket.is_stream());
            self.members.insert(number, Member::new(socket.clone(), &self.shared.waiting));
        }
    }

    /// Writes what commands have queued.
    pub fn send_queued(&mut self) {
        self.shared.lanes[self.lane].queued.take(&mut self.datagrams);
        self.dispatch();
    }

    /// Sends the pings that are due, and says when it is to do that again.
    pub fn keep_time(&mut self, now: Nanos) -> Option<Nanos> {
        let Outward { shared, datagrams, pool, .. } = self;
        let timer = shared.plane.send(self.lane, |sending| {
            sending.ping(now, datagrams, pool);
            sending.next_timer()
        });
        self.dispatch();
        timer
    }

    pub fn publish(&mut self) {
        if let Some(source) = &mut self.source {
            self.counters.device = source.take_counters();
        }
        self.shared.publish(&mut self.counters);
    }

    /// Packets may wait.
    pub fn look(&mut self) {
        self.waits = true;
    }

    /// The kernel's device, which this epoll watches, has something to say. One that has failed is not watched any
    /// longer.
    pub fn look_at_device(&mut self, epoll: &OwnedFd) {
        self.waits = true;
        if self.has_failed
            && let Some(source) = self.source.take()
            && let Some(descriptor) = source.descriptor()
        {
            let _ = epoll::delete(epoll, descriptor);
        }
    }

    /// Whether it reads a kernel's device.
    pub fn has_device(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.descriptor().is_some())
    }

    /// Whether [`Outward::send_batch`] is to be called. Where what writes to the device may wait, nothing is read
    /// while no socket has room.
    pub fn has_work(&self) -> bool {
        let is_blocked = self.blocked > 0 && self.blocked == self.members.len();
        let holds_back = || self.source.as_ref().is_some_and(Source::holds_back);
        self.waits && !(is_blocked && holds_back())
    }

    /// Sends on from the backlogs of sockets that have room.
    pub fn flush_ready(&mut self) {
        let mut ready = Vec::with_capacity(READY);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = epoll::wait(&self.room, rustix::buffer::spare_capacity(&mut ready), Some(&at_once));
        ready.into_iter().for_each(|event| self.flush(event.data.u64()));
        self.flush_held();
    }

    pub fn forget_all(&mut self) {
        let members: Vec<u64> = self.members.keys().copied().collect();
        members.into_iter().for_each(|number| self.forget(number));
    }

    /// One batch from other threads and the device.
    pub fn send_batch(&mut self) {
        self.shared.lanes[self.lane].packets.take(&mut self.packets);
        self.waits = false;
        if let Some(source) = &mut self.source {
            let limit = self.packets.len() + BATCH;
            match source.receive(&mut self.packets, limit, &mut self.pool) {
                Ok(more) => self.waits = more,
                Err(errno) => {
                    self.has_failed = true;
                    self.shared.device_closed(errno);
                }
            }
        }
        self.seal();
        self.flush_held();
    }

    /// Seals and sends `packets`; those that a socket does not admit wait for it.
    fn seal(&mut self) {
        if self.packets.is_empty() {
            return;
        }
        let (now, all_admit) = (self.shared.now(), self.blocked == 0 && self.streams == 0);
        let Outward { shared, pool, packets, elsewhere, datagrams, members, held, seed, counters, .. } = self;
        let kind = shared.plane.kind();
        shared.plane.send(self.lane, |sending| {
            for packet in packets.drain(..) {
                let admits = |socket| all_admit || members.get_mut(&socket).is_none_or(Member::admits);
                match sending.seal(packet, admits, now, pool) {
                    Sealed::Datagram(datagram) => datagrams.push(datagram),
                    Sealed::Elsewhere(lane, packet) => elsewhere[lane].push(packet),
                    Sealed::Waits(socket, packet) => {
                        if let Some(member) = members.get_mut(&socket) {
                            let flow = flow_hash(kind, &packet, *seed);
                            member.hold(flow, packet, now, &mut counters.sockets, pool);
                            held.push(socket);
                        }
                    }
                    Sealed::Dropped => {}
                }
            }
        });
        for (lane, packets) in shared.lanes.iter().zip(elsewhere) {
            lane.packets.give(packets);
            self.counters.handed_dropped += packets.len() as u64;
            pool.recycle_all(packets.drain(..));
        }
        self.dispatch();
    }

    /// Sends the datagrams made in this turn, each path's in order.
    fn dispatch(&mut self) {
        let mut datagrams = std::mem::take(&mut self.datagrams);
        if datagrams.is_empty() {
            return;
        }
        if datagrams.windows(2).any(|pair| pair[0].path != pair[1].path) {
            // Stable; what goes one way stands together, which is what GSO wants.
            datagrams.sort_by_key(|datagram| datagram.path);
        }
        for group in datagrams.chunk_by_mut(|a, b| a.path.socket == b.path.socket) {
            self.send(group);
        }
        self.pool.recycle_all(datagrams.drain(..).map(|datagram| datagram.packet));
        self.datagrams = datagrams;
    }

    /// Sends datagrams of one socket.
    fn send(&mut self, datagrams: &mut [Datagram]) {
        let number = datagrams[0].path.socket;
        let count = datagrams.len() as u64;
        let sent = self
            .write(number, |member, sender, counters, pool| member.send(datagrams, sender, counters, pool));
        if !sent {
            self.counters.sockets.tx_closed += count;
        }
    }

    /// Sends on what was held back only because it came with much else.
    fn flush_held(&mut self) {
        while let Some(number) = self.held.pop() {
            self.held.retain(|&other| other != number);
            self.flush(number);
        }
    }

    /// Sends on from a socket's backlog, and then what waits behind it.
    fn flush(&mut self, number: u64) {
        self.write(number, |member, sender, counters, pool| member.flush(sender, counters, pool));
        loop {
            let now = self.shared.now();
            let Some(member) = self.members.get_mut(&number).filter(|member| !member.is_blocked()) else {
                return;
            };
            member.release(&mut self.packets, now, &mut self.counters.sockets, &mut self.pool);
            if self.packets.is_empty() {
                return;
            }
            self.seal();
        }
    }

    /// Writes to a socket, and asks to be told when it has room again if it had too little. False if
    /// there is no such socket, or not any longer.
    fn write(
        &mut self,
        number: u64,
        write: impl FnOnce(&mut Member, &mut Sender, &mut SocketCounters, &mut LocalPool) -> Result<(), Errno>,
    ) -> bool {
        let Some(member) = self.members.get_mut(&number) else { return false };
        let was_blocked = member.is_blocked();
        if let Err(errno) = write(member, &mut self.sender, &mut self.counters.sockets, &mut self.pool) {
            self.fail(number, errno);
            return false;
        }
        if !self.sender.refused.is_empty() {
            self.shared.forget_asked(&mut self.sender);
        }
        let data = epoll::EventData::new_u64(number);
        let watched = match (was_blocked, member.is_blocked()) {
            (false, true) => {
                self.blocked += 1;
                epoll::add(&self.room, &*member.socket, data, epoll::EventFlags::OUT)
            }
            (true, false) => {
                self.blocked -= 1;
                epoll::delete(&self.room, &*member.socket)
            }
            _ => Ok(()),
        };
        if let Err(errno) = watched {
            self.fail(number, errno);
        }
        true
    }

    fn fail(&mut self, number: u64, errno: Errno) {
        self.forget(number);
        self.shared.fail(number, errno);
    }

    fn forget(&mut self, number: u64) {
        let Some(mut member) = self.members.remove(&number) else { return };
        self.streams -= usize::from(member.socket.is_stream());
        if member.is_blocked() {
            self.blocked -= 1;
            let _ = epoll::delete(&self.room, &*member.socket);
        }
        member.abandon(&mut self.counters.sockets, &mut self.pool);
    }
}

/// Packets that are taken from the device in a turn: two full GSO runs at 1,400 bytes.
const BATCH: usize = 90;
/// Sockets served in a turn.
const READY: usize = 64;
