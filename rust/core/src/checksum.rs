//! The Internet checksum (RFC 1071), eight bytes at a step.

use std::net::IpAddr;

/// A sum that takes pieces of even length, and a last one of any length.
#[derive(Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of what TCP and UDP checksums cover beside the packet (RFC 9293, 3.1; RFC 8200, 8.1).
    pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Sum {
        let sum = Sum(u64::from((len as u32).to_be()) + u64::from(u32::from(protocol).to_be()));
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                sum.with(&source.octets()).with(&destination.octets())
            }
            (source, destination) => sum.with(&octets(source)).with(&octets(destination)),
        }
    }

    pub fn with(self, bytes: &[u8]) -> Sum {
        let mut sum = u128::from(self.0);
        let mut words = bytes.chunks_exact(32);
        for block in &mut words {
            let word = |at: usize| u64::from_ne_bytes(block[at..at + 8].try_into().expect("8 of 32 bytes"));
            sum += u128::from(word(0)) + u128::from(word(8)) + u128::from(word(16)) + u128::from(word(24));
        }
        let mut pairs = words.remainder().chunks_exact(2);
        for pair in &mut pairs {
            sum += u128::from(u16::from_ne_bytes([pair[0], pair[1]]));
        }
        if let [last] = pairs.remainder() {
            sum += u128::from(u16::from_ne_bytes([*last, 0]));
        }
        let folded = (sum as u64 as u128) + (sum >> 64);
        Sum((folded as u64).wrapping_add((folded >> 64) as u64))
    }

    /// The checksum's bytes as they stand in a header; 0 over data that contains a right one.
    pub fn finish(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_ne_bytes()
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071, 4.1: the sum two bytes at a time.
    fn plain(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn wide_steps_sum_the_same() {
        let mut seed = 1u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        };
        for len in 0..200 {
            let bytes: Vec<u8> = (0..len).map(|_| if len % 3 == 0 { 0xff } else { next() }).collect();
            assert_eq!(Sum::default().with(&bytes).finish(), plain(&bytes), "{len}");
        }
    }
}
