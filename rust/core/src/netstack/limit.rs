//! How often something may happen.

use std::collections::HashMap;
use std::hash::Hash;

use crate::{Nanos, SECOND};

/// A bucket that fills with `rate` tokens a second, up to one second's worth.
pub struct Limit {
    rate: u64,
    tokens: u64,
    filled: Nanos,
}

impl Limit {
    pub fn new(rate: u64) -> Limit {
        Limit { rate, tokens: rate, filled: 0 }
    }

    /// One that is full at `now`.
    pub fn starting(rate: u64, now: Nanos) -> Limit {
        Limit { filled: now, ..Limit::new(rate) }
    }

    /// Takes a token. `false` when there is none.
    pub fn take(&mut self, now: Nanos) -> bool {
        let granted = self.left(now) > 0;
        self.tokens -= u64::from(granted);
        granted
    }

    /// How many tokens there are.
    pub fn left(&mut self, now: Nanos) -> u64 {
        let step = SECOND / self.rate;
        let grown = now.saturating_sub(self.filled) / step;
        if grown > 0 {
            self.tokens = (self.tokens + grown).min(self.rate);
            self.filled = if self.tokens == self.rate { now } else { self.filled + grown * step };
        }
        self.tokens
    }
}

/// A bucket for all, whose last quarter is for those who have not had their part of it: one alone may have the rest.
pub struct Limits<K> {
    all: Limit,
    parts: HashMap<K, Limit>,
    rate: u64,
}

impl<K: Hash + Eq> Limits<K> {
    pub fn new(rate: u64) -> Limits<K> {
        Limits { all: Limit::new(rate), parts: HashMap::new(), rate }
    }

    /// Takes a token. `false` when there is none for this one.
    pub fn take(&mut self, now: Nanos, who: K) -> bool {
        if self.parts.len() >= MOST_KNOWN && !self.parts.contains_key(&who) {
            self.parts.clear();
        }
        let rate = (self.rate / PARTS).max(1);
        let part = self.parts.entry(who).or_insert_with(|| Limit::starting(rate, now));
        (part.take(now) || self.all.left(now) > self.rate / 4) && self.all.take(now)
    }
}

const PARTS: u64 = 64;
/// Past these all are known anew: what they had is little, and all together have no more for that.
const MOST_KNOWN: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_rate() {
        let mut limit = Limit::new(100);
        let burst = (0..1000).filter(|_| limit.take(SECOND)).count();
        assert_eq!(burst, 100);
        let second = (0..1000).filter(|tick| limit.take(SECOND + tick * SECOND / 1000)).count();
        assert_eq!(second, 99);
    }

    #[test]
    fn one_leaves_others_their_part_and_all_have_no_more_than_the_rate() {
        let mut limits = Limits::new(100);
        let burst = |limits: &mut Limits<u32>, who| (0..1000).filter(|_| limits.take(SECOND, who)).count();
        assert_eq!((burst(&mut limits, 1), burst(&mut limits, 2), burst(&mut limits, 3)), (75, 1, 1));
        assert_eq!((4..5000).map(|who| burst(&mut limits, who)).sum::<usize>(), 23);
        assert!(limits.parts.len() <= MOST_KNOWN);
    }
}
