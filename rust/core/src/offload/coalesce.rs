//! Puts packets of one flow together that follow one another, as the kernel's own receive offload
//! does (net/core/gro.c, net/ipv4/tcp_offload.c, udp_offload.c).
//!
//! Nothing is copied: a [`Group`] says which packets go to the kernel in one piece, the first whole
//! and of the others what comes after their headers. A packet is only joined to others when its
//! checksum is right, for the kernel will not look again.

use crate::checksum::Sum;
use crate::device::Kind;
use crate::frame::{ETHERNET_HEADER, network_at};
use crate::offload::{Gso, VnetHeader, at, put, word};
use crate::packet::{MAX_LEN, Packet};

/// Packets that are written as one.
#[derive(Debug, Default)]
pub struct Group {
    pub header: VnetHeader,
    /// Their places in the batch, in order.
    pub members: Vec<usize>,
    /// Bytes of headers, left out of all but the first.
    pub header_len: usize,
    len: usize,
    next_sequence: u32,
    closed: bool,
}

/// Finds the groups in batches of packets.
pub struct Coalescer {
    groups: Vec<Group>,
    used: usize,
    kind: Kind,
    /// Whether the kernel takes UDP datagrams in one piece.
    udp: bool,
}

/// What is looked at in a packet: its headers' places, and its end.
struct View {
    is_tcp: bool,
    network: usize,
    transport: usize,
    payload: usize,
    end: usize,
}

impl Coalescer {
    /// For a device of this kind. `udp`: the kernel takes UDP datagrams in one piece, too (since Linux 6.2).
    pub fn new(kind: Kind, udp: bool) -> Coalescer {
        Coalescer { groups: Vec::new(), used: 0, kind, udp }
    }

    /// The groups of a batch, in the order in which they are to be written. The headers of those
    /// that lead a group of several are changed to stand for all.
    pub fn group(&mut self, packets: &mut [Packet]) -> &[Group] {
        self.used = 0;
        for index in 0..packets.len() {
            let view = View::of(self.kind, &packets[index]).filter(|view| view.is_tcp || self.udp);
            match view.and_then(|view| self.find(packets, index, &view).map(|group| (group, view))) {
                Some((group, view)) => self.groups[group].join(packets, index, &view),
                None => self.begin(packets, index),
            }
        }
        for group in &mut self.groups[..self.used] {
            if group.members.len() > 1 {
                group.finish(self.kind, packets);
            }
        }
        &self.groups[..self.used]
    }

    /// The group that a packet continues. One of its flow that it does not continue is closed.
    fn find(&mut self, packets: &[Packet], index: usize, view: &View) -> Option<usize> {
        let packet = &packets[index];
        let open = self.groups[..self.used].iter().rposition(|group| {
            let first = &packets[group.members[0]];
            !group.closed && View::of(self.kind, first).is_some_and(|of| same_flow(first, &of, packet, view))
        })?;
        let group = &mut self.groups[open];
        if group.continues(&packets[group.members[0]], packet, view) {
            return Some(open);
        }
        group.closed = true;
        None
    }

    fn begin(&mut self, packets: &[Packet], index: usize) {
        if self.used == self.groups.len() {
            self.groups.push(Group::default());
        }
        // Only so many flows are looked through.
        if self.used >= MOST_OPEN {
            self.groups[self.used - MOST_OPEN].closed = true;
        }
        let group = &mut self.groups[self.used];
        self.used += 1;
        group.begin(self.kind, &packets[index], index, self.udp);
    }
}

impl Group {
    fn begin(&mut self, kind: Kind, packet: &[u8], index: usize, udp: bool) {
        self.members.clear();
        self.members.push(index);
        self.header = VnetHeader::default();
        self.closed = true;
        let Some(view) = View::of(kind, packet).filter(|view| view.is_tcp || udp) else { return };
        let payload = view.end - view.payload;
        if payload == 0 || view.end != packet.len() || !view.may_lead(packet) || !view.is_sound(packet) {
            return;
        }
        self.header_len = view.payload;
        self.len = packet.len();
        self.header.gso_size = payload as u16;
        self.next_sequence = sequence(packet, &view).wrapping_add(payload as u32);
        self.closed = view.is_tcp && packet[view.transport + at::TCP_FLAGS] & at::PSH != 0;
    }

    fn continues(&self, first: &[u8], packet: &[u8], view: &View) -> bool {
        let payload = view.end - view.payload;
        let fits = view.end == packet.len()
            && view.payload == self.header_len
            && (1..=usize::from(self.header.gso_size)).contains(&payload)
            && self.len + payload <= MAX_LEN
            && self.members.len() < if view.is_tcp { MOST_SEGMENTS } else { MOST_DATAGRAMS };
        fits && view.may_follow(packet)
            && same_headers(first, packet, view, self.members.len() as u16)
            && (!view.is_tcp || sequence(packet, view) == self.next_sequence)
            && view.is_sound(packet)
    }

    fn join(&mut self, packets: &[Packet], index: usize, view: &View) {
        let packet = &packets[index];
        let payload = view.end - view.payload;
        self.members.push(index);
        self.len += payload;
        self.next_sequence = self.next_sequence.wrapping_add(payload as u32);
        let pushed = view.is_tcp && packet[view.transport + at::TCP_FLAGS] & (at::PSH | at::FIN) != 0;
        self.closed = pushed || payload < self.header.gso_size.into();
    }

    /// Makes the first packet's headers those of all.
    fn finish(&mut self, kind: Kind, packets: &mut [Packet]) {
        let last = *self.members.last().expect("a group has members");
        let Some(view) = View::of(kind, &packets[self.members[0]]) else { return };
        let last_flags = if view.is_tcp { packets[last][view.transport + at::TCP_FLAGS] } else { 0 };
        let first = &mut packets[self.members[0]][view.network..];
        let transport_at = view.transport - view.network;
        let len = self.len - view.network;
        let is_ipv6 = first[0] >> 4 == 6;
        let transport_len = len - transport_at;
        let (addresses, protocol) = if is_ipv6 {
            put(first, 4, (len - at::IPV6_LEN) as u16);
            (8..40, first[6])
        } else {
            put(first, 2, len as u16);
            put(first, 10, 0);
            let checksum = Sum::default().with(&first[..transport_at]).finish();
            first[10..12].copy_from_slice(&checksum);
            (12..20, first[9])
        };
        let mut rest = [0; 8];
        rest[..4].copy_from_slice(&(transport_len as u32).to_be_bytes());
        rest[7] = protocol;
        let checksum = Sum::default().with(&first[addresses]).with(&rest).finish();
        let offset = if view.is_tcp { at::TCP_CHECKSUM } else { at::UDP_CHECKSUM };
        let transport = &mut first[transport_at..];
        if view.is_tcp {
            transport[at::TCP_FLAGS] |= last_flags & (at::PSH | at::FIN);
        } else {
            put(transport, at::UDP_LENGTH, transport_len as u16);
        }
        // The sum itself, where a finished checksum is its complement.
        transport[offset..offset + 2].copy_from_slice(&[!checksum[0], !checksum[1]]);
        self.header.needs_checksum = true;
        self.header.gso = match (view.is_tcp, is_ipv6) {
            (true, false) => Gso::Tcp4,
            (true, true) => Gso::Tcp6,
            (false, _) => Gso::Udp,
        };
        self.header.header_len = self.header_len as u16;
        self.header.checksum_start = view.transport as u16;
        self.header.checksum_offset = offset as u16;
    }
}

impl View {
    /// `None` for what is never joined: neither TCP nor UDP, fragments, packets with IP options, tagged frames.
    fn of(kind: Kind, frame: &[u8]) -> Option<View> {
        let network = network_at(kind, frame).filter(|&at| at <= ETHERNET_HEADER)?;
        let packet = &frame[network..];
        let (transport, protocol, end) = match packet.first()? >> 4 {
            4 if packet[0] == 0x45 && packet.len() >= at::IPV4_LEN => {
                // Neither more fragments nor an offset.
                (word(packet, 6) & 0x3fff == 0).then_some(())?;
                (at::IPV4_LEN, packet[9], usize::from(word(packet, 2)))
            }
            6 if packet.len() >= at::IPV6_LEN => {
                (at::IPV6_LEN, packet[6], at::IPV6_LEN + usize::from(word(packet, 4)))
            }
            _ => return None,
        };
        let rest = packet.get(transport..end)?;
        let (is_tcp, len) = match protocol {
            at::PROTOCOL_TCP if rest.len() >= at::TCP_LEN => (true, usize::from(rest[12] >> 4) * 4),
            at::PROTOCOL_UDP if rest.len() >= at::UDP_LEN => (false, at::UDP_LEN),
            _ => return None,
        };
        let least = if is_tcp { at::TCP_LEN } else { at::UDP_LEN };
        let payload = transport + len;
        let [transport, payload, end] = [transport, payload, end].map(|at| network + at);
        (len >= least && payload <= end).then_some(View { is_tcp, network, transport, payload, end })
    }

    /// Whether others may be joined to it.
    fn may_lead(&self, packet: &[u8]) -> bool {
        let transport = &packet[self.transport..];
        if self.is_tcp {
            transport[at::TCP_FLAGS] & !at::PSH & !at::ECE & !at::CWR == at::ACK
        } else {
            self.is_whole_datagram(packet)
        }
    }

    /// Whether it may be joined to another.
    fn may_follow(&self, packet: &[u8]) -> bool {
        let transport = &packet[self.transport..];
        if self.is_tcp {
            transport[at::TCP_FLAGS] & !at::PSH & !at::FIN & !at::ECE == at::ACK
        } else {
            self.is_whole_datagram(packet)
        }
    }

    /// A datagram that has a checksum, and fills its packet.
    fn is_whole_datagram(&self, packet: &[u8]) -> bool {
        let transport = &packet[self.transport..self.end];
        word(transport, at::UDP_CHECKSUM) != 0
            && usize::from(word(transport, at::UDP_LENGTH)) == transport.len()
    }

    /// Whether the checksums are right.
    fn is_sound(&self, packet: &[u8]) -> bool {
        let header = &packet[self.network..self.transport];
        let is_ipv6 = header[0] >> 4 == 6;
        let (addresses, protocol) =
            if is_ipv6 { (&header[8..40], header[6]) } else { (&header[12..20], header[9]) };
        let network = is_ipv6 || Sum::default().with(header).finish() == [0, 0];
        let mut rest = [0; 8];
        rest[..4].copy_from_slice(&((self.end - self.transport) as u32).to_be_bytes());
        rest[7] = protocol;
        let sum = Sum::default().with(addresses).with(&rest).with(&packet[self.transport..self.end]);
        network && sum.finish() == [0, 0]
    }
}

fn sequence(packet: &[u8], view: &View) -> u32 {
    if !view.is_tcp {
        return 0;
    }
    let field = &packet[view.transport + at::TCP_SEQUENCE..][..4];
    u32::from_be_bytes([field[0], field[1], field[2], field[3]])
}

fn same_flow(one: &[u8], of: &View, other: &[u8], view: &View) -> bool {
    let (link, one_ip) = one.split_at(of.network);
    let (other_link, other_ip) = other.split_at(view.network);
    let addresses = if one_ip[0] >> 4 == 6 { 8..40 } else { 12..20 };
    one_ip[0] >> 4 == other_ip[0] >> 4
        && of.is_tcp == view.is_tcp
        && one_ip[addresses.clone()] == other_ip[addresses]
        && one[of.transport..of.transport + 4] == other[view.transport..view.transport + 4]
        && link == other_link
}

/// Whether the headers of two packets of a flow are those that segmentation would give them, the
/// other being the one of this index.
fn same_headers(first: &[u8], packet: &[u8], view: &View, index: u16) -> bool {
    let (one, other) = (&first[view.network..], &packet[view.network..]);
    let network = if one[0] >> 4 == 6 {
        // Traffic class and flow label; next header and hop limit.
        one[..4] == other[..4] && one[6..8] == other[6..8]
    } else {
        let never_fragmented = other[6] & 0x40 != 0;
        let numbered = word(other, 4) == word(one, 4).wrapping_add(index);
        // Traffic class; fragmentation; time to live and protocol.
        one[1] == other[1] && one[6..10] == other[6..10] && (never_fragmented || numbered)
    };
    if !view.is_tcp {
        return network;
    }
    let (one, other) = (&first[view.transport..view.payload], &packet[view.transport..view.payload]);
    // Acknowledgement; length and flags but those that only the first or last has; window; urgent pointer and
    // options.
    let flags = (one[at::TCP_FLAGS] ^ other[at::TCP_FLAGS]) & !(at::PSH | at::FIN | at::CWR);
    network
        && one[8..13] == other[8..13]
        && flags == 0
        && one[14..16] == other[14..16]
        && one[18..] == other[18..]
}

/// Flows whose packets may be mixed in a batch.
const MOST_OPEN: usize = 16;
/// As many as a system call takes pieces of, with one to spare.
const MOST_SEGMENTS: usize = 1000;
/// A longer run of datagrams the kernel refuses as a whole (UDP_MAX_SEGMENTS; 128 in newer kernels).
const MOST_DATAGRAMS: usize = 64;
