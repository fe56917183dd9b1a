//! A descriptor that others poll in place of something that is no file.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ginnel_core::queue::Readiness;
use rustix::io::DupFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};

/// One half of a socket pair, whose state says exactly what we want it to: readable by a message of
/// ours that waits in it, not writable by one of its own that we have not taken, hung up by our half
/// being shut down.
///
/// Whoever polls sees all three, by select, poll and epoll. A hang-up cannot be taken back from a
/// socket, so when that ends the number stands for another socket: an epoll set no longer knows it.
pub struct Pollable {
    inner: Mutex<Inner>,
}

struct Inner {
    /// What is polled. Its number never changes.
    polled: OwnedFd,
    ours: OwnedFd,
    readable: bool,
    writable: bool,
    hung_up: bool,
}

impl Pollable {
    /// It is writable at first and nothing else.
    pub fn new() -> io::Result<Pollable> {
        let (polled, ours) = pair()?;
        let inner = Inner { polled, ours, readable: false, writable: true, hung_up: false };
        Ok(Pollable { inner: Mutex::new(inner) })
    }

    pub fn number(&self) -> RawFd {
        self.lock().polled.as_raw_fd()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Readiness for Pollable {
    fn readable(&self, now: bool) {
        let mut inner = self.lock();
        if std::mem::replace(&mut inner.readable, now) != now && !inner.hung_up {
            inner.show_readable();
        }
    }

    fn writable(&self, now: bool) {
        let mut inner = self.lock();
        if std::mem::replace(&mut inner.writable, now) != now && !inner.hung_up {
            inner.show_writable();
        }
    }

    fn hung_up(&self, now: bool) {
        let mut inner = self.lock();
        if inner.hung_up == now {
            return;
        }
        if now {
            inner.hung_up = true;
            let _ = rustix::net::shutdown(&inner.ours, Shutdown::Both);
        } else {
            inner.renew();
        }
    }
}

impl Drop for Pollable {
    fn drop(&mut self) {
        // Whoever polls at this moment keeps the socket, and would wait for ever.
        let _ = rustix::net::shutdown(&self.lock().ours, Shutdown::Both);
    }
}

// On a pair of our own none of these calls can fail, but for a program that meddles with the number.
impl Inner {
    fn show_readable(&self) {
        if self.readable {
            let _ = rustix::net::send(&self.ours, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        } else {
            let _ = rustix::net::recv(&self.polled, &mut [0u8; 1], RecvFlags::DONTWAIT);
        }
    }

    fn show_writable(&self) {
        if self.writable {
            let _ = rustix::net::recv(&self.ours, &mut [0u8; 1], RecvFlags::DONTWAIT);
        } else {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = rustix::net::send(&self.polled, &[0; FILLER], flags);
        }
    }

    /// Without descriptors to spare it stays hung up.
    fn renew(&mut self) {
        let Ok((polled, ours)) = pair() else { return };
        if rustix::io::dup3(&polled, &mut self.polled, DupFlags::CLOEXEC).is_err() {
            return;
        }
        self.ours = ours;
        self.hung_up = false;
        if self.readable {
            self.show_readable();
        }
        if !self.writable {
            self.show_writable();
        }
    }
}

/// The first one's send buffer is full with a single message of [`FILLER`] bytes.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (polled, ours) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&polled, 0)?;
    Ok((polled, ours))
}

/// A unix socket is writable while four times what it has sent and nobody has received fits its
/// buffer (net/unix/af_unix.c, unix_writable). The least buffer there is has 4,608 bytes.
const FILLER: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn state(pollable: &Pollable) -> PollFlags {
        let inner = pollable.lock();
        let mut asked = [PollFd::new(&inner.polled, PollFlags::IN | PollFlags::OUT)];
        poll(&mut asked, Some(&Timespec::default())).unwrap();
        asked[0].revents()
    }

    #[test]
    fn it_shows_what_it_is_told_and_nothing_else() {
        let pollable = Pollable::new().unwrap();
        let number = pollable.number();
        for turn in 0..100 {
            for (readable, writable) in [(false, true), (true, true), (true, false), (false, false)] {
                pollable.readable(readable);
                pollable.writable(writable);
                let mut expected = PollFlags::empty();
                expected.set(PollFlags::IN, readable);
                expected.set(PollFlags::OUT, writable);
                assert_eq!(state(&pollable), expected);
            }
            pollable.hung_up(true);
            assert_eq!(state(&pollable), PollFlags::IN | PollFlags::HUP);
            pollable.readable(turn % 2 == 0);
            pollable.hung_up(false);
            assert_eq!(state(&pollable).contains(PollFlags::IN), turn % 2 == 0);
            assert!(!state(&pollable).contains(PollFlags::OUT | PollFlags::HUP));
            assert_eq!(pollable.number(), number);
        }
    }
}
