//! OpenVPN over TCP: each packet stands behind its length, 16 bits, big endian.
//!
//! A call reads or writes as many packets as there are. Source: `socket.c` of OpenVPN.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use ginnel_core::plane::Datagram;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketType, sockopt};

use crate::socket::{SocketCounters, address, adopt, canonical, set_option};

/// The length in front of each packet.
pub const LENGTH_LEN: usize = 2;

/// A connected stream socket.
pub struct TcpSocket {
    descriptor: OwnedFd,
    peer: SocketAddr,
}

impl TcpSocket {
    /// Takes a stream socket over. On an error (ENOTCONN before it is connected) the descriptor
    /// stays the caller's.
    pub fn adopt(descriptor: RawFd) -> io::Result<TcpSocket> {
        let (descriptor, peer) = adopt(descriptor, SocketType::STREAM, |socket| {
            let peer = rustix::net::getpeername(socket)?.and_then(address).ok_or(Errno::AFNOSUPPORT)?;
            rustix::io::ioctl_fionbio(socket, true)?;
            sockopt::set_tcp_nodelay(socket, true)?;
            // What waits in the kernel waits behind nothing of ours: little of it, or pings and
            // handshakes stand behind seconds of data on a slow line.
            set_option(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, UNSENT)?;
            Ok(peer)
        })?;
        Ok(TcpSocket { descriptor, peer: canonical(peer) })
    }

    /// Where the socket leads.
    pub fn address(&self) -> SocketAddr {
        self.peer
    }
}

impl AsFd for TcpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// One thread's buffer for reading streams.
pub struct StreamReader {
    buffer: Box<[u8]>,
    filled: usize,
}

impl StreamReader {
    pub fn new() -> StreamReader {
        StreamReader { buffer: vec![0; READ_LEN].into_boxed_slice(), filled: 0 }
    }

    /// Reads what waits, without blocking, behind the beginning of a packet that came before.
    /// False at the stream's end.
    pub fn receive(&mut self, socket: &TcpSocket, partial: &[u8]) -> Result<bool, Errno> {
        self.filled = partial.len();
        self.buffer[..partial.len()].copy_from_slice(partial);
        let (_, len) = rustix::net::recv(socket, &mut self.buffer[partial.len()..], RecvFlags::DONTWAIT)?;
        self.filled += len;
        Ok(len > 0)
    }

    /// How many bytes of them were read, those that were there before with them.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// The whole packets that have been read.
    pub fn packets(&self) -> Packets<'_> {
        Packets { rest: &self.buffer[..self.filled], broken: false }
    }
}

impl Default for StreamReader {
    fn default() -> StreamReader {
        StreamReader::new()
    }
}

/// Takes a stream apart. What is left when it ends is the beginning of a packet.
pub struct Packets<'a> {
    rest: &'a [u8],
    /// Set by a length that cannot be: nothing that follows has a meaning.
    pub broken: bool,
}

impl<'a> Packets<'a> {
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Packets<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, behind) = self.rest.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes(*length));
        self.broken |= len == 0;
        if self.broken {
            return None;
        }
        let (packet, rest) = behind.split_at_checked(len)?;
        self.rest = rest;
        Some(packet)
    }
}

/// Puts a packet's length in front of it. It takes [`LENGTH_LEN`] bytes of headroom.
pub fn frame(datagram: &mut Datagram) {
    let len = datagram.packet.len() as u16;
    datagram.packet.grow_front(LENGTH_LEN);
    datagram.packet[..LENGTH_LEN].copy_from_slice(&len.to_be_bytes());
}

/// Writes framed packets without blocking. Returns how many were written whole; of one that was
/// written in part the rest stays. An error is for good, and nothing was written.
pub fn send(
    socket: &TcpSocket,
    datagrams: &mut [Datagram],
    counters: &mut SocketCounters,
) -> Result<usize, Errno> {
    let mut done = 0;
    while done < datagrams.len() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let planned = slices.iter_mut().zip(&datagrams[done..]);
        let planned = planned.map(|(slice, datagram)| *slice = IoSlice::new(&datagram.packet)).count();
        counters.tx_calls += 1;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent =
            rustix::net::sendmsg(socket, &slices[..planned], &mut SendAncillaryBuffer::default(), flags);
        let mut sent = match sent {
            Ok(sent) => sent,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(done),
            Err(_) if done > 0 => return Ok(done),
            Err(errno) => return Err(errno),
        };
        counters.tx_messages += 1;
        while let Some(datagram) = datagrams.get_mut(done).filter(|_| sent > 0) {
            let len = datagram.packet.len();
            if sent < len {
                datagram.packet.trim_front(sent);
                break;
            }
            sent -= len;
            done += 1;
            counters.tx_segments += 1;
        }
    }
    Ok(done)
}

/// Room for the longest packet's beginning and a good read behind it.
const READ_LEN: usize = 256 << 10;

/// Packets a write: the kernel takes 1,024 at most.
const SLICES: usize = 128;

/// Bytes that the kernel may hold without having sent them.
const UNSENT: i32 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn take(stream: &[u8]) -> (Vec<&[u8]>, &[u8], bool) {
        let mut packets = Packets { rest: stream, broken: false };
        let taken = packets.by_ref().collect();
        (taken, packets.rest(), packets.broken)
    }

    #[test]
    fn a_stream_comes_apart_at_any_cut() {
        let stream = [&[0, 1, 7][..], &[0, 3, 1, 2, 3], &[1, 0], &[9; 256], &[0, 2, 4]].concat();
        let (packets, rest, broken) = take(&stream);
        assert_eq!(packets, [&[7][..], &[1, 2, 3], &[9; 256]]);
        assert_eq!((rest, broken), (&[0, 2, 4][..], false));
        for cut in 0..stream.len() {
            let (first, rest, _) = take(&stream[..cut]);
            let joined = [rest, &stream[cut..]].concat();
            let (second, ..) = take(&joined);
            assert_eq!([first, second].concat(), packets);
        }
    }

    #[test]
    fn nothing_follows_a_length_of_zero() {
        let (packets, _, broken) = take(&[0, 1, 7, 0, 0, 0, 1, 8]);
        assert_eq!((packets, broken), (vec![&[7][..]], true));
    }
}
