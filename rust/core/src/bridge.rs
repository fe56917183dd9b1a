//! A learning switch (IEEE 802.1D), without I/O: where each frame goes.
//!
//! A station is where its frames come from; what is for one that is not known goes everywhere. There
//! is no spanning tree. Instead, a port on which the stations of other ports keep turning up is closed
//! for a while: it leads back to us.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::netstack::ethernet::{Frame, Mac};
use crate::{Nanos, SECOND, counters};

/// The number of a port. None is given out twice.
pub type PortId = u64;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    One(PortId),
    /// To every open port but the one it came from.
    Flood,
    /// Nowhere. It has been counted.
    Drop,
}

/// A port that was closed because it leads back to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loop {
    pub port: PortId,
    /// The station that turned up there, and belongs elsewhere.
    pub station: Mac,
}

counters! {
    /// The counters of one port. Every frame received is forwarded, flooded, or dropped.
    pub struct PortCounters {
        /// Frames and bytes that came in.
        rx_frames,
        rx_bytes,
        /// Frames that went to one port, or to all others.
        forwarded,
        flooded,
        /// Frames without a whole header, or from no single station.
        dropped_malformed,
        /// Frames for the bridge itself or its kin (01-80-C2-00-00-0x).
        dropped_reserved,
        /// Frames for a station on the same port.
        dropped_local,
        /// Frames that came in while the port was closed.
        dropped_blocked,
        /// Frames and bytes that went out.
        tx_frames,
        tx_bytes,
        /// Frames that were to go out, and the device did not take.
        tx_dropped,
        /// Frames that were to go out while the port was closed.
        tx_blocked,
        /// How often the port was closed.
        loops,
    }
}

/// The switch: its ports and what it has learnt.
pub struct Bridge {
    ports: BTreeMap<PortId, Port>,
    last_port: PortId,
    stations: HashMap<Mac, Station>,
    /// Stations by when they were learnt, the oldest first; for making room.
    order: VecDeque<Mac>,
    most_stations: usize,
    ageing: Nanos,
    /// After how many moves within [`WINDOW`] a station is thought to go round in circles.
    most_moves: u32,
    /// For how long a port is closed first.
    closing: Nanos,
    /// Until when no other port is closed: frames that are under way still go round.
    settling_until: Nanos,
    crowded: u64,
    loops: VecDeque<Loop>,
}

#[derive(Default)]
struct Port {
    blocked_until: Nanos,
    closed_for: Nanos,
    counters: PortCounters,
}

struct Station {
    port: PortId,
    heard: Nanos,
    /// Where it was before it began to move, when that was, and how often it has since.
    home: PortId,
    since: Nanos,
    moves: u32,
}

impl Bridge {
    /// A bridge without ports that knows at most `most_stations` (at least one), and forgets one that was
    /// silent for `ageing`. `random`: of several bridges in one circle one has to find that out first, and
    /// where two have closed it, one has to open it first.
    pub fn new(most_stations: usize, ageing: Nanos, random: u64) -> Bridge {
        Bridge {
            ports: BTreeMap::new(),
            last_port: 0,
            stations: HashMap::new(),
            order: VecDeque::new(),
            most_stations: most_stations.max(1),
            ageing,
            most_moves: LEAST_MOVES + (random % SPREAD) as u32,
            closing: LEAST_CLOSED + (random >> 32) % LEAST_CLOSED,
            settling_until: 0,
            crowded: 0,
            loops: VecDeque::new(),
        }
    }

    pub fn add_port(&mut self) -> PortId {
        self.last_port += 1;
        self.ports.insert(self.last_port, Port::default());
        self.last_port
    }

    /// Removes a port, and forgets its stations.
    pub fn remove_port(&mut self, port: PortId) {
        if self.ports.remove(&port).is_some() {
            self.stations.retain(|_, station| station.port != port && station.home != port);
            self.order.retain(|mac| self.stations.contains_key(mac));
        }
    }

    /// Where a frame that came in by `port` goes. What is learnt from it is kept.
    pub fn forward(&mut self, now: Nanos, port: PortId, frame: &[u8]) -> Way {
        let Some(found) = self.ports.get_mut(&port) else { return Way::Drop };
        let counters = &mut found.counters;
        counters.rx_frames += 1;
        counters.rx_bytes += frame.len() as u64;
        let header = Frame::of(frame).filter(|header| header.source.is_station());
        let Some(header) = header else {
            counters.dropped_malformed += 1;
            return Way::Drop;
        };
        if is_reserved(header.destination) {
            counters.dropped_reserved += 1;
            return Way::Drop;
        }
        if found.blocked_until > now || !self.learn(now, port, header.source) {
            self.count(port, |counters| counters.dropped_blocked += 1);
            return Way::Drop;
        }
        match self.port_of(now, header.destination) {
            Some(other) if other == port => {
                self.count(port, |counters| counters.dropped_local += 1);
                Way::Drop
            }
            Some(other) => {
                self.count(port, |counters| counters.forwarded += 1);
                Way::One(other)
            }
            None => {
                self.count(port, |counters| counters.flooded += 1);
                Way::Flood
            }
        }
    }

    /// Whether frames may leave by a port now; one that may not is counted there.
    pub fn may_leave(&mut self, now: Nanos, port: PortId) -> bool {
        let Some(found) = self.ports.get_mut(&port) else { return false };
        let open = found.blocked_until <= now;
        found.counters.tx_blocked += u64::from(!open);
        open
    }

    /// Counts what has left by a port, and what its device did not take.
    pub fn sent(&mut self, port: PortId, frames: u64, bytes: u64, dropped: u64) {
        self.count(port, |counters| {
            counters.tx_frames += frames;
            counters.tx_bytes += bytes;
            counters.tx_dropped += dropped;
        });
    }

    /// The ports, whether each is closed at the moment, and their counters.
    pub fn ports(&self, now: Nanos) -> Vec<(PortId, bool, PortCounters)> {
        self.ports.iter().map(|(id, port)| (*id, port.blocked_until > now, port.counters)).collect()
    }

    /// The stations that are known, their ports, and how long ago each was heard.
    pub fn stations(&self, now: Nanos) -> Vec<(Mac, PortId, Nanos)> {
        let row = |(mac, station): (&Mac, &Station)| (*mac, station.port, now.saturating_sub(station.heard));
        let mut rows: Vec<_> = self.stations.iter().map(row).filter(|(.., age)| *age < self.ageing).collect();
        rows.sort();
        rows
    }

    /// How many stations had to make room for others.
    pub fn crowded(&self) -> u64 {
        self.crowded
    }

    /// Whether [`Bridge::take_loops`] has something to say.
    pub fn has_loops(&self) -> bool {
        !self.loops.is_empty()
    }

    /// The ports that were closed since the last call; the latest [`MOST_LOOPS`].
    pub fn take_loops(&mut self) -> Vec<Loop> {
        self.loops.drain(..).collect()
    }

    /// Notes where a station is. `false`: it cannot be there, and the port is closed now.
    fn learn(&mut self, now: Nanos, port: PortId, mac: Mac) -> bool {
        let Some(station) = self.stations.get_mut(&mac) else {
            self.make_room();
            let station = Station { port, heard: now, home: port, since: now, moves: 0 };
            self.stations.insert(mac, station);
            self.order.push_back(mac);
            return true;
        };
        station.heard = now;
        if station.port == port {
            return true;
        }
        if now.saturating_sub(station.since) > WINDOW {
            (station.home, station.since, station.moves) = (station.port, now, 0);
        }
        station.moves += 1;
        let settling = self.settling_until > now;
        if station.moves <= self.most_moves || port == station.home || settling {
            station.port = port;
            return true;
        }
        (station.port, station.moves) = (station.home, 0);
        self.close(now, port);
        if self.loops.len() == MOST_LOOPS {
            self.loops.pop_front();
        }
        self.loops.push_back(Loop { port, station: mac });
        false
    }

    /// Closes a port: each time for twice as long, unless it has been well for that long since.
    fn close(&mut self, now: Nanos, port: PortId) {
        if let Some(found) = self.ports.get_mut(&port) {
            let well = now.saturating_sub(found.blocked_until) > found.closed_for;
            let longer = if well { self.closing } else { 2 * found.closed_for };
            found.closed_for = longer.min(MOST_CLOSED);
            found.blocked_until = now + found.closed_for;
            found.counters.loops += 1;
        }
        self.settling_until = now + SETTLING;
        // Whatever else was learnt there came round the circle, or is found anew.
        self.stations.retain(|_, station| station.port != port);
        self.stations.values_mut().for_each(|station| station.moves = 0);
        self.order.retain(|mac| self.stations.contains_key(mac));
    }

    fn make_room(&mut self) {
        while self.stations.len() >= self.most_stations
            && let Some(oldest) = self.order.pop_front()
        {
            self.stations.remove(&oldest);
            self.crowded += 1;
        }
    }

    fn port_of(&self, now: Nanos, mac: Mac) -> Option<PortId> {
        let station = self.stations.get(&mac)?;
        let known = now.saturating_sub(station.heard) < self.ageing && self.ports.contains_key(&station.port);
        known.then_some(station.port)
    }

    fn count(&mut self, port: PortId, change: impl FnOnce(&mut PortCounters)) {
        if let Some(port) = self.ports.get_mut(&port) {
            change(&mut port.counters);
        }
    }
}

/// Whether an address is for bridges themselves (IEEE 802.1D, table 7-10).
fn is_reserved(Mac(address): Mac) -> bool {
    matches!(address, [0x01, 0x80, 0xc2, 0x00, 0x00, last] if last < 0x10)
}

const WINDOW: Nanos = SECOND;
const LEAST_MOVES: u32 = 5;
const SPREAD: u64 = 16;
const LEAST_CLOSED: Nanos = 2 * SECOND;
const MOST_CLOSED: Nanos = 60 * SECOND;
const SETTLING: Nanos = SECOND / 5;
const MOST_LOOPS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const AGEING: Nanos = 300 * SECOND;

    fn station(number: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, number])
    }

    fn frame(destination: Mac, source: Mac) -> Vec<u8> {
        let mut frame = vec![0; 60];
        Frame { destination, source, ethertype: 0x0800 }.emit(&mut frame);
        frame
    }

    fn bridge(ports: usize) -> (Bridge, Vec<PortId>) {
        let mut bridge = Bridge::new(1000, AGEING, 0);
        let ports = (0..ports).map(|_| bridge.add_port()).collect();
        (bridge, ports)
    }

    #[test]
    fn it_learns_where_stations_are_and_forgets_the_silent() {
        let (mut bridge, ports) = bridge(3);
        let (one, two) = (station(1), station(2));
        assert_eq!(bridge.forward(0, ports[0], &frame(two, one)), Way::Flood);
        assert_eq!(bridge.forward(0, ports[1], &frame(one, two)), Way::One(ports[0]));
        assert_eq!(bridge.forward(1, ports[0], &frame(two, one)), Way::One(ports[1]));
        assert_eq!(bridge.forward(1, ports[0], &frame(one, station(3))), Way::Drop);
        assert_eq!(bridge.forward(AGEING, ports[0], &frame(two, one)), Way::Flood);
        assert_eq!(bridge.forward(AGEING, ports[0], &frame(Mac::BROADCAST, one)), Way::Flood);
        // It has moved.
        bridge.forward(AGEING, ports[2], &frame(Mac::BROADCAST, one));
        assert_eq!(bridge.forward(AGEING, ports[1], &frame(one, two)), Way::One(ports[2]));
        bridge.remove_port(ports[2]);
        assert_eq!(bridge.forward(AGEING, ports[1], &frame(one, two)), Way::Flood);
    }

    #[test]
    fn what_no_bridge_forwards() {
        let (mut bridge, ports) = bridge(2);
        let reserved = Mac([0x01, 0x80, 0xc2, 0, 0, 0x0f]);
        for frame in [frame(reserved, station(1)), frame(station(1), Mac::BROADCAST), vec![0; 13]] {
            assert_eq!(bridge.forward(0, ports[0], &frame), Way::Drop);
        }
        let counters = bridge.ports(0)[0].2;
        assert_eq!((counters.dropped_reserved, counters.dropped_malformed, counters.rx_frames), (1, 2, 3));
        let group = Mac([0x01, 0x80, 0xc2, 0, 0, 0x10]);
        assert_eq!(bridge.forward(0, ports[0], &frame(group, station(1))), Way::Flood);
    }

    #[test]
    fn a_flood_of_stations_is_bounded() {
        let (mut bridge, ports) = bridge(2);
        for number in 0..5000u16 {
            let [high, low] = number.to_be_bytes();
            bridge.forward(0, ports[0], &frame(Mac::BROADCAST, Mac([2, 0, 0, 0, high, low])));
        }
        assert_eq!((bridge.stations(0).len(), bridge.order.len(), bridge.crowded()), (1000, 1000, 4000));
    }

    #[test]
    fn a_station_that_moves_is_followed_and_one_that_goes_in_circles_closes_the_port() {
        let (mut bridge, ports) = bridge(3);
        for second in 0..100 {
            let port = ports[second as usize % 2];
            assert_eq!(
                bridge.forward(second * 2 * SECOND, port, &frame(Mac::BROADCAST, station(1))),
                Way::Flood
            );
        }
        let now = 1000 * SECOND;
        bridge.forward(now, ports[0], &frame(Mac::BROADCAST, station(2)));
        let mut passed = 0;
        while bridge.forward(now, ports[1 + passed % 2], &frame(Mac::BROADCAST, station(2))) == Way::Flood {
            passed += 1;
            assert!(passed < 100);
        }
        let closed = ports[1 + passed % 2];
        assert_eq!(bridge.take_loops(), [Loop { port: closed, station: station(2) }]);
        assert!(!bridge.may_leave(now, closed) && bridge.may_leave(now, ports[0]));
        assert_eq!(bridge.port_of(now, station(2)), Some(ports[0]));
        assert!(bridge.may_leave(now + LEAST_CLOSED, closed));
    }

    #[test]
    fn every_frame_is_accounted_for() {
        let (mut bridge, ports) = bridge(4);
        let mut seed = 7u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let [to, from, port, len, high, ..] = seed.to_be_bytes();
            let mut frame = frame(station(to % 9), station(from % 9));
            frame[0] ^= high & 1;
            frame.truncate(usize::from(len) % 61);
            bridge.forward(u64::from(high) * SECOND / 8, ports[usize::from(port) % 4], &frame);
        }
        for (_, _, c) in bridge.ports(0) {
            let dropped = c.dropped_malformed + c.dropped_reserved + c.dropped_local + c.dropped_blocked;
            assert_eq!(c.rx_frames, c.forwarded + c.flooded + dropped);
        }
    }
}
