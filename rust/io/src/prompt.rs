//! Threads that packets wait for.

use rustix::thread::gettid;

/// Asks the scheduler for short turns for this thread, so that one that wakes it to a packet is not kept waiting
/// for the whole turn (3 ms, as a rule) of another that has just begun: its share of the processor stays the same.
///
/// Takes no rights. Systems before Linux 6.12 do as they did before.
pub fn take_short_turns() {
    let Some(mut attr) = scheduling() else { return };
    if attr.sched_policy != libc::SCHED_OTHER as u32 {
        return;
    }
    attr.sched_runtime = TURN;
    let this = gettid().as_raw_nonzero().get();
    // SAFETY: the structure states its own size, and is only read.
    unsafe { libc::syscall(libc::SYS_sched_setattr, this, &raw const attr, 0) };
}

fn scheduling() -> Option<libc::sched_attr> {
    let mut attr = libc::sched_attr {
        size: 0,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let (this, size) = (gettid().as_raw_nonzero().get(), size_of::<libc::sched_attr>());
    // SAFETY: the kernel writes at most `size` bytes to `attr`, which has as many.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, this, &raw mut attr, size, 0) };
    (result == 0).then_some(attr)
}

/// The shortest that there is, in ns.
const TURN: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_short_and_nothing_else_changes() {
        let before = scheduling().unwrap();
        take_short_turns();
        let after = scheduling().unwrap();
        assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, before.sched_nice));
        // What the system does not know stays 0.
        assert!(after.sched_runtime == TURN || before.sched_runtime == 0, "{}", after.sched_runtime);
    }
}
