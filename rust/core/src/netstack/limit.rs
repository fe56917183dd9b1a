//! How often something may happen.

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
        let step = SECOND / self.rate;
        let grown = now.saturating_sub(self.filled) / step;
        if grown > 0 {
            self.tokens = (self.tokens + grown).min(self.rate);
            self.filled = if self.tokens == self.rate { now } else { self.filled + grown * step };
        }
        let granted = self.tokens > 0;
        self.tokens -= u64::from(granted);
        granted
    }
}

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
}
