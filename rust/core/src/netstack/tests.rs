//! Two stacks back to back on virtual time.

use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::SECOND;
use crate::packet::{Packet, Pool};
use crate::seeded::Seeded;

const BUDGET: usize = 16 << 20;

#[derive(Default)]
struct Kept(Vec<(SocketAddr, Vec<u8>)>);

impl Outlet for Kept {
    fn deliver(&mut self, from: SocketAddr, payload: &[u8]) -> bool {
        self.0.push((from, payload.to_vec()));
        true
    }
}

struct Host {
    stack: Stack<(), Kept>,
    out: Outbox,
    events: Vec<Event>,
}

impl Host {
    fn new(address: &str, seed: u64) -> Host {
        let mut random = Seeded(seed);
        Host::with(address, Box::new(move || random.next()))
    }

    fn with(address: &str, random: Box<dyn FnMut() -> u64 + Send>) -> Host {
        let mut stack = Stack::new(Kind::Tun, BUDGET, 1500, random);
        let mut out = Outbox::new(Pool::new(64).local());
        out.take(&mut Vec::new());
        stack.set_addresses(Addresses::parse([address]).unwrap());
        Host { stack, out, events: Vec::new() }
    }

    fn settle(&mut self, now: Nanos) {
        self.stack.expire(now, &mut self.out);
        for _ in 0..self.stack.touched_len() {
            let Some(id) = self.stack.next_touched() else { break };
            self.stack.settle(now, id, &mut self.out);
        }
        self.stack.take_events(&mut self.events);
    }

    fn packets(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        self.out.take(&mut packets);
        packets
    }

    fn statistic(&self, name: &str) -> u64 {
        self.stack.statistics().into_iter().find(|(known, _)| *known == name).unwrap().1
    }

    fn write(&mut self, flow: FlowId, bytes: &[u8]) -> usize {
        let transport = &mut self.stack.flow_mut(flow).unwrap().transport;
        let mut written = 0;
        while written < bytes.len() && transport.writable() > 0 {
            written += transport
                .write(|space| {
                    let count = space.len().min(bytes.len() - written);
                    space[..count].copy_from_slice(&bytes[written..written + count]);
                    (count, count)
                })
                .unwrap();
        }
        self.stack.touch(flow);
        written
    }

    fn read(&mut self, flow: FlowId, into: &mut Vec<u8>) {
        let Some(flow_state) = self.stack.flow_mut(flow) else { return };
        while flow_state.transport.readable() > 0 {
            flow_state.transport.read(|bytes| {
                into.extend_from_slice(bytes);
                (bytes.len(), ())
            });
        }
        self.stack.touch(flow);
    }

    fn finish(&mut self, flow: FlowId) {
        self.stack.flow_mut(flow).unwrap().transport.finish();
        self.stack.touch(flow);
    }
}

/// Two hosts, a clock, and a wire that may lose packets.
struct Pair {
    a: Host,
    b: Host,
    now: Nanos,
    loss: Option<(Seeded, u64)>,
}

impl Pair {
    fn new() -> Pair {
        let (a, b) = (Host::new("10.8.0.1/24", 1), Host::new("10.8.0.2/24", 2));
        Pair { a, b, now: SECOND, loss: None }
    }

    fn loses(&mut self) -> bool {
        self.loss.as_mut().is_some_and(|(random, percent)| random.next() % 100 < *percent)
    }

    /// Settles both and carries packets until nothing moves at this moment.
    fn exchange(&mut self) {
        loop {
            self.a.settle(self.now);
            self.b.settle(self.now);
            let (to_b, to_a) = (self.a.packets(), self.b.packets());
            if to_b.is_empty() && to_a.is_empty() {
                return;
            }
            for packet in to_b {
                if !self.loses() {
                    self.b.stack.input(self.now, &packet, &mut self.b.out);
                }
            }
            for packet in to_a {
                if !self.loses() {
                    self.a.stack.input(self.now, &packet, &mut self.a.out);
                }
            }
        }
    }

    /// Moves the clock to the next timer. `false` when there is none.
    fn advance(&mut self) -> bool {
        let timers = [self.a.stack.next_timer(), self.b.stack.next_timer()];
        let next = timers.into_iter().flatten().min();
        self.now = next.unwrap_or(self.now).max(self.now);
        next.is_some()
    }

    fn connect(&mut self) -> (FlowId, FlowId) {
        let port = match self.b.stack.listening.get(&(None, 80)) {
            Some(_) => 80,
            None => self.b.stack.listen(None, 80, 1024).unwrap().1,
        };
        let ours = self.a.stack.connect(self.now, remote(port)).unwrap();
        loop {
            self.exchange();
            let theirs = self.b.events.iter().find_map(|event| match event {
                Event::Accepted { flow, .. } => Some(*flow),
                _ => None,
            });
            let connected = |event: &Event| matches!(event, Event::Connected { flow, .. } if *flow == ours);
            if let (Some(theirs), true) = (theirs, self.a.events.iter().any(connected)) {
                self.a.events.clear();
                self.b.events.clear();
                assert!(self.a.stack.attach(ours, ()).is_ok() && self.b.stack.attach(theirs, ()).is_ok());
                self.exchange();
                return (ours, theirs);
            }
            assert!(self.advance(), "no connection");
        }
    }
}

fn remote(port: u16) -> SocketAddr {
    SocketAddr::new("10.8.0.2".parse().unwrap(), port)
}

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Seeded(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

fn transfer(pair: &mut Pair, len: usize) {
    let (ours, theirs) = pair.connect();
    let (up, down) = (bytes(len, 3), bytes(len / 2, 4));
    let (mut sent_up, mut sent_down) = (0, 0);
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    while got_up.len() < up.len() || got_down.len() < down.len() {
        sent_up += pair.a.write(ours, &up[sent_up..]);
        sent_down += pair.b.write(theirs, &down[sent_down..]);
        pair.exchange();
        let before = got_up.len() + got_down.len();
        pair.b.read(theirs, &mut got_up);
        pair.a.read(ours, &mut got_down);
        if got_up.len() + got_down.len() == before {
            assert!(pair.advance(), "stuck at {} and {}", got_up.len(), got_down.len());
            assert!(pair.now < 3600 * SECOND, "slow at {} and {}", got_up.len(), got_down.len());
        }
    }
    assert!(got_up == up && got_down == down);
    pair.a.finish(ours);
    pair.exchange();
    // Half closed: the other direction still works.
    pair.b.write(theirs, b"last words");
    pair.b.finish(theirs);
    let mut words = Vec::new();
    while pair.a.events.is_empty() || pair.b.events.is_empty() {
        pair.exchange();
        pair.a.read(ours, &mut words);
        pair.exchange();
        if pair.a.events.is_empty() || pair.b.events.is_empty() {
            assert!(pair.advance(), "no end");
        }
    }
    assert_eq!(words, b"last words");
    assert_eq!(pair.a.events, [Event::Closed { flow: ours, failure: None }]);
    assert_eq!(pair.b.events, [Event::Closed { flow: theirs, failure: None }]);
}

#[test]
fn bytes_arrive_in_order_and_both_ends_close() {
    let mut pair = Pair::new();
    transfer(&mut pair, 3 << 20);
    assert_eq!((pair.a.statistic("retransmits"), pair.b.statistic("retransmits")), (0, 0));
    assert_eq!((pair.a.statistic("buffer_bytes"), pair.b.statistic("buffer_bytes")), (0, 0));
}

#[test]
fn losses_are_made_good() {
    for seed in 0..8 {
        println!("seed {seed}");
        let mut pair = Pair::new();
        pair.loss = Some((Seeded(seed), 3));
        transfer(&mut pair, 300_000);
        assert!(pair.a.statistic("retransmits") > 0);
    }
}

#[test]
fn an_idle_connection_is_never_looked_at() {
    let mut pair = Pair::new();
    for _ in 0..20 {
        pair.connect();
    }
    // The timers set while connecting run out once, and set none again.
    while pair.advance() {
        pair.exchange();
        assert!(pair.now < 400 * SECOND, "a timer is set again and again");
    }
    assert_eq!((pair.a.statistic("flows"), pair.b.statistic("flows")), (20, 20));
    assert_eq!((pair.a.stack.touched_len(), pair.b.stack.touched_len()), (0, 0));
}

#[test]
fn a_batch_is_acknowledged_once() {
    let mut pair = Pair::new();
    let (ours, theirs) = pair.connect();
    // Open the congestion window first.
    for round in 0..20 {
        let mut left = pair.a.write(ours, &bytes(100_000, round));
        while left > 0 {
            pair.exchange();
            let mut got = Vec::new();
            pair.b.read(theirs, &mut got);
            left -= got.len();
        }
        pair.exchange();
    }
    pair.a.write(ours, &bytes(20 * 1448, 99));
    pair.a.settle(pair.now);
    let segments = pair.a.packets();
    assert_eq!(segments.len(), 20);
    for packet in &segments {
        pair.b.stack.input(pair.now, packet, &mut pair.b.out);
    }
    pair.b.settle(pair.now);
    assert_eq!(pair.b.packets().len(), 1);
}

#[test]
fn a_lost_last_acknowledgement_is_sent_again() {
    let mut pair = Pair::new();
    let (ours, theirs) = pair.connect();
    pair.a.finish(ours);
    pair.exchange();
    pair.b.finish(theirs);
    pair.b.settle(pair.now);
    let fin = pair.b.packets();
    pair.a.stack.input(pair.now, &fin[0], &mut pair.a.out);
    pair.a.settle(pair.now);
    let lost = pair.a.packets();
    assert_eq!(lost.len(), 1);
    assert_eq!(pair.a.events, [Event::Closed { flow: ours, failure: None }]);
    assert_eq!((pair.a.statistic("flows"), pair.a.statistic("time_wait")), (0, 1));
    assert_eq!(pair.b.statistic("flows"), 1);
    while pair.b.statistic("flows") > 0 {
        assert!(pair.advance());
        pair.exchange();
    }
    assert_eq!(pair.b.events, [Event::Closed { flow: theirs, failure: None }]);
}

#[test]
fn time_wait_is_bounded_and_ends() {
    let mut pair = Pair::new();
    for _ in 0..5000 {
        let (ours, theirs) = pair.connect();
        pair.a.finish(ours);
        pair.exchange();
        pair.b.finish(theirs);
        pair.exchange();
        pair.a.events.clear();
        pair.b.events.clear();
    }
    assert_eq!(pair.a.statistic("time_wait"), 4096);
    assert_eq!(pair.a.statistic("dropped_time_wait"), 904);
    assert_eq!((pair.a.statistic("flows"), pair.a.statistic("buffer_bytes")), (0, 0));
    pair.now += 61 * SECOND;
    let (ours, _) = pair.connect();
    pair.a.stack.abort(pair.now, ours, &mut pair.a.out);
    pair.exchange();
}

#[test]
fn the_same_two_ends_connect_again_at_once() {
    for seed in 0..20 {
        println!("seed {seed}");
        let mut pair = Pair::new();
        // Its port is always the same one.
        pair.a = Host::with("10.8.0.1/24", Box::new(move || seed));
        for _ in 0..3 {
            let (ours, theirs) = pair.connect();
            pair.b.finish(theirs);
            pair.exchange();
            pair.a.finish(ours);
            pair.exchange();
            assert_eq!(pair.b.statistic("time_wait"), 1);
            (pair.a.events, pair.b.events) = (Vec::new(), Vec::new());
            pair.now += SECOND / 1000;
            let again = pair.now;
            let (ours, theirs) = pair.connect();
            assert_eq!(pair.now, again, "the first SYN is answered");
            pair.a.stack.abort(pair.now, ours, &mut pair.a.out);
            pair.exchange();
            assert!(pair.b.stack.flow_mut(theirs).is_none());
            (pair.a.events, pair.b.events) = (Vec::new(), Vec::new());
        }
    }
}

#[test]
fn nobody_listening_refuses() {
    let mut pair = Pair::new();
    let flow = pair.a.stack.connect(pair.now, remote(81)).unwrap();
    pair.exchange();
    assert_eq!(pair.a.events, [Event::Failed { flow, failure: Failure::Refused }]);
    assert_eq!(pair.b.statistic("dropped_no_flow"), 1);
}

#[test]
fn silence_times_out() {
    let mut pair = Pair::new();
    let start = pair.now;
    let flow = pair.a.stack.connect(pair.now, "10.8.0.99:80".parse().unwrap()).unwrap();
    while pair.a.events.is_empty() {
        pair.exchange();
        assert!(pair.a.events.len() == 1 || pair.advance());
    }
    assert_eq!(pair.a.events, [Event::Failed { flow, failure: Failure::TimedOut }]);
    assert_eq!(pair.now - start, 60 * SECOND);
    // The SYN goes out again after pauses that double.
    assert!((5..=8).contains(&pair.b.statistic("dropped_no_address")));
}

#[test]
fn a_peer_that_vanishes_is_given_up() {
    let mut pair = Pair::new();
    let (ours, _) = pair.connect();
    pair.loss = Some((Seeded(0), 100));
    pair.a.write(ours, b"anyone there?");
    while pair.a.events.is_empty() {
        pair.exchange();
        assert!(pair.a.events.len() == 1 || pair.advance());
    }
    assert_eq!(pair.a.events, [Event::Closed { flow: ours, failure: Some(Failure::TimedOut) }]);
}

#[test]
fn a_reader_that_stops_stops_the_writer() {
    let mut pair = Pair::new();
    let (ours, theirs) = pair.connect();
    let data = bytes(6 << 20, 5);
    let mut written = 0;
    for _ in 0..1000 {
        written += pair.a.write(ours, &data[written..]);
        pair.exchange();
        pair.advance();
    }
    let held = pair.b.stack.flow_mut(theirs).unwrap().transport.readable();
    let budget = pair.a.statistic("buffer_bytes") + pair.b.statistic("buffer_bytes");
    assert!(written < data.len() && held as u64 <= pair.b.statistic("buffer_bytes"));
    assert!(written as u64 <= budget);
    let mut got = Vec::new();
    while got.len() < data.len() {
        written += pair.a.write(ours, &data[written..]);
        let before = got.len();
        pair.b.read(theirs, &mut got);
        pair.exchange();
        assert!(got.len() > before || pair.advance());
    }
    assert!(got == data);
}

#[test]
fn a_report_fails_only_the_connection_it_quotes() {
    let mut pair = Pair::new();
    let flow = pair.a.stack.connect(pair.now, "192.0.2.1:80".parse().unwrap()).unwrap();
    pair.a.settle(pair.now);
    let syn = pair.a.packets().pop().unwrap();
    let report = |quote: &[u8]| {
        let mut out = Outbox::new(Pool::new(0).local());
        icmp::emit_unreachable(&mut out, icmp::Unreachable::Port, quote);
        let mut packets = Vec::new();
        out.take(&mut packets);
        packets.pop().unwrap()
    };
    let mut forged = syn.to_vec();
    forged[24] ^= 1; // the sequence number
    pair.a.stack.input(pair.now, &report(&forged), &mut pair.a.out);
    pair.a.settle(pair.now);
    assert_eq!(pair.a.events, []);
    pair.a.stack.input(pair.now, &report(&syn), &mut pair.a.out);
    pair.a.settle(pair.now);
    assert_eq!(pair.a.events, [Event::Failed { flow, failure: Failure::Refused }]);
    assert_eq!(pair.a.statistic("flows"), 0);
}

#[test]
fn a_flood_of_half_open_connections_is_bounded() {
    let mut pair = Pair::new();
    pair.b.stack.listen(None, 80, 1024).unwrap();
    for _ in 0..300 {
        pair.a.stack.connect(pair.now, remote(80)).unwrap();
        pair.a.settle(pair.now);
        for packet in pair.a.packets() {
            pair.b.stack.input(pair.now, &packet, &mut pair.b.out);
        }
        pair.b.settle(pair.now);
        pair.b.packets();
    }
    assert_eq!(pair.b.statistic("half_open"), 128);
    assert_eq!(pair.b.statistic("dropped_half_open"), 172);
    assert_eq!(pair.b.statistic("flows"), 128);
}

#[test]
fn a_full_backlog_drops_and_counts() {
    let mut pair = Pair::new();
    let (listener, _) = pair.b.stack.listen(None, 80, 2).unwrap();
    for _ in 0..3 {
        pair.a.stack.connect(pair.now, remote(80)).unwrap();
        pair.exchange();
    }
    assert_eq!(pair.b.statistic("dropped_backlog"), 1);
    pair.b.stack.close_listener(listener);
    pair.exchange();
    // Those that nobody attached are reset with their listener.
    assert_eq!(pair.b.statistic("flows"), 0);
}

#[test]
fn past_the_budget_nothing_opens() {
    let mut pair = Pair::new();
    let mut opened = 0;
    let refused = loop {
        match pair.a.stack.connect(pair.now, remote(81)) {
            Ok(_) => opened += 1,
            Err(failure) => break failure,
        }
    };
    assert_eq!(refused, Failure::NoBuffers);
    assert!(opened > 60 && pair.a.statistic("buffer_bytes") <= pair.a.statistic("budget_bytes"));
    pair.exchange();
    assert_eq!(pair.a.statistic("buffer_bytes"), 0);
}

#[test]
fn a_connection_does_not_outlive_its_address() {
    let mut pair = Pair::new();
    let (ours, _) = pair.connect();
    pair.a.stack.set_addresses(Addresses::parse(["10.8.0.7/24"]).unwrap());
    pair.exchange();
    assert_eq!(pair.a.events, [Event::Closed { flow: ours, failure: Some(Failure::AddressGone) }]);
}

#[test]
fn where_a_connection_cannot_go() {
    let mut host = Host::new("10.8.0.1/24", 1);
    let mut connect = |to: &str| host.stack.connect(SECOND, to.parse().unwrap()).err();
    for to in ["127.0.0.1:80", "224.0.0.1:80", "10.8.0.255:80", "0.0.0.0:80"] {
        assert_eq!(connect(to), Some(Failure::HostUnreachable), "{to}");
    }
    assert_eq!(connect("[2001:db8::1]:80"), Some(Failure::NetworkUnreachable));
}

#[test]
fn a_shorter_path_gets_shorter_segments() {
    let mut pair = Pair::new();
    let (ours, theirs) = pair.connect();
    let tuple = pair.a.stack.flow_mut(ours).unwrap().tuple;
    pair.a.stack.report(tuple, 0, Problem::TooBig { mtu: 600 });
    pair.a.write(ours, &bytes(5000, 6));
    pair.a.settle(pair.now);
    let packets = pair.a.packets();
    assert!(packets.iter().all(|packet| packet.len() <= 600) && !packets.is_empty());
    for packet in packets {
        pair.b.stack.input(pair.now, &packet, &mut pair.b.out);
    }
    let mut got = Vec::new();
    while got.len() < 5000 {
        pair.exchange();
        pair.b.read(theirs, &mut got);
        assert!(got.len() == 5000 || pair.advance());
    }
    assert!(got == bytes(5000, 6));
}

#[test]
fn datagrams_and_echo() {
    let mut pair = Pair::new();
    let (from, port) = pair.a.stack.open_datagram(None, 0, Kept::default()).unwrap();
    let (to, _) = pair.b.stack.open_datagram(None, 53, Kept::default()).unwrap();
    assert_eq!(pair.b.stack.open_datagram(None, 53, Kept::default()).err(), Some(Failure::InUse));
    pair.a.stack.send_datagram(from, remote(53), b"question", &mut pair.a.out);
    pair.a.stack.send_datagram(from, remote(54), b"to nobody", &mut pair.a.out);
    pair.a.stack.send_datagram(from, remote(53), &[0; 65_508], &mut pair.a.out);
    pair.exchange();
    let source: IpAddr = "10.8.0.1".parse().unwrap();
    let kept = &pair.b.stack.datagram_mut(to).unwrap().0;
    assert_eq!(kept, &[(SocketAddr::new(source, port), b"question".to_vec())]);
    assert_eq!(pair.b.statistic("dropped_no_port"), 1);
    assert_eq!(pair.a.statistic("dropped_unsendable"), 1);
    let host: IpAddr = "10.8.0.2".parse().unwrap();
    pair.a.stack.ping(host, 7, 1, b"payload", &mut pair.a.out).unwrap();
    pair.exchange();
    let pong = Event::Pong { host, identifier: 7, sequence: 1, payload: b"payload".to_vec() };
    assert_eq!(pair.a.events, [pong]);
}

#[test]
fn who_pings_without_end_leaves_others_their_answers() {
    let mut pair = Pair::new();
    let mut answers = |address: &str, count: u16| {
        pair.a.stack.set_addresses(Addresses::parse([address]).unwrap());
        for sequence in 0..count {
            pair.a.stack.ping("10.8.0.2".parse().unwrap(), 7, sequence, b"", &mut pair.a.out).unwrap();
            let request = pair.a.packets().pop().unwrap();
            pair.b.stack.input(pair.now, &request, &mut pair.b.out);
        }
        pair.b.packets().len()
    };
    assert_eq!(answers("10.8.0.1/24", 2000), 750);
    assert_eq!(answers("10.8.0.7/24", 15), 15);
}

#[test]
fn garbage_is_dropped_and_counted() {
    let mut pair = Pair::new();
    let (ours, theirs) = pair.connect();
    pair.a.write(ours, &bytes(4000, 7));
    pair.a.settle(pair.now);
    let sound = pair.a.packets();
    let mut random = Seeded(8);
    for round in 0..200_000u64 {
        let mut packet = match round % 4 {
            0 => bytes((random.next() % 100) as usize, round),
            _ => sound[random.next() as usize % sound.len()].to_vec(),
        };
        for _ in 0..random.next() % 4 {
            if let Some(at) =
                packet.len().checked_sub(1).map(|last| random.next() as usize % (last.min(60) + 1))
            {
                packet[at] = random.next() as u8;
            }
        }
        if round % 4 > 1 {
            mend(&mut packet);
        }
        pair.b.stack.input(pair.now, &packet, &mut pair.b.out);
        pair.b.settle(pair.now);
        pair.b.read(theirs, &mut Vec::new());
        pair.b.packets();
        pair.now += 1000;
    }
    assert!(pair.b.statistic("dropped_malformed") > 0 && pair.b.statistic("dropped_checksum") > 0);
}

/// Makes a mutated packet's checksums right again, so that it gets further.
fn mend(packet: &mut [u8]) {
    use smoltcp::wire::{Ipv4Packet, TcpPacket};
    if Ipv4Packet::new_checked(&packet[..]).is_err() {
        return;
    }
    let mut ip = Ipv4Packet::new_unchecked(&mut *packet);
    if ip.header_len() != 20 {
        return;
    }
    ip.fill_checksum();
    let (source, destination) = (ip.src_addr().into(), ip.dst_addr().into());
    let end = usize::from(ip.total_len());
    if TcpPacket::new_checked(&packet[20..end]).is_ok() {
        TcpPacket::new_unchecked(&mut packet[20..end]).fill_checksum(&source, &destination);
    }
}
