//! The IP header, in and out.

use std::net::IpAddr;
use std::ops::Range;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet};

use crate::checksum::Sum;
use crate::netstack::counters::Dropped;
use crate::netstack::outbox::Outbox;

pub const IPV4_HEADER: usize = 20;
pub const IPV6_HEADER: usize = 40;
/// What proves that a packet comes from the same link.
pub const HOP_LIMIT_ON_LINK: u8 = 255;

/// What the stack reads of an IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: IpProtocol,
    pub hop_limit: u8,
    /// Where the payload lies in the packet.
    pub payload: Range<usize>,
    /// What piece of a datagram the payload is, if it is only one.
    pub fragment: Option<Fragment>,
}

/// The place of a piece in its datagram's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub identification: u32,
    pub offset: usize,
    /// Whether another piece follows it.
    pub more: bool,
}

/// Reads an IP packet's header, and refuses what the stack does not take.
pub fn parse(packet: &[u8]) -> Result<Header, Dropped> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => parse_ipv4(packet),
        Some(6) => parse_ipv6(packet),
        _ => Err(Dropped::Malformed),
    }
}

/// Emits a packet with a payload of `len` bytes that `write` fills in.
pub fn emit<R>(
    out: &mut Outbox,
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
    len: usize,
    write: impl FnOnce(&mut [u8]) -> R,
) -> R {
    emit_hop_limit(out, (source, destination), protocol, len, HOP_LIMIT, write)
}

/// Emits a packet with this hop limit.
pub fn emit_hop_limit<R>(
    out: &mut Outbox,
    (source, destination): (IpAddr, IpAddr),
    protocol: IpProtocol,
    len: usize,
    hop_limit: u8,
    write: impl FnOnce(&mut [u8]) -> R,
) -> R {
    let repr = IpRepr::new(source.into(), destination.into(), protocol, len, hop_limit);
    out.emit(repr.buffer_len(), |buffer| {
        repr.emit(&mut *buffer, &ChecksumCapabilities::default());
        write(&mut buffer[repr.header_len()..])
    })
}

/// Emits a payload in one packet, or in as many pieces as the MTU asks for; `identification` is what
/// they have in common.
pub fn emit_payload(
    out: &mut Outbox,
    ends: (IpAddr, IpAddr),
    protocol: IpProtocol,
    payload: &[u8],
    (mtu, identification): (usize, u32),
) {
    let (source, destination) = ends;
    if header_len(destination) + payload.len() <= mtu {
        emit(out, source, destination, protocol, payload.len(), |into| into.copy_from_slice(payload));
        return;
    }
    let fixed = header_len(destination) + if destination.is_ipv6() { FRAGMENT_HEADER } else { 0 };
    let most = (mtu.saturating_sub(fixed) / FRAGMENT_UNIT).max(1) * FRAGMENT_UNIT;
    for (number, piece) in payload.chunks(most).enumerate() {
        let offset = number * most;
        let more = offset + piece.len() < payload.len();
        let fragment = Fragment { identification, offset, more };
        if destination.is_ipv4() {
            emit_fragment_v4(out, ends, protocol, fragment, piece);
        } else {
            emit_fragment_v6(out, ends, protocol, fragment, piece);
        }
    }
}

/// The length of the header that [`emit`] writes.
pub fn header_len(address: IpAddr) -> usize {
    if address.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}

/// The addresses of a packet that we made.
pub fn ends(packet: &[u8]) -> (IpAddr, IpAddr) {
    let v4 = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).expect("4 bytes").into();
    let v6 = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).expect("16 bytes").into();
    if packet[0] >> 4 == 4 { (v4(12), v4(16)) } else { (v6(8), v6(24)) }
}

fn parse_ipv4(packet: &[u8]) -> Result<Header, Dropped> {
    let ip = Ipv4Packet::new_checked(packet).map_err(|_| Dropped::Malformed)?;
    if usize::from(ip.header_len()) < IPV4_HEADER {
        return Err(Dropped::Malformed);
    }
    if !ip.verify_checksum() {
        return Err(Dropped::Checksum);
    }
    let (more, offset) = (ip.more_frags(), usize::from(ip.frag_offset()));
    let fragment =
        (more || offset != 0).then(|| Fragment { identification: ip.ident().into(), offset, more });
    Ok(Header {
        source: ip.src_addr().into(),
        destination: ip.dst_addr().into(),
        protocol: ip.next_header(),
        hop_limit: ip.hop_limit(),
        payload: usize::from(ip.header_len())..usize::from(ip.total_len()),
        fragment,
    })
}

fn parse_ipv6(packet: &[u8]) -> Result<Header, Dropped> {
    let ip = Ipv6Packet::new_checked(packet).map_err(|_| Dropped::Malformed)?;
    let mut header = Header {
        source: ip.src_addr().into(),
        destination: ip.dst_addr().into(),
        protocol: ip.next_header(),
        hop_limit: ip.hop_limit(),
        payload: IPV6_HEADER..ip.total_len(),
        fragment: None,
    };
    for position in 0..MOST_EXTENSIONS {
        let rest = &packet[header.payload.clone()];
        let skipped = match header.protocol {
            IpProtocol::HopByHop if position > 0 => return Err(Dropped::Malformed),
            IpProtocol::HopByHop | IpProtocol::Ipv6Opts => skip_options(rest)?,
            IpProtocol::Ipv6Route => skip_routing(rest)?,
            IpProtocol::Ipv6Frag => {
                let bytes: &[u8; FRAGMENT_HEADER] = rest.first_chunk().ok_or(Dropped::Malformed)?;
                let place = u16::from_be_bytes([bytes[2], bytes[3]]);
                let (offset, more) = (usize::from(place & !7), place & 1 != 0);
                let identification = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                header.protocol = bytes[0].into();
                header.payload.start += FRAGMENT_HEADER;
                if more || offset != 0 {
                    // What follows is only a piece, of extension headers perhaps.
                    header.fragment = Some(Fragment { identification, offset, more });
                    return Ok(header);
                }
                continue;
            }
            _ => return Ok(header),
        };
        header.protocol = rest[0].into();
        header.payload.start += skipped;
    }
    Err(Dropped::Unsupported)
}

/// The length of a header of options, of which none asks not to be skipped (RFC 8200, 4.2).
fn skip_options(bytes: &[u8]) -> Result<usize, Dropped> {
    let len = extension_len(bytes)?;
    let mut options = &bytes[2..len];
    while let [kind, rest @ ..] = options {
        if *kind == PAD1 {
            options = rest;
            continue;
        }
        let [size, rest @ ..] = rest else { return Err(Dropped::Malformed) };
        options = rest.get(usize::from(*size)..).ok_or(Dropped::Malformed)?;
        if kind & MUST_BE_KNOWN != 0 {
            return Err(Dropped::Unsupported);
        }
    }
    Ok(len)
}

/// The length of a routing header that leads no further (RFC 8200, 4.4).
fn skip_routing(bytes: &[u8]) -> Result<usize, Dropped> {
    let len = extension_len(bytes)?;
    if bytes[3] == 0 { Ok(len) } else { Err(Dropped::Unsupported) }
}

fn extension_len(bytes: &[u8]) -> Result<usize, Dropped> {
    let len = 8 + 8 * usize::from(*bytes.get(1).ok_or(Dropped::Malformed)?);
    if bytes.len() >= len { Ok(len) } else { Err(Dropped::Malformed) }
}

fn emit_fragment_v4(
    out: &mut Outbox,
    (source, destination): (IpAddr, IpAddr),
    protocol: IpProtocol,
    fragment: Fragment,
    piece: &[u8],
) {
    emit(out, source, destination, protocol, piece.len(), |into| into.copy_from_slice(piece));
    out.amend_last(|packet| {
        packet[4..6].copy_from_slice(&(fragment.identification as u16).to_be_bytes());
        let more = if fragment.more { MORE_FRAGMENTS } else { 0 };
        packet[6..8].copy_from_slice(&((fragment.offset / FRAGMENT_UNIT) as u16 | more).to_be_bytes());
        fill_checksum_v4(packet);
    });
}

fn emit_fragment_v6(
    out: &mut Outbox,
    (source, destination): (IpAddr, IpAddr),
    protocol: IpProtocol,
    fragment: Fragment,
    piece: &[u8],
) {
    emit(out, source, destination, IpProtocol::Ipv6Frag, FRAGMENT_HEADER + piece.len(), |into| {
        let (header, content) = into.split_at_mut(FRAGMENT_HEADER);
        header[..2].copy_from_slice(&[protocol.into(), 0]);
        header[2..4].copy_from_slice(&(fragment.offset as u16 | u16::from(fragment.more)).to_be_bytes());
        header[4..].copy_from_slice(&fragment.identification.to_be_bytes());
        content.copy_from_slice(piece);
    });
}

/// Writes the checksum of an IPv4 header without options.
pub fn fill_checksum_v4(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = Sum::default().with(&packet[..IPV4_HEADER]).finish();
    packet[10..12].copy_from_slice(&sum);
}

/// The unit in which pieces lie in their datagram.
pub const FRAGMENT_UNIT: usize = 8;
const FRAGMENT_HEADER: usize = 8;
const MORE_FRAGMENTS: u16 = 0x2000;
const HOP_LIMIT: u8 = 64;
const MOST_EXTENSIONS: usize = 8;
const PAD1: u8 = 0;
/// An option of which one bit or the other is set is not to be skipped by who does not know it.
const MUST_BE_KNOWN: u8 = 0xc0;
