//! Inner addresses: which peer a prefix leads to, and who may use it as a source.

use std::net::IpAddr;
use std::str::FromStr;

use foldhash::{HashMap, HashMapExt};

/// An IP prefix. Bits past its length are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: Address,
    len: u8,
}

impl Prefix {
    /// The network of `len` bits around an address; `None` past the address's own bits.
    pub fn new(address: IpAddr, len: u8) -> Option<Prefix> {
        let address = Address::from(address);
        (u32::from(len) <= address.width()).then(|| Prefix { address: address.masked(len), len })
    }
}

/// "address/length", or an address alone.
impl FromStr for Prefix {
    type Err = ();

    fn from_str(text: &str) -> Result<Prefix, ()> {
        let (address, len) = text.split_once('/').map_or((text, None), |(address, len)| (address, Some(len)));
        let address: IpAddr = address.parse().map_err(drop)?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let len = len.map_or(Ok(whole), str::parse).map_err(drop)?;
        Prefix::new(address, len).ok_or(())
    }
}

/// An address with its bits at the top of a number, so that one mask serves both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    V4(u128),
    V6(u128),
}

impl Address {
    fn width(self) -> u32 {
        match self {
            Address::V4(_) => 32,
            Address::V6(_) => 128,
        }
    }

    fn masked(self, len: u8) -> Address {
        let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        match self {
            Address::V4(bits) => Address::V4(bits & mask),
            Address::V6(bits) => Address::V6(bits & mask),
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Address {
        match address {
            IpAddr::V4(address) => Address::V4(u128::from(address.to_bits()) << 96),
            IpAddr::V6(address) => Address::V6(address.to_bits()),
        }
    }
}

/// The addresses of an IP packet.
pub struct Ends {
    pub source: Address,
    pub destination: Address,
}

impl Ends {
    /// `None` for what is no IP packet or shorter than its header.
    pub fn of(packet: &[u8]) -> Option<Ends> {
        match packet.first()? >> 4 {
            4 => Some(Ends { source: ipv4(packet, 12)?, destination: ipv4(packet, 16)? }),
            6 => Some(Ends { source: ipv6(packet, 8)?, destination: ipv6(packet, 24)? }),
            _ => None,
        }
    }
}

/// A table in which the longest prefix wins. Its few different lengths are looked up in turn.
pub struct Prefixes<T> {
    /// By falling length.
    tables: Vec<(u8, HashMap<Address, T>)>,
}

impl<T: PartialEq> Prefixes<T> {
    pub fn insert(&mut self, prefix: Prefix, value: T) {
        let at = self.tables.partition_point(|(len, _)| *len > prefix.len);
        if self.tables.get(at).is_none_or(|(len, _)| *len != prefix.len) {
            self.tables.insert(at, (prefix.len, HashMap::new()));
        }
        self.tables[at].1.insert(prefix.address, value);
    }

    pub fn remove(&mut self, prefix: Prefix) {
        if let Some((_, table)) = self.tables.iter_mut().find(|(len, _)| *len == prefix.len) {
            table.remove(&prefix.address);
        }
        self.tables.retain(|(_, table)| !table.is_empty());
    }

    /// Removes every prefix with this value.
    pub fn remove_all(&mut self, value: &T) {
        self.tables.iter_mut().for_each(|(_, table)| table.retain(|_, kept| kept != value));
        self.tables.retain(|(_, table)| !table.is_empty());
    }

    pub fn get(&self, address: Address) -> Option<&T> {
        self.tables.iter().find_map(|(len, table)| table.get(&address.masked(*len)))
    }

    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }
}

impl<T> Default for Prefixes<T> {
    fn default() -> Prefixes<T> {
        Prefixes { tables: Vec::new() }
    }
}

impl<T: PartialEq> FromIterator<(Prefix, T)> for Prefixes<T> {
    fn from_iter<I: IntoIterator<Item = (Prefix, T)>>(entries: I) -> Prefixes<T> {
        let mut prefixes = Prefixes::default();
        entries.into_iter().for_each(|(prefix, value)| prefixes.insert(prefix, value));
        prefixes
    }
}

fn ipv4(packet: &[u8], at: usize) -> Option<Address> {
    let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
    Some(Address::V4(u128::from(u32::from_be_bytes(bytes)) << 96))
}

fn ipv6(packet: &[u8], at: usize) -> Option<Address> {
    let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
    Some(Address::V6(u128::from_be_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::from(text.parse::<IpAddr>().unwrap())
    }

    fn table(entries: &[(&str, u32)]) -> Prefixes<u32> {
        entries.iter().map(|&(prefix, value)| (prefix.parse().unwrap(), value)).collect()
    }

    #[test]
    fn the_longest_prefix_wins() {
        let prefixes =
            table(&[("0.0.0.0/0", 1), ("10.0.0.0/8", 2), ("10.8.0.0/24", 3), ("10.8.0.6", 4), ("::/0", 5)]);
        for (text, value) in
            [("192.0.2.1", 1), ("10.9.0.1", 2), ("10.8.0.7", 3), ("10.8.0.6", 4), ("2001:db8::1", 5)]
        {
            assert_eq!(prefixes.get(address(text)), Some(&value), "{text}");
        }
    }

    #[test]
    fn the_families_are_apart() {
        assert_eq!(table(&[("0.0.0.0/0", 1)]).get(address("::")), None);
        assert_eq!(table(&[("::/0", 1)]).get(address("0.0.0.0")), None);
    }

    #[test]
    fn a_value_leaves_with_its_prefixes() {
        let mut prefixes = table(&[("10.0.0.0/8", 1), ("10.8.0.0/16", 2), ("fd00::/8", 2)]);
        prefixes.remove_all(&2);
        assert_eq!(prefixes.get(address("10.8.0.1")), Some(&1));
        assert_eq!(prefixes.get(address("fd00::1")), None);
        prefixes.remove_all(&1);
        assert!(prefixes.is_empty());
    }

    #[test]
    fn prefixes_are_parsed_strictly() {
        assert_eq!("10.8.0.77/24".parse::<Prefix>(), "10.8.0.0/24".parse());
        for wrong in
            ["", "10.8.0.0/33", "10.8.0/24", "::/129", "10.8.0.0/", "10.8.0.0/-1", "host/8", "10.8.0.0/8/8"]
        {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn short_packets_have_no_ends() {
        let packet = [0x45; 40];
        assert!((0..20).all(|len| Ends::of(&packet[..len]).is_none()));
        assert!(Ends::of(&packet[..20]).is_some());
        let packet = [0x60; 40];
        assert!((0..40).all(|len| Ends::of(&packet[..len]).is_none()));
        assert!(Ends::of(&packet).is_some());
    }
}
