//! The way out: from inner packets to datagrams.

use std::sync::{MutexGuard, RwLockReadGuard};

use foldhash::HashMap;

use crate::Nanos;
use crate::format;
use crate::framing::Framing;
use crate::header::Header;
use crate::packet::{LocalPool, Packet};
use crate::plane::counters::{Counters, PeerCounters};
use crate::plane::events::Event;
use crate::plane::keys::SendingKeys;
use crate::plane::table::Table;
use crate::plane::{Datagram, Path, Plane, clamp, earlier, next_look};

/// The payload of a keepalive packet (OpenVPN's `ping.c`).
pub const PING: [u8; 16] =
    [0x2a, 0x18, 0x7b, 0xf3, 0x64, 0x1e, 0xb4, 0xcb, 0x07, 0xed, 0x2d, 0x0a, 0x98, 0x1f, 0xc7, 0x48];

/// What became of an inner packet.
pub enum Sealed {
    Datagram(Datagram),
    /// It is for a peer of another lane.
    Elsewhere(usize, Packet),
    /// It is to wait for the socket of this number.
    Waits(u64, Packet),
    /// Dropped, and counted.
    Dropped,
}

/// A lane's way out, held for a batch. See [`Plane::send`].
pub struct Sending<'a> {
    pub(super) plane: &'a Plane,
    pub(super) lane: usize,
    pub(super) table: RwLockReadGuard<'a, Table>,
    pub(super) half: MutexGuard<'a, SendingHalf>,
}

#[derive(Default)]
pub(super) struct SendingHalf {
    pub peers: HashMap<u32, SendingPeer>,
    pub counters: Counters,
    /// No ping is due before this. Traffic moves them on without touching it.
    pub timer: Option<Nanos>,
}

pub(super) struct SendingPeer {
    pub path: Path,
    pub keys: SendingKeys,
    pub counters: PeerCounters,
    peer_id: Option<u32>,
    mss: u16,
    framing: Framing,
    last_sent: Nanos,
    ping: Nanos,
}

impl Sending<'_> {
    /// Seals an inner packet for the peer that it is routed to, if that one's socket `admits` it: what would only
    /// wait is better not sealed yet, for sealed packets wait in the order of their numbers.
    pub fn seal(
        &mut self,
        mut packet: Packet,
        admits: impl FnOnce(u64) -> bool,
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Sealed {
        let SendingHalf { peers, counters, .. } = &mut *self.half;
        let Some((number, place)) = self.table.receiver(self.plane.kind, &packet) else {
            counters.tx_no_peer += 1;
            pool.recycle(packet);
            return Sealed::Dropped;
        };
        if place.lane != self.lane {
            return Sealed::Elsewhere(place.lane, packet);
        }
        if !admits(place.path.socket) {
            return Sealed::Waits(place.path.socket, packet);
        }
        let Some(peer) = peers.get_mut(&number) else { return Sealed::Dropped };
        let len = packet.len() as u64;
        clamp(self.plane.kind, peer.mss, &mut packet);
        let Some(datagram) = peer.transmit(packet, now, counters, pool) else { return Sealed::Dropped };
        counters.tx_packets += 1;
        counters.tx_bytes += len;
        peer.counters.tx_packets += 1;
        peer.counters.tx_bytes += len;
        self.plane.report_worn(number, peer);
        Sealed::Datagram(datagram)
    }

    /// A data packet of its own for the peer; nothing, and counted, without a key to send with.
    pub(super) fn message(
        &mut self,
        number: u32,
        content: &[u8],
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Option<Datagram> {
        let SendingHalf { peers, counters, .. } = &mut *self.half;
        let peer = peers.get_mut(&number)?;
        let datagram = peer.transmit(pool.packet_from(content), now, counters, pool)?;
        counters.tx_data_messages += 1;
        self.plane.report_worn(number, peer);
        Some(datagram)
    }

    /// When to call [`Sending::ping`] next: it may find that nothing is due yet.
    pub fn next_timer(&self) -> Option<Nanos> {
        self.half.timer
    }

    /// Makes the pings that are due.
    pub fn ping(&mut self, now: Nanos, datagrams: &mut Vec<Datagram>, pool: &mut LocalPool) {
        let SendingHalf { peers, counters, timer } = &mut *self.half;
        if timer.is_none_or(|timer| now < timer) {
            return;
        }
        *timer = None;
        for (&number, peer) in peers {
            if peer.takes_ping(now)
                && let Some(ping) = peer.transmit(pool.packet_from(&PING), now, counters, pool)
            {
                datagrams.push(ping);
                counters.tx_pings += 1;
                peer.counters.tx_pings += 1;
                self.plane.report_worn(number, peer);
            }
            *timer = earlier(*timer, peer.ping_due());
        }
        *timer = next_look(*timer, now);
    }
}

impl SendingPeer {
    pub fn new(path: Path, peer_id: Option<u32>, now: Nanos) -> SendingPeer {
        SendingPeer {
            path,
            keys: SendingKeys::default(),
            counters: PeerCounters::default(),
            peer_id,
            mss: 0,
            framing: Framing::None,
            last_sent: now,
            ping: 0,
        }
    }

    pub fn set(&mut self, ping: Nanos, mss: u16, framing: Framing, now: Nanos) {
        self.ping = ping;
        self.mss = mss;
        self.framing = framing;
        self.last_sent = now;
    }

    pub fn ping_due(&self) -> Option<Nanos> {
        (self.ping > 0).then(|| self.last_sent.saturating_add(self.ping))
    }

    /// Whether a ping is due. Without a key to send it with, the next is due a whole interval later.
    fn takes_ping(&mut self, now: Nanos) -> bool {
        let due = self.ping_due().is_some_and(|due| now >= due);
        if due {
            self.last_sent = now;
        }
        due && self.keys.current().is_some()
    }

    /// Seals a packet, whatever it holds. What can't be sealed is counted and recycled.
    fn transmit(
        &mut self,
        mut packet: Packet,
        now: Nanos,
        counters: &mut Counters,
        pool: &mut LocalPool,
    ) -> Option<Datagram> {
        if packet.len() > format::MAX_INNER {
            counters.tx_oversize += 1;
            pool.recycle(packet);
            return None;
        }
        if packet.headroom() < format::FRONT || packet.tailroom() < format::BACK {
            let copy = pool.packet_from(&packet);
            pool.recycle(std::mem::replace(&mut packet, copy));
        }
        let Some(key) = self.keys.current() else {
            counters.tx_no_key += 1;
            pool.recycle(packet);
            return None;
        };
        let header = self.peer_id.map_or(Header::v1(key.key_id), |id| Header::v2(key.key_id, id));
        self.framing.mark(&mut packet);
        if key.sealer.seal(&header, &mut packet, pool).is_err() {
            counters.tx_exhausted += 1;
            pool.recycle(packet);
            return None;
        }
        self.last_sent = now;
        self.counters.tx_datagrams += 1;
        Some(Datagram { packet, path: self.path })
    }
}

impl Plane {
    /// Reports, once, that the key that a peer is sent to with is nearly used up.
    fn report_worn(&self, number: u32, peer: &mut SendingPeer) {
        if let Some(handle) = peer.keys.current().and_then(|key| key.newly_worn()) {
            self.report(Event::KeyLimit { peer: number, handle });
        }
    }
}
