//! A bounded queue of packets between threads.
//!
//! Packets move in batches: one lock for many. Past its capacity the newest packet is refused and
//! counted, as on a kernel's device. A consumer that runs a loop is woken once, when the queue
//! turns from empty to non-empty, and then drains it; a descriptor that someone polls is kept
//! exactly in step with "a packet waits".

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use crate::packet::{Packet, lock};

/// Someone who runs a loop and can be told to look again.
pub trait Wake: Send + Sync {
    fn wake(&self);
}

/// A readiness that others poll. Both calls come under the queue's lock, so that readiness and
/// content never disagree.
pub trait Readiness: Send + Sync {
    fn set(&self);
    fn clear(&self);
}

/// What has gone through a queue since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets and bytes that were taken in.
    pub packets: u64,
    pub bytes: u64,
    /// Packets refused because the queue was full or nobody was there to read it.
    pub dropped: u64,
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
    readiness: Option<Arc<dyn Readiness>>,
    writer: Option<Arc<dyn Wake>>,
    writer_waits: bool,
    open: bool,
}

impl Queue {
    /// A queue of at most `capacity` packets. It is closed until [`Queue::open`].
    pub fn new(capacity: usize) -> Queue {
        Queue {
            inner: Mutex::new(Inner {
                packets: VecDeque::with_capacity(capacity.min(1024)),
                capacity,
                counters: Counters::default(),
                reader: None,
                readiness: None,
                writer: None,
                writer_waits: false,
                open: false,
            }),
        }
    }

    /// From now on the queue takes packets.
    pub fn open(&self) {
        lock(&self.inner).open = true;
    }

    /// From now on every packet is dropped and counted; those that waited are dropped too.
    /// The reader and the writer in wait are woken.
    pub fn close(&self) {
        let mut inner = lock(&self.inner);
        inner.open = false;
        inner.counters.dropped += inner.packets.len() as u64;
        inner.packets.clear();
        if let Some(readiness) = &inner.readiness {
            readiness.clear();
        }
        let wakes = [inner.reader.clone(), inner.writer.clone()];
        drop(inner);
        wakes.into_iter().flatten().for_each(|wake| wake.wake());
    }

    /// Counts packets that were taken from the queue and then lost on their way to the reader.
    pub fn count_dropped(&self, count: usize) {
        lock(&self.inner).counters.dropped += count as u64;
    }

    /// Who is woken when the queue turns from empty to non-empty. If packets wait already, at once.
    pub fn set_reader(&self, reader: Option<Arc<dyn Wake>>) {
        let mut inner = lock(&self.inner);
        inner.reader = reader.clone();
        let waiting = !inner.packets.is_empty();
        drop(inner);
        if let (true, Some(reader)) = (waiting, reader) {
            reader.wake();
        }
    }

    /// Whose readiness says whether a packet waits; it is brought in step at once.
    pub fn set_readiness(&self, readiness: Option<Arc<dyn Readiness>>) {
        let mut inner = lock(&self.inner);
        inner.readiness = readiness;
        if let Some(readiness) = &inner.readiness {
            if inner.packets.is_empty() { readiness.clear() } else { readiness.set() }
        }
    }

    /// Who is woken when half of the queue is free again after [`Queue::room`] said there was none.
    pub fn set_writer(&self, writer: Option<Arc<dyn Wake>>) {
        lock(&self.inner).writer = writer;
    }

    /// How many packets the queue would take now. On 0 the writer is woken when there is room again.
    pub fn room(&self) -> usize {
        let mut inner = lock(&self.inner);
        let room = inner.capacity.saturating_sub(inner.packets.len());
        inner.writer_waits = room == 0;
        room
    }

    /// Appends packets until the queue is full; those refused stay in `packets`, and are counted as
    /// dropped. Returns how many were taken.
    pub fn push(&self, packets: &mut Vec<Packet>) -> usize {
        if packets.is_empty() {
            return 0;
        }
        let mut inner = lock(&self.inner);
        let room = if inner.open { inner.capacity.saturating_sub(inner.packets.len()) } else { 0 };
        let taken = room.min(packets.len());
        inner.counters.dropped += (packets.len() - taken) as u64;
        if taken == 0 {
            return 0;
        }
        inner.counters.packets += taken as u64;
        inner.counters.bytes += packets[..taken].iter().map(|packet| packet.len() as u64).sum::<u64>();
        let was_empty = inner.packets.is_empty();
        inner.packets.extend(packets.drain(..taken));
        let mut reader = None;
        if was_empty {
            if let Some(readiness) = &inner.readiness {
                readiness.set();
            }
            reader = inner.reader.clone();
        }
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
        taken
    }

    /// Moves up to `limit` packets to the end of `packets`. Returns how many.
    pub fn pop(&self, packets: &mut Vec<Packet>, limit: usize) -> usize {
        let mut inner = lock(&self.inner);
        let taken = limit.min(inner.packets.len());
        if taken == 0 {
            return 0;
        }
        packets.extend(inner.packets.drain(..taken));
        if inner.packets.is_empty()
            && let Some(readiness) = &inner.readiness
        {
            readiness.clear();
        }
        let mut writer = None;
        if inner.writer_waits && inner.packets.len() <= inner.capacity / 2 {
            inner.writer_waits = false;
            writer = inner.writer.clone();
        }
        drop(inner);
        if let Some(writer) = writer {
            writer.wake();
        }
        taken
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
}

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
    struct Level(AtomicBool);

    impl Readiness for Level {
        fn set(&self) {
            self.0.store(true, Ordering::Relaxed);
        }

        fn clear(&self) {
            self.0.store(false, Ordering::Relaxed);
        }
    }

    fn packets(count: usize) -> Vec<Packet> {
        let mut pool = Pool::new(0).local();
        (0..count).map(|number| pool.packet_from(&[number as u8])).collect()
    }

    fn open(capacity: usize) -> Queue {
        let queue = Queue::new(capacity);
        queue.open();
        queue
    }

    #[test]
    fn the_newest_is_dropped_and_counted() {
        let queue = open(3);
        let mut given = packets(5);
        assert_eq!(queue.push(&mut given), 3);
        assert_eq!(given.iter().map(|packet| packet[0]).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(queue.counters(), Counters { packets: 3, bytes: 3, dropped: 2 });
        let mut got = Vec::new();
        assert_eq!(queue.pop(&mut got, 9), 3);
        assert_eq!(got.iter().map(|packet| packet[0]).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn the_reader_is_woken_once_from_empty_to_non_empty() {
        let queue = open(10);
        let woken = Arc::new(Woken::default());
        queue.set_reader(Some(woken.clone()));
        queue.push(&mut packets(2));
        queue.push(&mut packets(2));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        queue.pop(&mut Vec::new(), 3);
        queue.push(&mut packets(1));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        queue.pop(&mut Vec::new(), 9);
        queue.push(&mut packets(1));
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_writer_that_found_no_room_is_woken_at_half() {
        let queue = open(4);
        let woken = Arc::new(Woken::default());
        queue.set_writer(Some(woken.clone()));
        queue.push(&mut packets(4));
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
        let queue = open(4);
        queue.push(&mut packets(1));
        let level = Arc::new(Level::default());
        queue.set_readiness(Some(level.clone()));
        assert!(level.0.load(Ordering::Relaxed));
        queue.pop(&mut Vec::new(), 1);
        assert!(!level.0.load(Ordering::Relaxed));
        queue.push(&mut packets(2));
        queue.pop(&mut Vec::new(), 1);
        assert!(level.0.load(Ordering::Relaxed));
        queue.close();
        assert!(!level.0.load(Ordering::Relaxed));
    }

    #[test]
    fn a_closed_queue_drops_and_counts() {
        let queue = open(4);
        queue.push(&mut packets(2));
        queue.close();
        let mut given = packets(1);
        assert_eq!(queue.push(&mut given), 0);
        assert_eq!(queue.counters(), Counters { packets: 2, bytes: 2, dropped: 3 });
        queue.open();
        assert_eq!(queue.push(&mut given), 1);
    }
}
