//! The first bytes of a datagram: opcode and key id, and P_DATA_V2's peer id.

/// What a datagram is, by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Data(Header),
    Control,
    Malformed,
}

/// The header of a data packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; Header::MAX_LEN],
    len: u8,
}

impl Header {
    pub const MAX_LEN: usize = 4;

    /// P_DATA_V1.
    pub fn v1(key_id: u8) -> Header {
        Header { bytes: [P_DATA_V1 << 3 | key_id & KEY_ID_MASK, 0, 0, 0], len: 1 }
    }

    /// P_DATA_V2. The peer id has 24 bits.
    pub fn v2(key_id: u8, peer_id: u32) -> Header {
        let [_, high, middle, low] = peer_id.to_be_bytes();
        Header { bytes: [P_DATA_V2 << 3 | key_id & KEY_ID_MASK, high, middle, low], len: 4 }
    }

    /// Any four bytes, for vectors whose opcode is no data packet's.
    #[cfg(test)]
    pub(crate) fn raw(bytes: [u8; 4]) -> Header {
        Header { bytes, len: 4 }
    }

    pub fn parse(datagram: &[u8]) -> Sort {
        match *datagram {
            [] => Sort::Malformed,
            [first, ..] if first >> 3 == P_DATA_V1 => Sort::Data(Header::v1(first & KEY_ID_MASK)),
            [first, high, middle, low, ..] if first >> 3 == P_DATA_V2 => {
                Sort::Data(Header { bytes: [first, high, middle, low], len: 4 })
            }
            [first, ..] if first >> 3 == P_DATA_V2 => Sort::Malformed,
            _ => Sort::Control,
        }
    }

    /// Whether a datagram is a data packet, by its opcode.
    pub fn is_data(datagram: &[u8]) -> bool {
        datagram.first().is_some_and(|first| matches!(first >> 3, P_DATA_V1 | P_DATA_V2))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }

    pub fn key_id(&self) -> u8 {
        self.bytes[0] & KEY_ID_MASK
    }

    /// The peer id of P_DATA_V2.
    pub fn peer_id(&self) -> Option<u32> {
        let [_, high, middle, low] = self.bytes;
        (self.len == 4).then(|| u32::from_be_bytes([0, high, middle, low]))
    }

    /// Where an AEAD's authenticated data begins: P_DATA_V1's header is not part of it.
    pub fn authenticated_from(&self) -> usize {
        if self.len == 4 { 0 } else { 1 }
    }
}

const P_DATA_V1: u8 = 6;
const P_DATA_V2: u8 = 9;
const KEY_ID_MASK: u8 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_decides() {
        assert_eq!(Header::parse(b""), Sort::Malformed);
        assert_eq!(Header::parse(&[6 << 3 | 2]), Sort::Data(Header::v1(2)));
        assert_eq!(Header::parse(&[9 << 3 | 5, 1, 2, 3, 4]), Sort::Data(Header::v2(5, 0x0001_0203)));
        assert_eq!(Header::parse(&[9 << 3, 1, 2]), Sort::Malformed);
        for opcode in (0..32).filter(|opcode| ![6, 9].contains(opcode)) {
            assert_eq!(Header::parse(&[opcode << 3, 0]), Sort::Control);
        }
    }
}
