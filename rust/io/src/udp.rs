//! UDP in batches: recvmmsg with GRO, sendmmsg with GSO, and every loss counted.
//!
//! One call takes or gives many datagrams; with GRO and GSO (`udp(7)`) one message of such a call
//! holds a whole run of datagrams of one length, of which only the last may be shorter.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ginnel_core::header::Header;
use ginnel_core::plane::{Datagram, Path};
use ginnel_core::socks;
use rustix::io::Errno;
use rustix::net::{SocketType, sockopt};

use crate::socket::{SocketCounters, address, adopt, canonical, last_error, set_option};

/// A bound, possibly connected, UDP socket.
pub struct UdpSocket {
    descriptor: OwnedFd,
    is_ipv6: bool,
    connected: Option<SocketAddr>,
    local: SocketAddr,
    gso: AtomicBool,
    /// For a socket of every address of ours.
    asked: Option<Box<Mutex<Asked>>>,
    /// What a relay wants before each datagram; empty without one.
    header: Vec<u8>,
}

impl UdpSocket {
    /// Takes a UDP socket over. On an error the descriptor stays the caller's. A `header` that isn't empty
    /// stands before each datagram there and, as the other end writes it, back.
    pub fn adopt(descriptor: RawFd, header: Vec<u8>) -> io::Result<UdpSocket> {
        let (descriptor, (local, connected, gso)) = adopt(descriptor, SocketType::DGRAM, |socket| {
            let local = address(rustix::net::getsockname(socket)?).ok_or(Errno::AFNOSUPPORT)?;
            let connected = rustix::net::getpeername(socket).ok().flatten().and_then(address).map(canonical);
            let gso = prepare(socket)?;
            if local.ip().is_unspecified() && connected.is_none() {
                match local.is_ipv6() {
                    true => set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?,
                    false => set_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?,
                }
            }
            Ok((local, connected, gso))
        })?;
        let is_ipv6 = local.is_ipv6();
        let asked = (local.ip().is_unspecified() && connected.is_none()).then(Box::default);
        let (local, gso) = (canonical(local), AtomicBool::new(gso));
        Ok(UdpSocket { descriptor, is_ipv6, connected, local, gso, asked, header })
    }

    /// Where the socket leads if it is connected, otherwise where it is bound.
    pub fn address(&self) -> SocketAddr {
        self.connected.unwrap_or(self.local)
    }

    /// What a datagram that came is about, without a relay's header; `None` if that is malformed.
    pub fn content<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        if self.header.is_empty() { Some(datagram) } else { socks::payload(datagram) }
    }

    /// A control packet came from there, to this address of ours.
    pub fn note_asked(&self, remote: SocketAddr, local: Option<IpAddr>) {
        if let (Some(asked), Some(local)) = (&self.asked, local) {
            lock(asked).insert(remote, local);
        }
    }

    /// Which of our addresses that one wrote to, a peer with data or anybody with control packets.
    pub fn asked_by(&self, remote: &SocketAddr, is_data: bool) -> Option<IpAddr> {
        self.asked.as_ref().and_then(|asked| lock(asked).get(remote, is_data))
    }

    /// The same of a peer's, until it is forgotten. Returns how many are kept.
    pub fn keep_asked(&self, remote: SocketAddr, local: IpAddr) -> usize {
        let Some(mut asked) = self.asked.as_deref().map(lock) else { return 0 };
        asked.peers.insert(remote, local);
        asked.peers.len()
    }

    /// Of whom it is kept.
    pub fn kept(&self) -> Vec<SocketAddr> {
        self.asked.as_ref().map(|asked| lock(asked).peers.keys().copied().collect()).unwrap_or_default()
    }

    pub fn forget_asked(&self, remote: &SocketAddr) {
        if let Some(asked) = &self.asked {
            lock(asked).forget(remote);
        }
    }

    /// What the kernel has dropped for want of room since the socket was made. SO_RXQ_OVFL would
    /// tell only with the next message, and never of the last ones.
    pub fn kernel_dropped(&self) -> u64 {
        let mut info = [0u32; MEMINFO_VARS];
        let mut len = size_of_val(&info) as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to `info`, which has as many.
        let result = unsafe {
            let pointer = info.as_mut_ptr().cast();
            libc::getsockopt(
                self.descriptor.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                pointer,
                &mut len,
            )
        };
        if result == -1 { 0 } else { info[MEMINFO_DROPS].into() }
    }
}

/// Which of our addresses each remote one last sent a control packet to: answers must come from there. Between one
/// and two generations of them are known, as anybody may write to us from anywhere. Those of peers are kept besides, as
/// what is authentic says, and nobody else drives them out.
#[derive(Default)]
struct Asked {
    young: HashMap<SocketAddr, IpAddr>,
    old: HashMap<SocketAddr, IpAddr>,
    peers: HashMap<SocketAddr, IpAddr>,
}

impl Asked {
    fn insert(&mut self, remote: SocketAddr, local: IpAddr) {
        if self.young.get(&remote) == Some(&local) {
            return;
        }
        if self.young.len() >= GENERATION && !self.young.contains_key(&remote) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(remote, local);
    }

    /// Where to answer from: data as what is authentic says, and control packets as whoever writes from there says,
    /// who may be another client after the first.
    fn get(&self, remote: &SocketAddr, is_data: bool) -> Option<IpAddr> {
        let (peers, written) = (&self.peers, || self.young.get(remote).or_else(|| self.old.get(remote)));
        let found = match is_data {
            true => peers.get(remote).or_else(written),
            false => written().or_else(|| peers.get(remote)),
        };
        found.copied()
    }

    fn forget(&mut self, remote: &SocketAddr) {
        self.peers.remove(remote);
        self.young.remove(remote);
        self.old.remove(remote);
    }
}

fn lock(asked: &Mutex<Asked>) -> MutexGuard<'_, Asked> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// One thread's buffers for receiving.
pub struct Receiver {
    buffers: Box<[u8]>,
    names: [Name; RECEIVED],
    controls: [Control; RECEIVED],
    lengths: [(usize, usize, usize); RECEIVED],
    /// How many messages are asked for.
    asked_for: usize,
    /// Whether the socket that was read last has several addresses of ours.
    several: bool,
}

/// A message that was received: datagrams of `segment` bytes each, the last perhaps shorter.
pub struct Message<'a> {
    pub bytes: &'a [u8],
    pub segment: usize,
    pub source: SocketAddr,
    /// Which of our addresses it was sent to, where the socket has several.
    pub local: Option<IpAddr>,
}

impl Message<'_> {
    /// The datagrams. An empty one is one too.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let empty = self.bytes.is_empty().then_some(self.bytes);
        empty.into_iter().chain(self.bytes.chunks(self.segment.max(1)))
    }
}

impl Receiver {
    pub fn new() -> Receiver {
        Receiver {
            buffers: vec![0; RECEIVED * BUFFER_LEN].into_boxed_slice(),
            names: [Name::default(); RECEIVED],
            controls: [Control::default(); RECEIVED],
            lengths: [(0, 0, 0); RECEIVED],
            asked_for: 1,
            several: false,
        }
    }

    /// Receives what waits, without blocking: about [`TURN_BYTES`], so that whoever comes next has not long to
    /// wait. Returns how many [`Receiver::message`]s there are.
    pub fn receive(&mut self, socket: &UdpSocket) -> Result<usize, Errno> {
        // Most calls ask for few of so many: the others are not filled.
        let mut vectors = [const { MaybeUninit::<libc::iovec>::uninit() }; RECEIVED];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; RECEIVED];
        let slots = self.buffers.chunks_mut(BUFFER_LEN).zip(&mut self.names).zip(&mut self.controls);
        let slots = slots.zip(headers.iter_mut().zip(&mut vectors)).take(self.asked_for);
        for (((buffer, name), control), (header, vector)) in slots {
            let vector =
                vector.write(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: BUFFER_LEN });
            let header = header.write(EMPTY_HEADER);
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = name.bytes.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = name.bytes.len() as _;
            header.msg_hdr.msg_control = control.bytes.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = control.bytes.len() as _;
        }
        // SAFETY: the first `asked_for` headers are written, and each points to a buffer, a name and a control block
        // of the length it states, which live in `self` and in `vectors` until the call has returned.
        let received = unsafe {
            libc::recvmmsg(
                socket.descriptor.as_raw_fd(),
                headers.as_mut_ptr().cast(),
                self.asked_for as _,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| last_error())?;
        self.several = socket.asked.is_some();
        for (lengths, header) in self.lengths.iter_mut().zip(&headers[..received]) {
            // SAFETY: no more are received than were asked for, and those are written.
            let header = unsafe { header.assume_init_ref() };
            let hdr = &header.msg_hdr;
            *lengths = (header.msg_len as usize, hdr.msg_namelen as usize, hdr.msg_controllen as _);
        }
        // What comes next is most likely like this; but a stream may begin after a pause, with long messages, whose
        // memory would stay.
        let bytes: usize = self.lengths[..received].iter().map(|(len, ..)| len).sum();
        let most = (2 * received).clamp(AFTER_A_PAUSE, RECEIVED);
        self.asked_for = (TURN_BYTES * received / bytes.max(1)).clamp(1, most);
        Ok(received)
    }

    /// One of the messages received last; `None` if its source is no IP address.
    pub fn message(&self, index: usize) -> Option<Message<'_>> {
        let (len, name_len, control_len) = self.lengths[index];
        let source = canonical(self.names[index].decode(name_len)?);
        let bytes = &self.buffers[index * BUFFER_LEN..][..len.min(BUFFER_LEN)];
        let local = if self.several { self.controls[index].local(control_len) } else { None };
        let mut message = Message { bytes, segment: len, source, local };
        if let Some(segment) = self.controls[index].segment(control_len) {
            message.segment = segment as usize;
        }
        Some(message)
    }
}

impl Default for Receiver {
    fn default() -> Receiver {
        Receiver::new()
    }
}

/// One thread's scratch space for sending.
#[derive(Default)]
pub struct Sender {
    /// Ways on which something was refused that was to leave from an address of ours.
    pub refused: Vec<Path>,
    runs: Vec<Run>,
    vectors: Vec<libc::iovec>,
    names: Vec<(Name, usize)>,
    controls: Vec<Control>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: what its pointers lead to is only looked at during the call of [`Sender::send`] that wrote them.
unsafe impl Send for Sender {}

/// Datagrams that go out as one message.
#[derive(Clone, Copy)]
struct Run {
    count: usize,
    segment: usize,
}

impl Sender {
    pub fn new() -> Sender {
        Sender::default()
    }

    /// Sends datagrams, whose paths all name this socket, without blocking. Returns how many were
    /// dealt with, that is sent or counted as lost; the rest waits for room. An error is for good, and
    /// nothing was dealt with.
    pub fn send(
        &mut self,
        socket: &UdpSocket,
        datagrams: &mut [Datagram],
        counters: &mut SocketCounters,
    ) -> Result<usize, Errno> {
        let mut done = 0;
        // Up to here datagrams go singly, because their run was refused.
        let mut singly = 0;
        // An error may be an earlier datagram's (ICMP): the first at each place is not held
        // against the datagram that met it.
        let mut excused = usize::MAX;
        while done < datagrams.len() {
            let gso = done >= singly && socket.gso.load(Ordering::Relaxed);
            let end = if done < singly { singly } else { datagrams.len() };
            self.plan(&datagrams[done..end], socket.header.len(), gso);
            counters.tx_calls += 1;
            let errno = match self.call(socket, &mut datagrams[done..end]) {
                Ok(messages) => {
                    let segments: usize = self.runs[..messages].iter().map(|run| run.count).sum();
                    counters.tx_messages += messages as u64;
                    counters.tx_segments += segments as u64;
                    done += segments;
                    continue;
                }
                Err(errno) => errno,
            };
            let run = self.runs[0];
            match errno {
                Errno::INTR => {}
                Errno::AGAIN => return Ok(done),
                Errno::IO | Errno::OPNOTSUPP if run.count > 1 => socket.gso.store(false, Ordering::Relaxed),
                Errno::INVAL | Errno::MSGSIZE if run.count > 1 => singly = done + run.count,
                _ if is_fatal(errno) => return if done == 0 { Err(errno) } else { Ok(done) },
                _ if excused != done => excused = done,
                _ => {
                    match errno {
                        Errno::MSGSIZE => counters.tx_too_long += run.count as u64,
                        Errno::NOBUFS => counters.tx_socket_full += run.count as u64,
                        _ => counters.tx_errors += run.count as u64,
                    }
                    // The address that was asked may be ours no longer.
                    if socket.asked.is_some() {
                        socket.forget_asked(&datagrams[done].path.address);
                        self.refused.push(datagrams[done].path);
                    }
                    done += run.count;
                }
            }
        }
        Ok(done)
    }

    /// Cuts datagrams into runs.
    fn plan(&mut self, datagrams: &[Datagram], header_len: usize, gso: bool) {
        self.runs.clear();
        let mut rest = datagrams;
        while let (Some(first), true) = (rest.first(), self.runs.len() < MESSAGES) {
            let segment = header_len + first.packet.len();
            let mut count = 1;
            let mut bytes = segment;
            while let Some(next) = rest.get(count).filter(|_| gso && count < SEGMENTS) {
                let len = header_len + next.packet.len();
                if next.path != first.path || len > segment || bytes + len > RUN_BYTES || len == 0 {
                    break;
                }
                count += 1;
                bytes += len;
                if len < segment {
                    break;
                }
            }
            self.runs.push(Run { count, segment });
            rest = &rest[count..];
        }
    }

    /// One system call for the planned runs. Returns how many of them it took: at least one.
    fn call(&mut self, socket: &UdpSocket, datagrams: &mut [Datagram]) -> Result<usize, Errno> {
        let planned = self.runs.len();
        self.vectors.clear();
        self.names.clear();
        self.controls.clear();
        self.headers.clear();
        let covered = self.runs.iter().map(|run| run.count).sum();
        let header = &socket.header;
        for datagram in &mut datagrams[..covered] {
            if !header.is_empty() {
                // The kernel only reads what is sent.
                let iov_base = header.as_ptr().cast_mut().cast();
                self.vectors.push(libc::iovec { iov_base, iov_len: header.len() });
            }
            let packet = &mut datagram.packet;
            let iov_base = packet.as_mut_ptr().cast();
            self.vectors.push(libc::iovec { iov_base, iov_len: packet.len() });
        }
        let per_datagram = if header.is_empty() { 1 } else { 2 };
        let mut first = 0;
        for run in &self.runs {
            let remote = datagrams[first].path.address;
            let mut control = Control::default();
            if run.count > 1 {
                control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &(run.segment as u16).to_ne_bytes());
            }
            if let Some(local) = socket.asked_by(&remote, Header::is_data(&datagrams[first].packet)) {
                control.push_source(local, socket.is_ipv6);
            }
            self.names.push(Name::encode(remote, socket.is_ipv6));
            self.controls.push(control);
            first += run.count;
        }
        self.headers.resize(planned, EMPTY_HEADER);
        let mut vectors = self.vectors.as_mut_slice();
        let blocks = self.names.iter_mut().zip(&mut self.controls);
        let mut first = 0;
        for ((header, run), ((name, name_len), control)) in
            self.headers.iter_mut().zip(&self.runs).zip(blocks)
        {
            let (own, rest) = vectors.split_at_mut(run.count * per_datagram);
            vectors = rest;
            let header = &mut header.msg_hdr;
            header.msg_iov = own.as_mut_ptr();
            header.msg_iovlen = own.len() as _;
            if socket.connected != Some(datagrams[first].path.address) {
                header.msg_name = name.bytes.as_mut_ptr().cast();
                header.msg_namelen = *name_len as _;
            }
            if control.len > 0 {
                header.msg_control = control.bytes.as_mut_ptr().cast();
                header.msg_controllen = control.len as _;
            }
            first += run.count;
        }
        // SAFETY: every header points into the datagrams' packets, the socket's header, `self.names` and
        // `self.controls`, none of which moves or is freed before the call has returned.
        let sent = unsafe {
            libc::sendmmsg(
                socket.descriptor.as_raw_fd(),
                self.headers.as_mut_ptr(),
                planned as _,
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(sent).map_err(|_| last_error())
    }
}

/// Whether a socket that gives this error will never work again. Everything else passes: routes,
/// interfaces and peers come back.
pub fn is_fatal(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::BADF | Errno::NOTSOCK | Errno::NOTCONN | Errno::PIPE | Errno::SHUTDOWN | Errno::FAULT
    )
}

/// Sets the options; returns whether the system knows GSO. Without it a run would go out as one
/// long datagram, so it must be known beforehand.
fn prepare(socket: BorrowedFd<'_>) -> io::Result<bool> {
    rustix::io::ioctl_fionbio(socket, true)?;
    sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER)?;
    sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER)?;
    // Without GRO each datagram comes as a message of its own.
    let _ = set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    Ok(set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok())
}

/// A `sockaddr_in` or `sockaddr_in6`, by its bytes.
#[derive(Clone, Copy, Default)]
struct Name {
    bytes: [u8; Name::MAX_LEN],
}

impl Name {
    const MAX_LEN: usize = 28;
    const IPV4_LEN: usize = 16;

    /// The address as a socket of this family takes it, and its length.
    fn encode(address: SocketAddr, is_ipv6: bool) -> (Name, usize) {
        let mut name = Name::default();
        let bytes = &mut name.bytes;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let (ip, scope) = match address {
            SocketAddr::V4(v4) if !is_ipv6 => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                return (name, Name::IPV4_LEN);
            }
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        bytes[8..24].copy_from_slice(&ip.octets());
        bytes[24..28].copy_from_slice(&scope.to_ne_bytes());
        (name, Name::MAX_LEN)
    }

    fn decode(&self, len: usize) -> Option<SocketAddr> {
        let bytes = &self.bytes;
        let port = u16::from_be_bytes([bytes[2], bytes[3]]);
        match i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) {
            libc::AF_INET if len >= Name::IPV4_LEN => {
                let ip: [u8; 4] = bytes[4..8].try_into().ok()?;
                Some((Ipv4Addr::from(ip), port).into())
            }
            libc::AF_INET6 if len >= Name::MAX_LEN => {
                let ip: [u8; 16] = bytes[8..24].try_into().ok()?;
                let scope = u32::from_ne_bytes(bytes[24..28].try_into().ok()?);
                Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into())
            }
            _ => None,
        }
    }
}

/// Ancillary data: `cmsghdr`s, by their bytes.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control {
    bytes: [u8; Control::MAX_LEN],
    /// How much of it has been written by us.
    len: usize,
}

impl Control {
    const MAX_LEN: usize = 128;
    const WORD: usize = size_of::<usize>();
    const HEADER: usize = Control::WORD + 2 * size_of::<i32>();

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let (header, body) = self.bytes[self.len..].split_at_mut(Control::HEADER);
        let (size, sort) = header.split_at_mut(Control::WORD);
        size.copy_from_slice(&(Control::HEADER + data.len()).to_ne_bytes());
        sort[..4].copy_from_slice(&level.to_ne_bytes());
        sort[4..].copy_from_slice(&kind.to_ne_bytes());
        body[..data.len()].copy_from_slice(data);
        self.len += (Control::HEADER + data.len()).next_multiple_of(Control::WORD);
    }

    /// The address to send from: `in_pktinfo` or `in6_pktinfo`, with no interface named.
    fn push_source(&mut self, local: IpAddr, is_ipv6: bool) {
        let mut info = [0; 20];
        match local {
            IpAddr::V4(ip) if !is_ipv6 => {
                info[4..8].copy_from_slice(&ip.octets());
                self.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info[..12]);
            }
            IpAddr::V4(ip) => {
                info[..16].copy_from_slice(&ip.to_ipv6_mapped().octets());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            IpAddr::V6(ip) => {
                info[..16].copy_from_slice(&ip.octets());
                self.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
    }

    /// The length of the datagrams that GRO put together.
    fn segment(&self, len: usize) -> Option<u32> {
        let data = self.find(len, libc::SOL_UDP, libc::UDP_GRO)?;
        Some(u32::from_ne_bytes(*data.first_chunk()?))
    }

    /// Our address that a message was sent to.
    fn local(&self, len: usize) -> Option<IpAddr> {
        if let Some(info) = self.find(len, libc::IPPROTO_IP, libc::IP_PKTINFO) {
            let ip: [u8; 4] = *info.get(4..)?.first_chunk()?;
            return Some(ip.into());
        }
        let info = self.find(len, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)?;
        let ip: [u8; 16] = *info.first_chunk()?;
        Some(IpAddr::from(ip).to_canonical())
    }

    /// The data of an element among the first `len` bytes.
    fn find(&self, len: usize, level: i32, kind: i32) -> Option<&[u8]> {
        let mut rest = &self.bytes[..len.min(Control::MAX_LEN)];
        loop {
            let (size, header) = rest.split_first_chunk()?;
            let (own_level, header) = header.split_first_chunk()?;
            let (own_kind, data) = header.split_first_chunk()?;
            let size = usize::from_ne_bytes(*size).max(Control::HEADER);
            if (i32::from_ne_bytes(*own_level), i32::from_ne_bytes(*own_kind)) == (level, kind) {
                return data.get(..size - Control::HEADER);
            }
            rest = rest.get(size.next_multiple_of(Control::WORD)..)?;
        }
    }
}

impl Default for Control {
    fn default() -> Control {
        Control { bytes: [0; Control::MAX_LEN], len: 0 }
    }
}

const EMPTY_HEADER: libc::mmsghdr = {
    // SAFETY: a header of nothing but null pointers and zero lengths is a valid, empty one.
    unsafe { std::mem::zeroed() }
};

/// From `linux/sock_diag.h`.
const MEMINFO_VARS: usize = 9;
const MEMINFO_DROPS: usize = 8;

/// Messages a call at most, those of a call that comes after a pause, and the room for each: a run that GRO put
/// together fills 64 KiB.
const RECEIVED: usize = 12;
const AFTER_A_PAUSE: usize = 8;
/// What is received in a turn, more or less: two such runs.
const TURN_BYTES: usize = 128 << 10;
const BUFFER_LEN: usize = 65_536;

/// The kernel's limit for a run (UDP_MAX_SEGMENTS), what fits an IP packet with its headers, and
/// the messages of one call.
const SEGMENTS: usize = 64;
const RUN_BYTES: usize = 65_000;
const MESSAGES: usize = 64;

/// Bytes asked for each socket's buffers; the kernel clamps it to what it allows.
const SOCKET_BUFFER: usize = 4 << 20;

/// Remote addresses that are known to have written to one of ours, at most twice as many.
const GENERATION: usize = 16_384;
