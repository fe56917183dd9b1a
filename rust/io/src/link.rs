//! Joins an end of a memory device with descriptors that other programs hold.
//!
//! A program holds the other half of a SOCK_SEQPACKET pair. A thread reads what the program writes, always,
//! the link's own or that of the stack which reads it on the device's other end: what a kernel's device would have refused is counted, what finds no room is dropped and
//! counted. What is for the program the device's writer puts into the pair himself ([`outward`]).
//! Several descriptors are several queues of one device: the packets of a flow keep to one of them.

mod outward;
mod watch;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use ginnel_core::device::{Device, End, Side};
use ginnel_core::packet::{LocalPool, Packet, Pool};
use ginnel_core::queue::Wake;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::calls::Calls;
use crate::link::outward::{Left, Outward};
use crate::link::watch::Watch;
use crate::prompt::take_short_turns;
use crate::seqpacket::{Inbox, MESSAGES, PacketSocket, SEND_BUFFER};
use crate::stack::{Guest, HIGHEST_TOKEN, NetStack, errno};
use crate::wake::Waker;

/// One end of a device and the descriptors joined to it.
pub struct Link {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Why a descriptor was not joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotJoined {
    /// The device is deleted, or the link closed.
    Gone,
    /// Somebody else holds this end of the device.
    Busy,
    /// There are as many descriptors as a device may have.
    TooMany,
    /// The descriptor does not serve.
    Descriptor(Errno),
}

impl Link {
    /// A link to this end of a device, on a thread of its own. The end is taken while a descriptor is joined that is
    /// enabled.
    pub fn start(device: Arc<Device>, side: Side, pool: &Arc<Pool>) -> io::Result<Link> {
        let inner = Loop::new(device, side, pool)?;
        let shared = inner.shared.clone();
        Ok(Link { shared, thread: Mutex::new(Some(inner.spawn()?)) })
    }

    /// The same on the thread of a stack, which has the device's other end, for as long as that lasts: what a program
    /// writes wakes the stack itself.
    pub fn with_stack(
        device: Arc<Device>,
        side: Side,
        pool: &Arc<Pool>,
        stack: &NetStack,
    ) -> io::Result<Link> {
        let inner = Loop::new(device, side, pool)?;
        let shared = inner.shared.clone();
        stack.take_in(Box::new(inner)).map_err(|failure| io::Error::from_raw_os_error(errno(failure)))?;
        Ok(Link { shared, thread: Mutex::new(None) })
    }

    /// Joins a SOCK_SEQPACKET socket and returns its number.
    pub fn add(&self, descriptor: OwnedFd, packet_info: bool) -> Result<u64, NotJoined> {
        self.shared
            .calls
            .call(move |inner| inner.add(descriptor, packet_info))
            .unwrap_or(Err(NotJoined::Gone))
    }

    /// A queue that is not enabled takes no packets and gives none. `false`: there is none of this number.
    pub fn set_enabled(&self, number: u64, enabled: bool) -> Result<bool, NotJoined> {
        self.shared
            .calls
            .call(move |inner| inner.set_enabled(number, enabled))
            .unwrap_or(Err(NotJoined::Gone))
    }

    /// Whether messages begin with packet information. `false`: there is none of this number.
    pub fn set_packet_info(&self, number: u64, packet_info: bool) -> bool {
        let set = move |inner: &mut Loop| {
            inner.members.get(&number)?.socket.set_packet_info(packet_info);
            Some(())
        };
        self.shared.calls.call(set).flatten().is_some()
    }

    /// Closes a descriptor. Harmless for one that is gone.
    pub fn remove(&self, number: u64) {
        let _ = self.shared.calls.call(move |inner| inner.forget(number));
    }

    /// The numbers of descriptors whose other side has closed since the last call, up to this moment.
    pub fn gone(&self) -> Vec<u64> {
        let _ = self.shared.calls.call(Loop::look);
        let mut gone = lock(&self.shared.gone);
        self.shared.ready.clear();
        std::mem::take(&mut *gone)
    }

    /// Readable while [`Link::gone`] has something to say.
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.shared.ready.as_fd()
    }

    /// Closes every descriptor, gives the end back and ends the link's own thread. Idempotent.
    pub fn close(&self) {
        let _ = self.shared.calls.call(Loop::end);
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// Joins a SOCK_SEQPACKET socket to an end for as long as both last: a thread serves them, and
/// the end is free again when the other side of the socket has closed.
pub fn join(end: End, descriptor: OwnedFd, pool: &Arc<Pool>) -> Result<(), NotJoined> {
    let mut inner = Loop::new(end.device().clone(), end.side(), pool).map_err(not_started)?;
    inner.only_while_joined = true;
    inner.adopt(end);
    inner.add(descriptor, false)?;
    inner.spawn().map_err(not_started)?;
    Ok(())
}

/// A SOCK_SEQPACKET pair: for [`join`], and for a program that reads and writes packets there.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&theirs, SEND_BUFFER)?;
    Ok((ours, theirs))
}

fn not_started(error: io::Error) -> NotJoined {
    NotJoined::Descriptor(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

struct Shared {
    calls: Calls<Loop>,
    gone: Mutex<Vec<u64>>,
    ready: Waker,
}

/// What the thread owns.
struct Loop {
    device: Arc<Device>,
    side: Side,
    /// Taken while somebody is there for its packets.
    end: Option<End>,
    members: BTreeMap<u64, Member>,
    next: u64,
    outward: Arc<Outward>,
    inbox: Inbox,
    pool: LocalPool,
    packets: Vec<Packet>,
    /// Packets may wait at the device, or it has ended.
    device_waits: bool,
    wake: Arc<Waker>,
    watch: Watch,
    running: bool,
    /// The thread ends with its last member.
    only_while_joined: bool,
    shared: Arc<Shared>,
}

struct Member {
    socket: Arc<PacketSocket>,
    enabled: bool,
}

impl Loop {
    fn new(device: Arc<Device>, side: Side, pool: &Arc<Pool>) -> io::Result<Loop> {
        let wake = Arc::new(Waker::new()?);
        let shared = Arc::new(Shared {
            calls: Calls::new(wake.clone()),
            gone: Mutex::new(Vec::new()),
            ready: Waker::new()?,
        });
        let watch = Watch::new()?;
        watch.add(&*wake, WAKE)?;
        let outward = Outward::new(device.clone(), side, pool, watch.clone(), wake.clone());
        Ok(Loop {
            device,
            side,
            end: None,
            members: BTreeMap::new(),
            next: 0,
            outward: Arc::new(outward),
            inbox: Inbox::new(),
            pool: pool.local(),
            packets: Vec::with_capacity(MESSAGES),
            device_waits: false,
            wake,
            watch,
            running: true,
            only_while_joined: false,
            shared,
        })
    }

    fn spawn(mut self) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name("ginnel-link".into()).spawn(move || {
            take_short_turns();
            self.run()
        })
    }

    fn run(&mut self) {
        while self.running {
            self.round(if self.device_waits { Some(AT_ONCE) } else { None });
        }
    }

    /// Waits for something to do, and does a bounded part of it.
    fn round(&mut self, patience: Option<Timespec>) {
        let mut ready = Vec::with_capacity(READY);
        // Interrupted or not, the next round looks at everything.
        let _ = epoll::wait(&*self.watch.epoll, spare_capacity(&mut ready), patience.as_ref());
        ready.into_iter().for_each(|event| self.take(event.data.u64(), event.flags));
        self.deliver();
    }

    /// Does what an event asks for.
    fn take(&mut self, token: u64, flags: EventFlags) {
        match token {
            WAKE => {
                self.wake.clear();
                self.device_waits = true;
                self.shared.calls.take().into_iter().for_each(|call| call(self));
            }
            number => self.serve(number, flags),
        }
    }

    /// A batch of what waits at the device.
    fn deliver(&mut self) {
        if self.device_waits {
            let left = self.outward.deliver();
            self.device_waits = left == Left::More;
            if left == Left::Ended {
                self.end_all();
            }
        }
    }

    /// What descriptors have to say that the thread has not seen yet.
    fn look(&mut self) {
        let sockets = self.members.values().map(|member| &*member.socket);
        let mut asked: Vec<PollFd<'_>> = sockets.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        let _ = poll(&mut asked, Some(&AT_ONCE));
        let answers: Vec<PollFlags> = asked.iter().map(PollFd::revents).collect();
        let numbers: Vec<u64> = self.members.keys().copied().collect();
        for (number, flags) in numbers.into_iter().zip(answers) {
            self.serve(number, EventFlags::from_bits_retain(flags.bits().into()));
        }
    }

    /// Watches everything there from now on.
    fn move_to(&mut self, watch: Watch) -> io::Result<()> {
        watch.add(&*self.wake, WAKE)?;
        for (&number, member) in &self.members {
            watch.add(&*member.socket, number)?;
        }
        self.outward.move_to(watch.clone());
        self.watch = watch;
        Ok(())
    }

    fn add(&mut self, descriptor: OwnedFd, packet_info: bool) -> Result<u64, NotJoined> {
        if self.device.is_deleted() {
            return Err(NotJoined::Gone);
        }
        if self.members.len() == MAX_DESCRIPTORS {
            return Err(NotJoined::TooMany);
        }
        let kind = self.device.kind();
        let socket =
            Arc::new(PacketSocket::new(descriptor, kind, packet_info).map_err(NotJoined::Descriptor)?);
        self.take_end()?;
        let number = self.next;
        self.next += 1;
        self.watch.add(&*socket, number).map_err(|errno| {
            self.give_end_back_if_unused();
            NotJoined::Descriptor(errno)
        })?;
        self.members.insert(number, Member { socket: socket.clone(), enabled: true });
        self.outward.add(number, socket);
        self.device_waits = true;
        Ok(number)
    }

    fn set_enabled(&mut self, number: u64, enabled: bool) -> Result<bool, NotJoined> {
        if !self.members.contains_key(&number) {
            return Ok(false);
        }
        if enabled {
            self.take_end()?;
        }
        let Some(member) = self.members.get_mut(&number) else { return Ok(false) };
        let was_enabled = std::mem::replace(&mut member.enabled, enabled);
        match (was_enabled, enabled) {
            (false, true) => self.outward.add(number, member.socket.clone()),
            (true, false) => self.outward.remove(number),
            _ => {}
        }
        self.device_waits = true;
        self.give_end_back_if_unused();
        Ok(true)
    }

    fn take_end(&mut self) -> Result<(), NotJoined> {
        if self.end.is_some() {
            return Ok(());
        }
        let end = self.device.attach(self.side).ok_or(match self.device.is_deleted() {
            true => NotJoined::Gone,
            false => NotJoined::Busy,
        })?;
        self.adopt(end);
        Ok(())
    }

    fn adopt(&mut self, end: End) {
        end.incoming().set_reader(Some(self.outward.clone()));
        self.end = Some(end);
    }

    fn give_end_back_if_unused(&mut self) {
        if !self.members.values().any(|member| member.enabled) {
            self.end = None;
        }
    }

    fn forget(&mut self, number: u64) {
        let Some(member) = self.members.remove(&number) else { return };
        self.outward.remove(number);
        self.give_end_back_if_unused();
        // Closed only now, when the end is free again: who sees the descriptor end may take it.
        drop(member.socket);
        self.running &= !self.only_while_joined || !self.members.is_empty();
    }

    fn end_all(&mut self) {
        let numbers = self.forget_all();
        lock(&self.shared.gone).extend(numbers);
        self.shared.ready.wake();
    }

    fn end(&mut self) {
        self.forget_all();
        self.running = false;
    }

    fn forget_all(&mut self) -> Vec<u64> {
        let numbers: Vec<u64> = self.members.keys().copied().collect();
        numbers.iter().for_each(|&number| self.forget(number));
        numbers
    }

    fn serve(&mut self, number: u64, flags: EventFlags) {
        let Some(member) = self.members.get(&number) else { return };
        if flags.contains(EventFlags::HUP) {
            member.socket.note_hang_up();
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) && !self.collect(number) {
            self.forget(number);
            let mut gone = lock(&self.shared.gone);
            gone.push(number);
            self.shared.ready.wake();
            return;
        }
        if flags.contains(EventFlags::OUT) {
            self.outward.flush(number);
            self.device_waits = true;
        }
    }

    /// What the program has written goes to the device. `false`: the program is gone.
    fn collect(&mut self, number: u64) -> bool {
        let Some(member) = self.members.get(&number) else { return true };
        for _ in 0..TURNS {
            let received = self.inbox.receive(&member.socket, &mut self.pool, &mut self.packets);
            match &self.end {
                Some(end) if member.enabled => {
                    end.count_errors(received.malformed);
                    // What is refused is counted there.
                    let _ = end.send(&mut self.packets);
                }
                _ => self.device.count_errors(self.side, received.messages),
            }
            self.pool.recycle_all(self.packets.drain(..));
            if received.ended {
                return false;
            }
            if received.messages < MESSAGES {
                break;
            }
        }
        true
    }
}

impl Guest for Loop {
    fn move_in(&mut self, epoll: &Arc<OwnedFd>, mark: u64) -> io::Result<()> {
        self.move_to(Watch { epoll: epoll.clone(), mark })
    }

    fn turn(&mut self, token: u64, flags: EventFlags) -> bool {
        self.take(token, flags);
        self.deliver();
        if self.device_waits {
            self.wake.wake();
        }
        self.running
    }

    fn move_out(mut self: Box<Self>) {
        // Without an epoll or a thread it is dropped, and every program sees its descriptor end.
        let moved = Watch::new().map_err(io::Error::from).and_then(|watch| self.move_to(watch));
        let _ = moved.and_then(|()| self.spawn());
    }
}

impl Drop for Loop {
    /// Also after a panic: nobody is left waiting, and every program sees its descriptor end.
    fn drop(&mut self) {
        self.shared.calls.end();
        // Others keep the descriptor, and it may be a stack's epoll.
        self.watch.forget(&*self.wake);
        self.members.keys().for_each(|&number| self.outward.remove(number));
    }
}

/// A lock whose poison is ignored: no invariant spans a panic here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
const TURNS: usize = 4;
const READY: usize = 64;
/// As on the kernel's device (MAX_TAP_QUEUES, drivers/net/tun.c).
const MAX_DESCRIPTORS: usize = 256;
const WAKE: u64 = HIGHEST_TOKEN;
