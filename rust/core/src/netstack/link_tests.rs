//! Hostile packets and frames, on both kinds of link.

use std::net::SocketAddr;

use super::*;
use crate::netstack::ethernet::{Frame, HEADER, IPV6};
use crate::packet::{LocalPool, Pool};
use crate::seeded::Seeded;

const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);

#[derive(Default)]
struct Taken(usize);

impl Outlet for Taken {
    fn deliver(&mut self, _from: SocketAddr, _payload: &[u8]) -> bool {
        self.0 += 1;
        true
    }
}

fn stack(kind: Kind) -> Stack<(), Taken> {
    let mut random = Seeded(1);
    let mut stack = Stack::new(kind, 1 << 22, 1500, Box::new(move || random.next()));
    stack.set_mac(OURS);
    stack.set_addresses(Addresses::parse(["10.8.0.1/24", "fd00::1/64"]).unwrap());
    stack
}

fn outbox() -> Outbox {
    let mut out = Outbox::new(Pool::new(64).local());
    out.take(&mut Vec::new());
    out
}

/// Packets of every sort that a stack takes, as another sends them.
fn samples() -> Vec<Vec<u8>> {
    let mut out = outbox();
    let mut samples = Vec::new();
    for (source, own) in [("10.8.0.2", "10.8.0.1"), ("fd00::2", "fd00::1")] {
        let ends: (IpAddr, IpAddr) = (source.parse().unwrap(), own.parse().unwrap());
        let (from, to) = (SocketAddr::new(ends.0, 1024), SocketAddr::new(ends.1, 53));
        udp::emit(&mut out, from, to, &[7; 100], (1500, 1)).unwrap();
        udp::emit(&mut out, from, to, &[7; 4000], (1500, 2)).unwrap();
        icmp::emit_echo(&mut out, ends, Echo::Request, (1, 2), &[7; 50], (1500, 3));
        icmp::emit_echo(&mut out, ends, Echo::Request, (1, 2), &[7; 3000], (1500, 4));
        let mut other = stack(Kind::Tun);
        other.set_addresses(Addresses::parse([format!("{source}/24").as_str()]).unwrap());
        let flow = other.connect(1, to).unwrap();
        other.settle(1, flow, &mut out);
    }
    let (IpAddr::V6(source), IpAddr::V6(own)) = ("fd00::2".parse().unwrap(), "fd00::1".parse().unwrap())
    else {
        unreachable!()
    };
    ndp::emit_solicitation(&mut out, (THEIRS, source), own, false);
    ndp::emit_announcement(&mut out, (THEIRS, source));
    let mut packets = Vec::new();
    out.take(&mut packets);
    samples.extend(packets.iter().map(|packet| packet.to_vec()));
    samples
}

fn framed(pool: &mut LocalPool, packet: &[u8]) -> Packet {
    let mut frame = pool.packet_from(packet);
    ethernet::enclose(&mut frame, THEIRS, OURS);
    frame
}

fn dropped(stack: &Stack<(), Taken>) -> u64 {
    let dropped = stack.statistics().into_iter().filter(|(name, _)| name.starts_with("dropped_"));
    dropped.map(|(_, count)| count).sum()
}

#[test]
fn damaged_packets_of_every_sort_do_no_harm() {
    let samples = samples();
    assert!(samples.len() > 15);
    for kind in [Kind::Tun, Kind::Tap] {
        let (mut stack, mut out, mut pool) = (stack(kind), outbox(), Pool::new(64).local());
        stack.capture(60 * crate::SECOND);
        let mut random = Seeded(42);
        let mut packets = Vec::new();
        for round in 0..60_000u64 {
            let mut packet = samples[random.below(samples.len())].clone();
            for _ in 0..random.below(3) {
                let at = random.below(packet.len().min(80));
                packet[at] = random.next() as u8;
            }
            packet.truncate(if random.below(4) == 0 { random.below(packet.len()) } else { packet.len() });
            let now = round * 1_000_000;
            match kind {
                Kind::Tun => stack.input(now, &packet, &mut out),
                Kind::Tap if packet.is_empty() => stack.input(now, &[], &mut out),
                Kind::Tap => stack.input(now, &framed(&mut pool, &packet), &mut out),
            }
            stack.expire(now, &mut out);
            while let Some(flow) = stack.next_touched() {
                stack.settle(now, flow, &mut out);
            }
            stack.transmit(now, &mut out);
            stack.input_looped(now, &mut out);
            stack.take_events(&mut Vec::new());
            out.take(&mut packets);
            packets.clear();
        }
        assert!(dropped(&stack) > 1000);
    }
}

#[test]
fn frames_of_every_length_do_no_harm() {
    let mut random = Seeded(7);
    let bytes: Vec<u8> = (0..65_535).map(|_| random.next() as u8).collect();
    for kind in [Kind::Tun, Kind::Tap] {
        let (mut stack, mut out) = (stack(kind), outbox());
        let mut packets = Vec::new();
        for len in 0..=65_535usize {
            let mut packet = bytes[..len].to_vec();
            if len > HEADER && kind == Kind::Tap {
                let ethertype = [0x0800, IPV6, 0x0806, 0x8100][random.below(4)];
                Frame { destination: OURS, source: THEIRS, ethertype }.emit(&mut packet);
                packet[HEADER] = if ethertype == IPV6 { 0x60 } else { 0x45 };
            }
            stack.input(1, &packet, &mut out);
            out.take(&mut packets);
            packets.clear();
        }
        assert_eq!(dropped(&stack), 65_536);
    }
}

#[test]
fn extension_headers_are_skipped_where_they_may_be() {
    let hop = |kind: u8, next: u8| vec![next, 0, kind, 0, 1, 2, 0, 0];
    let routing = |left: u8, next: u8| vec![next, 0, 0, left, 0, 0, 0, 0];
    for (extensions, first, counter) in [
        ([hop(5, 60), hop(1, 17)].concat(), 0, None),
        (routing(0, 17), 43, None),
        (vec![17, 0, 0, 0, 0, 0, 0, 9], 44, None), // a fragment header about the whole
        (routing(1, 17), 43, Some("dropped_unsupported")),
        (hop(0x85, 17), 0, Some("dropped_unsupported")),
        ([hop(5, 0), hop(5, 17)].concat(), 0, Some("dropped_malformed")),
        (vec![17, 9, 0, 0, 0, 0, 0, 0], 0, Some("dropped_malformed")),
        (vec![17, 0, 5, 200, 0, 0, 0, 0], 60, Some("dropped_malformed")),
    ] {
        let mut stack = stack(Kind::Tun);
        let mut out = outbox();
        let (port, _) = stack.open_datagram(None, 53, Taken::default()).unwrap();
        let (from, to) = ("[fd00::2]:1024".parse().unwrap(), "[fd00::1]:53".parse().unwrap());
        udp::emit(&mut out, from, to, &[7; 100], (1500, 1)).unwrap();
        let mut packet = out.last().unwrap().to_vec();
        packet.splice(40..40, extensions.iter().copied());
        packet[6] = first;
        let len = (packet.len() - 40) as u16;
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        stack.input(1, &packet, &mut out);
        assert_eq!(stack.datagram_mut(port).unwrap().0, usize::from(counter.is_none()), "{extensions:?}");
        let counted: Vec<_> = stack
            .statistics()
            .into_iter()
            .filter(|(name, count)| name.starts_with("dropped_") && *count > 0)
            .collect();
        assert_eq!(counted, counter.map(|name| (name, 1)).into_iter().collect::<Vec<_>>(), "{extensions:?}");
    }
}

#[test]
fn what_has_waited_for_a_station_goes_before_what_comes_later() {
    let (mut stack, mut out, mut other) = (stack(Kind::Tap), outbox(), outbox());
    let (Ok(own), Ok(host)) = ("10.8.0.1".parse(), "10.8.0.2".parse()) else { unreachable!() };
    for sequence in 1..4 {
        stack.ping(IpAddr::V4(host), 7, sequence, b"", &mut out).unwrap();
    }
    stack.transmit(1, &mut out);
    out.take(&mut Vec::new());
    let reply = arp::Arp { operation: arp::Operation::Reply, sender: (THEIRS, host), target: (OURS, own) };
    reply.emit(&mut other, OURS);
    let mut frames = Vec::new();
    other.take(&mut frames);
    stack.input(2, &frames[0], &mut out);
    stack.ping(IpAddr::V4(host), 7, 4, b"", &mut out).unwrap();
    stack.transmit(2, &mut out);
    let mut sent = Vec::new();
    out.take(&mut sent);
    // Ethernet, IPv4, and ICMP's own up to the sequence number.
    let sequences: Vec<u8> = sent.iter().map(|frame| frame[HEADER + 20 + 7]).collect();
    assert_eq!(sequences, [1, 2, 3, 4]);
}
