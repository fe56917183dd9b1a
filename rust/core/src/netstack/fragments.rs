//! Datagrams that come in pieces (RFC 815; RFC 8200, 4.5).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, IpRepr};

use crate::netstack::ip::{self, FRAGMENT_UNIT, Fragment, Header};
use crate::{Nanos, SECOND};

/// What a piece has led to.
#[derive(Debug, Default)]
pub struct Added {
    /// The whole packet, of which this was the last piece.
    pub whole: Option<Vec<u8>>,
    /// Pieces that are lost: this one, or those that had to make room for it.
    pub lost: usize,
}

/// The pieces of datagrams that are not whole yet, for at most [`PATIENCE`].
#[derive(Default)]
pub struct Fragments {
    datagrams: HashMap<Key, Datagram>,
    /// The oldest first. A key may stand here twice; the time tells which is meant.
    order: VecDeque<(Nanos, Key)>,
    bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    /// Over IPv4 each protocol counts its own; over IPv6 all count together.
    protocol: Option<u8>,
    identification: u32,
}

struct Datagram {
    pieces: BTreeMap<usize, Vec<u8>>,
    protocol: IpProtocol,
    /// Of the whole payload, once its last piece is here.
    len: Option<usize>,
    begun: Nanos,
}

impl Datagram {
    fn cost(&self) -> usize {
        self.pieces.values().map(|piece| piece_cost(piece.len())).sum()
    }

    /// Whether the bytes from `start` to `end` may belong to it: they touch none that are here.
    fn admits(&self, start: usize, end: usize, last: bool) -> bool {
        let before =
            self.pieces.range(..=start).next_back().is_none_or(|(at, piece)| at + piece.len() <= start);
        let after = self.pieces.range(start..).next().is_none_or(|(at, _)| *at >= end);
        let furthest = self.pieces.last_key_value().map_or(0, |(at, piece)| at + piece.len());
        let fits = match self.len {
            Some(len) => end <= len && !last,
            None => !last || furthest <= end,
        };
        before && after && fits
    }

    fn is_whole(&self) -> bool {
        let sum: usize = self.pieces.values().map(Vec::len).sum();
        self.len == Some(sum)
    }
}

impl Fragments {
    pub fn count(&self) -> usize {
        self.datagrams.len()
    }

    /// Takes a piece. Overlapping ones are an attack: the whole datagram is lost (RFC 5722).
    pub fn add(&mut self, now: Nanos, header: &Header, fragment: Fragment, packet: &[u8]) -> Added {
        let piece = &packet[header.payload.clone()];
        let (start, end) = (fragment.offset, fragment.offset + piece.len());
        let ragged = fragment.more && !piece.len().is_multiple_of(FRAGMENT_UNIT);
        if piece.is_empty() || ragged || ip::header_len(header.source) + end > LONGEST {
            return Added { whole: None, lost: 1 };
        }
        let key = Key {
            source: header.source,
            destination: header.destination,
            protocol: header.source.is_ipv4().then(|| header.protocol.into()),
            identification: fragment.identification,
        };
        let lost = self.expire(now) + self.make_room(piece_cost(piece.len()));
        let begun = self.datagrams.get(&key).map_or(now, |datagram| datagram.begun);
        let datagram = self.datagrams.entry(key).or_insert_with(|| {
            self.order.push_back((now, key));
            Datagram { pieces: BTreeMap::new(), protocol: header.protocol, len: None, begun }
        });
        if datagram.pieces.get(&start).is_some_and(|known| known == piece) {
            return Added { whole: None, lost: lost + 1 };
        }
        if !datagram.admits(start, end, !fragment.more) || datagram.pieces.len() >= MOST_PIECES {
            return Added { whole: None, lost: lost + 1 + self.remove(&key) };
        }
        datagram.pieces.insert(start, piece.to_vec());
        self.bytes += piece_cost(piece.len());
        if start == 0 {
            datagram.protocol = header.protocol;
        }
        if !fragment.more {
            datagram.len = Some(end);
        }
        let whole = datagram.is_whole().then(|| join(&key, datagram));
        if whole.is_some() {
            self.remove(&key);
        }
        Added { whole, lost }
    }

    /// When the oldest is given up.
    pub fn next_timer(&self) -> Option<Nanos> {
        self.order.front().map(|(begun, _)| begun + PATIENCE)
    }

    /// Gives up what has waited for too long. Returns how many pieces are lost.
    pub fn expire(&mut self, now: Nanos) -> usize {
        let mut lost = 0;
        while self.next_timer().is_some_and(|at| at <= now) {
            lost += self.remove_oldest();
        }
        lost
    }

    fn make_room(&mut self, cost: usize) -> usize {
        let mut lost = 0;
        while self.datagrams.len() >= MOST_DATAGRAMS || self.bytes + cost > MOST_BYTES {
            if self.order.is_empty() {
                break;
            }
            lost += self.remove_oldest();
        }
        lost
    }

    fn remove_oldest(&mut self) -> usize {
        let Some((begun, key)) = self.order.pop_front() else { return 0 };
        // One that was made whole may have been followed by another of the same key.
        let meant = self.datagrams.get(&key).is_some_and(|datagram| datagram.begun == begun);
        if meant { self.remove(&key) } else { 0 }
    }

    fn remove(&mut self, key: &Key) -> usize {
        let Some(datagram) = self.datagrams.remove(key) else { return 0 };
        self.bytes -= datagram.cost();
        if self.datagrams.is_empty() {
            self.order.clear();
        } else if self.order.len() > 2 * MOST_DATAGRAMS {
            let datagrams = &self.datagrams;
            self.order.retain(|(begun, key)| datagrams.get(key).is_some_and(|kept| kept.begun == *begun));
        }
        datagram.pieces.len()
    }
}

/// The packet as it was before it was cut.
fn join(key: &Key, datagram: &Datagram) -> Vec<u8> {
    let len = datagram.len.unwrap_or_default();
    let repr = IpRepr::new(key.source.into(), key.destination.into(), datagram.protocol, len, HOP_LIMIT);
    let mut packet = vec![0; repr.buffer_len()];
    repr.emit(&mut packet, &ChecksumCapabilities::default());
    let payload = &mut packet[repr.header_len()..];
    for (at, piece) in &datagram.pieces {
        payload[*at..at + piece.len()].copy_from_slice(piece);
    }
    packet
}

/// A piece with what keeping it costs.
fn piece_cost(len: usize) -> usize {
    len + 64
}

const LONGEST: usize = 65_535;
const PATIENCE: Nanos = 30 * SECOND;
const MOST_DATAGRAMS: usize = 256;
const MOST_PIECES: usize = 128;
const MOST_BYTES: usize = 4 << 20;
/// Nothing that is told apart by its hop limit comes in pieces (RFC 6980).
const HOP_LIMIT: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn header(len: usize) -> Header {
        Header {
            source: "10.8.0.1".parse().unwrap(),
            destination: "10.8.0.2".parse().unwrap(),
            protocol: IpProtocol::Udp,
            hop_limit: 64,
            payload: 0..len,
            fragment: None,
        }
    }

    fn add(
        fragments: &mut Fragments,
        now: Nanos,
        identification: u32,
        offset: usize,
        more: bool,
        bytes: &[u8],
    ) -> Added {
        fragments.add(now, &header(bytes.len()), Fragment { identification, offset, more }, bytes)
    }

    #[test]
    fn pieces_in_any_order_make_the_packet() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            let mut fragments = Fragments::default();
            let pieces = [(0, true, [1; 16]), (16, true, [2; 16]), (32, false, [3; 16])];
            let added: Vec<Added> = order
                .iter()
                .map(|&at| add(&mut fragments, 0, 7, pieces[at].0, pieces[at].1, &pieces[at].2))
                .collect();
            assert!(added[0].whole.is_none() && added[1].whole.is_none());
            let whole = added[2].whole.as_ref().unwrap();
            assert_eq!(whole[ip::IPV4_HEADER..], [[1; 16], [2; 16], [3; 16]].concat());
            assert!(ip::parse(whole).unwrap().fragment.is_none());
            assert_eq!((fragments.count(), fragments.bytes, fragments.next_timer()), (0, 0, None));
        }
    }

    #[test]
    fn what_overlaps_or_contradicts_is_lost_whole() {
        for (offset, more, len) in [(8, true, 16), (0, true, 8), (8, false, 4), (24, false, 8)] {
            let mut fragments = Fragments::default();
            add(&mut fragments, 0, 7, 0, true, &[1; 16]);
            add(&mut fragments, 0, 7, 32, false, &[1; 8]);
            let added = add(&mut fragments, 0, 7, offset, more, &vec![2; len]);
            assert_eq!(
                (added.whole.is_none(), added.lost, fragments.count()),
                (true, 3, 0),
                "{offset} {more}"
            );
        }
        let mut fragments = Fragments::default();
        add(&mut fragments, 0, 7, 0, true, &[1; 16]);
        assert_eq!(add(&mut fragments, 0, 7, 0, true, &[1; 16]).lost, 1);
        assert_eq!((fragments.count(), add(&mut fragments, 0, 7, 16, true, &[1; 9]).lost), (1, 1));
    }

    #[test]
    fn every_piece_is_kept_used_or_lost_and_all_is_bounded() {
        let mut fragments = Fragments::default();
        let mut lost = 0;
        for number in 0..10_000u32 {
            lost +=
                add(&mut fragments, number.into(), number / 3, number as usize % 3 * 1400, true, &[1; 1400])
                    .lost;
            assert!(fragments.count() <= MOST_DATAGRAMS && fragments.bytes <= MOST_BYTES);
        }
        let kept: usize = fragments.datagrams.values().map(|datagram| datagram.pieces.len()).sum();
        assert_eq!(lost + kept, 10_000);
        assert_eq!(fragments.expire(20_000 + PATIENCE), kept);
        assert_eq!((fragments.bytes, fragments.next_timer()), (0, None));
    }

    #[test]
    fn no_packet_is_longer_than_any() {
        let mut fragments = Fragments::default();
        assert_eq!(add(&mut fragments, 0, 1, 65_528, false, &[1; 8]).lost, 1);
        assert_eq!(fragments.count(), 0);
    }
}
