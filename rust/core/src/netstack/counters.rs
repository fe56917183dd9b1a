//! What the stack counts.

/// Why a packet, a datagram or a connection went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Received and not a whole IP packet, or its transport header does not fit in it.
    Malformed,
    /// Received with a wrong checksum.
    Checksum,
    /// Received from a source that no host can have, or with an IPv6 extension header.
    Unsupported,
    /// Received and only a piece of a datagram.
    Fragments,
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
    /// A datagram to send that is longer than the device's packets, or has no usable address.
    Unsendable,
    /// An answer (reset, ICMP) that the rate limit withheld.
    RateLimited,
    /// A packet of ours that the device did not take.
    Device,
}

impl Dropped {
    /// Every reason and its name in statistics.
    pub const NAMES: [(Dropped, &str); 16] = [
        (Dropped::Malformed, "dropped_malformed"),
        (Dropped::Checksum, "dropped_checksum"),
        (Dropped::Unsupported, "dropped_unsupported"),
        (Dropped::Fragments, "dropped_fragments"),
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
    ];
}

/// The counters of one stack.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub rx_packets: u64,
    pub tx_packets: u64,
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
