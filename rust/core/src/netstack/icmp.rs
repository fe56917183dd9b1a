//! ICMP and ICMPv6: echo, and reports about what we sent.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::wire::{IpProtocol, checksum};

use crate::netstack::Failure;
use crate::netstack::counters::Dropped;
use crate::netstack::ip::{self, Header};
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

/// Emits an echo message.
pub fn emit_echo(
    out: &mut Outbox,
    (source, destination): (IpAddr, IpAddr),
    echo: Echo,
    (identifier, sequence): (u16, u16),
    payload: &[u8],
) {
    let six = source.is_ipv6();
    let kind = if echo == Echo::Request { echo_request(six) } else { echo_reply(six) };
    let [a, b] = identifier.to_be_bytes();
    let [c, d] = sequence.to_be_bytes();
    emit(out, source, destination, [kind, 0], [a, b, c, d], payload);
}

/// The longest echo payload that fits an MTU.
pub fn most_payload(address: IpAddr, mtu: usize) -> usize {
    mtu.saturating_sub(ip::header_len(address) + HEADER)
}

/// Reports that nobody holds the port that `packet` was for.
pub fn emit_port_unreachable(out: &mut Outbox, header: &Header, packet: &[u8]) {
    let (kind, longest) =
        if header.source.is_ipv6() { ([1, 4], LONGEST_IPV6) } else { ([3, 3], LONGEST_IPV4) };
    let room = longest - ip::header_len(header.source) - HEADER;
    let quote = &packet[..packet.len().min(room)];
    emit(out, header.destination, header.source, kind, [0; 4], quote);
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

fn emit(out: &mut Outbox, source: IpAddr, destination: IpAddr, kind: [u8; 2], rest: [u8; 4], payload: &[u8]) {
    let protocol = if source.is_ipv6() { IpProtocol::Icmpv6 } else { IpProtocol::Icmp };
    ip::emit(out, source, destination, protocol, HEADER + payload.len(), |icmp| {
        icmp[..2].copy_from_slice(&kind);
        icmp[2..4].fill(0);
        icmp[4..8].copy_from_slice(&rest);
        icmp[8..].copy_from_slice(payload);
        let sum = !sum(source, destination, icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    });
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

/// The connection that a report is about: it quotes the beginning of our segment. Only TCP matters.
fn quoted(own: IpAddr, quote: &[u8]) -> Option<(Tuple, u32)> {
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
const MOST_PINGS: usize = 1024;
