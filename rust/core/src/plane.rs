//! OpenVPN's data plane without I/O: peers, their keys, and the way of a packet through them.
//!
//! A datagram comes in through [`Plane::open`] and leaves as an inner packet, an [`Event`] or a
//! counted drop; an inner packet comes in through [`Plane::seal`] and leaves as a [`Datagram`] or a
//! counted drop. What commands and events mean is told in `src/ginnel/openvpn/events.py`.

mod events;
mod keys;
mod peer;
pub(crate) mod routes;

use std::net::SocketAddr;

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

pub use crate::plane::events::Event;
pub use crate::plane::peer::PeerCounters;
pub use crate::plane::routes::Prefix;

use crate::cipher::MATERIAL_LEN;
use crate::device::Kind;
use crate::format::{self, Format};
use crate::framing::Framing;
use crate::header::{Header, Sort};
use crate::packet::{LocalPool, Packet};
use crate::plane::events::{Events, Origin};
use crate::plane::keys::{KeyError, Refusal};
use crate::plane::peer::Peer;
use crate::plane::routes::{Ends, Prefixes};
use crate::{Nanos, counters, mss};

/// The payload of a keepalive packet (OpenVPN's `ping.c`).
pub const PING: [u8; 16] =
    [0x2a, 0x18, 0x7b, 0xf3, 0x64, 0x1e, 0xb4, 0xcb, 0x07, 0xed, 0x2d, 0x0a, 0x98, 0x1f, 0xc7, 0x48];

/// A way to a peer: the number of one of our sockets and the address on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    pub socket: u32,
    pub address: SocketAddr,
}

/// A sealed packet and where it goes.
pub struct Datagram {
    pub packet: Packet,
    pub path: Path,
}

/// Why a command makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    UnknownPeer,
    PeerExists,
    PeerId,
    UnknownKey,
    KeyExists,
    KeyId,
}

counters! {
    /// What went through a plane, and every reason for a drop.
    pub struct Counters {
        /// Data packets and control packets that came in.
        rx_datagrams,
        rx_control,
        /// Inner packets, and their bytes, that were opened for the device.
        rx_packets,
        rx_bytes,
        /// Those of them that went on to another peer.
        rx_relayed,
        rx_pings,
        rx_data_messages,
        rx_malformed,
        rx_no_peer,
        rx_no_key,
        rx_replayed,
        rx_auth_failed,
        /// Opened, but compressed, or not framed as agreed.
        rx_compressed,
        /// Opened, but neither an IP packet nor short enough for a message.
        rx_bad_inner,
        /// Opened, but with an inner source address that the peer may not use.
        rx_bad_source,
        /// Opened, but from a path that another peer holds.
        rx_float_refused,
        /// Reports that nobody fetched in time.
        data_messages_dropped,
        control_dropped,
        strangers_dropped,
        floats,
        /// Inner packets, and their bytes, that were sealed.
        tx_packets,
        tx_bytes,
        tx_pings,
        tx_data_messages,
        tx_malformed,
        tx_no_peer,
        tx_no_key,
        /// Too long for a datagram once it is sealed.
        tx_oversize,
        /// The key's packet ids are used up.
        tx_exhausted,
    }
}

/// The data plane of one device.
pub struct Plane {
    kind: Kind,
    peers: HashMap<u32, Peer>,
    by_path: HashMap<Path, u32>,
    by_peer_id: HashMap<u32, u32>,
    /// The sockets that are streams: nobody moves onto or off one of them.
    streams: HashSet<u32>,
    routes: Prefixes<u32>,
    /// Whether peers reach each other, and what is on its way between them.
    relaying: bool,
    relayed: Vec<Packet>,
    events: Events,
    counters: Counters,
    /// No timer is due before this. Traffic moves deadlines on without touching it.
    timer: Option<Nanos>,
}

impl Plane {
    pub fn new(kind: Kind) -> Plane {
        Plane {
            kind,
            peers: HashMap::new(),
            by_path: HashMap::new(),
            by_peer_id: HashMap::new(),
            streams: HashSet::new(),
            routes: Prefixes::default(),
            relaying: false,
            relayed: Vec::new(),
            events: Events::default(),
            counters: Counters::default(),
            timer: None,
        }
    }

    // Commands.

    pub fn new_peer(
        &mut self,
        number: u32,
        path: Path,
        peer_id: Option<u32>,
        now: Nanos,
    ) -> Result<(), CommandError> {
        if self.peers.contains_key(&number) {
            return Err(CommandError::PeerExists);
        }
        if peer_id.is_some_and(|id| id > MAX_PEER_ID) {
            return Err(CommandError::PeerId);
        }
        self.peers.insert(number, Peer::new(path, peer_id, now));
        self.by_path.insert(path, number);
        if let Some(id) = peer_id {
            self.by_peer_id.insert(id, number);
        }
        Ok(())
    }

    /// Sets timers (0 for never), the largest TCP MSS (0 to leave it alone) and the framing; the timers
    /// start anew.
    pub fn set_peer(
        &mut self,
        number: u32,
        ping: Nanos,
        ping_restart: Nanos,
        mss: u16,
        framing: Framing,
        now: Nanos,
    ) -> Result<(), CommandError> {
        let peer = self.peer(number)?;
        peer.set(ping, ping_restart, mss, framing, now);
        let deadline = peer.deadline();
        self.timer = earlier(self.timer, deadline);
        Ok(())
    }

    pub fn del_peer(&mut self, number: u32) -> Result<(), CommandError> {
        let peer = self.peers.remove(&number).ok_or(CommandError::UnknownPeer)?;
        forget(&mut self.by_path, &peer.path, number);
        if let Some(id) = peer.peer_id {
            forget(&mut self.by_peer_id, &id, number);
        }
        self.routes.remove_all(&number);
        Ok(())
    }

    /// Installs a pair of keys for receiving.
    #[allow(clippy::too_many_arguments)]
    pub fn new_key(
        &mut self,
        number: u32,
        handle: u64,
        key_id: u8,
        format: Format,
        encrypt: &[u8; MATERIAL_LEN],
        decrypt: &[u8; MATERIAL_LEN],
    ) -> Result<(), CommandError> {
        self.peer(number)?.keys.insert(handle, key_id, format, encrypt, decrypt).map_err(CommandError::from)
    }

    /// Forgets a pair of keys; one that is gone already (displaced, say) is no error.
    pub fn del_key(&mut self, number: u32, handle: u64) -> Result<(), CommandError> {
        self.peer(number)?.keys.remove(handle);
        Ok(())
    }

    /// Seals with this pair of keys from now on.
    pub fn swap(&mut self, number: u32, handle: u64) -> Result<(), CommandError> {
        self.peer(number)?.keys.swap(handle).map_err(CommandError::from)
    }

    /// Sets the inner prefixes that lead to the peer, and the inner sources it may use (`None`: any).
    /// Of two peers that claim one prefix, the later has it.
    pub fn set_routes(
        &mut self,
        number: u32,
        routes: &[Prefix],
        sources: Option<&[Prefix]>,
    ) -> Result<(), CommandError> {
        self.peer(number)?.sources =
            sources.map(|sources| sources.iter().map(|&prefix| (prefix, ())).collect());
        self.routes.remove_all(&number);
        routes.iter().for_each(|&prefix| self.routes.insert(prefix, number));
        Ok(())
    }

    /// How many control packets of strangers are reported within a time, at first a hundred within ten seconds.
    pub fn limit_strangers(&mut self, most: u64, period: Nanos, now: Nanos) {
        self.events.limit_strangers(most, period, now);
    }

    /// Says whether packets for another peer's inner prefixes go there, and not to the device.
    pub fn set_relaying(&mut self, relaying: bool) {
        self.relaying = relaying;
    }

    /// A data packet of its own for the peer. It is counted, and not made, without a key to send with.
    pub fn data_message(
        &mut self,
        number: u32,
        content: &[u8],
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Result<Option<Datagram>, CommandError> {
        self.peer(number)?;
        let datagram = self.transmit(number, pool.packet_from(content), now, pool);
        self.counters.tx_data_messages += u64::from(datagram.is_some());
        Ok(datagram)
    }

    /// Says whether a socket is a stream, whose packets all come from whoever is at its other end.
    pub fn set_stream(&mut self, socket: u32, is_stream: bool) {
        match is_stream {
            true => self.streams.insert(socket),
            false => self.streams.remove(&socket),
        };
    }

    /// A control packet was sent on this path: what comes back on it is no stranger's.
    pub fn contacted(&mut self, path: Path) {
        self.events.contacted(path);
    }

    /// A path's socket failed for good.
    pub fn path_closed(&mut self, path: Path, errno: i32) {
        self.events.report(Event::Closed { path, errno });
    }

    /// The device failed for good.
    pub fn device_closed(&mut self, errno: i32) {
        self.events.report(Event::DeviceClosed { errno });
    }

    // Packets.

    /// Takes a datagram in. Returns the inner packet that it held, if there is one for the device.
    pub fn open(&mut self, datagram: &[u8], path: Path, now: Nanos, pool: &mut LocalPool) -> Option<Packet> {
        let header = match Header::parse(datagram) {
            Sort::Data(header) => header,
            Sort::Control => {
                self.control(datagram, path, now);
                return None;
            }
            Sort::Malformed => {
                self.counters.rx_malformed += 1;
                return None;
            }
        };
        self.counters.rx_datagrams += 1;
        let Some(number) = self.sender(&header, path) else {
            self.counters.rx_no_peer += 1;
            return None;
        };
        let peer = self.peers.get_mut(&number)?;
        let (packet, newest) = match peer.open(&header, datagram, now, pool) {
            Ok(opened) => opened,
            Err(refusal) => {
                self.count(refusal);
                return None;
            }
        };
        if let Some(handle) = peer.keys.newly_worn() {
            self.events.report(Event::KeyLimit { peer: number, handle });
        }
        if peer.path != path && !self.float(number, path, newest) {
            self.counters.rx_float_refused += 1;
            pool.recycle(packet);
            return None;
        }
        self.deliver(number, packet, pool)
    }

    /// Seals what [`Plane::open`] has kept for other peers. To be called after each batch.
    pub fn relay(&mut self, now: Nanos, datagrams: &mut Vec<Datagram>, pool: &mut LocalPool) {
        for packet in std::mem::take(&mut self.relayed) {
            datagrams.extend(self.seal(packet, now, pool));
        }
    }

    /// Takes an inner packet in. Returns it sealed, with the path to the peer that it is routed to.
    pub fn seal(&mut self, mut packet: Packet, now: Nanos, pool: &mut LocalPool) -> Option<Datagram> {
        let Some(number) = self.receiver(&packet) else {
            self.counters.tx_no_peer += 1;
            pool.recycle(packet);
            return None;
        };
        let len = packet.len() as u64;
        self.clamp(number, &mut packet);
        let datagram = self.transmit(number, packet, now, pool)?;
        self.counters.tx_packets += 1;
        self.counters.tx_bytes += len;
        if let Some(peer) = self.peers.get_mut(&number) {
            peer.counters.tx_packets += 1;
            peer.counters.tx_bytes += len;
        }
        Some(datagram)
    }

    // Time.

    /// When to call [`Plane::handle_timer`] next: it may find that nothing is due yet.
    pub fn next_timer(&self) -> Option<Nanos> {
        self.timer
    }

    /// Sends the pings that are due, and reports the peers that have been silent too long.
    pub fn handle_timer(&mut self, now: Nanos, datagrams: &mut Vec<Datagram>, pool: &mut LocalPool) {
        if self.timer.is_none_or(|timer| now < timer) {
            return;
        }
        let mut pinging = Vec::new();
        for (&number, peer) in &mut self.peers {
            if peer.expires(now) {
                self.events.report(Event::Expired { peer: number });
            }
            if peer.takes_ping(now) {
                pinging.push(number);
            }
        }
        for number in pinging {
            let Some(ping) = self.transmit(number, pool.packet_from(&PING), now, pool) else { continue };
            datagrams.push(ping);
            self.counters.tx_pings += 1;
            if let Some(peer) = self.peers.get_mut(&number) {
                peer.counters.tx_pings += 1;
            }
        }
        self.timer = self.peers.values().filter_map(Peer::deadline).min();
    }

    // Reports.

    /// What has happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.take()
    }

    /// Whether events wait of which nobody has been told: true once until they are taken.
    pub fn signal(&mut self) -> bool {
        self.events.signal()
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub fn peer_counters(&self, number: u32) -> Result<&PeerCounters, CommandError> {
        self.peers.get(&number).map(|peer| &peer.counters).ok_or(CommandError::UnknownPeer)
    }

    // Helpers.

    fn peer(&mut self, number: u32) -> Result<&mut Peer, CommandError> {
        self.peers.get_mut(&number).ok_or(CommandError::UnknownPeer)
    }

    fn control(&mut self, datagram: &[u8], path: Path, now: Nanos) {
        self.counters.rx_control += 1;
        let origin = match self.by_path.contains_key(&path) {
            true => Origin::Peer,
            false if self.events.is_contacted(&path) => Origin::Contacted,
            false => Origin::Stranger,
        };
        if !self.events.control(origin, datagram, path, now) {
            match origin {
                Origin::Stranger => self.counters.strangers_dropped += 1,
                Origin::Peer | Origin::Contacted => self.counters.control_dropped += 1,
            }
        }
    }

    /// The peer that a data packet claims to come from. One at its path comes first; a peer id that
    /// is known only from elsewhere may be a peer that moved; one that is unknown says nothing, for
    /// the other side may number us differently.
    fn sender(&self, header: &Header, path: Path) -> Option<u32> {
        let at_path = self.by_path.get(&path).copied();
        let Some(id) = header.peer_id() else { return at_path };
        let is_named = |number: &u32| self.peers.get(number).is_some_and(|peer| peer.peer_id == Some(id));
        at_path.filter(is_named).or_else(|| self.by_peer_id.get(&id).copied()).or(at_path)
    }

    fn count(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::NoKey => self.counters.rx_no_key += 1,
            Refusal::Malformed => self.counters.rx_malformed += 1,
            Refusal::Replayed => self.counters.rx_replayed += 1,
            Refusal::NotAuthentic => self.counters.rx_auth_failed += 1,
        }
    }

    /// Moves a peer to the path of a packet that was authentic, unless another peer holds it. A
    /// packet that is not the newest was overtaken on the old path's way and moves nobody.
    fn float(&mut self, number: u32, path: Path, newest: bool) -> bool {
        let left = self.peers.get(&number).map(|peer| peer.path.socket);
        let is_stream = |socket: &u32| self.streams.contains(socket);
        if self.by_path.contains_key(&path) || is_stream(&path.socket) || left.as_ref().is_some_and(is_stream)
        {
            return false;
        }
        if !newest || !self.events.has_room() {
            return true;
        }
        let Some(peer) = self.peers.get_mut(&number) else { return false };
        let left = std::mem::replace(&mut peer.path, path);
        forget(&mut self.by_path, &left, number);
        self.by_path.insert(path, number);
        self.counters.floats += 1;
        self.events.report(Event::Float { peer: number, path });
        true
    }

    /// Sorts out what an authentic packet held.
    fn deliver(&mut self, number: u32, mut packet: Packet, pool: &mut LocalPool) -> Option<Packet> {
        let peer = self.peers.get_mut(&number)?;
        if peer.framing.unmark(&mut packet).is_err() {
            self.counters.rx_compressed += 1;
            pool.recycle(packet);
            return None;
        }
        match Inner::of(self.kind, &packet) {
            Inner::Ping => {
                self.counters.rx_pings += 1;
                peer.counters.rx_pings += 1;
            }
            Inner::Message if packet.is_empty() || packet.len() > MAX_MESSAGE => {
                self.counters.rx_bad_inner += 1
            }
            Inner::Message if self.events.message(number, &packet) => self.counters.rx_data_messages += 1,
            Inner::Message => self.counters.data_messages_dropped += 1,
            Inner::Packet if !peer.may_send(self.kind, &packet) => self.counters.rx_bad_source += 1,
            Inner::Packet => {
                self.counters.rx_packets += 1;
                self.counters.rx_bytes += packet.len() as u64;
                peer.counters.rx_packets += 1;
                peer.counters.rx_bytes += packet.len() as u64;
                self.clamp(number, &mut packet);
                if self.relaying && self.other_receiver(number, &packet) {
                    self.counters.rx_relayed += 1;
                    self.relayed.push(packet);
                    return None;
                }
                return Some(packet);
            }
        }
        pool.recycle(packet);
        None
    }

    /// Whether a packet of this peer's is for another one.
    fn other_receiver(&self, number: u32, packet: &[u8]) -> bool {
        self.kind == Kind::Tun
            && Ends::of(packet)
                .and_then(|ends| self.routes.get(ends.destination))
                .is_some_and(|&other| other != number)
    }

    /// The peer to which an inner packet goes. A plane with one peer and no routes is a client's.
    fn receiver(&self, packet: &[u8]) -> Option<u32> {
        if self.routes.is_empty() {
            let mut peers = self.peers.keys();
            return peers.next().copied().filter(|_| peers.next().is_none());
        }
        match self.kind {
            Kind::Tun => self.routes.get(Ends::of(packet)?.destination).copied(),
            Kind::Tap => None,
        }
    }

    fn clamp(&self, number: u32, packet: &mut Packet) {
        let Some(limit) = self.peers.get(&number).map(|peer| peer.mss).filter(|&limit| limit > 0) else {
            return;
        };
        match self.kind {
            Kind::Tun => mss::clamp(packet, limit),
            Kind::Tap => {
                if let Some((_, packet)) = packet.split_at_mut_checked(ETHERNET_HEADER) {
                    mss::clamp(packet, limit);
                }
            }
        }
    }

    /// Seals a packet for a peer, whatever it holds. What can't be sealed is counted and recycled.
    fn transmit(
        &mut self,
        number: u32,
        mut packet: Packet,
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Option<Datagram> {
        if packet.len() > format::MAX_INNER {
            self.counters.tx_oversize += 1;
            pool.recycle(packet);
            return None;
        }
        if packet.headroom() < format::FRONT || packet.tailroom() < format::BACK {
            let copy = pool.packet_from(&packet);
            pool.recycle(std::mem::replace(&mut packet, copy));
        }
        let peer = self.peers.get_mut(&number)?;
        let Some(key) = peer.keys.sending() else {
            self.counters.tx_no_key += 1;
            pool.recycle(packet);
            return None;
        };
        let key_id = key.key_id;
        let header = peer.peer_id.map_or(Header::v1(key_id), |id| Header::v2(key_id, id));
        peer.framing.mark(&mut packet);
        if key.keys.seal(&header, &mut packet, pool).is_err() {
            self.counters.tx_exhausted += 1;
            pool.recycle(packet);
            return None;
        }
        peer.last_sent = now;
        peer.counters.tx_datagrams += 1;
        if let Some(handle) = peer.keys.newly_worn() {
            self.events.report(Event::KeyLimit { peer: number, handle });
        }
        Some(Datagram { packet, path: peer.path })
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

impl From<KeyError> for CommandError {
    fn from(error: KeyError) -> CommandError {
        match error {
            KeyError::Unknown => CommandError::UnknownKey,
            KeyError::Exists => CommandError::KeyExists,
            KeyError::KeyId => CommandError::KeyId,
        }
    }
}

/// Removes an entry if it still is this peer's.
fn forget<K: std::hash::Hash + Eq>(table: &mut HashMap<K, u32>, key: &K, number: u32) {
    if table.get(key) == Some(&number) {
        table.remove(key);
    }
}

fn earlier(a: Option<Nanos>, b: Option<Nanos>) -> Option<Nanos> {
    a.into_iter().chain(b).min()
}

const MAX_PEER_ID: u32 = 0x00ff_ffff;

/// The longest data message: an exit notice has 17 bytes, a load test of OCC a little more.
const MAX_MESSAGE: usize = 256;

const ETHERNET_HEADER: usize = 14;

/// What OpenVPN's own messages begin with (`occ.c`); on TAP nothing else tells them from a frame.
const OCC: [u8; 16] =
    [0x28, 0x7f, 0x34, 0x6b, 0xd4, 0xef, 0x7a, 0x81, 0x2d, 0x56, 0xb8, 0xd3, 0xaf, 0xc5, 0x45, 0x9c];

#[cfg(test)]
mod tests;
