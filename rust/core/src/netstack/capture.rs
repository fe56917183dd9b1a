//! Traffic to addresses that are not ours, taken as if they were: the owner decides what becomes of
//! each connection, each association of datagrams and each echo request (as slirp does).

use std::net::IpAddr;

use smoltcp::wire::IpProtocol;

use crate::Nanos;
use crate::netstack::arrivals::Arrivals;
use crate::netstack::associations::{Associations, State, Taken};
use crate::netstack::counters::Dropped;
use crate::netstack::flows::{Flow, FlowId, Stage};
use crate::netstack::icmp::{self, Echo, Message, Unreachable};
use crate::netstack::ip::Header;
use crate::netstack::outbox::Outbox;
use crate::netstack::segment::{self, Segment};
use crate::netstack::tcp::{Connection, Parameters, Transport};
use crate::netstack::udp::{self, Outlet};
use crate::netstack::{Event, Failure, Stack};

/// What has been captured and not become a flow.
pub(super) struct Capture<D> {
    pub arrivals: Arrivals,
    pub associations: Associations<D>,
}

impl<A, D: Outlet> Stack<A, D> {
    /// Takes what is for others' addresses from now on: an association of datagrams ends after `idle`
    /// without any.
    pub fn capture(&mut self, idle: Nanos) {
        let associations = Associations::new(idle.max(1));
        self.capture.get_or_insert_with(|| Capture { arrivals: Arrivals::new(), associations });
    }

    /// Keeps what a connection that has arrived will need, so that it can be accepted.
    pub fn reserve_arrival(&mut self, arrival: u64) -> Result<(), Failure> {
        let capture = self.capture.as_mut().ok_or(Failure::NoSuch)?;
        let found = capture.arrivals.get_mut(arrival).ok_or(Failure::NoSuch)?;
        if found.floor.is_none() {
            found.floor = self.clients.budget(found.tuple.remote.ip()).floor();
        }
        if found.floor.is_none() {
            self.counters.drop(Dropped::Budget);
            return Err(Failure::NoBuffers);
        }
        Ok(())
    }

    /// Opens a connection that has arrived. It goes on as one of our own: connected or failed. Past the budget it
    /// stays, to be refused.
    pub fn accept_arrival(&mut self, now: Nanos, arrival: u64) -> Result<FlowId, Failure> {
        self.reserve_arrival(arrival)?;
        let capture = self.capture.as_mut().ok_or(Failure::NoSuch)?;
        let taken = capture.arrivals.take(arrival).ok_or(Failure::NoSuch)?;
        let floor = taken.floor.ok_or(Failure::NoBuffers)?;
        let seed = self.beginnings.seed(now, &taken.tuple);
        let parameters = Parameters { tuple: taken.tuple, floor, mtu: self.mtu, seed };
        let mut transport = Connection::accept(parameters, now);
        let header = crate::netstack::ip::parse(&taken.packet).map_err(|_| Failure::NoSuch)?;
        let segment = segment::parse(&header, &taken.packet).map_err(|_| Failure::NoSuch)?;
        transport.input(now, &taken.packet, &segment);
        let mut flow = Flow::new(taken.tuple, transport, Stage::Admitted, now);
        flow.captured = Some(taken.source);
        Ok(self.flows.insert(flow))
    }

    /// Refuses a connection that has arrived: with a report, or with a reset. Harmless for one that is gone.
    pub fn refuse_arrival(&mut self, now: Nanos, arrival: u64, why: Option<Unreachable>, out: &mut Outbox) {
        let Some(capture) = &mut self.capture else { return };
        let Some(taken) = capture.arrivals.take(arrival) else { return };
        capture.arrivals.opened(taken.source);
        self.counters.drop(Dropped::Refused);
        if !self.may_answer(now) {
            return;
        }
        match why {
            Some(why) => icmp::emit_unreachable(out, why, &taken.packet),
            None => {
                let header = crate::netstack::ip::parse(&taken.packet);
                if let Ok(segment) = header.and_then(|header| segment::parse(&header, &taken.packet)) {
                    segment::emit_reset(out, &segment);
                }
            }
        }
    }

    /// Joins an association with where its datagrams go. It comes back where that cannot be.
    pub fn join_association(&mut self, now: Nanos, association: u64, outlet: D) -> Result<(), D> {
        let Some(capture) = &mut self.capture else { return Err(outlet) };
        let lost = capture.associations.join(now, association, outlet)?;
        self.counters.drops(Dropped::DatagramFull, lost);
        Ok(())
    }

    /// Refuses an association: its datagrams are answered with a report for a while.
    pub fn refuse_association(&mut self, now: Nanos, association: u64, why: Unreachable, out: &mut Outbox) {
        let Some(capture) = &mut self.capture else { return };
        let Some(lost) = capture.associations.refuse(now, association, why) else { return };
        self.counters.drops(Dropped::Refused, lost);
        self.report_association(now, association, why, out);
    }

    /// Reports to an association's source that its datagrams do not arrive.
    pub fn report_association(&mut self, now: Nanos, association: u64, why: Unreachable, out: &mut Outbox) {
        let Some(capture) = &self.capture else { return };
        let Some(head) = capture.associations.get(association).map(|found| found.head.clone()) else {
            return;
        };
        if self.may_answer(now) {
            icmp::emit_unreachable(out, why, &head);
        }
    }

    /// Where the datagrams of a joined association go.
    pub fn association_mut(&mut self, association: u64) -> Option<&mut D> {
        self.capture.as_mut()?.associations.outlet_mut(association)
    }

    /// Sends a datagram back to an association's source.
    pub fn answer_association(&mut self, now: Nanos, association: u64, payload: &[u8], out: &mut Outbox) {
        let identification = self.identification();
        let Some(capture) = &mut self.capture else { return };
        capture.associations.answered(now, association);
        let Some(found) = capture.associations.get(association) else { return };
        let (source, destination) = (found.destination, found.source);
        if let Err(why) = udp::emit(out, source, destination, payload, (self.mtu, identification)) {
            self.counters.drop(why);
        }
    }

    /// Ends an association. Returns what it was joined to.
    pub fn close_association(&mut self, association: u64) -> Option<D> {
        let removed = self.capture.as_mut()?.associations.remove(association)?;
        self.events.push(Event::DatagramsEnded { association });
        match removed.state {
            State::Joined(outlet) => Some(outlet),
            State::Undecided(waiting) => {
                self.counters.drops(Dropped::Refused, waiting.len());
                None
            }
            State::Refused(_) => None,
        }
    }

    /// Answers an echo request to another's address.
    pub fn answer_echo(
        &mut self,
        ends: (IpAddr, IpAddr),
        (identifier, sequence): (u16, u16),
        payload: &[u8],
        out: &mut Outbox,
    ) -> Result<(), Failure> {
        if payload.len() > icmp::most_payload(ends.0) {
            return Err(Failure::TooLong);
        }
        let cut = (self.mtu, self.identification());
        icmp::emit_echo(out, ends, Echo::Reply, (identifier, sequence), payload, cut);
        Ok(())
    }

    /// Takes a packet for an address that is not ours.
    pub(super) fn receive_captured(
        &mut self,
        now: Nanos,
        header: &Header,
        packet: &[u8],
        out: &mut Outbox,
    ) -> Result<(), Dropped> {
        match header.protocol {
            IpProtocol::Tcp => self.receive_segment(now, header, packet, out),
            IpProtocol::Udp => self.receive_for_another(now, header, packet, out),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => self.receive_echo_for_another(now, header, packet),
            _ => Err(Dropped::NoProtocol),
        }
    }

    /// Notes a connection to another's address. `None` when this is none, or is known already.
    pub(super) fn arrive(
        &mut self,
        now: Nanos,
        packet: &[u8],
        segment: &Segment,
    ) -> Option<Result<(), Dropped>> {
        let may_begin = self.may_tell();
        if self.addresses.contains(segment.tuple.local.ip()) {
            return None;
        }
        let capture = self.capture.as_mut()?;
        let known = capture.arrivals.find(&segment.tuple);
        if let (Some(arrival), true) = (known, segment.rst) {
            self.withdraw(arrival);
            return Some(Ok(()));
        }
        if !segment.syn || segment.ack || segment.rst {
            return None;
        }
        if known.is_some() {
            return Some(Ok(()));
        }
        let whose = self.clients.source(segment.tuple.remote.ip());
        let added = if may_begin { capture.arrivals.add(now, segment.tuple, whose, packet) } else { None };
        let Some(arrival) = added else { return Some(Err(Dropped::Crowded)) };
        let (source, destination) = (segment.tuple.remote, segment.tuple.local);
        self.events.push(Event::Arrived { arrival, source, destination });
        Some(Ok(()))
    }

    pub(super) fn capture_timer(&self) -> Option<Nanos> {
        let capture = self.capture.as_ref()?;
        [capture.arrivals.next_timer(), capture.associations.next_timer()].into_iter().flatten().min()
    }

    pub(super) fn expire_captured(&mut self, now: Nanos) {
        while let Some(arrival) = self.capture.as_mut().and_then(|capture| capture.arrivals.expired(now)) {
            self.counters.drop(Dropped::Refused);
            self.withdraw(arrival);
        }
        while let Some(id) = self.capture.as_mut().and_then(|capture| capture.associations.expired(now)) {
            self.close_association(id);
        }
    }

    fn withdraw(&mut self, arrival: u64) {
        let Some(capture) = &mut self.capture else { return };
        if let Some(taken) = capture.arrivals.take(arrival) {
            capture.arrivals.opened(taken.source);
            self.events.push(Event::Withdrawn { arrival });
        }
    }

    fn receive_for_another(
        &mut self,
        now: Nanos,
        header: &Header,
        packet: &[u8],
        out: &mut Outbox,
    ) -> Result<(), Dropped> {
        let datagram = udp::parse(header, packet)?;
        let clients = self.may_tell().then_some(&self.clients);
        let capture = self.capture.as_mut().ok_or(Dropped::NoAddress)?;
        let head = &packet[..header.payload.start + UDP_HEADER];
        match capture.associations.receive(now, &datagram, head, clients) {
            Taken::Passed => Ok(()),
            Taken::New(association) => {
                let (source, destination) = (datagram.source, datagram.destination);
                self.events.push(Event::Datagrams { association, source, destination });
                Ok(())
            }
            Taken::Refused(why) => {
                if self.may_answer(now) {
                    icmp::emit_unreachable(out, why, packet);
                }
                Err(Dropped::Refused)
            }
            Taken::Lost(why) => Err(why),
        }
    }

    fn receive_echo_for_another(
        &mut self,
        now: Nanos,
        header: &Header,
        packet: &[u8],
    ) -> Result<(), Dropped> {
        match icmp::parse(header, packet)? {
            Message::EchoRequest { identifier, sequence, payload } => {
                if !self.echoes.take(now, self.clients.source(header.source)) || !self.may_tell() {
                    return Err(Dropped::RateLimited);
                }
                let (source, destination, payload) = (header.source, header.destination, payload.to_vec());
                self.events.push(Event::Echo { source, destination, identifier, sequence, payload });
                Ok(())
            }
            Message::Report { tuple, sequence, problem } => {
                self.report(tuple, sequence, problem);
                Ok(())
            }
            _ => Err(Dropped::NoProtocol),
        }
    }

    /// Whether the owner keeps up with what it is told.
    fn may_tell(&self) -> bool {
        self.untold + self.events.len() < MOST_UNTOLD
    }
}

const UDP_HEADER: usize = 8;
/// Events that the owner has not fetched.
const MOST_UNTOLD: usize = 4096;
