//! The loop of a network stack: one thread, one epoll, packets on one side and sockets on the other.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use ginnel_core::device::End;
use ginnel_core::netstack::address::{Addresses, unmapped};
use ginnel_core::netstack::counters::Dropped;
use ginnel_core::netstack::ethernet::Mac;
use ginnel_core::netstack::flows::FlowId;
use ginnel_core::netstack::icmp::Unreachable;
use ginnel_core::netstack::neighbours::Row;
use ginnel_core::netstack::outbox::Outbox;
use ginnel_core::netstack::routes::Route;
use ginnel_core::netstack::{Event, Failure, Settled, Stack};
use ginnel_core::packet::{Packet, Pool};
use ginnel_core::queue::Wake;
use ginnel_core::{Nanos, SECOND};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::prompt::take_short_turns;
use crate::splice::{Datagrams, HEADER, Incoming, Moved, Splice};
use crate::wake::Waker;

/// A stack on a thread of its own.
pub struct NetStack {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    /// What others ask of the loop. `None` once it has ended.
    calls: Mutex<Option<Vec<Call>>>,
    wake: Arc<Waker>,
    events: Mutex<Vec<Event>>,
    ready: Waker,
}

type Call = Box<dyn FnOnce(&mut Loop) + Send>;

impl NetStack {
    /// Starts a stack on one end of a device.
    pub fn start(end: End, budget: usize, pool: &Arc<Pool>) -> io::Result<NetStack> {
        keep_rings_out_of_the_heap();
        let shared = Arc::new(Shared {
            calls: Mutex::new(Some(Vec::new())),
            wake: Arc::new(Waker::new()?),
            events: Mutex::new(Vec::new()),
            ready: Waker::new()?,
        });
        let mut inner = Loop::new(end, budget, pool, shared.clone())?;
        let thread = std::thread::Builder::new().name("ginnel-stack".into()).spawn(move || {
            take_short_turns();
            inner.run();
        })?;
        Ok(NetStack { shared, thread: Mutex::new(Some(thread)) })
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
        let mut events = lock(&self.shared.events);
        self.shared.ready.clear();
        std::mem::take(&mut *events)
    }

    /// Readable while events wait.
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.shared.ready.as_fd()
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

    /// Has the loop do something and waits for what comes of it.
    fn call<R: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Loop) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        let (answer, answered): (SyncSender<R>, _) = sync_channel(1);
        let call: Call = Box::new(move |inner| {
            let _ = answer.send(what(inner));
        });
        match &mut *lock(&self.shared.calls) {
            Some(calls) => calls.push(call),
            None => return Err(Failure::NoDevice),
        }
        self.shared.wake.wake();
        answered.recv().map_err(|_| Failure::NoDevice)
    }
}

impl Drop for NetStack {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the thread owns.
struct Loop {
    stack: Stack<Splice, Datagrams>,
    /// `None` once the device is gone.
    end: Option<End>,
    out: Outbox,
    incoming: Vec<Packet>,
    /// The queue may hold more than was taken from it.
    more_incoming: bool,
    /// UDP ports and associations, by their tokens, that have more to send.
    sending: VecDeque<u64>,
    /// The same, for looking up.
    is_sending: HashSet<u64>,
    message: Box<[u8]>,
    epoll: OwnedFd,
    origin: Instant,
    running: bool,
    /// Whether the device was up when it was looked at last.
    was_up: bool,
    shared: Arc<Shared>,
}

impl Loop {
    fn new(end: End, budget: usize, pool: &Arc<Pool>, shared: Arc<Shared>) -> io::Result<Loop> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*shared.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let wake: Arc<dyn Wake> = shared.wake.clone();
        end.incoming().set_reader(Some(wake.clone()));
        end.outgoing().set_writer(Some(wake));
        Ok(Loop {
            stack: Stack::new(end.device().kind(), budget, end.device().mtu() as usize, Box::new(random)),
            was_up: false,
            end: Some(end),
            out: Outbox::new(pool.local()),
            incoming: Vec::with_capacity(BATCH),
            more_incoming: true,
            sending: VecDeque::new(),
            is_sending: HashSet::new(),
            message: vec![0; HEADER + LONGEST_DATAGRAM].into_boxed_slice(),
            epoll,
            origin: Instant::now(),
            running: true,
            shared,
        })
    }

    fn run(&mut self) {
        let mut ready = Vec::with_capacity(BATCH);
        while self.running {
            self.wait(&mut ready);
            self.answer_calls();
            let now = self.now();
            self.learn_room(now);
            self.receive(now);
            self.stack.input_looped(now, &mut self.out);
            self.stack.expire(now, &mut self.out);
            self.send_datagrams(now);
            // Those that are touched again meanwhile have their turn in the next round.
            for _ in 0..self.stack.touched_len() {
                match self.stack.next_touched() {
                    Some(flow) => self.serve(now, flow),
                    None => break,
                }
            }
            self.finish_round();
        }
    }

    fn now(&self) -> Nanos {
        // From one second on: a limit's first fill lies at 0.
        SECOND + self.origin.elapsed().as_nanos() as Nanos
    }

    /// Waits until something happens, and notes what did.
    fn wait(&mut self, ready: &mut Vec<epoll::Event>) {
        let timeout = self.patience();
        ready.clear();
        if epoll::wait(&self.epoll, spare_capacity(ready), timeout.as_ref()).is_err() {
            return;
        }
        for event in ready {
            let (flags, token) = (event.flags, event.data.u64());
            if token == WAKE {
                self.shared.wake.clear();
            } else if token & (DATAGRAM | ASSOCIATION) != 0 {
                self.note_sending(token);
            } else {
                if let Some(flow) = self.stack.flow_mut(token)
                    && let Some(splice) = &mut flow.attachment
                {
                    splice.note(flags);
                }
                self.stack.touch(token);
            }
        }
    }

    fn patience(&self) -> Option<Timespec> {
        let stalled = !self.out.has_room();
        let sending = !self.sending.is_empty() && !stalled;
        let looped = self.stack.has_looped();
        let busy = self.more_incoming || sending || looped || self.stack.touched_len() > 0;
        let wait = if busy { 0 } else { self.stack.next_timer()?.saturating_sub(self.now()) };
        // Rounded up, so that the timer is due when the wait is over.
        let millis = wait.div_ceil(MILLISECOND);
        Some(Timespec { tv_sec: (millis / 1000) as i64, tv_nsec: (millis % 1000 * MILLISECOND) as i64 })
    }

    fn answer_calls(&mut self) {
        let calls = lock(&self.shared.calls).as_mut().map(std::mem::take).unwrap_or_default();
        for call in calls {
            call(self);
        }
    }

    /// Looks again whether the device has room, if somebody waits for that.
    fn learn_room(&mut self, now: Nanos) {
        let Some(end) = &self.end else { return };
        self.stack.set_mtu(end.device().mtu() as usize);
        let was_up = std::mem::replace(&mut self.was_up, end.device().is_up());
        if self.was_up && !was_up {
            self.stack.announce_addresses(&mut self.out);
        }
        if self.stack.is_waiting_for_room() || !self.sending.is_empty() {
            self.stack.flush(now, &mut self.out, end);
            if self.out.has_room() {
                self.stack.resume();
            }
        }
    }

    /// Tells the stations on the link which addresses are ours. While the device is down nobody would hear.
    fn announce(&mut self) {
        if self.was_up {
            self.stack.announce_addresses(&mut self.out);
        }
    }

    fn receive(&mut self, now: Nanos) {
        let Some(end) = &self.end else { return };
        match end.receive(&mut self.incoming, BATCH) {
            Ok(count) => self.more_incoming = count == BATCH,
            Err(_) => {
                self.more_incoming = false;
                self.end = None;
                for splice in self.stack.end_all(now, Failure::NoDevice, &mut self.out) {
                    splice.close(Some(Failure::NoDevice));
                }
            }
        }
        for packet in self.incoming.drain(..) {
            self.stack.input(now, &packet, &mut self.out);
            self.out.pool().recycle(packet);
        }
    }

    /// Moves a flow's bytes, then its packets.
    fn serve(&mut self, now: Nanos, id: FlowId) {
        let Some(flow) = self.stack.flow_mut(id) else { return };
        let moved = match &mut flow.attachment {
            Some(splice) => splice.pump(&mut flow.transport),
            None => Moved::All,
        };
        match moved {
            Moved::Broken => return self.break_off(now, id),
            Moved::Part => self.stack.touch(id),
            Moved::All => {}
        }
        if let Some(Settled::Over { failure, attachment: Some(splice) }) =
            self.stack.settle(now, id, &mut self.out)
        {
            // Whoever sees the socket end must find the event that says why.
            self.publish();
            splice.close(failure);
        }
    }

    /// Ends a flow whose program is gone.
    fn break_off(&mut self, now: Nanos, id: FlowId) {
        let splice = self.stack.abandon(now, id, Failure::Reset, &mut self.out);
        self.publish();
        if let Some(splice) = splice {
            splice.close(None);
        }
    }

    fn send_datagrams(&mut self, now: Nanos) {
        for _ in 0..self.sending.len() {
            let Some(token) = self.sending.pop_front() else { break };
            let mut turn = 0;
            let more = loop {
                if turn == DATAGRAM_TURN || !self.out.has_room() {
                    break true;
                }
                let sent = match token & DATAGRAM {
                    0 => self.answer(now, token & !ASSOCIATION),
                    _ => self.send_datagram(token & !DATAGRAM),
                };
                if !sent {
                    break false;
                }
                turn += 1;
            };
            if more {
                self.sending.push_back(token);
            } else {
                self.is_sending.remove(&token);
            }
        }
    }

    /// Sends one datagram of a program's. `false` when there is none.
    fn send_datagram(&mut self, id: u64) -> bool {
        let Some(messages) = self.stack.datagram_mut(id) else { return false };
        let count = match messages.receive(&mut self.message) {
            Incoming::Message(count) => count,
            Incoming::Nothing => return false,
            Incoming::Ended | Incoming::Refused => {
                self.stack.close_datagram(id);
                return false;
            }
        };
        let message = &self.message[..count];
        let Some((header, payload)) = message.split_first_chunk::<HEADER>() else {
            self.stack.count(Dropped::Unsendable);
            return true;
        };
        let (address, port) = header.split_first_chunk().expect("16 of 18 bytes");
        let remote = SocketAddr::new(unmapped(*address), u16::from_be_bytes([port[0], port[1]]));
        self.stack.send_datagram(id, remote, payload, &mut self.out);
        true
    }

    /// Sends one datagram of the host's back to who is associated with it. `false` when there is none.
    fn answer(&mut self, now: Nanos, id: u64) -> bool {
        let Some(socket) = self.stack.association_mut(id) else { return false };
        match socket.receive(&mut self.message) {
            Incoming::Message(count) => {
                self.stack.answer_association(now, id, &self.message[..count], &mut self.out);
                true
            }
            Incoming::Nothing => false,
            Incoming::Refused => {
                self.stack.report_association(now, id, Unreachable::Port, &mut self.out);
                true
            }
            Incoming::Ended => {
                self.stack.close_association(id);
                false
            }
        }
    }

    fn note_sending(&mut self, token: u64) {
        if self.is_sending.insert(token) {
            self.sending.push_back(token);
        }
    }

    fn finish_round(&mut self) {
        let now = self.now();
        if let Some(end) = &self.end {
            self.stack.flush(now, &mut self.out, end);
        }
        self.publish();
    }

    fn publish(&mut self) {
        let mut events = lock(&self.shared.events);
        let was_empty = events.is_empty();
        self.stack.take_events(&mut events);
        if was_empty && !events.is_empty() {
            self.shared.ready.wake();
        }
    }

    fn attach(&mut self, flow: FlowId, socket: OwnedFd) -> Result<(), Failure> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let splice = Splice::new(socket);
        self.stack.attach(flow, splice).map_err(|_| Failure::NoSuch)?;
        let attached = self.stack.flow_mut(flow).and_then(|flow| flow.attachment.as_ref());
        if let Some(splice) = attached
            && epoll::add(&self.epoll, splice, EventData::new_u64(flow), flags).is_err()
        {
            let now = self.now();
            drop(self.stack.abort(now, flow, &mut self.out));
            return Err(Failure::NoBuffers);
        }
        Ok(())
    }

    fn join_association(&mut self, id: u64, socket: OwnedFd) -> Result<(), Failure> {
        let now = self.now();
        self.stack.join_association(now, id, Datagrams::Connected(socket)).map_err(|_| Failure::NoSuch)?;
        if let Some(socket) = self.stack.association_mut(id)
            && epoll::add(
                &self.epoll,
                &*socket,
                EventData::new_u64(id | ASSOCIATION),
                EventFlags::IN | EventFlags::ET,
            )
            .is_err()
        {
            self.stack.close_association(id);
            return Err(Failure::NoBuffers);
        }
        Ok(())
    }

    fn open_datagram(
        &mut self,
        host: Option<IpAddr>,
        port: u16,
        socket: OwnedFd,
    ) -> Result<(u64, u16), Failure> {
        let (id, port) = self.stack.open_datagram(host, port, Datagrams::Messages(socket))?;
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        if let Some(messages) = self.stack.datagram_mut(id)
            && epoll::add(&self.epoll, &*messages, EventData::new_u64(id | DATAGRAM), flags).is_err()
        {
            self.stack.close_datagram(id);
            return Err(Failure::NoBuffers);
        }
        Ok((id, port))
    }
}

impl Drop for Loop {
    /// Also after a panic: nobody is left waiting, and every program sees its socket end.
    fn drop(&mut self) {
        // Calls that were not answered drop their senders, which tells the callers.
        lock(&self.shared.calls).take();
        if std::thread::panicking() {
            return;
        }
        let now = self.now();
        for splice in self.stack.end_all(now, Failure::NoDevice, &mut self.out) {
            splice.close(Some(Failure::NoDevice));
        }
        self.finish_round();
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

/// A random number from the system.
fn random() -> u64 {
    let mut bytes = [0u8; 8];
    loop {
        // SAFETY: the buffer is ours and as long as is said.
        let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        // So few bytes come whole, or not at all when a signal came first.
        if count == bytes.len() as isize {
            return u64::from_ne_bytes(bytes);
        }
    }
}

/// A lock whose poison is ignored: no invariant spans a panic here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(target_env = "gnu")]
const LARGE_BUFFER: libc::c_int = 256 * 1024;
const BATCH: usize = 256;
const DATAGRAM_TURN: usize = 64;
const LONGEST_DATAGRAM: usize = 65_535;
const MILLISECOND: Nanos = SECOND / 1000;
const WAKE: u64 = u64::MAX;
const DATAGRAM: u64 = 1 << 63;
const ASSOCIATION: u64 = 1 << 62;
