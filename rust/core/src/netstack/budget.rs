//! The memory that all connections share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of buffers: how many there may be, and how many are in use. Clones count as one.
///
/// A share is what one client may use. Half of all is kept for the shares' own parts, [`OWN`] bytes each; of the other
/// half a client takes no more than it leaves, and its buffers grow into three quarters of that only, so that whoever
/// has much under way can open connections still. Only one thread may take at a time.
#[derive(Clone)]
pub struct Budget {
    pool: Arc<Pool>,
    /// What the client of this share uses; `None` for what is no client's.
    client: Option<Arc<AtomicUsize>>,
}

struct Pool {
    limit: usize,
    used: AtomicUsize,
    /// Bytes that clients use beyond their own parts.
    beyond: AtomicUsize,
}

/// What every connection has for certain, however much the others use. Given back when dropped.
pub struct Floor(Budget);

impl Budget {
    pub fn new(limit: usize) -> Budget {
        Budget { pool: Arc::new(Pool { limit, used: 0.into(), beyond: 0.into() }), client: None }
    }

    /// The share of one client more.
    pub fn share(&self) -> Budget {
        Budget { pool: self.pool.clone(), client: Some(Arc::default()) }
    }

    pub fn limit(&self) -> usize {
        self.pool.limit
    }

    /// Of all.
    pub fn used(&self) -> usize {
        self.pool.used.load(Ordering::Relaxed)
    }

    /// How many bytes buffers can grow by.
    pub fn free(&self) -> usize {
        self.left(self.pool.limit / 2 / 4 * 3)
    }

    /// The floor of one more connection; `None` past the budget.
    pub fn floor(&self) -> Option<Floor> {
        (self.left(self.pool.limit / 2) >= FLOOR).then(|| {
            self.use_up(FLOOR);
            Floor(self.clone())
        })
    }

    /// Takes `count` bytes, or none if there are not as many.
    pub fn take(&self, count: usize) -> bool {
        let granted = self.free() >= count;
        if granted {
            self.use_up(count);
        }
        granted
    }

    pub fn give(&self, count: usize) {
        self.pool.used.fetch_sub(count, Ordering::Relaxed);
        if let Some(client) = &self.client {
            let before = client.fetch_sub(count, Ordering::Relaxed);
            self.pool.beyond.fetch_sub(beyond(before) - beyond(before - count), Ordering::Relaxed);
        }
    }

    fn use_up(&self, count: usize) {
        self.pool.used.fetch_add(count, Ordering::Relaxed);
        if let Some(client) = &self.client {
            let before = client.fetch_add(count, Ordering::Relaxed);
            self.pool.beyond.fetch_add(beyond(before + count) - beyond(before), Ordering::Relaxed);
        }
    }

    /// What can be taken, if clients may use `common` bytes beyond their own parts: as much as leaves no less than
    /// this one has then.
    fn left(&self, common: usize) -> usize {
        let free = self.pool.limit.saturating_sub(self.used());
        let Some(client) = &self.client else { return free };
        let used = client.load(Ordering::Relaxed);
        let unused = common.saturating_sub(self.pool.beyond.load(Ordering::Relaxed));
        let more = unused.saturating_sub(beyond(used)) / 2 / CHUNK * CHUNK;
        free.min(OWN.saturating_sub(used) + more)
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

/// Of what a client uses, what it has beyond its own part.
fn beyond(used: usize) -> usize {
    used.saturating_sub(OWN)
}

/// The unit in which buffers grow.
pub const CHUNK: usize = 16 * 1024;
/// A chunk each way.
const FLOOR: usize = 2 * CHUNK;
/// Eight connections.
const OWN: usize = 8 * FLOOR;

#[cfg(test)]
mod tests {
    use super::*;

    fn floors(budget: &Budget) -> Vec<Floor> {
        std::iter::from_fn(|| budget.floor()).collect()
    }

    #[test]
    fn one_client_alone_has_a_quarter_and_the_last_of_many_its_part() {
        let budget = Budget::new(64 << 20);
        let shares: Vec<_> = (0..100).map(|_| budget.share()).collect();
        let held: Vec<_> = shares.iter().map(floors).collect();
        assert_eq!(held[0].len(), (16 << 20) / FLOOR + 8);
        assert_eq!(held[1].len(), (8 << 20) / FLOOR + 8);
        assert_eq!(held[99].len(), 8);
        assert!(budget.used() <= budget.limit());
        drop(held);
        assert_eq!((budget.used(), budget.pool.beyond.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn what_grows_leaves_room_for_connections() {
        let share = Budget::new(64 << 20).share();
        let grown = (0..).take_while(|_| share.take(CHUNK)).count() * CHUNK;
        assert!((12 << 20..13 << 20).contains(&grown), "{grown}");
        assert!(floors(&share).len() >= 100);
        share.give(grown);
    }

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
