//! How fast the path delivers: a sample with every acknowledgement
//! (draft-cheng-iccrg-delivery-rate-estimation-02).

use crate::{Nanos, SECOND};

/// What one sender has had delivered.
#[derive(Default)]
pub struct Delivery {
    /// Bytes that are known to have arrived, since the beginning.
    delivered: u64,
    /// When the last of them became known.
    at: Nanos,
    /// When the segment was sent that began the current flight.
    first_sent: Nanos,
    /// Up to this count of delivered bytes, what is out did not fill the path.
    limited_until: u64,
}

/// What was known when a segment was sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamp {
    delivered: u64,
    at: Nanos,
    first_sent: Nanos,
    limited: bool,
}

/// What an acknowledgement tells of the path: the view of the newest segment that it is for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    stamp: Stamp,
    sent: Nanos,
    known: bool,
}

/// A rate, and what it is worth.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Bytes a second.
    pub rate: u64,
    /// The program had nothing more to send: the path may be able to do more.
    pub limited: bool,
}

impl Delivery {
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The stamp of a segment that goes out; `flight` bytes are out already.
    pub fn stamp(&mut self, now: Nanos, flight: u64) -> Stamp {
        if flight == 0 {
            (self.first_sent, self.at) = (now, now);
        }
        let Delivery { delivered, at, first_sent, limited_until } = *self;
        Stamp { delivered, at, first_sent, limited: delivered < limited_until }
    }

    /// Notes that the program has nothing more to send, though there is room on the path.
    pub fn limit(&mut self, flight: u64) {
        self.limited_until = self.delivered + flight.max(1);
    }

    /// Notes that a segment has arrived, which was sent at `sent`.
    pub fn arrived(&mut self, now: Nanos, len: u64, sent: Nanos, stamp: &Stamp, sample: &mut Sample) {
        self.delivered += len;
        self.at = now;
        if !sample.known || (stamp.delivered, sent) > (sample.stamp.delivered, sample.sent) {
            *sample = Sample { stamp: *stamp, sent, known: true };
            self.first_sent = sent;
        }
    }

    /// The rate that a sample shows; `None` when it was taken over less than the path's round trip,
    /// in which only a burst of acknowledgements can be so quick.
    pub fn rate(&self, sample: &Sample, least_rtt: Option<Nanos>) -> Option<Rate> {
        let Sample { stamp, sent, known } = sample;
        let interval = sent.saturating_sub(stamp.first_sent).max(self.at.saturating_sub(stamp.at));
        if !known || interval == 0 || least_rtt.is_some_and(|least| interval < least) {
            return None;
        }
        let bytes = u128::from(self.delivered - stamp.delivered);
        let rate = (bytes * u128::from(SECOND) / u128::from(interval)) as u64;
        Some(Rate { rate, limited: stamp.limited })
    }
}

impl Sample {
    /// How much had been delivered when the newest segment that arrived was sent; `None`: none arrived.
    pub fn delivered_before(&self) -> Option<u64> {
        self.known.then_some(self.stamp.delivered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_path_shows_its_rate() {
        let mut delivery = Delivery::default();
        let rtt = SECOND / 10;
        // A segment of 1000 bytes a millisecond, acknowledged one by one after a round trip.
        let stamps: Vec<_> = (0..100).map(|at| delivery.stamp(at * SECOND / 1000, at * 1000)).collect();
        let mut rate = None;
        for (at, stamp) in (0..).zip(&stamps) {
            let mut sample = Sample::default();
            let sent = at * SECOND / 1000;
            delivery.arrived(sent + rtt, 1000, sent, stamp, &mut sample);
            rate = delivery.rate(&sample, Some(rtt)).or(rate);
        }
        let rate = rate.unwrap();
        assert!((500_000..=1_010_000).contains(&rate.rate), "{rate:?}");
        assert!(!rate.limited);
    }

    #[test]
    fn a_burst_of_acknowledgements_is_no_measure() {
        let mut delivery = Delivery::default();
        let stamp = delivery.stamp(SECOND, 0);
        let mut sample = Sample::default();
        delivery.arrived(SECOND + 10, 1000, SECOND, &stamp, &mut sample);
        assert!(delivery.rate(&sample, Some(SECOND / 100)).is_none());
        delivery.limit(0);
        assert!(delivery.stamp(2 * SECOND, 0).limited);
    }
}
