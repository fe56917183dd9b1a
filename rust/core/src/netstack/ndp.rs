//! Neighbour discovery (RFC 4861): solicitations and advertisements.

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::IpProtocol;

use crate::netstack::ethernet::Mac;
use crate::netstack::icmp;
use crate::netstack::ip;
use crate::netstack::outbox::Outbox;

/// A message about a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    Solicitation {
        target: Ipv6Addr,
        /// The sender's own, unless it has no address yet.
        station: Option<Mac>,
    },
    Advertisement {
        target: Ipv6Addr,
        station: Option<Mac>,
        /// In answer to a solicitation.
        solicited: bool,
        /// To replace what was known.
        overrides: bool,
    },
}

impl Neighbour {
    /// Reads an ICMPv6 message whose checksum and hop limit have been checked. `None` for one that is
    /// malformed or about something else.
    pub fn parse(icmp: &[u8]) -> Option<Neighbour> {
        let (fixed, options) = icmp.split_first_chunk::<FIXED>()?;
        let octets: [u8; 16] = fixed[8..].try_into().expect("16 of 24 bytes");
        let target = Ipv6Addr::from(octets);
        if target.is_multicast() || fixed[1] != 0 {
            return None;
        }
        match fixed[0] {
            SOLICITATION => Some(Neighbour::Solicitation { target, station: station(options, SOURCE)? }),
            ADVERTISEMENT => Some(Neighbour::Advertisement {
                target,
                station: station(options, TARGET)?,
                solicited: fixed[4] & SOLICITED != 0,
                overrides: fixed[4] & OVERRIDES != 0,
            }),
            _ => None,
        }
    }
}

/// Whether an ICMPv6 type is neighbour discovery's.
pub fn is_neighbour(kind: u8) -> bool {
    matches!(kind, SOLICITATION | ADVERTISEMENT)
}

/// Asks who has `target`: its group, or only the station that had it.
pub fn emit_solicitation(out: &mut Outbox, own: (Mac, Ipv6Addr), target: Ipv6Addr, probes: bool) {
    let destination = if probes { target } else { solicited_node(target) };
    emit(out, SOLICITATION, 0, (own.1, destination), target, (SOURCE, own.0));
}

/// Answers a solicitation: to who asked, or to all where it has no address yet.
pub fn emit_answer(out: &mut Outbox, own: (Mac, Ipv6Addr), asker: Ipv6Addr) {
    let (destination, flags) =
        if asker.is_unspecified() { (ALL_NODES, OVERRIDES) } else { (asker, SOLICITED | OVERRIDES) };
    emit(out, ADVERTISEMENT, flags, (own.1, destination), own.1, (TARGET, own.0));
}

/// Tells everybody whose an address is (RFC 4861, 7.2.6).
pub fn emit_announcement(out: &mut Outbox, own: (Mac, Ipv6Addr)) {
    emit(out, ADVERTISEMENT, OVERRIDES, (own.1, ALL_NODES), own.1, (TARGET, own.0));
}

/// The group in which a solicitation for an address is heard (RFC 4291, 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// The link-local address of a station (RFC 4291, appendix A).
pub fn link_local(Mac([a, b, c, d, e, f]): Mac) -> Ipv6Addr {
    let word = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

fn emit(
    out: &mut Outbox,
    kind: u8,
    flags: u8,
    (source, destination): (Ipv6Addr, Ipv6Addr),
    target: Ipv6Addr,
    (option, mac): (u8, Mac),
) {
    let ends = (IpAddr::V6(source), IpAddr::V6(destination));
    ip::emit_hop_limit(out, ends, IpProtocol::Icmpv6, FIXED + OPTION, ip::HOP_LIMIT_ON_LINK, |message| {
        message[..8].copy_from_slice(&[kind, 0, 0, 0, flags, 0, 0, 0]);
        message[8..FIXED].copy_from_slice(&target.octets());
        message[FIXED..FIXED + 2].copy_from_slice(&[option, 1]);
        message[FIXED + 2..].copy_from_slice(&mac.0);
        icmp::fill_checksum(ends, message);
    });
}

/// The station that an option tells of. `None` where the options are malformed.
fn station(mut options: &[u8], wanted: u8) -> Option<Option<Mac>> {
    let mut found = None;
    while !options.is_empty() {
        let [kind, units, ..] = *options else { return None };
        let len = usize::from(units) * 8;
        let option = options.get(..len).filter(|option| !option.is_empty())?;
        if kind == wanted && units == 1 {
            let mac = Mac(option[2..8].try_into().expect("6 of 8 bytes"));
            found = mac.is_station().then_some(mac);
        }
        options = &options[len..];
    }
    Some(found)
}

pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The message without its options; one option with an Ethernet address.
const FIXED: usize = 24;
const OPTION: usize = 8;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE: u8 = 1;
const TARGET: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDES: u8 = 0x20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_rfc() {
        let address: Ipv6Addr = "4037::01:800:200e:8c6c".parse().unwrap();
        assert_eq!(solicited_node(address).to_string(), "ff02::1:ff0e:8c6c");
        assert_eq!(link_local("34:56:78:9a:bc:de".parse().unwrap()).to_string(), "fe80::3656:78ff:fe9a:bcde");
    }

    #[test]
    fn malformed_options_are_refused() {
        let mut message = vec![SOLICITATION; 1];
        message.resize(FIXED, 0);
        for (options, sound) in [
            (&[][..], true),
            (&[1, 1, 2, 0, 0, 0, 0, 1], true),
            (&[1, 0, 2, 0, 0, 0, 0, 1], false),
            (&[1, 2, 2, 0, 0, 0, 0, 1], false),
            (&[1], false),
        ] {
            let whole = [&message, options].concat();
            assert_eq!(Neighbour::parse(&whole).is_some(), sound, "{options:?}");
        }
    }
}
