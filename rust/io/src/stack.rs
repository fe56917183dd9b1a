//! A network stack with a thread of its own: what is asked of it, and what it tells.

mod datagrams;
mod lookout;
mod rounds;
mod turns;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use ginnel_core::Nanos;
use ginnel_core::device::End;
use ginnel_core::netstack::address::Addresses;
use ginnel_core::netstack::ethernet::Mac;
use ginnel_core::netstack::flows::FlowId;
use ginnel_core::netstack::icmp::Unreachable;
use ginnel_core::netstack::neighbours::Row;
use ginnel_core::netstack::routes::{Prefix, Route};
use ginnel_core::netstack::{Event, Failure};
use ginnel_core::packet::Pool;
use ginnel_core::queue::Wake;
use rustix::event::epoll::{self, CreateFlags, EventFlags};

use crate::prompt::take_short_turns;
use crate::stack::rounds::Loop;
use crate::stack::turns::Turns;
use crate::wake::{Bell, Waker};

/// A stack with a thread of its own.
pub struct NetStack {
    turns: Arc<Turns>,
    told: Arc<Told>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The events that wait for the owner.
struct Told {
    events: Mutex<Vec<Event>>,
    ready: Waker,
}

impl Told {
    fn extend(&self, more: impl FnOnce(&mut Vec<Event>)) {
        let mut events = lock(&self.events);
        let was_empty = events.is_empty();
        more(&mut events);
        if was_empty && !events.is_empty() {
            self.ready.wake();
        }
    }
}

/// What a stack's thread does beside its own work.
pub trait Guest: Send {
    /// Has what it waits for watched there from now on: each under a token of its own, [`HIGHEST_TOKEN`] at most,
    /// with `mark` added.
    fn move_in(&mut self, epoll: &Arc<OwnedFd>, mark: u64) -> io::Result<()>;
    /// Does a bounded part of what there is to do there, and waits for nothing. `false`: it has ended.
    fn turn(&mut self, token: u64, flags: EventFlags) -> bool;
    /// Goes on without the stack, which has ended.
    fn move_out(self: Box<Self>);
}

impl NetStack {
    /// Starts a stack on one end of a device.
    pub fn start(end: End, budget: usize, pool: &Arc<Pool>) -> io::Result<NetStack> {
        keep_rings_out_of_the_heap();
        let (epoll, wake) = (Arc::new(epoll::create(CreateFlags::CLOEXEC)?), Arc::new(Bell::new()?));
        let told = Arc::new(Told { events: Mutex::new(Vec::new()), ready: Waker::new()? });
        let (device, reader) = (end.device().clone(), end.side().other());
        let inner = Loop::new(end, budget, pool, (epoll.clone(), wake.clone()), told.clone())?;
        let turns = Arc::new(Turns::new(inner, (epoll, wake), (device, reader)));
        let own = turns.clone();
        let thread = std::thread::Builder::new().name("ginnel-stack".into()).spawn(move || {
            take_short_turns();
            own.run();
        })?;
        Ok(NetStack { turns, told, thread: Mutex::new(Some(thread)) })
    }

    pub fn set_addresses(&self, addresses: Addresses) -> Result<(), Failure> {
        self.call(|inner| {
            inner.stack.set_addresses(addresses);
            inner.announce();
        })
    }

    /// Sets the hardware address. `NoSuch` on a device without.
    pub fn set_mac(&self, mac: Mac) -> Result<(), Failure> {
        let changed = self.call(move |inner| {
            let changed = inner.stack.set_mac(mac);
            inner.announce();
            changed
        })?;
        if changed { Ok(()) } else { Err(Failure::NoSuch) }
    }

    pub fn mac(&self) -> Result<Option<Mac>, Failure> {
        self.call(|inner| inner.stack.mac())
    }

    /// Replaces the routes; `None` for those that go without saying.
    pub fn set_routes(&self, routes: Option<Vec<Route>>) -> Result<(), Failure> {
        self.call(|inner| inner.stack.set_routes(routes))
    }

    /// Adds a route, or replaces the one to the same destination.
    pub fn add_route(&self, route: Route) -> Result<(), Failure> {
        self.call(move |inner| inner.stack.add_route(route))
    }

    /// Removes the route to this destination. Harmless where none was given.
    pub fn remove_route(&self, destination: Prefix) -> Result<(), Failure> {
        self.call(move |inner| inner.stack.remove_route(destination))
    }

    /// The addresses and networks of one who shares the stack; none: it is gone.
    pub fn set_client(&self, client: u64, prefixes: Vec<Prefix>) -> Result<(), Failure> {
        self.call(move |inner| inner.stack.set_client(client, &prefixes))
    }

    /// Sets the device's MTU. `false` when it is out of range.
    pub fn set_mtu(&self, mtu: u32) -> Result<bool, Failure> {
        self.call(move |inner| inner.end.as_ref().is_some_and(|end| end.device().set_mtu(mtu)))
    }

    pub fn mtu(&self) -> Result<u32, Failure> {
        self.call(|inner| inner.end.as_ref().map(|end| end.device().mtu()))?.ok_or(Failure::NoDevice)
    }

    pub fn neighbours(&self) -> Result<Vec<Row>, Failure> {
        self.call(|inner| inner.stack.neighbours(inner.now()))
    }

    pub fn connect(&self, remote: SocketAddr) -> Result<FlowId, Failure> {
        self.call(move |inner| {
            let now = inner.now();
            inner.stack.connect(now, remote)
        })?
    }

    /// Joins a flow with a stream socket.
    pub fn attach(&self, flow: FlowId, socket: OwnedFd) -> Result<(), Failure> {
        self.call(move |inner| inner.attach(flow, socket))?
    }

    pub fn abort(&self, flow: FlowId) {
        let _ = self.call(move |inner| {
            let now = inner.now();
            if let Some(splice) = inner.stack.abort(now, flow, &mut inner.out) {
                splice.close(Some(Failure::Reset));
            }
        });
    }

    pub fn listen(&self, host: Option<IpAddr>, port: u16, backlog: usize) -> Result<(u64, u16), Failure> {
        self.call(move |inner| inner.stack.listen(host, port, backlog))?
    }

    pub fn close_listener(&self, listener: u64) {
        let _ = self.call(move |inner| inner.stack.close_listener(listener));
    }

    /// Binds a UDP port, joined with a SOCK_SEQPACKET socket.
    pub fn open_datagram(
        &self,
        host: Option<IpAddr>,
        port: u16,
        socket: OwnedFd,
    ) -> Result<(u64, u16), Failure> {
        self.call(move |inner| inner.open_datagram(host, port, socket))?
    }

    /// Frees a UDP port. What its program has written before still goes out, as far as there is room.
    pub fn close_datagram(&self, datagram: u64) {
        let _ = self.call(move |inner| {
            while inner.out.has_room() && inner.send_datagram(datagram) {}
            inner.stack.close_datagram(datagram)
        });
    }

    pub fn ping(
        &self,
        host: IpAddr,
        identifier: u16,
        sequence: u16,
        payload: Vec<u8>,
    ) -> Result<(), Failure> {
        self.call(move |inner| inner.stack.ping(host, identifier, sequence, &payload, &mut inner.out))?
    }

    /// Takes what is for others' addresses from now on; associations of datagrams end after `idle`.
    pub fn capture(&self, idle: Nanos) -> Result<(), Failure> {
        self.call(move |inner| inner.stack.capture(idle))
    }

    /// Keeps what a connection that has arrived will need.
    pub fn reserve_arrival(&self, arrival: u64) -> Result<(), Failure> {
        self.call(move |inner| inner.stack.reserve_arrival(arrival))?
    }

    /// Opens a connection that has arrived.
    pub fn accept_arrival(&self, arrival: u64) -> Result<FlowId, Failure> {
        self.call(move |inner| {
            let now = inner.now();
            inner.stack.accept_arrival(now, arrival)
        })?
    }

    /// Refuses a connection that has arrived: with a report, or with a reset.
    pub fn refuse_arrival(&self, arrival: u64, why: Option<Unreachable>) {
        let _ = self.call(move |inner| {
            let now = inner.now();
            inner.stack.refuse_arrival(now, arrival, why, &mut inner.out);
        });
    }

    /// Joins an association with a connected UDP socket.
    pub fn join_association(&self, association: u64, socket: OwnedFd) -> Result<(), Failure> {
        self.call(move |inner| inner.join_association(association, socket))?
    }

    pub fn refuse_association(&self, association: u64, why: Unreachable) {
        let _ = self.call(move |inner| {
            let now = inner.now();
            inner.stack.refuse_association(now, association, why, &mut inner.out);
        });
    }

    pub fn close_association(&self, association: u64) {
        let _ = self.call(move |inner| inner.stack.close_association(association));
    }

    /// Answers an echo request to another's address.
    pub fn answer_echo(
        &self,
        ends: (IpAddr, IpAddr),
        number: (u16, u16),
        payload: Vec<u8>,
    ) -> Result<(), Failure> {
        self.call(move |inner| inner.stack.answer_echo(ends, number, &payload, &mut inner.out))?
    }

    /// Takes the events that wait.
    pub fn events(&self) -> Vec<Event> {
        let mut events = lock(&self.told.events);
        self.told.ready.clear();
        std::mem::take(&mut *events)
    }

    /// Readable while events wait.
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.told.ready.as_fd()
    }

    pub fn statistics(&self) -> Result<Vec<(&'static str, u64)>, Failure> {
        self.call(|inner| inner.stack.statistics())
    }

    /// Resets the flows and ends the thread. Idempotent.
    pub fn close(&self) {
        let Some(thread) = lock(&self.thread).take() else { return };
        let _ = self.call(|inner| inner.running = false);
        // A loop that has panicked is closed all the same.
        let _ = thread.join();
    }

    /// Has the stack's thread look after another loop, too. `InUse` when it has one.
    pub fn take_in(&self, guest: Box<dyn Guest>) -> Result<(), Failure> {
        self.call(move |inner| inner.take_in(guest))?
    }

    /// Has the loop do something and says what came of it.
    fn call<R: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Loop) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        self.turns.call(what).ok_or(Failure::NoDevice)
    }
}

impl Drop for NetStack {
    fn drop(&mut self) {
        self.close();
    }
}

/// The error number of a failure, as the kernel's own stack would give it.
pub fn errno(failure: Failure) -> i32 {
    match failure {
        Failure::Refused => libc::ECONNREFUSED,
        Failure::Reset => libc::ECONNRESET,
        Failure::TimedOut => libc::ETIMEDOUT,
        Failure::HostUnreachable => libc::EHOSTUNREACH,
        Failure::NetworkUnreachable => libc::ENETUNREACH,
        Failure::AddressGone => libc::ENETRESET,
        Failure::NotOwn => libc::EADDRNOTAVAIL,
        Failure::InUse => libc::EADDRINUSE,
        Failure::NoBuffers => libc::ENOBUFS,
        Failure::NoSuch => libc::ENOTCONN,
        Failure::TooLong => libc::EMSGSIZE,
        Failure::NoDevice => libc::ENODEV,
    }
}

/// Has the C library take large buffers from the system and give them back there.
///
/// By itself it moves its limit above the largest buffer freed so far: the next connection's rings
/// would come out of the heap, every page of them written with zeros, and stay in the process.
fn keep_rings_out_of_the_heap() {
    // SAFETY: sets a number in the allocator, which takes its own lock.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BUFFER);
    }
}

/// A lock whose poison is ignored: no invariant spans a panic here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The highest token of a guest's: with its mark it is no other's.
pub const HIGHEST_TOKEN: u64 = (1 << 62) - 2;
#[cfg(target_env = "gnu")]
const LARGE_BUFFER: libc::c_int = 256 * 1024;
