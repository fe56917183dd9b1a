//! A descriptor that gives and takes one whole packet a call, such as /dev/net/tun's.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use ginnel_core::queue::Wake;

use crate::wake::Waker;

/// A descriptor of packets, and whoever waits for them.
pub struct PacketFile {
    descriptor: OwnedFd,
    closing: Waker,
}

impl PacketFile {
    /// Takes a descriptor over, and makes it non-blocking.
    pub fn adopt(descriptor: RawFd) -> io::Result<PacketFile> {
        // SAFETY: asks about a number, whatever it stands for.
        if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is open, and the caller's contract gives it away.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        Ok(PacketFile { descriptor, closing: Waker::new()? })
    }

    pub fn number(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }

    /// The next packet, none when none waits; empty at the end of a socket, whether or not its other
    /// side has read all that was written. Longer than the buffer, it is cut.
    pub fn read<'a>(&self, buffer: &'a mut [MaybeUninit<u8>]) -> Result<Option<&'a [u8]>, Errno> {
        match retry(|| rustix::io::read(&self.descriptor, &mut *buffer).map(|(packet, _)| packet.len())) {
            // SAFETY: the kernel has written this much of the buffer, which stays borrowed.
            Ok(len) => Ok(Some(unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast(), len) })),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    pub fn write(&self, packet: &[u8]) -> Result<usize, Errno> {
        retry(|| rustix::io::write(&self.descriptor, packet))
    }

    /// Sleeps until a packet waits, or somebody closes, or the time is up. A signal ends it with
    /// `Interrupted`.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let asked = [PollFd::new(&self.descriptor, PollFlags::IN), PollFd::new(&self.closing, PollFlags::IN)];
        poll(&mut { asked }, timeout.as_ref())?;
        Ok(())
    }

    /// Wakes everyone who waits, from now on.
    pub fn close(&self) {
        self.closing.wake();
    }
}

impl AsFd for PacketFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            // Reset: a socket's other side has closed with packets unread, which is said once, and before those
            // that wait here.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            done => return done,
        }
    }
}

/// Room for the longest packet with whatever header a device puts in front of it.
pub const BUFFER: usize = 65_536 + 64;
