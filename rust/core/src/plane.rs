//! OpenVPN's data plane without I/O: peers, their keys, and the way of a packet through them.
//!
//! A datagram comes in through [`Receiving::open`] and leaves as an inner packet, an [`Event`] or a
//! counted drop; an inner packet comes in through [`Sending::seal`] and leaves as a [`Datagram`] or a
//! counted drop. What commands and events mean is told in `src/ginnel/openvpn/events.py`.
//!
//! Peers are spread over lanes, each with a way in and a way out, so that as many threads as there are
//! of these may work at once: each way has a lock of its own, which nobody but a command contends for. A peer
//! belongs to the lane of the socket on which it was first heard, and stays there when it moves. Locks are taken in
//! one order: the table, a lane's way in, its way out, the events.

mod counters;
mod events;
mod guard;
mod keys;
mod receiving;
pub(crate) mod routes;
mod sending;
mod table;
mod unthreaded;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

pub use crate::plane::counters::{Counters, PeerCounters};
pub use crate::plane::events::Event;
pub use crate::plane::guard::{Guard, Lock};
pub use crate::plane::receiving::{Opened, Receiving};
pub use crate::plane::routes::Prefix;
pub use crate::plane::sending::{PING, Sealed, Sending};

use crate::cipher::MATERIAL_LEN;
use crate::device::Kind;
use crate::format::Format;
use crate::frame::network_at;
use crate::framing::Framing;
use crate::packet::{LocalPool, Packet};
use crate::plane::events::Events;
use crate::plane::keys::KeyError;
use crate::plane::receiving::{ReceivingHalf, ReceivingPeer};
use crate::plane::sending::{SendingHalf, SendingPeer};
use crate::plane::table::Table;
use crate::{Nanos, SECOND, mss};

/// A way to a peer: the number of one of our sockets and the address on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    pub socket: u64,
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

/// The data plane of one device.
pub struct Plane {
    kind: Kind,
    table: RwLock<Table>,
    lanes: Box<[Lane]>,
    events: Mutex<Events>,
    /// A command has set a timer that may be due before the one that the lanes' threads know of.
    new_timer: AtomicBool,
}

struct Lane {
    receiving: Apart<Mutex<ReceivingHalf>>,
    sending: Apart<Mutex<SendingHalf>>,
}

/// Keeps what different threads write out of each other's cache lines, which processors fetch in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Apart<T>(T);

impl Plane {
    /// A plane of so many lanes: at least one.
    pub fn new(kind: Kind, lanes: usize) -> Plane {
        let lane = |_| Lane { receiving: Apart::default(), sending: Apart::default() };
        Plane {
            kind,
            table: RwLock::new(Table::new()),
            lanes: (0..lanes.max(1)).map(lane).collect(),
            events: Mutex::default(),
            new_timer: AtomicBool::new(false),
        }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// The lane whose thread reads this socket.
    pub fn lane_of(&self, socket: u64) -> usize {
        socket as usize % self.lanes.len()
    }

    // Packets.

    /// Works with a lane's way in. Nothing that takes long belongs in there.
    pub fn receive<T>(&self, lane: usize, work: impl FnOnce(&mut Receiving) -> T) -> T {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let half = lock(&self.lanes[lane].receiving.0);
        let mut receiving = Receiving { plane: self, lane, table, half, asked: None, moved: Vec::new() };
        let result = work(&mut receiving);
        let moved = receiving.moved;
        drop((receiving.half, receiving.table));
        moved.into_iter().for_each(|(number, path, asked)| self.float(number, path, asked));
        result
    }

    /// Works with a lane's way out.
    pub fn send<T>(&self, lane: usize, work: impl FnOnce(&mut Sending) -> T) -> T {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let half = lock(&self.lanes[lane].sending.0);
        work(&mut Sending { plane: self, lane, table, half })
    }

    // Commands.

    pub fn new_peer(
        &self,
        number: u32,
        path: Path,
        peer_id: Option<u32>,
        now: Nanos,
    ) -> Result<(), CommandError> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.get(number).is_some() {
            return Err(CommandError::PeerExists);
        }
        if peer_id.is_some_and(|id| id > MAX_PEER_ID) {
            return Err(CommandError::PeerId);
        }
        let lane = self.lane_of(path.socket);
        table.insert(number, lane, path, peer_id);
        let Lane { receiving, sending } = &self.lanes[lane];
        lock(&receiving.0).peers.insert(number, ReceivingPeer::new(now));
        lock(&sending.0).peers.insert(number, SendingPeer::new(path, peer_id, now));
        Ok(())
    }

    /// Sets timers (0 for never), the largest TCP MSS (0 to leave it alone) and the framing; the timers
    /// start anew.
    pub fn set_peer(
        &self,
        number: u32,
        ping: Nanos,
        ping_restart: Nanos,
        mss: u16,
        framing: Framing,
        now: Nanos,
    ) -> Result<(), CommandError> {
        self.with_halves(number, |receiving, sending| {
            let (peer, other) = peers(receiving, sending, number)?;
            peer.set(ping_restart, mss, framing, now);
            other.set(ping, mss, framing, now);
            let (expiry, ping) = (peer.expiry(), other.ping_due());
            let before = (receiving.timer, sending.timer);
            receiving.timer = earlier(receiving.timer, expiry);
            sending.timer = earlier(sending.timer, ping);
            if (receiving.timer, sending.timer) != before {
                self.new_timer.store(true, Ordering::Release);
            }
            Ok(())
        })
    }

    pub fn del_peer(&self, number: u32) -> Result<(), CommandError> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let place = table.remove(number).ok_or(CommandError::UnknownPeer)?;
        let Lane { receiving, sending } = &self.lanes[place.lane];
        lock(&receiving.0).peers.remove(&number);
        lock(&sending.0).peers.remove(&number);
        Ok(())
    }

    /// Installs a pair of keys for receiving.
    pub fn new_key(
        &self,
        number: u32,
        handle: u64,
        key_id: u8,
        format: Format,
        encrypt: &[u8; MATERIAL_LEN],
        decrypt: &[u8; MATERIAL_LEN],
    ) -> Result<(), CommandError> {
        self.with_halves(number, |receiving, sending| {
            let (peer, other) = peers(receiving, sending, number)?;
            keys::insert((&mut other.keys, &mut peer.keys), handle, key_id, format, encrypt, decrypt)
                .map_err(CommandError::from)
        })
    }

    /// Forgets a pair of keys; one that is gone already (displaced, say) is no error.
    pub fn del_key(&self, number: u32, handle: u64) -> Result<(), CommandError> {
        self.with_halves(number, |receiving, sending| {
            let (peer, other) = peers(receiving, sending, number)?;
            keys::remove((&mut other.keys, &mut peer.keys), handle);
            Ok(())
        })
    }

    /// Seals with this pair of keys from now on.
    pub fn swap(&self, number: u32, handle: u64) -> Result<(), CommandError> {
        self.with_halves(number, |receiving, sending| {
            let (peer, other) = peers(receiving, sending, number)?;
            keys::swap((&mut other.keys, &mut peer.keys), handle).map_err(CommandError::from)
        })
    }

    /// Sets the inner prefixes that lead to the peer, and the inner sources it may use (`None`: any).
    /// Of two peers that claim one prefix, the later has it.
    pub fn set_routes(
        &self,
        number: u32,
        routes: &[Prefix],
        sources: Option<&[Prefix]>,
    ) -> Result<(), CommandError> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let lane = table.get(number).ok_or(CommandError::UnknownPeer)?.lane;
        table.set_routes(number, routes);
        if let Some(peer) = lock(&self.lanes[lane].receiving.0).peers.get_mut(&number) {
            peer.sources = sources.map(|sources| sources.iter().map(|&prefix| (prefix, ())).collect());
        }
        Ok(())
    }

    /// How many control packets of strangers are reported within a time, at first a hundred within ten seconds.
    pub fn limit_strangers(&self, most: u64, period: Nanos, now: Nanos) {
        self.events().limit_strangers(most, period, now);
    }

    /// Which packets of strangers count at all; all of them at first.
    pub fn guard_strangers(&self, guard: Guard) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).guard = guard;
    }

    /// Says whether packets for another peer's inner prefixes go there, and not to the device.
    pub fn set_relaying(&self, relaying: bool) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).relaying = relaying;
    }

    /// A data packet of its own for the peer. It is counted, and not made, without a key to send with.
    pub fn data_message(
        &self,
        number: u32,
        content: &[u8],
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Result<Option<Datagram>, CommandError> {
        let lane = self.lane_of_peer(number)?;
        Ok(self.send(lane, |sending| sending.message(number, content, now, pool)))
    }

    /// Says whether a socket is a stream, whose packets all come from whoever is at its other end.
    pub fn set_stream(&self, socket: u64, is_stream: bool) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).set_stream(socket, is_stream);
    }

    /// Which of our addresses the peer at this path writes to, as far as its socket knows. See
    /// [`Receiving::asked_anew`].
    pub fn set_asked(&self, path: &Path, asked: Option<IpAddr>) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).set_asked(path, asked);
    }

    /// Whether a peer is at this path.
    pub fn is_held(&self, path: &Path) -> bool {
        self.table.read().unwrap_or_else(PoisonError::into_inner).is_held(path)
    }

    /// How many peers there are.
    pub fn peers(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// A control packet was sent on this path: what comes back on it is no stranger's.
    pub fn contacted(&self, path: Path) {
        self.events().contacted(path);
    }

    /// A path's socket failed for good.
    pub fn path_closed(&self, path: Path, errno: i32) {
        self.report(Event::Closed { path, errno });
    }

    /// The device failed for good.
    pub fn device_closed(&self, errno: i32) {
        self.report(Event::DeviceClosed { errno });
    }

    // Reports.

    /// What has happened since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        self.events().take()
    }

    /// Whether events wait of which nobody has been told: true once until they are taken.
    pub fn signal(&self) -> bool {
        self.events().signal()
    }

    /// Whether a command has set a timer since the last call that is due before its lane's others.
    pub fn has_new_timer(&self) -> bool {
        self.new_timer.swap(false, Ordering::Acquire)
    }

    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for Lane { receiving, sending } in &self.lanes {
            counters.add(&lock(&receiving.0).counters);
            counters.add(&lock(&sending.0).counters);
        }
        counters
    }

    pub fn peer_counters(&self, number: u32) -> Result<PeerCounters, CommandError> {
        self.with_halves(number, |receiving, sending| {
            let (peer, other) = peers(receiving, sending, number)?;
            let mut counters = peer.counters;
            counters.add(&other.counters);
            Ok(counters)
        })
    }

    // Helpers.

    fn events(&self) -> MutexGuard<'_, Events> {
        lock(&self.events)
    }

    /// Reports what each command allows only so many of: these are never dropped.
    fn report(&self, event: Event) {
        self.events().report(event);
    }

    fn lane_of_peer(&self, number: u32) -> Result<usize, CommandError> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.get(number).map(|place| place.lane).ok_or(CommandError::UnknownPeer)
    }

    fn with_halves<T>(
        &self,
        number: u32,
        work: impl FnOnce(&mut ReceivingHalf, &mut SendingHalf) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let Lane { receiving, sending } = &self.lanes[self.lane_of_peer(number)?];
        let mut receiving = lock(&receiving.0);
        work(&mut receiving, &mut lock(&sending.0))
    }

    /// Moves a peer to the path of its newest packet, which was authentic and sent to this address of ours.
    fn float(&self, number: u32, path: Path, asked: Option<IpAddr>) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.get(number).is_some_and(|place| place.path == path) {
            return table.set_asked(&path, asked);
        }
        let Some(place) = table.get(number).filter(|place| table.may_float(place, &path)) else { return };
        if !self.events().has_room() {
            return;
        }
        let Lane { receiving, sending } = &self.lanes[place.lane];
        table.float(number, path);
        table.set_asked(&path, asked);
        lock(&receiving.0).counters.floats += 1;
        if let Some(peer) = lock(&sending.0).peers.get_mut(&number) {
            peer.path = path;
        }
        self.report(Event::Float { peer: number, path });
    }
}

fn peers<'a>(
    receiving: &'a mut ReceivingHalf,
    sending: &'a mut SendingHalf,
    number: u32,
) -> Result<(&'a mut ReceivingPeer, &'a mut SendingPeer), CommandError> {
    receiving.peers.get_mut(&number).zip(sending.peers.get_mut(&number)).ok_or(CommandError::UnknownPeer)
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

fn clamp(kind: Kind, limit: u16, packet: &mut Packet) {
    if let Some(at) = network_at(kind, packet).filter(|_| limit != 0) {
        mss::clamp(&mut packet[at..], limit);
    }
}

fn earlier(a: Option<Nanos>, b: Option<Nanos>) -> Option<Nanos> {
    a.into_iter().chain(b).min()
}

/// When all peers are to be looked at again: not for each of many whose turn comes a moment after the one before.
fn next_look(timer: Option<Nanos>, now: Nanos) -> Option<Nanos> {
    timer.map(|timer| timer.max(now + LOOK))
}

/// How late a ping or an expiry may be at most.
const LOOK: Nanos = SECOND / 20;

/// A lock whose poison is ignored: a panic ends a thread, and what it left is only read after.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const MAX_PEER_ID: u32 = 0x00ff_ffff;

#[cfg(test)]
mod tests;
