//! The kernel's TUN or TAP device: packets read and written at its application end.
//!
//! With a vnet header one call moves up to 64 KiB: what the kernel's TCP has not cut yet is cut here,
//! and what belongs together is handed over in one piece.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use ginnel_core::device::Kind;
use ginnel_core::offload::VnetHeader;
use ginnel_core::offload::coalesce::{Coalescer, Group};
use ginnel_core::offload::segment::segment;
use ginnel_core::packet::{LocalPool, MAX_LEN, Packet};
use ginnel_core::queue::Observer;
use rustix::io::Errno;

/// One queue of a kernel's device, attached without packet information (IFF_NO_PI).
pub struct Tun {
    descriptor: Arc<OwnedFd>,
    kind: Kind,
    vnet: bool,
    udp: bool,
    observers: Arc<Observers>,
}

/// What one thread reads a device with.
pub struct TunReader {
    descriptor: Arc<OwnedFd>,
    kind: Kind,
    vnet: bool,
    buffer: Box<[u8]>,
    counters: TunCounters,
    observers: Arc<Observers>,
}

/// What one thread writes to a device with. Several may, each in its own order.
pub struct TunWriter {
    descriptor: Arc<OwnedFd>,
    vnet: bool,
    coalescer: Coalescer,
    counters: TunCounters,
    observers: Arc<Observers>,
}

/// Who sees what goes through a device.
#[derive(Default)]
pub struct Observers {
    read: Mutex<Option<Arc<dyn Observer>>>,
    written: Mutex<Option<Arc<dyn Observer>>>,
}

impl Observers {
    /// From now on `read` sees every packet that the kernel sends, `written` every one that it is given, and
    /// hears how many of them it refused.
    pub fn set(&self, read: Option<Arc<dyn Observer>>, written: Option<Arc<dyn Observer>>) {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = read;
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = written;
    }
}

fn tell(observer: &Mutex<Option<Arc<dyn Observer>>>, what: impl FnOnce(&dyn Observer)) {
    if let Some(observer) = &*observer.lock().unwrap_or_else(PoisonError::into_inner) {
        what(&**observer);
    }
}

/// What went through the device, and what it did not take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunCounters {
    pub reads: u64,
    pub read_packets: u64,
    /// Read, but not as the vnet header describes it.
    pub read_malformed: u64,
    pub writes: u64,
    pub written_packets: u64,
    /// Refused by the kernel: the interface is down, or they are no packets.
    pub write_errors: u64,
}

impl TunCounters {
    /// Every counter by its name.
    pub fn entries(&self) -> [(&'static str, u64); 6] {
        [
            ("device_reads", self.reads),
            ("device_read_packets", self.read_packets),
            ("device_read_malformed", self.read_malformed),
            ("device_writes", self.writes),
            ("device_written_packets", self.written_packets),
            ("device_write_errors", self.write_errors),
        ]
    }

    pub fn add(&mut self, other: &TunCounters) {
        self.reads += other.reads;
        self.read_packets += other.read_packets;
        self.read_malformed += other.read_malformed;
        self.writes += other.writes;
        self.written_packets += other.written_packets;
        self.write_errors += other.write_errors;
    }
}

impl Tun {
    /// Takes over a descriptor of /dev/net/tun that is attached. `vnet`: with IFF_VNET_HDR and a
    /// header of 10 bytes; `udp`: TUNSETOFFLOAD has taken USO, too. The queues of one device share `observers`.
    pub fn adopt(
        descriptor: RawFd,
        kind: Kind,
        vnet: bool,
        udp: bool,
        observers: &Arc<Observers>,
    ) -> io::Result<Tun> {
        // SAFETY: asks about a number, whatever it stands for.
        if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is open, and the caller's contract gives it away.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        Ok(Tun { descriptor: Arc::new(descriptor), kind, vnet, udp, observers: observers.clone() })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn observers(&self) -> &Arc<Observers> {
        &self.observers
    }

    pub fn reader(&self) -> TunReader {
        TunReader {
            descriptor: self.descriptor.clone(),
            kind: self.kind,
            vnet: self.vnet,
            buffer: vec![0; VnetHeader::LEN + MAX_LEN].into_boxed_slice(),
            counters: TunCounters::default(),
            observers: self.observers.clone(),
        }
    }

    pub fn writer(&self) -> TunWriter {
        TunWriter {
            descriptor: self.descriptor.clone(),
            vnet: self.vnet,
            coalescer: Coalescer::new(self.kind, self.udp),
            counters: TunCounters::default(),
            observers: self.observers.clone(),
        }
    }
}

impl TunReader {
    pub fn take_counters(&mut self) -> TunCounters {
        mem::take(&mut self.counters)
    }

    /// Reads until nothing waits or at least `limit` packets are there. Returns whether more may wait.
    /// An error is for good: the device is gone.
    pub fn receive(
        &mut self,
        packets: &mut Vec<Packet>,
        limit: usize,
        pool: &mut LocalPool,
    ) -> Result<bool, Errno> {
        while packets.len() < limit {
            let count = match rustix::io::read(&self.descriptor, &mut self.buffer[..]) {
                Ok(count) => count,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            self.counters.reads += 1;
            let before = packets.len();
            let bytes = &self.buffer[..count];
            if !self.vnet {
                packets.push(pool.packet_from(bytes));
            } else if let Some((header, packet)) = bytes.split_first_chunk()
                && let Ok(header) = VnetHeader::parse(header)
                && segment(self.kind, &header, packet, pool, packets).is_ok()
            {
                // Cut.
            } else {
                self.counters.read_malformed += 1;
            }
            self.counters.read_packets += (packets.len() - before) as u64;
            tell(&self.observers.read, |observer| observer.pushed(&packets[before..], 0));
        }
        Ok(true)
    }
}

impl TunWriter {
    pub fn take_counters(&mut self) -> TunCounters {
        mem::take(&mut self.counters)
    }

    /// Writes all of `packets`; what the kernel refuses is counted.
    pub fn send(&mut self, packets: &mut [Packet]) {
        // Before the first of a group is changed to stand for all.
        tell(&self.observers.written, |observer| observer.pushed(packets, 0));
        let before = self.counters.write_errors;
        match self.vnet {
            true => self.send_groups(packets),
            false => self.send_singly(packets),
        }
        let refused = self.counters.write_errors - before;
        if refused > 0 {
            tell(&self.observers.written, |observer| observer.lost(refused));
        }
    }

    fn send_singly(&mut self, packets: &[Packet]) {
        for packet in packets {
            self.counters.writes += 1;
            match retry(|| rustix::io::write(&self.descriptor, packet)) {
                Ok(_) => self.counters.written_packets += 1,
                Err(_) => self.counters.write_errors += 1,
            }
        }
    }

    fn send_groups(&mut self, packets: &mut [Packet]) {
        let TunWriter { coalescer, counters, descriptor, .. } = self;
        for group in coalescer.group(packets) {
            counters.writes += 1;
            let count = group.members.len() as u64;
            match retry(|| write_group(descriptor, group, packets)) {
                Ok(()) => counters.written_packets += count,
                Err(_) => counters.write_errors += count,
            }
        }
    }
}

impl AsFd for TunReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// One call: the header, the first packet, and of the others what comes after their headers.
fn write_group(descriptor: &OwnedFd, group: &Group, packets: &[Packet]) -> Result<(), Errno> {
    let header = group.header.emit();
    // Most calls use few of so many: they are not filled before.
    let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; MOST_PIECES];
    let first = &packets[group.members[0]][..];
    let rest = group.members[1..].iter().map(|&member| &packets[member][group.header_len..]);
    let all = [&header[..], first].into_iter().chain(rest);
    let mut count = 0;
    for (piece, bytes) in pieces.iter_mut().zip(all) {
        piece.write(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
        count += 1;
    }
    // SAFETY: the first `count` pieces are written, and point to bytes that outlive the call, which
    // only reads them.
    let written = unsafe { libc::writev(descriptor.as_raw_fd(), pieces.as_ptr().cast(), count) };
    if written < 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// As many as a system call takes (UIO_MAXIOV); a group has fewer members.
const MOST_PIECES: usize = 1024;
