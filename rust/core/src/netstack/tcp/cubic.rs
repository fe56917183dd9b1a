//! The congestion window: CUBIC (RFC 9438), and HyStart++ to end slow start early (RFC 9406).

use crate::netstack::tcp::sequence::Position;
use crate::{Nanos, SECOND};

/// The window and what it grows by. Windows are in bytes.
#[derive(Clone)]
pub struct Cubic {
    most_payload: u64,
    window: u64,
    threshold: u64,
    /// The window before the last reduction, in segments.
    most: f64,
    /// When the cubic curve began, and how many seconds after that it reaches its plateau.
    epoch: Option<Nanos>,
    plateau: f64,
    heard: Nanos,
    /// What Reno would have by now, in segments.
    reno: f64,
    /// The part of a byte that the window has grown by and does not show.
    fraction: f64,
    round: Round,
}

/// HyStart++'s view of slow start.
#[derive(Clone, Default)]
struct Round {
    end: Position,
    least: Option<Nanos>,
    least_before: Option<Nanos>,
    samples: u32,
    /// In conservative slow start: the least RTT that led there, and the rounds since.
    cautious: Option<(Nanos, u32)>,
}

/// What an acknowledgement tells the window.
pub struct Growth {
    pub now: Nanos,
    pub arrived: u64,
    /// Whether the window was what kept us from sending more.
    pub limited: bool,
    pub rtt: Option<Nanos>,
    pub smoothed: Nanos,
    pub acknowledged: Position,
    pub next: Position,
}

impl Cubic {
    pub fn new(most_payload: u64) -> Cubic {
        Cubic {
            most_payload,
            window: initial_window(most_payload),
            threshold: u64::MAX,
            most: 0.0,
            epoch: None,
            plateau: 0.0,
            heard: 0,
            reno: 0.0,
            fraction: 0.0,
            round: Round::default(),
        }
    }

    pub fn window(&self) -> u64 {
        self.window
    }

    pub fn threshold(&self) -> u64 {
        self.threshold
    }

    pub fn is_slow_start(&self) -> bool {
        self.window < self.threshold
    }

    /// The window is kept in segments as it is in bytes: a new length of the segments scales it.
    pub fn set_most_payload(&mut self, most_payload: u64) {
        if self.threshold == u64::MAX && self.window == initial_window(self.most_payload) {
            self.window = initial_window(most_payload);
        }
        self.most_payload = most_payload;
        self.window = self.window.max(LEAST_SEGMENTS * most_payload);
    }

    pub fn grow(&mut self, growth: &Growth) {
        if self.is_slow_start() {
            self.grow_slow_start(growth);
        } else {
            self.grow_cubic(growth);
        }
        self.window = self.window.min(LARGEST);
    }

    /// Something was lost, or is taken for lost.
    pub fn reduce(&mut self) {
        let window = self.segments();
        // Fast convergence (4.7): a window that did not reach its old size makes room for others.
        self.most = if window < self.most { window * (1.0 + BETA) / 2.0 } else { window };
        self.threshold = ((self.window as f64 * BETA) as u64).max(LEAST_SEGMENTS * self.most_payload);
        self.window = self.threshold;
        self.epoch = None;
        self.round = Round::default();
    }

    /// Nothing came back for a whole timeout.
    pub fn collapse(&mut self) {
        self.window = self.most_payload;
    }

    /// What the window was says little after a pause (RFC 5681, 4.1).
    pub fn rest(&mut self) {
        self.window = self.window.min(initial_window(self.most_payload));
        self.epoch = None;
    }

    fn segments(&self) -> f64 {
        self.window as f64 / self.most_payload as f64
    }

    fn grow_slow_start(&mut self, growth: &Growth) {
        let out = self.round.hear(growth);
        if !growth.limited {
            return;
        }
        let arrived = if self.round.cautious.is_some() { growth.arrived / CAUTION } else { growth.arrived };
        self.window = (self.window + arrived).min(self.threshold);
        if out {
            self.threshold = self.window;
        }
    }

    fn grow_cubic(&mut self, growth: &Growth) {
        let since = growth.now.saturating_sub(std::mem::replace(&mut self.heard, growth.now));
        if !growth.limited {
            // Time in which the path was not filled is no time to grow by (RFC 9438, 5.8).
            self.epoch = self.epoch.map(|epoch| epoch + since);
            return;
        }
        let window = self.segments();
        let epoch = *self.epoch.get_or_insert_with(|| {
            self.plateau = ((self.most - window).max(0.0) / C).cbrt();
            self.most = self.most.max(window);
            self.reno = window;
            growth.now
        });
        let passed = growth.now.saturating_sub(epoch) as f64 / SECOND as f64;
        let curve = |seconds: f64| C * (seconds - self.plateau).powi(3) + self.most;
        let arrived = growth.arrived as f64 / self.most_payload as f64;
        let alpha = if self.reno < self.most { 3.0 * (1.0 - BETA) / (1.0 + BETA) } else { 1.0 };
        let reno = self.reno + alpha * arrived / window;
        let target =
            curve(passed + growth.smoothed as f64 / SECOND as f64).clamp(window, 1.5 * window).max(window);
        let step = if curve(passed) < reno {
            (reno - window).max(0.0)
        } else {
            (target - window) / window * arrived
        };
        self.reno = reno;
        let bytes = step * self.most_payload as f64 + self.fraction;
        self.fraction = bytes.fract();
        self.window += bytes as u64;
    }
}

impl Round {
    /// Takes an acknowledgement. Returns whether slow start is over.
    fn hear(&mut self, growth: &Growth) -> bool {
        let mut out = false;
        if growth.acknowledged >= self.end {
            if let Some((_, rounds)) = &mut self.cautious {
                *rounds += 1;
                out = *rounds >= CAUTIOUS_ROUNDS;
            }
            self.end = growth.next;
            self.least_before = self.least.take();
            self.samples = 0;
        }
        let Some(rtt) = growth.rtt else { return out };
        self.least = Some(self.least.map_or(rtt, |least| least.min(rtt)));
        self.samples += 1;
        let (Some(least), true) = (self.least, self.samples >= SAMPLES) else { return out };
        match self.cautious {
            Some((baseline, _)) if least < baseline => self.cautious = None,
            Some(_) => {}
            None => {
                let Some(before) = self.least_before else { return out };
                if least >= before + (before / 8).clamp(LEAST_RISE, MOST_RISE) {
                    self.cautious = Some((least, 0));
                }
            }
        }
        out
    }
}

/// RFC 6928.
fn initial_window(most_payload: u64) -> u64 {
    (10 * most_payload).min((2 * most_payload).max(14_600))
}

const C: f64 = 0.4;
const BETA: f64 = 0.7;
const LEAST_SEGMENTS: u64 = 2;
const LARGEST: u64 = 16 << 20;
const CAUTION: u64 = 4;
const CAUTIOUS_ROUNDS: u32 = 5;
const SAMPLES: u32 = 8;
const LEAST_RISE: Nanos = SECOND / 250;
const MOST_RISE: Nanos = 2 * SECOND / 125;

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(now: Nanos, arrived: u64, rtt: Nanos) -> Growth {
        Growth { now, arrived, limited: true, rtt: Some(rtt), smoothed: rtt, acknowledged: 0, next: 1 }
    }

    #[test]
    fn the_window_returns_to_where_it_was_when_the_curve_says() {
        let mut cubic = Cubic::new(1000);
        cubic.window = 1_000_000;
        cubic.reduce();
        assert_eq!(cubic.window(), 700_000);
        // K = cbrt(1000 * 0.3 / 0.4) = 9.086 s
        let mut now = 0;
        while cubic.window() < 999_900 {
            now += SECOND / 10;
            cubic.grow(&growth(now, cubic.window(), SECOND / 10));
        }
        assert!((8 * SECOND..10 * SECOND).contains(&now), "{now}");
    }

    #[test]
    fn on_a_short_path_it_grows_as_reno_would() {
        let mut cubic = Cubic::new(1000);
        cubic.window = 20_000;
        cubic.reduce();
        let before = cubic.window();
        for round in 1..=8 {
            cubic.grow(&growth(round * SECOND / 1000, cubic.window(), SECOND / 1000));
        }
        // 0.53 segments a round trip
        assert!((3_500..5_000).contains(&(cubic.window() - before)), "{}", cubic.window() - before);
    }

    #[test]
    fn a_rising_round_trip_ends_slow_start() {
        let mut cubic = Cubic::new(1000);
        let (mut next, mut now) = (10_000, SECOND);
        for round in 0..20 {
            let rtt = SECOND / 20 + if round > 4 { SECOND / 20 } else { 0 };
            for _ in 0..10 {
                let mut growth = growth(now, cubic.window() / 10, rtt);
                (growth.acknowledged, growth.next) = (next - 10_000, next);
                cubic.grow(&growth);
                next += 1000;
                now += rtt / 10;
            }
        }
        assert!(!cubic.is_slow_start());
    }
}
