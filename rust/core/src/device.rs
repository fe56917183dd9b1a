//! The memory device: two ends, a bounded queue each way.
//!
//! What is written at one end is read at the other, whole, in order, once. The interface end
//! belongs to a network stack and decides whether the device is up; the application end belongs to
//! a program. A new device is down.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::frame::ETHERNET_HEADER;
use crate::packet::{MAX_LEN, Packet, lock};
use crate::queue::{Counters, Observer, Queue, Wake};

/// The lowest and highest MTU; an Ethernet frame needs 14 bytes of the highest for its header.
pub const MIN_MTU: u32 = 68;
pub const MAX_MTU: u32 = MAX_LEN as u32;

/// What a device carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IP packets, point to point.
    Tun,
    /// Ethernet frames.
    Tap,
}

/// One of the two ends of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Application,
    Interface,
}

impl Side {
    /// The one at the other end.
    pub fn other(self) -> Side {
        match self {
            Side::Application => Side::Interface,
            Side::Interface => Side::Application,
        }
    }
}

/// Why packets were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The interface is down (EIO).
    Down,
    /// Not a packet of this device's kind, or longer than any packet is (EINVAL).
    Malformed,
    /// The device or this end of it is gone (EBADFD).
    Gone,
}

/// What a device counted, as its interface sees it: received is what the application wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    pub received: Counters,
    pub sent: Counters,
}

/// A device with two ends in memory.
pub struct Device {
    kind: Kind,
    mtu: AtomicU32,
    state: Mutex<State>,
    to_interface: Queue,
    to_application: Queue,
}

/// Who changes it tells both queues before he lets go of the lock.
#[derive(Default)]
struct State {
    up: bool,
    deleted: bool,
    attached: [bool; 2],
}

impl Device {
    /// A device that is down, with both ends free and queues of `capacity` packets.
    pub fn new(kind: Kind, mtu: u32, capacity: usize) -> Arc<Device> {
        Arc::new(Device {
            kind,
            mtu: AtomicU32::new(mtu),
            state: Mutex::default(),
            to_interface: Queue::new(capacity),
            to_application: Queue::new(capacity),
        })
    }

    /// Attaches to a free end; `None` where somebody holds it or the device is deleted.
    pub fn attach(self: &Arc<Device>, side: Side) -> Option<End> {
        let mut state = lock(&self.state);
        if state.deleted || std::mem::replace(&mut state.attached[side as usize], true) {
            return None;
        }
        let end = End { device: self.clone(), side };
        end.incoming().set_has_reader(true);
        end.outgoing().set_has_writer(true);
        Some(end)
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn mtu(&self) -> u32 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Sets the MTU. `false` when it is out of range, and nothing changes.
    pub fn set_mtu(&self, mtu: u32) -> bool {
        let highest = if self.kind == Kind::Tap { MAX_MTU - ETHERNET_HEADER as u32 } else { MAX_MTU };
        let valid = (MIN_MTU..=highest).contains(&mtu);
        if valid {
            self.mtu.store(mtu, Ordering::Relaxed);
        }
        valid
    }

    /// How many packets wait for a reader, each way.
    pub fn capacity(&self) -> usize {
        self.to_application.capacity()
    }

    pub fn set_capacity(&self, capacity: usize) {
        let _state = lock(&self.state);
        self.to_interface.set_capacity(capacity);
        self.to_application.set_capacity(capacity);
    }

    pub fn is_up(&self) -> bool {
        lock(&self.state).up
    }

    /// Sets the interface up or down, and wakes its reader; `false` once the device is deleted. What waits
    /// stays readable.
    pub fn set_up(&self, up: bool) -> bool {
        let mut state = lock(&self.state);
        if !state.deleted {
            self.follow_up(&mut state, up);
        }
        let deleted = state.deleted;
        drop(state);
        self.to_interface.wake_reader();
        !deleted
    }

    pub fn is_deleted(&self) -> bool {
        lock(&self.state).deleted
    }

    /// Removes the device: both ends fail from now on, and whoever waits is woken.
    pub fn delete(&self) {
        let mut state = lock(&self.state);
        state.deleted = true;
        self.follow_up(&mut state, false);
        self.to_interface.delete();
        self.to_application.delete();
    }

    pub fn is_attached(&self, side: Side) -> bool {
        lock(&self.state).attached[side as usize]
    }

    pub fn statistics(&self) -> Statistics {
        Statistics { received: self.to_interface.counters(), sent: self.to_application.counters() }
    }

    /// Who sees the packets on their way to each end, from now on.
    pub fn set_observers(
        &self,
        application: Option<Arc<dyn Observer>>,
        interface: Option<Arc<dyn Observer>>,
    ) {
        self.to_application.set_observer(application);
        self.to_interface.set_observer(interface);
    }

    /// Who is woken, once, when something passes the device, or it changes.
    pub fn set_watcher(&self, watcher: &Arc<dyn Wake>) {
        self.to_interface.set_watcher(Some(watcher.clone()));
        self.to_application.set_watcher(Some(watcher.clone()));
    }

    /// Counts writes at a side that were refused before they became packets.
    pub fn count_errors(&self, side: Side, count: usize) {
        match side {
            Side::Application => self.to_interface.count_errors(count),
            Side::Interface => self.to_application.count_errors(count),
        }
    }

    /// The queue that this side reads.
    pub fn incoming(&self, side: Side) -> &Queue {
        match side {
            Side::Application => &self.to_application,
            Side::Interface => &self.to_interface,
        }
    }

    fn check(&self, packet: &[u8]) -> Result<(), Refused> {
        let fits = match self.kind {
            Kind::Tun => matches!(packet.first().map(|byte| byte >> 4), Some(4 | 6)),
            Kind::Tap => packet.len() >= ETHERNET_HEADER,
        };
        if fits && packet.len() <= MAX_LEN { Ok(()) } else { Err(Refused::Malformed) }
    }

    fn follow_up(&self, state: &mut State, up: bool) {
        state.up = up;
        self.to_interface.set_up(up);
        self.to_application.set_up(up);
    }
}

/// A held end of a device. Dropped, the end is free again.
pub struct End {
    device: Arc<Device>,
    side: Side,
}

impl End {
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub fn side(&self) -> Side {
        self.side
    }

    /// The queue that this end reads. For wake-ups and readiness; packets go through [`End::receive`].
    pub fn incoming(&self) -> &Queue {
        self.device.incoming(self.side)
    }

    /// The queue that this end writes. For wake-ups and room; packets go through [`End::send`].
    pub fn outgoing(&self) -> &Queue {
        match self.side {
            Side::Application => &self.device.to_interface,
            Side::Interface => &self.device.to_application,
        }
    }

    /// Whether a write would be refused now, and why.
    pub fn writable(&self) -> Result<(), Refused> {
        let state = lock(&self.device.state);
        if state.deleted {
            Err(Refused::Gone)
        } else if !state.up {
            Err(Refused::Down)
        } else {
            Ok(())
        }
    }

    /// Whether the device would take this packet, apart from its state.
    pub fn check(&self, packet: &[u8]) -> Result<(), Refused> {
        self.device.check(packet)
    }

    /// Writes all of `packets`. Those that are malformed are counted as errors, those for which
    /// there is no room (or no reader) as dropped; both stay in `packets` for the caller to recycle.
    /// Returns how many the other end will read. On an error none was taken, and all are counted.
    pub fn send(&self, packets: &mut Vec<Packet>) -> Result<usize, Refused> {
        let whole = packets.iter().take_while(|packet| self.device.check(packet).is_ok()).count();
        if whole == packets.len() {
            return self.outgoing().push(packets);
        }
        let (mut sound, mut refused): (Vec<_>, Vec<_>) =
            packets.drain(..).partition(|packet| self.device.check(packet).is_ok());
        self.count_errors(refused.len());
        let taken = self.outgoing().push(&mut sound);
        packets.append(&mut sound);
        packets.append(&mut refused);
        taken
    }

    /// Moves up to `limit` waiting packets to the end of `packets`; 0 when none waits.
    pub fn receive(&self, packets: &mut Vec<Packet>, limit: usize) -> Result<usize, Refused> {
        match self.incoming().pop(packets, limit) {
            0 if self.device.is_deleted() => Err(Refused::Gone),
            taken => Ok(taken),
        }
    }

    /// Counts writes that were refused before they became packets.
    pub fn count_errors(&self, count: usize) {
        self.outgoing().count_errors(count);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let (incoming, outgoing) = (self.incoming(), self.outgoing());
        incoming.set_reader(None);
        incoming.set_reader_readiness(None);
        outgoing.set_writer(None);
        outgoing.set_writer_readiness(None);
        let mut state = lock(&self.device.state);
        state.attached[self.side as usize] = false;
        if self.side == Side::Interface {
            self.device.follow_up(&mut state, false);
        }
        incoming.set_has_reader(false);
        outgoing.set_has_writer(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Pool;

    fn packets(contents: &[&[u8]]) -> Vec<Packet> {
        let mut pool = Pool::new(0).local();
        contents.iter().map(|content| pool.packet_from(content)).collect()
    }

    fn up(kind: Kind, capacity: usize) -> (Arc<Device>, End, End) {
        let device = Device::new(kind, 1500, capacity);
        let application = device.attach(Side::Application).unwrap();
        let interface = device.attach(Side::Interface).unwrap();
        device.set_up(true);
        (device, application, interface)
    }

    #[test]
    fn a_packet_written_at_one_end_is_read_at_the_other() {
        let (_device, application, interface) = up(Kind::Tun, 4);
        assert_eq!(application.send(&mut packets(&[b"\x45a", b"\x60b"])), Ok(2));
        let mut got = Vec::new();
        assert_eq!(interface.receive(&mut got, 9), Ok(2));
        assert_eq!(got.iter().map(|packet| &packet[..]).collect::<Vec<_>>(), [b"\x45a", b"\x60b"]);
        assert_eq!(application.receive(&mut got, 9), Ok(0));
    }

    #[test]
    fn down_refuses_and_counts() {
        let device = Device::new(Kind::Tun, 1500, 4);
        let application = device.attach(Side::Application).unwrap();
        assert_eq!(application.send(&mut packets(&[b"\x45"])), Err(Refused::Down));
        assert_eq!(device.statistics().received.errors, 1);
    }

    #[test]
    fn malformed_packets_are_errors_and_the_rest_goes_on() {
        let (device, application, interface) = up(Kind::Tun, 4);
        assert_eq!(application.send(&mut packets(&[b"\x45", b"", b"\x50", b"\x61"])), Ok(2));
        assert_eq!(device.statistics().received.errors, 2);
        assert_eq!(interface.receive(&mut Vec::new(), 9), Ok(2));
        let (device, application, _interface) = up(Kind::Tap, 4);
        assert_eq!(application.send(&mut packets(&[&[0; 13], &[0; 14]])), Ok(1));
        assert_eq!(device.statistics().received.errors, 1);
    }

    #[test]
    fn nobody_attached_drops_and_counts() {
        let device = Device::new(Kind::Tun, 1500, 4);
        let interface = device.attach(Side::Interface).unwrap();
        device.set_up(true);
        assert_eq!(interface.send(&mut packets(&[b"\x45"])), Ok(0));
        assert_eq!(device.statistics().sent.dropped, 1);
        let application = device.attach(Side::Application).unwrap();
        assert!(device.attach(Side::Application).is_none());
        assert_eq!(interface.send(&mut packets(&[b"\x45"])), Ok(1));
        drop(application);
        assert_eq!(device.statistics().sent.dropped, 2);
        let again = device.attach(Side::Application).unwrap();
        assert_eq!(again.receive(&mut Vec::new(), 9), Ok(0));
    }

    #[test]
    fn deleting_fails_both_ends() {
        let (device, application, interface) = up(Kind::Tun, 4);
        application.send(&mut packets(&[b"\x45"])).unwrap();
        device.delete();
        assert_eq!(application.send(&mut packets(&[b"\x45"])), Err(Refused::Gone));
        assert_eq!(interface.receive(&mut Vec::new(), 9), Err(Refused::Gone));
        assert!(device.attach(Side::Application).is_none());
    }

    #[test]
    fn mtu_has_the_kernels_limits() {
        let device = Device::new(Kind::Tap, 1500, 4);
        assert!(!device.set_mtu(67) && !device.set_mtu(65_522));
        assert!(device.set_mtu(68) && device.set_mtu(65_521));
        assert_eq!(device.mtu(), 65_521);
    }
}
