//! A socket as a thread that writes has it, and what waits for room there: datagrams in their order, and behind
//! them inner packets, a flow after the other.

use std::sync::Arc;

use ginnel_core::Nanos;
use ginnel_core::fair::{Budget, FairQueue};
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
    /// Datagrams for a stream that were sealed, and that it has not been given yet.
    turn: usize,
    /// Inner packets; after a turn there are none while there is no backlog.
    queue: FairQueue,
}

impl Member {
    pub fn new(socket: Arc<Socket>, budget: &Arc<Budget>) -> Member {
        let queue = FairQueue::new(budget.clone());
        Member { socket, backlog: Vec::new(), backlog_bytes: 0, turn: 0, queue }
    }

    /// Whether an inner packet may be sealed now: not behind a backlog, and of a stream's, which may take none
    /// of them, only a few at once.
    pub fn admits(&mut self) -> bool {
        let is_stream = self.socket.is_stream();
        let admits = self.backlog.is_empty() && (!is_stream || self.turn < TURN);
        self.turn += usize::from(admits && is_stream);
        admits
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
        self.turn = 0;
        if self.socket.is_stream() {
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

    /// Has an inner packet of this flow wait behind the backlog.
    pub fn hold(
        &mut self,
        flow: u32,
        packet: Packet,
        now: Nanos,
        counters: &mut SocketCounters,
        pool: &mut LocalPool,
    ) {
        let mut dropped = Vec::new();
        self.queue.push(flow, packet, now, &mut dropped);
        counters.tx_queue_dropped += dropped.len() as u64;
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

/// Inner packets that are sealed for a stream, or let go, in a turn: those that it does not take wait before
/// whatever comes next, in their order.
const TURN: usize = 16;

/// Datagrams that wait for one socket: of data a turn's, and control packets.
const BACKLOG: usize = 512;
const BACKLOG_BYTES: usize = 1 << 20;
