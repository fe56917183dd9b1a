//! The IP header, in and out.

use std::net::IpAddr;
use std::ops::Range;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet};

use crate::netstack::address::is_host;
use crate::netstack::counters::Dropped;
use crate::netstack::outbox::Outbox;

pub const IPV4_HEADER: usize = 20;
pub const IPV6_HEADER: usize = 40;

/// What the stack reads of an IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: IpProtocol,
    /// Where the payload lies in the packet.
    pub payload: Range<usize>,
}

/// Reads an IP packet's header, and refuses what the stack does not take.
pub fn parse(packet: &[u8]) -> Result<Header, Dropped> {
    let header = match packet.first().map(|byte| byte >> 4) {
        Some(4) => parse_ipv4(packet)?,
        Some(6) => parse_ipv6(packet)?,
        _ => return Err(Dropped::Malformed),
    };
    if is_host(header.source) { Ok(header) } else { Err(Dropped::Unsupported) }
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
    let repr = IpRepr::new(source.into(), destination.into(), protocol, len, HOP_LIMIT);
    out.emit(repr.buffer_len(), |buffer| {
        repr.emit(&mut *buffer, &ChecksumCapabilities::default());
        write(&mut buffer[repr.header_len()..])
    })
}

/// The length of the header that [`emit`] writes.
pub fn header_len(address: IpAddr) -> usize {
    if address.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}

fn parse_ipv4(packet: &[u8]) -> Result<Header, Dropped> {
    let ip = Ipv4Packet::new_checked(packet).map_err(|_| Dropped::Malformed)?;
    if usize::from(ip.header_len()) < IPV4_HEADER {
        return Err(Dropped::Malformed);
    }
    if !ip.verify_checksum() {
        return Err(Dropped::Checksum);
    }
    if ip.more_frags() || ip.frag_offset() != 0 {
        return Err(Dropped::Fragments);
    }
    Ok(Header {
        source: ip.src_addr().into(),
        destination: ip.dst_addr().into(),
        protocol: ip.next_header(),
        payload: usize::from(ip.header_len())..usize::from(ip.total_len()),
    })
}

fn parse_ipv6(packet: &[u8]) -> Result<Header, Dropped> {
    let ip = Ipv6Packet::new_checked(packet).map_err(|_| Dropped::Malformed)?;
    match ip.next_header() {
        IpProtocol::Ipv6Frag => return Err(Dropped::Fragments),
        IpProtocol::HopByHop | IpProtocol::Ipv6Route | IpProtocol::Ipv6Opts => {
            return Err(Dropped::Unsupported);
        }
        _ => {}
    }
    Ok(Header {
        source: ip.src_addr().into(),
        destination: ip.dst_addr().into(),
        protocol: ip.next_header(),
        payload: IPV6_HEADER..ip.total_len(),
    })
}

const HOP_LIMIT: u8 = 64;
