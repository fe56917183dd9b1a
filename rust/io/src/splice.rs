//! Bytes between a connection of the stack and a host socket, both ways.
//!
//! They go from the socket's buffers straight into the connection's rings and back; what one side
//! does not take stays where it is, so that each side holds the other back.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use ginnel_core::netstack::Failure;
use ginnel_core::netstack::address::mapped;
use ginnel_core::netstack::tcp::Transport;
use ginnel_core::netstack::udp::Outlet;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketType, recv, send, sendmsg,
    shutdown, sockopt,
};

/// Takes over the descriptor of a stream socket. One that is open but of another type is closed.
pub fn adopt_stream(descriptor: RawFd) -> io::Result<OwnedFd> {
    adopt(descriptor, SocketType::STREAM)
}

/// Takes over the descriptor of a SOCK_SEQPACKET socket. One that is open but of another type is closed.
pub fn adopt_messages(descriptor: RawFd) -> io::Result<OwnedFd> {
    adopt(descriptor, SocketType::SEQPACKET)
}

/// Takes over the descriptor of a UDP socket. One that is open but of another type is closed.
pub fn adopt_datagrams(descriptor: RawFd) -> io::Result<OwnedFd> {
    adopt(descriptor, SocketType::DGRAM)
}

/// Takes over any descriptor that is open.
pub fn adopt_file(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asks about a number, whatever it stands for.
    if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the caller's contract gives it away.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn adopt(descriptor: RawFd, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = adopt_file(descriptor)?;
    if sockopt::socket_type(&socket)? == kind { Ok(socket) } else { Err(Errno::PROTOTYPE.into()) }
}

/// The host socket of a connection.
pub struct Splice {
    descriptor: OwnedFd,
    readable: bool,
    writable: bool,
    /// The program may have ended its side: reading goes on until that shows.
    hung_up: bool,
    failed: bool,
    /// The program's end has been read and passed on.
    ended: bool,
    /// The peer's end has been passed on.
    shut: bool,
}

/// What moving bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Neither side has anything more for the other now.
    All,
    /// There is more, but others have their turn.
    Part,
    /// The program has closed its socket with bytes on their way to it.
    Broken,
}

impl Splice {
    pub fn new(descriptor: OwnedFd) -> Splice {
        let (hung_up, failed, ended, shut) = (false, false, false, false);
        Splice { descriptor, readable: true, writable: true, hung_up, failed, ended, shut }
    }

    /// Takes note of what epoll said.
    pub fn note(&mut self, flags: EventFlags) {
        self.readable |= flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP);
        self.writable |= flags.contains(EventFlags::OUT);
        self.hung_up |= flags.intersects(EventFlags::RDHUP | EventFlags::HUP);
        self.failed |= flags.contains(EventFlags::ERR);
    }

    /// Moves what can be moved, up to [`TURN`] bytes each way.
    pub fn pump(&mut self, transport: &mut impl Transport) -> Moved {
        let moved = self.deliver(transport).and_then(|delivered| {
            let collected = self.collect(transport)?;
            Ok(if delivered && collected { Moved::All } else { Moved::Part })
        });
        if self.failed { Moved::Broken } else { moved.unwrap_or(Moved::Broken) }
    }

    /// Gives the descriptor up. After a failure a TCP program sees a reset, as from the peer itself.
    pub fn close(self, failure: Option<Failure>) {
        if failure.is_some() && sockopt::socket_domain(&self.descriptor) != Ok(AddressFamily::UNIX) {
            let _ = sockopt::set_socket_linger(&self.descriptor, Some(Duration::ZERO));
        }
    }

    fn deliver(&mut self, transport: &mut impl Transport) -> io::Result<bool> {
        let mut total = 0;
        while self.writable && transport.readable() > 0 {
            if total >= TURN {
                return Ok(false);
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = transport.read(|bytes| match send(&self.descriptor, bytes, flags) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match sent {
                Some(Ok(count)) => total += count,
                Some(Err(Errno::AGAIN)) => self.writable = false,
                Some(Err(Errno::INTR)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => break,
            }
        }
        if transport.is_drained() && !self.shut {
            self.shut = true;
            // A program that is gone already needs no telling.
            let _ = shutdown(&self.descriptor, Shutdown::Write);
        }
        Ok(true)
    }

    fn collect(&mut self, transport: &mut impl Transport) -> io::Result<bool> {
        let mut total = 0;
        while self.readable && !self.ended && transport.writable() > 0 {
            if total >= TURN {
                return Ok(false);
            }
            let received = transport.write(|space| {
                let room = space.len();
                match recv(&self.descriptor, space, RecvFlags::DONTWAIT) {
                    Ok((count, _)) => (count, Ok((count, room))),
                    Err(error) => (0, Err(error)),
                }
            });
            match received {
                Some(Ok((0, _))) => {
                    self.ended = true;
                    transport.finish();
                }
                Some(Ok((count, room))) => {
                    total += count;
                    // Less than asked for: the socket was empty, and will say when it is not.
                    self.readable = count == room || self.hung_up;
                }
                Some(Err(Errno::AGAIN)) => self.readable = false,
                Some(Err(Errno::INTR)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => break,
            }
        }
        Ok(true)
    }
}

impl AsFd for Splice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The host socket that a UDP port or an association is joined to: one message a datagram.
pub enum Datagrams {
    /// A program's SOCK_SEQPACKET socket; an address before each payload.
    Messages(OwnedFd),
    /// A connected UDP socket of the host's; payloads alone.
    Connected(OwnedFd),
}

/// What a socket of messages has.
pub enum Incoming {
    /// So many bytes.
    Message(usize),
    Nothing,
    /// Nobody took what was sent before.
    Refused,
    Ended,
}

impl Datagrams {
    /// Reads one message into `buffer`.
    pub fn receive(&self, buffer: &mut [u8]) -> Incoming {
        loop {
            return match (recv(self, &mut *buffer, RecvFlags::DONTWAIT), self) {
                (Ok((0, _)), Datagrams::Messages(_)) => Incoming::Ended,
                (Ok((count, _)), _) => Incoming::Message(count),
                (Err(Errno::INTR), _) => continue,
                (Err(Errno::AGAIN), _) => Incoming::Nothing,
                // It closed without reading all that it was sent: said once, and before what it sent itself.
                (Err(Errno::CONNRESET), Datagrams::Messages(_)) => continue,
                (Err(Errno::CONNREFUSED), Datagrams::Connected(_)) => Incoming::Refused,
                // Reports about the way there, which may pass.
                (Err(Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::MSGSIZE), Datagrams::Connected(_)) => {
                    continue;
                }
                (Err(_), _) => Incoming::Ended,
            };
        }
    }
}

impl Outlet for Datagrams {
    fn deliver(&mut self, from: SocketAddr, payload: &[u8]) -> bool {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match self {
            Datagrams::Messages(socket) => {
                let mut header = [0; HEADER];
                header[..16].copy_from_slice(&mapped(from.ip()));
                header[16..].copy_from_slice(&from.port().to_be_bytes());
                let parts = [io::IoSlice::new(&header), io::IoSlice::new(payload)];
                let mut control: [MaybeUninit<u8>; 0] = [];
                let mut control = SendAncillaryBuffer::new(&mut control);
                sendmsg(socket, &parts, &mut control, flags).is_ok()
            }
            Datagrams::Connected(socket) => match send(&*socket, payload, flags) {
                // The error was an earlier datagram's.
                Err(Errno::CONNREFUSED | Errno::HOSTUNREACH) => send(&*socket, payload, flags).is_ok(),
                sent => sent.is_ok(),
            },
        }
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Datagrams::Messages(socket) | Datagrams::Connected(socket) => socket.as_fd(),
        }
    }
}

/// The address before each datagram: 16 bytes and the port.
pub const HEADER: usize = 18;
const TURN: usize = 512 * 1024;
