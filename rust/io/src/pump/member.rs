//! A socket as a thread that writes has it, and what waits for room there: datagrams in their order, and behind
//! them inner packets, which go by turns.

use std::sync::Arc;

use ginnel_core::Nanos;
use ginnel_core::device::Kind;
use ginnel_core::fair::{FairQueue, flow_hash};
use ginnel_core::packet::{LocalPool, Packet};
use ginnel_core::plane::Datagram;
use rustix::io::Errno;

use crate::socket::{Socket, SocketCounters};
use crate::tcp;
use crate::udp::Sender;

pub struct Member {
    pub socket: Arc<Socket>,
    /// Datagrams that wait for room in the socket's buffer.
    backlog: Vec<Datagram>,
    backlog_bytes: usize,
    /// Inner packets; there are none while there is no backlog.
    queue: FairQueue,
}

impl Member {
    pub fn new(socket: Arc<Socket>) -> Member {
        Member { socket, backlog: Vec::new(), backlog_bytes: 0, queue: FairQueue::new(QUEUE) }
    }

    /// Datagrams wait for the socket to have room.
    pub fn is_blocked(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Sends datagrams; what the socket has no room for waits, and what finds no room to wait in is
    /// dropped and counted. An error is for good.
    pub fn send(
        &mut self,
        datagrams: &mut [Datagram],
        sender: &mut Sender,
        counters: &mut SocketCounters,
        pool: &mut LocalPool,
    ) -> Result<(), Errno> {
        let is_stream = self.socket.is_stream();
        if is_stream {
            datagrams.iter_mut().for_each(tcp::frame);
        }
        let sent = match self.is_blocked() {
            true => 0,
            false => write(&self.socket, datagrams, sender, counters)?,
        };
        for datagram in &mut datagrams[sent..] {
            if !self.has_room(datagram) {
                counters.tx_socket_full += 1;
                continue;
            }
            let packet = std::mem::replace(&mut datagram.packet, pool.packet(0));
            self.backlog_bytes += packet.len();
            self.backlog.push(Datagram { packet, path: datagram.path });
        }
        Ok(())
    }

    /// Sends on from the backlog.
    pub fn flush(
        &mut self,
        sender: &mut Sender,
        counters: &mut SocketCounters,
        pool: &mut LocalPool,
    ) -> Result<(), Errno> {
        let sent = write(&self.socket, &mut self.backlog, sender, counters)?;
        pool.recycle_all(self.backlog.drain(..sent).map(|datagram| datagram.packet));
        self.backlog_bytes = self.backlog.iter().map(|datagram| datagram.packet.len()).sum();
        Ok(())
    }

    /// Has an inner packet wait behind the backlog.
    pub fn hold(
        &mut self,
        packet: Packet,
        kind: Kind,
        now: Nanos,
        counters: &mut SocketCounters,
        pool: &mut LocalPool,
    ) {
        let dropped = self.queue.push(flow_hash(kind, &packet), packet, now);
        counters.tx_queue_dropped += u64::from(dropped.is_some());
        pool.recycle_all(dropped);
    }

    /// Once there is no backlog: moves the next of the packets that wait to the end of `packets`.
    pub fn release(
        &mut self,
        packets: &mut Vec<Packet>,
        now: Nanos,
        counters: &mut SocketCounters,
        pool: &mut LocalPool,
    ) {
        let mut dropped = Vec::new();
        while packets.len() < TURN
            && let Some(packet) = self.queue.pop(now, &mut dropped)
        {
            packets.push(packet);
        }
        counters.tx_queue_dropped += dropped.len() as u64;
        pool.recycle_all(dropped);
    }

    /// Counts what will never be sent.
    pub fn abandon(&mut self, counters: &mut SocketCounters, pool: &mut LocalPool) {
        counters.tx_closed += (self.backlog.len() + self.queue.len()) as u64;
        pool.recycle_all(self.queue.drain());
    }

    /// Whether a datagram may wait. The first one may whatever its length, for it may have been written
    /// in part. Of data there are few, the last that were sealed, so that a handshake does not die of traffic.
    fn has_room(&self, datagram: &Datagram) -> bool {
        let (datagrams, bytes) = (self.backlog.len(), self.backlog_bytes + datagram.packet.len());
        datagrams == 0 || datagrams < BACKLOG && bytes <= BACKLOG_BYTES
    }
}

/// Sends datagrams without blocking. Returns how many were dealt with.
pub fn write(
    socket: &Socket,
    datagrams: &mut [Datagram],
    sender: &mut Sender,
    counters: &mut SocketCounters,
) -> Result<usize, Errno> {
    match socket {
        Socket::Udp(socket) => sender.send(socket, datagrams, counters),
        Socket::Tcp(socket) => tcp::send(socket, datagrams, counters),
    }
}

/// Inner packets that wait for one socket, as many as in a device's own queue.
const QUEUE: usize = 1024;
/// Inner packets that are let go in a turn: what comes meanwhile has its turn with the next.
const TURN: usize = 32;

/// Datagrams that wait for one socket.
const BACKLOG: usize = 512;
const BACKLOG_BYTES: usize = 1 << 20;
