//! The stack's own addresses.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{IpAddress, IpCidr};

/// The addresses of the interface, each with the subnet it stands in.
#[derive(Default)]
pub struct Addresses {
    all: Vec<IpCidr>,
}

impl Addresses {
    /// Reads addresses in CIDR notation; the text that is none comes back as the error.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Addresses, &'a str> {
        let mut all = Vec::new();
        for text in texts {
            all.push(parse_cidr(text).ok_or(text)?);
        }
        Ok(Addresses { all })
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let address = IpAddress::from(address);
        self.all.iter().any(|cidr| cidr.address() == address)
    }

    /// The address to speak to `remote` from: the first in whose subnet it lies, else the first
    /// of its family.
    pub fn source_for(&self, remote: IpAddr) -> Option<IpAddr> {
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
