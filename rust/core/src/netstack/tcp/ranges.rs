//! Sets of positions, as ranges.

use std::ops::Range;

use crate::netstack::tcp::sequence::Position;

/// Ranges in order that neither overlap nor touch.
#[derive(Default)]
pub struct Ranges {
    all: Vec<Range<Position>>,
}

impl Ranges {
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn first(&self) -> Option<Range<Position>> {
        self.all.first().cloned()
    }

    pub fn last(&self) -> Option<Range<Position>> {
        self.all.last().cloned()
    }

    /// The range that contains or ends at `position`.
    pub fn around(&self, position: Position) -> Option<Range<Position>> {
        let range = self.all.get(self.index(position))?;
        (range.start <= position).then(|| range.clone())
    }

    pub fn covers(&self, range: &Range<Position>) -> bool {
        self.around(range.start).is_some_and(|around| around.end >= range.end)
    }

    /// Whether adding the range would make one range more.
    pub fn is_apart(&self, range: &Range<Position>) -> bool {
        self.all.get(self.index(range.start)).is_none_or(|next| next.start > range.end)
    }

    /// Adds a range that is not empty, and tells `fresh` the parts that were not in the set.
    pub fn add(&mut self, range: Range<Position>, mut fresh: impl FnMut(Range<Position>)) {
        let from = self.index(range.start);
        let mut whole = range.clone();
        let mut open = range.start;
        let mut to = from;
        while let Some(next) = self.all.get(to)
            && next.start <= range.end
        {
            if open < next.start {
                fresh(open..next.start);
            }
            open = open.max(next.end);
            whole = whole.start.min(next.start)..whole.end.max(next.end);
            to += 1;
        }
        if open < range.end {
            fresh(open..range.end);
        }
        if to - from == 1 {
            self.all[from] = whole;
        } else {
            self.all.splice(from..to, [whole]);
        }
    }

    /// Takes everything below `position` out.
    pub fn forget_below(&mut self, position: Position) {
        let gone = self.all.partition_point(|range| range.end <= position);
        if gone > 0 {
            self.all.drain(..gone);
        }
        if let Some(first) = self.all.first_mut() {
            first.start = first.start.max(position);
        }
    }

    pub fn clear(&mut self) {
        self.all = Vec::new();
    }

    /// The first range that does not end before `position`.
    fn index(&self, position: Position) -> usize {
        self.all.partition_point(|range| range.end < position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_agree_with_a_plain_set() {
        for seed in 0..200u64 {
            println!("seed {seed}");
            let mut state = seed;
            let mut next = |below: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            let (mut ranges, mut plain) = (Ranges::default(), [false; 64]);
            for _ in 0..30 {
                let start = next(60);
                let range = start..start + 1 + next(63 - start);
                let mut fresh = [false; 64];
                ranges.add(range.clone(), |part| part.for_each(|at| fresh[at as usize] = true));
                for at in range {
                    assert_eq!(fresh[at as usize], !plain[at as usize]);
                    plain[at as usize] = true;
                }
                if next(4) == 0 {
                    let below = next(20);
                    ranges.forget_below(below);
                    (0..below).for_each(|at| plain[at as usize] = false);
                }
                for at in 0..64 {
                    assert_eq!(ranges.covers(&(at..at + 1)), plain[at as usize]);
                }
                assert!(ranges.all.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }
    }
}
