//! A TCP/IP stack in user space, without I/O.
//!
//! Packets go in one at a time with [`Stack::input`]; what they cause is left in the flows, in the
//! [`Outbox`] and in the events. The owner then goes through the flows that something happened to
//! ([`Stack::next_touched`]), moves their bytes, and has each settled ([`Stack::settle`]). A flow
//! that nothing happens to costs nothing.

pub mod address;
mod arp;
mod arrivals;
mod associations;
mod beginnings;
pub mod budget;
mod capture;
mod clients;
pub mod counters;
pub mod ethernet;
pub mod flows;
mod fragments;
pub mod icmp;
pub mod ip;
pub mod limit;
mod ndp;
pub mod neighbours;
pub mod outbox;
mod receive;
pub mod routes;
pub mod segment;
mod settle;
pub mod slab;
pub mod tcp;
pub mod timewait;
mod transmit;
pub mod udp;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use crate::Nanos;
use crate::device::Kind;
use crate::packet::Packet;
use address::Addresses;
use beginnings::Beginnings;
use budget::Budget;
use capture::Capture;
use clients::{Clients, Source};
use counters::{Counters, Dropped};
use ethernet::Mac;
use flows::{Flow, FlowId, Flows, Stage};
use fragments::Fragments;
use icmp::{Echo, Pings, Problem};
use limit::{Limit, Limits};
use neighbours::Neighbours;
use outbox::Outbox;
use routes::{Hop, Prefix, Routes};
use segment::Tuple;
use slab::Slab;
use tcp::{Connection, Parameters, Transport};
use timewait::TimeWait;
use transmit::Ethernet;
use udp::{Outlet, Ports};

/// Why a connection failed, or a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The peer's host refused the connection.
    Refused,
    /// The peer reset the connection.
    Reset,
    /// The peer was silent for too long.
    TimedOut,
    HostUnreachable,
    /// The network is out of reach, or there is no own address to speak from.
    NetworkUnreachable,
    /// The own address that the connection used is gone.
    AddressGone,
    /// An address that is not one of ours.
    NotOwn,
    /// The port is taken, or none is free.
    InUse,
    /// The memory budget is used up.
    NoBuffers,
    /// The connection, listener or port does not exist, or is already attached.
    NoSuch,
    /// Longer than any packet.
    TooLong,
    /// The device is gone.
    NoDevice,
}

/// What the owner is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Connected {
        flow: FlowId,
        local: SocketAddr,
    },
    Failed {
        flow: FlowId,
        failure: Failure,
    },
    Accepted {
        listener: u64,
        flow: FlowId,
        remote: SocketAddr,
        local: SocketAddr,
    },
    Closed {
        flow: FlowId,
        failure: Option<Failure>,
    },
    Pong {
        host: IpAddr,
        identifier: u16,
        sequence: u16,
        payload: Vec<u8>,
    },
    /// A connection to another's address waits to be accepted or refused.
    Arrived {
        arrival: u64,
        source: SocketAddr,
        destination: SocketAddr,
    },
    /// A connection that had arrived was given up by its source, or nobody decided on it.
    Withdrawn {
        arrival: u64,
    },
    /// Datagrams to another's address wait for somewhere to go.
    Datagrams {
        association: u64,
        source: SocketAddr,
        destination: SocketAddr,
    },
    /// An association has been idle for too long, or was closed.
    DatagramsEnded {
        association: u64,
    },
    /// An echo request to another's address.
    Echo {
        source: IpAddr,
        destination: IpAddr,
        identifier: u16,
        sequence: u16,
        payload: Vec<u8>,
    },
}

/// What has become of a flow.
pub enum Settled<A> {
    /// It goes on; the owner keeps looking after it. `more` when it has more to send than its turn allowed.
    Alive { more: bool },
    /// It is over, and this is what it was joined to.
    Over { failure: Option<Failure>, attachment: Option<A> },
}

struct Listener {
    host: Option<IpAddr>,
    port: u16,
    backlog: usize,
    /// Connections that are half open, or that the owner has not attached.
    pending: usize,
}

/// The stack: `A` is what flows are joined to, `D` where datagrams go.
pub struct Stack<A, D> {
    addresses: Addresses,
    routes: Routes,
    /// What there is on an Ethernet link, and not on a point-to-point one.
    ethernet: Option<Ethernet>,
    /// Packets to ourselves.
    looped: VecDeque<Packet>,
    fragments: Fragments,
    capture: Option<Capture<D>>,
    flows: Flows<Connection, A>,
    waiting_for_room: VecDeque<FlowId>,
    time_wait: TimeWait,
    beginnings: Beginnings,
    listeners: Slab<Listener>,
    listening: HashMap<(Option<IpAddr>, u16), u64>,
    ports: Ports<D>,
    pings: Pings,
    budget: Budget,
    clients: Clients,
    mtu: usize,
    random: Box<dyn FnMut() -> u64 + Send>,
    answers: Limit,
    echoes: Limits<Source>,
    counters: Counters,
    events: Vec<Event>,
    /// Events that were taken and not fetched yet.
    untold: usize,
    /// What the pieces of the last packet that was cut have in common.
    identification: u32,
}

impl<A, D: Outlet> Stack<A, D> {
    /// A stack without addresses, on a device of this kind. `random` must be unpredictable: sequence
    /// numbers and ports come from it.
    pub fn new(
        kind: Kind,
        budget: usize,
        mtu: usize,
        mut random: Box<dyn FnMut() -> u64 + Send>,
    ) -> Stack<A, D> {
        let mac = (kind == Kind::Tap).then(|| Mac::local(random()));
        let mut addresses = Addresses::default();
        addresses.set_link_local(mac.map(ndp::link_local));
        let mut routes = Routes::new(kind == Kind::Tun);
        routes.set_subnets(addresses.subnets());
        let budget = Budget::new(budget);
        Stack {
            addresses,
            routes,
            ethernet: mac.map(|mac| Ethernet { mac, neighbours: Neighbours::default() }),
            looped: VecDeque::new(),
            fragments: Fragments::default(),
            capture: None,
            identification: random() as u32,
            flows: Flows::new(),
            waiting_for_room: VecDeque::new(),
            time_wait: TimeWait::default(),
            beginnings: Beginnings::new(&mut random),
            listeners: Slab::new(),
            listening: HashMap::new(),
            ports: Ports::new(),
            pings: Pings::default(),
            clients: Clients::new(budget.clone()),
            budget,
            mtu,
            random,
            answers: Limit::new(ANSWERS_A_SECOND),
            echoes: Limits::new(ECHOES_A_SECOND),
            counters: Counters::default(),
            events: Vec::new(),
            untold: 0,
        }
    }

    /// Sets the MTU of all datagrams, and of connections; those that are open only ever take a lower one.
    pub fn set_mtu(&mut self, mtu: usize) {
        if mtu < self.mtu {
            for id in self.flows.select(|_| true) {
                if let Some(flow) = self.flows.get_mut(id) {
                    flow.transport.lower_mtu(mtu);
                }
            }
        }
        self.mtu = mtu;
    }

    /// Replaces the own addresses. Flows from one that is gone fail when they are settled next.
    pub fn set_addresses(&mut self, mut addresses: Addresses) {
        addresses.set_link_local(self.addresses.link_local());
        let gone =
            self.flows.select(|flow| flow.captured.is_none() && !addresses.contains(flow.tuple.local.ip()));
        self.routes.set_subnets(addresses.subnets());
        self.addresses = addresses;
        gone.into_iter().for_each(|id| self.flows.touch(id));
    }

    /// The addresses and networks of one who shares the stack with others, for what each may have at a time of memory
    /// and of undecided traffic; none: it is gone.
    pub fn set_client(&mut self, client: u64, prefixes: &[Prefix]) {
        self.clients.set(client, prefixes);
    }

    /// Starts a connection.
    pub fn connect(&mut self, now: Nanos, remote: SocketAddr) -> Result<FlowId, Failure> {
        let local = self.source_for(remote.ip())?;
        if remote.port() == 0 {
            return Err(Failure::Refused);
        }
        let tuple = self.free_tuple(now, local, remote).ok_or(Failure::InUse)?;
        let floor = self.clients.budget(remote.ip()).floor().ok_or(Failure::NoBuffers)?;
        let parameters = Parameters { tuple, floor, mtu: self.mtu, seed: self.beginnings.seed(now, &tuple) };
        let transport = Connection::connect(parameters, now);
        Ok(self.flows.insert(Flow::new(tuple, transport, Stage::Connecting, now)))
    }

    /// Joins a flow that is connected or accepted to something. It comes back where that cannot be.
    pub fn attach(&mut self, flow: FlowId, attachment: A) -> Result<(), A> {
        let Some(found) = self.flows.get_mut(flow) else { return Err(attachment) };
        let joinable = matches!(found.stage, Stage::Accepted(_) | Stage::Established);
        if !joinable || found.attachment.is_some() {
            return Err(attachment);
        }
        found.attachment = Some(attachment);
        let stage = std::mem::replace(&mut found.stage, Stage::Established);
        let captured = found.captured;
        self.leave(stage, captured);
        self.flows.touch(flow);
        Ok(())
    }

    /// Resets a flow and forgets it. Returns what it was joined to.
    pub fn abort(&mut self, now: Nanos, flow: FlowId, out: &mut Outbox) -> Option<A> {
        self.flows.get_mut(flow)?.transport.reset(now, out);
        self.forget(flow)
    }

    /// Resets a flow, and tells its owner why. Returns what it was joined to.
    pub fn abandon(&mut self, now: Nanos, flow: FlowId, failure: Failure, out: &mut Outbox) -> Option<A> {
        self.flows.get_mut(flow)?.transport.reset(now, out);
        match self.end(flow, Some(failure)) {
            Settled::Over { attachment, .. } => attachment,
            Settled::Alive { .. } => None,
        }
    }

    /// Listens. Returns the listener and its port.
    pub fn listen(&mut self, host: Option<IpAddr>, port: u16, backlog: usize) -> Result<(u64, u16), Failure> {
        if host.is_some_and(|host| !self.addresses.contains(host)) {
            return Err(Failure::NotOwn);
        }
        let taken = |listening: &HashMap<_, _>, port| listening.contains_key(&(host, port));
        let port = match port {
            0 => (0..PORT_ATTEMPTS)
                .map(|_| random_port(&mut self.random))
                .find(|port| !taken(&self.listening, *port))
                .ok_or(Failure::InUse)?,
            port if taken(&self.listening, port) => return Err(Failure::InUse),
            port => port,
        };
        let backlog = backlog.clamp(1, LONGEST_BACKLOG);
        let listener = self.listeners.insert_with(|_| Listener { host, port, backlog, pending: 0 });
        self.listening.insert((host, port), listener);
        Ok((listener, port))
    }

    /// Ends a listener. Its connections that were not attached are reset when they are settled next.
    pub fn close_listener(&mut self, listener: u64) {
        let Some(closed) = self.listeners.remove(listener) else { return };
        self.listening.remove(&(closed.host, closed.port));
        let of_it = |stage| matches!(stage, Stage::Accepting(of) | Stage::Accepted(of) if of == listener);
        let orphans = self.flows.select(|flow| of_it(flow.stage));
        orphans.into_iter().for_each(|id| self.flows.touch(id));
    }

    /// Binds a UDP port. Returns its number and the port.
    pub fn open_datagram(
        &mut self,
        host: Option<IpAddr>,
        port: u16,
        outlet: D,
    ) -> Result<(u64, u16), Failure> {
        if host.is_some_and(|host| !self.addresses.contains(host)) {
            return Err(Failure::NotOwn);
        }
        let port = match port {
            0 => (0..PORT_ATTEMPTS)
                .map(|_| random_port(&mut self.random))
                .find(|port| !self.ports.is_bound(host, *port))
                .ok_or(Failure::InUse)?,
            port if self.ports.is_bound(host, port) => return Err(Failure::InUse),
            port => port,
        };
        Ok((self.ports.bind(host, port, outlet), port))
    }

    pub fn close_datagram(&mut self, datagram: u64) -> Option<D> {
        self.ports.close(datagram).map(|datagram| datagram.outlet)
    }

    pub fn datagram_mut(&mut self, datagram: u64) -> Option<&mut D> {
        self.ports.get_mut(datagram).map(|datagram| &mut datagram.outlet)
    }

    /// Sends one datagram from a bound port, or counts why it cannot be sent.
    pub fn send_datagram(&mut self, datagram: u64, remote: SocketAddr, payload: &[u8], out: &mut Outbox) {
        let Some(bound) = self.ports.get(datagram) else { return };
        let (host, port) = (bound.host, bound.port);
        let same_family = |host: &IpAddr| host.is_ipv4() == remote.is_ipv4();
        let source = match host {
            Some(host) => Some(host).filter(|host| same_family(host) && self.addresses.contains(*host)),
            None if self.is_group(remote.ip()) => self.addresses.source_for(remote.ip()),
            None => self.source_for(remote.ip()).ok(),
        };
        let cut = (self.mtu, self.identification());
        let usable = address::is_host(remote.ip()) || self.is_group(remote.ip());
        let sent = match source {
            Some(source) if remote.port() != 0 && usable => {
                udp::emit(out, SocketAddr::new(source, port), remote, payload, cut)
            }
            _ => Err(Dropped::Unsendable),
        };
        if let Err(why) = sent {
            self.counters.drop(why);
        }
    }

    /// Counts a datagram that could not even be read for sending.
    pub fn count(&mut self, why: Dropped) {
        self.counters.drop(why);
    }

    /// Sends an echo request.
    pub fn ping(
        &mut self,
        host: IpAddr,
        identifier: u16,
        sequence: u16,
        payload: &[u8],
        out: &mut Outbox,
    ) -> Result<(), Failure> {
        let source = self.source_for(host)?;
        if payload.len() > icmp::most_payload(host) {
            return Err(Failure::TooLong);
        }
        self.pings.sent(host, identifier, sequence);
        let cut = (self.mtu, self.identification());
        icmp::emit_echo(out, (source, host), Echo::Request, (identifier, sequence), payload, cut);
        Ok(())
    }

    /// When something is due next although nothing came in.
    pub fn next_timer(&self) -> Option<Nanos> {
        let neighbours = self.ethernet.as_ref().and_then(|ethernet| ethernet.neighbours.next_timer());
        let timers = [self.flows.next_timer(), neighbours, self.fragments.next_timer(), self.capture_timer()];
        timers.into_iter().flatten().min()
    }

    /// Touches the flows whose time has come, and does what else is due.
    pub fn expire(&mut self, now: Nanos, out: &mut Outbox) {
        self.flows.expire(now);
        self.expire_neighbours(now, out);
        self.counters.drops(Dropped::Fragments, self.fragments.expire(now));
        self.expire_captured(now);
    }

    /// Touches the flows that could not send for want of room, now that there is some.
    pub fn resume(&mut self) {
        for id in std::mem::take(&mut self.waiting_for_room) {
            if let Some(flow) = self.flows.get_mut(id) {
                flow.waits_for_room = false;
                self.flows.touch(id);
            }
        }
    }

    pub fn is_waiting_for_room(&self) -> bool {
        !self.waiting_for_room.is_empty()
    }

    pub fn touch(&mut self, flow: FlowId) {
        self.flows.touch(flow);
    }

    pub fn next_touched(&mut self) -> Option<FlowId> {
        self.flows.next_touched()
    }

    /// How many flows wait to be settled.
    pub fn touched_len(&self) -> usize {
        self.flows.touched_len()
    }

    pub fn flow_mut(&mut self, flow: FlowId) -> Option<&mut Flow<Connection, A>> {
        self.flows.get_mut(flow)
    }

    /// Resets every flow and tells the owner why. Returns what they were joined to.
    pub fn end_all(&mut self, now: Nanos, failure: Failure, out: &mut Outbox) -> Vec<A> {
        let all = self.flows.select(|_| true);
        all.into_iter().filter_map(|id| self.abandon(now, id, failure, out)).collect()
    }

    /// Moves the events to the end of `events`, in which those wait that nobody has fetched.
    pub fn take_events(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.events);
        self.untold = events.len();
    }

    /// Every number the stack has, by name.
    pub fn statistics(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.counters;
        let mut all = vec![
            ("flows", self.flows.count() as u64),
            ("half_open", self.flows.half_open() as u64),
            ("time_wait", self.time_wait.count() as u64),
            ("listeners", self.listeners.count() as u64),
            ("datagrams", self.ports.count() as u64),
            ("neighbours", self.ethernet.as_ref().map_or(0, |ethernet| ethernet.neighbours.count() as u64)),
            ("fragmented", self.fragments.count() as u64),
            ("arrivals", self.capture.as_ref().map_or(0, |capture| capture.arrivals.count() as u64)),
            ("associations", self.capture.as_ref().map_or(0, |capture| capture.associations.count() as u64)),
            ("buffer_bytes", self.budget.used() as u64),
            ("budget_bytes", self.budget.limit() as u64),
            ("rx_packets", counters.rx_packets),
            ("tx_packets", counters.tx_packets),
            ("looped_packets", counters.looped_packets),
            ("address_conflicts", counters.conflicts),
            ("segments_sent", counters.segments_sent),
            ("retransmits", counters.retransmits),
        ];
        all.extend(Dropped::NAMES.iter().map(|(why, name)| (*name, counters.dropped(*why))));
        all
    }

    /// The own address to speak to `remote` from.
    fn source_for(&self, remote: IpAddr) -> Result<IpAddr, Failure> {
        if self.addresses.contains(remote) {
            return Ok(remote);
        }
        if !address::is_host(remote) || self.addresses.is_broadcast(remote) {
            return Err(Failure::HostUnreachable);
        }
        let hop = self.routes.hop(remote).ok_or(Failure::NetworkUnreachable)?;
        let next = if let Hop::Gateway(gateway) = hop { gateway } else { remote };
        let near = self.addresses.source_for(next).filter(|_| next.is_ipv4() == remote.is_ipv4());
        near.ok_or(Failure::NetworkUnreachable)
    }

    /// Whether datagrams to this address go to many on the link.
    fn is_group(&self, address: IpAddr) -> bool {
        self.ethernet.is_some() && (address.is_multicast() || self.addresses.is_broadcast(address))
    }

    fn identification(&mut self) -> u32 {
        self.identification = self.identification.wrapping_add(1);
        self.identification
    }

    fn free_tuple(&mut self, now: Nanos, local: IpAddr, remote: SocketAddr) -> Option<Tuple> {
        (0..PORT_ATTEMPTS).find_map(|_| {
            let port = random_port(&mut self.random);
            let tuple = Tuple { local: SocketAddr::new(local, port), remote };
            let listening = self.listening.contains_key(&(None, port))
                || self.listening.contains_key(&(Some(local), port));
            let used = self.flows.find(&tuple).is_some() || self.time_wait.contains(now, &tuple);
            (!listening && !used && tuple.local != tuple.remote).then_some(tuple)
        })
    }

    fn may_answer(&mut self, now: Nanos) -> bool {
        let may = self.answers.take(now);
        if !may {
            self.counters.drop(Dropped::RateLimited);
        }
        may
    }
}

fn random_port(random: &mut dyn FnMut() -> u64) -> u16 {
    FIRST_PORT + (random() % u64::from(LAST_PORT - FIRST_PORT + 1)) as u16
}

const FIRST_PORT: u16 = 32768;
const LAST_PORT: u16 = 60999;
const PORT_ATTEMPTS: usize = 1000;
const LONGEST_BACKLOG: usize = 1024;
const ANSWERS_A_SECOND: u64 = 1000;
const ECHOES_A_SECOND: u64 = 1000;

#[cfg(test)]
mod link_tests;
#[cfg(test)]
mod tests;
