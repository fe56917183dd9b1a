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
fn random_loss_costs_no_timeouts() {
    for (loss, len) in [(1_000, 40 << 20), (10_000, 10 << 20)] {
        for seed in 0..2 {
            let path = Path { rate: 125_000_000, queue: 4 << 20, loss, ..CLEAN };
            let mut pair = Pair::new(path, seed);
            pair.wires[1].path.loss = 0;
            pair.connect();
            let data = bytes(len, seed);
            let time = pair.transfer([&data, &[]]);
            let p = loss as f64 / 1e6;
            // RFC 9438, 5.2, and Reno's, which CUBIC does not fall below.
            let cubic = 1.054 * 0.05f64.powf(0.75) / p.powf(0.75);
            let expected = cubic.max(1.22 / p.sqrt()) * 1448.0 * 8.0 / 0.05 / 1e6;
            println!(
                "loss {p}: {:.2} Mbit/s, expected {expected:.2}; {:?}",
                megabits(data.len(), time),
                pair.ends[0].sender.counts
            );
            assert!(megabits(data.len(), time) > 0.5 * expected);
            // A retransmission that is lost as the last of a flight is all that a timeout is for.
            assert!(pair.timeouts(0) <= 2, "{}", pair.timeouts(0));
            pair.finish();
        }
    }
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
