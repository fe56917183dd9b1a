//! What OpenVPN's compression puts around inner packets, with nothing ever compressed.
//!
//! Compression inside a VPN gives away contents (VORACLE). A peer that is set up for it still marks
//! each packet, and understands packets that are marked as not compressed. Source: `comp.h`,
//! `compstub.c` of OpenVPN.

use crate::packet::Packet;

/// The room that a mark takes.
pub const FRONT: usize = 2;
pub const BACK: usize = 1;

/// How packets are marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    #[default]
    None,
    /// A byte in front (`comp-lzo`).
    Lzo,
    /// A byte in the place of the first, which goes to the end (`compress`, `compress stub`).
    Stub,
    /// Two bytes in front of a packet that begins as a mark does (`compress stub-v2`).
    StubV2,
}

/// The peer marked the packet as compressed, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed;

impl Framing {
    /// The framing of this name, `""` for none.
    pub fn from_name(name: &str) -> Option<Framing> {
        match name {
            "" => Some(Framing::None),
            "comp-lzo" => Some(Framing::Lzo),
            "stub" => Some(Framing::Stub),
            "stub-v2" => Some(Framing::StubV2),
            _ => None,
        }
    }

    /// Marks a packet, which has [`FRONT`] and [`BACK`] around it. An empty one stays as it is.
    pub fn mark(self, packet: &mut Packet) {
        let Some(&first) = packet.first() else { return };
        match self {
            Framing::None => {}
            Framing::Lzo => {
                packet.grow_front(1);
                packet[0] = UNCOMPRESSED;
            }
            Framing::Stub => {
                let end = packet.len();
                packet.grow_back(1);
                packet[end] = first;
                packet[0] = UNCOMPRESSED_SWAPPED;
            }
            Framing::StubV2 if first == V2_MARK => {
                packet.grow_front(2);
                packet[..2].copy_from_slice(&[V2_MARK, V2_UNCOMPRESSED]);
            }
            Framing::StubV2 => {}
        }
    }

    /// Takes a packet's mark off.
    pub fn unmark(self, packet: &mut Packet) -> Result<(), Compressed> {
        match (self, packet.first(), packet.get(1)) {
            (Framing::None, ..) | (_, None, _) => {}
            (Framing::Lzo, Some(&UNCOMPRESSED), _) => packet.trim_front(1),
            (Framing::Stub, Some(&UNCOMPRESSED_SWAPPED), _) => {
                let last = packet.len() - 1;
                packet[0] = packet[last];
                packet.truncate(last);
            }
            (Framing::StubV2, Some(&V2_MARK), Some(&V2_UNCOMPRESSED)) => packet.trim_front(2),
            (Framing::StubV2, Some(&first), _) if first != V2_MARK => {}
            _ => return Err(Compressed),
        }
        Ok(())
    }
}

const UNCOMPRESSED: u8 = 0xfa;
const UNCOMPRESSED_SWAPPED: u8 = 0xfb;
const V2_MARK: u8 = 0x50;
const V2_UNCOMPRESSED: u8 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Pool;

    #[test]
    fn marks_are_stocks_and_come_off_again() {
        let mut pool = Pool::new(1).local();
        let cases: [(Framing, &[u8], &[u8]); 7] = [
            (Framing::None, &[0x45, 1, 2], &[0x45, 1, 2]),
            (Framing::Lzo, &[0x45, 1, 2], &[0xfa, 0x45, 1, 2]),
            (Framing::Stub, &[0x45, 1, 2], &[0xfb, 1, 2, 0x45]),
            (Framing::Stub, &[0x45], &[0xfb, 0x45]),
            (Framing::StubV2, &[0x45, 1, 2], &[0x45, 1, 2]),
            (Framing::StubV2, &[0x50, 1, 2], &[0x50, 0, 0x50, 1, 2]),
            (Framing::Lzo, &[], &[]),
        ];
        for (framing, content, marked) in cases {
            let mut packet = pool.packet_from(content);
            framing.mark(&mut packet);
            assert_eq!(&packet[..], marked);
            framing.unmark(&mut packet).unwrap();
            assert_eq!(&packet[..], content);
        }
    }

    #[test]
    fn what_is_compressed_is_refused() {
        let mut pool = Pool::new(1).local();
        let compressed: [(Framing, &[u8]); 8] = [
            (Framing::Lzo, &[0x66, 1, 2]),
            (Framing::Lzo, &[0xfb, 1, 2]),
            (Framing::Lzo, &[0x45]),
            (Framing::Stub, &[0x66, 1, 2]),
            (Framing::Stub, &[0x69, 1, 2]),
            (Framing::Stub, &[0xfa, 1, 2]),
            (Framing::StubV2, &[0x50, 1, 2]),
            (Framing::StubV2, &[0x50]),
        ];
        for (framing, content) in compressed {
            assert_eq!(framing.unmark(&mut pool.packet_from(content)), Err(Compressed));
        }
    }
}
