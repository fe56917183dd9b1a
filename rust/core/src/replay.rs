//! Replay protection: which packet ids of a receive key have been seen.
//!
//! Tested before a packet is opened, which spares the cipher; committed once it is authentic, so
//! that a forgery cannot move the window. The bitmap is a ring (RFC 6479): moving on clears words
//! instead of shifting them. What comes long after a later packet is too old as well, as in stock
//! OpenVPN (`replay-window`): a network that delays is a matter of seconds, an attacker's store is not.

use crate::{Nanos, SECOND};

/// How far behind the highest id a packet may come, in ids.
///
/// Stock OpenVPN's 64 is less than two GRO batches (45 datagrams each at 1,400 bytes) that change
/// places, or two queues of a network card that are drained in turn, so ours is wider.
pub const WIDTH: u64 = (WORDS as u64 - 1) * WORD_BITS;

/// How long after a later packet a packet may come, at least: it may be a third longer.
pub const BACKTRACK: Nanos = 15 * SECOND;

/// The window of one receive key. Ids count from 1.
#[derive(Clone, Debug)]
pub struct Window {
    highest: u64,
    seen: [u64; WORDS],
    /// Ids up to this one are too old.
    aged: u64,
    /// What the highest id was at the last marks in time, the oldest first.
    marks: [u64; MARKS],
    marked: Nanos,
}

impl Window {
    pub fn new() -> Window {
        Window { highest: 0, seen: [0; WORDS], aged: 0, marks: [0; MARKS], marked: 0 }
    }

    /// Whether a packet with this id is new and not too old.
    pub fn admits(&mut self, id: u64, now: Nanos) -> bool {
        if now >= self.marked + MARK_INTERVAL {
            self.mark(now);
        }
        if id > self.highest {
            return true;
        }
        id > self.aged && self.highest - id < WIDTH && self.seen[word(id)] & bit(id) == 0
    }

    /// Marks an admitted id as seen. Returns whether it is the highest so far.
    pub fn commit(&mut self, id: u64) -> bool {
        let newest = id > self.highest;
        if newest {
            let passed = (id / WORD_BITS - self.highest / WORD_BITS).min(WORDS as u64);
            for step in 1..=passed {
                self.seen[word(self.highest + step * WORD_BITS)] = 0;
            }
            self.highest = id;
        }
        self.seen[word(id)] |= bit(id);
        newest
    }

    /// The highest id seen, 0 before the first.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    fn mark(&mut self, now: Nanos) {
        // The highest came within an interval of the last mark, or there would be another.
        let idle = now >= self.marked + MARK_INTERVAL + BACKTRACK;
        self.aged = if idle { self.highest } else { self.marks[0] };
        self.marks.rotate_left(1);
        self.marks[MARKS - 1] = self.highest;
        if idle {
            self.marks = [self.highest; MARKS];
        }
        self.marked = now;
    }
}

impl Default for Window {
    fn default() -> Window {
        Window::new()
    }
}

fn word(id: u64) -> usize {
    (id / WORD_BITS) as usize % WORDS
}

fn bit(id: u64) -> u64 {
    1 << (id % WORD_BITS)
}

const WORD_BITS: u64 = u64::BITS as u64;
const WORDS: usize = 32;
const MARKS: usize = 3;
const MARK_INTERVAL: Nanos = BACKTRACK / MARKS as u64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Offers the id as a receiver would, and says whether it was taken.
    fn take(window: &mut Window, id: u64) -> bool {
        let admitted = window.admits(id, 0);
        if admitted {
            window.commit(id);
        }
        admitted
    }

    fn check(cases: &[(u64, bool)]) {
        let mut window = Window::new();
        for &(id, expected) in cases {
            assert_eq!(take(&mut window, id), expected, "id {id} in {cases:?}");
        }
    }

    #[test]
    fn each_id_once_and_never_zero() {
        check(&[(0, false), (1, true), (1, false), (9, true), (8, true), (7, true), (7, false), (0, false)]);
        check(&[
            (15, true),
            (16, true),
            (16, false),
            (15, false),
            (WIDTH + 17, true),
            (17, false),
            (18, true),
        ]);
    }

    #[test]
    fn the_windows_edges() {
        let edge = WIDTH + 1;
        check(&[(edge, true), (1, false), (2, true), (2, false), (0, false)]);
        check(&[(edge + 1, true), (2, false), (3, true), (edge, true), (edge, false)]);
        check(&[(1, true), (WIDTH, true), (1, false), (2, true), (WIDTH + 2, true), (2, false), (3, true)]);
        check(&[
            (u32::MAX as u64, true),
            (u32::MAX as u64 - WIDTH, false),
            (u32::MAX as u64 - WIDTH + 1, true),
        ]);
        check(&[(u32::MAX as u64 - 1, true), (u32::MAX as u64, true), (u32::MAX as u64, false)]);
    }

    #[test]
    fn word_borders() {
        for border in [WORD_BITS, 2 * WORD_BITS, WIDTH, WIDTH + WORD_BITS, 7 * WIDTH] {
            check(&[
                (border, true),
                (border - 1, true),
                (border + 1, true),
                (border, false),
                (border - 1, false),
            ]);
        }
    }

    #[test]
    fn a_jump_forgets_what_it_passes() {
        for jump in [WORD_BITS, WIDTH - 1, WIDTH, WIDTH + WORD_BITS, 10 * WIDTH] {
            let mut window = Window::new();
            (1..=100).for_each(|id| assert!(take(&mut window, id)));
            assert!(take(&mut window, 100 + jump));
            for id in (101..100 + jump).rev().take_while(|id| 100 + jump - id < WIDTH) {
                assert!(take(&mut window, id), "id {id} after a jump of {jump}");
            }
        }
    }

    #[test]
    fn in_reverse_all_of_the_window_is_taken() {
        let mut window = Window::new();
        let taken = (1..=WIDTH + 50).rev().filter(|&id| take(&mut window, id)).count() as u64;
        assert_eq!(taken, WIDTH);
    }

    #[test]
    fn what_comes_long_after_a_later_one_is_too_old() {
        let mut window = Window::new();
        let take = |window: &mut Window, id, now: Nanos| {
            let admitted = window.admits(id, now);
            if admitted {
                window.commit(id);
            }
            admitted
        };
        for second in 0..100 {
            assert!(take(&mut window, 100 + 10 * second, second * SECOND));
            if second >= 15 {
                assert!(take(&mut window, 100 + 10 * (second - 15) + 1, second * SECOND), "15 seconds late");
            }
            if second >= 21 {
                assert!(!take(&mut window, 100 + 10 * (second - 21) - 1, second * SECOND), "21 seconds late");
            }
        }
        assert!(!take(&mut window, 1089, 120 * SECOND), "after a silence");
        assert!(take(&mut window, 1091, 120 * SECOND));
    }

    #[test]
    fn it_agrees_with_a_set() {
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let (mut window, mut seen, mut highest) = (Window::new(), HashSet::new(), 0);
        for round in 0..200_000u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = (round / 2 + (random >> 33) % (2 * WIDTH)).saturating_sub(WIDTH / 2);
            let expected = id > 0 && id + WIDTH > highest && !seen.contains(&id);
            assert_eq!(take(&mut window, id), expected, "id {id}, highest {highest}");
            if expected {
                seen.insert(id);
                highest = highest.max(id);
            }
        }
    }
}
