//! Ethernet frames: their header, and the addresses of groups.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::netstack::counters::Dropped;
use crate::packet::Packet;

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// One of the addresses that anybody may take (the locally administered ones), of these bits.
    pub fn local(random: u64) -> Mac {
        let [_, _, mut first, rest @ ..] = random.to_be_bytes();
        first = first & 0xfc | 2;
        Mac([first, rest[0], rest[1], rest[2], rest[3], rest[4]])
    }

    /// Whether this is a group's address, broadcast included.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether a single station can have this address.
    pub fn is_station(self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }

    /// The address of the frames for an IP group or a broadcast (RFC 1112, 6.4; RFC 2464, 7).
    pub fn of_group(group: IpAddr) -> Mac {
        match group {
            IpAddr::V4(group) if group.is_multicast() => {
                let [_, b, c, d] = group.octets();
                Mac([0x01, 0x00, 0x5e, b & 0x7f, c, d])
            }
            IpAddr::V4(_) => Mac::BROADCAST,
            IpAddr::V6(group) => {
                let [.., a, b, c, d] = group.octets();
                Mac([0x33, 0x33, a, b, c, d])
            }
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// Six pairs of hexadecimal digits with colons between them.
impl FromStr for Mac {
    type Err = ();

    fn from_str(text: &str) -> Result<Mac, ()> {
        let mut octets = [0; 6];
        let mut pairs = text.split(':');
        for octet in &mut octets {
            let pair = pairs.next().filter(|pair| pair.len() == 2).ok_or(())?;
            *octet = u8::from_str_radix(pair, 16).map_err(drop)?;
        }
        if pairs.next().is_none() { Ok(Mac(octets)) } else { Err(()) }
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub destination: Mac,
    pub source: Mac,
    pub ethertype: u16,
}

impl Frame {
    /// Reads a frame's header; `None` for what is shorter.
    pub fn of(frame: &[u8]) -> Option<Frame> {
        let [a, b, c, d, e, f, g, h, i, j, k, l, high, low] = *frame.first_chunk::<HEADER>()?;
        Some(Frame {
            destination: Mac([a, b, c, d, e, f]),
            source: Mac([g, h, i, j, k, l]),
            ethertype: u16::from_be_bytes([high, low]),
        })
    }

    /// Writes the header into the first [`HEADER`] bytes of `frame`.
    pub fn emit(&self, frame: &mut [u8]) {
        frame[..6].copy_from_slice(&self.destination.0);
        frame[6..12].copy_from_slice(&self.source.0);
        frame[12..HEADER].copy_from_slice(&self.ethertype.to_be_bytes());
    }
}

/// What a frame for us carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Ip,
    Arp,
}

/// Reads a received frame: the sender, and what stands after the header. `own` is who we are.
pub fn receive(own: Mac, frame: &[u8]) -> Result<(Mac, Content), Dropped> {
    let Frame { destination, source, ethertype } = Frame::of(frame).ok_or(Dropped::Malformed)?;
    if !source.is_station() {
        return Err(Dropped::Malformed);
    }
    if destination != own && !destination.is_group() {
        return Err(Dropped::NotOurMac);
    }
    match (ethertype, frame.get(HEADER).map(|byte| byte >> 4)) {
        (IPV4, Some(4)) | (IPV6, Some(6)) => Ok((source, Content::Ip)),
        (IPV4 | IPV6, _) => Err(Dropped::Malformed),
        (ARP, _) => Ok((source, Content::Arp)),
        (TAGGED | SERVICE_TAGGED | OLD_SERVICE_TAGGED, _) => Err(Dropped::Tagged),
        _ => Err(Dropped::NoProtocol),
    }
}

/// Puts the header before an IP packet.
pub fn enclose(packet: &mut Packet, source: Mac, destination: Mac) {
    let ethertype = if packet[0] >> 4 == 4 { IPV4 } else { IPV6 };
    packet.grow_front(HEADER);
    Frame { destination, source, ethertype }.emit(packet);
}

pub const HEADER: usize = 14;
pub const ARP: u16 = 0x0806;
pub const IPV6: u16 = 0x86dd;
const IPV4: u16 = 0x0800;
/// IEEE 802.1Q, 802.1ad, and what came before the latter.
const TAGGED: u16 = 0x8100;
const SERVICE_TAGGED: u16 = 0x88a8;
const OLD_SERVICE_TAGGED: u16 = 0x9100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_read() {
        let text = "02:00:5e:10:00:ff";
        assert_eq!(text.parse::<Mac>().unwrap().to_string(), text);
        for text in ["", "02:00:5e:10:00", "02:00:5e:10:00:ff:00", "2:00:5e:10:00:ff", "02:00:5e:10:00:fg"] {
            assert!(text.parse::<Mac>().is_err(), "{text:?}");
        }
        assert!(Mac::local(u64::MAX).is_station() && Mac::local(0).is_station());
    }

    #[test]
    fn groups_have_the_addresses_of_their_rfcs() {
        let group = |text: &str| Mac::of_group(text.parse().unwrap()).to_string();
        assert_eq!(group("239.129.2.3"), "01:00:5e:01:02:03");
        assert_eq!(group("255.255.255.255"), "ff:ff:ff:ff:ff:ff");
        assert_eq!(group("ff02::1:ff12:3456"), "33:33:ff:12:34:56");
    }
}
