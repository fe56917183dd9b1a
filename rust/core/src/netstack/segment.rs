//! TCP segments outside a connection: the header that dispatch reads, resets, late acknowledgements.

use std::net::SocketAddr;
use std::ops::Range;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use crate::checksum::Sum;
use crate::netstack::counters::Dropped;
use crate::netstack::ip::{self, Header};
use crate::netstack::outbox::Outbox;
use crate::netstack::timewait::Remains;

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// A TCP header, and where the rest lies in the packet.
#[derive(Clone, Debug)]
pub struct Segment {
    pub tuple: Tuple,
    pub sequence: u32,
    pub acknowledgement: u32,
    /// Data, SYN and FIN: how far the segment moves the sequence number.
    pub len: u32,
    pub syn: bool,
    pub ack: bool,
    pub rst: bool,
    pub fin: bool,
    /// As it stands in the header.
    pub window: u16,
    pub options: Range<usize>,
    pub payload: Range<usize>,
}

/// Reads and checks a received segment.
pub fn parse(header: &Header, packet: &[u8]) -> Result<Segment, Dropped> {
    let tcp = TcpPacket::new_checked(&packet[header.payload.clone()]).map_err(|_| Dropped::Malformed)?;
    let len = header.payload.len();
    let sum = Sum::pseudo_header(header.source, header.destination, header.protocol.into(), len);
    if sum.with(&packet[header.payload.clone()]).finish() != [0, 0] {
        return Err(Dropped::Checksum);
    }
    if tcp.src_port() == 0 || tcp.dst_port() == 0 {
        return Err(Dropped::Malformed);
    }
    let content = header.payload.start + usize::from(tcp.header_len());
    Ok(Segment {
        tuple: Tuple {
            local: SocketAddr::new(header.destination, tcp.dst_port()),
            remote: SocketAddr::new(header.source, tcp.src_port()),
        },
        sequence: tcp.seq_number().0 as u32,
        acknowledgement: tcp.ack_number().0 as u32,
        len: tcp.segment_len() as u32,
        syn: tcp.syn(),
        ack: tcp.ack(),
        rst: tcp.rst(),
        fin: tcp.fin(),
        window: tcp.window_len(),
        options: header.payload.start + HEADER..content,
        payload: content..header.payload.end,
    })
}

/// Answers a segment that belongs to nothing with a reset (RFC 9293, 3.5.2). `segment` is none itself.
pub fn emit_reset(out: &mut Outbox, segment: &Segment) {
    let (sequence, acknowledgement) = if segment.ack {
        (segment.acknowledgement, None)
    } else {
        (0, Some(segment.sequence.wrapping_add(segment.len)))
    };
    emit(out, &segment.tuple, TcpControl::Rst, sequence, acknowledgement, 0);
}

/// Acknowledges the FIN of a connection in TIME-WAIT again.
pub fn emit_acknowledgement(out: &mut Outbox, tuple: &Tuple, remains: &Remains) {
    let Remains { sequence, acknowledgement, window } = *remains;
    emit(out, tuple, TcpControl::None, sequence, Some(acknowledgement), window);
}

fn emit(
    out: &mut Outbox,
    tuple: &Tuple,
    control: TcpControl,
    sequence: u32,
    acknowledgement: Option<u32>,
    window: u16,
) {
    let (source, destination) = (tuple.local.ip(), tuple.remote.ip());
    let repr = TcpRepr {
        src_port: tuple.local.port(),
        dst_port: tuple.remote.port(),
        control,
        seq_number: TcpSeqNumber(sequence as i32),
        ack_number: acknowledgement.map(|number| TcpSeqNumber(number as i32)),
        window_len: window,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    ip::emit(out, source, destination, IpProtocol::Tcp, repr.buffer_len(), |payload| {
        repr.emit(
            &mut TcpPacket::new_unchecked(payload),
            &source.into(),
            &destination.into(),
            &ChecksumCapabilities::default(),
        );
    });
}

/// A header without options.
const HEADER: usize = 20;
