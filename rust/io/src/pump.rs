//! The loop that moves packets between sockets, the data plane and a device.
//!
//! One thread receives, opens, seals and sends, in batches and by turns, so that neither direction
//! starves. The plane is locked for a batch's cryptography, never across a system call. Commands
//! come from other threads and take effect before they return.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ginnel_core::Nanos;
use ginnel_core::device::End;
use ginnel_core::packet::{LocalPool, Packet, Pool};
use ginnel_core::plane::{CommandError, Datagram, Event, Path, PeerCounters, Plane};
use ginnel_core::queue::Wake;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::udp::{Receiver, Sender, UdpCounters, UdpSocket, is_fatal};
use crate::wake::Waker;

/// A data plane on real sockets, and its thread.
pub struct Pump {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Pump {
    /// Starts a thread that serves this end of a device.
    pub fn start(end: End, pool: Arc<Pool>) -> io::Result<Pump> {
        let shared = Arc::new(Shared {
            plane: Mutex::new(Plane::new(end.device().kind())),
            sockets: Mutex::new(Sockets { running: true, ..Sockets::default() }),
            settled: Condvar::new(),
            wake: Arc::new(Waker::new()?),
            events: Waker::new()?,
            counters: Mutex::default(),
            stop: AtomicBool::new(false),
            origin: Instant::now(),
            pool,
        });
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*shared.wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        let own = shared.clone();
        let thread = thread::Builder::new().name("ginnel-data".to_owned()).spawn(move || {
            let shared = own.clone();
            // Unwound or not, the sockets and the device's end are free before those who wait hear of it.
            let panicked = catch_unwind(AssertUnwindSafe(|| Turns::new(own, end, epoll).run())).is_err();
            shared.end(panicked);
        })?;
        Ok(Pump { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Takes a UDP socket over. On an error (ESHUTDOWN once the thread has ended) the descriptor
    /// stays the caller's.
    pub fn add_udp(&self, descriptor: RawFd) -> io::Result<u32> {
        if !lock(&self.shared.sockets).running {
            return Err(Errno::SHUTDOWN.into());
        }
        let socket = UdpSocket::adopt(descriptor)?;
        let mut sockets = lock(&self.shared.sockets);
        let number = sockets.next;
        sockets.next += 1;
        sockets.table.insert(number, Arc::new(socket));
        self.shared.settle(sockets);
        Ok(number)
    }

    /// Closes a socket; none of this number is no error if there once was one.
    pub fn remove_socket(&self, number: u32) -> Result<(), UnknownSocket> {
        let mut sockets = lock(&self.shared.sockets);
        if number >= sockets.next {
            return Err(UnknownSocket);
        }
        sockets.table.remove(&number);
        self.shared.settle(sockets);
        Ok(())
    }

    /// Carries a command out. It is given the time.
    pub fn command<T>(&self, command: impl FnOnce(&mut Plane, Nanos) -> T) -> T {
        let now = self.shared.now();
        let result = self.shared.with_plane(|plane| command(plane, now));
        // A timer may be due earlier than the thread thinks.
        self.shared.wake.wake();
        result
    }

    /// Sends a control packet before it returns. What the socket does not take is counted.
    pub fn send_control(&self, data: &[u8], path: Path) -> Result<(), UnknownSocket> {
        if path.socket >= lock(&self.shared.sockets).next {
            return Err(UnknownSocket);
        }
        self.shared.with_plane(|plane| plane.contacted(path));
        self.send_now(Datagram { packet: self.shared.pool.local().packet_from(data), path });
        Ok(())
    }

    /// Seals a data message and sends it before it returns. What the socket does not take is counted.
    pub fn send_data_message(&self, peer: u32, data: &[u8]) -> Result<(), CommandError> {
        let (now, mut pool) = (self.shared.now(), self.shared.pool.local());
        let datagram = self.shared.with_plane(|plane| plane.data_message(peer, data, now, &mut pool))?;
        if let Some(datagram) = datagram {
            self.send_now(datagram);
        }
        Ok(())
    }

    /// What has happened since the last call.
    pub fn events(&self) -> Vec<Event> {
        // Cleared first: an event that comes in between wakes again.
        self.shared.events.clear();
        self.shared.with_plane(Plane::take_events)
    }

    /// Readable while events wait.
    pub fn events_descriptor(&self) -> BorrowedFd<'_> {
        self.shared.events.as_fd()
    }

    /// Every counter of the plane and its sockets, by name.
    pub fn statistics(&self) -> Vec<(&'static str, u64)> {
        let plane = self.shared.with_plane(|plane| plane.counters().entries());
        let table = lock(&self.shared.sockets).table.clone();
        let mut counters = *lock(&self.shared.counters);
        counters.udp.rx_kernel_dropped += table.values().map(|socket| socket.kernel_dropped()).sum::<u64>();
        let own = [("rx_device_dropped", counters.rx_device_dropped)];
        plane.into_iter().chain(counters.udp.entries()).chain(own).collect()
    }

    pub fn peer_statistics(&self, peer: u32) -> Result<PeerCounters, CommandError> {
        self.shared.with_plane(|plane| plane.peer_counters(peer).copied())
    }

    /// Stops the thread and closes the sockets and the device's end. Idempotent.
    pub fn close(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.wake();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }

    fn send_now(&self, datagram: Datagram) {
        let socket = lock(&self.shared.sockets).table.get(&datagram.path.socket).cloned();
        let mut counters = Counters::default();
        let mut datagrams = [datagram];
        match socket.map(|socket| Sender::new().send(&socket, &mut datagrams, &mut counters.udp)) {
            Some(Ok(0)) => counters.udp.tx_socket_full += 1,
            Some(Ok(_)) => {}
            Some(Err(_)) | None => counters.udp.tx_closed += 1,
        }
        lock(&self.shared.counters).add(&counters);
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.close();
    }
}

/// There never was a socket of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSocket;

/// What the thread and its commanders share.
struct Shared {
    plane: Mutex<Plane>,
    sockets: Mutex<Sockets>,
    settled: Condvar,
    wake: Arc<Waker>,
    events: Waker,
    counters: Mutex<Counters>,
    stop: AtomicBool,
    origin: Instant,
    pool: Arc<Pool>,
}

#[derive(Default)]
struct Sockets {
    table: BTreeMap<u32, Arc<UdpSocket>>,
    next: u32,
    /// How often the table has been changed, and up to which change the thread has followed.
    changes: u64,
    followed: u64,
    running: bool,
}

#[derive(Clone, Copy, Default)]
struct Counters {
    udp: UdpCounters,
    rx_device_dropped: u64,
}

impl Counters {
    fn add(&mut self, other: &Counters) {
        self.udp.add(&other.udp);
        self.rx_device_dropped += other.rx_device_dropped;
    }
}

impl Shared {
    fn now(&self) -> Nanos {
        self.origin.elapsed().as_nanos() as Nanos
    }

    fn with_plane<T>(&self, work: impl FnOnce(&mut Plane) -> T) -> T {
        let mut plane = lock(&self.plane);
        let result = work(&mut plane);
        let signal = plane.signal();
        drop(plane);
        if signal {
            self.events.wake();
        }
        result
    }

    /// Waits until the thread has followed a change of the table.
    fn settle(&self, mut sockets: MutexGuard<'_, Sockets>) {
        sockets.changes += 1;
        let change = sockets.changes;
        self.wake.wake();
        let waiting = |sockets: &mut Sockets| sockets.running && sockets.followed < change;
        drop(self.settled.wait_while(sockets, waiting));
    }

    /// The thread is at its end: nobody waits for it any longer.
    fn end(&self, panicked: bool) {
        let mut sockets = lock(&self.sockets);
        let table = std::mem::take(&mut sockets.table);
        sockets.running = false;
        self.settled.notify_all();
        drop(sockets);
        let paths: Vec<Path> = table
            .iter()
            .map(|(&number, socket)| Path { socket: number, address: socket.address() })
            .collect();
        drop(table);
        if panicked {
            self.with_plane(|plane| paths.into_iter().for_each(|path| plane.path_closed(path, libc::EIO)));
        }
    }
}

/// The thread's own state.
struct Turns {
    shared: Arc<Shared>,
    end: End,
    epoll: OwnedFd,
    members: BTreeMap<u32, Member>,
    followed: u64,
    pool: LocalPool,
    receiver: Receiver,
    sender: Sender,
    packets: Vec<Packet>,
    datagrams: Vec<Datagram>,
    counters: Counters,
    /// Packets may wait at the device.
    device_waits: bool,
    timer: Option<Nanos>,
}

/// A socket as the thread sees it.
struct Member {
    socket: Arc<UdpSocket>,
    /// Datagrams that wait for room in the socket's buffer.
    backlog: Vec<Datagram>,
    errors_in_a_row: u32,
}

impl Turns {
    fn new(shared: Arc<Shared>, end: End, epoll: OwnedFd) -> Turns {
        end.incoming().set_reader(Some(shared.wake.clone()));
        let pool = shared.pool.local();
        Turns {
            shared,
            end,
            epoll,
            members: BTreeMap::new(),
            followed: 0,
            pool,
            receiver: Receiver::new(),
            sender: Sender::new(),
            packets: Vec::with_capacity(BATCH),
            datagrams: Vec::with_capacity(BATCH),
            counters: Counters::default(),
            device_waits: true,
            timer: None,
        }
    }

    fn run(&mut self) {
        let mut ready = Vec::with_capacity(READY);
        while !self.shared.stop.load(Ordering::Acquire) {
            self.follow();
            self.keep_time();
            self.publish();
            self.wait(&mut ready);
            for event in ready.drain(..) {
                match event.data.u64() {
                    WAKE => {
                        self.shared.wake.clear();
                        self.device_waits = true;
                    }
                    number => self.serve(number as u32, event.flags),
                }
            }
            if self.device_waits && !self.is_blocked() {
                self.send_from_device();
            }
        }
        let members: Vec<u32> = self.members.keys().copied().collect();
        members.into_iter().for_each(|number| self.forget(number));
        self.publish();
    }

    /// Follows changes of the table of sockets.
    fn follow(&mut self) {
        let sockets = lock(&self.shared.sockets);
        if sockets.changes == self.followed {
            return;
        }
        let (table, changes) = (sockets.table.clone(), sockets.changes);
        drop(sockets);
        let removed: Vec<u32> =
            self.members.keys().filter(|number| !table.contains_key(number)).copied().collect();
        removed.into_iter().for_each(|number| self.forget(number));
        for (number, socket) in table {
            if self.members.contains_key(&number) {
                continue;
            }
            let data = epoll::EventData::new_u64(number.into());
            let added = epoll::add(&self.epoll, &*socket, data, epoll::EventFlags::IN);
            self.members.insert(number, Member { socket, backlog: Vec::new(), errors_in_a_row: 0 });
            if let Err(errno) = added {
                self.fail(number, errno);
            }
        }
        self.followed = changes;
        lock(&self.shared.sockets).followed = changes;
        self.shared.settled.notify_all();
    }

    fn keep_time(&mut self) {
        let now = self.shared.now();
        let Turns { shared, datagrams, pool, .. } = self;
        self.timer = shared.with_plane(|plane| {
            plane.handle_timer(now, datagrams, pool);
            plane.next_timer()
        });
        self.dispatch();
    }

    fn publish(&mut self) {
        lock(&self.shared.counters).add(&std::mem::take(&mut self.counters));
    }

    fn wait(&self, ready: &mut Vec<epoll::Event>) {
        let timeout = if self.device_waits && !self.is_blocked() {
            Some(Duration::ZERO)
        } else {
            // Rounded up to the clock that epoll has, or the last millisecond would be spun through.
            let left = self.timer.map(|timer| timer.saturating_sub(self.shared.now()));
            left.map(|left| Duration::from_millis(left.div_ceil(1_000_000)))
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // Interrupted or not, the next turn looks at everything.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(ready), timeout.as_ref());
    }

    fn is_blocked(&self) -> bool {
        self.members.values().any(|member| !member.backlog.is_empty())
    }

    fn serve(&mut self, number: u32, flags: epoll::EventFlags) {
        if flags.contains(epoll::EventFlags::OUT) {
            self.flush(number);
        }
        if flags.contains(epoll::EventFlags::HUP) {
            // Shut down in both directions: it would be readable, and empty, for ever.
            self.fail(number, Errno::SHUTDOWN);
        } else if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::ERR) {
            self.receive(number);
        }
    }

    /// One batch from a socket to the device.
    fn receive(&mut self, number: u32) {
        let Some(member) = self.members.get_mut(&number) else { return };
        self.counters.udp.rx_calls += 1;
        let received = match self.receiver.receive(&member.socket) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(errno) => {
                self.counters.udp.rx_errors += 1;
                member.errors_in_a_row += 1;
                if is_fatal(errno) || member.errors_in_a_row > MAX_ERRORS {
                    self.fail(number, errno);
                }
                return;
            }
        };
        member.errors_in_a_row = 0;
        let now = self.shared.now();
        let Turns { shared, receiver, pool, packets, counters, .. } = self;
        shared.with_plane(|plane| {
            for message in (0..received).filter_map(|index| receiver.message(index)) {
                let path = Path { socket: number, address: message.source };
                for datagram in message.datagrams() {
                    counters.udp.rx_segments += 1;
                    packets.extend(plane.open(datagram, path, now, pool));
                }
            }
        });
        self.counters.udp.rx_messages += received as u64;
        let _ = self.end.send(&mut self.packets);
        self.counters.rx_device_dropped += self.packets.len() as u64;
        self.pool.recycle_all(self.packets.drain(..));
    }

    /// One batch from the device to the sockets.
    fn send_from_device(&mut self) {
        let taken = self.end.receive(&mut self.packets, BATCH).unwrap_or(0);
        self.device_waits = taken == BATCH;
        if taken == 0 {
            return;
        }
        let now = self.shared.now();
        let Turns { shared, pool, packets, datagrams, .. } = self;
        shared.with_plane(|plane| {
            datagrams.extend(packets.drain(..).filter_map(|packet| plane.seal(packet, now, pool)));
        });
        self.dispatch();
    }

    /// Sends the datagrams made in this turn, each path's in order.
    fn dispatch(&mut self) {
        let mut datagrams = std::mem::take(&mut self.datagrams);
        if datagrams.is_empty() {
            return;
        }
        if datagrams.windows(2).any(|pair| pair[0].path != pair[1].path) {
            // Stable; what goes one way stands together, which is what GSO wants.
            datagrams.sort_by_key(|datagram| datagram.path);
        }
        for group in datagrams.chunk_by_mut(|a, b| a.path.socket == b.path.socket) {
            self.send(group);
        }
        self.pool.recycle_all(datagrams.drain(..).map(|datagram| datagram.packet));
        self.datagrams = datagrams;
    }

    /// Sends datagrams of one socket; what it has no room for stays in its backlog.
    fn send(&mut self, datagrams: &mut [Datagram]) {
        let number = datagrams[0].path.socket;
        let Some(member) = self.members.get_mut(&number) else {
            self.counters.udp.tx_closed += datagrams.len() as u64;
            return;
        };
        let mut sent = 0;
        if member.backlog.is_empty() {
            match self.sender.send(&member.socket, datagrams, &mut self.counters.udp) {
                Ok(count) => sent = count,
                Err(errno) => {
                    self.counters.udp.tx_closed += datagrams.len() as u64;
                    return self.fail(number, errno);
                }
            }
        }
        let rest = &mut datagrams[sent..];
        if rest.is_empty() {
            return;
        }
        let was_empty = member.backlog.is_empty();
        let room = BACKLOG.saturating_sub(member.backlog.len()).min(rest.len());
        self.counters.udp.tx_socket_full += (rest.len() - room) as u64;
        for datagram in &mut rest[..room] {
            let kept = std::mem::replace(&mut datagram.packet, self.pool.packet(0));
            member.backlog.push(Datagram { packet: kept, path: datagram.path });
        }
        if was_empty {
            self.watch(number, epoll::EventFlags::IN | epoll::EventFlags::OUT);
        }
    }

    /// Sends on from a socket's backlog.
    fn flush(&mut self, number: u32) {
        let Some(member) = self.members.get_mut(&number) else { return };
        match self.sender.send(&member.socket, &mut member.backlog, &mut self.counters.udp) {
            Ok(sent) => {
                self.pool.recycle_all(member.backlog.drain(..sent).map(|datagram| datagram.packet));
                if member.backlog.is_empty() {
                    self.watch(number, epoll::EventFlags::IN);
                }
            }
            Err(errno) => self.fail(number, errno),
        }
    }

    fn watch(&mut self, number: u32, flags: epoll::EventFlags) {
        let Some(member) = self.members.get(&number) else { return };
        let data = epoll::EventData::new_u64(number.into());
        if let Err(errno) = epoll::modify(&self.epoll, &*member.socket, data, flags) {
            self.fail(number, errno);
        }
    }

    /// A socket failed for good.
    fn fail(&mut self, number: u32, errno: Errno) {
        let Some(address) = self.members.get(&number).map(|member| member.socket.address()) else { return };
        lock(&self.shared.sockets).table.remove(&number);
        self.forget(number);
        let path = Path { socket: number, address };
        self.shared.with_plane(|plane| plane.path_closed(path, errno.raw_os_error()));
    }

    fn forget(&mut self, number: u32) {
        let Some(member) = self.members.remove(&number) else { return };
        let _ = epoll::delete(&self.epoll, &*member.socket);
        self.counters.udp.tx_closed += member.backlog.len() as u64;
        self.counters.udp.rx_kernel_dropped += member.socket.kernel_dropped();
    }
}

/// A lock whose poison is ignored: a panic ends the thread, and what it left is only read after.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The event that stands for the thread's own waker; sockets have their numbers.
const WAKE: u64 = u64::MAX;

/// Packets that are taken from the device in a turn: two full GSO runs at 1,400 bytes.
const BATCH: usize = 90;
/// Sockets served in a turn.
const READY: usize = 64;
/// Datagrams that wait for one socket.
const BACKLOG: usize = 512;
/// Errors on receiving without a datagram in between, after which a socket counts as broken: what
/// comes from the network ends by itself, for every such error answers something we sent.
const MAX_ERRORS: u32 = 10_000;
