//! The Address Resolution Protocol (RFC 826), for IPv4 over Ethernet.

use std::net::Ipv4Addr;

use crate::netstack::ethernet::{self, Frame, Mac};
use crate::netstack::outbox::Outbox;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Request,
    Reply,
}

/// An ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    pub operation: Operation,
    pub sender: (Mac, Ipv4Addr),
    pub target: (Mac, Ipv4Addr),
}

impl Arp {
    /// Reads what stands after a frame's header. `None` for what is no ARP of this kind.
    pub fn parse(bytes: &[u8]) -> Option<Arp> {
        let bytes: &[u8; LEN] = bytes.first_chunk()?;
        let operation = match bytes.strip_prefix(&ETHERNET_IPV4)? {
            [0, 1, ..] => Operation::Request,
            [0, 2, ..] => Operation::Reply,
            _ => return None,
        };
        let pair = |at: usize| {
            let mac = Mac(bytes[at..at + 6].try_into().expect("6 of 28 bytes"));
            let octets: [u8; 4] = bytes[at + 6..at + 10].try_into().expect("4 of 28 bytes");
            (mac, Ipv4Addr::from(octets))
        };
        Some(Arp { operation, sender: pair(8), target: pair(18) })
    }

    /// Emits a frame with this packet.
    pub fn emit(&self, out: &mut Outbox, destination: Mac) {
        out.emit_frame(ethernet::HEADER + LEN, |frame| {
            let header = Frame { destination, source: self.sender.0, ethertype: ethernet::ARP };
            header.emit(frame);
            let arp = &mut frame[ethernet::HEADER..];
            arp[..6].copy_from_slice(&ETHERNET_IPV4);
            arp[6..8].copy_from_slice(&[0, if self.operation == Operation::Request { 1 } else { 2 }]);
            for (at, (mac, address)) in [(8, self.sender), (18, self.target)] {
                arp[at..at + 6].copy_from_slice(&mac.0);
                arp[at + 6..at + 10].copy_from_slice(&address.octets());
            }
        });
    }
}

/// Asks who has `target`: everybody, or only the station that had it.
pub fn emit_request(out: &mut Outbox, sender: (Mac, Ipv4Addr), target: Ipv4Addr, station: Option<Mac>) {
    let arp = Arp { operation: Operation::Request, sender, target: (Mac([0; 6]), target) };
    arp.emit(out, station.unwrap_or(Mac::BROADCAST));
}

/// Tells everybody whose an address is (RFC 5227, 3).
pub fn emit_announcement(out: &mut Outbox, own: (Mac, Ipv4Addr)) {
    emit_request(out, own, own.1, None);
}

const LEN: usize = 28;
/// Hardware type 1, protocol 0x0800, addresses of 6 and 4 bytes.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
