//! What comes in: to whom it is addressed, what it is, and whom it concerns.

use std::net::IpAddr;

use smoltcp::wire::IpProtocol;

use crate::Nanos;
use crate::netstack::address::is_host;
use crate::netstack::arp::{Arp, Operation};
use crate::netstack::counters::Dropped;
use crate::netstack::ethernet::{self, Content, Mac};
use crate::netstack::flows::{Flow, Stage};
use crate::netstack::icmp::{self, Echo, Message, Problem, Unreachable};
use crate::netstack::ip::{self, Header};
use crate::netstack::ndp::{self, Neighbour};
use crate::netstack::neighbours::Advertisement;
use crate::netstack::outbox::Outbox;
use crate::netstack::segment::{self, Segment, Tuple};
use crate::netstack::tcp::{Connection, Parameters, Phase, Transport};
use crate::netstack::timewait::Verdict;
use crate::netstack::udp::{self, Outlet};
use crate::netstack::{Event, Stack};

/// Whom a packet is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Us,
    /// Us and others.
    Group,
    Another,
}

impl<A, D: Outlet> Stack<A, D> {
    /// Takes a packet or frame from the device.
    pub fn input(&mut self, now: Nanos, packet: &[u8], out: &mut Outbox) {
        self.counters.rx_packets += 1;
        let result = match self.mac() {
            None => self.receive_packet(now, packet, false, out),
            Some(mac) => match ethernet::receive(mac, packet) {
                Ok((_, Content::Ip)) => self.receive_packet(now, &packet[ethernet::HEADER..], false, out),
                Ok((station, Content::Arp)) => self.receive_arp(now, mac, station, packet, out),
                Err(why) => Err(why),
            },
        };
        if let Err(why) = result {
            self.counters.drop(why);
        }
    }

    /// Takes a packet that we have sent to ourselves.
    pub(super) fn input_own(&mut self, now: Nanos, packet: &[u8], out: &mut Outbox) {
        self.counters.looped_packets += 1;
        if let Err(why) = self.receive_packet(now, packet, true, out) {
            self.counters.drop(why);
        }
    }

    fn receive_packet(
        &mut self,
        now: Nanos,
        packet: &[u8],
        own: bool,
        out: &mut Outbox,
    ) -> Result<(), Dropped> {
        let header = ip::parse(packet)?;
        if !own && self.addresses.contains(header.source) {
            return Err(Dropped::Unsupported);
        }
        let Some(fragment) = header.fragment else { return self.receive_whole(now, &header, packet, out) };
        if self.scope(header.destination) == Scope::Another && self.capture.is_none() {
            return Err(Dropped::NoAddress);
        }
        let added = self.fragments.add(now, &header, fragment, packet);
        self.counters.drops(Dropped::Fragments, added.lost);
        let Some(whole) = added.whole else { return Ok(()) };
        let header = ip::parse(&whole)?;
        match header.fragment {
            None => self.receive_whole(now, &header, &whole, out),
            Some(_) => Err(Dropped::Malformed),
        }
    }

    fn receive_whole(
        &mut self,
        now: Nanos,
        header: &Header,
        packet: &[u8],
        out: &mut Outbox,
    ) -> Result<(), Dropped> {
        let scope = self.scope(header.destination);
        // Who has no address yet asks all: whether one is free (RFC 4862, 5.4), or for one.
        let nameless = header.source.is_unspecified() && scope == Scope::Group;
        let told = matches!(header.protocol, IpProtocol::Udp | IpProtocol::Icmpv6);
        if !(is_host(header.source) || nameless && told) {
            return Err(Dropped::Unsupported);
        }
        let packet = &packet[..header.payload.end];
        if scope == Scope::Another {
            return match self.capture {
                Some(_) if is_host(header.destination) => self.receive_captured(now, header, packet, out),
                _ => Err(Dropped::NoAddress),
            };
        }
        match header.protocol {
            IpProtocol::Tcp if scope == Scope::Us => self.receive_segment(now, header, packet, out),
            IpProtocol::Udp => {
                let received = self.ports.receive(&udp::parse(header, packet)?);
                if received == Err(Dropped::NoPort) && scope == Scope::Us && self.may_answer(now) {
                    icmp::emit_unreachable(out, Unreachable::Port, packet);
                }
                received
            }
            IpProtocol::Icmp if header.source.is_ipv4() && scope == Scope::Us => {
                self.receive_icmp(now, header, packet, out)
            }
            IpProtocol::Icmpv6 if header.source.is_ipv6() => self.receive_icmp(now, header, packet, out),
            _ => Err(Dropped::NoProtocol),
        }
    }

    fn scope(&self, destination: IpAddr) -> Scope {
        if self.addresses.contains(destination) {
            return Scope::Us;
        }
        let group = match destination {
            IpAddr::V4(_) => destination.is_multicast() || self.addresses.is_broadcast(destination),
            IpAddr::V6(group) => group.is_multicast(),
        };
        if group { Scope::Group } else { Scope::Another }
    }

    /// Answers who asks for an address of ours, and takes note of who has which (RFC 826).
    fn receive_arp(
        &mut self,
        now: Nanos,
        mac: Mac,
        station: Mac,
        frame: &[u8],
        out: &mut Outbox,
    ) -> Result<(), Dropped> {
        let arp = Arp::parse(&frame[ethernet::HEADER..]).ok_or(Dropped::Malformed)?;
        let ((sender, address), target) = (arp.sender, arp.target.1);
        if sender != station || sender == mac {
            return Err(Dropped::Malformed);
        }
        if self.addresses.contains(address.into()) {
            self.counters.conflicts += 1;
            return Err(Dropped::Unsupported);
        }
        let for_us = self.addresses.contains(target.into());
        let named = is_host(address.into());
        let Some(ethernet) = &mut self.ethernet else { return Err(Dropped::NoProtocol) };
        let neighbours = &mut ethernet.neighbours;
        let mut lost = Vec::new();
        let released = match arp.operation {
            _ if !named => Vec::new(),
            Operation::Reply if for_us && neighbours.is_asked(address.into()) => {
                let told = Advertisement { station: Some(sender), solicited: true, overrides: true };
                neighbours.advertised(now, address.into(), told)
            }
            Operation::Request if for_us => neighbours.heard(now, address.into(), sender, &mut lost),
            // Unasked for, it only renews what is known.
            Operation::Request | Operation::Reply => {
                let told = Advertisement { station: Some(sender), solicited: false, overrides: true };
                neighbours.advertised(now, address.into(), told)
            }
        };
        self.lose(Dropped::Unresolved, lost, out);
        self.release(released, sender, out);
        if for_us && arp.operation == Operation::Request {
            Arp { operation: Operation::Reply, sender: (mac, target), target: arp.sender }.emit(out, sender);
        }
        Ok(())
    }

    /// The same for IPv6 (RFC 4861, 7.2).
    fn receive_neighbour(
        &mut self,
        now: Nanos,
        header: &Header,
        message: Neighbour,
        out: &mut Outbox,
    ) -> Result<(), Dropped> {
        let (Some(mac), IpAddr::V6(asker)) = (self.mac(), header.source) else {
            return Err(Dropped::NoProtocol);
        };
        let Some(ethernet) = &mut self.ethernet else { return Err(Dropped::NoProtocol) };
        match message {
            Neighbour::Solicitation { target, station } => {
                if !self.addresses.contains(target.into()) {
                    return Err(Dropped::NoAddress);
                }
                if let (false, Some(station)) = (asker.is_unspecified(), station) {
                    let mut lost = Vec::new();
                    let released = ethernet.neighbours.heard(now, asker.into(), station, &mut lost);
                    self.lose(Dropped::Unresolved, lost, out);
                    self.release(released, station, out);
                }
                ndp::emit_answer(out, (mac, target), asker);
            }
            Neighbour::Advertisement { target, station, solicited, overrides } => {
                if self.addresses.contains(target.into()) {
                    self.counters.conflicts += 1;
                    return Err(Dropped::Unsupported);
                }
                let told = Advertisement { station, solicited, overrides };
                let released = ethernet.neighbours.advertised(now, target.into(), told);
                if let Some(station) = ethernet.neighbours.station(now, target.into()) {
                    self.release(released, station, out);
                }
            }
        }
        Ok(())
    }

    pub(super) fn receive_segment(
        &mut self,
        now: Nanos,
        header: &Header,
        packet: &[u8],
        out: &mut Outbox,
    ) -> Result<(), Dropped> {
        let segment = segment::parse(header, packet)?;
        if let Some(id) = self.flows.find(&segment.tuple)
            && let Some(flow) = self.flows.get_mut(id)
        {
            let before = flow.transport.phase();
            flow.heard = now;
            flow.transport.input(now, packet, &segment);
            flow.was_reset |= segment.rst && before != Phase::Gone && flow.transport.phase() == Phase::Gone;
            self.flows.touch(id);
            return Ok(());
        }
        match self.time_wait.receive(now, &segment.tuple, &segment) {
            Some(Verdict::Acknowledge(remains)) => {
                if self.may_answer(now) {
                    segment::emit_acknowledgement(out, &segment.tuple, &remains);
                }
                return Ok(());
            }
            Some(Verdict::Ignore) => return Ok(()),
            Some(Verdict::Reopened) | None => {}
        }
        if let Some(result) = self.arrive(now, packet, &segment) {
            return result;
        }
        let local = segment.tuple.local;
        let listening = |host| self.listening.get(&(host, local.port())).copied();
        match listening(Some(local.ip())).or_else(|| listening(None)) {
            Some(listener) if segment.syn && !segment.ack && !segment.rst => {
                self.accept(now, listener, packet, &segment)
            }
            _ => {
                if !segment.rst && self.may_answer(now) {
                    segment::emit_reset(out, &segment);
                }
                Err(Dropped::NoFlow)
            }
        }
    }

    fn accept(&mut self, now: Nanos, id: u64, packet: &[u8], segment: &Segment) -> Result<(), Dropped> {
        if let Some(oldest) = self.flows.crowded_out() {
            self.forget(oldest);
            self.counters.drop(Dropped::HalfOpen);
        }
        let listener = self.listeners.get_mut(id).ok_or(Dropped::NoFlow)?;
        if listener.pending >= listener.backlog {
            return Err(Dropped::Backlog);
        }
        let floor = self.clients.budget(segment.tuple.remote.ip()).floor().ok_or(Dropped::Budget)?;
        listener.pending += 1;
        let seed = self.beginnings.seed(now, &segment.tuple);
        let parameters = Parameters { tuple: segment.tuple, floor, mtu: self.mtu, seed };
        let mut transport = Connection::accept(parameters, now);
        transport.input(now, packet, segment);
        self.flows.insert(Flow::new(segment.tuple, transport, Stage::Accepting(id), now));
        Ok(())
    }

    fn receive_icmp(
        &mut self,
        now: Nanos,
        header: &Header,
        packet: &[u8],
        out: &mut Outbox,
    ) -> Result<(), Dropped> {
        let message = icmp::parse(header, packet)?;
        if let Message::Neighbour(message) = message {
            return self.receive_neighbour(now, header, message, out);
        }
        if !is_host(header.source) {
            return Err(Dropped::Unsupported);
        }
        match message {
            Message::EchoRequest { identifier, sequence, payload } => {
                let own = self.answerer(header).ok_or(Dropped::NoAddress)?;
                if !self.echoes.take(now, self.clients.source(header.source)) {
                    return Err(Dropped::RateLimited);
                }
                let (ends, cut) = ((own, header.source), (self.mtu, self.identification()));
                icmp::emit_echo(out, ends, Echo::Reply, (identifier, sequence), payload, cut);
            }
            Message::EchoReply { identifier, sequence, payload } => {
                let host = header.source;
                if !self.pings.received(host, identifier, sequence) {
                    return Err(Dropped::NoProtocol);
                }
                self.events.push(Event::Pong { host, identifier, sequence, payload: payload.to_vec() });
            }
            Message::Report { tuple, sequence, problem } => self.report(tuple, sequence, problem),
            Message::Neighbour(_) => {}
        }
        Ok(())
    }

    /// The own address that answers what was sent to one, or to a group that we are in.
    fn answerer(&self, header: &Header) -> Option<IpAddr> {
        match header.destination {
            own if self.addresses.contains(own) => Some(own),
            IpAddr::V6(group) if self.addresses.is_in_group(group) => {
                self.addresses.source_for(header.source)
            }
            _ => None,
        }
    }

    /// A report can be forged by whoever guesses the ports: an established connection only ever
    /// takes a lower MTU from it, and one being opened must be quoted with its sequence number.
    pub(super) fn report(&mut self, tuple: Tuple, sequence: u32, problem: Problem) {
        let Some(id) = self.flows.find(&tuple) else { return };
        let Some(flow) = self.flows.get_mut(id) else { return };
        match problem {
            Problem::TooBig { mtu } => flow.transport.lower_mtu(mtu),
            Problem::Unreachable(failure) => {
                let ours = flow.transport.initial_sequence() == Some(sequence);
                if flow.stage == Stage::Connecting && ours {
                    self.end(id, Some(failure));
                }
            }
        }
    }
}
