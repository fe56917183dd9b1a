//! The way in: from datagrams to inner packets, events and counted drops.

use std::net::IpAddr;
use std::sync::{MutexGuard, RwLockReadGuard};

use foldhash::HashMap;

use crate::Nanos;
use crate::device::Kind;
use crate::frame::ETHERNET_HEADER;
use crate::framing::Framing;
use crate::header::{Header, Sort};
use crate::packet::{LocalPool, Packet};
use crate::plane::counters::{Counters, PeerCounters};
use crate::plane::events::{Event, Origin};
use crate::plane::guard::ANYBODY;
use crate::plane::keys::{ReceivingKeys, Refusal};
use crate::plane::routes::{Ends, Prefixes};
use crate::plane::sending::PING;
use crate::plane::table::Table;
use crate::plane::{Path, Plane, clamp, earlier, next_look};

/// What became of a datagram.
pub enum Opened {
    /// An inner packet for the device.
    Packet(Packet),
    /// An inner packet for a peer of this lane.
    Relayed(usize, Packet),
    /// The datagram is for this lane to open.
    Elsewhere(usize),
    /// It is dealt with: an event, a ping or a counted drop.
    Nothing,
}

/// A lane's way in, held for a batch. See [`Plane::receive`].
pub struct Receiving<'a> {
    pub(super) plane: &'a Plane,
    pub(super) lane: usize,
    pub(super) table: RwLockReadGuard<'a, Table>,
    pub(super) half: MutexGuard<'a, ReceivingHalf>,
    /// Which of our addresses what is opened was sent to, where the socket has several.
    pub asked: Option<IpAddr>,
    /// Peers whose newest packets came from paths that are not theirs, or to another address of ours.
    pub(super) moved: Vec<(u32, Path, Option<IpAddr>)>,
}

#[derive(Default)]
pub(super) struct ReceivingHalf {
    pub peers: HashMap<u32, ReceivingPeer>,
    pub counters: Counters,
    /// Nobody expires before this. Traffic moves that on without touching it.
    pub timer: Option<Nanos>,
}

pub(super) struct ReceivingPeer {
    pub keys: ReceivingKeys,
    pub sources: Option<Prefixes<()>>,
    pub counters: PeerCounters,
    mss: u16,
    framing: Framing,
    last_heard: Nanos,
    ping_restart: Nanos,
    expired: bool,
}

impl Receiving<'_> {
    /// Takes a datagram in.
    pub fn open(&mut self, datagram: &[u8], path: Path, now: Nanos, pool: &mut LocalPool) -> Opened {
        let header = match Header::parse(datagram) {
            Sort::Data(header) => header,
            Sort::Control => {
                self.control(datagram, path, now);
                return Opened::Nothing;
            }
            Sort::Malformed => {
                self.half.counters.rx_malformed += 1;
                return Opened::Nothing;
            }
        };
        let ReceivingHalf { peers, counters, .. } = &mut *self.half;
        let sender = self.table.sender(&header, &path);
        if let Some((_, place)) = sender.filter(|(_, place)| place.lane != self.lane) {
            return Opened::Elsewhere(place.lane);
        }
        counters.rx_datagrams += 1;
        let Some((number, place)) = sender else {
            counters.rx_no_peer += 1;
            return Opened::Nothing;
        };
        let Some(peer) = peers.get_mut(&number) else { return Opened::Nothing };
        let (mut packet, newest, worn) = match peer.open(&header, datagram, now, pool) {
            Ok(opened) => opened,
            Err(refusal) => {
                count(refusal, counters);
                return Opened::Nothing;
            }
        };
        if let Some(handle) = worn {
            self.plane.report(Event::KeyLimit { peer: number, handle });
        }
        let is_elsewhere = place.path != path;
        if is_elsewhere && !self.table.may_float(place, &path) {
            counters.rx_float_refused += 1;
            pool.recycle(packet);
            return Opened::Nothing;
        }
        if is_elsewhere || self.asked.is_some() && place.asked != self.asked {
            // One that is not the newest was overtaken on the old path's way and moves nobody.
            let moved = (number, path, self.asked);
            if newest && self.moved.last() != Some(&moved) {
                self.moved.push(moved);
            }
        }
        let kind = self.plane.kind;
        if !peer.accepts(number, kind, &mut packet, counters, self.plane) {
            pool.recycle(packet);
            return Opened::Nothing;
        }
        match self.table.other_receiver(number, kind, &packet) {
            Some(other) => {
                counters.rx_relayed += 1;
                Opened::Relayed(other.lane, packet)
            }
            None => Opened::Packet(packet),
        }
    }

    /// Which peers' packets, newest and authentic, were sent to another address of ours than the ones before: their
    /// answers are to leave from there.
    pub fn asked_anew(&self) -> Vec<(Path, IpAddr)> {
        self.moved.iter().filter_map(|&(_, path, asked)| Some((path, asked?))).collect()
    }

    /// When to call [`Receiving::expire`] next: it may find that nothing is due yet.
    pub fn next_timer(&self) -> Option<Nanos> {
        self.half.timer
    }

    /// Reports the peers that have been silent too long.
    pub fn expire(&mut self, now: Nanos) {
        let ReceivingHalf { peers, timer, .. } = &mut *self.half;
        if timer.is_none_or(|timer| now < timer) {
            return;
        }
        *timer = None;
        for (&number, peer) in peers {
            if peer.expires(now) {
                self.plane.report(Event::Expired { peer: number });
            }
            *timer = earlier(*timer, peer.expiry());
        }
        *timer = next_look(*timer, now);
    }

    fn control(&mut self, datagram: &[u8], path: Path, now: Nanos) {
        let counters = &mut self.half.counters;
        counters.rx_control += 1;
        let origin = match self.table.is_held(&path) {
            true => Origin::Peer,
            false if self.plane.events().is_contacted(&path) => Origin::Contacted,
            false => Origin::Stranger,
        };
        // Before it counts as one, or noise would use up what strangers may ask.
        let holder =
            if origin == Origin::Stranger { self.table.guard.holder(datagram) } else { Some(ANYBODY) };
        let Some(holder) = holder else {
            counters.strangers_unauthenticated += 1;
            return;
        };
        let recorded = || self.table.guard.is_set() && !self.plane.events().is_new(datagram);
        if origin == Origin::Stranger && recorded() {
            counters.strangers_replayed += 1;
            return;
        }
        // Whose address needs no proof is not to wait for those that do.
        let is_proven = origin == Origin::Stranger && self.table.is_stream(path.socket);
        let origin = if is_proven { Origin::Contacted } else { origin };
        if !self.plane.events().control(origin, &holder, datagram, path, now) {
            match origin {
                Origin::Stranger => counters.strangers_dropped += 1,
                Origin::Peer | Origin::Contacted => counters.control_dropped += 1,
            }
        }
    }
}

impl ReceivingPeer {
    pub fn new(now: Nanos) -> ReceivingPeer {
        ReceivingPeer {
            keys: ReceivingKeys::default(),
            sources: None,
            counters: PeerCounters::default(),
            mss: 0,
            framing: Framing::None,
            last_heard: now,
            ping_restart: 0,
            expired: false,
        }
    }

    pub fn set(&mut self, ping_restart: Nanos, mss: u16, framing: Framing, now: Nanos) {
        self.ping_restart = ping_restart;
        self.mss = mss;
        self.framing = framing;
        self.last_heard = now;
        self.expired = false;
    }

    pub fn expiry(&self) -> Option<Nanos> {
        (self.ping_restart > 0 && !self.expired).then(|| self.last_heard.saturating_add(self.ping_restart))
    }

    /// Opens a datagram of this peer's. An authentic one shows that the peer lives.
    fn open(
        &mut self,
        header: &Header,
        datagram: &[u8],
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Result<(Packet, bool, Option<u64>), Refusal> {
        self.counters.rx_datagrams += 1;
        let opened = self.keys.open(header, datagram, now, pool);
        match opened {
            Ok(_) => self.last_heard = now,
            Err(_) => self.counters.rx_dropped += 1,
        }
        opened
    }

    /// Sorts out what an authentic packet held: whether it is one that goes on.
    fn accepts(
        &mut self,
        number: u32,
        kind: Kind,
        packet: &mut Packet,
        counters: &mut Counters,
        plane: &Plane,
    ) -> bool {
        if self.framing.unmark(packet).is_err() {
            counters.rx_compressed += 1;
            return false;
        }
        match Inner::of(kind, packet) {
            Inner::Ping => {
                counters.rx_pings += 1;
                self.counters.rx_pings += 1;
            }
            Inner::Message if packet.is_empty() || packet.len() > MAX_MESSAGE => counters.rx_bad_inner += 1,
            Inner::Message if plane.events().message(number, packet) => counters.rx_data_messages += 1,
            Inner::Message => counters.data_messages_dropped += 1,
            Inner::Packet if !self.may_send(kind, packet) => counters.rx_bad_source += 1,
            Inner::Packet => {
                let len = packet.len() as u64;
                counters.rx_packets += 1;
                counters.rx_bytes += len;
                self.counters.rx_packets += 1;
                self.counters.rx_bytes += len;
                clamp(kind, self.mss, packet);
                return true;
            }
        }
        false
    }

    /// Whether the peer may use an inner packet's source address.
    fn may_send(&self, kind: Kind, packet: &[u8]) -> bool {
        match (&self.sources, kind) {
            (None, _) | (_, Kind::Tap) => true,
            (Some(sources), Kind::Tun) => {
                Ends::of(packet).is_some_and(|ends| sources.get(ends.source).is_some())
            }
        }
    }

    /// Whether the peer has been silent for too long, said once.
    fn expires(&mut self, now: Nanos) -> bool {
        let expires = self.expiry().is_some_and(|expiry| now >= expiry);
        self.expired |= expires;
        expires
    }
}

/// What an opened packet is.
enum Inner {
    Ping,
    Packet,
    Message,
}

impl Inner {
    fn of(kind: Kind, packet: &[u8]) -> Inner {
        let is_packet = match kind {
            Kind::Tun => matches!(packet.first().map(|byte| byte >> 4), Some(4 | 6)),
            Kind::Tap => packet.len() >= ETHERNET_HEADER && !packet.starts_with(&OCC),
        };
        match *packet == PING {
            true => Inner::Ping,
            false if is_packet => Inner::Packet,
            false => Inner::Message,
        }
    }
}

fn count(refusal: Refusal, counters: &mut Counters) {
    match refusal {
        Refusal::NoKey => counters.rx_no_key += 1,
        Refusal::Malformed => counters.rx_malformed += 1,
        Refusal::Replayed => counters.rx_replayed += 1,
        Refusal::NotAuthentic => counters.rx_auth_failed += 1,
    }
}

/// The longest data message: an exit notice has 17 bytes, a load test of OCC a little more.
const MAX_MESSAGE: usize = 256;

/// What OpenVPN's own messages begin with (`occ.c`); on TAP nothing else tells them from a frame.
pub(super) const OCC: [u8; 16] =
    [0x28, 0x7f, 0x34, 0x6b, 0xd4, 0xef, 0x7a, 0x81, 0x2d, 0x56, 0xb8, 0xd3, 0xaf, 0xc5, 0x45, 0x9c];
