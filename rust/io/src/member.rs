//! A socket as the data plane's thread has it: what was read in part, and what waits to be written.

use std::sync::Arc;

use ginnel_core::header::{Header, Sort};
use ginnel_core::packet::LocalPool;
use ginnel_core::plane::Datagram;
use rustix::io::Errno;

use crate::socket::{Socket, SocketCounters};
use crate::tcp::{self, StreamReader};
use crate::udp::{Receiver, Sender, is_fatal};

/// One thread's buffers for sockets of every sort.
#[derive(Default)]
pub struct Buffers {
    pub receiver: Receiver,
    pub reader: StreamReader,
    sender: Sender,
}

pub struct Member {
    pub socket: Arc<Socket>,
    /// The beginning of a stream's packet whose rest has not come yet.
    pub partial: Vec<u8>,
    /// Datagrams that wait for room in the socket's buffer.
    backlog: Vec<Datagram>,
    backlog_bytes: usize,
    errors_in_a_row: u32,
}

impl Member {
    pub fn new(socket: Arc<Socket>) -> Member {
        Member { socket, partial: Vec::new(), backlog: Vec::new(), backlog_bytes: 0, errors_in_a_row: 0 }
    }

    /// Datagrams wait for the socket to have room.
    pub fn is_blocked(&self) -> bool {
        !self.backlog.is_empty()
    }

    pub fn received(&mut self) {
        self.errors_in_a_row = 0;
    }

    /// Whether a datagram socket counts as broken after this error.
    pub fn is_broken_by(&mut self, errno: Errno) -> bool {
        self.errors_in_a_row += 1;
        self.socket.is_stream() || is_fatal(errno) || self.errors_in_a_row > MAX_ERRORS
    }

    /// Sends datagrams; what the socket has no room for waits, and what finds no room to wait in is
    /// dropped and counted. An error is for good.
    pub fn send(
        &mut self,
        datagrams: &mut [Datagram],
        buffers: &mut Buffers,
        counters: &mut SocketCounters,
        pool: &mut LocalPool,
    ) -> Result<(), Errno> {
        let is_stream = self.socket.is_stream();
        if is_stream {
            datagrams.iter_mut().for_each(tcp::frame);
        }
        let sent = match self.is_blocked() {
            true => 0,
            false => write(&self.socket, datagrams, &mut buffers.sender, counters)?,
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
        buffers: &mut Buffers,
        counters: &mut SocketCounters,
        pool: &mut LocalPool,
    ) -> Result<(), Errno> {
        let sent = write(&self.socket, &mut self.backlog, &mut buffers.sender, counters)?;
        pool.recycle_all(self.backlog.drain(..sent).map(|datagram| datagram.packet));
        self.backlog_bytes = self.backlog.iter().map(|datagram| datagram.packet.len()).sum();
        Ok(())
    }

    /// Counts what will never be sent.
    pub fn abandon(&mut self, counters: &mut SocketCounters) {
        counters.tx_closed += self.backlog.len() as u64;
        counters.rx_kernel_dropped += self.socket.kernel_dropped();
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

/// Errors on receiving without a datagram in between, after which a datagram socket counts as broken: what
/// comes from the network ends by itself, for every such error answers something we sent.
const MAX_ERRORS: u32 = 10_000;
