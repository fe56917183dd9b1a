//! How fast, and without waiting for timeouts where the peer has told what is missing.

use super::link::{CLEAN, MILLI, Pair, Path, bytes};
use crate::SECOND;

fn megabits(len: usize, time: u64) -> f64 {
    len as f64 * 8.0 / 1e6 / (time as f64 / SECOND as f64)
}

#[test]
fn one_stream_reaches_200_megabits_at_50_milliseconds() {
    let path = Path { rate: 40_000_000, queue: 2_000_000, ..CLEAN };
    let mut pair = Pair::new(path, 1);
    pair.connect();
    let data = bytes(80 << 20, 2);
    let time = pair.transfer([&data, &[]]);
    assert_eq!(pair.timeouts(0), 0);
    let reached = megabits(data.len(), time);
    assert!(reached > 200.0, "{reached:.0} Mbit/s of 320");
    println!("{reached:.0} Mbit/s of 320, the slow start counted");
    pair.finish();
}

#[test]
fn random_loss_costs_neither_timeouts_nor_speed() {
    // A path of 100 Mbit/s: what remains of it at such a loss is nearly all.
    for (loss, least) in [(1_000, 80.0), (10_000, 70.0)] {
        for seed in 0..3 {
            let path = Path { rate: 12_500_000, queue: 1 << 20, loss, ..CLEAN };
            let mut pair = Pair::new(path, seed);
            pair.wires[1].path.loss = 0;
            pair.connect();
            let data = bytes(60 << 20, seed);
            let time = pair.transfer([&data, &[]]);
            let reached = megabits(data.len(), time);
            println!("loss {loss} in a million: {reached:.1} Mbit/s; {:?}", pair.ends[0].sender.counts);
            assert!(reached > least);
            // A retransmission that is lost as the last of a flight is all that a timeout is for.
            assert!(pair.timeouts(0) <= 2, "{}", pair.timeouts(0));
            pair.finish();
        }
    }
}

#[test]
fn a_queue_that_is_short_is_not_flooded() {
    for queue in [20_000, 60_000, 200_000] {
        let path = Path { rate: 12_500_000, queue, ..CLEAN };
        let mut pair = Pair::new(path, 7);
        pair.connect();
        let data = bytes(60 << 20, 1);
        let time = pair.transfer([&data, &[]]);
        let counts = pair.ends[0].sender.counts;
        println!("queue {queue}: {:.1} Mbit/s, {counts:?}", megabits(data.len(), time));
        assert!(megabits(data.len(), time) > 60.0);
        assert!(counts.repeats * 10 < counts.segments, "{counts:?}");
    }
}

#[test]
fn a_long_queue_is_not_filled() {
    let path = Path { rate: 12_500_000, queue: 4 << 20, ..CLEAN };
    let mut pair = Pair::new(path, 8);
    pair.connect();
    let data = bytes(60 << 20, 1);
    pair.transfer([&data, &[]]);
    // The queue would hold 335 ms. What is out beyond the path itself is about as much again.
    let flight = pair.ends[0].sender.round_trip().unwrap();
    assert!(flight < 150 * MILLI, "{} ms", flight / MILLI);
}

#[test]
fn a_receiver_that_drops_a_burst_is_served_without_a_timeout() {
    let path = Path { delay: MILLI / 4, rate: 125_000_000, queue: 256 << 10, ..CLEAN };
    for seed in 0..2 {
        let mut pair = Pair::new(path, seed);
        pair.connect();
        let mut count = 0u64;
        pair.filter = Box::new(move |side, _| {
            count += 1;
            side == 1 || !(4000..4012).contains(&(count % 8000))
        });
        let data = bytes(24 << 20, seed);
        let time = pair.transfer([&data, &[]]);
        println!("{:.0} Mbit/s {:?}", megabits(data.len(), time), pair.ends[0].sender.counts);
        assert_eq!(pair.timeouts(0), 0);
        assert!(megabits(data.len(), time) > 500.0);
    }
}

#[test]
fn both_directions_at_once() {
    let path = Path { rate: 12_500_000, queue: 512 << 10, loss: 100, ..CLEAN };
    let mut pair = Pair::new(path, 5);
    pair.connect();
    let (up, down) = (bytes(20 << 20, 1), bytes(20 << 20, 2));
    let time = pair.transfer([&up, &down]);
    println!("100 Mbit/s both ways: {:.0} Mbit/s each", megabits(up.len(), time));
    assert_eq!((pair.timeouts(0), pair.timeouts(1)), (0, 0));
    pair.finish();
}

#[test]
fn reordering_is_not_taken_for_loss_for_long() {
    let path = Path { rate: 12_500_000, queue: 1 << 20, reorder: 30_000, ..CLEAN };
    let mut pair = Pair::new(path, 6);
    pair.connect();
    let data = bytes(20 << 20, 1);
    let time = pair.transfer([&data, &[]]);
    let counts = pair.ends[0].sender.counts;
    println!("reordering: {:.0} Mbit/s, {counts:?}", megabits(data.len(), time));
    assert_eq!(counts.timeouts, 0);
    assert!(counts.repeats * 100 < counts.segments);
    assert!(megabits(data.len(), time) > 50.0);
}
