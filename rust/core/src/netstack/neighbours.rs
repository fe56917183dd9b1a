//! Which station has which address on the link, and the packets that wait to know
//! (RFC 4861, 7.3; for ARP the same, as RFC 1122, 2.3.2 asks for no less).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use crate::netstack::ethernet::Mac;
use crate::packet::Packet;
use crate::{Nanos, SECOND};

/// How much is known of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was asked for, and has not answered.
    Incomplete,
    /// It answered lately.
    Reachable,
    /// It may be gone. That is found out when it is spoken to.
    Stale,
    /// It was spoken to, and is asked if nothing is heard of it.
    Delay,
    /// It is being asked.
    Probe,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Incomplete => "incomplete",
            State::Reachable => "reachable",
            State::Stale => "stale",
            State::Delay => "delay",
            State::Probe => "probe",
        }
    }
}

/// A line of the table, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub address: IpAddr,
    pub station: Option<Mac>,
    pub state: State,
    /// Since the station was last heard of, or asked for the first time.
    pub age: Nanos,
}

/// What a neighbour has told of itself without having been asked, or in answer.
#[derive(Clone, Copy, Debug)]
pub struct Advertisement {
    pub station: Option<Mac>,
    pub solicited: bool,
    pub overrides: bool,
}

/// What is to be done now that time has passed.
pub enum Due {
    /// Ask for an address: all stations, or the one that had it.
    Ask(IpAddr, Option<Mac>),
    /// Nobody has it. These packets waited for it.
    Unreachable(Vec<Packet>),
}

/// What became of a packet for an address of which no station is known.
#[derive(Default)]
pub struct Waiting {
    /// The address is to be asked for.
    pub ask: bool,
    /// Packets that found no place, or lost theirs.
    pub lost: Vec<Packet>,
}

/// The table: at most [`MOST_NEIGHBOURS`], and [`MOST_WAITING`] packets.
#[derive(Default)]
pub struct Neighbours {
    entries: HashMap<IpAddr, Entry>,
    timers: BTreeSet<(Nanos, IpAddr)>,
    waiting: usize,
}

struct Entry {
    state: State,
    station: Option<Mac>,
    heard: Nanos,
    used: Nanos,
    asked: u32,
    timer: Option<Nanos>,
    queue: VecDeque<Packet>,
}

impl Neighbours {
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The station to send to, if one is known. It will be asked whether it is there if it has been
    /// silent for long.
    pub fn station(&mut self, now: Nanos, address: IpAddr) -> Option<Mac> {
        let entry = self.entries.get_mut(&address)?;
        let station = entry.station?;
        entry.used = now;
        let reachable = entry.state == State::Reachable && now < entry.heard + REACHABLE;
        if !reachable && matches!(entry.state, State::Reachable | State::Stale) {
            entry.state = State::Delay;
            self.set_timer(address, Some(now + DELAY));
        }
        Some(station)
    }

    /// Keeps a packet until the station of `address` is known.
    pub fn wait(&mut self, now: Nanos, address: IpAddr, packet: Packet) -> Waiting {
        let mut result = Waiting::default();
        if !self.entries.contains_key(&address) {
            result.lost = self.make_room();
            self.entries.insert(address, Entry::new(State::Incomplete, None, now));
            self.set_timer(address, Some(now + RETRANSMIT));
            result.ask = true;
        }
        let Some(entry) = self.entries.get_mut(&address) else { return result };
        entry.used = now;
        if self.waiting >= MOST_WAITING && entry.queue.is_empty() {
            result.lost.push(packet);
            return result;
        }
        entry.queue.push_back(packet);
        self.waiting += 1;
        // The newest is worth most (RFC 1122, 2.3.2.2).
        if entry.queue.len() > MOST_WAITING_EACH || self.waiting > MOST_WAITING {
            result.lost.extend(entry.queue.pop_front());
            self.waiting -= 1;
        }
        result
    }

    /// A station has shown an address as its own by asking something of us. Returns what waited for it.
    pub fn heard(
        &mut self,
        now: Nanos,
        address: IpAddr,
        station: Mac,
        lost: &mut Vec<Packet>,
    ) -> Vec<Packet> {
        if !self.entries.contains_key(&address) {
            lost.append(&mut self.make_room());
            self.entries.insert(address, Entry::new(State::Stale, Some(station), now));
            return Vec::new();
        }
        self.advertised(
            now,
            address,
            Advertisement { station: Some(station), solicited: false, overrides: true },
        )
    }

    /// A station has said that an address is its own. Returns what waited for it.
    pub fn advertised(&mut self, now: Nanos, address: IpAddr, told: Advertisement) -> Vec<Packet> {
        let Some(entry) = self.entries.get_mut(&address) else { return Vec::new() };
        let station = told.station.or(entry.station);
        let (Some(station), asked) = (station, matches!(entry.state, State::Incomplete | State::Probe))
        else {
            return Vec::new();
        };
        let differs = entry.station.is_some_and(|known| known != station);
        if differs && !told.overrides {
            // Somebody else says so: the one known is asked when it is needed next.
            if entry.state == State::Reachable {
                entry.state = State::Stale;
            }
            return Vec::new();
        }
        let incomplete = entry.station.is_none();
        entry.station = Some(station);
        if told.solicited && (asked || !differs) {
            entry.state = State::Reachable;
        } else if incomplete || differs {
            entry.state = State::Stale;
        } else {
            return Vec::new();
        }
        entry.heard = now;
        entry.asked = 0;
        let queue = std::mem::take(&mut entry.queue);
        self.waiting -= queue.len();
        self.set_timer(address, None);
        queue.into()
    }

    /// Whether `address` has been asked for and has not answered yet.
    pub fn is_asked(&self, address: IpAddr) -> bool {
        let asked = |entry: &Entry| matches!(entry.state, State::Incomplete | State::Probe);
        self.entries.get(&address).is_some_and(asked)
    }

    pub fn next_timer(&self) -> Option<Nanos> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// What has to be done by now.
    pub fn expire(&mut self, now: Nanos) -> Vec<Due> {
        let mut due = Vec::new();
        while let Some(&(at, address)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            let Some(entry) = self.entries.get_mut(&address) else { continue };
            entry.timer = None;
            entry.asked += 1;
            if entry.state == State::Delay {
                (entry.state, entry.asked) = (State::Probe, 0);
            } else if entry.asked >= MOST_SOLICITATIONS {
                due.push(Due::Unreachable(self.remove(address)));
                continue;
            }
            due.push(Due::Ask(address, entry.station));
            self.set_timer(address, Some(now + RETRANSMIT));
        }
        due
    }

    /// Forgets everything. Returns the packets that waited.
    pub fn clear(&mut self) -> Vec<Packet> {
        let all: Vec<IpAddr> = self.entries.keys().copied().collect();
        all.into_iter().flat_map(|address| self.remove(address)).collect()
    }

    /// The table, sorted by address.
    pub fn rows(&self, now: Nanos) -> Vec<Row> {
        let row = |(address, entry): (&IpAddr, &Entry)| {
            let stale = entry.state == State::Reachable && now >= entry.heard + REACHABLE;
            let state = if stale { State::Stale } else { entry.state };
            Row { address: *address, station: entry.station, state, age: now.saturating_sub(entry.heard) }
        };
        let mut rows: Vec<Row> = self.entries.iter().map(row).collect();
        rows.sort_by_key(|row| row.address);
        rows
    }

    /// Makes room for one more: who has not been spoken to for longest goes. Returns what waited for it.
    fn make_room(&mut self) -> Vec<Packet> {
        if self.entries.len() < MOST_NEIGHBOURS {
            return Vec::new();
        }
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(address, _)| *address);
        oldest.map(|address| self.remove(address)).unwrap_or_default()
    }

    fn remove(&mut self, address: IpAddr) -> Vec<Packet> {
        self.set_timer(address, None);
        let queue = self.entries.remove(&address).map(|entry| entry.queue).unwrap_or_default();
        self.waiting -= queue.len();
        queue.into()
    }

    fn set_timer(&mut self, address: IpAddr, at: Option<Nanos>) {
        let Some(entry) = self.entries.get_mut(&address) else { return };
        if let Some(set) = std::mem::replace(&mut entry.timer, at) {
            self.timers.remove(&(set, address));
        }
        if let Some(at) = at {
            self.timers.insert((at, address));
        }
    }
}

impl Entry {
    fn new(state: State, station: Option<Mac>, now: Nanos) -> Entry {
        Entry { state, station, heard: now, used: now, asked: 0, timer: None, queue: VecDeque::new() }
    }
}

const MOST_NEIGHBOURS: usize = 1024;
const MOST_WAITING: usize = 1024;
const MOST_WAITING_EACH: usize = 64;
/// RFC 4861, 10.
const REACHABLE: Nanos = 30 * SECOND;
const DELAY: Nanos = 5 * SECOND;
const RETRANSMIT: Nanos = SECOND;
const MOST_SOLICITATIONS: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Pool;

    const STATION: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn ip(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn packet() -> Packet {
        Pool::new(0).local().packet_from(b"\x45")
    }

    fn reply(station: Mac) -> Advertisement {
        Advertisement { station: Some(station), solicited: true, overrides: true }
    }

    #[test]
    fn packets_wait_for_the_answer_in_order() {
        let mut table = Neighbours::default();
        assert!(table.wait(0, ip(1), packet()).ask);
        assert!(!table.wait(0, ip(1), packet()).ask);
        assert_eq!(table.station(0, ip(1)), None);
        assert_eq!(table.advertised(1, ip(1), reply(STATION)).len(), 2);
        assert_eq!(table.station(1, ip(1)), Some(STATION));
        assert_eq!((table.next_timer(), table.waiting), (None, 0));
    }

    #[test]
    fn who_does_not_answer_is_asked_three_times() {
        let mut table = Neighbours::default();
        table.wait(0, ip(1), packet());
        let mut asked = 1;
        loop {
            let at = table.next_timer().unwrap();
            match table.expire(at).pop().unwrap() {
                Due::Ask(address, None) if address == ip(1) => asked += 1,
                Due::Unreachable(packets) => {
                    assert_eq!((asked, packets.len(), at), (3, 1, 3 * SECOND));
                    break;
                }
                Due::Ask(..) => panic!("asked for another"),
            }
        }
        assert_eq!((table.count(), table.next_timer(), table.waiting), (0, None, 0));
    }

    #[test]
    fn a_station_that_is_spoken_to_after_a_silence_is_asked_and_forgotten_when_it_is_gone() {
        let mut table = Neighbours::default();
        table.wait(0, ip(1), packet());
        table.advertised(0, ip(1), reply(STATION));
        assert_eq!(table.station(REACHABLE - 1, ip(1)), Some(STATION));
        assert_eq!(table.next_timer(), None);
        assert_eq!(table.station(REACHABLE, ip(1)), Some(STATION));
        for second in 0..3 {
            let at = REACHABLE + DELAY + second * RETRANSMIT;
            assert_eq!(table.next_timer(), Some(at));
            assert!(matches!(table.expire(at)[..], [Due::Ask(_, Some(STATION))]), "{second}");
        }
        let at = table.next_timer().unwrap();
        assert!(matches!(&table.expire(at)[..], [Due::Unreachable(packets)] if packets.is_empty()));
        assert_eq!(table.station(at, ip(1)), None);
    }

    #[test]
    fn a_new_station_for_an_address_takes_over_only_where_it_says_so() {
        let mut table = Neighbours::default();
        table.wait(0, ip(1), packet());
        table.advertised(0, ip(1), reply(STATION));
        table.advertised(
            1,
            ip(1),
            Advertisement { station: Some(OTHER), solicited: false, overrides: false },
        );
        assert_eq!(table.rows(1)[0].state, State::Stale);
        assert_eq!(table.station(1, ip(1)), Some(STATION));
        table.heard(2, ip(1), OTHER, &mut Vec::new());
        assert_eq!(table.station(2, ip(1)), Some(OTHER));
        // Unasked for, nobody comes in.
        table.advertised(3, ip(2), reply(OTHER));
        assert_eq!(table.count(), 1);
    }

    #[test]
    fn everything_is_bounded_and_no_packet_vanishes() {
        let mut table = Neighbours::default();
        let mut lost = 0;
        for number in 0..3000 {
            lost += table.wait(number.into(), ip(number), packet()).lost.len();
            for _ in 0..2 {
                lost += table.wait(number.into(), ip(7), packet()).lost.len();
            }
        }
        assert_eq!(table.count(), MOST_NEIGHBOURS);
        assert!(table.waiting <= MOST_WAITING);
        assert_eq!(lost + table.waiting, 9000);
        assert_eq!(table.timers.len(), MOST_NEIGHBOURS);
        let waited = table.waiting;
        assert_eq!(table.clear().len(), waited);
        assert_eq!((table.count(), table.waiting, table.timers.len()), (0, 0, 0));
    }
}
