//! Whose traffic it is, and what each has of what all share.
//!
//! Of anything that is bounded, half is there for whoever comes, and half in small equal parts, one for each client.
//! Beyond its part a client may take as long as it holds less than is left: alone it has half of what is for all, the
//! second half of the rest, and however many work together, nobody comes to find nothing.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use crate::netstack::budget::Budget;
use crate::plane::routes::{Address, Prefix, Prefixes};

/// Where traffic comes from: a client that the owner has named, or an address that is none's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Client(u64),
    Address(IpAddr),
}

/// The clients, each with its addresses and the networks behind it.
pub struct Clients {
    prefixes: Prefixes<u64>,
    budgets: HashMap<u64, Budget>,
    all: Budget,
}

impl Clients {
    pub fn new(all: Budget) -> Clients {
        Clients { prefixes: Prefixes::default(), budgets: HashMap::new(), all }
    }

    /// The addresses of a client from now on; without any it is forgotten. Of two that claim one prefix the later
    /// has it.
    pub fn set(&mut self, client: u64, prefixes: &[Prefix]) {
        self.prefixes.remove_all(&client);
        if prefixes.is_empty() {
            self.budgets.remove(&client);
            return;
        }
        prefixes.iter().for_each(|&prefix| self.prefixes.insert(prefix, client));
        self.budgets.entry(client).or_insert_with(|| self.all.share());
    }

    pub fn source(&self, address: IpAddr) -> Source {
        self.prefixes.get(address.into()).map_or(Source::Address(address), |client| Source::Client(*client))
    }

    /// The memory for connections with `address`.
    pub fn budget(&self, address: IpAddr) -> &Budget {
        let client = self.prefixes.get(Address::from(address));
        client.and_then(|client| self.budgets.get(client)).unwrap_or(&self.all)
    }
}

/// How many of something there may be at a time: of all, and of each.
pub struct Slots<K> {
    most: usize,
    most_each: usize,
    taken: usize,
    /// Those beyond the parts.
    beyond: usize,
    counts: HashMap<K, usize>,
}

impl<K: Hash + Eq> Slots<K> {
    pub fn new(most: usize, most_each: usize) -> Slots<K> {
        Slots { most, most_each, taken: 0, beyond: 0, counts: HashMap::new() }
    }

    /// `false` where there are too many.
    pub fn take(&mut self, source: K) -> bool {
        let (part, count) = (self.part(), self.counts.get(&source).copied().unwrap_or(0));
        let is_beyond = count >= part;
        let left = (self.most / 2).saturating_sub(self.beyond);
        if self.taken >= self.most || count >= self.most_each || is_beyond && count - part >= left {
            return false;
        }
        self.taken += 1;
        self.beyond += usize::from(is_beyond);
        *self.counts.entry(source).or_default() += 1;
        true
    }

    pub fn free(&mut self, source: K) {
        let part = self.part();
        let Some(count) = self.counts.get_mut(&source) else { return };
        self.taken -= 1;
        self.beyond -= usize::from(*count > part);
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&source);
        }
    }

    fn part(&self) -> usize {
        (self.most / 2 / CLIENTS).max(1)
    }
}

/// For so many a part is kept for certain.
const CLIENTS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_its_clients_and_so_is_a_network_behind_it() {
        let mut clients = Clients::new(Budget::new(1 << 20));
        let prefixes =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Prefix>>();
        clients.set(7, &prefixes(&["10.8.0.2", "fd00::2", "192.168.5.0/24"]));
        clients.set(8, &prefixes(&["10.8.0.3"]));
        for (text, source) in [("10.8.0.2", 7), ("fd00::2", 7), ("192.168.5.77", 7), ("10.8.0.3", 8)] {
            assert_eq!(clients.source(text.parse().unwrap()), Source::Client(source), "{text}");
        }
        clients.set(7, &[]);
        let nobodys = "192.168.5.77".parse().unwrap();
        assert_eq!(clients.source(nobodys), Source::Address(nobodys));
    }

    #[test]
    fn one_alone_has_much_and_the_last_of_many_has_its_part() {
        let mut slots = Slots::new(8192, 8192);
        let counts: Vec<usize> =
            (0..200).map(|source| std::iter::from_fn(|| slots.take(source).then_some(())).count()).collect();
        assert_eq!(counts[0], 2048 + 16);
        assert_eq!(counts[1], 1024 + 16);
        assert_eq!(counts[199], 16);
        for (source, count) in counts.iter().enumerate() {
            (0..*count).for_each(|_| slots.free(source));
        }
        assert_eq!((slots.taken, slots.beyond, slots.counts.len()), (0, 0, 0));
    }

    #[test]
    fn there_are_never_more_than_all_or_than_each_may_have() {
        let mut slots = Slots::new(10, 3);
        assert_eq!((0..4).filter(|_| slots.take(0)).count(), 3);
        assert_eq!((1..30).filter(|source| slots.take(*source)).count(), 7);
    }
}
