//! What the stack counts.

/// Why a packet, a datagram or a connection went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Received and not a whole IP packet, or its transport header does not fit in it.
    Malformed,
    /// Received with a wrong checksum.
    Checksum,
    /// Received from a source that no host can have, or with IPv6 options that must not be skipped.
    Unsupported,
    /// Received, and a piece of a datagram whose others did not come in time, or do not fit it.
    Fragments,
    /// A frame for another station.
    NotOurMac,
    /// A frame of a virtual LAN.
    Tagged,
    /// Received for an address that is not ours.
    NoAddress,
    /// Received TCP that belongs to no connection and no listener.
    NoFlow,
    /// Received UDP for a port that nobody holds.
    NoPort,
    /// Received and of a protocol or an ICMP type that nobody waits for.
    NoProtocol,
    /// A connection for a listener whose backlog is full.
    Backlog,
    /// A connection that the memory budget has no buffers for.
    Budget,
    /// A connection that was given up half open, for a newer one.
    HalfOpen,
    /// A TIME-WAIT that was cut short, for a newer one.
    TimeWait,
    /// A datagram whose program reads too slowly.
    DatagramFull,
    /// A datagram or an answer of UDP's that is longer than any, or has no usable address.
    Unsendable,
    /// An answer (reset, ICMP) that the rate limit withheld.
    RateLimited,
    /// A packet of ours that the device did not take.
    Device,
    /// A packet of ours for an address that no route leads to.
    NoRoute,
    /// A packet of ours for a neighbour that does not answer, or one of too many that wait for it.
    Unresolved,
    /// A packet to ourselves, one of too many.
    Loop,
    /// A connection or datagram to another's address, one of too many that are undecided or open.
    Crowded,
    /// A connection or datagram to another's address that was refused, or that nobody decided on.
    Refused,
}

impl Dropped {
    /// Every reason and its name in statistics.
    pub const NAMES: [(Dropped, &str); 23] = [
        (Dropped::Malformed, "dropped_malformed"),
        (Dropped::Checksum, "dropped_checksum"),
        (Dropped::Unsupported, "dropped_unsupported"),
        (Dropped::Fragments, "dropped_fragments"),
        (Dropped::NotOurMac, "dropped_not_our_mac"),
        (Dropped::Tagged, "dropped_tagged"),
        (Dropped::NoAddress, "dropped_no_address"),
        (Dropped::NoFlow, "dropped_no_flow"),
        (Dropped::NoPort, "dropped_no_port"),
        (Dropped::NoProtocol, "dropped_no_protocol"),
        (Dropped::Backlog, "dropped_backlog"),
        (Dropped::Budget, "dropped_budget"),
        (Dropped::HalfOpen, "dropped_half_open"),
        (Dropped::TimeWait, "dropped_time_wait"),
        (Dropped::DatagramFull, "dropped_datagram_full"),
        (Dropped::Unsendable, "dropped_unsendable"),
        (Dropped::RateLimited, "dropped_rate_limited"),
        (Dropped::Device, "dropped_device"),
        (Dropped::NoRoute, "dropped_no_route"),
        (Dropped::Unresolved, "dropped_unresolved"),
        (Dropped::Loop, "dropped_loop"),
        (Dropped::Crowded, "dropped_crowded"),
        (Dropped::Refused, "dropped_refused"),
    ];
}

/// The counters of one stack.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub rx_packets: u64,
    pub tx_packets: u64,
    /// Packets to ourselves.
    pub looped_packets: u64,
    /// Claims of others to an address of ours.
    pub conflicts: u64,
    /// TCP segments with data or a FIN, and how many of them were sent before.
    pub segments_sent: u64,
    pub retransmits: u64,
    dropped: [u64; Dropped::NAMES.len()],
}

impl Counters {
    pub fn drop(&mut self, why: Dropped) {
        self.dropped[why as usize] += 1;
    }

    pub fn drops(&mut self, why: Dropped, count: usize) {
        self.dropped[why as usize] += count as u64;
    }

    pub fn dropped(&self, why: Dropped) -> u64 {
        self.dropped[why as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_under_its_own_name() {
        for (position, (why, _)) in Dropped::NAMES.iter().enumerate() {
            assert_eq!(*why as usize, position);
        }
    }
}
