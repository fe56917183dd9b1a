//! The loop that moves packets between sockets, the data plane and a device.
//!
//! One thread receives, opens, seals and sends, in batches and by turns, so that neither direction
//! starves. A socket that takes nothing more has a backlog of its own, and delays nobody else. The
//! plane is locked for a batch's cryptography, never across a system call. Commands come from other
//! threads and take effect before they return.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ginnel_core::Nanos;
use ginnel_core::packet::{LocalPool, Packet, Pool};
use ginnel_core::plane::{CommandError, Datagram, Event, Path, PeerCounters, Plane};
use ginnel_core::queue::Wake;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::inner::Inner;
use crate::member::{self, Buffers, Member};
use crate::prompt::take_short_turns;
use crate::socket::{Socket, SocketCounters};
use crate::tcp::TcpSocket;
use crate::tun::{Observers, TunCounters};
use crate::udp::{Sender, UdpSocket};
use crate::wake::Waker;

/// A data plane on real sockets, and its thread.
pub struct Pump {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    observers: Option<Arc<Observers>>,
}

impl Pump {
    /// Starts a thread that serves this end of a device.
    pub fn start(inner: Inner, pool: Arc<Pool>) -> io::Result<Pump> {
        let shared = Arc::new(Shared {
            plane: Mutex::new(Plane::new(inner.kind())),
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
        if let Some(descriptor) = inner.descriptor() {
            let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, descriptor, epoll::EventData::new_u64(DEVICE), edge)?;
        }
        let observers = inner.observers();
        let own = shared.clone();
        let thread = thread::Builder::new().name("ginnel-data".to_owned()).spawn(move || {
            take_short_turns();
            let shared = own.clone();
            // Unwound or not, the sockets and the device's end are free before those who wait hear of it.
            let panicked = catch_unwind(AssertUnwindSafe(|| Turns::new(own, inner, epoll).run())).is_err();
            shared.end(panicked);
        })?;
        Ok(Pump { shared, thread: Mutex::new(Some(thread)), observers })
    }

    /// Takes a UDP socket over. On an error (ESHUTDOWN once the thread has ended) the descriptor
    /// stays the caller's. A `header` that isn't empty is for a SOCKS5 relay at the other end.
    pub fn add_udp(&self, descriptor: RawFd, header: Vec<u8>) -> io::Result<u32> {
        self.add(|| Ok(Socket::Udp(UdpSocket::adopt(descriptor, header)?)))
    }

    /// Takes a connected TCP socket over, as [`Pump::add_udp`] does a UDP socket.
    pub fn add_tcp(&self, descriptor: RawFd) -> io::Result<u32> {
        self.add(|| Ok(Socket::Tcp(TcpSocket::adopt(descriptor)?)))
    }

    /// Who sees what goes through the device, if it is the kernel's.
    pub fn observers(&self) -> Option<&Arc<Observers>> {
        self.observers.as_ref()
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
        counters.sockets.rx_kernel_dropped +=
            table.values().map(|socket| socket.kernel_dropped()).sum::<u64>();
        let own = [("rx_device_dropped", counters.rx_device_dropped)];
        plane
            .into_iter()
            .chain(counters.sockets.entries())
            .chain(own)
            .chain(counters.device.entries())
            .collect()
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

    fn add(&self, adopt: impl FnOnce() -> io::Result<Socket>) -> io::Result<u32> {
        if !lock(&self.shared.sockets).running {
            return Err(Errno::SHUTDOWN.into());
        }
        let socket = adopt()?;
        let mut sockets = lock(&self.shared.sockets);
        let number = sockets.next;
        sockets.next += 1;
        if socket.is_stream() {
            self.shared.with_plane(|plane| plane.set_stream(number, true));
        }
        sockets.table.insert(number, Arc::new(socket));
        self.shared.settle(sockets);
        Ok(number)
    }

    /// A stream's packets go one behind the other: they are the thread's to write, and it does before
    /// it follows any later command.
    fn send_now(&self, datagram: Datagram) {
        let mut counters = Counters::default();
        let mut sockets = lock(&self.shared.sockets);
        match sockets.table.get(&datagram.path.socket).cloned() {
            Some(socket) if socket.is_stream() && sockets.running => {
                if sockets.queued.len() < QUEUE {
                    sockets.queued.push(datagram);
                    self.shared.wake.wake();
                } else {
                    counters.sockets.tx_socket_full += 1;
                }
            }
            Some(socket) => {
                drop(sockets);
                match member::write(&socket, &mut [datagram], &mut Sender::new(), &mut counters.sockets) {
                    Ok(0) => counters.sockets.tx_socket_full += 1,
                    Ok(_) => {}
                    Err(_) => counters.sockets.tx_closed += 1,
                }
            }
            None => counters.sockets.tx_closed += 1,
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
    table: BTreeMap<u32, Arc<Socket>>,
    next: u32,
    /// How often the table has been changed, and up to which change the thread has followed.
    changes: u64,
    followed: u64,
    running: bool,
    /// Packets for streams that the thread is to write.
    queued: Vec<Datagram>,
}

#[derive(Clone, Copy, Default)]
struct Counters {
    sockets: SocketCounters,
    rx_device_dropped: u64,
    device: TunCounters,
}

impl Counters {
    fn add(&mut self, other: &Counters) {
        self.sockets.add(&other.sockets);
        self.rx_device_dropped += other.rx_device_dropped;
        self.device.add(&other.device);
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
    inner: Inner,
    epoll: OwnedFd,
    members: BTreeMap<u32, Member>,
    /// How many of them wait for room.
    blocked: usize,
    followed: u64,
    /// The number of the next socket that is not known yet.
    newest: u32,
    pool: LocalPool,
    buffers: Buffers,
    packets: Vec<Packet>,
    datagrams: Vec<Datagram>,
    counters: Counters,
    /// Packets may wait at the device.
    device_waits: bool,
    timer: Option<Nanos>,
}

impl Turns {
    fn new(shared: Arc<Shared>, inner: Inner, epoll: OwnedFd) -> Turns {
        inner.set_reader(shared.wake.clone());
        let pool = shared.pool.local();
        Turns {
            shared,
            inner,
            epoll,
            members: BTreeMap::new(),
            blocked: 0,
            followed: 0,
            newest: 0,
            pool,
            buffers: Buffers::default(),
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
                    DEVICE => self.device_waits = true,
                    number => self.serve(number as u32, event.flags),
                }
            }
            if self.device_waits && !self.is_blocked() {
                self.send_from_device();
            }
        }
        self.follow();
        let members: Vec<u32> = self.members.keys().copied().collect();
        members.into_iter().for_each(|number| self.forget(number));
        self.publish();
    }

    /// Follows changes of the table of sockets, and writes what was queued before them.
    fn follow(&mut self) {
        let mut sockets = lock(&self.shared.sockets);
        self.datagrams.append(&mut sockets.queued);
        let changes = sockets.changes;
        let table = (changes != self.followed).then(|| sockets.table.clone());
        drop(sockets);
        self.dispatch();
        let Some(table) = table else { return };
        let removed: Vec<u32> =
            self.members.keys().filter(|number| !table.contains_key(number)).copied().collect();
        removed.into_iter().for_each(|number| self.forget(number));
        // One that failed meanwhile is in the table still, but not among the new ones.
        let known = self.newest;
        for (number, socket) in table.into_iter().skip_while(|(number, _)| *number < known) {
            self.newest = number + 1;
            let data = epoll::EventData::new_u64(number.into());
            let added = epoll::add(&self.epoll, &*socket, data, epoll::EventFlags::IN);
            self.members.insert(number, Member::new(socket));
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
        self.counters.device = self.inner.take_counters();
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

    /// While no socket has room the device is not read: what writes to it may wait, or drop.
    fn is_blocked(&self) -> bool {
        self.blocked > 0 && self.blocked == self.members.len()
    }

    fn serve(&mut self, number: u32, flags: epoll::EventFlags) {
        if flags.contains(epoll::EventFlags::OUT) {
            self.flush(number);
        }
        let Some(member) = self.members.get(&number) else { return };
        match &*member.socket.clone() {
            // Shut down in both directions: it would be readable, and empty, for ever.
            Socket::Udp(_) if flags.contains(epoll::EventFlags::HUP) => self.fail(number, Errno::SHUTDOWN),
            Socket::Udp(socket) if flags.intersects(READABLE) => self.receive(number, socket),
            Socket::Tcp(socket) if flags.intersects(READABLE) => self.receive_stream(number, socket),
            _ => {}
        }
    }

    /// One batch from a socket of datagrams to the device.
    fn receive(&mut self, number: u32, socket: &UdpSocket) {
        self.counters.sockets.rx_calls += 1;
        let received = match self.buffers.receiver.receive(socket) {
            Ok(received) => received,
            Err(errno) => return self.receive_failed(number, errno),
        };
        if let Some(member) = self.members.get_mut(&number) {
            member.received();
        }
        let now = self.shared.now();
        let Turns { shared, buffers, pool, packets, datagrams, counters, .. } = self;
        shared.with_plane(|plane| {
            for message in (0..received).filter_map(|index| buffers.receiver.message(index)) {
                let path = Path { socket: number, address: message.source };
                for datagram in message.datagrams() {
                    counters.sockets.rx_segments += 1;
                    match socket.content(datagram) {
                        Some(content) => packets.extend(plane.open(content, path, now, pool)),
                        None => counters.sockets.rx_bad_relayed += 1,
                    }
                }
            }
            plane.relay(now, datagrams, pool);
        });
        self.counters.sockets.rx_messages += received as u64;
        self.deliver();
        self.dispatch();
    }

    /// One read from a stream to the device.
    fn receive_stream(&mut self, number: u32, socket: &TcpSocket) {
        let Turns { shared, members, buffers, pool, packets, datagrams, counters, .. } = self;
        let Some(member) = members.get_mut(&number) else { return };
        counters.sockets.rx_calls += 1;
        match buffers.reader.receive(socket, &member.partial) {
            Ok(true) => {}
            Ok(false) => return self.fail(number, Errno::CONNRESET),
            Err(errno) => return self.receive_failed(number, errno),
        }
        counters.sockets.rx_messages += 1;
        let (now, path) = (shared.now(), Path { socket: number, address: socket.address() });
        let mut stream = buffers.reader.packets();
        shared.with_plane(|plane| {
            for datagram in stream.by_ref() {
                counters.sockets.rx_segments += 1;
                packets.extend(plane.open(datagram, path, now, pool));
            }
            plane.relay(now, datagrams, pool);
        });
        member.partial = stream.rest().to_vec();
        let broken = stream.broken;
        self.deliver();
        self.dispatch();
        if broken {
            self.counters.sockets.rx_bad_streams += 1;
            self.fail(number, Errno::PROTO);
        }
    }

    fn receive_failed(&mut self, number: u32, errno: Errno) {
        if matches!(errno, Errno::AGAIN | Errno::INTR) {
            return;
        }
        self.counters.sockets.rx_errors += 1;
        if self.members.get_mut(&number).is_some_and(|member| member.is_broken_by(errno)) {
            self.fail(number, errno);
        }
    }

    /// Gives the device what was opened; for what it has no room is dropped, the newest first.
    fn deliver(&mut self) {
        self.counters.rx_device_dropped += self.inner.send(&mut self.packets, &mut self.pool);
    }

    /// One batch from the device to the sockets.
    fn send_from_device(&mut self) {
        match self.inner.receive(&mut self.packets, BATCH, &mut self.pool) {
            Ok(more) => self.device_waits = more,
            Err(errno) => {
                self.device_waits = false;
                self.shared.with_plane(|plane| plane.device_closed(errno.raw_os_error()));
            }
        }
        if self.packets.is_empty() {
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

    /// Sends datagrams of one socket.
    fn send(&mut self, datagrams: &mut [Datagram]) {
        let number = datagrams[0].path.socket;
        let count = datagrams.len() as u64;
        let sent = self
            .write(number, |member, buffers, counters, pool| member.send(datagrams, buffers, counters, pool));
        if !sent {
            self.counters.sockets.tx_closed += count;
        }
    }

    /// Sends on from a socket's backlog.
    fn flush(&mut self, number: u32) {
        self.write(number, |member, buffers, counters, pool| member.flush(buffers, counters, pool));
    }

    /// Writes to a socket, and asks to be told when it has room again if it had too little. False if
    /// there is no such socket, or not any longer.
    fn write(
        &mut self,
        number: u32,
        write: impl FnOnce(&mut Member, &mut Buffers, &mut SocketCounters, &mut LocalPool) -> Result<(), Errno>,
    ) -> bool {
        let Some(member) = self.members.get_mut(&number) else { return false };
        let was_blocked = member.is_blocked();
        if let Err(errno) = write(member, &mut self.buffers, &mut self.counters.sockets, &mut self.pool) {
            self.fail(number, errno);
            return false;
        }
        match (was_blocked, member.is_blocked()) {
            (false, true) => {
                self.blocked += 1;
                self.watch(number, epoll::EventFlags::IN | epoll::EventFlags::OUT);
            }
            (true, false) => {
                self.blocked -= 1;
                self.watch(number, epoll::EventFlags::IN);
            }
            _ => {}
        }
        true
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
        let Some(mut member) = self.members.remove(&number) else { return };
        self.blocked -= usize::from(member.is_blocked());
        let _ = epoll::delete(&self.epoll, &*member.socket);
        member.abandon(&mut self.counters.sockets);
        if member.socket.is_stream() {
            self.shared.with_plane(|plane| plane.set_stream(number, false));
        }
    }
}

/// A lock whose poison is ignored: a panic ends the thread, and what it left is only read after.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The event that stands for the thread's own waker; sockets have their numbers.
const WAKE: u64 = u64::MAX;
/// The one that stands for the kernel's device.
const DEVICE: u64 = u64::MAX - 1;

/// Packets that are taken from the device in a turn: two full GSO runs at 1,400 bytes.
const BATCH: usize = 90;
/// Sockets served in a turn.
const READY: usize = 64;
/// Packets of commands that wait for the thread.
const QUEUE: usize = 1024;
/// What there is to read, an error or a stream's end among it.
const READABLE: epoll::EventFlags =
    epoll::EventFlags::IN.union(epoll::EventFlags::ERR).union(epoll::EventFlags::HUP);
