//! TCP (RFC 9293). The rest of the stack sees [`Transport`].
//!
//! [`connection`] has the states and takes and makes segments; [`sender`] and [`receiver`] are its
//! halves. Below them, a subject a file: what is out ([`scoreboard`]), what of it is lost
//! ([`recovery`]), how much may be out and how fast ([`bbr`], by [`delivery`]), and for how
//! long ([`rtt`]).

mod bbr;
mod buffer;
mod connection;
mod delivery;
mod input;
mod options;
mod output;
mod ranges;
mod receiver;
mod recovery;
mod rtt;
mod scoreboard;
mod sender;
mod sequence;

pub use connection::Connection;

use crate::Nanos;
use crate::netstack::budget::Floor;
use crate::netstack::outbox::Outbox;
use crate::netstack::segment::{Segment, Tuple};
use crate::netstack::timewait::Remains;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Our SYN is out.
    Connecting,
    /// A SYN came in, and ours is out.
    Accepting,
    /// Bytes may flow at least one way, or wait for their acknowledgement.
    Open,
    /// Both sides have ended; only the peer may not know yet.
    Lingering,
    /// Over. Bytes that came in may still wait to be read.
    Gone,
}

/// What is fixed when a connection begins.
pub struct Parameters {
    pub tuple: Tuple,
    /// What the connection may use for certain; the budget behind it gives the rest.
    pub floor: Floor,
    /// The longest IP packet, at least 68.
    pub mtu: usize,
    /// From [`crate::netstack::beginnings`].
    pub seed: u64,
}

/// One TCP connection: segments on one side, bytes on the other.
pub trait Transport: Sized {
    /// A connection to open: the first [`Transport::output`] sends the SYN.
    fn connect(parameters: Parameters, now: Nanos) -> Self;

    /// A connection that the SYN in the first [`Transport::input`] opens.
    fn accept(parameters: Parameters, now: Nanos) -> Self;

    /// Takes a received IP packet, whose segment has been checked to be for this connection.
    /// What it calls for comes with the next [`Transport::output`], once for a whole batch.
    fn input(&mut self, now: Nanos, packet: &[u8], segment: &Segment);

    /// Emits at most one packet. Returns whether it did.
    fn output(&mut self, now: Nanos, out: &mut Outbox) -> bool;

    /// When [`Transport::output`] will have something to do without anything coming in.
    fn deadline(&self, now: Nanos) -> Option<Nanos>;

    fn phase(&self) -> Phase;

    /// Lets `take` read received bytes that lie in one piece; it returns how many are done with.
    fn read<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R>;

    /// How many received bytes wait to be read.
    fn readable(&self) -> usize;

    fn has_peer_finished(&self) -> bool;

    /// Whether the peer has ended its side and all its bytes have been read.
    fn is_drained(&self) -> bool {
        self.has_peer_finished() && self.readable() == 0
    }

    /// Lets `fill` write bytes to send into free space in one piece; it returns how many.
    fn write<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R>;

    /// How many bytes can be written.
    fn writable(&self) -> usize;

    /// Whether the peer owes an acknowledgement, or one will be owed as soon as it can be sent for.
    fn is_waiting(&self) -> bool;

    /// Ends our side after the bytes written so far.
    fn finish(&mut self);

    /// Ends the connection with a reset.
    fn reset(&mut self, now: Nanos, out: &mut Outbox);

    /// Takes a lower MTU from now on.
    fn lower_mtu(&mut self, mtu: usize);

    /// The sequence number of our SYN, once it is sent.
    fn initial_sequence(&self) -> Option<u32>;

    /// What TIME-WAIT needs, once the peer's FIN has been acknowledged in [`Phase::Lingering`].
    fn remains(&self) -> Option<Remains>;

    /// Takes the counts since the last call: segments sent, retransmissions among them.
    fn take_counts(&mut self) -> (u64, u64);
}

#[cfg(test)]
mod tests;
