//! Packets in buffers that are used again.
//!
//! A packet lies in its buffer with room before and behind it, so that the data plane can put its
//! header in front and a cipher its tag behind without moving a byte. Buffers come from a [`Pool`]
//! and go back to it, so that a packet on its way costs no allocation. Packets that do not fit a
//! pooled buffer (longer than [`POOLED_LEN`]) get one of their own.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

/// Bytes kept free before a packet: enough for OpenVPN's data header, tag, framing and, on a stream, length
/// (28), and for an Ethernet header and a vnet header (26) on a device that wants them.
pub const HEADROOM: usize = 32;

/// Bytes kept free behind a packet, for a tag at the end.
pub const TAILROOM: usize = 32;

/// The longest packet that a pooled buffer holds.
pub const POOLED_LEN: usize = BUFFER_LEN - HEADROOM - TAILROOM;

/// The longest packet there is: an IP total length has 16 bits.
pub const MAX_LEN: usize = 65_535;

/// A whole packet and the buffer it lies in. Dereferences to the packet's bytes.
pub struct Packet {
    buffer: Box<[u8]>,
    start: u32,
    end: u32,
}

impl Packet {
    /// The packet's length in bytes.
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes of memory that it takes.
    pub fn footprint(&self) -> usize {
        self.buffer.len()
    }

    /// The bytes free before the packet.
    pub fn headroom(&self) -> usize {
        self.start as usize
    }

    /// The bytes free behind the packet.
    pub fn tailroom(&self) -> usize {
        self.buffer.len() - self.end as usize
    }

    /// Grows the packet by `len` bytes at its front, into the headroom; their content is unspecified.
    ///
    /// Panics if the headroom is smaller.
    pub fn grow_front(&mut self, len: usize) {
        self.start = self.start.checked_sub(len as u32).expect("packet headroom");
    }

    /// Grows the packet by `len` bytes at its end, into the tailroom; their content is unspecified.
    ///
    /// Panics if the tailroom is smaller.
    pub fn grow_back(&mut self, len: usize) {
        let end = self.end as usize + len;
        assert!(end <= self.buffer.len(), "packet tailroom");
        self.end = end as u32;
    }

    /// Takes `len` bytes off the packet's front. Panics if it is shorter.
    pub fn trim_front(&mut self, len: usize) {
        assert!(len <= self.len(), "packet shorter than what is taken off");
        self.start += len as u32;
    }

    /// Shortens the packet to its first `len` bytes. Panics if it is shorter already.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len(), "packet shorter than what is kept");
        self.end = self.start + len as u32;
    }
}

impl Deref for Packet {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.start as usize..self.end as usize]
    }
}

impl AsRef<[u8]> for Packet {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl DerefMut for Packet {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start as usize..self.end as usize]
    }
}

/// The buffers that threads share. Each thread works through a [`LocalPool`] of it.
pub struct Pool {
    free: Mutex<Vec<Box<[u8]>>>,
    limit: usize,
}

impl Pool {
    /// A pool that keeps at most `limit` free buffers (of 2 KiB each); more are given back to the system.
    pub fn new(limit: usize) -> Arc<Pool> {
        Arc::new(Pool { free: Mutex::new(Vec::new()), limit })
    }

    /// A handle for one thread.
    pub fn local(self: &Arc<Pool>) -> LocalPool {
        LocalPool { shared: self.clone(), cache: Vec::with_capacity(2 * CACHE) }
    }
}

/// One thread's share of a [`Pool`]: takes and returns buffers without a lock, and meets the
/// others only once in [`CACHE`] buffers.
pub struct LocalPool {
    shared: Arc<Pool>,
    cache: Vec<Box<[u8]>>,
}

impl LocalPool {
    /// A packet of `len` bytes of unspecified content, with head- and tailroom around it.
    ///
    /// Panics past [`MAX_LEN`].
    pub fn packet(&mut self, len: usize) -> Packet {
        assert!(len <= MAX_LEN, "packet longer than IP allows");
        let buffer = if len > POOLED_LEN {
            vec![0; HEADROOM + len + TAILROOM].into_boxed_slice()
        } else {
            self.buffer()
        };
        Packet { buffer, start: HEADROOM as u32, end: (HEADROOM + len) as u32 }
    }

    /// A packet with these bytes.
    pub fn packet_from(&mut self, bytes: &[u8]) -> Packet {
        let mut packet = self.packet(bytes.len());
        packet.copy_from_slice(bytes);
        packet
    }

    /// Gives a packet's buffer back.
    pub fn recycle(&mut self, packet: Packet) {
        if packet.buffer.len() != BUFFER_LEN {
            return;
        }
        self.cache.push(packet.buffer);
        if self.cache.len() == 2 * CACHE {
            let mut free = lock(&self.shared.free);
            let room = (self.shared.limit.saturating_sub(free.len())).min(CACHE);
            free.extend(self.cache.drain(CACHE..CACHE + room));
            drop(free);
            self.cache.truncate(CACHE);
        }
    }

    /// Gives back the buffers of all packets in `packets`, leaving it empty.
    pub fn recycle_all(&mut self, packets: impl IntoIterator<Item = Packet>) {
        packets.into_iter().for_each(|packet| self.recycle(packet));
    }

    fn buffer(&mut self) -> Box<[u8]> {
        if self.cache.is_empty() {
            let mut free = lock(&self.shared.free);
            let kept = free.len() - free.len().min(CACHE);
            self.cache.extend(free.drain(kept..));
        }
        self.cache.pop().unwrap_or_else(|| vec![0; BUFFER_LEN].into_boxed_slice())
    }
}

impl Drop for LocalPool {
    fn drop(&mut self) {
        let mut free = lock(&self.shared.free);
        let room = self.shared.limit.saturating_sub(free.len()).min(self.cache.len());
        free.extend(self.cache.drain(..room));
    }
}

/// A lock whose poison is ignored: no invariant spans a panic here.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

const BUFFER_LEN: usize = 2048;
const CACHE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_grows_and_shrinks_in_place() {
        let mut pool = Pool::new(8).local();
        let mut packet = pool.packet_from(b"payload");
        packet.grow_front(4);
        packet[..4].copy_from_slice(b"head");
        packet.grow_back(3);
        packet[11..].copy_from_slice(b"tag");
        assert_eq!(&packet[..], b"headpayloadtag");
        packet.trim_front(4);
        packet.truncate(7);
        assert_eq!(&packet[..], b"payload");
    }

    #[test]
    fn every_length_has_its_room() {
        let mut pool = Pool::new(8).local();
        for len in [0, 1, POOLED_LEN, POOLED_LEN + 1, MAX_LEN] {
            let mut packet = pool.packet(len);
            assert_eq!(packet.len(), len);
            packet.grow_front(HEADROOM);
            packet.grow_back(TAILROOM);
            pool.recycle(packet);
        }
    }

    #[test]
    fn a_pool_keeps_no_more_than_its_limit() {
        let pool = Pool::new(10);
        let mut local = pool.local();
        let packets: Vec<_> = (0..500).map(|_| local.packet(100)).collect();
        local.recycle_all(packets);
        drop(local);
        assert_eq!(lock(&pool.free).len(), 10);
    }
}
