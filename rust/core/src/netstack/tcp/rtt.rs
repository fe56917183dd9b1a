//! The round trip time and the retransmission timeout (RFC 6298).

use crate::{Nanos, SECOND};

/// Estimates from samples.
#[derive(Default)]
pub struct Rtt {
    smoothed: Option<Nanos>,
    variation: Nanos,
    least: Option<Nanos>,
    /// When the least was found: a path may have become longer since.
    found: Nanos,
    backoff: u32,
}

impl Rtt {
    pub fn sample(&mut self, now: Nanos, rtt: Nanos) {
        self.backoff = 0;
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                self.variation = (3 * self.variation + smoothed.abs_diff(rtt)) / 4;
                self.smoothed = Some((7 * smoothed + rtt) / 8);
            }
        }
        if self.least.is_none_or(|least| rtt <= least) || now > self.found + LEAST_LASTS {
            self.least = Some(rtt);
            self.found = now;
        }
    }

    pub fn smoothed(&self) -> Option<Nanos> {
        self.smoothed
    }

    pub fn least(&self) -> Option<Nanos> {
        self.least
    }

    /// The retransmission timeout. The least variation covers a peer that delays its acknowledgement.
    pub fn timeout(&self) -> Nanos {
        let timeout = match self.smoothed {
            Some(smoothed) => smoothed + (4 * self.variation).max(LEAST_VARIATION),
            None => INITIAL_TIMEOUT,
        };
        (timeout << self.backoff).min(LONGEST_TIMEOUT)
    }

    /// Doubles the timeout until the next sample.
    pub fn back_off(&mut self) {
        self.backoff = (self.backoff + 1).min(MOST_BACKOFF);
    }
}

const INITIAL_TIMEOUT: Nanos = SECOND;
const LEAST_VARIATION: Nanos = SECOND / 5;
const LONGEST_TIMEOUT: Nanos = 60 * SECOND;
const MOST_BACKOFF: u32 = 10;
const LEAST_LASTS: Nanos = 300 * SECOND;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_the_samples_and_backs_off() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.timeout(), SECOND);
        rtt.sample(0, SECOND / 20);
        assert_eq!(rtt.timeout(), SECOND / 20 + SECOND / 5);
        rtt.back_off();
        rtt.back_off();
        assert_eq!(rtt.timeout(), 4 * (SECOND / 20 + SECOND / 5));
        rtt.sample(1, SECOND);
        assert!(rtt.timeout() > SECOND && rtt.timeout() < 2 * SECOND);
        (0..100).for_each(|_| rtt.back_off());
        assert_eq!(rtt.timeout(), 60 * SECOND);
    }
}
