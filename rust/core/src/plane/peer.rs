//! One peer: where it is, its keys, its timers.

use crate::device::Kind;
use crate::framing::Framing;
use crate::header::Header;
use crate::packet::{LocalPool, Packet};
use crate::plane::Path;
use crate::plane::keys::{Keys, Refusal};
use crate::plane::routes::{Ends, Prefixes};
use crate::{Nanos, counters};

counters! {
    /// What went to and came from one peer. Packets and bytes are inner ones.
    pub struct PeerCounters {
        rx_packets,
        rx_bytes,
        rx_pings,
        /// Data packets that claimed to come from the peer, and those of them that were not opened.
        rx_datagrams,
        rx_dropped,
        tx_packets,
        tx_bytes,
        tx_pings,
        tx_datagrams,
    }
}

pub struct Peer {
    pub path: Path,
    pub peer_id: Option<u32>,
    pub keys: Keys,
    pub mss: u16,
    pub framing: Framing,
    pub sources: Option<Prefixes<()>>,
    pub last_sent: Nanos,
    pub counters: PeerCounters,
    last_heard: Nanos,
    ping: Nanos,
    ping_restart: Nanos,
    expired: bool,
}

impl Peer {
    pub fn new(path: Path, peer_id: Option<u32>, now: Nanos) -> Peer {
        Peer {
            path,
            peer_id,
            keys: Keys::default(),
            mss: 0,
            framing: Framing::None,
            sources: None,
            last_sent: now,
            counters: PeerCounters::default(),
            last_heard: now,
            ping: 0,
            ping_restart: 0,
            expired: false,
        }
    }

    pub fn set(&mut self, ping: Nanos, ping_restart: Nanos, mss: u16, framing: Framing, now: Nanos) {
        self.ping = ping;
        self.ping_restart = ping_restart;
        self.mss = mss;
        self.framing = framing;
        self.last_sent = now;
        self.last_heard = now;
        self.expired = false;
    }

    /// Opens a datagram of this peer's. An authentic one shows that the peer lives.
    pub fn open(
        &mut self,
        header: &Header,
        datagram: &[u8],
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Result<(Packet, bool), Refusal> {
        self.counters.rx_datagrams += 1;
        let opened = self.keys.open(header, datagram, now, pool);
        match opened {
            Ok(_) => self.last_heard = now,
            Err(_) => self.counters.rx_dropped += 1,
        }
        opened
    }

    /// Whether the peer may use an inner packet's source address.
    pub fn may_send(&self, kind: Kind, packet: &[u8]) -> bool {
        match (&self.sources, kind) {
            (None, _) | (_, Kind::Tap) => true,
            (Some(sources), Kind::Tun) => {
                Ends::of(packet).is_some_and(|ends| sources.get(ends.source).is_some())
            }
        }
    }

    /// Whether the peer has been silent for too long, said once.
    pub fn expires(&mut self, now: Nanos) -> bool {
        let expires = self.expiry().is_some_and(|expiry| now >= expiry);
        self.expired |= expires;
        expires
    }

    /// Whether a ping is due. Without a key to send it with, the next is due a whole interval later.
    pub fn takes_ping(&mut self, now: Nanos) -> bool {
        let due = self.ping_due().is_some_and(|due| now >= due);
        if due {
            self.last_sent = now;
        }
        due && self.keys.sending().is_some()
    }

    /// When something is due next.
    pub fn deadline(&self) -> Option<Nanos> {
        self.ping_due().into_iter().chain(self.expiry()).min()
    }

    fn ping_due(&self) -> Option<Nanos> {
        (self.ping > 0).then(|| self.last_sent.saturating_add(self.ping))
    }

    fn expiry(&self) -> Option<Nanos> {
        (self.ping_restart > 0 && !self.expired).then(|| self.last_heard.saturating_add(self.ping_restart))
    }
}
