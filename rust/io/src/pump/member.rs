//! A socket as a thread that writes has it: what waits for room there.

use std::sync::Arc;

use ginnel_core::header::{Header, Sort};
use ginnel_core::packet::LocalPool;
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
}

impl Member {
    pub fn new(socket: Arc<Socket>) -> Member {
        Member { socket, backlog: Vec::new(), backlog_bytes: 0 }
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
            if !self.has_room(datagram, is_stream) {
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

    /// Counts what will never be sent.
    pub fn abandon(&mut self, counters: &mut SocketCounters) {
        counters.tx_closed += self.backlog.len() as u64;
    }

    /// Whether a datagram may wait. The first one may whatever its length, for it may have been written
    /// in part; control packets may where data may not any longer, or a handshake would die of traffic.
    fn has_room(&self, datagram: &Datagram, is_framed: bool) -> bool {
        let (datagrams, bytes) = (self.backlog.len(), self.backlog_bytes + datagram.packet.len());
        if datagrams == 0 || datagrams < BACKLOG && bytes <= BACKLOG_BYTES {
            return true;
        }
        let content = &datagram.packet[if is_framed { tcp::LENGTH_LEN } else { 0 }..];
        let is_control = matches!(Header::parse(content), Sort::Control);
        is_control && datagrams < BACKLOG + RESERVE && bytes <= BACKLOG_BYTES + RESERVE_BYTES
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

/// Data that waits for one socket, and what control packets may wait beyond that.
const BACKLOG: usize = 512;
const BACKLOG_BYTES: usize = 1 << 20;
const RESERVE: usize = 64;
const RESERVE_BYTES: usize = 1 << 17;
