//! Packets on their way out of the stack.

use crate::device::End;
use crate::netstack::counters::{Counters, Dropped};
use crate::packet::{LocalPool, Packet};

/// The packets of one round, written straight into pooled buffers, and how many more the device
/// would take.
pub struct Outbox {
    packets: Vec<Packet>,
    /// How many of the packets, from the first on, are as the device is to have them.
    ready: usize,
    /// Frames of the link's own, which need no way to be found.
    frames: Vec<Packet>,
    pool: LocalPool,
    room: usize,
    overflow: usize,
    /// Whether the packet emitted last was kept.
    kept: bool,
}

impl Outbox {
    pub fn new(pool: LocalPool) -> Outbox {
        let (packets, frames) = (Vec::new(), Vec::new());
        Outbox { packets, ready: 0, frames, pool, room: 0, overflow: 0, kept: false }
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
        self.kept = self.packets.len() < self.room + SLACK;
        if self.kept {
            self.packets.push(packet);
        } else {
            self.overflow += 1;
            self.pool.recycle(packet);
        }
        result
    }

    /// Changes the packet that was emitted last, if it was kept.
    pub fn amend_last(&mut self, change: impl FnOnce(&mut [u8])) {
        if self.kept
            && let Some(packet) = self.packets.last_mut()
        {
            change(packet);
        }
    }

    /// Appends a frame of `len` bytes that is to go out as it is.
    pub fn emit_frame(&mut self, len: usize, write: impl FnOnce(&mut [u8])) {
        if self.frames.len() < SLACK {
            let mut frame = self.pool.packet(len);
            write(&mut frame);
            self.frames.push(frame);
        } else {
            self.overflow += 1;
        }
    }

    /// Takes a packet that is as the device is to have it, and has waited: it goes before those of this round.
    pub fn push_frame(&mut self, frame: Packet) {
        if self.packets.len() + self.frames.len() < self.room + SLACK {
            self.packets.insert(self.ready, frame);
            self.ready += 1;
        } else {
            self.overflow += 1;
            self.pool.recycle(frame);
        }
    }

    /// Shows `pass` every packet that has not been through here. Those for which it returns something
    /// are taken out, together with that; the others are ready for the device.
    pub fn divert<T>(&mut self, mut pass: impl FnMut(&mut Packet) -> Option<T>) -> Vec<(Packet, T)> {
        let mut reasons = Vec::new();
        let fresh = self.packets.extract_if(self.ready.., |packet| match pass(packet) {
            Some(reason) => {
                reasons.push(reason);
                true
            }
            None => false,
        });
        let diverted: Vec<Packet> = fresh.collect();
        self.ready = self.packets.len();
        diverted.into_iter().zip(reasons).collect()
    }

    /// The last packet appended.
    pub fn last(&self) -> Option<&[u8]> {
        self.packets.last().map(|packet| &packet[..])
    }

    /// Hands the device what it has room for, and learns its room for the next round. What it
    /// refuses for another reason is lost and counted.
    pub fn flush(&mut self, end: &End, counters: &mut Counters) {
        counters.drops(Dropped::Device, std::mem::take(&mut self.overflow));
        self.packets.append(&mut self.frames);
        if self.packets.len() > self.room {
            self.learn_room(end);
        }
        if !self.packets.is_empty() {
            let later = self.packets.split_off(self.room.min(self.packets.len()));
            counters.tx_packets += end.send(&mut self.packets).unwrap_or(0) as u64;
            counters.drops(Dropped::Device, self.packets.len());
            let lost = std::mem::replace(&mut self.packets, later);
            self.pool.recycle_all(lost);
        }
        self.ready = self.packets.len();
        self.learn_room(end);
    }

    fn learn_room(&mut self, end: &End) {
        self.room = if end.writable().is_ok() { end.outgoing().room() } else { SLACK };
    }

    /// Empties the outbox into `packets`, as a device with endless room would.
    #[cfg(test)]
    pub fn take(&mut self, packets: &mut Vec<Packet>) {
        self.room = 1 << 20;
        self.ready = 0;
        packets.append(&mut self.packets);
        packets.append(&mut self.frames);
    }
}

/// Answers that are kept although the device has no room: a received segment may cause one at
/// once, and it is too late to wait.
const SLACK: usize = 256;
