//! A bounded queue of packets between threads.
//!
//! Packets move in batches: one lock for many. Past its capacity the newest packet is refused and
//! counted, as on a kernel's device. A consumer that runs a loop is woken once, when the queue
//! turns from empty to non-empty, and then drains it; descriptors that someone polls are kept
//! exactly in step with what a read or a write would do.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::device::Refused;
use crate::packet::{Packet, lock};

/// Someone who sleeps and can be told to look again.
pub trait Wake: Send + Sync {
    fn wake(&self);
}

/// What others poll at one end of a device. Each call says what is true now and comes under a
/// queue's lock, so that readiness and content never disagree.
pub trait Readiness: Send + Sync {
    /// Whether a packet waits.
    fn readable(&self, now: bool);
    /// Whether a write would be taken.
    fn writable(&self, now: bool);
    /// Whether nobody is at the other end.
    fn hung_up(&self, now: bool);
}

/// Someone who sees what goes through a queue, under the queue's lock: in order, and before the reader.
pub trait Observer: Send + Sync {
    /// These were taken in, and as many as `dropped` were not.
    fn pushed(&self, packets: &[Packet], dropped: u64);
    /// As many as `count` were taken in before, and dropped before anybody read them.
    fn lost(&self, count: u64);
}

/// What has gone through a queue since it was made. Whatever was written is in one of `packets`,
/// `dropped` and `errors`, or waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets and bytes that were read.
    pub packets: u64,
    pub bytes: u64,
    /// Packets lost because the queue was full or nobody was there to read it.
    pub dropped: u64,
    /// Writes that were refused: interface down, device deleted, or not a packet.
    pub errors: u64,
}

/// A bounded first-in first-out queue of packets. Any number of writers and readers.
pub struct Queue {
    inner: Mutex<Inner>,
}

struct Inner {
    packets: VecDeque<Packet>,
    capacity: usize,
    counters: Counters,
    reader: Option<Arc<dyn Wake>>,
    reader_readiness: Option<Arc<dyn Readiness>>,
    writer: Option<Arc<dyn Wake>>,
    writer_readiness: Option<Arc<dyn Readiness>>,
    writer_waits: bool,
    observer: Option<Arc<dyn Observer>>,
    watcher: Option<Arc<dyn Wake>>,
    /// The reader is not woken for now, and has to be afterwards.
    held: bool,
    owed: bool,
    up: bool,
    has_reader: bool,
    has_writer: bool,
    deleted: bool,
}

/// What either side of a queue may be told about.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    readable: bool,
    writable: bool,
    hung_up: bool,
    deleted: bool,
}

impl Queue {
    /// A queue of at most `capacity` packets, down, with nobody at either side.
    pub fn new(capacity: usize) -> Queue {
        Queue {
            inner: Mutex::new(Inner {
                packets: VecDeque::with_capacity(capacity.min(1024)),
                capacity,
                counters: Counters::default(),
                reader: None,
                reader_readiness: None,
                writer: None,
                writer_readiness: None,
                writer_waits: false,
                observer: None,
                watcher: None,
                held: false,
                owed: false,
                up: false,
                has_reader: false,
                has_writer: false,
                deleted: false,
            }),
        }
    }

    /// Up, the queue takes packets; down, it refuses them. What waits stays readable.
    pub fn set_up(&self, up: bool) {
        self.change(|inner| inner.up = up);
    }

    /// Someone reads from now on, or nobody does: then what waited is dropped, and what comes too.
    pub fn set_has_reader(&self, reads: bool) {
        self.change(|inner| {
            inner.has_reader = reads;
            if !reads {
                inner.drop_all();
            }
        });
    }

    /// Someone writes from now on, or nobody does: the reader then comes to an end after what waits.
    pub fn set_has_writer(&self, writes: bool) {
        self.change(|inner| inner.has_writer = writes);
    }

    /// From now on every packet is refused; those that waited are dropped. Both sides are woken.
    pub fn delete(&self) {
        self.change(|inner| {
            inner.deleted = true;
            inner.drop_all();
        });
    }

    /// How many packets may wait, at most [`MAX_CAPACITY`]; of a queue of no length all are dropped. Of those that
    /// wait already none is lost.
    pub fn set_capacity(&self, capacity: usize) {
        self.change(|inner| inner.capacity = capacity);
    }

    pub fn capacity(&self) -> usize {
        lock(&self.inner).capacity
    }

    /// Who is woken when the queue turns from empty to non-empty, and when its writer leaves or the
    /// device is deleted. If packets wait already, at once.
    pub fn set_reader(&self, reader: Option<Arc<dyn Wake>>) {
        let mut inner = lock(&self.inner);
        inner.reader = reader.clone();
        let waiting = !inner.packets.is_empty();
        drop(inner);
        if let (true, Some(reader)) = (waiting, reader) {
            reader.wake();
        }
    }

    /// Has the reader look again, whether or not a packet waits.
    pub fn wake_reader(&self) {
        let reader = lock(&self.inner).reader.clone();
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// What is pushed does not wake the reader before [`Queue::release`]. For a writer who has a lock that the reader,
    /// or who answers it, may want.
    pub fn hold(&self) {
        lock(&self.inner).held = true;
    }

    /// Wakes the reader if it was to be woken since [`Queue::hold`]. Harmless at any time.
    pub fn release(&self) {
        let mut inner = lock(&self.inner);
        inner.held = false;
        let owed = std::mem::take(&mut inner.owed);
        let reader = inner.reader.clone().filter(|_| owed);
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// Who is told whether a packet waits and whether a writer is there, from now on and at once.
    pub fn set_reader_readiness(&self, readiness: Option<Arc<dyn Readiness>>) {
        let mut inner = lock(&self.inner);
        inner.reader_readiness = readiness;
        let state = inner.state();
        if let Some(readiness) = &inner.reader_readiness {
            readiness.readable(state.readable);
            readiness.hung_up(state.hung_up);
        }
    }

    /// Who is told whether a packet would be taken, from now on and at once.
    pub fn set_writer_readiness(&self, readiness: Option<Arc<dyn Readiness>>) {
        let mut inner = lock(&self.inner);
        inner.writer_readiness = readiness;
        let state = inner.state();
        if let Some(readiness) = &inner.writer_readiness {
            readiness.writable(state.writable);
        }
    }

    /// Who is woken when half of the queue is free again after [`Queue::room`] said there was none,
    /// and when the device is deleted.
    pub fn set_writer(&self, writer: Option<Arc<dyn Wake>>) {
        lock(&self.inner).writer = writer;
    }

    /// Who sees every packet that is taken in from now on, and hears of every one that is dropped.
    pub fn set_observer(&self, observer: Option<Arc<dyn Observer>>) {
        lock(&self.inner).observer = observer;
    }

    /// Who is woken, once, when something passes the queue, or it changes.
    pub fn set_watcher(&self, watcher: Option<Arc<dyn Wake>>) {
        lock(&self.inner).watcher = watcher;
    }

    /// How many packets the queue would take now. On 0 the writer is woken when there is room again. A queue of no
    /// length keeps nobody waiting: it takes them to drop them.
    pub fn room(&self) -> usize {
        let mut inner = lock(&self.inner);
        if inner.capacity == 0 {
            return MAX_CAPACITY;
        }
        let room = inner.capacity.saturating_sub(inner.packets.len());
        inner.writer_waits = room == 0;
        room
    }

    /// Appends packets until the queue is full; those it has no room for, and all when nobody reads,
    /// stay in `packets` and are counted as dropped. Returns how many were taken. On an error none
    /// was, and all are counted as errors.
    pub fn push(&self, packets: &mut Vec<Packet>) -> Result<usize, Refused> {
        self.change(|inner| {
            if inner.deleted || !inner.up {
                inner.counters.errors += packets.len() as u64;
                return Err(if inner.deleted { Refused::Gone } else { Refused::Down });
            }
            let room = if inner.has_reader { inner.capacity.saturating_sub(inner.packets.len()) } else { 0 };
            let taken = room.min(packets.len());
            let dropped = (packets.len() - taken) as u64;
            inner.counters.dropped += dropped;
            if let Some(observer) = &inner.observer {
                observer.pushed(&packets[..taken], dropped);
            }
            inner.packets.extend(packets.drain(..taken));
            Ok(taken)
        })
    }

    /// Moves up to `limit` packets to the end of `packets`. Returns how many.
    pub fn pop(&self, packets: &mut Vec<Packet>, limit: usize) -> usize {
        self.change(|inner| {
            let taken = limit.min(inner.packets.len());
            let start = packets.len();
            packets.extend(inner.packets.drain(..taken));
            inner.counters.packets += taken as u64;
            inner.counters.bytes += packets[start..].iter().map(|packet| packet.len() as u64).sum::<u64>();
            taken
        })
    }

    /// Whether no packet waits and none will come unless another writer does, or the device is deleted.
    pub fn is_ended(&self) -> bool {
        let inner = lock(&self.inner);
        inner.packets.is_empty() && inner.state().hung_up
    }

    /// How many packets wait.
    pub fn len(&self) -> usize {
        lock(&self.inner).packets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn counters(&self) -> Counters {
        lock(&self.inner).counters
    }

    /// Counts writes that were refused before they came here.
    pub fn count_errors(&self, count: usize) {
        self.change(|inner| inner.counters.errors += count as u64);
    }

    /// Counts packets as dropped that were read here and then lost on their way to the reader.
    pub fn count_lost(&self, packets: u64, bytes: u64) {
        self.change(|inner| {
            inner.counters.packets -= packets;
            inner.counters.bytes -= bytes;
            inner.count_lost(packets);
        });
    }

    /// Changes the queue, and tells each side what that means for it.
    #[inline]
    fn change<R>(&self, act: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = lock(&self.inner);
        let before = inner.state();
        let result = act(&mut inner);
        let after = inner.state();
        let has_room = inner.writer_waits && inner.packets.len() <= inner.capacity / 2;
        let watcher = inner.watcher.take();
        if after == before && !has_room {
            drop(inner);
            if let Some(watcher) = watcher {
                watcher.wake();
            }
            return result;
        }
        inner.tell(before, after);
        inner.writer_waits &= !has_room;
        let deleted = after.deleted && !before.deleted;
        let left = after.hung_up && !before.hung_up;
        let filled = after.readable && !before.readable;
        inner.owed |= filled && inner.held;
        let reader = (filled && !inner.held || left || deleted).then(|| inner.reader.clone());
        let writer = (has_room || deleted).then(|| inner.writer.clone());
        drop(inner);
        [reader, writer, Some(watcher)].into_iter().flatten().flatten().for_each(|wake| wake.wake());
        result
    }
}

impl Inner {
    fn state(&self) -> State {
        State {
            readable: !self.packets.is_empty(),
            writable: self.up && self.has_reader && !self.deleted && self.packets.len() < self.capacity,
            hung_up: self.deleted || !self.has_writer,
            deleted: self.deleted,
        }
    }

    fn tell(&self, before: State, after: State) {
        if let Some(readiness) = &self.reader_readiness {
            if after.readable != before.readable {
                readiness.readable(after.readable);
            }
            if after.hung_up != before.hung_up {
                readiness.hung_up(after.hung_up);
            }
        }
        if let Some(readiness) = &self.writer_readiness
            && after.writable != before.writable
        {
            readiness.writable(after.writable);
        }
    }

    fn drop_all(&mut self) {
        self.count_lost(self.packets.len() as u64);
        self.packets.clear();
    }

    fn count_lost(&mut self, count: u64) {
        self.counters.dropped += count;
        if let (Some(observer), 1..) = (&self.observer, count) {
            observer.lost(count);
        }
    }
}

/// As many as the kernel's device takes (a ring of pointers in 4 MiB).
pub const MAX_CAPACITY: usize = 524_288;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Pool;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[derive(Default)]
    struct Level([AtomicBool; 3]);

    impl Level {
        fn get(&self) -> [bool; 3] {
            self.0.each_ref().map(|bit| bit.load(Ordering::Relaxed))
        }
    }

    impl Readiness for Level {
        fn readable(&self, now: bool) {
            assert_ne!(self.0[0].swap(now, Ordering::Relaxed), now, "told only what changed");
        }

        fn writable(&self, now: bool) {
            self.0[1].store(now, Ordering::Relaxed);
        }

        fn hung_up(&self, now: bool) {
            self.0[2].store(now, Ordering::Relaxed);
        }
    }

    fn packets(count: usize) -> Vec<Packet> {
        let mut pool = Pool::new(0).local();
        (0..count).map(|number| pool.packet_from(&[number as u8])).collect()
    }

    fn open(capacity: usize) -> Queue {
        let queue = Queue::new(capacity);
        queue.set_has_reader(true);
        queue.set_has_writer(true);
        queue.set_up(true);
        queue
    }

    #[test]
    fn the_newest_is_dropped_and_counted() {
        let queue = open(3);
        let mut given = packets(5);
        assert_eq!(queue.push(&mut given), Ok(3));
        assert_eq!(given.iter().map(|packet| packet[0]).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(queue.counters(), Counters { dropped: 2, ..Counters::default() });
        let mut got = Vec::new();
        assert_eq!(queue.pop(&mut got, 9), 3);
        assert_eq!(got.iter().map(|packet| packet[0]).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(queue.counters(), Counters { packets: 3, bytes: 3, dropped: 2, errors: 0 });
    }

    #[derive(Default)]
    struct Seen(Mutex<(Vec<u8>, u64, u64)>);

    impl Observer for Seen {
        fn pushed(&self, packets: &[Packet], dropped: u64) {
            let mut seen = lock(&self.0);
            seen.0.extend(packets.iter().map(|packet| packet[0]));
            seen.1 += dropped;
        }

        fn lost(&self, count: u64) {
            lock(&self.0).2 += count;
        }
    }

    #[test]
    fn an_observer_sees_what_is_taken_and_hears_of_all_that_is_dropped() {
        let queue = open(3);
        let seen = Arc::new(Seen::default());
        queue.set_observer(Some(seen.clone()));
        queue.push(&mut packets(5)).unwrap();
        assert_eq!(*lock(&seen.0), (vec![0, 1, 2], 2, 0));
        queue.pop(&mut Vec::new(), 1);
        queue.count_lost(1, 1);
        queue.delete();
        assert_eq!(*lock(&seen.0), (vec![0, 1, 2], 2, 3));
        assert_eq!(queue.counters().dropped, 5);
    }

    #[test]
    fn a_watcher_is_woken_once() {
        let queue = open(3);
        let woken = Arc::new(Woken::default());
        let acts: [&dyn Fn(); 4] = [
            &|| assert!(queue.push(&mut packets(1)).is_ok()),
            &|| assert!(queue.pop(&mut Vec::new(), 1) <= 1),
            &|| queue.count_errors(1),
            &|| queue.set_up(false),
        ];
        for (number, act) in acts.into_iter().enumerate() {
            queue.set_watcher(Some(woken.clone()));
            assert_eq!(woken.0.load(Ordering::Relaxed), number as u32);
            act();
            act();
            assert_eq!(woken.0.load(Ordering::Relaxed), number as u32 + 1);
        }
    }

    #[test]
    fn a_queue_of_no_length_drops_everything_and_keeps_nobody_waiting() {
        let queue = open(0);
        assert!(queue.room() > 0);
        assert_eq!(queue.push(&mut packets(3)), Ok(0));
        assert_eq!(queue.counters().dropped, 3);
        queue.set_capacity(1);
        assert_eq!(queue.push(&mut packets(3)), Ok(1));
    }

    #[test]
    fn the_reader_is_woken_once_from_empty_to_non_empty() {
        let queue = open(10);
        let woken = Arc::new(Woken::default());
        queue.set_reader(Some(woken.clone()));
        queue.push(&mut packets(2)).unwrap();
        queue.push(&mut packets(2)).unwrap();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        queue.pop(&mut Vec::new(), 3);
        queue.push(&mut packets(1)).unwrap();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        queue.pop(&mut Vec::new(), 9);
        queue.push(&mut packets(1)).unwrap();
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        queue.set_has_writer(false);
        assert_eq!(woken.0.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_writer_that_found_no_room_is_woken_at_half() {
        let queue = open(4);
        let woken = Arc::new(Woken::default());
        queue.set_writer(Some(woken.clone()));
        queue.push(&mut packets(4)).unwrap();
        assert_eq!(queue.room(), 0);
        queue.pop(&mut Vec::new(), 1);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        queue.pop(&mut Vec::new(), 1);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        queue.pop(&mut Vec::new(), 1);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn readiness_is_exact() {
        let queue = open(2);
        queue.push(&mut packets(1)).unwrap();
        let (reader, writer) = (Arc::new(Level::default()), Arc::new(Level::default()));
        queue.set_reader_readiness(Some(reader.clone()));
        queue.set_writer_readiness(Some(writer.clone()));
        assert_eq!((reader.get(), writer.get()), ([true, false, false], [false, true, false]));
        queue.push(&mut packets(1)).unwrap();
        assert_eq!(writer.get(), [false, false, false]);
        queue.set_capacity(3);
        assert_eq!(writer.get(), [false, true, false]);
        queue.pop(&mut Vec::new(), 9);
        assert_eq!((reader.get(), writer.get()), ([false, false, false], [false, true, false]));
        queue.set_up(false);
        assert_eq!((reader.get(), writer.get()), ([false, false, false], [false, false, false]));
        queue.set_up(true);
        queue.push(&mut packets(1)).unwrap();
        queue.set_has_writer(false);
        assert_eq!(reader.get(), [true, false, true]);
        assert!(!queue.is_ended());
        queue.set_has_reader(false);
        assert_eq!((reader.get(), writer.get()), ([false, false, true], [false, false, false]));
        assert!(queue.is_ended());
    }

    #[test]
    fn a_reader_is_woken_after_its_writer_let_go() {
        let (queue, reader) = (open(4), Arc::new(Woken::default()));
        queue.set_reader(Some(reader.clone()));
        let woken = || reader.0.load(Ordering::Relaxed);
        queue.hold();
        queue.push(&mut packets(2)).unwrap();
        assert_eq!(woken(), 0);
        queue.release();
        queue.release();
        assert_eq!(woken(), 1);
        queue.pop(&mut Vec::new(), 9);
        queue.push(&mut packets(1)).unwrap();
        assert_eq!(woken(), 2);
        queue.hold();
        queue.push(&mut packets(1)).unwrap();
        queue.release();
        assert_eq!(woken(), 2, "it has packets already");
        queue.hold();
        queue.delete();
        assert_eq!(woken(), 3);
    }

    #[test]
    fn without_a_reader_it_drops_and_counts() {
        let queue = open(4);
        queue.push(&mut packets(2)).unwrap();
        queue.set_has_reader(false);
        let mut given = packets(1);
        assert_eq!(queue.push(&mut given), Ok(0));
        assert_eq!(queue.counters(), Counters { dropped: 3, ..Counters::default() });
        queue.set_has_reader(true);
        assert_eq!(queue.push(&mut given), Ok(1));
    }

    #[test]
    fn down_or_deleted_it_refuses_and_counts() {
        let queue = open(4);
        queue.set_up(false);
        assert_eq!(queue.push(&mut packets(2)), Err(Refused::Down));
        queue.delete();
        assert_eq!(queue.push(&mut packets(1)), Err(Refused::Gone));
        assert_eq!(queue.counters(), Counters { errors: 3, ..Counters::default() });
    }
}
