//! When a thread does not let itself be woken by each datagram, as a network card moderates its interrupts.
//!
//! A peer that sends a bulk of long datagrams one by one wakes its reader for every few of them, and the sleeping,
//! the waking, a write to the device and an answer of TCP's for each few cost more than all else (docs/benchmarks.md).
//! While that lasts the thread looks again after a fixed rest, which no packet waits for longer than. What comes in
//! runs, in small datagrams or at a lower rate is taken as it comes.

use std::time::Duration;

use ginnel_core::{Nanos, SECOND};

#[derive(Default)]
pub struct Rest {
    since: Nanos,
    messages: u64,
    bytes: u64,
    is_due: bool,
    /// What came last came in a large batch: more may be there already.
    is_behind: bool,
}

impl Rest {
    /// So much came in at once: messages are what the system gave one by one, a run of datagrams being one, or what
    /// a stream had.
    pub fn count(&mut self, messages: u64, bytes: u64) {
        self.messages += messages;
        self.bytes += bytes;
        self.is_behind = messages >= ENOUGH || bytes >= ENOUGH * LONG * 2;
    }

    /// How long the thread is to rest before it looks again.
    pub fn take(&mut self, now: Nanos) -> Option<Duration> {
        let passed = now.saturating_sub(self.since);
        if passed >= PERIOD {
            let (messages, bytes) = (std::mem::take(&mut self.messages), std::mem::take(&mut self.bytes));
            self.is_due = messages * SECOND / passed > MANY && bytes > messages * LONG;
            self.since = now;
        }
        (self.is_due && !self.is_behind).then_some(REST)
    }
}

/// How often the rate is looked at.
const PERIOD: Nanos = SECOND / 100;
/// Messages a second, above which each does not wake the thread: twice a rest apart they would cost no more than one.
const MANY: u64 = 15_000;
/// Their bytes on average. Those that only acknowledge what we send are shorter, and it is for the sender's sake that
/// they are not late.
const LONG: u64 = 600;
/// As many as one call takes at most; or as many bytes as they have.
const ENOUGH: u64 = 12;
/// The system adds up to 50 µs of its own to a thread that is not ahead of others.
const REST: Duration = Duration::from_micros(150);

#[cfg(test)]
mod tests {
    use super::*;

    /// What it says after a period with so many messages a second of so many bytes.
    fn after(messages: u64, bytes: u64) -> Option<Duration> {
        let mut rest = Rest::default();
        rest.take(SECOND);
        (0..messages / 100).for_each(|_| rest.count(1, bytes));
        rest.take(SECOND + PERIOD)
    }

    #[test]
    fn a_bulk_of_single_long_datagrams_is_looked_at_now_and_then() {
        assert_eq!(after(60_000, 1_400), Some(REST));
    }

    #[test]
    fn what_comes_slowly_or_in_runs_or_only_acknowledges_is_taken_as_it_comes() {
        for (messages, bytes) in [(1_000, 1_400), (9_000, 60_000), (60_000, 100), (0, 0)] {
            assert_eq!(after(messages, bytes), None, "{messages} of {bytes}");
        }
    }

    #[test]
    fn who_is_behind_does_not_rest() {
        let mut rest = Rest::default();
        rest.take(SECOND);
        (0..20).for_each(|_| rest.count(30, 30 * 1_400));
        assert!(rest.take(SECOND + PERIOD).is_none());
        rest.count(5, 5 * 1_400);
        assert!(rest.take(SECOND + PERIOD + PERIOD / 2).is_some());
    }

    #[test]
    fn it_ends_with_the_bulk() {
        let mut rest = Rest::default();
        rest.take(SECOND);
        (0..600).for_each(|_| rest.count(1, 1_400));
        assert!(rest.take(SECOND + PERIOD).is_some());
        assert!(rest.take(SECOND + PERIOD + PERIOD / 2).is_some());
        assert!(rest.take(SECOND + 2 * PERIOD).is_none());
    }
}
