//! The memory that all connections share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of buffers: how many there may be, and how many are in use. Clones count as one.
#[derive(Clone)]
pub struct Budget {
    limit: usize,
    used: Arc<AtomicUsize>,
}

/// What every connection has for certain, however much the others use. Given back when dropped.
pub struct Floor(Budget);

impl Budget {
    pub fn new(limit: usize) -> Budget {
        Budget { limit, used: Arc::default() }
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub fn free(&self) -> usize {
        self.limit.saturating_sub(self.used())
    }

    /// The floor of one more connection; `None` past the budget.
    pub fn floor(&self) -> Option<Floor> {
        self.take(FLOOR).then(|| Floor(self.clone()))
    }

    /// Takes `count` bytes, or none if there are not as many.
    pub fn take(&self, count: usize) -> bool {
        let more = |used: usize| used.checked_add(count).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub fn give(&self, count: usize) {
        self.used.fetch_sub(count, Ordering::Relaxed);
    }
}

impl Floor {
    pub fn budget(&self) -> &Budget {
        &self.0
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.0.give(FLOOR);
    }
}

/// The unit in which buffers grow.
pub const CHUNK: usize = 16 * 1024;
/// A chunk each way.
const FLOOR: usize = 2 * CHUNK;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_and_all_comes_back() {
        let budget = Budget::new(10 * CHUNK);
        let floors: Vec<_> = std::iter::from_fn(|| budget.floor()).collect();
        assert_eq!((floors.len(), budget.free()), (5, 0));
        assert!(!budget.take(1));
        drop(floors);
        assert!(budget.take(10 * CHUNK) && !budget.take(1));
        budget.give(10 * CHUNK);
        assert_eq!(budget.used(), 0);
    }
}
