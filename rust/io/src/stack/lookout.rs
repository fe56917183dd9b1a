//! Whether a thread sleeps at once when there is nothing to do, or looks out for a while first.
//!
//! Waking a processor takes longer than what is done with a small packet. Where one follows the other at once, as in an
//! exchange of requests and answers, who has not gone to sleep yet need not be woken. Whether that pays depends on who
//! else wants the processors, so each way is tried, and the quicker one kept to for some time.

use std::time::{Duration, Instant};

/// How a thread waits, from what it has seen so far.
pub(super) struct Lookout {
    /// When this wait began.
    began: Instant,
    /// Which season it is of a year, when that began, and how many of its waits are over.
    season: usize,
    since: Instant,
    waits: u32,
    /// How long the first two took: one in which the thread slept, and one in which it looked.
    took: [Duration; 2],
}

impl Lookout {
    pub(super) fn new(now: Instant) -> Lookout {
        Lookout { began: now, season: SLEEPS, since: now, waits: 0, took: [Duration::ZERO; 2] }
    }

    /// A wait begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.began = now;
    }

    /// Whether to look once more before the thread sleeps.
    pub(super) fn is_patient(&self, now: Instant) -> bool {
        let looks = match self.season {
            SLEEPS => false,
            LOOKS => true,
            _ => self.took[LOOKS] < self.took[SLEEPS] / 4 * 3,
        };
        looks && now - self.began < LONGEST
    }

    /// The wait is over.
    pub(super) fn end(&mut self, now: Instant) {
        if now - self.began >= LONGEST {
            *self = Lookout::new(now);
            return;
        }
        self.waits += 1;
        if self.waits < WAITS {
            return;
        }
        if let Some(took) = self.took.get_mut(self.season) {
            *took = now - self.since;
        }
        (self.season, self.since, self.waits) = ((self.season + 1) % SEASONS, now, 0);
    }
}

/// The first two seasons of a year.
const SLEEPS: usize = 0;
const LOOKS: usize = 1;
const SEASONS: usize = 32;
/// A season has so many.
const WAITS: u32 = 32;
/// Who waits longer is asleep, and nobody's packets follow each other at once.
const LONGEST: Duration = Duration::from_micros(400);

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes through a year; each wait takes what it takes in the manner of its season. In how many seasons it looked.
    fn year(lookout: &mut Lookout, now: &mut Instant, asleep: Duration, awake: Duration) -> usize {
        (0..SEASONS).filter(|_| season(lookout, now, asleep, awake)).count()
    }

    fn season(lookout: &mut Lookout, now: &mut Instant, asleep: Duration, awake: Duration) -> bool {
        lookout.begin(*now);
        let looks = lookout.is_patient(*now);
        for _ in 0..WAITS {
            lookout.begin(*now);
            *now += if looks { awake } else { asleep };
            lookout.end(*now);
        }
        looks
    }

    const fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    #[test]
    fn keeps_to_what_is_quicker() {
        let mut now = Instant::now();
        let mut lookout = Lookout::new(now);
        assert_eq!(year(&mut lookout, &mut now, micros(100), micros(50)), SEASONS - 1);
        // Tried once a year where it does not pay.
        assert_eq!(year(&mut lookout, &mut now, micros(100), micros(90)), 1);
        assert_eq!(year(&mut lookout, &mut now, micros(100), micros(150)), 1);
        assert_eq!(year(&mut lookout, &mut now, micros(100), micros(50)), SEASONS - 1);
    }

    #[test]
    fn sleeps_where_packets_are_far_apart() {
        let mut now = Instant::now();
        let mut lookout = Lookout::new(now);
        assert_eq!(year(&mut lookout, &mut now, LONGEST, LONGEST), 0);
        for looks in [false, true, true] {
            assert_eq!(season(&mut lookout, &mut now, micros(100), micros(50)), looks);
        }
        // One that comes late, and all is to be learned again.
        lookout.begin(now);
        assert!(lookout.is_patient(now));
        now += LONGEST;
        lookout.end(now);
        lookout.begin(now);
        assert!(!lookout.is_patient(now));
    }

    #[test]
    fn looks_no_longer_than_a_packet_is_expected() {
        let mut now = Instant::now();
        let mut lookout = Lookout::new(now);
        for _ in 0..WAITS {
            lookout.begin(now);
            lookout.end(now);
        }
        lookout.begin(now);
        assert!(lookout.is_patient(now));
        now += LONGEST - micros(1);
        assert!(lookout.is_patient(now));
        now += micros(1);
        assert!(!lookout.is_patient(now));
    }
}
