//! Sequence numbers without their wrap.

/// A place in one direction of a connection. It never wraps; its lowest 32 bits count from the
/// initial sequence number.
pub type Position = u64;

/// The 32-bit numbers of one direction.
#[derive(Clone, Copy, Debug)]
pub struct Numbering {
    initial: u32,
}

impl Numbering {
    pub fn new(initial: u32) -> Numbering {
        Numbering { initial }
    }

    /// The number that stands in a header.
    pub fn wire(self, position: Position) -> u32 {
        self.initial.wrapping_add(position as u32)
    }

    /// The position nearest to `near` that a number can mean.
    pub fn position(self, wire: u32, near: Position) -> Position {
        let offset = wire.wrapping_sub(self.wire(near)) as i32;
        near.wrapping_add_signed(i64::from(offset))
    }
}

/// Where the SYN stands: high enough that no number before it is below zero.
pub const SYN: Position = 1 << 32;
/// Where the first byte stands.
pub const FIRST: Position = SYN + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_means_the_nearest_position() {
        for initial in [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX - 5] {
            let numbering = Numbering::new(initial);
            assert_eq!(numbering.wire(SYN), initial);
            for near in [SYN, FIRST, SYN + 0x7fff_0000, SYN + (5 << 32)] {
                for offset in [-0x7fff_ffff, -1, 0, 1, 0x7fff_ffff] {
                    let position = near.wrapping_add_signed(offset);
                    assert_eq!(numbering.position(numbering.wire(position), near), position);
                }
            }
        }
    }
}
