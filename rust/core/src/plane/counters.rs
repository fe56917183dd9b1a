//! What is counted of a plane and of each of its peers.

use crate::counters;

counters! {
    /// What went through a plane, and every reason for a drop.
    pub struct Counters {
        /// Data packets and control packets that came in.
        rx_datagrams,
        rx_control,
        /// Inner packets, and their bytes, that were opened for the device.
        rx_packets,
        rx_bytes,
        /// Those of them that went on to another peer.
        rx_relayed,
        rx_pings,
        rx_data_messages,
        rx_malformed,
        rx_no_peer,
        rx_no_key,
        rx_replayed,
        rx_auth_failed,
        /// Opened, but compressed, or not framed as agreed.
        rx_compressed,
        /// Opened, but neither an IP packet nor short enough for a message.
        rx_bad_inner,
        /// Opened, but with an inner source address that the peer may not use.
        rx_bad_source,
        /// Opened, but from a path that another peer holds.
        rx_float_refused,
        /// Reports that nobody fetched in time.
        data_messages_dropped,
        control_dropped,
        strangers_dropped,
        /// Of strangers, without a wrap of ours.
        strangers_unauthenticated,
        /// Of strangers, authentic and not for the first time.
        strangers_replayed,
        floats,
        /// Inner packets, and their bytes, that were sealed.
        tx_packets,
        tx_bytes,
        tx_pings,
        tx_data_messages,
        tx_malformed,
        tx_no_peer,
        tx_no_key,
        /// Too long for a datagram once it is sealed.
        tx_oversize,
        /// The key's packet ids are used up.
        tx_exhausted,
    }
}

counters! {
    /// What went to and came from one peer. Packets and bytes are inner ones.
    pub struct PeerCounters {
        rx_packets,
        rx_bytes,
        rx_pings,
        /// Data packets that claimed to come from the peer, and those of them that were not opened.
        rx_datagrams,
        rx_dropped,
        tx_packets,
        tx_bytes,
        tx_pings,
        tx_datagrams,
    }
}
