//! How much may be out, and how fast: a model of the path, by its bandwidth and its round trip
//! (BBR, draft-cardwell-iccrg-bbr-congestion-control-00), with a ceiling where much is lost.
//!
//! Losses by themselves do not slow it down, as they say little on a radio link or beneath a
//! tunnel. What it fills is the path, not the queues on it.

use crate::netstack::tcp::delivery::Rate;
use crate::{Nanos, SECOND};

/// The model, the window in bytes and the pace that follow from it.
pub struct Bbr {
    most_payload: u64,
    window: u64,
    mode: Mode,
    rounds: Rounds,
    bandwidth: Highest,
    /// How far acknowledgements ran ahead of the bandwidth: they come in batches.
    ahead: Ahead,
    least_rtt: Option<Nanos>,
    least_found: Nanos,
    startup: Startup,
    /// What may be out at most since much of it was lost.
    ceiling: u64,
    pace: Option<u64>,
    before_loss: u64,
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Doubles each round trip until the bandwidth stops growing.
    Startup,
    /// Lets the queue go that this has built.
    Drain,
    /// Around the bandwidth: a phase above it, one below, six at it.
    Cruise { phase: usize, since: Nanos },
    /// Half the window, to see the round trip without a queue. Until when, once so little is out.
    Look { until: Option<Nanos> },
}

/// What an acknowledgement tells.
pub struct Heard {
    pub now: Nanos,
    pub arrived: u64,
    /// Newly taken for lost.
    pub lost: u64,
    /// Out before it came, and now.
    pub flight_before: u64,
    pub flight: u64,
    pub rtt: Option<Nanos>,
    pub smoothed: Option<Nanos>,
    pub rate: Option<Rate>,
    /// All that was delivered, and how much had been when the newest segment that arrived was sent.
    pub delivered: u64,
    pub delivered_before: Option<u64>,
}

/// Round trips, counted by what is delivered.
#[derive(Default)]
struct Rounds {
    count: u64,
    end: u64,
    began: u64,
    lost: u64,
    highest_flight: u64,
}

#[derive(Default)]
struct Startup {
    best: u64,
    rounds: u32,
    over: bool,
}

impl Bbr {
    /// `seed`: any number; it keeps connections from probing in step.
    pub fn new(most_payload: u64, seed: u64) -> Bbr {
        Bbr {
            most_payload,
            window: initial_window(most_payload),
            mode: Mode::Startup,
            rounds: Rounds::default(),
            bandwidth: Highest::default(),
            ahead: Ahead::default(),
            least_rtt: None,
            least_found: 0,
            startup: Startup::default(),
            ceiling: u64::MAX,
            pace: None,
            before_loss: 0,
            seed,
        }
    }

    /// Bytes that may be out.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// Bytes a second that may go out; `None`: as they come.
    pub fn pace(&self) -> Option<u64> {
        self.pace
    }

    /// The initial window is kept in segments.
    pub fn set_most_payload(&mut self, most_payload: u64) {
        if self.window == initial_window(self.most_payload) {
            self.window = initial_window(most_payload);
        }
        self.most_payload = most_payload;
        self.window = self.window.max(LEAST_SEGMENTS * most_payload);
    }

    /// Something is taken for lost: what is out is not to grow faster than it arrives for a while.
    pub fn lose(&mut self) {
        self.before_loss = self.window;
    }

    /// What was taken for lost was not.
    pub fn undo(&mut self) {
        self.window = self.window.max(self.before_loss);
    }

    /// Nothing came back for a whole timeout.
    pub fn collapse(&mut self) {
        self.window = self.most_payload;
    }

    pub fn hear(&mut self, heard: &Heard) {
        let new_round = self.rounds.hear(heard);
        if new_round {
            self.judge_losses(heard);
        }
        if let Some(rate) = heard.rate
            && (!rate.limited || rate.rate >= self.bandwidth.value())
        {
            self.bandwidth.add(self.rounds.count, rate.rate);
        }
        self.ahead.hear(heard, self.rounds.count, self.bandwidth.value(), self.window);
        if new_round {
            self.startup.judge(self.bandwidth.value(), heard.rate.is_none_or(|rate| rate.limited));
        }
        self.change_mode(heard);
        self.look_at_round_trip(heard);
        self.set_pace(heard);
        self.set_window(heard);
    }

    /// Where much of a round was lost, a queue on the path is short of what the model would put there.
    fn judge_losses(&mut self, heard: &Heard) {
        let Rounds { began, lost, highest_flight, .. } = self.rounds;
        let delivered = heard.delivered - began;
        if lost >= MANY_LOST * self.most_payload && lost > (delivered + lost) / LOSS_SHARE {
            let floor = self.product(CEILING_FLOOR);
            self.ceiling = (highest_flight / 100 * CEILING_PERCENT).max(floor).min(self.ceiling.max(floor));
            self.startup.over = true;
        } else if lost == 0 && self.ceiling != u64::MAX && highest_flight + self.most_payload >= self.ceiling
        {
            self.ceiling += self.ceiling / 16 + self.most_payload;
        }
        self.rounds.begin(heard.delivered);
    }

    fn change_mode(&mut self, heard: &Heard) {
        match self.mode {
            Mode::Startup if self.startup.over => self.mode = Mode::Drain,
            _ => {}
        }
        match self.mode {
            Mode::Drain if heard.flight <= self.product(1.0) => self.cruise(heard.now),
            Mode::Cruise { phase, since } => {
                let long = heard.now.saturating_sub(since) > self.least_rtt.unwrap_or(0);
                let over = match phase {
                    ABOVE => long && (heard.lost > 0 || heard.flight_before >= self.product(GAINS[ABOVE])),
                    BELOW => long || heard.flight <= self.product(1.0),
                    _ => long,
                };
                if over {
                    self.mode = Mode::Cruise { phase: (phase + 1) % GAINS.len(), since: heard.now };
                }
            }
            _ => {}
        }
    }

    fn look_at_round_trip(&mut self, heard: &Heard) {
        let old = heard.now > self.least_found + LEAST_LASTS;
        if let Some(rtt) = heard.rtt
            && (old || self.least_rtt.is_none_or(|least| rtt <= least))
        {
            self.least_rtt = Some(rtt);
            self.least_found = heard.now;
            // What is seen while little is out needs no looking for.
            if old && heard.flight_before > self.product(0.5) && !matches!(self.mode, Mode::Look { .. }) {
                self.mode = Mode::Look { until: None };
            }
        }
        match self.mode {
            Mode::Look { until: None } if heard.flight <= self.least_window() => {
                let round = self.least_rtt.unwrap_or(0);
                self.mode = Mode::Look { until: Some(heard.now + LOOK.max(round)) };
            }
            Mode::Look { until: Some(until) } if heard.now >= until => {
                self.least_found = heard.now;
                if self.startup.over {
                    self.cruise(heard.now)
                } else {
                    self.mode = Mode::Startup
                }
                self.window = self.window.max(self.before_loss);
            }
            _ => {}
        }
    }

    fn cruise(&mut self, now: Nanos) {
        // Any phase but the one below, which only makes up for the one above.
        let phase = [0, 2, 3, 4, 5, 6, 7][(self.seed.wrapping_add(self.rounds.count) % 7) as usize];
        self.mode = Mode::Cruise { phase, since: now };
    }

    fn set_pace(&mut self, heard: &Heard) {
        let gain = match self.mode {
            Mode::Startup => HIGH_GAIN,
            Mode::Drain => 1.0 / HIGH_GAIN,
            Mode::Cruise { phase, .. } => GAINS[phase],
            Mode::Look { .. } => 1.0,
        };
        let pace = match (self.bandwidth.value(), heard.smoothed) {
            (0, Some(rtt)) => HIGH_GAIN * self.window as f64 * SECOND as f64 / rtt.max(1) as f64,
            (0, None) => return,
            (bandwidth, _) => gain * bandwidth as f64,
        } as u64;
        let pace = pace.max(LEAST_PACE);
        if self.startup.over || self.pace.is_none_or(|before| pace > before) {
            self.pace = Some(pace);
        }
    }

    fn set_window(&mut self, heard: &Heard) {
        let gain = if self.startup.over { WINDOW_GAIN } else { HIGH_GAIN };
        // Room for what goes out in one go, here, on the path and at the peer.
        let bursts = 3 * self.pace.unwrap_or(0) / BURSTS_A_SECOND;
        let target = self.product(gain) + bursts + self.ahead.value();
        if self.startup.over {
            self.window = (self.window + heard.arrived).min(target);
        } else if self.window < target || heard.delivered < initial_window(self.most_payload) {
            self.window += heard.arrived;
        }
        if let Mode::Look { .. } = self.mode {
            self.before_loss = self.before_loss.max(self.window);
            self.window = self.window.min(self.least_window());
        }
        self.window = self.window.min(self.ceiling).min(LARGEST).max(LEAST_SEGMENTS * self.most_payload);
    }

    /// Half of what the path holds.
    fn least_window(&self) -> u64 {
        self.product(0.5).max(LEAST_SEGMENTS * self.most_payload)
    }

    /// What the path holds, `gain` times.
    fn product(&self, gain: f64) -> u64 {
        match (self.bandwidth.value(), self.least_rtt) {
            (0, _) | (_, None) => (gain * initial_window(self.most_payload) as f64) as u64,
            (bandwidth, Some(rtt)) => (gain * bandwidth as f64 * rtt as f64 / SECOND as f64) as u64,
        }
    }
}

impl Rounds {
    /// Takes an acknowledgement. Returns whether it ends a round.
    fn hear(&mut self, heard: &Heard) -> bool {
        self.lost += heard.lost;
        self.highest_flight = self.highest_flight.max(heard.flight_before);
        let over = heard.delivered_before.is_some_and(|before| before >= self.end);
        if over {
            self.end = heard.delivered;
            self.count += 1;
        }
        over
    }

    fn begin(&mut self, delivered: u64) {
        (self.began, self.lost, self.highest_flight) = (delivered, 0, 0);
    }
}

impl Startup {
    /// The path is full once three rounds in a row have not added a quarter to its bandwidth.
    fn judge(&mut self, bandwidth: u64, limited: bool) {
        if self.over || limited {
            return;
        }
        if bandwidth >= self.best + self.best / 4 {
            self.best = bandwidth;
            self.rounds = 0;
        } else {
            self.rounds += 1;
            self.over = self.rounds >= FULL_ROUNDS;
        }
    }
}

/// The highest of the values of the last [`Highest::ROUNDS`] rounds: the three best, by age.
#[derive(Default)]
struct Highest {
    best: [(u64, u64); 3],
}

impl Highest {
    const ROUNDS: u64 = 10;

    fn value(&self) -> u64 {
        self.best[0].1
    }

    fn add(&mut self, round: u64, value: u64) {
        let new = (round, value);
        let best = &mut self.best;
        if value >= best[0].1 || round > best[2].0 + Highest::ROUNDS {
            *best = [new; 3];
            return;
        }
        if value >= best[1].1 {
            (best[1], best[2]) = (new, new);
        } else if value >= best[2].1 {
            best[2] = new;
        }
        if round > best[0].0 + Highest::ROUNDS {
            *best = [best[1], best[2], new];
            if round > best[0].0 + Highest::ROUNDS {
                *best = [best[1], best[2], new];
            }
        } else if best[1].0 == best[0].0 && round > best[0].0 + Highest::ROUNDS / 4 {
            (best[1], best[2]) = (new, new);
        } else if best[2].0 == best[1].0 && round > best[1].0 + Highest::ROUNDS / 2 {
            best[2] = new;
        }
    }
}

#[derive(Default)]
struct Ahead {
    since: Nanos,
    arrived: u64,
    most: Highest,
}

impl Ahead {
    fn value(&self) -> u64 {
        self.most.value()
    }

    fn hear(&mut self, heard: &Heard, round: u64, bandwidth: u64, window: u64) {
        let passed = heard.now.saturating_sub(self.since);
        let expected = (u128::from(bandwidth) * u128::from(passed) / u128::from(SECOND)) as u64;
        if self.arrived <= expected {
            (self.since, self.arrived) = (heard.now, 0);
        }
        let expected = if self.arrived == 0 { 0 } else { expected };
        self.arrived += heard.arrived;
        self.most.add(round, (self.arrived - expected.min(self.arrived)).min(window));
    }
}

/// RFC 6928.
pub fn initial_window(most_payload: u64) -> u64 {
    (10 * most_payload).min((2 * most_payload).max(14_600))
}

/// 2 / ln 2: the least that doubles what is delivered each round trip.
const HIGH_GAIN: f64 = 2.885;
const WINDOW_GAIN: f64 = 2.0;
const GAINS: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
const ABOVE: usize = 0;
const BELOW: usize = 1;
const FULL_ROUNDS: u32 = 3;
const LEAST_SEGMENTS: u64 = 4;
const LEAST_LASTS: Nanos = 10 * SECOND;
const LOOK: Nanos = SECOND / 5;
const LEAST_PACE: u64 = 10_000;
const BURSTS_A_SECOND: u64 = 1000;
const LARGEST: u64 = 16 << 20;
/// A round in which more than one in 50 was lost, and so many segments.
const LOSS_SHARE: u64 = 50;
const MANY_LOST: u64 = 8;
const CEILING_PERCENT: u64 = 85;
const CEILING_FLOOR: f64 = 1.25;

#[cfg(test)]
mod tests {
    use super::*;

    /// A path of 1 MB/s and 100 ms with no queue to speak of, in steps of 10 ms.
    fn run(bbr: &mut Bbr, seconds: u64) {
        let (mut now, mut delivered) = (SECOND, 0);
        for step in 0..seconds * 100 {
            now += SECOND / 100;
            let rate = bbr.window().min(100_000) * 10;
            let arrived = rate / 100;
            delivered += arrived;
            bbr.hear(&Heard {
                now,
                arrived,
                lost: 0,
                flight_before: bbr.window().min(100_000),
                flight: bbr.window().min(100_000) - arrived,
                rtt: Some(SECOND / 10),
                smoothed: Some(SECOND / 10),
                rate: Some(Rate { rate, limited: false }),
                delivered,
                delivered_before: (step % 10 == 0).then(|| delivered.saturating_sub(arrived)),
            });
        }
    }

    #[test]
    fn the_window_comes_to_twice_what_the_path_holds() {
        let mut bbr = Bbr::new(1000, 3);
        run(&mut bbr, 3);
        assert!((180_000..260_000).contains(&bbr.window()), "{}", bbr.window());
        let pace = bbr.pace().unwrap();
        assert!((740_000..1_260_000).contains(&pace), "{pace}");
    }

    #[test]
    fn the_highest_is_forgotten_after_ten_rounds() {
        let mut highest = Highest::default();
        (1..=30).for_each(|round| highest.add(round, if round == 5 { 100 } else { 50 + round % 3 }));
        assert!((50..53).contains(&highest.value()), "{}", highest.value());
        highest.add(31, 70);
        highest.add(41, 60);
        assert_eq!(highest.value(), 70);
        highest.add(42, 55);
        assert_eq!(highest.value(), 60);
    }
}
