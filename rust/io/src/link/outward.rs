//! The way from a device to the descriptors that are joined to one of its ends.
//!
//! Who writes to a queue that was empty puts the packets into the pair himself, as far as it has room: a
//! program that sleeps there wakes to them without a thread of ours between, as on a kernel's device.
//! He never waits for another who does the same: he leaves the packets to the link's thread then, and so
//! he does with what is more than a batch, and with the device's end.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use ginnel_core::device::{Device, Side};
use ginnel_core::flow::flow_hash;
use ginnel_core::packet::{LocalPool, Packet, Pool};
use ginnel_core::queue::{Queue, Wake};
use rustix::io::Errno;

use crate::link::watch::Watch;
use crate::seqpacket::{MESSAGES, PacketSocket};
use crate::wake::Waker;

/// Reads one end of a device for as long as it has members: the link holds that end then.
pub struct Outward {
    inner: Mutex<Inner>,
    thread: Arc<Waker>,
}

/// What is left to do after a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing, or nothing before there is room in a descriptor.
    Nothing,
    /// More packets may wait.
    More,
    /// The device is deleted, or nobody is at its other end.
    Ended,
}

struct Inner {
    device: Arc<Device>,
    side: Side,
    members: BTreeMap<u64, Member>,
    /// Their numbers, for choosing one by a flow's hash.
    numbers: Vec<u64>,
    packets: Vec<Packet>,
    pool: LocalPool,
    /// Where the link's thread waits for room in a descriptor.
    watch: Watch,
}

struct Member {
    socket: Arc<PacketSocket>,
    /// Packets that wait for room in the socket.
    backlog: VecDeque<Packet>,
    blocked: bool,
}

impl Outward {
    /// `thread`: who is woken to what a writer has left.
    pub fn new(
        device: Arc<Device>,
        side: Side,
        pool: &Arc<Pool>,
        watch: Watch,
        thread: Arc<Waker>,
    ) -> Outward {
        let inner = Inner {
            device,
            side,
            members: BTreeMap::new(),
            numbers: Vec::new(),
            packets: Vec::with_capacity(BATCH),
            pool: pool.local(),
            watch,
        };
        Outward { inner: Mutex::new(inner), thread }
    }

    pub fn add(&self, number: u64, socket: Arc<PacketSocket>) {
        let mut inner = self.lock();
        inner.members.insert(number, Member { socket, backlog: VecDeque::new(), blocked: false });
        inner.number_members();
    }

    /// From now on this member is given nothing; what waited for it is dropped.
    pub fn remove(&self, number: u64) {
        let mut inner = self.lock();
        if let Some(member) = inner.members.remove(&number) {
            inner.number_members();
            if member.blocked {
                inner.watch.want_room(&*member.socket, number, false);
            }
            inner.count_lost(member.backlog);
        }
    }

    /// From now on the link's thread waits there.
    pub fn move_to(&self, watch: Watch) {
        let mut inner = self.lock();
        for (&number, member) in inner.members.iter().filter(|(_, member)| member.blocked) {
            watch.want_room(&*member.socket, number, true);
        }
        inner.watch = watch;
    }

    /// One batch from the device to the programs.
    pub fn deliver(&self) -> Left {
        self.lock().deliver()
    }

    /// As much of a member's backlog as its socket takes.
    pub fn flush(&self, number: u64) {
        self.lock().flush(number);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Outward {
    fn wake(&self) {
        let left = match self.inner.try_lock() {
            Ok(mut inner) => inner.deliver(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().deliver(),
            // Who is at it may have looked at the queue before.
            Err(TryLockError::WouldBlock) => Left::More,
        };
        if left != Left::Nothing {
            self.thread.wake();
        }
    }
}

impl Inner {
    /// Asks nothing of the device but its queue: the device may be locked by who wakes us.
    fn deliver(&mut self) -> Left {
        if self.is_held_back() {
            return Left::Nothing;
        }
        let mut packets = std::mem::take(&mut self.packets);
        let count = self.queue().pop(&mut packets, BATCH);
        let left = match count {
            0 if self.queue().is_ended() => Left::Ended,
            BATCH => Left::More,
            _ => Left::Nothing,
        };
        let mut lost = Vec::new();
        for packet in packets.drain(..) {
            let chosen = match self.numbers.as_slice() {
                [only] => *only,
                several => several[flow_hash(self.device.kind(), &packet, 0) as usize % several.len()],
            };
            match self.members.get_mut(&chosen) {
                Some(member) if member.backlog.len() < MAX_BACKLOG => member.backlog.push_back(packet),
                _ => lost.push(packet),
            }
        }
        self.packets = packets;
        self.count_lost(lost);
        for index in 0..self.numbers.len() {
            self.flush(self.numbers[index]);
        }
        left
    }

    fn flush(&mut self, number: u64) {
        let Some(member) = self.members.get_mut(&number) else { return };
        let mut blocked = false;
        let mut lost = Vec::new();
        while !member.backlog.is_empty() && !blocked {
            let packets = member.backlog.make_contiguous();
            let count = packets.len().min(MESSAGES);
            match member.socket.send(packets) {
                Ok(sent) => {
                    blocked = sent < count;
                    self.pool.recycle_all(member.backlog.drain(..sent));
                }
                // Longer than this system lets a buffer be (net.core.wmem_max): there will never be room.
                Err(Errno::MSGSIZE) => lost.extend(member.backlog.pop_front()),
                // Another shows when the socket is read, and is dealt with there.
                Err(_) => blocked = true,
            }
        }
        if std::mem::replace(&mut member.blocked, blocked) != blocked {
            self.watch.want_room(&*member.socket, number, blocked);
        }
        self.count_lost(lost);
    }

    /// A single program that does not read holds the device's queue back, where the newest is dropped.
    /// One of several must not.
    fn is_held_back(&self) -> bool {
        match self.numbers.as_slice() {
            [] => true,
            [only] => self.members[only].blocked,
            _ => false,
        }
    }

    fn number_members(&mut self) {
        self.numbers = self.members.keys().copied().collect();
    }

    fn count_lost(&mut self, lost: impl IntoIterator<Item = Packet>) {
        let (mut packets, mut bytes) = (0, 0);
        for packet in lost {
            packets += 1;
            bytes += packet.len() as u64;
            self.pool.recycle(packet);
        }
        if packets > 0 {
            self.queue().count_lost(packets, bytes);
        }
    }

    fn queue(&self) -> &Queue {
        self.device.incoming(self.side)
    }
}

const BATCH: usize = 64;
/// Packets that wait for one of several programs.
const MAX_BACKLOG: usize = 500;
