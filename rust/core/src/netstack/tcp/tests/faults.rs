//! What goes wrong on the way, and segments that nobody sent.

use super::link::{CLEAN, MILLI, Pair, Path, Seeded, bytes, parse};
use crate::SECOND;
use crate::netstack::tcp::{Phase, Transport};
use smoltcp::wire::{Ipv4Packet, TcpPacket};

#[test]
fn everything_arrives_whatever_the_wire_does() {
    for (loss, len) in [(0, 4 << 20), (30_000, 1 << 20), (100_000, 400_000), (300_000, 100_000)] {
        for seed in 0..6 {
            let path = Path {
                delay: 10 * MILLI,
                rate: 2_500_000,
                queue: 100_000,
                loss,
                reorder: 20_000,
                duplicate: 20_000,
                corrupt: 10_000,
            };
            let mut pair = Pair::new(path, seed);
            pair.connect();
            let time = pair.transfer([&bytes(len, seed), &bytes(len / 2, seed + 100)]);
            println!("loss {loss}: {} ms, {:?}", time / MILLI, pair.ends[0].sender.counts);
            pair.finish();
        }
    }
}

#[test]
fn sequence_numbers_wrap() {
    for (seed, initial) in [u32::MAX, u32::MAX - 100_000, 0x7fff_0000].into_iter().enumerate() {
        let seed = seed as u64;
        let initial = u64::from(initial);
        let path = Path { loss: 20_000, delay: MILLI, ..CLEAN };
        let mut pair = Pair::with_seeds(path, seed, (initial, u64::from(u32::MAX) << 32 | (initial - 7)));
        pair.connect();
        pair.transfer([&bytes(1 << 20, 1), &bytes(1 << 20, 2)]);
        pair.finish();
    }
}

#[test]
fn a_lost_tail_is_probed_for() {
    let mut pair = Pair::new(CLEAN, 1);
    pair.connect();
    pair.transfer([&bytes(200_000, 1), &[]]);
    pair.run_for(SECOND);
    let mut lost = 0;
    pair.filter = Box::new(move |side, packet| {
        let data = side == 0 && packet.len() > 200;
        lost += u32::from(data);
        // The last two of three.
        !data || lost == 1 || lost > 3
    });
    let time = pair.transfer([&bytes(3 * 1448, 2), &[]]);
    let counts = pair.ends[0].sender.counts;
    assert_eq!((counts.timeouts, counts.probes), (0, 1), "{counts:?}");
    assert!(time < 300 * MILLI, "{}", time / MILLI);
}

#[test]
fn lost_syns_and_fins_are_sent_again() {
    for (side, flag) in [(0, 2u8), (1, 2), (0, 1), (1, 1)] {
        let mut pair = Pair::new(CLEAN, 1);
        let mut lost = false;
        pair.filter = Box::new(move |from, packet| {
            let hit = from == side && packet[33] & flag != 0 && !lost;
            lost |= hit;
            !hit
        });
        pair.connect();
        assert_eq!(pair.now > 2 * SECOND, flag == 2);
        pair.transfer([b"up", b"down"]);
        pair.finish();
    }
}

#[test]
fn a_lost_window_update_is_asked_for() {
    let mut pair = Pair::new(CLEAN, 1);
    pair.connect();
    let data = bytes(500_000, 3);
    let mut sent = 0;
    for _ in 0..100 {
        sent += pair.write(0, &data[sent..]);
        pair.run_for(100 * MILLI);
    }
    // Full; it stays so for minutes, and the update is lost.
    pair.run_for(300 * SECOND);
    assert_eq!(pair.ends[0].phase(), Phase::Open);
    let held = pair.ends[1].readable();
    assert!((40_000..=65_535).contains(&held), "{held}");
    let mut got = Vec::new();
    pair.read(1, &mut got);
    assert!(!pair.packets(1).is_empty());
    let start = pair.now;
    while got.len() < data.len() {
        sent += pair.write(0, &data[sent..]);
        pair.read(1, &mut got);
        assert!(pair.step());
    }
    assert!(got == data && pair.now < start + 70 * SECOND);
}

#[test]
fn peers_without_options_are_served() {
    for without in [&[4u8][..], &[8], &[3], &[2, 3, 4, 8]] {
        for seed in 0..3 {
            let path = Path { delay: 5 * MILLI, loss: 20_000, ..CLEAN };
            let mut pair = Pair::new(path, seed);
            // The SYN goes by hand, with options made into padding.
            let mut syn = pair.packets(0).remove(0).to_vec();
            strip(&mut syn, without);
            pair.input(1, &syn);
            let mut answer = pair.packets(1).remove(0).to_vec();
            strip(&mut answer, without);
            pair.input(0, &answer);
            pair.connect();
            let time = pair.transfer([&bytes(1 << 20, 1), &bytes(1 << 20, 2)]);
            println!("without {without:?}: {} ms {:?}", time / MILLI, pair.ends[0].sender.counts);
            pair.finish();
        }
    }
}

/// Random segments, near the right numbers and far from them, into a transfer.
#[test]
fn forged_segments_do_no_harm() {
    for seed in 0..20 {
        let mut pair = Pair::new(Path { delay: MILLI, ..CLEAN }, seed);
        pair.connect();
        let mut random = Seeded(seed);
        let data = bytes(3_000_000, seed);
        let (mut sent, mut got) = (0, Vec::new());
        let mut sample = Vec::new();
        let mut round = 0;
        while pair.ends.iter().all(|end| end.phase() == Phase::Open)
            && got.len() < data.len()
            && round < 200_000
        {
            round += 1;
            sent += pair.write(0, &data[sent..]);
            pair.flush();
            if let Some(packet) = pair.wires[0].flying.values().next() {
                sample = packet.clone();
            }
            if !sample.is_empty() && round % 2 == 0 {
                let forged = forge(&sample, &mut random);
                pair.input(round / 2 % 2, &forged);
            }
            pair.read(1, &mut got);
            pair.step();
        }
        // Payload is never forged here: whatever came is a piece of what was sent.
        assert!(data.starts_with(&got), "bytes that nobody sent");
        println!("round {round} got {}", got.len());
        drop(pair.ends);
        assert_eq!((pair.budgets[0].used(), pair.budgets[1].used()), (0, 0));
    }
}

fn forge(sample: &[u8], random: &mut Seeded) -> Vec<u8> {
    let mut packet = sample[..52].to_vec();
    let near = |number: u32, random: &mut Seeded| match random.next() % 4 {
        0 => random.next() as u32,
        1 => number.wrapping_add(random.next() as u32 % 4096).wrapping_sub(2048),
        2 => number.wrapping_add(random.next() as u32 % 200_000).wrapping_sub(100_000),
        _ => number,
    };
    let len = [20, 40, 52][random.next() as usize % 3];
    packet.truncate(len.max(40));
    let sequence = near(u32::from_be_bytes(packet[24..28].try_into().unwrap()), random);
    let number = near(u32::from_be_bytes(packet[28..32].try_into().unwrap()), random);
    packet[24..28].copy_from_slice(&sequence.to_be_bytes());
    packet[28..32].copy_from_slice(&number.to_be_bytes());
    // No SYN, and no RST or FIN that fits by chance: those end a connection rightly.
    packet[33] = (random.next() as u8) & !5;
    packet[34..36].copy_from_slice(&(random.next() as u16).to_be_bytes());
    if packet.len() == 52 {
        for byte in &mut packet[40..] {
            if random.next().is_multiple_of(2) {
                *byte = random.next() as u8;
            }
        }
    }
    packet[32] = ((packet.len() - 20) as u8 / 4) << 4;
    let total = packet.len() as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    mend(&mut packet);
    if random.next().is_multiple_of(2) {
        // As if from the other side.
        let (source, destination): ([u8; 4], [u8; 4]) =
            (packet[12..16].try_into().unwrap(), packet[16..20].try_into().unwrap());
        packet[12..16].copy_from_slice(&destination);
        packet[16..20].copy_from_slice(&source);
        mend(&mut packet);
    }
    packet
}

fn strip(packet: &mut [u8], kinds: &[u8]) {
    assert!(parse(packet).is_some());
    let mut at = 40;
    while at < packet.len() {
        let kind = packet[at];
        let len = if kind <= 1 { 1 } else { usize::from(packet[at + 1]) };
        if kinds.contains(&kind) {
            packet[at..at + len].fill(1);
        }
        at += len;
    }
    mend(packet);
}

/// Makes the checksums right.
pub fn mend(packet: &mut [u8]) {
    let mut ip = Ipv4Packet::new_unchecked(&mut *packet);
    ip.fill_checksum();
    let (source, destination) = (ip.src_addr().into(), ip.dst_addr().into());
    TcpPacket::new_unchecked(&mut packet[20..]).fill_checksum(&source, &destination);
}
