//! What the data plane's sockets have in common, datagrams or stream.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use ginnel_core::counters;
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketType, sockopt};

use crate::tcp::TcpSocket;
use crate::udp::UdpSocket;

counters! {
    /// What the sockets did, and every reason for a loss there.
    pub struct SocketCounters {
        /// System calls, messages in them (a stream's reads and writes), and datagrams in these.
        rx_calls,
        rx_messages,
        rx_segments,
        tx_calls,
        tx_messages,
        tx_segments,
        /// What the kernel dropped because a socket's buffer was full. It counts a whole GRO run once.
        rx_kernel_dropped,
        /// Errors in the way of later packets (ICMP, mostly), swallowed.
        rx_errors,
        /// Streams that were given up because a length in them cannot be.
        rx_bad_streams,
        /// Datagrams from a relay that are fragments, or malformed.
        rx_bad_relayed,
        /// Datagrams longer than the path takes, even in fragments.
        tx_too_long,
        /// Datagrams for which a socket's buffer and our backlog had no room.
        tx_socket_full,
        /// Inner packets that waited too long for room in a socket, or behind too many.
        tx_queue_dropped,
        /// Datagrams that the system refused to send.
        tx_errors,
        /// Datagrams for a socket that is gone.
        tx_closed,
    }
}

pub enum Socket {
    Udp(UdpSocket),
    Tcp(TcpSocket),
}

impl Socket {
    /// Where the socket leads if it is connected, otherwise where it is bound.
    pub fn address(&self) -> SocketAddr {
        match self {
            Socket::Udp(socket) => socket.address(),
            Socket::Tcp(socket) => socket.address(),
        }
    }

    /// What the kernel has dropped for want of room since the socket was made.
    pub fn kernel_dropped(&self) -> u64 {
        match self {
            Socket::Udp(socket) => socket.kernel_dropped(),
            Socket::Tcp(_) => 0,
        }
    }

    pub fn is_stream(&self) -> bool {
        matches!(self, Socket::Tcp(_))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Udp(socket) => socket.as_fd(),
            Socket::Tcp(socket) => socket.as_fd(),
        }
    }
}

/// Takes a socket of a type over once `prepare` has made what it needs of it. On an error the
/// descriptor stays the caller's.
pub fn adopt<T>(
    descriptor: RawFd,
    sort: SocketType,
    prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> io::Result<(OwnedFd, T)> {
    if descriptor < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: fcntl judges any number; an open descriptor stays open during this function,
    // because the caller gives it to us and to nobody else.
    let borrowed = unsafe {
        if libc::fcntl(descriptor, libc::F_GETFD) == -1 {
            return Err(io::Error::last_os_error());
        }
        BorrowedFd::borrow_raw(descriptor)
    };
    if sockopt::socket_type(borrowed)? != sort {
        return Err(Errno::PROTOTYPE.into());
    }
    let prepared = prepare(borrowed)?;
    // SAFETY: the descriptor is open, a socket, and the caller's to give away.
    Ok((unsafe { OwnedFd::from_raw_fd(descriptor) }, prepared))
}

pub fn set_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> Result<(), Errno> {
    // SAFETY: the option's value is an int that lives during the call, and its size is given.
    let result = unsafe {
        let pointer: *const i32 = &value;
        libc::setsockopt(socket.as_raw_fd(), level, option, pointer.cast(), size_of::<i32>() as _)
    };
    if result == -1 { Err(last_error()) } else { Ok(()) }
}

/// An IP address as the system gives it; `None` for another family's.
pub fn address(any: SocketAddrAny) -> Option<SocketAddr> {
    any.try_into().ok()
}

/// The address as paths write it: IPv4 as IPv4, on a socket of both families too, and no flow label.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match (address.ip().to_canonical(), address) {
        (IpAddr::V6(ip), SocketAddr::V6(v6)) => SocketAddrV6::new(ip, v6.port(), 0, v6.scope_id()).into(),
        (ip, _) => SocketAddr::new(ip, address.port()),
    }
}

pub fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
