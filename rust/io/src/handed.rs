//! What one thread has for another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ginnel_core::queue::Wake;

use crate::wake::Waker;

/// A bounded box that one thread empties and others fill, in order.
pub struct Handed<T> {
    waiting: Mutex<Vec<T>>,
    wake: Arc<Waker>,
}

impl<T> Handed<T> {
    /// A box for the thread that this wakes.
    pub fn new(wake: Arc<Waker>) -> Handed<T> {
        Handed { waiting: Mutex::new(Vec::new()), wake }
    }

    /// Puts things in, from the front of `things`; what finds no room stays there.
    pub fn give(&self, things: &mut Vec<T>) {
        if things.is_empty() {
            return;
        }
        let mut waiting = self.lock();
        let was_empty = waiting.is_empty();
        let room = (LIMIT - waiting.len()).min(things.len());
        waiting.extend(things.drain(..room));
        drop(waiting);
        if was_empty {
            self.wake.wake();
        }
    }

    /// Moves all that waits to the end of `things`.
    pub fn take(&self, things: &mut Vec<T>) {
        things.append(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// More than a device's queue has: what bursts through it finds room here, too.
const LIMIT: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_in_order() {
        let handed = Handed::new(Arc::new(Waker::new().unwrap()));
        let mut things: Vec<usize> = (0..LIMIT + 3).collect();
        handed.give(&mut things);
        assert_eq!(things, [LIMIT, LIMIT + 1, LIMIT + 2]);
        let mut taken = Vec::new();
        handed.take(&mut taken);
        handed.give(&mut things);
        handed.take(&mut taken);
        assert!(things.is_empty() && taken.into_iter().eq(0..LIMIT + 3));
    }
}
