//! Where a connection's sequence numbers and timestamps begin (RFC 6528; RFC 7323, 5.4).
//!
//! Nobody who does not see the connection can guess either, and yet both only ever go up from one connection to the
//! next between the same two ends: who still keeps the last one in TIME-WAIT, ourselves or a kernel, takes what is
//! lower for an old segment, and the new connection would wait a minute for its answer.

use std::net::IpAddr;

use aws_lc_rs::hmac;

use crate::Nanos;
use crate::netstack::segment::Tuple;

pub struct Beginnings {
    key: hmac::Key,
}

impl Beginnings {
    pub fn new(random: &mut dyn FnMut() -> u64) -> Beginnings {
        let key: Vec<u8> = (0..4).flat_map(|_| random().to_be_bytes()).collect();
        Beginnings { key: hmac::Key::new(hmac::HMAC_SHA256, &key) }
    }

    /// For [`crate::netstack::tcp::Parameters`]: the first sequence number in the lower half, in the upper one what is
    /// added to the time in timestamps.
    pub fn seed(&self, now: Nanos, tuple: &Tuple) -> u64 {
        let mut context = hmac::Context::with_key(&self.key);
        for end in [tuple.local, tuple.remote] {
            match end.ip() {
                IpAddr::V4(address) => context.update(&address.octets()),
                IpAddr::V6(address) => context.update(&address.octets()),
            }
            context.update(&end.port().to_be_bytes());
        }
        let tag = context.sign();
        let (mut sequence, mut offset) = ([0; 4], [0; 4]);
        sequence.copy_from_slice(&tag.as_ref()[..4]);
        offset.copy_from_slice(&tag.as_ref()[4..8]);
        let sequence = u32::from_be_bytes(sequence).wrapping_add((now / STEP) as u32);
        u64::from(u32::from_be_bytes(offset)) << 32 | u64::from(sequence)
    }
}

/// As Linux counts: half of the numbers last longer than TIME-WAIT, and a connection has to send more than 15 MB a
/// second to be ahead of them.
const STEP: Nanos = 64;
