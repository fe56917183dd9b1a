//! The plane for those who have no threads: every lane's work, done by the caller.

use crate::Nanos;
use crate::packet::{LocalPool, Packet};
use crate::plane::{Datagram, Opened, Path, Plane, Sealed, earlier};

impl Plane {
    /// Takes a datagram in. Returns the inner packet that it held, if there is one for the device; one for
    /// another peer is sealed for it.
    pub fn open(
        &self,
        datagram: &[u8],
        path: Path,
        now: Nanos,
        datagrams: &mut Vec<Datagram>,
        pool: &mut LocalPool,
    ) -> Option<Packet> {
        let mut lane = self.lane_of(path.socket);
        loop {
            match self.receive(lane, |receiving| receiving.open(datagram, path, now, pool)) {
                Opened::Packet(packet) => return Some(packet),
                Opened::Elsewhere(other) => lane = other,
                Opened::Relayed(_, packet) => {
                    datagrams.extend(self.seal(packet, now, pool));
                    return None;
                }
                Opened::Nothing => return None,
            }
        }
    }

    /// Takes an inner packet in. Returns it sealed, with the path to the peer that it is routed to.
    pub fn seal(&self, packet: Packet, now: Nanos, pool: &mut LocalPool) -> Option<Datagram> {
        let (mut packet, mut lane) = (packet, 0);
        loop {
            match self.send(lane, |sending| sending.seal(packet, |_| true, now, pool)) {
                Sealed::Datagram(datagram) => return Some(datagram),
                Sealed::Elsewhere(other, same) => (lane, packet) = (other, same),
                Sealed::Waits(..) | Sealed::Dropped => return None,
            }
        }
    }

    /// When to call [`Plane::handle_timer`] next: it may find that nothing is due yet.
    pub fn next_timer(&self) -> Option<Nanos> {
        let timers = (0..self.lanes()).map(|lane| {
            let expiry = self.receive(lane, |receiving| receiving.next_timer());
            earlier(expiry, self.send(lane, |sending| sending.next_timer()))
        });
        timers.fold(None, earlier)
    }

    /// Makes the pings that are due, and reports the peers that have been silent too long.
    pub fn handle_timer(&self, now: Nanos, datagrams: &mut Vec<Datagram>, pool: &mut LocalPool) {
        for lane in 0..self.lanes() {
            self.receive(lane, |receiving| receiving.expire(now));
            self.send(lane, |sending| sending.ping(now, datagrams, pool));
        }
    }
}
