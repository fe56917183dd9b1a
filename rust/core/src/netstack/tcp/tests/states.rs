//! Opening, closing, resets.

use super::faults::mend;
use super::link::{CLEAN, MILLI, Pair, Seeded, bytes, parse};
use crate::SECOND;
use crate::netstack::tcp::{Phase, Transport};

#[test]
fn each_side_may_end_first() {
    for first in 0..2 {
        let mut pair = Pair::new(CLEAN, 1);
        pair.connect();
        pair.ends[first].finish();
        pair.run_for(SECOND);
        assert!(pair.ends[1 - first].has_peer_finished() && !pair.ends[first].has_peer_finished());
        assert!(pair.ends[first].write(|_| (0, ())).is_none());
        // The other direction goes on for as long as it likes.
        let data = bytes(1 << 20, 2);
        let mut directions: [&[u8]; 2] = [&[], &[]];
        directions[1 - first] = &data;
        pair.transfer(directions);
        pair.ends[1 - first].finish();
        pair.run_for(SECOND);
        assert_eq!(pair.ends[first].phase(), Phase::Lingering);
        assert_eq!(pair.ends[1 - first].phase(), Phase::Gone);
        assert!(pair.ends[first].remains().is_some() && pair.ends[first].is_drained());
    }
}

#[test]
fn both_may_end_at_once() {
    let mut pair = Pair::new(CLEAN, 1);
    pair.connect();
    pair.ends[0].finish();
    pair.ends[1].finish();
    pair.run_for(SECOND);
    for end in &pair.ends {
        assert_eq!(end.phase(), Phase::Lingering);
        assert!(end.remains().is_some());
    }
}

#[test]
fn both_may_begin_at_once() {
    let mut pair = Pair::new(CLEAN, 1);
    let mut other = Pair::new(CLEAN, 9);
    // Two that connect: the second has the first's addresses turned round.
    let swap = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        for (a, b, len) in [(12, 16, 4), (20, 22, 2)] {
            for at in 0..len {
                packet.swap(a + at, b + at);
            }
        }
        mend(&mut packet);
        packet
    };
    for _ in 0..4 {
        let (ours, theirs) = (pair.packets(0), other.packets(0));
        theirs.iter().for_each(|packet| pair.input(0, &swap(packet)));
        ours.iter().for_each(|packet| other.input(0, &swap(packet)));
    }
    assert_eq!((pair.ends[0].phase(), other.ends[0].phase()), (Phase::Open, Phase::Open));
}

/// A reset from the peer's address, with a sequence number off by so much.
fn reset(pair: &mut Pair, offset: u32) -> Vec<u8> {
    pair.write(1, b"x");
    let mut packet = pair.packets(1).remove(0).to_vec();
    let next = u32::from_be_bytes(packet[24..28].try_into().unwrap());
    packet.truncate(52);
    packet[2..4].copy_from_slice(&52u16.to_be_bytes());
    packet[24..28].copy_from_slice(&next.wrapping_add(offset).to_be_bytes());
    packet[33] = 4;
    mend(&mut packet);
    packet
}

#[test]
fn only_the_exact_reset_ends_a_connection() {
    for (offset, ends, challenged) in [
        (0, true, false),
        (1, false, true),
        (10_000, false, true),
        (1 << 20, false, false),
        (u32::MAX, false, false),
    ] {
        let mut pair = Pair::new(CLEAN, 1);
        pair.connect();
        pair.run_for(SECOND);
        let forged = reset(&mut pair, offset);
        pair.input(0, &forged);
        assert_eq!(pair.ends[0].phase() == Phase::Gone, ends, "{offset}");
        assert_eq!(pair.packets(0).len(), usize::from(challenged), "{offset}");
    }
}

#[test]
fn challenges_are_limited() {
    let mut pair = Pair::new(CLEAN, 1);
    pair.connect();
    pair.run_for(SECOND);
    let forged = reset(&mut pair, 100);
    let mut answers = 0;
    for _ in 0..1000 {
        pair.input(0, &forged);
        answers += pair.packets(0).len();
    }
    assert_eq!(answers, 10);
}

#[test]
fn a_syn_into_a_connection_is_challenged() {
    let mut pair = Pair::new(CLEAN, 1);
    pair.connect();
    pair.run_for(SECOND);
    let mut syn = reset(&mut pair, 0);
    syn[33] = 2;
    mend(&mut syn);
    pair.input(0, &syn);
    let answer = parse(&pair.packets(0)[0]).unwrap();
    assert!(answer.ack && !answer.rst && pair.ends[0].phase() == Phase::Open);
}

#[test]
fn a_refused_connection_is_gone() {
    let mut pair = Pair::new(CLEAN, 1);
    let syn = pair.packets(0).remove(0);
    let mut out = crate::netstack::outbox::Outbox::new(crate::packet::Pool::new(0).local());
    crate::netstack::segment::emit_reset(&mut out, &parse(&syn).unwrap());
    let mut packets = Vec::new();
    out.take(&mut packets);
    let mut blind = packets[0].to_vec();
    blind[31] ^= 1; // the acknowledgement number
    mend(&mut blind);
    pair.input(0, &blind);
    assert_eq!(pair.ends[0].phase(), Phase::Connecting);
    pair.input(0, &packets[0]);
    assert_eq!(pair.ends[0].phase(), Phase::Gone);
}

#[test]
fn an_idle_peer_in_half_close_is_asked() {
    let mut pair = Pair::new(CLEAN, 1);
    pair.connect();
    pair.ends[0].finish();
    pair.run_for(SECOND);
    let asked = std::rc::Rc::new(std::cell::Cell::new(0));
    let count = asked.clone();
    pair.filter = Box::new(move |_, _| {
        count.set(count.get() + 1);
        true
    });
    pair.run_for(200 * SECOND);
    // A question and an answer, twice.
    assert_eq!(asked.get(), 4);
}

#[test]
fn a_shorter_path_is_learnt_in_the_middle() {
    let mut pair = Pair::new(CLEAN, 1);
    pair.connect();
    pair.transfer([&bytes(100_000, 1), &[]]);
    pair.filter = Box::new(|_, packet| packet.len() <= 700);
    let data = bytes(100_000, 2);
    let sent = pair.write(0, &data);
    pair.flush();
    pair.ends[0].lower_mtu(700);
    let mut got = Vec::new();
    let start = pair.now;
    let mut written = sent;
    while got.len() < data.len() {
        written += pair.write(0, &data[written..]);
        pair.read(1, &mut got);
        assert!(pair.step());
    }
    assert!(got == data && pair.now - start < 2 * SECOND, "{}", (pair.now - start) / MILLI);
    assert_eq!(pair.timeouts(0), 0);
}

#[test]
fn memory_follows_use() {
    let mut pair = Pair::new(CLEAN, 1);
    pair.connect();
    let idle = [pair.budgets[0].used(), pair.budgets[1].used()];
    assert!(idle.iter().all(|used| *used <= 32 << 10));
    let mut random = Seeded(3);
    let data = bytes(4 << 20, random.next());
    let sent = pair.write(0, &data);
    assert!(pair.budgets[0].used() >= sent);
    pair.transfer([&[], &[]]);
    let mut got = Vec::new();
    let mut written = sent;
    while got.len() < data.len() {
        written += pair.write(0, &data[written..]);
        pair.read(1, &mut got);
        pair.step();
    }
    pair.run_for(SECOND);
    assert_eq!([pair.budgets[0].used(), pair.budgets[1].used()], idle);
}
