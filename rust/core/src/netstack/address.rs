//! The stack's own addresses.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{IpAddress, IpCidr};

use crate::netstack::ndp::{ALL_NODES, solicited_node};
use crate::plane::routes::Prefix;

/// The addresses of the interface, each with the subnet it stands in.
#[derive(Default)]
pub struct Addresses {
    all: Vec<IpCidr>,
    /// The address that a station on a link has by itself.
    link_local: Option<Ipv6Addr>,
}

impl Addresses {
    /// Reads addresses in CIDR notation; the text that is none comes back as the error.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Addresses, &'a str> {
        let mut all = Vec::new();
        for text in texts {
            all.push(parse_cidr(text).ok_or(text)?);
        }
        Ok(Addresses { all, link_local: None })
    }

    pub fn set_link_local(&mut self, address: Option<Ipv6Addr>) {
        self.link_local = address;
    }

    pub fn link_local(&self) -> Option<Ipv6Addr> {
        self.link_local
    }

    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let link_local = self.link_local.map(IpAddr::V6);
        self.all.iter().map(|cidr| cidr.address().into()).chain(link_local)
    }

    /// The subnets that the addresses stand in.
    pub fn subnets(&self) -> Vec<Prefix> {
        let link_local = self.link_local.and_then(|own| Prefix::new(own.into(), LINK_LOCAL_LEN));
        let subnet = |cidr: &IpCidr| Prefix::new(cidr.address().into(), cidr.prefix_len());
        self.all.iter().filter_map(subnet).chain(link_local).collect()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let own = IpAddress::from(address);
        self.all.iter().any(|cidr| cidr.address() == own) || self.is_link_local(address)
    }

    /// Whether we are in this IPv6 group: that of all, or one in which we are asked for.
    pub fn is_in_group(&self, group: Ipv6Addr) -> bool {
        group == ALL_NODES
            || self.iter().any(|own| matches!(own, IpAddr::V6(own) if solicited_node(own) == group))
    }

    /// The address to speak to `remote` from: the first in whose subnet it lies, else the first
    /// of its family.
    pub fn source_for(&self, remote: IpAddr) -> Option<IpAddr> {
        if let (IpAddr::V6(address), Some(own)) = (remote, self.link_local)
            && is_on_link(address)
        {
            return Some(own.into());
        }
        let remote = IpAddress::from(remote);
        let family = || self.all.iter().filter(|cidr| cidr.address().version() == remote.version());
        let near = family().find(|cidr| cidr.contains_addr(&remote));
        near.or_else(|| family().next()).map(|cidr| cidr.address().into())
    }

    /// Whether an IPv4 address is the broadcast address of one of the subnets, or of all.
    pub fn is_broadcast(&self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address else { return false };
        address.is_broadcast()
            || self.all.iter().any(|cidr| match cidr {
                IpCidr::Ipv4(cidr) => cidr.broadcast() == Some(address),
                IpCidr::Ipv6(_) => false,
            })
    }

    fn is_link_local(&self, address: IpAddr) -> bool {
        self.link_local.is_some_and(|own| address == IpAddr::V6(own))
    }
}

/// Whether this is the address of a group.
pub fn is_group(address: IpAddr) -> bool {
    address.is_multicast()
}

/// Whether an address is only known on the link.
fn is_on_link(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.octets();
    address.is_unicast_link_local() || first == 0xff && second & 0x0f == 2
}

/// Whether a host can have this address: not unspecified, loopback, multicast or reserved.
pub fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            first != 0 && first != 127 && first < 224
        }
        IpAddr::V6(address) => {
            !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_multicast()
                && address.to_ipv4_mapped().is_none()
        }
    }
}

/// An address in the 16 bytes of the datagram framing: IPv4 mapped into IPv6.
pub fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The reverse of [`mapped`].
pub fn unmapped(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

fn parse_cidr(text: &str) -> Option<IpCidr> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= longest && is_host(address)).then(|| IpCidr::new(address.into(), prefix))
}

const LINK_LOCAL_LEN: u8 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_source_is_of_the_subnet_or_else_the_first() {
        let own = Addresses::parse(["10.8.0.2/24", "10.9.0.2/24", "fd00::2/64"]).unwrap();
        assert_eq!(own.source_for(ip("10.9.0.77")), Some(ip("10.9.0.2")));
        assert_eq!(own.source_for(ip("192.0.2.1")), Some(ip("10.8.0.2")));
        assert_eq!(own.source_for(ip("2001:db8::1")), Some(ip("fd00::2")));
        assert!(own.is_broadcast(ip("10.8.0.255")) && !own.is_broadcast(ip("10.8.0.254")));
        let only_v4 = Addresses::parse(["10.8.0.2/24"]).unwrap();
        assert_eq!(only_v4.source_for(ip("2001:db8::1")), None);
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in ["10.8.0.2", "10.8.0.2/33", "host/8", "fd00::2/129", "224.0.0.1/8", "::/0", "127.0.0.1/8"]
        {
            assert_eq!(Addresses::parse([text]).err(), Some(text));
        }
    }

    #[test]
    fn mapped_and_back() {
        for text in ["10.8.0.2", "fd00::2"] {
            assert_eq!(unmapped(mapped(ip(text))), ip(text));
        }
    }
}
