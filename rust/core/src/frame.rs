//! Where the IP packet lies in what a device carries: at once, or behind an Ethernet header.

use crate::device::Kind;

pub const ETHERNET_HEADER: usize = 14;

/// The place of the IP packet: the beginning on TUN, and on TAP behind the header and its tags (IEEE 802.1Q).
/// `None` for frames that carry something else, or end before.
pub fn network_at(kind: Kind, packet: &[u8]) -> Option<usize> {
    if kind == Kind::Tun {
        return Some(0);
    }
    let mut at = ETHERNET_HEADER;
    for _ in 0..=MOST_TAGS {
        match *packet.get(at - 2..at)?.first_chunk()? {
            IPV4 | IPV6 => return Some(at),
            TAGGED | PROVIDER_TAGGED => at += TAG,
            _ => return None,
        }
    }
    None
}

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const TAGGED: [u8; 2] = [0x81, 0x00];
const PROVIDER_TAGGED: [u8; 2] = [0x88, 0xa8];
const TAG: usize = 4;
const MOST_TAGS: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_behind_what_the_link_needs() {
        let frame = |types: &[u8]| [&[0x60; 12], types].concat();
        assert_eq!(network_at(Kind::Tun, &[]), Some(0));
        assert_eq!(network_at(Kind::Tap, &frame(&[8, 0, 0x45])), Some(14));
        assert_eq!(network_at(Kind::Tap, &frame(&[0x81, 0, 0, 5, 0x86, 0xdd])), Some(18));
        assert_eq!(network_at(Kind::Tap, &frame(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0])), Some(22));
        assert_eq!(network_at(Kind::Tap, &frame(&[8, 6, 0x45])), None);
        assert_eq!(network_at(Kind::Tap, &frame(&[0x81, 0, 0, 5])), None);
        assert_eq!(network_at(Kind::Tap, &[0; 13]), None);
    }
}
