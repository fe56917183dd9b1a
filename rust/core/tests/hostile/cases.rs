//! What comes from a peer or a program, changed as a source of numbers says: nothing panics, nothing is made up.
//!
//! The source is seeded ([`crate::Seeded`] of the tests), or what a fuzzer thinks of (`rust/fuzz`).

use ginnel_core::cipher::MATERIAL_LEN;
use ginnel_core::device::Kind;
use ginnel_core::format::Format;
use ginnel_core::frame::network_at;
use ginnel_core::framing::Framing;
use ginnel_core::offload::coalesce::{Coalescer, Group};
use ginnel_core::offload::segment::segment;
use ginnel_core::offload::{Gso, VnetHeader};
use ginnel_core::packet::{LocalPool, Packet, Pool};
use ginnel_core::plane::{Path, Plane};

use crate::Seeded;

/// What is cut is all of it, or refused.
pub fn cut(random: &mut Seeded) {
    let mut pool = Pool::new(64).local();
    let kind = kind(random);
    let (mut header, mut long) = long(random, kind);
    damage(random, &mut long);
    if one_in(random, 2) {
        let mut bytes = header.emit();
        damage_bytes(random, &mut bytes);
        let Ok(parsed) = VnetHeader::parse(&bytes) else { return };
        header = parsed;
    }
    let mut pieces = Vec::new();
    if segment(kind, &header, &long, &mut pool, &mut pieces).is_err() {
        assert!(pieces.is_empty());
        return;
    }
    if header.gso == Gso::None {
        assert_eq!(pieces.len(), 1);
        return;
    }
    // A changed header may put the payload elsewhere: its length is what the pieces do not share.
    let most = usize::from(header.gso_size);
    let head = pieces[0].len() - most.min(pieces[0].len());
    let (last, others) = pieces.split_last().expect("a piece");
    assert!(others.iter().all(|piece| piece.len() == pieces[0].len()) && last.len() <= pieces[0].len());
    if !others.is_empty() {
        let payload: Vec<u8> = pieces.iter().flat_map(|piece| piece[head..].to_vec()).collect();
        assert!(long.ends_with(&payload) && head + payload.len() == long.len());
    }
}

/// What is joined is cut into what it was.
pub fn join(random: &mut Seeded) {
    let mut pool = Pool::new(256).local();
    let kind = kind(random);
    let mut batch: Vec<Vec<u8>> =
        (0..1 + random.below(3)).flat_map(|_| train(random, kind, &mut pool)).collect();
    for _ in 0..random.below(4) {
        let (one, other) = (random.below(batch.len()), random.below(batch.len()));
        match random.below(3) {
            0 => batch.swap(one, other),
            1 => batch.insert(one, batch[other].clone()),
            _ => damage(random, &mut batch[one]),
        }
    }
    let mut packets: Vec<Packet> = batch.iter().map(|bytes| pool.packet_from(bytes)).collect();
    let mut coalescer = Coalescer::new(kind, one_in(random, 2));
    let groups = coalescer.group(&mut packets);
    let mut places: Vec<usize> = groups.iter().flat_map(|group| group.members.clone()).collect();
    places.sort_unstable();
    assert!(places.into_iter().eq(0..batch.len()), "each once");
    for group in groups {
        assert!(group.members.is_sorted());
        let mut cut = Vec::new();
        segment(kind, &group.header, &joined(group, &packets), &mut pool, &mut cut).expect("what we made");
        assert_eq!(cut.len(), group.members.len());
        for (packet, &place) in cut.iter().zip(&group.members) {
            let is_same = packet[..] == batch[place][..]
                || group.members.len() > 1
                    && without_number(kind, packet) == without_number(kind, &batch[place]);
            assert!(is_same, "packet {place} differs");
        }
    }
}

/// Only what was sealed is opened.
pub fn open(random: &mut Seeded) {
    let mut pool = Pool::new(64).local();
    let formats = [
        ("AES-256-GCM", "none", false),
        ("CHACHA20-POLY1305", "none", true),
        ("AES-128-CBC", "SHA256", false),
    ];
    let (cipher, digest, epochs) = formats[random.below(formats.len())];
    let format = Format::from_names(cipher, digest, epochs).expect("a format");
    let framings = [Framing::None, Framing::Lzo, Framing::Stub, Framing::StubV2];
    let framing = framings[random.below(framings.len())];
    let (left, right) = (plane(format, framing, false), plane(format, framing, true));
    let mut sealed = Vec::new();
    for _ in 0..2 {
        let mut packet = vec![0x45; 20];
        let len = random.below(200);
        packet.extend(random.bytes(len));
        let bytes = pool.packet_from(&packet);
        sealed.push((packet, left.seal(bytes, 0, &mut pool).expect("a datagram").packet.to_vec()));
    }
    for _ in 0..8 {
        let mut datagram = sealed[random.below(2)].1.clone();
        if one_in(random, 4) {
            let len = random.below(100);
            datagram = random.bytes(len);
        }
        damage(random, &mut datagram);
        if let Some(opened) = right.open(&datagram, PATH, 0, &mut Vec::new(), &mut pool) {
            assert!(sealed.iter().any(|(packet, _)| packet[..] == opened[..]), "it was not sealed");
        }
    }
}

fn plane(format: Format, framing: Framing, flipped: bool) -> Plane {
    let plane = Plane::new(Kind::Tun, 1);
    let keys: [[u8; MATERIAL_LEN]; 2] = [[1; MATERIAL_LEN], [2; MATERIAL_LEN]];
    let (encrypt, decrypt) = if flipped { (&keys[1], &keys[0]) } else { (&keys[0], &keys[1]) };
    plane.new_peer(1, PATH, Some(7), 0).unwrap();
    plane.set_peer(1, 0, 0, 0, framing, 0).unwrap();
    plane.new_key(1, 1, 0, format, encrypt, decrypt).unwrap();
    plane.swap(1, 1).unwrap();
    plane
}

/// Changed, shortened or made longer, more often than not.
fn damage(random: &mut Seeded, bytes: &mut Vec<u8>) {
    match random.below(5) {
        0 | 1 => damage_bytes(random, bytes),
        2 => bytes.truncate(random.below(bytes.len() + 1)),
        3 => {
            let len = random.below(40);
            bytes.extend(random.bytes(len));
        }
        _ => {}
    }
}

/// The head is changed most: what is parsed is there.
fn damage_bytes(random: &mut Seeded, bytes: &mut [u8]) {
    for _ in 0..1 + random.below(3) {
        let limit = if one_in(random, 4) { bytes.len() } else { bytes.len().min(80) };
        if let Some(byte) = bytes.get_mut(random.below(limit)) {
            *byte = if one_in(random, 2) { random.next() as u8 } else { *byte ^ 1 << random.below(8) };
        }
    }
}

fn kind(random: &mut Seeded) -> Kind {
    if one_in(random, 3) { Kind::Tap } else { Kind::Tun }
}

/// What comes before the IP packet.
fn link(random: &mut Seeded, kind: Kind, ipv6: bool) -> Vec<u8> {
    if kind == Kind::Tun {
        return Vec::new();
    }
    let mut link = random.bytes(12);
    for _ in 0..random.below(6) / 4 {
        link.extend([0x81, 0, 0, 9]);
    }
    link.extend(if ipv6 { [0x86, 0xdd] } else { [8, 0] });
    link
}

/// A long packet as the kernel gives it, and its vnet header.
fn long(random: &mut Seeded, kind: Kind) -> (VnetHeader, Vec<u8>) {
    let (ipv6, tcp) = (one_in(random, 2), one_in(random, 2));
    let start = if ipv6 { 40 } else { 20 };
    let transport = if tcp { 20 + 4 * random.below(11) } else { 8 };
    let size = 1 + random.below(1400);
    let payload = size + 1 + random.below(6 * size);
    let mut bytes = random.bytes(start + transport + payload);
    let len = bytes.len();
    if ipv6 {
        bytes[..2].copy_from_slice(&[0x60, 0]);
        bytes[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
    } else {
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        bytes[6..8].copy_from_slice(&[0x40, 0]);
    }
    bytes[if ipv6 { 6 } else { 9 }] = if tcp { 6 } else { 17 };
    if tcp {
        (bytes[start + 12], bytes[start + 13]) =
            ((transport as u8 / 4) << 4, [0x10, 0x18, 0x19, 0x90][random.below(4)]);
    }
    let gso = match (tcp, ipv6) {
        (true, false) => Gso::Tcp4,
        (true, true) => Gso::Tcp6,
        _ => Gso::Udp,
    };
    let link = link(random, kind, ipv6);
    let header = VnetHeader {
        needs_checksum: true,
        gso,
        header_len: (link.len() + start + transport) as u16,
        gso_size: size as u16,
        checksum_start: (link.len() + start) as u16,
        checksum_offset: if tcp { 16 } else { 6 },
    };
    (header, [link, bytes].concat())
}

/// Packets with right checksums that follow one another.
fn train(random: &mut Seeded, kind: Kind, pool: &mut LocalPool) -> Vec<Vec<u8>> {
    let (header, long) = long(random, kind);
    let mut packets = Vec::new();
    segment(kind, &header, &long, pool, &mut packets).expect("a long packet");
    packets.iter().map(|packet| packet.to_vec()).collect()
}

/// An IPv4 packet that is never fragmented has an identification that says nothing (RFC 6864, 4.1): joined
/// to others, it gets another, and so another header checksum. That checksum was right before, or it
/// would not have been joined.
fn without_number(kind: Kind, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let at = network_at(kind, &frame).unwrap_or(frame.len());
    let packet = &mut frame[at..];
    if packet.len() >= 20 && packet[0] == 0x45 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    frame
}

/// The bytes that a group is written as.
fn joined(group: &Group, packets: &[Packet]) -> Vec<u8> {
    let (first, others) = group.members.split_first().expect("a member");
    let rest = others.iter().flat_map(|&member| packets[member][group.header_len..].to_vec());
    packets[*first].iter().copied().chain(rest).collect()
}

const PATH: Path = Path {
    socket: 0,
    address: std::net::SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 7)),
};

fn one_in(random: &mut Seeded, count: usize) -> bool {
    random.below(count) == 0
}
