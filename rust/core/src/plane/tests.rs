use super::receiving::OCC;
use super::*;
use crate::cipher::Cipher;
use crate::packet::Pool;
use crate::{SECOND, format};

/// Two planes that know each other as peer 1, with the paths on which they meet.
struct Pair {
    left: Plane,
    right: Plane,
    pool: LocalPool,
    /// What the right side has relayed.
    relayed: Vec<Datagram>,
}

fn path(socket: u64, port: u16) -> Path {
    Path { socket, address: ([192, 0, 2, 1], port).into() }
}

fn material(seed: u8) -> [u8; MATERIAL_LEN] {
    std::array::from_fn(|index| seed ^ index as u8)
}

fn ipv4(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0; 60];
    packet[0] = 0x45;
    packet[12..16].copy_from_slice(&source);
    packet[16..20].copy_from_slice(&destination);
    packet
}

const HOME: [u8; 4] = [10, 8, 0, 1];
const AWAY: [u8; 4] = [10, 8, 0, 2];

impl Pair {
    /// The left is at port 1000 for the right, the right at 2000 for the left.
    fn new(peer_id: Option<u32>) -> Pair {
        Pair::of(Kind::Tun, 1, peer_id)
    }

    fn of(kind: Kind, lanes: usize, peer_id: Option<u32>) -> Pair {
        let mut pair = Pair {
            left: Plane::new(kind, lanes),
            right: Plane::new(kind, lanes),
            pool: Pool::new(64).local(),
            relayed: Vec::new(),
        };
        pair.left.new_peer(1, path(0, 2000), peer_id, 0).unwrap();
        pair.right.new_peer(1, path(0, 1000), peer_id, 0).unwrap();
        pair.key(1, 0, 1);
        pair.left.swap(1, 1).unwrap();
        pair.right.swap(1, 1).unwrap();
        pair
    }

    fn key(&mut self, handle: u64, key_id: u8, seed: u8) {
        let (there, back) = (material(seed), material(!seed));
        self.left.new_key(1, handle, key_id, Format::Aead(Cipher::Aes256Gcm), &there, &back).unwrap();
        self.right.new_key(1, handle, key_id, Format::Aead(Cipher::Aes256Gcm), &back, &there).unwrap();
    }

    /// Seals at the left.
    fn seal(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let packet = self.pool.packet_from(packet);
        self.left.seal(packet, 0, &mut self.pool).map(|datagram| datagram.packet.to_vec())
    }

    /// Opens at the right.
    fn open(&mut self, datagram: &[u8], from: Path) -> Option<Vec<u8>> {
        let opened = self.right.open(datagram, from, 0, &mut self.relayed, &mut self.pool);
        opened.map(|packet| packet.to_vec())
    }
}

#[test]
fn packets_pass_and_replays_do_not() {
    for peer_id in [None, Some(7)] {
        let mut pair = Pair::new(peer_id);
        let packet = ipv4(HOME, AWAY);
        let datagram = pair.seal(&packet).unwrap();
        assert_eq!(pair.open(&datagram, path(0, 1000)), Some(packet));
        assert_eq!(pair.open(&datagram, path(0, 1000)), None);
        assert_eq!(pair.right.counters().rx_replayed, 1);
        assert_eq!(pair.right.peer_counters(1).unwrap().rx_dropped, 1);
    }
}

#[test]
fn only_what_is_authentic_and_newest_moves_a_peer() {
    let mut pair = Pair::new(Some(7));
    let (old, new) = (path(0, 1000), path(3, 4000));
    let sealed: Vec<_> = (0..3).map(|_| pair.seal(&ipv4(HOME, AWAY)).unwrap()).collect();
    let mut forged = sealed[1].clone();
    forged[30] ^= 1;
    assert_eq!(pair.open(&forged, new), None);
    assert!(pair.right.take_events().is_empty());
    assert!(pair.open(&sealed[1], new).is_some());
    assert_eq!(pair.right.take_events(), [Event::Float { peer: 1, path: new }]);
    assert!(pair.open(&sealed[0], old).is_some(), "overtaken, but good");
    assert!(pair.right.take_events().is_empty());
    let packet = pair.pool.packet_from(&ipv4(AWAY, HOME));
    assert_eq!(pair.right.seal(packet, 0, &mut pair.pool).unwrap().path, new);
}

#[test]
fn only_what_is_authentic_and_newest_says_which_address_of_ours_a_peer_asks() {
    let mut pair = Pair::new(Some(7));
    let [first, second, third] = [1, 2, 3].map(|last| Some(IpAddr::from([198, 51, 100, last])));
    let sealed: Vec<_> = (0..3).map(|_| pair.seal(&ipv4(HOME, AWAY)).unwrap()).collect();
    let mut forged = sealed[2].clone();
    forged[30] ^= 1;
    let arrives = |pair: &mut Pair, datagram: &[u8], from, asked| {
        let Pair { right, pool, .. } = pair;
        right.receive(0, |receiving| {
            receiving.asked = asked;
            receiving.open(datagram, from, 0, pool);
            receiving.asked_anew().pop()
        })
    };
    let old = path(0, 1000);
    assert_eq!(arrives(&mut pair, &sealed[1], old, first), Some((old, first.unwrap())));
    assert_eq!(arrives(&mut pair, &forged, old, second), None);
    assert_eq!(arrives(&mut pair, b"\x20 a control packet", old, second), None);
    assert_eq!(arrives(&mut pair, &sealed[0], old, second), None, "it was overtaken");
    assert_eq!(arrives(&mut pair, &sealed[2], old, second), Some((old, second.unwrap())));
    pair.right.take_events();
    let again = pair.seal(&ipv4(HOME, AWAY)).unwrap();
    assert_eq!(arrives(&mut pair, &again, old, second), None, "that is known");
    let new = path(0, 4000);
    let datagram = pair.seal(&ipv4(HOME, AWAY)).unwrap();
    assert_eq!(arrives(&mut pair, &datagram, new, third), Some((new, third.unwrap())));
    assert_eq!(pair.right.take_events(), [Event::Float { peer: 1, path: new }]);
    pair.right.set_asked(&new, None);
    let again = pair.seal(&ipv4(HOME, AWAY)).unwrap();
    assert_eq!(arrives(&mut pair, &again, new, third), Some((new, third.unwrap())));
}

#[test]
fn nobody_floats_onto_anothers_path() {
    let mut pair = Pair::new(Some(7));
    pair.right.new_peer(2, path(0, 4000), Some(8), 0).unwrap();
    let datagram = pair.seal(&ipv4(HOME, AWAY)).unwrap();
    assert_eq!(pair.open(&datagram, path(0, 4000)), None);
    assert_eq!(pair.right.counters().rx_float_refused, 1);
}

#[test]
fn an_unknown_peer_id_is_found_by_its_path() {
    let mut pair = Pair::new(Some(7));
    pair.right.del_peer(1).unwrap();
    pair.right.new_peer(5, path(0, 1000), Some(99), 0).unwrap();
    let (there, back) = (material(1), material(!1));
    pair.right.new_key(5, 1, 0, Format::Aead(Cipher::Aes256Gcm), &back, &there).unwrap();
    let datagram = pair.seal(&ipv4(HOME, AWAY)).unwrap();
    assert!(pair.open(&datagram, path(0, 1000)).is_some());
    let datagram = pair.seal(&ipv4(HOME, AWAY)).unwrap();
    assert!(pair.open(&datagram, path(0, 1001)).is_none());
    assert_eq!(pair.right.counters().rx_no_peer, 1);
}

#[test]
fn a_replaced_key_sends_until_the_swap_and_receives_no_more() {
    let mut pair = Pair::new(None);
    let before = pair.seal(&ipv4(HOME, AWAY)).unwrap();
    pair.key(2, 0, 9);
    assert_eq!(pair.open(&before, path(0, 1000)), None);
    assert_eq!(pair.right.counters().rx_auth_failed, 1);
    assert!(pair.seal(&ipv4(HOME, AWAY)).is_some(), "the old pair still sends");
    pair.left.swap(1, 2).unwrap();
    assert_eq!(pair.left.swap(1, 1), Err(CommandError::UnknownKey));
    let after = pair.seal(&ipv4(HOME, AWAY)).unwrap();
    assert!(pair.open(&after, path(0, 1000)).is_some());
}

#[test]
fn a_fourth_key_displaces_the_oldest_that_does_not_send() {
    let mut pair = Pair::new(None);
    for handle in 2..=4 {
        pair.key(handle, handle as u8, handle as u8);
    }
    assert_eq!(pair.right.swap(1, 2), Err(CommandError::UnknownKey));
    for handle in [1, 3, 4] {
        pair.left.swap(1, handle).unwrap();
        let datagram = pair.seal(&ipv4(HOME, AWAY)).unwrap();
        assert!(pair.open(&datagram, path(0, 1000)).is_some(), "key {handle}");
    }
}

#[test]
fn a_key_at_its_end_is_reported_once_and_never_wraps() {
    let mut pair = Pair::new(None);
    let wear = |pair: &mut Pair, id| {
        pair.left.send(0, |sending| {
            let key = sending.half.peers.get_mut(&1).unwrap().keys.current().unwrap();
            let format::Sealer::Aead(sealer) = &mut key.sealer else { panic!("an AEAD key") };
            sealer.wear(id, 0);
        });
    };
    wear(&mut pair, 0xfeff_fffe);
    pair.seal(&ipv4(HOME, AWAY)).unwrap();
    assert!(pair.left.take_events().is_empty());
    pair.seal(&ipv4(HOME, AWAY)).unwrap();
    pair.seal(&ipv4(HOME, AWAY)).unwrap();
    assert_eq!(pair.left.take_events(), [Event::KeyLimit { peer: 1, handle: 1 }]);
    wear(&mut pair, u32::MAX - 1);
    assert!(pair.seal(&ipv4(HOME, AWAY)).is_some());
    assert!(pair.seal(&ipv4(HOME, AWAY)).is_none());
    assert_eq!(pair.left.counters().tx_exhausted, 1);
    assert_eq!(pair.left.counters().tx_packets, 4);
}

#[test]
fn pings_go_out_after_silence_and_are_kept_from_the_device() {
    let mut pair = Pair::new(Some(1));
    pair.left.set_peer(1, 10 * SECOND, 0, 0, Framing::None, 0).unwrap();
    let mut pings = Vec::new();
    pair.left.handle_timer(9 * SECOND, &mut pings, &mut pair.pool);
    assert!(pings.is_empty());
    let packet = pair.pool.packet_from(&ipv4(HOME, AWAY));
    pair.left.seal(packet, 5 * SECOND, &mut pair.pool).unwrap();
    pair.left.handle_timer(10 * SECOND, &mut pings, &mut pair.pool);
    assert!(pings.is_empty());
    assert_eq!(pair.left.next_timer(), Some(15 * SECOND));
    pair.left.handle_timer(15 * SECOND, &mut pings, &mut pair.pool);
    assert_eq!(pair.open(&pings[0].packet, path(0, 1000)), None);
    assert_eq!(pair.right.counters().rx_pings, 1);
    assert_eq!(pair.left.next_timer(), Some(25 * SECOND));
}

#[test]
fn many_peers_are_not_looked_at_for_each() {
    let mut pair = Pair::new(Some(1));
    for number in 2..102 {
        let now = u64::from(number) * SECOND / 1000;
        pair.left.new_peer(number, path(0, 2000 + number as u16), Some(number), now).unwrap();
        pair.left
            .new_key(number, number.into(), 0, Format::Aead(Cipher::Aes256Gcm), &material(1), &material(2))
            .unwrap();
        pair.left.swap(number, number.into()).unwrap();
        pair.left.set_peer(number, 10 * SECOND, 0, 0, Framing::None, now).unwrap();
    }
    let (mut pings, mut looks) = (Vec::new(), 0);
    while let Some(timer) = pair.left.next_timer().filter(|&timer| timer < 11 * SECOND) {
        pair.left.handle_timer(timer, &mut pings, &mut pair.pool);
        looks += 1;
    }
    assert_eq!(pings.len(), 100);
    assert!(looks <= 4, "{looks}");
}

#[test]
fn a_silent_peer_expires_once() {
    let mut pair = Pair::new(Some(1));
    pair.right.set_peer(1, 0, 60 * SECOND, 0, Framing::None, 0).unwrap();
    let datagram = pair.seal(&ipv4(HOME, AWAY)).unwrap();
    pair.right.open(&datagram, path(0, 1000), 50 * SECOND, &mut pair.relayed, &mut pair.pool).unwrap();
    let mut forged = pair.seal(&ipv4(HOME, AWAY)).unwrap();
    forged[10] ^= 1;
    pair.right.open(&forged, path(0, 1000), 100 * SECOND, &mut pair.relayed, &mut pair.pool);
    let mut none = Vec::new();
    pair.right.handle_timer(109 * SECOND, &mut none, &mut pair.pool);
    assert!(pair.right.take_events().is_empty());
    pair.right.handle_timer(110 * SECOND, &mut none, &mut pair.pool);
    pair.right.handle_timer(500 * SECOND, &mut none, &mut pair.pool);
    assert_eq!(pair.right.take_events(), [Event::Expired { peer: 1 }]);
    assert_eq!(pair.right.next_timer(), None);
    pair.right.set_peer(1, 0, 60 * SECOND, 0, Framing::None, 500 * SECOND).unwrap();
    pair.right.handle_timer(560 * SECOND, &mut none, &mut pair.pool);
    assert_eq!(pair.right.take_events(), [Event::Expired { peer: 1 }]);
}

#[test]
fn routes_choose_the_peer_and_sources_are_held_to() {
    let mut pair = Pair::new(Some(1));
    pair.left.new_peer(2, path(0, 3000), Some(2), 0).unwrap();
    assert_eq!(pair.seal(&ipv4(HOME, AWAY)), None, "two peers, no routes");
    let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Prefix>>();
    pair.left.set_routes(1, &prefixes(&["10.8.0.0/24"]), None).unwrap();
    pair.left.set_routes(2, &prefixes(&["10.8.0.128/25"]), None).unwrap();
    assert!(pair.seal(&ipv4(HOME, AWAY)).is_some());
    assert_eq!(pair.seal(&ipv4(HOME, [10, 8, 0, 200])), None);
    assert_eq!(pair.seal(&ipv4(HOME, [10, 9, 0, 1])), None);
    assert_eq!((pair.left.counters().tx_no_key, pair.left.counters().tx_no_peer), (1, 2));
    pair.right.set_routes(1, &[], Some(&prefixes(&["10.8.0.1/32"]))).unwrap();
    for (source, passes) in [(HOME, true), (AWAY, false)] {
        let datagram = pair.seal(&ipv4(source, AWAY)).unwrap();
        assert_eq!(pair.open(&datagram, path(0, 1000)).is_some(), passes);
    }
    assert_eq!(pair.right.counters().rx_bad_source, 1);
}

#[test]
fn packets_for_another_peer_go_there_where_that_is_wanted() {
    let prefixes = |text: &str| vec![text.parse::<Prefix>().unwrap()];
    for relaying in [false, true] {
        // The right side is a server, to which a second peer is known by the same keys.
        let mut pair = Pair::new(Some(1));
        pair.right.set_relaying(relaying);
        pair.right.set_routes(1, &prefixes("10.8.0.1/32"), None).unwrap();
        pair.right.new_peer(2, path(0, 3000), Some(2), 0).unwrap();
        pair.right.set_routes(2, &prefixes("10.8.0.200/32"), None).unwrap();
        let sealed = pair.seal(&ipv4(HOME, [10, 8, 0, 200])).unwrap();
        assert_eq!(pair.open(&sealed, path(0, 1000)).is_none(), relaying);
        assert_eq!(pair.right.counters().rx_relayed, u64::from(relaying));
        assert_eq!(pair.right.counters().tx_no_key, u64::from(relaying), "it was to be sealed for the other");
        // What is for itself turns round nowhere.
        let sealed = pair.seal(&ipv4(HOME, HOME)).unwrap();
        assert!(pair.open(&sealed, path(0, 1000)).is_some());
        assert_eq!(pair.right.counters().rx_relayed, u64::from(relaying));
    }
}

#[test]
fn what_is_no_packet_is_a_message() {
    let mut pair = Pair::new(Some(1));
    for (content, counted) in [(&[0x28; 17][..], 1), (&[0x28; 257], 1), (b"", 1)] {
        let datagram = pair.left.data_message(1, content, 0, &mut pair.pool).unwrap().unwrap();
        assert_eq!(pair.open(&datagram.packet, path(0, 1000)), None);
        assert_eq!(pair.right.counters().rx_data_messages, counted);
    }
    assert_eq!(pair.right.take_events(), [Event::DataMessage { peer: 1, data: [0x28; 17].into() }]);
    assert_eq!(pair.right.counters().rx_bad_inner, 2);
}

#[test]
fn control_packets_become_events() {
    let mut pair = Pair::new(Some(1));
    assert_eq!(pair.open(&[4 << 3, 1, 2], path(0, 1000)), None);
    let [Event::Control { data, path: from }] = &pair.right.take_events()[..] else { panic!("one event") };
    assert_eq!((&data[..], *from), (&[4 << 3, 1, 2][..], path(0, 1000)));
    assert_eq!(pair.open(b"", path(0, 1000)), None);
    assert_eq!(pair.right.counters().rx_malformed, 1);
    for _ in 0..150 {
        pair.open(&[7 << 3], path(0, 9));
    }
    assert_eq!(pair.right.counters().strangers_dropped, 50);
    pair.right.contacted(path(0, 9));
    pair.open(&[7 << 3], path(0, 9));
    assert_eq!(pair.right.counters().strangers_dropped, 50);
    assert_eq!(pair.right.take_events().len(), 101);
}

#[test]
fn a_stream_does_not_wait_for_strangers_whose_address_is_not_proven() {
    let plane = Plane::new(Kind::Tun, 1);
    plane.set_stream(9, true);
    let mut pool = Pool::new(4).local();
    let mut knock = |socket| {
        (0..200).for_each(|port| {
            plane.open(b"\x38 a reset", path(socket, port), 0, &mut Vec::new(), &mut pool);
        })
    };
    knock(0);
    assert_eq!(plane.counters().strangers_dropped, 100);
    knock(9);
    assert_eq!((plane.counters().strangers_dropped, plane.take_events().len()), (100, 300));
}

#[test]
fn a_forgotten_peer_leaves_nothing() {
    let mut pair = Pair::new(Some(1));
    pair.right.set_routes(1, &["0.0.0.0/0".parse().unwrap()], None).unwrap();
    pair.right.set_peer(1, SECOND, SECOND, 0, Framing::None, 0).unwrap();
    pair.right.del_peer(1).unwrap();
    assert!(pair.right.table.read().unwrap().is_empty());
    let (mut none, right) = (Vec::new(), &pair.right);
    right.handle_timer(5 * SECOND, &mut none, &mut pair.pool);
    assert!(none.is_empty() && right.take_events().is_empty() && right.next_timer().is_none());
    assert_eq!(right.del_peer(1), Err(CommandError::UnknownPeer));
}

#[test]
fn frames_pass_a_tap_plane() {
    let mut pair = Pair::of(Kind::Tap, 1, None);
    let datagram = pair.seal(&[0xff; 60]).unwrap();
    assert_eq!(pair.open(&datagram, path(0, 1000)).unwrap(), [0xff; 60]);
    let notice = [&OCC[..], &[6]].concat();
    let datagram = pair.left.data_message(1, &notice, 0, &mut pair.pool).unwrap().unwrap();
    assert_eq!(pair.open(&datagram.packet, path(0, 1000)), None);
    assert_eq!(pair.right.take_events().len(), 1);
}

#[test]
fn packets_are_framed_as_both_sides_agreed() {
    for framing in [Framing::Lzo, Framing::Stub, Framing::StubV2] {
        let mut pair = Pair::new(Some(1));
        pair.left.set_peer(1, SECOND, 0, 0, framing, 0).unwrap();
        let packet = ipv4(HOME, AWAY);
        let datagram = pair.seal(&packet).unwrap();
        if framing != Framing::StubV2 {
            assert_eq!(pair.open(&datagram, path(0, 1000)), None);
        }
        pair.right.set_peer(1, 0, 0, 0, framing, 0).unwrap();
        let datagram = pair.seal(&packet).unwrap();
        assert_eq!(pair.open(&datagram, path(0, 1000)), Some(packet));
        let mut pings = Vec::new();
        pair.left.handle_timer(SECOND, &mut pings, &mut pair.pool);
        assert_eq!(pair.open(&pings[0].packet, path(0, 1000)), None);
        assert_eq!(pair.right.counters().rx_pings, 1);
        pair.left.set_peer(1, 0, 0, 0, Framing::None, 0).unwrap();
        let datagram = pair.left.data_message(1, &[0x50, 0x0b, 1, 2], 0, &mut pair.pool).unwrap().unwrap();
        assert_eq!(pair.open(&datagram.packet, path(0, 1000)), None);
        assert_eq!(pair.right.counters().rx_compressed, 1);
    }
}

#[test]
fn what_no_datagram_holds_is_not_sealed() {
    let mut pair = Pair::new(Some(1));
    let mut packet = ipv4(HOME, AWAY);
    packet.resize(format::MAX_INNER + 1, 0);
    assert_eq!(pair.seal(&packet), None);
    assert_eq!(pair.left.counters().tx_oversize, 1);
    packet.truncate(format::MAX_INNER);
    let datagram = pair.seal(&packet).unwrap();
    assert_eq!(pair.open(&datagram, path(0, 1000)), Some(packet));
}

/// What each lane's thread would do with a datagram, one after the other until one has opened it.
fn lanes_asked(pair: &mut Pair, datagram: &[u8], from: Path) -> Vec<usize> {
    let (mut lane, mut asked) = (pair.right.lane_of(from.socket), Vec::new());
    loop {
        asked.push(lane);
        let opened = pair.right.receive(lane, |receiving| receiving.open(datagram, from, 0, &mut pair.pool));
        match opened {
            Opened::Elsewhere(other) => lane = other,
            Opened::Packet(_) => return asked,
            _ => panic!("it is for the device"),
        }
    }
}

#[test]
fn a_peer_stays_in_its_lane_wherever_it_moves() {
    let mut pair = Pair::of(Kind::Tun, 3, Some(7));
    let new = path(4, 4000);
    for (from, expected) in [(path(0, 1000), vec![0]), (new, vec![1, 0]), (new, vec![1, 0])] {
        let datagram = pair.seal(&ipv4(HOME, AWAY)).unwrap();
        assert_eq!(lanes_asked(&mut pair, &datagram, from), expected);
        assert_eq!(pair.open(&datagram, from), None, "a replay, by whichever lane");
    }
    assert_eq!(pair.right.take_events(), [Event::Float { peer: 1, path: new }]);
    assert_eq!(pair.right.counters().rx_replayed, 3);
    assert_eq!(pair.right.counters().rx_datagrams, 6, "each is counted where it is opened");
    let packet = pair.pool.packet_from(&ipv4(AWAY, HOME));
    assert_eq!(pair.right.seal(packet, 0, &mut pair.pool).unwrap().path, new);
}

#[test]
fn packets_are_handed_to_the_lane_of_their_peer() {
    let mut pair = Pair::of(Kind::Tun, 3, Some(1));
    let prefixes = |text: &str| vec![text.parse::<Prefix>().unwrap()];
    pair.right.new_peer(2, path(5, 3000), Some(2), 0).unwrap();
    pair.right.set_routes(1, &prefixes("10.8.0.1/32"), None).unwrap();
    pair.right.set_routes(2, &prefixes("10.8.0.200/32"), None).unwrap();
    let for_the_other = ipv4(HOME, [10, 8, 0, 200]);
    let packet = pair.pool.packet_from(&for_the_other);
    let sealed = pair.right.send(0, |sending| sending.seal(packet, |_| true, 0, &mut pair.pool));
    assert!(matches!(sealed, Sealed::Elsewhere(2, packet) if packet[..] == for_the_other));
    pair.right.set_relaying(true);
    let datagram = pair.seal(&for_the_other).unwrap();
    let opened =
        pair.right.receive(0, |receiving| receiving.open(&datagram, path(0, 1000), 0, &mut pair.pool));
    assert!(matches!(opened, Opened::Relayed(2, packet) if packet[..] == for_the_other));
}

#[test]
fn timers_of_every_lane_are_kept() {
    let mut pair = Pair::of(Kind::Tun, 2, None);
    let material = material(3);
    for (number, socket) in [(2, 1), (3, 2)] {
        pair.left.new_peer(number, path(socket, 5000 + number as u16), None, 0).unwrap();
        let format = Format::Aead(Cipher::Aes256Gcm);
        pair.left.new_key(number, 1, 0, format, &material, &material).unwrap();
        pair.left.swap(number, 1).unwrap();
        let seconds = u64::from(number) * SECOND;
        pair.left.set_peer(number, seconds, 10 * seconds, 0, Framing::None, 0).unwrap();
    }
    assert!(pair.left.has_new_timer() && !pair.left.has_new_timer());
    // Who sleeps until an earlier one need not be woken for this.
    pair.left.new_peer(4, path(1, 5004), None, 0).unwrap();
    pair.left.set_peer(4, 9 * SECOND, 90 * SECOND, 0, Framing::None, 0).unwrap();
    assert!(!pair.left.has_new_timer());
    pair.left.set_peer(4, 9 * SECOND, 19 * SECOND, 0, Framing::None, 0).unwrap();
    assert!(pair.left.has_new_timer());
    pair.left.del_peer(4).unwrap();
    let mut pings = Vec::new();
    assert_eq!(pair.left.next_timer(), Some(2 * SECOND));
    pair.left.handle_timer(3 * SECOND, &mut pings, &mut pair.pool);
    assert_eq!(pings.iter().map(|ping| ping.path.socket).collect::<Vec<_>>(), [2, 1]);
    pair.left.handle_timer(30 * SECOND, &mut pings, &mut pair.pool);
    assert_eq!(pair.left.take_events().len(), 2);
}
