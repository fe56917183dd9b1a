//! Which flow a packet belongs to.

use crate::device::Kind;
use crate::frame::{ETHERNET_HEADER, network_at};

/// The same number for all packets of a flow, by FNV-1a: addresses, protocol and ports, of an echo its identifier.
/// Pieces of a datagram that was cut have no ports. Which flows share a number depends on the `seed`.
pub fn flow_hash(kind: Kind, packet: &[u8], seed: u32) -> u32 {
    let Some(at) = network_at(kind, packet) else {
        return fnv(seed, &[packet.get(..ETHERNET_HEADER)]);
    };
    let ip = &packet[at..];
    let (addresses, protocol, transport) = match ip.first().map(|byte| byte >> 4) {
        Some(4) if ip.len() >= 20 && [ip[6] & 0x3f, ip[7]] != [0, 0] => (12..20, 9, None),
        Some(4) => (12..20, 9, Some(usize::from(ip[0] & 15) * 4)),
        Some(6) => (8..40, 6, Some(40)),
        _ => return seed,
    };
    let ports = transport.and_then(|at| match (ip.get(protocol)?, ip.get(at)?) {
        (&(TCP | UDP | ESP | DCCP | SCTP | UDP_LITE), _) => ip.get(at..at + 4),
        (&ICMP, 0 | 8) | (&ICMPV6, 128 | 129) => ip.get(at + 4..at + 6),
        _ => None,
    });
    fnv(seed, &[ip.get(addresses), ip.get(protocol..=protocol), ports])
}

fn fnv(seed: u32, pieces: &[Option<&[u8]>]) -> u32 {
    let bytes = pieces.iter().copied().flatten().flatten();
    bytes.fold(0x811c_9dc5 ^ seed, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ESP: u8 = 50;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(packet: &[u8]) -> u32 {
        flow_hash(Kind::Tun, packet, 7)
    }

    /// A packet all of zeros but for the first byte and these.
    fn packet(len: usize, set: &[(usize, u8)]) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = if len == 28 { 0x45 } else { 0x60 };
        set.iter().for_each(|&(at, value)| packet[at] = value);
        packet
    }

    #[test]
    fn a_flow_is_its_addresses_protocol_and_ports() {
        for (base, same, different) in [
            (packet(28, &[(9, UDP)]), &[1, 4, 8, 10, 26][..], &[9, 12, 19, 20, 23][..]),
            (packet(48, &[(6, TCP)]), &[1, 4, 7, 44], &[6, 8, 39, 40, 43]),
            // An echo: its identifier, and neither its checksum nor its number.
            (packet(28, &[(9, ICMP), (20, 8)]), &[22, 23, 26, 27], &[12, 24, 25]),
            (packet(48, &[(6, ICMPV6), (40, 128)]), &[42, 43, 46, 47], &[8, 44, 45]),
            (packet(28, &[(9, ICMP), (20, 3)]), &[21, 22, 24], &[12]),
            // A piece of a datagram: what is at the ports' place may be anything.
            (packet(28, &[(9, UDP), (7, 1)]), &[20, 23], &[12, 9]),
            (packet(28, &[(9, UDP), (6, 0x20)]), &[20, 23], &[12, 9]),
        ] {
            for (places, is_same) in [(same, true), (different, false)] {
                for &at in places {
                    let mut other = base.clone();
                    other[at] ^= 0x80;
                    assert_eq!(hash(&other) == hash(&base), is_same, "byte {at} of {base:?}");
                }
            }
            assert_ne!(flow_hash(Kind::Tun, &base, 8), hash(&base));
            let ethertype = if base[0] == 0x45 { [8, 0] } else { [0x86, 0xdd] };
            let frame = [&[0; 12], &ethertype[..], &base].concat();
            assert_eq!(flow_hash(Kind::Tap, &frame, 7), hash(&base));
            for len in 0..base.len() {
                hash(&base[..len]);
            }
        }
    }
}
