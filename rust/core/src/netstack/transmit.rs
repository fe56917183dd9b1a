//! The last step of a packet's way out: its route, the station that is next, its frame.

use std::net::IpAddr;

use crate::Nanos;
use crate::device::End;
use crate::netstack::counters::Dropped;
use crate::netstack::ethernet::{self, Mac};
use crate::netstack::neighbours::{Due, Neighbours, Row};
use crate::netstack::outbox::Outbox;
use crate::netstack::routes::{Hop, Route};
use crate::netstack::udp::Outlet;
use crate::netstack::{Failure, Problem, Stack, address, arp, icmp, ip, ndp};
use crate::packet::Packet;
use crate::plane::routes::Prefix;

/// What a stack has on an Ethernet link.
pub(super) struct Ethernet {
    pub mac: Mac,
    pub neighbours: Neighbours,
}

/// Why a packet does not simply go to the device.
enum Aside {
    /// It is for ourselves.
    Loop,
    /// The station of this address is not known.
    Unresolved(IpAddr),
    NoRoute,
}

impl<A, D: Outlet> Stack<A, D> {
    /// The own hardware address; `None` on a link without.
    pub fn mac(&self) -> Option<Mac> {
        self.ethernet.as_ref().map(|ethernet| ethernet.mac)
    }

    /// Changes the own hardware address. `false` where there is none.
    pub fn set_mac(&mut self, mac: Mac) -> bool {
        let Some(ethernet) = &mut self.ethernet else { return false };
        ethernet.mac = mac;
        self.addresses.set_link_local(Some(ndp::link_local(mac)));
        self.routes.set_subnets(self.addresses.subnets());
        true
    }

    /// Replaces the routes; `None` for those that go without saying.
    pub fn set_routes(&mut self, routes: Option<Vec<Route>>) {
        self.routes.set(routes);
    }

    /// Adds a route, or replaces the one to the same destination.
    pub fn add_route(&mut self, route: Route) {
        self.routes.add(route);
    }

    /// Removes the route to this destination. Harmless where none was given.
    pub fn remove_route(&mut self, destination: Prefix) {
        self.routes.remove(destination);
    }

    /// The stations known on the link.
    pub fn neighbours(&self, now: Nanos) -> Vec<Row> {
        self.ethernet.as_ref().map(|ethernet| ethernet.neighbours.rows(now)).unwrap_or_default()
    }

    /// Tells the stations on the link which addresses are ours.
    pub fn announce_addresses(&mut self, out: &mut Outbox) {
        let Some(mac) = self.mac() else { return };
        for own in self.addresses.iter() {
            match own {
                IpAddr::V4(own) => arp::emit_announcement(out, (mac, own)),
                IpAddr::V6(own) => ndp::emit_announcement(out, (mac, own)),
            }
        }
    }

    /// Hands what is in the outbox to the device.
    pub fn flush(&mut self, now: Nanos, out: &mut Outbox, end: &End) {
        self.transmit(now, out);
        out.flush(end, &mut self.counters);
    }

    /// Finds every packet in the outbox its way.
    pub fn transmit(&mut self, now: Nanos, out: &mut Outbox) {
        // The second time for the questions that the first has led to: they go to groups.
        for _ in 0..2 {
            for (packet, aside) in self.divert(now, out) {
                match aside {
                    Aside::Loop if self.looped.len() < MOST_LOOPED => self.looped.push_back(packet),
                    Aside::Loop => self.lose(Dropped::Loop, [packet], out),
                    Aside::NoRoute => self.lose(Dropped::NoRoute, [packet], out),
                    Aside::Unresolved(address) => self.wait(now, address, packet, out),
                }
            }
        }
    }

    /// Takes packets that we sent to ourselves, as if they had come in.
    pub fn input_looped(&mut self, now: Nanos, out: &mut Outbox) {
        for packet in std::mem::take(&mut self.looped) {
            self.input_own(now, &packet, out);
            out.pool().recycle(packet);
        }
    }

    pub fn has_looped(&self) -> bool {
        !self.looped.is_empty()
    }

    /// Asks again for stations that have not answered, and gives up those that never do.
    pub(super) fn expire_neighbours(&mut self, now: Nanos, out: &mut Outbox) {
        let Some(ethernet) = &mut self.ethernet else { return };
        for due in ethernet.neighbours.expire(now) {
            match due {
                Due::Ask(address, station) => self.ask(address, station, out),
                Due::Unreachable(packets) => {
                    for packet in &packets {
                        if let Some((tuple, sequence)) = icmp::quoted(ip::ends(packet).0, packet) {
                            let problem = Problem::Unreachable(Failure::HostUnreachable);
                            self.report(tuple, sequence, problem);
                        }
                    }
                    self.lose(Dropped::Unresolved, packets, out);
                }
            }
        }
    }

    /// Sends packets whose station has become known.
    pub(super) fn release(&mut self, packets: Vec<Packet>, station: Mac, out: &mut Outbox) {
        let Some(mac) = self.mac() else { return };
        for mut packet in packets {
            ethernet::enclose(&mut packet, mac, station);
            out.push_frame(packet);
        }
    }

    pub(super) fn lose(&mut self, why: Dropped, packets: impl IntoIterator<Item = Packet>, out: &mut Outbox) {
        for packet in packets {
            self.counters.drop(why);
            out.pool().recycle(packet);
        }
    }

    fn divert(&mut self, now: Nanos, out: &mut Outbox) -> Vec<(Packet, Aside)> {
        let Stack { addresses, routes, ethernet, .. } = self;
        out.divert(|packet| {
            let (_, destination) = ip::ends(packet);
            if addresses.contains(destination) {
                return Some(Aside::Loop);
            }
            let group = address::is_group(destination) || addresses.is_broadcast(destination);
            let hop = match routes.hop(destination) {
                _ if group => destination,
                Some(Hop::Direct) => destination,
                Some(Hop::Gateway(gateway)) => gateway,
                None => return Some(Aside::NoRoute),
            };
            let Some(Ethernet { mac, neighbours }) = ethernet else { return None };
            let station = if group { Some(Mac::of_group(hop)) } else { neighbours.station(now, hop) };
            let Some(station) = station else { return Some(Aside::Unresolved(hop)) };
            ethernet::enclose(packet, *mac, station);
            None
        })
    }

    fn wait(&mut self, now: Nanos, address: IpAddr, packet: Packet, out: &mut Outbox) {
        let Some(ethernet) = &mut self.ethernet else { return };
        let waiting = ethernet.neighbours.wait(now, address, packet);
        self.lose(Dropped::Unresolved, waiting.lost, out);
        if waiting.ask {
            self.ask(address, None, out);
        }
    }

    fn ask(&mut self, address: IpAddr, station: Option<Mac>, out: &mut Outbox) {
        let (Some(mac), Some(own)) = (self.mac(), self.addresses.source_for(address)) else { return };
        match (own, address) {
            (IpAddr::V4(own), IpAddr::V4(target)) => arp::emit_request(out, (mac, own), target, station),
            (IpAddr::V6(own), IpAddr::V6(target)) => {
                ndp::emit_solicitation(out, (mac, own), target, station.is_some());
            }
            _ => {}
        }
    }
}

/// Packets to ourselves that wait for the next round.
const MOST_LOOPED: usize = 1024;
