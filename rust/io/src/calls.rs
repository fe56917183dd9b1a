//! What others ask of a thread that runs a loop: each call is carried out there, between two turns.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};

use ginnel_core::queue::Wake;

/// The calls that wait for a loop of type `L`.
pub struct Calls<L> {
    waiting: Mutex<Option<Vec<Call<L>>>>,
    wake: Arc<dyn Wake>,
}

type Call<L> = Box<dyn FnOnce(&mut L) + Send>;

impl<L> Calls<L> {
    /// `wake` is what the loop sleeps on.
    pub fn new(wake: Arc<dyn Wake>) -> Calls<L> {
        Calls { waiting: Mutex::new(Some(Vec::new())), wake }
    }

    /// Has the loop do something and waits for what comes of it. `None` once it has ended.
    pub fn call<R: Send + 'static>(&self, what: impl FnOnce(&mut L) -> R + Send + 'static) -> Option<R> {
        let (answer, answered): (SyncSender<R>, _) = sync_channel(1);
        lock(&self.waiting).as_mut()?.push(Box::new(move |inner| {
            let _ = answer.send(what(inner));
        }));
        self.wake.wake();
        answered.recv().ok()
    }

    /// The calls that wait, for the loop to carry out.
    pub fn take(&self) -> Vec<Call<L>> {
        lock(&self.waiting).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The loop has ended: whoever waits for an answer hears of it, whoever asks from now on too.
    pub fn end(&self) {
        lock(&self.waiting).take();
    }
}

/// A lock whose poison is ignored: no invariant spans a panic here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
