//! What a call of AES-256-GCM costs with each of the libraries: nanoseconds, the best of several runs, by length.

use std::hint::black_box;
use std::time::Instant;

use aws_lc_rs::aead as aws;
use ring::aead as ring;

const LENGTHS: [usize; 3] = [100, 576, 1400];
const RUNS: usize = 9;
const CALLS: usize = 40_000;
const KEY: [u8; 32] = [0x42; 32];
const NONCE: [u8; 12] = [7; 12];
/// The header and the packet id, as P_DATA_V2 authenticates them.
const AUTHENTICATED: [u8; 8] = [9; 8];

fn main() {
    println!("library bytes seal open");
    for len in LENGTHS {
        let (seal, open) = ring_costs(len);
        println!("ring {len} {seal:.0} {open:.0}");
        let (seal, open) = aws_costs(len);
        println!("aws-lc-rs {len} {seal:.0} {open:.0}");
    }
}

/// It opens in place alone: the copy that takes the text to its place is counted.
fn ring_costs(len: usize) -> (f64, f64) {
    let key =
        ring::LessSafeKey::new(ring::UnboundKey::new(&ring::AES_256_GCM, &KEY).expect("a key's length"));
    let nonce = || ring::Nonce::assume_unique_for_key(NONCE);
    let aad = || ring::Aad::from(&AUTHENTICATED);
    let mut sealed = vec![0x45; len];
    let tag = key.seal_in_place_separate_tag(nonce(), aad(), &mut sealed).expect("a short text");
    let mut text = vec![0x45; len];
    let seal = best(|| {
        let tag = key.seal_in_place_separate_tag(nonce(), aad(), &mut text);
        let _ = black_box(tag.expect("a short text"));
    });
    let open = best(|| {
        text.copy_from_slice(&sealed);
        black_box(key.open_in_place_separate_tag(nonce(), aad(), tag, &mut text, 0..).expect("its own tag"));
    });
    (seal, open)
}

fn aws_costs(len: usize) -> (f64, f64) {
    let key = aws::LessSafeKey::new(aws::UnboundKey::new(&aws::AES_256_GCM, &KEY).expect("a key's length"));
    let nonce = || aws::Nonce::assume_unique_for_key(NONCE);
    let aad = || aws::Aad::from(&AUTHENTICATED);
    let mut sealed = vec![0x45; len];
    let tag = key.seal_in_place_separate_tag(nonce(), aad(), &mut sealed).expect("a short text");
    let mut text = vec![0x45; len];
    let seal = best(|| {
        let tag = key.seal_in_place_separate_tag(nonce(), aad(), &mut text);
        let _ = black_box(tag.expect("a short text"));
    });
    let open = best(|| {
        key.open_separate_gather(nonce(), aad(), &sealed, tag.as_ref(), &mut text).expect("its own tag");
        black_box(&text);
    });
    (seal, open)
}

/// Nanoseconds a call.
fn best(mut call: impl FnMut()) -> f64 {
    let mut least = f64::INFINITY;
    for _ in 0..RUNS {
        let began = Instant::now();
        (0..CALLS).for_each(|_| call());
        least = least.min(began.elapsed().as_nanos() as f64 / CALLS as f64);
    }
    least
}
