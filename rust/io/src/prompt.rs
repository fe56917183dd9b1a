//! Threads that packets wait for.

use std::mem::MaybeUninit;

use ginnel_core::{Nanos, SECOND};
use rustix::thread::gettid;

/// Asks the scheduler for short turns for this thread, so that one that wakes it to a packet is not kept waiting
/// for the whole turn (3 ms, as a rule) of another that has just begun: its share of the processor stays the same.
///
/// Takes no rights. Systems before Linux 6.12 do as they did before.
pub fn take_short_turns() {
    if let Some(attr) = ordinary() {
        schedule(&attr);
    }
}

/// A thread's place among others: ahead of all ordinary ones, where it may (CAP_SYS_NICE, RLIMIT_RTPRIO), as a kernel's
/// own network code is. Otherwise it has short turns.
///
/// For a while it goes back among the others when it takes nearly a whole processor, which they need, too, or is
/// woken so often that each packet costs a sleep: who wakes later finds several.
pub struct Place {
    ordinary: libc::sched_attr,
    ahead: libc::sched_attr,
    is_ahead: bool,
    looked: Nanos,
    spent: Spent,
}

/// What a thread has used of its processor.
#[derive(Clone, Copy, Default)]
struct Spent {
    time: Nanos,
    sleeps: u64,
}

impl Place {
    /// This thread's; `None` where it may only have short turns, which it has from now on.
    pub fn take(now: Nanos) -> Option<Place> {
        let mut ordinary = ordinary()?;
        ordinary.sched_flags |= RESET_ON_FORK;
        let ahead = libc::sched_attr {
            sched_policy: libc::SCHED_FIFO as u32,
            sched_priority: 1,
            sched_runtime: 0,
            ..ordinary
        };
        schedule(&ordinary);
        let is_ahead = schedule(&ahead);
        is_ahead.then(|| Place { ordinary, ahead, is_ahead, looked: now, spent: spent() })
    }

    /// To be called each turn.
    pub fn keep(&mut self, now: Nanos) {
        let passed = now.saturating_sub(self.looked);
        if passed < PERIOD {
            return;
        }
        let (before, spent) = (std::mem::replace(&mut self.spent, spent()), self.spent);
        self.looked = now;
        let time = spent.time - before.time;
        let sleeps = (spent.sleeps - before.sleeps) * SECOND / passed;
        let goes_ahead = is_moderate(time, sleeps, passed, self.is_ahead);
        if goes_ahead != self.is_ahead && schedule(if goes_ahead { &self.ahead } else { &self.ordinary }) {
            self.is_ahead = goes_ahead;
        }
    }
}

/// Whether a thread that used so much time, and slept so often a second, may be ahead. One that is wakes more often.
fn is_moderate(time: Nanos, sleeps: u64, passed: Nanos, is_ahead: bool) -> bool {
    time < passed / 8 * 7 && sleeps < if is_ahead { MANY_SLEEPS } else { FEW_SLEEPS }
}

fn spent() -> Spent {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one such structure there; zeros are one, too, should it refuse.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    let nanos = |time: libc::timeval| time.tv_sec as Nanos * SECOND + time.tv_usec as Nanos * 1000;
    Spent { time: nanos(usage.ru_utime) + nanos(usage.ru_stime), sleeps: usage.ru_nvcsw as u64 }
}

/// Short turns for this thread, if it is an ordinary one.
fn ordinary() -> Option<libc::sched_attr> {
    let mut attr = scheduling().filter(|attr| attr.sched_policy == libc::SCHED_OTHER as u32)?;
    attr.sched_runtime = TURN;
    Some(attr)
}

fn schedule(attr: &libc::sched_attr) -> bool {
    let this = gettid().as_raw_nonzero().get();
    // SAFETY: the structure states its own size, and is only read.
    unsafe { libc::syscall(libc::SYS_sched_setattr, this, &raw const *attr, 0) == 0 }
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

/// How often a thread looks at what it has used.
const PERIOD: Nanos = SECOND / 100;
/// Sleeps a second. With a peer that sends in runs a thread sleeps some 4,000 times at full speed; with one that sends
/// datagram by datagram 25,000 times ahead of others, and 8,000 times among them (docs/benchmarks.md).
const MANY_SLEEPS: u64 = 12_000;
const FEW_SLEEPS: u64 = 5_000;
const RESET_ON_FORK: u64 = 1;

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

    #[test]
    fn who_may_is_ahead_and_goes_back_when_it_takes_all() {
        std::thread::spawn(|| {
            let before = scheduling().unwrap();
            let Some(mut place) = Place::take(0) else { return };
            let policy = || scheduling().unwrap().sched_policy;
            assert_eq!(policy(), libc::SCHED_FIFO as u32);
            // It has used more than there was: as if no time had passed since it began.
            while spent().time - place.spent.time < PERIOD {}
            place.keep(PERIOD);
            assert_eq!(policy(), before.sched_policy);
            // Hardly anything of a second.
            place.keep(PERIOD + SECOND);
            assert_eq!(policy(), libc::SCHED_FIFO as u32);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_place_ahead_is_for_moderate_use() {
        let (all, most, some) = (PERIOD, PERIOD / 10 * 8, PERIOD / 10);
        for (time, sleeps, is_ahead, stays) in [
            (most, 4_500, true, true),
            (all, 100, true, false),
            (all, 100, false, false),
            (some, 25_000, true, false),
            (some, 8_000, false, false),
            (some, 8_000, true, true),
            (some, 1_000, false, true),
        ] {
            assert_eq!(is_moderate(time, sleeps, PERIOD, is_ahead), stays, "{time} {sleeps} {is_ahead}");
        }
    }
}
