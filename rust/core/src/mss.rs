//! mssfix: makes the TCP connections inside the tunnel announce segments that fit it.
//!
//! Only SYN segments carry the option (RFC 9293). What is malformed is left alone: it is for the
//! receiver to judge.

/// Lowers the MSS option of an IPv4 packet's TCP SYN to `mss`, of an IPv6 packet's to 20 less.
pub fn clamp(packet: &mut [u8], mss: u16) {
    let (segment_at, limit) = match packet.first().map(|byte| byte >> 4) {
        Some(4) => (tcp_in_ipv4(packet), mss),
        Some(6) => (tcp_in_ipv6(packet), mss.saturating_sub(IPV6_HEADER - IPV4_HEADER)),
        _ => return,
    };
    if let Some(at) = segment_at {
        clamp_segment(&mut packet[at..], limit);
    }
}

fn tcp_in_ipv4(packet: &[u8]) -> Option<usize> {
    let header_len = usize::from(packet[0] & 15) * 4;
    if header_len < IPV4_HEADER.into() || packet.len() < header_len {
        return None;
    }
    let first_fragment = read(packet, 6) & 0x1fff == 0;
    (packet[9] == TCP && first_fragment).then_some(header_len)
}

fn tcp_in_ipv6(packet: &[u8]) -> Option<usize> {
    let mut at = usize::from(IPV6_HEADER);
    let mut next = *packet.get(6)?;
    for _ in 0..MAX_EXTENSIONS {
        let start = match next {
            TCP => return (at <= packet.len()).then_some(at),
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT => packet.get(at..at + 8)?,
            _ => return None,
        };
        if next == FRAGMENT && read(start, 2) >> 3 != 0 {
            return None;
        }
        at += if next == FRAGMENT { 8 } else { (usize::from(start[1]) + 1) * 8 };
        next = start[0];
    }
    None
}

fn clamp_segment(segment: &mut [u8], limit: u16) {
    if segment.len() < TCP_HEADER || segment[13] & SYN == 0 {
        return;
    }
    let options_end = usize::from(segment[12] >> 4) * 4;
    if options_end < TCP_HEADER || options_end > segment.len() {
        return;
    }
    let mut at = TCP_HEADER;
    while at + 1 < options_end {
        match (segment[at], usize::from(segment[at + 1])) {
            (OPTION_END, _) => return,
            (OPTION_PADDING, _) => at += 1,
            (OPTION_MSS, 4) if at + 4 <= options_end => return lower(segment, at + 2, limit),
            (_, len) if len >= 2 => at += len,
            _ => return,
        }
    }
}

/// Lowers the number at `at` and brings the checksum up to date (RFC 1624, equation 3).
fn lower(segment: &mut [u8], at: usize, limit: u16) {
    let old = read(segment, at);
    if old <= limit {
        return;
    }
    segment[at..at + 2].copy_from_slice(&limit.to_be_bytes());
    // The checksum adds the words at even places: a number at an odd one lies across two of them.
    let (old, new) = if at.is_multiple_of(2) { (old, limit) } else { (old.swap_bytes(), limit.swap_bytes()) };
    let mut sum = u32::from(!read(segment, CHECKSUM_AT)) + u32::from(!old) + u32::from(new);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    segment[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

fn read(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

const IPV4_HEADER: u16 = 20;
const IPV6_HEADER: u16 = 40;
const TCP_HEADER: usize = 20;
const CHECKSUM_AT: usize = 16;
const SYN: u8 = 2;

const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// More extension headers than any sender uses; an attacker's chain ends here.
const MAX_EXTENSIONS: usize = 8;

const OPTION_END: u8 = 0;
const OPTION_PADDING: u8 = 1;
const OPTION_MSS: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum field's right value, over a segment whose addresses sum to `pseudo`.
    fn checksum(segment: &[u8], pseudo: u32) -> u16 {
        let words = segment.chunks(2).enumerate().filter(|(index, _)| *index != CHECKSUM_AT / 2);
        let sum: u32 =
            words.map(|(_, word)| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
        let mut sum = sum + pseudo;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn syn(options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut segment = vec![0x12, 0x34, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0, SYN, 0xff, 0xff, 0, 0, 0, 0];
        segment[12] = (((TCP_HEADER + options.len()) / 4) << 4) as u8;
        segment.extend_from_slice(options);
        segment.extend_from_slice(payload);
        let sum = checksum(&segment, 0x1_2345);
        segment[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    fn ipv4(segment: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 8, 0, 2, 10, 8, 0, 1];
        packet.extend_from_slice(segment);
        packet
    }

    fn ipv6(first: u8, extensions: &[u8], segment: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV6_HEADER.into()];
        packet[0] = 0x60;
        packet[6] = first;
        packet.extend_from_slice(extensions);
        packet.extend_from_slice(segment);
        packet
    }

    const MSS_1460: [u8; 4] = [2, 4, 0x05, 0xb4];

    #[test]
    fn the_checksum_stays_right_wherever_the_option_lies() {
        let mut random = 12_345u64;
        for round in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let [a, b, c, d, e, f, ..] = random.to_be_bytes();
            let padding = vec![OPTION_PADDING; (a % 5).into()];
            let mut options = [&padding[..], &[2, 4, b, c]].concat();
            options.resize(options.len().next_multiple_of(4), OPTION_END);
            let limit = u16::from_be_bytes([d, e]);
            let mut packet = ipv4(&syn(&options, &[f; 3]));
            clamp(&mut packet, limit);
            let (old, at) = (u16::from_be_bytes([b, c]), 42 + padding.len());
            assert_eq!(read(&packet, at), old.min(limit), "round {round}");
            let (found, right) = (read(&packet[20..], CHECKSUM_AT), checksum(&packet[20..], 0x1_2345));
            // One's complement has two zeros; a receiver takes both.
            assert!(found == right || found ^ right == 0xffff && right % 0xffff == 0, "round {round}");
        }
    }

    #[test]
    fn ipv6_gets_twenty_less_behind_any_extensions() {
        let chains: [(u8, &[u8]); 4] = [
            (TCP, &[]),
            (HOP_BY_HOP, &[TCP, 0, 0, 0, 0, 0, 0, 0]),
            (DESTINATION, &[ROUTING, 0, 0, 0, 0, 0, 0, 0, TCP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (FRAGMENT, &[TCP, 0, 0, 1, 0, 0, 0, 0]),
        ];
        for (first, extensions) in chains {
            let mut packet = ipv6(first, extensions, &syn(&MSS_1460, b""));
            clamp(&mut packet, 1300);
            assert_eq!(read(&packet, 40 + extensions.len() + 22), 1280);
        }
    }

    #[test]
    fn what_is_no_syn_or_malformed_stays_as_it_was() {
        let mut data = syn(&MSS_1460, b"");
        data[13] = 0x10;
        let mut fragment = ipv4(&syn(&MSS_1460, b""));
        fragment[7] = 1;
        let mut udp = ipv4(&syn(&MSS_1460, b""));
        udp[9] = 17;
        let endless = [HOP_BY_HOP, 0, 0, 0, 0, 0, 0, 0].repeat(100);
        let packets = [
            ipv4(&data),
            fragment,
            udp,
            ipv4(&syn(&[3, 0, 2, 4, 5, 0xb4, 0, 0], b"")),
            ipv4(&syn(&[OPTION_END, 2, 4, 5, 0xb4, 0, 0, 0], b"")),
            ipv4(&syn(&[OPTION_PADDING, OPTION_PADDING, 2, 4], &[5, 0xb4])),
            ipv6(HOP_BY_HOP, &endless, &syn(&MSS_1460, b"")),
            ipv6(FRAGMENT, &[TCP, 0, 0, 8, 0, 0, 0, 0], &syn(&MSS_1460, b"")),
        ];
        for packet in packets {
            let mut clamped = packet.clone();
            clamp(&mut clamped, 100);
            assert_eq!(clamped, packet);
        }
    }

    #[test]
    fn no_truncation_or_mutation_panics() {
        let whole = [
            ipv4(&syn(&MSS_1460, b"x")),
            ipv6(DESTINATION, &[TCP, 0, 0, 0, 0, 0, 0, 0], &syn(&MSS_1460, b"")),
        ];
        for packet in whole {
            for len in 0..packet.len() {
                clamp(&mut packet[..len].to_vec(), 100);
                for value in [0, 1, 0x0f, 0x4f, 0x60, 0x80, 0xff] {
                    let mut mutated = packet.clone();
                    mutated[len] = value;
                    clamp(&mut mutated, 100);
                }
            }
        }
    }
}
