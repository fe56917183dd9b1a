//! What a network card does for the kernel, done for its TUN device: one long packet stands for
//! many, and says in a header how it is to be cut.
//!
//! [`segment`] cuts what the kernel sends, [`coalesce`] puts together what it receives.

pub mod coalesce;
pub mod segment;

/// `struct virtio_net_hdr` (linux/virtio_net.h), in the machine's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The transport's checksum field holds the sum over the pseudo header alone.
    pub needs_checksum: bool,
    pub gso: Gso,
    /// Bytes of headers before the payload: a hint.
    pub header_len: u16,
    /// Bytes of payload in each packet that is cut off.
    pub gso_size: u16,
    /// Where the transport's header begins, and where in it the checksum stands.
    pub checksum_start: u16,
    pub checksum_offset: u16,
}

/// How a long packet is to be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    #[default]
    None,
    Tcp4,
    Tcp6,
    /// Datagrams of one flow, over IPv4 or IPv6.
    Udp,
}

/// Not a packet as the header describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl VnetHeader {
    pub const LEN: usize = 10;

    pub fn parse(bytes: &[u8; VnetHeader::LEN]) -> Result<VnetHeader, Malformed> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let gso = match bytes[1] & !ECN {
            0 => Gso::None,
            TCP4 => Gso::Tcp4,
            TCP6 => Gso::Tcp6,
            UDP => Gso::Udp,
            _ => return Err(Malformed),
        };
        Ok(VnetHeader {
            needs_checksum: bytes[0] & NEEDS_CHECKSUM != 0,
            gso,
            header_len: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        })
    }

    pub fn emit(&self) -> [u8; VnetHeader::LEN] {
        let mut bytes = [0; VnetHeader::LEN];
        bytes[0] = if self.needs_checksum { NEEDS_CHECKSUM } else { 0 };
        bytes[1] = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 => TCP4,
            Gso::Tcp6 => TCP6,
            Gso::Udp => UDP,
        };
        let words = [self.header_len, self.gso_size, self.checksum_start, self.checksum_offset];
        for (place, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

const NEEDS_CHECKSUM: u8 = 1;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const UDP: u8 = 5;
const ECN: u8 = 0x80;

/// Where things stand in the headers of IP, TCP and UDP.
mod at {
    pub const IPV4_LEN: usize = 20;
    pub const IPV6_LEN: usize = 40;
    pub const TCP_LEN: usize = 20;
    pub const UDP_LEN: usize = 8;
    pub const TCP_SEQUENCE: usize = 4;
    pub const TCP_FLAGS: usize = 13;
    pub const TCP_CHECKSUM: usize = 16;
    pub const UDP_LENGTH: usize = 4;
    pub const UDP_CHECKSUM: usize = 6;
    pub const FIN: u8 = 1;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const ECE: u8 = 64;
    pub const CWR: u8 = 128;
    pub const PROTOCOL_TCP: u8 = 6;
    pub const PROTOCOL_UDP: u8 = 17;
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, word: u16) {
    bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
mod tests;
