//! Packets over a SOCK_SEQPACKET socket, one message each, many in a system call.
//!
//! A message may begin with packet information, as on /dev/net/tun without IFF_NO_PI: two bytes of
//! flags, then the protocol's EtherType (`struct tun_pi`, linux/if_tun.h).

use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use ginnel_core::device::Kind;
use ginnel_core::packet::{LocalPool, MAX_LEN, POOLED_LEN, Packet};
use rustix::io::Errno;
use rustix::net::sockopt;

/// A socket whose messages are packets.
pub struct PacketSocket {
    descriptor: OwnedFd,
    kind: Kind,
    /// Each message begins with packet information.
    packet_info: AtomicBool,
    /// The other side may have closed: from now on an empty message is told from the end.
    careful: AtomicBool,
}

/// What came of a receive call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Messages taken off the socket.
    pub messages: usize,
    /// Those among them that were no packets: empty, too long, or without their information.
    pub malformed: usize,
    /// The other side has closed, and everything it wrote has been read.
    pub ended: bool,
}

impl PacketSocket {
    pub fn new(descriptor: OwnedFd, kind: Kind, packet_info: bool) -> Result<PacketSocket, Errno> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        // As large as the system lets it be: each packet of a full queue, and the longest one.
        sockopt::set_socket_send_buffer_size(&descriptor, SEND_BUFFER)?;
        let (packet_info, careful) = (AtomicBool::new(packet_info), AtomicBool::new(false));
        Ok(PacketSocket { descriptor, kind, packet_info, careful })
    }

    /// Whether each message begins with packet information.
    pub fn set_packet_info(&self, packet_info: bool) {
        self.packet_info.store(packet_info, Ordering::Relaxed);
    }

    /// The other side has closed (EPOLLHUP): what it wrote before can still be read.
    pub fn note_hang_up(&self) {
        // Each message now carries its sender's credentials, and the end of them does not: nothing
        // else distinguishes an empty message from the end.
        let careful = sockopt::set_socket_passcred(&self.descriptor, true).is_ok();
        self.careful.store(careful, Ordering::Relaxed);
    }

    /// Sends packets from the front of `packets`; returns how many. Fewer than all: there is no room
    /// for more now. An error is for good.
    pub fn send(&self, packets: &[Packet]) -> Result<usize, Errno> {
        let packets = &packets[..packets.len().min(MESSAGES)];
        let mut infos = [[0u8; PACKET_INFO]; MESSAGES];
        // SAFETY: both are plain C structures, for which all zeros are a value.
        let (mut vectors, mut headers): ([[libc::iovec; 2]; MESSAGES], [libc::mmsghdr; MESSAGES]) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        let skip = usize::from(!self.packet_info.load(Ordering::Relaxed));
        for (index, packet) in packets.iter().enumerate() {
            infos[index][2..].copy_from_slice(&protocol(self.kind, packet));
            let info = infos[index].as_mut_ptr().cast();
            vectors[index] = [
                libc::iovec { iov_base: info, iov_len: PACKET_INFO },
                libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() },
            ];
            headers[index].msg_hdr.msg_iov = vectors[index][skip..].as_mut_ptr();
            headers[index].msg_hdr.msg_iovlen = 2 - skip;
        }
        loop {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: every header points to vectors, and these to informations and packets, that
            // outlive the call; it only reads them.
            let sent = unsafe {
                libc::sendmmsg(
                    self.descriptor.as_raw_fd(),
                    headers.as_mut_ptr(),
                    packets.len() as _,
                    flags as _,
                )
            };
            match usize::try_from(sent).map_err(|_| last_error()) {
                Ok(sent) => return Ok(sent),
                Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// One thread's scratch space for receiving.
pub struct Inbox {
    slots: Vec<Packet>,
    /// What of a message a pooled buffer does not hold. Its pages cost nothing until they are used.
    overflow: Box<[u8]>,
}

impl Inbox {
    pub fn new() -> Inbox {
        Inbox {
            slots: Vec::with_capacity(MESSAGES),
            overflow: vec![0; MESSAGES * OVERFLOW].into_boxed_slice(),
        }
    }

    /// Appends the packets that wait on the socket to `packets`, at most [`MESSAGES`] of them.
    pub fn receive(
        &mut self,
        socket: &PacketSocket,
        pool: &mut LocalPool,
        packets: &mut Vec<Packet>,
    ) -> Received {
        while self.slots.len() < MESSAGES {
            self.slots.push(pool.packet(POOLED_LEN));
        }
        // SAFETY: both are plain C structures, for which all zeros are a value.
        let (mut vectors, mut headers): ([[libc::iovec; 2]; MESSAGES], [libc::mmsghdr; MESSAGES]) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        let careful = socket.careful.load(Ordering::Relaxed);
        let mut controls = [[MaybeUninit::<u64>::uninit(); CONTROL.div_ceil(8)]; MESSAGES];
        for (index, (slot, overflow)) in
            self.slots.iter_mut().zip(self.overflow.chunks_mut(OVERFLOW)).enumerate()
        {
            vectors[index] = [
                libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: POOLED_LEN },
                libc::iovec { iov_base: overflow.as_mut_ptr().cast(), iov_len: OVERFLOW },
            ];
            let header = &mut headers[index].msg_hdr;
            header.msg_iov = vectors[index].as_mut_ptr();
            header.msg_iovlen = 2;
            if careful {
                header.msg_control = controls[index].as_mut_ptr().cast();
                header.msg_controllen = CONTROL as _;
            }
        }
        let received = loop {
            // SAFETY: every header points to vectors, buffers and a control block of the lengths it
            // states, which live in `self` and on the stack until the call has returned.
            let received = unsafe {
                libc::recvmmsg(
                    socket.descriptor.as_raw_fd(),
                    headers.as_mut_ptr(),
                    MESSAGES as _,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            };
            match usize::try_from(received).map_err(|_| last_error()) {
                Ok(received) => break received,
                // It closed without reading all that we had sent. That is said once, and before what it wrote itself.
                Err(Errno::CONNRESET) => {}
                Err(errno) => {
                    let ended = !matches!(errno, Errno::AGAIN | Errno::INTR);
                    return Received { ended, ..Received::default() };
                }
            }
        };
        self.sort_out(socket, careful, &headers[..received], pool, packets)
    }

    fn sort_out(
        &mut self,
        socket: &PacketSocket,
        careful: bool,
        headers: &[libc::mmsghdr],
        pool: &mut LocalPool,
        packets: &mut Vec<Packet>,
    ) -> Received {
        let mut result = Received::default();
        let info = if socket.packet_info.load(Ordering::Relaxed) { PACKET_INFO } else { 0 };
        // Slots that come out of the middle keep their places until the end.
        let mut slots: Vec<Option<Packet>> = self.slots.drain(..).map(Some).collect();
        for (index, header) in headers.iter().enumerate() {
            let len = header.msg_len as usize;
            if len == 0 && careful && header.msg_hdr.msg_controllen == 0 {
                result.ended = true;
                break;
            }
            result.messages += 1;
            if len <= info || len - info > MAX_LEN || header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
                result.malformed += 1;
                continue;
            }
            let Some(mut packet) = slots[index].take() else { continue };
            if len <= POOLED_LEN {
                packet.truncate(len);
                packet.trim_front(info);
            } else {
                let mut long = pool.packet(len - info);
                let (head, tail) = long.split_at_mut(POOLED_LEN - info);
                head.copy_from_slice(&packet[info..]);
                tail.copy_from_slice(&self.overflow[index * OVERFLOW..][..tail.len()]);
                pool.recycle(mem::replace(&mut packet, long));
            }
            packets.push(packet);
        }
        self.slots.extend(slots.into_iter().flatten());
        result
    }
}

impl Default for Inbox {
    fn default() -> Inbox {
        Inbox::new()
    }
}

/// The EtherType of what a packet is.
fn protocol(kind: Kind, packet: &[u8]) -> [u8; 2] {
    match (kind, packet) {
        (Kind::Tap, [_, _, _, _, _, _, _, _, _, _, _, _, high, low, ..]) => [*high, *low],
        (Kind::Tun, [first, ..]) if first >> 4 == 6 => [0x86, 0xdd],
        (Kind::Tun, _) => [0x08, 0x00],
        (Kind::Tap, _) => [0, 0],
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Messages in one system call.
pub const MESSAGES: usize = 32;
const PACKET_INFO: usize = 4;
/// One byte more than the longest message, so that what is longer shows.
const OVERFLOW: usize = MAX_LEN + PACKET_INFO + 1 - POOLED_LEN;
/// Room for a control message with credentials, and for no descriptors after it: what a program sends of those is
/// closed by the kernel.
// SAFETY: it only computes a length.
const CONTROL: usize = unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) } as usize;
pub const SEND_BUFFER: usize = 4 << 20;
