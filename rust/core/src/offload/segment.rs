//! Cuts a long packet into those it stands for, as the kernel's own segmentation would
//! (net/ipv4/tcp_offload.c, udp_offload.c), and completes checksums.

use crate::checksum::Sum;
use crate::device::Kind;
use crate::frame::network_at;
use crate::offload::{Gso, Malformed, VnetHeader, at, put, word};
use crate::packet::{LocalPool, Packet};

/// Appends the packets that `long`, of a device of this kind, stands for to `packets`.
pub fn segment(
    kind: Kind,
    header: &VnetHeader,
    long: &[u8],
    pool: &mut LocalPool,
    packets: &mut Vec<Packet>,
) -> Result<(), Malformed> {
    if header.gso == Gso::None {
        return whole(header, long, pool, packets);
    }
    // The link's header stands before each of them, unchanged.
    let (link, long) = long.split_at(network_at(kind, long).ok_or(Malformed)?);
    let start = usize::from(header.checksum_start).checked_sub(link.len()).ok_or(Malformed)?;
    let transport_len = match header.gso {
        Gso::Tcp4 | Gso::Tcp6 => usize::from(long.get(start + at::TCP_FLAGS - 1).ok_or(Malformed)? >> 4) * 4,
        _ => at::UDP_LEN,
    };
    let payload_at = start + transport_len;
    let is_ipv6 = is_ipv6(long, start)?;
    let least = if header.gso == Gso::Udp { at::UDP_LEN } else { at::TCP_LEN };
    let kind_fits = match header.gso {
        Gso::Tcp4 => !is_ipv6,
        Gso::Tcp6 => is_ipv6,
        _ => true,
    };
    if !kind_fits || transport_len < least || header.gso_size == 0 || payload_at >= long.len() {
        return Err(Malformed);
    }
    let (headers, payload) = long.split_at(payload_at);
    let pieces = payload.chunks(header.gso_size.into());
    if pieces.len() > MOST_PIECES {
        return Err(Malformed);
    }
    let last = pieces.len() - 1;
    for (index, piece) in pieces.enumerate() {
        let mut packet = pool.packet(link.len() + payload_at + piece.len());
        let (before, inner) = packet.split_at_mut(link.len());
        before.copy_from_slice(link);
        inner[..payload_at].copy_from_slice(headers);
        inner[payload_at..].copy_from_slice(piece);
        let sum = network(inner, is_ipv6, index as u16, start, header.gso);
        let transport = &mut inner[start..];
        let checksum_at = if header.gso == Gso::Udp {
            let len = transport.len() as u16;
            put(transport, at::UDP_LENGTH, len);
            at::UDP_CHECKSUM
        } else {
            let offset = (index * usize::from(header.gso_size)) as u32;
            number(transport, offset, index == 0, index == last);
            at::TCP_CHECKSUM
        };
        put(transport, checksum_at, 0);
        let checksum = sum.with(transport).finish();
        let checksum = if header.gso == Gso::Udp { non_zero(checksum) } else { checksum };
        transport[checksum_at..checksum_at + 2].copy_from_slice(&checksum);
        packets.push(packet);
    }
    Ok(())
}

/// A packet that is not to be cut; its checksum may be to complete.
fn whole(
    header: &VnetHeader,
    bytes: &[u8],
    pool: &mut LocalPool,
    packets: &mut Vec<Packet>,
) -> Result<(), Malformed> {
    let mut packet = pool.packet_from(bytes);
    if header.needs_checksum {
        let start = usize::from(header.checksum_start);
        let place = start + usize::from(header.checksum_offset);
        if place + 2 > packet.len() {
            pool.recycle(packet);
            return Err(Malformed);
        }
        // The field holds the pseudo header's sum, and so takes part in the sum over all.
        let checksum = Sum::default().with(&packet[start..]).finish();
        packet[place..place + 2].copy_from_slice(&non_zero(checksum));
    }
    packets.push(packet);
    Ok(())
}

/// Whether it is IPv6. Checks that an IP header lies before the transport's, which begins at `start`.
fn is_ipv6(packet: &[u8], start: usize) -> Result<bool, Malformed> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if start >= at::IPV4_LEN && start == usize::from(packet[0] & 15) * 4 => Ok(false),
        Some(6) if start >= at::IPV6_LEN => Ok(true),
        _ => Err(Malformed),
    }
}

/// Sets the IP header of the piece of this index right. Returns the pseudo header's sum.
fn network(packet: &mut [u8], is_ipv6: bool, index: u16, start: usize, gso: Gso) -> Sum {
    let transport_len = packet.len() - start;
    let protocol = if gso == Gso::Udp { at::PROTOCOL_UDP } else { at::PROTOCOL_TCP };
    let len = packet.len() as u16;
    let addresses = if is_ipv6 {
        put(packet, 4, len - at::IPV6_LEN as u16);
        &packet[8..40]
    } else {
        put(packet, 2, len);
        let id = word(packet, 4).wrapping_add(index);
        put(packet, 4, id);
        put(packet, 10, 0);
        let checksum = Sum::default().with(&packet[..start]).finish();
        packet[10..12].copy_from_slice(&checksum);
        &packet[12..20]
    };
    let mut rest = [0; 8];
    rest[..4].copy_from_slice(&(transport_len as u32).to_be_bytes());
    rest[7] = protocol;
    Sum::default().with(addresses).with(&rest)
}

/// Sets the sequence number and the flags of one of several TCP segments.
fn number(transport: &mut [u8], offset: u32, is_first: bool, is_last: bool) {
    let field = &mut transport[at::TCP_SEQUENCE..at::TCP_SEQUENCE + 4];
    let sequence = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
    field.copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
    if !is_last {
        transport[at::TCP_FLAGS] &= !(at::FIN | at::PSH);
    }
    if !is_first {
        transport[at::TCP_FLAGS] &= !at::CWR;
    }
}

/// A checksum of zero would say, in UDP, that there is none; it is the same number as all ones.
fn non_zero(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0, 0] { [0xff, 0xff] } else { checksum }
}

/// As many as the smallest segments that a path may ask for make of 64 KiB.
const MOST_PIECES: usize = 8192;
