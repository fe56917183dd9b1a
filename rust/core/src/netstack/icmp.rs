//! ICMP and ICMPv6: echo, and reports about what we sent.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::{IpProtocol, checksum};

use crate::netstack::Failure;
use crate::netstack::counters::Dropped;
use crate::netstack::ip::{self, HOP_LIMIT_ON_LINK, Header};
use crate::netstack::ndp::{self, Neighbour};
use crate::netstack::outbox::Outbox;
use crate::netstack::segment::Tuple;

/// A received message that the stack acts on.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    EchoRequest {
        identifier: u16,
        sequence: u16,
        payload: &'a [u8],
    },
    EchoReply {
        identifier: u16,
        sequence: u16,
        payload: &'a [u8],
    },
    /// A segment that we sent with this sequence number did not arrive.
    Report {
        tuple: Tuple,
        sequence: u32,
        problem: Problem,
    },
    /// About the stations on the link.
    Neighbour(Neighbour),
}

/// What a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    Unreachable(Failure),
    TooBig { mtu: usize },
}

/// Reads and checks a received message.
pub fn parse<'a>(header: &Header, packet: &'a [u8]) -> Result<Message<'a>, Dropped> {
    let icmp = &packet[header.payload.clone()];
    let ([kind, code, ..], Some((_, payload))) = (icmp, icmp.split_at_checked(HEADER)) else {
        return Err(Dropped::Malformed);
    };
    if sum(header.source, header.destination, icmp) != !0 {
        return Err(Dropped::Checksum);
    }
    let (identifier, sequence) = (be16(&icmp[4..]), be16(&icmp[6..]));
    let six = header.source.is_ipv6();
    if *kind == echo_request(six) && *code == 0 {
        return Ok(Message::EchoRequest { identifier, sequence, payload });
    }
    if *kind == echo_reply(six) && *code == 0 {
        return Ok(Message::EchoReply { identifier, sequence, payload });
    }
    if six && ndp::is_neighbour(*kind) {
        // Whoever is not on the link has nothing to say about it (RFC 4861, 7.1).
        let sound = header.hop_limit == HOP_LIMIT_ON_LINK;
        let message = Neighbour::parse(icmp).filter(|_| sound);
        return message.map(Message::Neighbour).ok_or(Dropped::Malformed);
    }
    let problem = if six { problem_v6(*kind, *code, icmp) } else { problem_v4(*kind, *code, icmp) };
    let problem = problem.ok_or(Dropped::NoProtocol)?;
    let (tuple, sequence) = quoted(header.destination, payload).ok_or(Dropped::NoProtocol)?;
    Ok(Message::Report { tuple, sequence, problem })
}

/// An echo request or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    Request,
    Reply,
}

/// Emits an echo message, in pieces where the MTU asks for them.
pub fn emit_echo(
    out: &mut Outbox,
    ends: (IpAddr, IpAddr),
    echo: Echo,
    (identifier, sequence): (u16, u16),
    payload: &[u8],
    (mtu, identification): (usize, u32),
) {
    let six = ends.0.is_ipv6();
    let kind = if echo == Echo::Request { echo_request(six) } else { echo_reply(six) };
    let mut message = Vec::with_capacity(HEADER + payload.len());
    message.extend_from_slice(&[kind, 0, 0, 0]);
    message.extend_from_slice(&identifier.to_be_bytes());
    message.extend_from_slice(&sequence.to_be_bytes());
    message.extend_from_slice(payload);
    fill_checksum(ends, &mut message);
    ip::emit_payload(out, ends, protocol(six), &message, (mtu, identification));
}

/// The longest echo payload there can be.
pub fn most_payload(address: IpAddr) -> usize {
    LONGEST_PACKET - ip::header_len(address) - HEADER
}

/// Why a packet does not reach where it was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    Network,
    Host,
    Port,
    /// It may not.
    Prohibited,
}

impl Unreachable {
    /// Type and code (RFC 792, RFC 1122, RFC 1812, 5.2.7.1; RFC 4443, 3.1).
    fn kind(self, six: bool) -> [u8; 2] {
        match (self, six) {
            (Unreachable::Network, false) => [3, 0],
            (Unreachable::Host, false) => [3, 1],
            (Unreachable::Port, false) => [3, 3],
            (Unreachable::Prohibited, false) => [3, 13],
            (Unreachable::Network, true) => [1, 0],
            (Unreachable::Host, true) => [1, 3],
            (Unreachable::Port, true) => [1, 4],
            (Unreachable::Prohibited, true) => [1, 1],
        }
    }
}

/// Reports to its sender what became of `packet`.
pub fn emit_unreachable(out: &mut Outbox, why: Unreachable, packet: &[u8]) {
    let (source, destination) = ip::ends(packet);
    let longest = if source.is_ipv6() { LONGEST_IPV6 } else { LONGEST_IPV4 };
    let room = longest - ip::header_len(source) - HEADER;
    let quote = &packet[..packet.len().min(room)];
    let ends = (destination, source);
    ip::emit(out, destination, source, protocol(source.is_ipv6()), HEADER + quote.len(), |message| {
        message[..HEADER].fill(0);
        message[..2].copy_from_slice(&why.kind(source.is_ipv6()));
        message[HEADER..].copy_from_slice(quote);
        fill_checksum(ends, message);
    });
}

/// Writes a message's checksum.
pub fn fill_checksum((source, destination): (IpAddr, IpAddr), message: &mut [u8]) {
    message[2..4].fill(0);
    let sum = !sum(source, destination, message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// The echo requests whose replies are awaited. A reply to nothing is no event.
#[derive(Default)]
pub struct Pings {
    awaited: HashMap<(IpAddr, u16, u16), u32>,
    order: VecDeque<(IpAddr, u16, u16)>,
}

impl Pings {
    /// Notes a request. The oldest of [`MOST_PINGS`] is forgotten.
    pub fn sent(&mut self, host: IpAddr, identifier: u16, sequence: u16) {
        let key = (host, identifier, sequence);
        *self.awaited.entry(key).or_default() += 1;
        self.order.push_back(key);
        if self.order.len() > MOST_PINGS
            && let Some(oldest) = self.order.pop_front()
            && let Some(count) = self.awaited.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.awaited.remove(&oldest);
            }
        }
    }

    /// Whether a reply was awaited. It is no longer.
    pub fn received(&mut self, host: IpAddr, identifier: u16, sequence: u16) -> bool {
        let key = (host, identifier, sequence);
        let awaited = self.awaited.remove(&key).is_some();
        if awaited {
            self.order.retain(|other| *other != key);
        }
        awaited
    }
}

fn protocol(six: bool) -> IpProtocol {
    if six { IpProtocol::Icmpv6 } else { IpProtocol::Icmp }
}

fn sum(source: IpAddr, destination: IpAddr, icmp: &[u8]) -> u16 {
    if source.is_ipv4() {
        return checksum::data(icmp);
    }
    let len = icmp.len() as u32;
    let pseudo = checksum::pseudo_header(&source.into(), &destination.into(), IpProtocol::Icmpv6, len);
    checksum::combine(&[pseudo, checksum::data(icmp)])
}

fn problem_v4(kind: u8, code: u8, icmp: &[u8]) -> Option<Problem> {
    match (kind, code) {
        (3, 4) => Some(Problem::TooBig { mtu: usize::from(be16(&icmp[6..])) }),
        (3, 0 | 6 | 11) => Some(Problem::Unreachable(Failure::NetworkUnreachable)),
        (3, 2 | 3) => Some(Problem::Unreachable(Failure::Refused)),
        (3, _) | (11, 0) => Some(Problem::Unreachable(Failure::HostUnreachable)),
        _ => None,
    }
}

fn problem_v6(kind: u8, code: u8, icmp: &[u8]) -> Option<Problem> {
    match (kind, code) {
        (2, _) => Some(Problem::TooBig { mtu: u32::from_be_bytes(icmp[4..8].try_into().ok()?) as usize }),
        (1, 0) => Some(Problem::Unreachable(Failure::NetworkUnreachable)),
        (1, 4) => Some(Problem::Unreachable(Failure::Refused)),
        (1, _) | (3, 0) => Some(Problem::Unreachable(Failure::HostUnreachable)),
        _ => None,
    }
}

/// The connection of a segment that we sent, and its sequence number. Only TCP matters.
pub fn quoted(own: IpAddr, quote: &[u8]) -> Option<(Tuple, u32)> {
    let (source, destination, protocol, transport): (IpAddr, IpAddr, u8, &[u8]) = match own {
        IpAddr::V4(_) => {
            let fixed: &[u8; ip::IPV4_HEADER] = quote.first_chunk()?;
            let address = |at: usize| Ipv4Addr::from(be32(&fixed[at..])).into();
            (address(12), address(16), fixed[9], quote.get(usize::from(fixed[0] & 15) * 4..)?)
        }
        IpAddr::V6(_) => {
            let fixed: &[u8; ip::IPV6_HEADER] = quote.first_chunk()?;
            let address = |at: usize| {
                let bytes: [u8; 16] = fixed[at..at + 16].try_into().expect("16 of 40 bytes");
                Ipv6Addr::from(bytes).into()
            };
            (address(8), address(24), fixed[6], &quote[ip::IPV6_HEADER..])
        }
    };
    let ports: &[u8; 8] = transport.first_chunk()?;
    let tuple = Tuple {
        local: SocketAddr::new(source, be16(ports)),
        remote: SocketAddr::new(destination, be16(&ports[2..])),
    };
    (source == own && protocol == u8::from(IpProtocol::Tcp)).then(|| (tuple, be32(&ports[4..])))
}

fn echo_request(six: bool) -> u8 {
    if six { 128 } else { 8 }
}

fn echo_reply(six: bool) -> u8 {
    if six { 129 } else { 0 }
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

const HEADER: usize = 8;
/// How long an error may be (RFC 1812, 4.3.2.3; RFC 4443, 2.4).
const LONGEST_IPV4: usize = 576;
const LONGEST_IPV6: usize = 1280;
const LONGEST_PACKET: usize = 65_535;
const MOST_PINGS: usize = 1024;
