use super::coalesce::Coalescer;
use super::segment::segment;
use super::*;
use crate::checksum::Sum;
use crate::device::Kind;
use crate::packet::{LocalPool, Packet, Pool};
use crate::seeded::Seeded;

fn pool() -> LocalPool {
    Pool::new(64).local()
}

/// A packet with right checksums.
fn packet(ipv6: bool, tcp: bool, payload: &[u8], sequence: u32, flags: u8, id: u16) -> Vec<u8> {
    let start = if ipv6 { 40 } else { 20 };
    let header = if tcp { 32 } else { 8 };
    let mut bytes = vec![0; start + header];
    bytes.extend_from_slice(payload);
    let len = bytes.len();
    let protocol = if tcp { 6 } else { 17 };
    if ipv6 {
        bytes[0] = 0x60;
        put(&mut bytes, 4, (len - 40) as u16);
        (bytes[6], bytes[7]) = (protocol, 64);
        (bytes[23], bytes[39]) = (1, 2);
    } else {
        (bytes[0], bytes[8], bytes[9]) = (0x45, 64, protocol);
        put(&mut bytes, 2, len as u16);
        put(&mut bytes, 4, id);
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = Sum::default().with(&bytes[..20]).finish();
        bytes[10..12].copy_from_slice(&sum);
    }
    let transport = &mut bytes[start..];
    put(transport, 0, 1000);
    put(transport, 2, 2000);
    let checksum_at = if tcp {
        transport[4..8].copy_from_slice(&sequence.to_be_bytes());
        transport[8..12].copy_from_slice(&7u32.to_be_bytes());
        transport[12] = 8 << 4;
        transport[13] = flags;
        put(transport, 14, 500);
        transport[20..32].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6]);
        16
    } else {
        put(transport, 4, (len - start) as u16);
        6
    };
    let sum = pseudo(&bytes, start, len - start).with(&bytes[start..]).finish();
    bytes[start + checksum_at..start + checksum_at + 2].copy_from_slice(&sum);
    bytes
}

fn pseudo(bytes: &[u8], start: usize, len: usize) -> Sum {
    let addresses = if start == 40 { &bytes[8..40] } else { &bytes[12..20] };
    let protocol = if start == 40 { bytes[6] } else { bytes[9] };
    let mut rest = [0; 8];
    rest[..4].copy_from_slice(&(len as u32).to_be_bytes());
    rest[7] = protocol;
    Sum::default().with(addresses).with(&rest)
}

/// The bytes that a group's members are written as.
fn joined(group: &super::coalesce::Group, packets: &[Packet]) -> Vec<u8> {
    let mut bytes = packets[group.members[0]].to_vec();
    for member in &group.members[1..] {
        bytes.extend_from_slice(&packets[*member][group.header_len..]);
    }
    bytes
}

fn train(random: &mut Seeded, ipv6: bool, tcp: bool, size: usize, count: usize) -> Vec<Vec<u8>> {
    let (mut sequence, id) = (random.next() as u32, random.next() as u16);
    (0..count)
        .map(|index| {
            let is_last = index + 1 == count;
            let len = if is_last { 1 + random.below(size) } else { size };
            let flags = at::ACK | if is_last { at::PSH } else { 0 };
            let payload = random.bytes(len);
            let bytes = packet(ipv6, tcp, &payload, sequence, flags, id.wrapping_add(index as u16));
            sequence = sequence.wrapping_add(len as u32);
            bytes
        })
        .collect()
}

#[test]
fn what_is_joined_and_cut_again_is_what_it_was() {
    let mut random = Seeded(1);
    let mut pool = pool();
    for ipv6 in [false, true] {
        for tcp in [false, true] {
            for (size, count) in [(1, 2), (1400, 2), (1400, 45), (100, 64), (9000, 7), (1448, 3)] {
                let train = train(&mut random, ipv6, tcp, size, count);
                let mut packets: Vec<_> = train.iter().map(|bytes| pool.packet_from(bytes)).collect();
                let mut coalescer = Coalescer::new(Kind::Tun, true);
                let groups = coalescer.group(&mut packets);
                assert_eq!(groups.len(), 1, "{ipv6} {tcp} {size} {count}");
                let long = joined(&groups[0], &packets);
                let header = VnetHeader::parse(&groups[0].header.emit()).unwrap();
                assert_eq!(header, groups[0].header);
                let mut cut = Vec::new();
                segment(Kind::Tun, &header, &long, &mut pool, &mut cut).unwrap();
                assert!(cut.iter().map(|packet| &packet[..]).eq(train.iter().map(|bytes| &bytes[..])));
            }
        }
    }
}

#[test]
fn no_run_of_datagrams_is_longer_than_the_kernel_takes() {
    let mut random = Seeded(3);
    let mut pool = pool();
    for (tcp, lens) in [(false, vec![64, 64, 64, 8]), (true, vec![200])] {
        let train = train(&mut random, false, tcp, 20, 200);
        let mut packets: Vec<_> = train.iter().map(|bytes| pool.packet_from(bytes)).collect();
        let mut coalescer = Coalescer::new(Kind::Tun, true);
        let found: Vec<_> = coalescer.group(&mut packets).iter().map(|group| group.members.len()).collect();
        assert_eq!(found, lens);
    }
}

#[test]
fn flows_that_are_mixed_keep_their_order() {
    let mut random = Seeded(2);
    let mut pool = pool();
    let mut one = train(&mut random, false, true, 1000, 10);
    let other = train(&mut random, true, true, 500, 10);
    // The third of the first flow has come late.
    one.swap(2, 3);
    let mixed: Vec<_> = one.iter().zip(&other).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let mut packets: Vec<_> = mixed.iter().map(|bytes| pool.packet_from(bytes)).collect();
    let mut coalescer = Coalescer::new(Kind::Tun, true);
    let members: Vec<_> = coalescer.group(&mut packets).iter().map(|group| group.members.clone()).collect();
    assert_eq!(
        members,
        [vec![0, 2], vec![1, 3, 5, 7, 9, 11, 13, 15, 17, 19], vec![4], vec![6], vec![8, 10, 12, 14, 16, 18]]
    );
}

#[test]
fn what_differs_is_not_joined() {
    let base = |change: &dyn Fn(&mut Vec<u8>), fix: bool| {
        let mut pool = pool();
        let first = packet(false, true, &[1; 100], 1, at::ACK, 9);
        let mut second = packet(false, true, &[2; 100], 101, at::ACK, 10);
        change(&mut second);
        if fix {
            put(&mut second, 10, 0);
            let sum = Sum::default().with(&second[..20]).finish();
            second[10..12].copy_from_slice(&sum);
            put(&mut second, 36, 0);
            let sum = pseudo(&second, 20, second.len() - 20).with(&second[20..]).finish();
            second[36..38].copy_from_slice(&sum);
        }
        let mut packets = vec![pool.packet_from(&first), pool.packet_from(&second)];
        Coalescer::new(Kind::Tun, true).group(&mut packets).len()
    };
    assert_eq!(base(&|_| {}, true), 1);
    let different: [(usize, u8); 10] =
        [(1, 4), (5, 12), (8, 63), (27, 3), (31, 8), (33, 0x11 | 4), (35, 1), (38, 1), (45, 9), (6, 0x20)];
    for (at, value) in different {
        assert_eq!(base(&|bytes| bytes[at] = value, true), 2, "byte {at}");
    }
    assert_eq!(base(&|bytes| bytes[120] ^= 1, false), 2, "a wrong checksum");
    assert_eq!(base(&|bytes| bytes.push(0), false), 2, "bytes behind the packet");
}

#[test]
fn a_checksum_to_complete_is_completed() {
    let mut pool = pool();
    for tcp in [false, true] {
        let right = packet(true, tcp, b"odd", 5, at::ACK, 0);
        let place = 40 + if tcp { 16 } else { 6 };
        let mut partial = right.clone();
        let sum = pseudo(&right, 40, right.len() - 40).finish();
        partial[place..place + 2].copy_from_slice(&[!sum[0], !sum[1]]);
        let header = VnetHeader {
            needs_checksum: true,
            checksum_start: 40,
            checksum_offset: place as u16 - 40,
            ..VnetHeader::default()
        };
        let mut out = Vec::new();
        segment(Kind::Tun, &header, &partial, &mut pool, &mut out).unwrap();
        assert_eq!(&out[0][..], &right[..]);
    }
}

#[test]
fn nothing_that_comes_makes_them_panic() {
    let mut random = Seeded(3);
    println!("seed 3");
    let mut pool = pool();
    let mut coalescer = Coalescer::new(Kind::Tun, true);
    for _ in 0..20_000 {
        let mut batch: Vec<Packet> = Vec::new();
        for _ in 0..1 + random.below(4) {
            let (ipv6, tcp) = (random.below(2) == 0, random.below(2) == 0);
            let payload = random.below(50);
            let mut bytes = packet(ipv6, tcp, &vec![0; payload], 0, at::ACK, 0);
            for _ in 0..random.below(4) {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
            }
            bytes.truncate(1 + random.below(bytes.len()));
            batch.push(pool.packet_from(&bytes));
        }
        let mut header = [0; VnetHeader::LEN];
        header.iter_mut().for_each(|byte| *byte = random.below(64) as u8);
        if let Ok(header) = VnetHeader::parse(&header) {
            let mut out = Vec::new();
            let _ = segment(Kind::Tun, &header, &batch[0], &mut pool, &mut out);
            pool.recycle_all(out);
        }
        let total: usize = coalescer.group(&mut batch).iter().map(|group| group.members.len()).sum();
        assert_eq!(total, batch.len());
        pool.recycle_all(batch);
    }
}
