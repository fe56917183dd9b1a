//! What comes from a peer or a program is changed at random: nothing panics, nothing is made up.
//!
//! GINNEL_CASES says how many cases (5,000 each), GINNEL_SEED where they begin.

mod cases;
#[path = "../../src/seeded.rs"]
mod seeded;

use seeded::Seeded;

#[test]
fn what_is_cut_is_all_of_it_or_refused() {
    each(cases::cut);
}

#[test]
fn what_is_joined_is_cut_into_what_it_was() {
    each(cases::join);
}

#[test]
fn only_what_was_sealed_is_opened() {
    each(cases::open);
}

/// Runs a case for each seed; the one that fails is printed.
fn each(case: impl Fn(&mut Seeded)) {
    let number = |name, otherwise| {
        std::env::var(name)
            .map_or(otherwise, |text| text.parse().expect("GINNEL_CASES and GINNEL_SEED are numbers"))
    };
    let first: u64 = number("GINNEL_SEED", 0);
    for seed in first..first + number("GINNEL_CASES", 5_000) {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&mut Seeded(seed))));
        if let Err(reason) = done {
            eprintln!("GINNEL_SEED={seed} GINNEL_CASES=1");
            std::panic::resume_unwind(reason);
        }
    }
}
