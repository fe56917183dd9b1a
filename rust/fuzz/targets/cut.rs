//! The segmenter.

#![no_main]

#[path = "../../core/tests/hostile/cases.rs"]
#[allow(dead_code)]
mod cases;
#[path = "../source.rs"]
mod source;

use source::Seeded;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cases::cut(&mut Seeded::new(bytes)));
