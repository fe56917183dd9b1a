//! Who is where: peers by number, path and peer id, and the inner prefixes that lead to them.

use std::hash::Hash;
use std::net::IpAddr;

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use crate::device::Kind;
use crate::header::Header;
use crate::plane::Path;
use crate::plane::guard::Guard;
use crate::plane::routes::{Ends, Prefix, Prefixes};

pub struct Table {
    peers: HashMap<u32, Place>,
    by_path: HashMap<Path, u32>,
    by_peer_id: HashMap<u32, u32>,
    /// The sockets that are streams: nobody moves onto or off one of them.
    streams: HashSet<u64>,
    routes: Prefixes<u32>,
    /// Whether peers reach each other.
    pub relaying: bool,
    pub guard: Guard,
}

/// Where a peer is.
pub struct Place {
    pub lane: usize,
    pub path: Path,
    /// Which of our addresses it writes to, where the socket has several.
    pub asked: Option<IpAddr>,
    peer_id: Option<u32>,
}

impl Table {
    pub fn new() -> Table {
        Table {
            peers: HashMap::new(),
            by_path: HashMap::new(),
            by_peer_id: HashMap::new(),
            streams: HashSet::new(),
            routes: Prefixes::default(),
            relaying: false,
            guard: Guard::default(),
        }
    }

    pub fn insert(&mut self, number: u32, lane: usize, path: Path, peer_id: Option<u32>) {
        self.peers.insert(number, Place { lane, path, asked: None, peer_id });
        self.by_path.insert(path, number);
        if let Some(id) = peer_id {
            self.by_peer_id.insert(id, number);
        }
    }

    pub fn remove(&mut self, number: u32) -> Option<Place> {
        let place = self.peers.remove(&number)?;
        forget(&mut self.by_path, &place.path, number);
        if let Some(id) = place.peer_id {
            forget(&mut self.by_peer_id, &id, number);
        }
        self.routes.remove_all(&number);
        Some(place)
    }

    pub fn get(&self, number: u32) -> Option<&Place> {
        self.peers.get(&number)
    }

    pub fn len(&self) -> usize {
        self.peers.len()
    }

    pub fn set_asked(&mut self, path: &Path, asked: Option<IpAddr>) {
        let number = self.by_path.get(path);
        if let Some(place) = number.and_then(|number| self.peers.get_mut(number)) {
            place.asked = asked;
        }
    }

    /// Of two peers that claim one prefix, the later has it.
    pub fn set_routes(&mut self, number: u32, routes: &[Prefix]) {
        self.routes.remove_all(&number);
        routes.iter().for_each(|&prefix| self.routes.insert(prefix, number));
    }

    pub fn set_stream(&mut self, socket: u64, is_stream: bool) {
        match is_stream {
            true => self.streams.insert(socket),
            false => self.streams.remove(&socket),
        };
    }

    pub fn is_stream(&self, socket: u64) -> bool {
        self.streams.contains(&socket)
    }

    pub fn is_held(&self, path: &Path) -> bool {
        self.by_path.contains_key(path)
    }

    /// The peer that a data packet claims to come from. One at its path comes first; a peer id that
    /// is known only from elsewhere may be a peer that moved; one that is unknown says nothing, for
    /// the other side may number us differently.
    pub fn sender(&self, header: &Header, path: &Path) -> Option<(u32, &Place)> {
        let at_path = self.by_path.get(path).and_then(|&number| Some((number, self.get(number)?)));
        let Some(id) = header.peer_id() else { return at_path };
        let named = || self.by_peer_id.get(&id).and_then(|&number| Some((number, self.get(number)?)));
        at_path.filter(|(_, place)| place.peer_id == Some(id)).or_else(named).or(at_path)
    }

    /// The peer to which an inner packet goes. A plane with one peer and no routes is a client's.
    pub fn receiver(&self, kind: Kind, packet: &[u8]) -> Option<(u32, &Place)> {
        if self.routes.is_empty() {
            let mut peers = self.peers.iter();
            return peers.next().filter(|_| peers.next().is_none()).map(|(&number, place)| (number, place));
        }
        if kind == Kind::Tap {
            return None;
        }
        let &number = self.routes.get(Ends::of(packet)?.destination)?;
        Some((number, self.get(number)?))
    }

    /// The other peer for which this peer's packet is, where peers reach each other.
    pub fn other_receiver(&self, number: u32, kind: Kind, packet: &[u8]) -> Option<&Place> {
        if !self.relaying || kind == Kind::Tap {
            return None;
        }
        let &other = self.routes.get(Ends::of(packet)?.destination)?;
        self.get(other).filter(|_| other != number)
    }

    /// Whether a peer whose packet was authentic may be at this path now.
    pub fn may_float(&self, place: &Place, path: &Path) -> bool {
        !self.is_held(path) && !self.is_stream(path.socket) && !self.is_stream(place.path.socket)
    }

    /// Moves a peer there.
    pub fn float(&mut self, number: u32, path: Path) {
        let Some(place) = self.peers.get_mut(&number) else { return };
        let left = std::mem::replace(&mut place.path, path);
        forget(&mut self.by_path, &left, number);
        self.by_path.insert(path, number);
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
            && self.by_path.is_empty()
            && self.by_peer_id.is_empty()
            && self.routes.is_empty()
    }
}

/// Removes an entry if it still is this peer's.
fn forget<K: Hash + Eq>(table: &mut HashMap<K, u32>, key: &K, number: u32) {
    if table.get(key) == Some(&number) {
        table.remove(key);
    }
}
