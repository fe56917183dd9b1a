//! ginnel's packet machinery.
//!
//! Nothing in this crate does I/O, reads a clock or knows Python: time comes in as [`Nanos`],
//! packets as slices or [`packet::Packet`]s, and whoever must be woken is told through a trait.
//! That is what lets the same code run on a real socket and on a test's virtual time.
#![forbid(unsafe_code)]

pub mod aead;
pub mod bridge;
pub mod cbc;
mod checksum;
pub mod cipher;
pub mod control;
mod counters;
pub mod device;
pub mod epoch;
pub mod fair;
pub mod flow;
pub mod format;
pub mod frame;
pub mod framing;
pub mod header;
pub mod mss;
pub mod netstack;
pub mod offload;
pub mod packet;
pub mod plane;
pub mod queue;
pub mod replay;
#[cfg(test)]
mod seeded;
pub mod socks;

/// Nanoseconds since an origin of the caller's choosing; only differences have a meaning.
pub type Nanos = u64;

/// One second, in [`Nanos`].
pub const SECOND: Nanos = 1_000_000_000;
