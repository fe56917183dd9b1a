//! A data plane on real sockets, and the threads that move packets between those and a device.
//!
//! Each lane of the plane has a thread, or one for each of its two ways; these receive and open, and seal and send,
//! in batches. The plane is locked for a batch's cryptography, never across a system call. Commands come from
//! other threads and take effect before they return.

mod inward;
mod member;
mod outward;
mod rest;
mod turns;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use ginnel_core::Nanos;
use ginnel_core::fair::Budget;
use ginnel_core::packet::{Packet, Pool};
use ginnel_core::plane::{CommandError, Datagram, Event, Path, PeerCounters, Plane};
use ginnel_core::queue::Wake;
use rustix::io::Errno;

use crate::handed::Handed;
use crate::inner::Inner;
use crate::pump::turns::Turns;
use crate::socket::{Socket, SocketCounters};
use crate::tcp::TcpSocket;
use crate::tun::{Observers, TunCounters};
use crate::udp::{Sender, UdpSocket};
use crate::wake::Waker;

pub struct Pump {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    observers: Option<Arc<Observers>>,
}

impl Pump {
    /// Starts the threads that serve this end of a device.
    pub fn start(inner: Inner, threads: Threads, pool: Arc<Pool>) -> io::Result<Pump> {
        let plane = Plane::new(inner.kind(), threads.lanes);
        let lanes: Box<[Lane]> =
            (0..plane.lanes()).map(|_| Lane::new(threads.apart)).collect::<io::Result<_>>()?;
        let shared = Arc::new(Shared {
            plane,
            lanes,
            sockets: Mutex::default(),
            settled: Condvar::new(),
            events: Waker::new()?,
            counters: Mutex::default(),
            stop: AtomicBool::new(false),
            is_device_closed: AtomicBool::new(false),
            origin: Instant::now(),
            pool,
            waiting: Budget::new(WAITING),
        });
        let observers = inner.observers();
        let pump = Pump { shared: shared.clone(), threads: Mutex::default(), observers };
        for (number, lane) in shared.lanes.iter().enumerate() {
            let turns = pump.turns(&lane.inward)?.with_inward(number, inner.sink(number));
            if !threads.apart {
                pump.spawn("ginnel-data", turns.with_outward(number, inner.source(number))?)?;
                continue;
            }
            pump.spawn("ginnel-data-in", turns)?;
            let turns = pump.turns(&lane.outward)?.with_outward(number, inner.source(number))?;
            pump.spawn("ginnel-data-out", turns)?;
        }
        Ok(pump)
    }

    /// Among how many the peers are spread: a socket's number says to which of them it belongs.
    pub fn lanes(&self) -> usize {
        self.shared.lanes.len()
    }

    /// Takes a UDP socket over. On an error (ESHUTDOWN once the threads have ended) the descriptor
    /// stays the caller's. A `header` that isn't empty is for a SOCKS5 relay at the other end.
    pub fn add_udp(&self, descriptor: RawFd, header: Vec<u8>) -> io::Result<u64> {
        self.add(|| Ok(Socket::Udp(UdpSocket::adopt(descriptor, header)?)))
    }

    /// Takes a connected TCP socket over, as [`Pump::add_udp`] does a UDP socket.
    pub fn add_tcp(&self, descriptor: RawFd) -> io::Result<u64> {
        self.add(|| Ok(Socket::Tcp(TcpSocket::adopt(descriptor)?)))
    }

    /// Who sees what goes through the device, if it is the kernel's.
    pub fn observers(&self) -> Option<&Arc<Observers>> {
        self.observers.as_ref()
    }

    /// Closes a socket; none of this number is no error if there once was one.
    pub fn remove_socket(&self, number: u64) -> Result<(), UnknownSocket> {
        let mut sockets = lock(&self.shared.sockets);
        if number >= sockets.next {
            return Err(UnknownSocket);
        }
        self.shared.take_out(&mut sockets, number);
        self.shared.settle(sockets);
        Ok(())
    }

    /// Carries a command out. It is given the time.
    pub fn command<T>(&self, command: impl FnOnce(&Plane, Nanos) -> T) -> T {
        let result = command(&self.shared.plane, self.shared.now());
        self.shared.tell();
        // A timer may be due earlier than the threads think.
        if self.shared.plane.has_new_timer() {
            self.shared.wake();
        }
        result
    }

    /// A peer that was heard at this path.
    pub fn new_peer(&self, number: u32, path: Path, peer_id: Option<u32>) -> Result<(), CommandError> {
        let socket = lock(&self.shared.sockets).table.get(&path.socket).cloned();
        self.command(|plane, now| plane.new_peer(number, path, peer_id, now))?;
        if let Some(Socket::Udp(socket)) = socket.as_deref()
            && let Some(asked) = socket.asked_by(&path.address, false)
        {
            self.shared.plane.set_asked(&path, Some(asked));
            self.shared.keep_asked(path, asked);
        }
        Ok(())
    }

    /// Sends a control packet before it returns. What the socket does not take is counted.
    pub fn send_control(&self, data: &[u8], path: Path) -> Result<(), UnknownSocket> {
        if path.socket >= lock(&self.shared.sockets).next {
            return Err(UnknownSocket);
        }
        self.shared.plane.contacted(path);
        self.send_now(Datagram { packet: self.shared.pool.local().packet_from(data), path });
        Ok(())
    }

    /// Seals a data message and sends it before it returns. What the socket does not take is counted.
    pub fn send_data_message(&self, peer: u32, data: &[u8]) -> Result<(), CommandError> {
        let (now, mut pool) = (self.shared.now(), self.shared.pool.local());
        let datagram = self.shared.plane.data_message(peer, data, now, &mut pool)?;
        self.shared.tell();
        if let Some(datagram) = datagram {
            self.send_now(datagram);
        }
        Ok(())
    }

    /// What has happened since the last call.
    pub fn events(&self) -> Vec<Event> {
        // Cleared first: an event that comes in between wakes again.
        self.shared.events.clear();
        self.shared.plane.take_events()
    }

    /// Readable while events wait.
    pub fn events_descriptor(&self) -> BorrowedFd<'_> {
        self.shared.events.as_fd()
    }

    /// Every counter of the plane and its sockets, by name.
    pub fn statistics(&self) -> Vec<(&'static str, u64)> {
        let table = lock(&self.shared.sockets).table.clone();
        let mut counters = *lock(&self.shared.counters);
        counters.sockets.rx_kernel_dropped +=
            table.values().map(|socket| socket.kernel_dropped()).sum::<u64>();
        let own =
            [("rx_device_dropped", counters.rx_device_dropped), ("handed_dropped", counters.handed_dropped)];
        self.shared
            .plane
            .counters()
            .entries()
            .into_iter()
            .chain(counters.sockets.entries())
            .chain(own)
            .chain(counters.device.entries())
            .collect()
    }

    pub fn peer_statistics(&self, peer: u32) -> Result<PeerCounters, CommandError> {
        self.shared.plane.peer_counters(peer)
    }

    /// Stops the threads and closes the sockets and the device's end. Idempotent.
    pub fn close(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        for thread in lock(&self.threads).drain(..) {
            let _ = thread.join();
        }
    }

    fn turns(&self, wake: &Arc<Waker>) -> io::Result<Turns> {
        let thread = lock(&self.shared.sockets).followed.len();
        Turns::new(&self.shared, thread, wake)
    }

    fn spawn(&self, name: &str, turns: Turns) -> io::Result<()> {
        let mut sockets = lock(&self.shared.sockets);
        sockets.followed.push(0);
        sockets.running += 1;
        drop(sockets);
        let shared = self.shared.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Unwound or not, the sockets and the device's end are free before those who wait hear of it.
            let panicked = catch_unwind(AssertUnwindSafe(|| turns.run())).is_err();
            shared.end(panicked);
        });
        match thread {
            Ok(thread) => lock(&self.threads).push(thread),
            Err(error) => {
                self.shared.end(false);
                return Err(error);
            }
        }
        Ok(())
    }

    fn add(&self, adopt: impl FnOnce() -> io::Result<Socket>) -> io::Result<u64> {
        if !lock(&self.shared.sockets).is_served() {
            return Err(Errno::SHUTDOWN.into());
        }
        let socket = adopt()?;
        let mut sockets = lock(&self.shared.sockets);
        let number = sockets.next;
        sockets.next += 1;
        if socket.is_stream() {
            self.shared.plane.set_stream(number, true);
        }
        sockets.table.insert(number, Arc::new(socket));
        self.shared.settle(sockets);
        Ok(number)
    }

    /// A stream's packets go one behind the other: they are its thread's to write, and it does before
    /// it follows any later command.
    fn send_now(&self, datagram: Datagram) {
        let mut counters = Counters::default();
        let sockets = lock(&self.shared.sockets);
        match sockets.table.get(&datagram.path.socket).cloned() {
            Some(socket) if socket.is_stream() && sockets.is_served() => {
                let lane = &self.shared.lanes[self.shared.plane.lane_of(datagram.path.socket)];
                let mut queued = vec![datagram];
                lane.queued.give(&mut queued);
                counters.sockets.tx_socket_full += queued.len() as u64;
            }
            Some(socket) => {
                drop(sockets);
                let mut sender = Sender::new();
                match member::write(&socket, &mut [datagram], &mut sender, &mut counters.sockets) {
                    Ok(0) => counters.sockets.tx_socket_full += 1,
                    Ok(_) => {}
                    Err(_) => counters.sockets.tx_closed += 1,
                }
                self.shared.forget_asked(&mut sender);
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

/// How many threads there are.
#[derive(Clone, Copy, Debug)]
pub struct Threads {
    /// Among which the peers are spread: at least one.
    pub lanes: usize,
    /// Each lane has two threads, one for each way.
    pub apart: bool,
}

type Table = BTreeMap<u64, Arc<Socket>>;

/// What the threads and their commanders share.
struct Shared {
    plane: Plane,
    lanes: Box<[Lane]>,
    sockets: Mutex<Sockets>,
    settled: Condvar,
    events: Waker,
    counters: Mutex<Counters>,
    stop: AtomicBool,
    is_device_closed: AtomicBool,
    origin: Instant,
    pool: Arc<Pool>,
    /// What may wait for sockets.
    waiting: Arc<Budget>,
}

/// A datagram that came, and to which of our addresses, where its socket has several.
type Arrived = (Datagram, Option<IpAddr>);

/// What others have for a lane's threads.
struct Lane {
    /// What wakes the thread of its way in, and the thread of its way out: the same, if that is one.
    inward: Arc<Waker>,
    outward: Arc<Waker>,
    /// Datagrams that came on another lane's socket.
    datagrams: Handed<Arrived>,
    /// Inner packets that came in by another thread.
    packets: Handed<Packet>,
    /// Packets of commands for streams.
    queued: Handed<Datagram>,
}

impl Lane {
    fn new(apart: bool) -> io::Result<Lane> {
        let inward = Arc::new(Waker::new()?);
        let outward = if apart { Arc::new(Waker::new()?) } else { inward.clone() };
        Ok(Lane {
            datagrams: Handed::new(inward.clone()),
            packets: Handed::new(outward.clone()),
            queued: Handed::new(outward.clone()),
            inward,
            outward,
        })
    }
}

#[derive(Default)]
struct Sockets {
    table: Table,
    next: u64,
    /// How often the table has been changed, and up to which change each thread has followed.
    changes: u64,
    followed: Vec<u64>,
    /// The threads that there are, and whether one of them has ended.
    running: usize,
    ended: bool,
    panicked: bool,
}

impl Sockets {
    fn is_served(&self) -> bool {
        self.running > 0 && !self.ended
    }
}

#[derive(Clone, Copy, Default)]
struct Counters {
    sockets: SocketCounters,
    rx_device_dropped: u64,
    /// What one thread had for another that was too far behind.
    handed_dropped: u64,
    device: TunCounters,
}

impl Counters {
    fn add(&mut self, other: &Counters) {
        self.sockets.add(&other.sockets);
        self.rx_device_dropped += other.rx_device_dropped;
        self.handed_dropped += other.handed_dropped;
        self.device.add(&other.device);
    }
}

impl Shared {
    fn now(&self) -> Nanos {
        self.origin.elapsed().as_nanos() as Nanos
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Tells of events that nobody has been told of.
    fn tell(&self) {
        if self.plane.signal() {
            self.events.wake();
        }
    }

    fn wake(&self) {
        for lane in &self.lanes {
            lane.inward.wake();
            lane.outward.wake();
        }
    }

    /// What goes to a peer leaves from this address of ours, whoever else writes to the socket meanwhile.
    fn keep_asked(&self, path: Path, asked: IpAddr) {
        let socket = lock(&self.sockets).table.get(&path.socket).cloned();
        let Some(Socket::Udp(socket)) = socket.as_deref() else { return };
        if socket.keep_asked(path.address, asked) > SPARE + 2 * self.plane.peers() {
            let is_held = |address| self.plane.is_held(&Path { socket: path.socket, address });
            let gone = socket.kept().into_iter().filter(|&address| !is_held(address));
            gone.for_each(|address| socket.forget_asked(&address));
        }
    }

    /// What was refused may have left from an address that is ours no longer.
    fn forget_asked(&self, sender: &mut Sender) {
        sender.refused.drain(..).for_each(|path| self.plane.set_asked(&path, None));
    }

    fn publish(&self, counters: &mut Counters) {
        lock(&self.counters).add(&std::mem::take(counters));
    }

    /// Waits until the threads have followed a change of the table.
    fn settle(&self, mut sockets: MutexGuard<'_, Sockets>) {
        sockets.changes += 1;
        let change = sockets.changes;
        self.wake();
        let is_behind = |followed: &u64| *followed < change;
        let waiting = |sockets: &mut Sockets| sockets.is_served() && sockets.followed.iter().any(is_behind);
        drop(self.settled.wait_while(sockets, waiting));
    }

    /// The table, if it has been changed since this change.
    fn changed(&self, followed: &mut u64) -> Option<Table> {
        let sockets = lock(&self.sockets);
        let changed = sockets.changes != *followed;
        *followed = sockets.changes;
        changed.then(|| sockets.table.clone())
    }

    /// A thread has followed this change.
    fn follow(&self, thread: usize, change: u64) {
        lock(&self.sockets).followed[thread] = change;
        self.settled.notify_all();
    }

    /// A socket failed for good, as one of the threads has found.
    fn fail(&self, number: u64, errno: Errno) {
        let mut sockets = lock(&self.sockets);
        let Some(socket) = self.take_out(&mut sockets, number) else { return };
        sockets.changes += 1;
        drop(sockets);
        self.wake();
        // The thread tells of it at the end of its turn.
        self.plane.path_closed(Path { socket: number, address: socket.address() }, errno.raw_os_error());
    }

    /// The device failed for good, as a thread of each of its queues finds.
    fn device_closed(&self, errno: Errno) {
        if !self.is_device_closed.swap(true, Ordering::Relaxed) {
            self.plane.device_closed(errno.raw_os_error());
        }
    }

    fn take_out(&self, sockets: &mut Sockets, number: u64) -> Option<Arc<Socket>> {
        let socket = sockets.table.remove(&number)?;
        if socket.is_stream() {
            self.plane.set_stream(number, false);
        }
        Some(socket)
    }

    /// A thread is at its end, and so are the others soon: nobody waits for them any longer.
    fn end(&self, panicked: bool) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        let mut sockets = lock(&self.sockets);
        sockets.ended = true;
        sockets.panicked |= panicked;
        sockets.running -= 1;
        self.settled.notify_all();
        if sockets.running > 0 {
            return;
        }
        let (table, panicked) = (std::mem::take(&mut sockets.table), sockets.panicked);
        drop(sockets);
        let paths: Vec<Path> = table
            .iter()
            .map(|(&number, socket)| Path { socket: number, address: socket.address() })
            .collect();
        drop(table);
        if panicked {
            paths.into_iter().for_each(|path| self.plane.path_closed(path, libc::EIO));
            self.tell();
        }
    }
}

/// Bytes of inner packets that wait for room in sockets.
const WAITING: usize = 32 << 20;

/// A lock whose poison is ignored: a panic ends the threads, and what it left is only read after.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many of those who were peers once a socket may know, beside as many as there are.
const SPARE: usize = 1024;

#[cfg(test)]
mod tests {
    use std::net;
    use std::os::fd::IntoRawFd;

    use ginnel_core::device::{Device, Kind, Side};

    use super::*;

    #[test]
    fn no_socket_has_the_number_of_one_that_there_was() {
        let end = Device::new(Kind::Tun, 1500, 10).attach(Side::Application).unwrap();
        let threads = Threads { lanes: 1, apart: false };
        let pump = Pump::start(Inner::memory(end), threads, Pool::new(16)).unwrap();
        let add =
            || pump.add_udp(net::UdpSocket::bind("127.0.0.1:0").unwrap().into_raw_fd(), Vec::new()).unwrap();
        let first = add();
        // As after so many connections of strangers.
        lock(&pump.shared.sockets).next = u32::MAX.into();
        let later = [add(), add()];
        assert!(!later.contains(&first) && later[0] < later[1], "{first} {later:?}");
        assert_eq!(lock(&pump.shared.sockets).table.len(), 3);
    }
}
