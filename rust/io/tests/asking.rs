//! What is asked of a stack while it is busy, idle or broken: each is done once and answered, and the stack goes on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ginnel_core::device::{Device, End, Kind, Side};
use ginnel_core::netstack::address::Addresses;
use ginnel_core::netstack::{Event, Failure};
use ginnel_core::packet::{Packet, Pool};
use ginnel_core::queue::{Observer, Wake};
use ginnel_io::stack::NetStack;
use ginnel_io::wake::{Bell, Gate};
use rustix::event::{PollFd, PollFlags, poll};

const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const ASKING: u16 = 4;
const EACH: u16 = 1000;
/// For what never happens.
const PATIENCE: Duration = Duration::from_secs(30);

/// A stack, and who is at the other end of its device.
struct Party {
    stack: NetStack,
    other: End,
    pool: Arc<Pool>,
    gate: Arc<Gate>,
}

fn party() -> Party {
    let pool = Pool::new(8192);
    let device = Device::new(Kind::Tun, 1500, 65_535);
    let (interface, other) =
        (device.attach(Side::Interface).unwrap(), device.attach(Side::Application).unwrap());
    let stack = NetStack::start(interface, 1 << 20, &pool).unwrap();
    stack.set_addresses(Addresses::parse(["10.0.0.1/24"]).unwrap()).unwrap();
    device.set_up(true);
    let gate = Arc::new(Gate::default());
    other.incoming().set_reader(Some(gate.clone()));
    Party { stack, other, pool, gate }
}

impl Party {
    /// The next packet that the stack has sent.
    fn read(&self) -> Vec<u8> {
        let (mut packets, began) = (Vec::new(), Instant::now());
        while began.elapsed() < PATIENCE {
            let seen = self.gate.changes();
            if self.other.receive(&mut packets, 1).unwrap() == 1 {
                return packets[0].to_vec();
            }
            self.gate.wait(seen, Some(PATIENCE)).unwrap();
        }
        panic!("nothing came")
    }
}

#[test]
fn many_ask_a_busy_stack_and_each_request_leaves_once_and_in_order() {
    let party = party();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // To nobody: the stack's thread has its hands full.
        scope.spawn(|| {
            let mut pool = party.pool.local();
            while !is_over.load(Ordering::Relaxed) {
                let mut packets: Vec<_> = (0..64).map(|_| pool.packet_from(&[0x45; 40])).collect();
                let _ = party.other.send(&mut packets);
            }
        });
        let asking = |number: u16| {
            let stack = &party.stack;
            move || {
                for sequence in 0..EACH {
                    stack.ping(OTHER, number, sequence, vec![7; 8]).unwrap();
                }
            }
        };
        for number in 0..ASKING {
            scope.spawn(asking(number));
        }
        let mut next = [0; ASKING as usize];
        for _ in 0..u32::from(ASKING) * u32::from(EACH) {
            let packet = party.read();
            let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
            let due = &mut next[usize::from(word(24))];
            assert_eq!((packet[20], word(26)), (8, *due), "type and sequence of {}", word(24));
            *due += 1;
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let sent = party.stack.statistics().unwrap();
    assert!(sent.contains(&("tx_packets", u64::from(ASKING) * u64::from(EACH))), "{sent:?}");
    party.stack.close();
    assert_eq!(party.stack.ping(OTHER, 0, 0, Vec::new()), Err(Failure::NoDevice));
}

#[test]
fn what_was_asked_of_an_idle_stack_has_its_timers_kept() {
    let party = party();
    let flow = party.stack.connect(SocketAddr::new(OTHER, 7)).unwrap();
    // Nobody asks for anything meanwhile, and nothing comes in.
    let (first, again) = (party.read(), party.read());
    assert_eq!((first[33], &first[20..32]), (2, &again[20..32]), "a SYN, and the same again");
    assert_eq!(party.stack.events(), []);
    party.stack.abort(flow);
}

#[test]
fn answers_are_told_to_who_waits_for_them() {
    let party = party();
    for sequence in 0..1000 {
        party.stack.ping(OTHER, 1, sequence, vec![7; 8]).unwrap();
        let mut reply = party.read();
        reply[12..20].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
        reply[20] = 0;
        // What the type has lost, in ones' complement (RFC 1624).
        let (sum, carry) = u16::from_be_bytes([reply[22], reply[23]]).overflowing_add(0x0800);
        reply[22..24].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
        party.other.send(&mut vec![party.pool.local().packet_from(&reply)]).unwrap();
        poll(&mut [PollFd::new(&party.stack.readiness(), PollFlags::IN)], None).unwrap();
        let pong = Event::Pong { host: OTHER, identifier: 1, sequence, payload: vec![7; 8] };
        assert_eq!(party.stack.events(), [pong]);
    }
}

/// Fails as a bug in the stack would, in whoever sends, once.
#[derive(Default)]
struct Fault(AtomicBool);

impl Observer for Fault {
    fn pushed(&self, _packets: &[Packet], _dropped: u64) {
        assert!(self.0.swap(true, Ordering::Relaxed), "a fault on purpose");
    }

    fn lost(&self, _count: u64) {}
}

#[test]
fn a_panic_of_who_asks_ends_the_stack_and_hangs_nobody() {
    let party = party();
    party.other.incoming().set_observer(Some(Arc::new(Fault::default())));
    let ask = || catch_unwind(AssertUnwindSafe(|| party.stack.ping(OTHER, 1, 1, Vec::new())));
    // The stack's own thread may be at it: it answers, and fails then.
    while let Ok(Ok(())) = ask() {}
    assert_eq!(party.stack.ping(OTHER, 1, 2, Vec::new()), Err(Failure::NoDevice));
    party.stack.close();
    assert!(!party.other.device().is_attached(Side::Interface), "its end of the device is free");
}

#[test]
fn a_bell_is_never_slept_through() {
    let (bell, rings) = (Arc::new(Bell::new().unwrap()), 100_000);
    let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let (ours, theirs) = (bell.clone(), count.clone());
    let ringer = thread::spawn(move || {
        for _ in 0..rings {
            theirs.fetch_add(1, Ordering::SeqCst);
            ours.wake();
        }
    });
    // A loop as the stack's: a wake-up that it missed would leave it here for ever.
    let mut seen = 0;
    while seen < rings {
        if bell.may_sleep() {
            let patience = PATIENCE.try_into().unwrap();
            let woken = poll(&mut [PollFd::new(&*bell, PollFlags::IN)], Some(&patience)).unwrap();
            assert_eq!(woken, 1, "{seen} of {rings}, and {} rung", count.load(Ordering::SeqCst));
            bell.clear();
        }
        bell.answer();
        seen = count.load(Ordering::SeqCst);
    }
    ringer.join().unwrap();
}
