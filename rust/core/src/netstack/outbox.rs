//! Packets on their way out of the stack.

use crate::device::End;
use crate::netstack::counters::{Counters, Dropped};
use crate::packet::{LocalPool, Packet};

/// The packets of one round, written straight into pooled buffers, and how many more the device
/// would take.
pub struct Outbox {
    packets: Vec<Packet>,
    pool: LocalPool,
    room: usize,
    overflow: usize,
}

impl Outbox {
    pub fn new(pool: LocalPool) -> Outbox {
        Outbox { packets: Vec::new(), pool, room: 0, overflow: 0 }
    }

    pub fn pool(&mut self) -> &mut LocalPool {
        &mut self.pool
    }

    /// Whether the device takes one more packet. Who can wait, waits when it does not.
    pub fn has_room(&self) -> bool {
        self.packets.len() < self.room
    }

    /// Appends a packet of `len` bytes that `write` fills in. Beyond the device's room only
    /// [`SLACK`] packets are kept; then it is lost, and counted at the next flush.
    pub fn emit<R>(&mut self, len: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = self.pool.packet(len);
        let result = write(&mut packet);
        if self.packets.len() < self.room + SLACK {
            self.packets.push(packet);
        } else {
            self.overflow += 1;
            self.pool.recycle(packet);
        }
        result
    }

    /// The last packet appended.
    pub fn last(&self) -> Option<&[u8]> {
        self.packets.last().map(|packet| &packet[..])
    }

    /// Hands the device what it has room for, and learns its room for the next round. What it
    /// refuses for another reason is lost and counted.
    pub fn flush(&mut self, end: &End, counters: &mut Counters) {
        counters.drops(Dropped::Device, std::mem::take(&mut self.overflow));
        if !self.packets.is_empty() {
            let later = self.packets.split_off(self.room.min(self.packets.len()));
            counters.tx_packets += end.send(&mut self.packets).unwrap_or(0) as u64;
            counters.drops(Dropped::Device, self.packets.len());
            let lost = std::mem::replace(&mut self.packets, later);
            self.pool.recycle_all(lost);
        }
        self.room = if end.writable().is_ok() { end.outgoing().room() } else { SLACK };
    }

    /// Empties the outbox into `packets`, as a device with endless room would.
    #[cfg(test)]
    pub fn take(&mut self, packets: &mut Vec<Packet>) {
        self.room = 1 << 20;
        packets.append(&mut self.packets);
    }
}

/// Answers that are kept although the device has no room: a received segment may cause one at
/// once, and it is too late to wait.
const SLACK: usize = 256;
